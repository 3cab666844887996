"""Another Python process: with some packages as good as not installed, and what it had imported at its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# Finders that do not find: `import` and `importlib.util.find_spec` then behave as if it was never installed.
_BLOCK = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

_LOADED = "\nimport sys; print(*sys.modules, file=sys.stderr)\n"


def python(code: str, *arguments: str, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` where the top-level packages `without` are not installed."""
    whole = _BLOCK.format(packages=set(without)) + code
    command = [sys.executable, "-c", whole, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def nextrl(*arguments: str, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return python("from nextrl.cli import main; main()", *arguments, without=without)


def loaded(code: str, *arguments: str) -> set[str]:
    """Modules that `code` leaves imported."""
    done = python(f"try:\n    {code}\nexcept SystemExit:\n    pass{_LOADED}", *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())
