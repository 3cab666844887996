"""The lower bounds of pyproject.toml as a constraints file: `name>=1.2` becomes `name==1.2`.

    python tools/bounds.py [name=version ...] > lowest.txt

`make test-lowest` builds an environment from it, so that the ranges in pyproject.toml are ranges that work. A
`name=version` takes the place of a bound (torch=2.13.0, where an old build for this machine is not to be had).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

# What develops, tests and draws the site is not part of what the ranges promise.
LEFT_OUT = {"dev", "docs"}


def bounds(text: str) -> Iterator[tuple[str, str]]:
    """(name, lowest version) of every dependency that has a bound; a name may come twice."""
    extra = ""
    for line in text.split("[project]", 1)[1].split("[project.scripts]", 1)[0].splitlines():
        if assigned := re.match(r"([\w-]+) = \[", line):
            extra = assigned[1]
        if extra not in LEFT_OUT and not line.startswith("requires-python"):
            yield from re.findall(r'"([\w.-]+)>=([\d.]+)', line)


def lowest(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    """One version for each name: the highest of its lower bounds, which every extra allows."""
    found: dict[str, str] = {}
    for name, version in pairs:
        found[name] = max(found.get(name, "0"), version, key=lambda v: [int(part) for part in v.split(".")])
    return found


def main() -> None:
    """Print the file."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    chosen = lowest(bounds(text)) | dict(given.split("=", 1) for given in sys.argv[1:])
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(chosen.items()))


if __name__ == "__main__":
    main()
