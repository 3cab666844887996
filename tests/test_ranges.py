"""What pyproject.toml says of versions agrees with itself."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pythons() -> list[tuple[int, int]]:
    """The versions of Python that the classifiers name."""
    named = [
        re.fullmatch(r"Programming Language :: Python :: (\d+)\.(\d+)", c) for c in PROJECT["classifiers"]
    ]
    return sorted((int(found[1]), int(found[2])) for found in named if found)


def test_the_classifiers_begin_where_requires_python_does() -> None:
    lowest = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert lowest
    assert pythons()[0] == (int(lowest[1]), int(lowest[2]))
    assert sys.version_info[:2] in pythons()


def test_the_file_of_lowest_versions_has_each_bound_once() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import bounds
    finally:
        sys.path.pop(0)
    lowest = bounds.lowest(bounds.bounds((ROOT / "pyproject.toml").read_text()))
    groups = [
        PROJECT["dependencies"],
        *(v for k, v in PROJECT["optional-dependencies"].items() if k not in bounds.LEFT_OUT),
    ]
    wanted = {re.split(r"[><=\[]", line)[0] for group in groups for line in group if ">=" in line}
    assert set(lowest) == wanted
