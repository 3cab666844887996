"""Regular expressions of a stranger's configuration, matched as PEFT matches them, and never for longer than a bound.

PEFT takes the keys of `alpha_pattern` and `rank_pattern` for regular expressions. One of thirty characters can keep
Python's matcher busy for years, in C code that nothing in the same process can interrupt. So each that is more than a
plain name is first matched in a child process, against the very names that it will meet here, with a limit of time.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable

from nextrl.errors import InputError, shown

SECONDS = 5.0
"""For all patterns of one adapter on all of its modules; ordinary ones need milliseconds."""

LONGEST = 1000
_MOST_PAIRS = 20_000_000
_PLAIN = re.compile(r"[\w.\-]*")
_MATCH_ALL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    compiled = re.compile(pattern)
    for name in names:
        compiled.match(name)
"""


def suffix(pattern: str) -> re.Pattern[str]:
    """The expression that PEFT's `get_pattern_key` matches at the start of a module's name (read from peft 0.21.2)."""
    with warnings.catch_warnings():
        # Of sets that a later Python may read otherwise: PEFT reads them as this one.
        warnings.simplefilter("ignore")
        return re.compile(rf"(.*\.)?({pattern})$")


def check(pattern: str, where: str) -> None:
    """Whether a text is a pattern at all.

    Raises:
        InputError: it is no regular expression, or longer than any name.
    """
    if len(pattern) > LONGEST:
        raise InputError(f"{where} has a name of {len(pattern)} characters, {shown(pattern, 40)}; restore it")
    try:
        suffix(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where} has the name {shown(pattern)}, no regular expression ({error})") from None


def refuse_slow(patterns: Iterable[str], names: Iterable[str], where: str) -> None:
    """Match every pattern against every name, in bounded time.

    Raises:
        InputError: that takes longer than `SECONDS`, or there are too many of both.
    """
    patterns, names = tuple(patterns), tuple(names)
    if len(patterns) * len(names) > _MOST_PAIRS:
        raise InputError(f"{where} has {len(patterns)} patterns for {len(names)} modules; restore it")
    risky = tuple(pattern for pattern in patterns if not _PLAIN.fullmatch(pattern))
    if risky and not _quick(risky, names):
        raise InputError(
            f"{where} has a regular expression that takes more than {SECONDS:g} s to match ({shown(risky[0])}); "
            "write the modules' names instead"
        )


@functools.lru_cache(maxsize=64)  # the checkpoints of a run ask the same
def _quick(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    asked = json.dumps([[suffix(pattern).pattern for pattern in patterns], names]).encode()
    command = [sys.executable, "-I", "-S", "-c", _MATCH_ALL]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
