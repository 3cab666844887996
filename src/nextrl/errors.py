"""The one exception that means "the input is wrong", not "the program is".

The command line turns it into one clear line on stderr and exit code 2; every other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: which file or option, what is wrong, what to do."""
