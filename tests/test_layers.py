"""Which room of src/nextrl may import which: each only those on lower floors. There are no exceptions.

Inside `engines`, what serves every trainer imports no trainer's package, and no trainer's package another's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "nextrl"

# From the bottom up. A room is a package or a module of src/nextrl; rooms on one floor do not import each other.
FLOORS = (
    {"errors", "version", "nested", "palette", "say"},
    {"files", "registry", "scalars"},
    {"checkpoints", "tasks"},
    {"trajectory"},
    {"extrapolators"},
    {"judge", "leaps"},
    {"testing"},
    {"engines"},
    {"runs"},
    {"cli"},
    {"__main__"},
)
TRAINERS = {"trl", "verl"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(module: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything of nextrl that a source text imports, wherever in the text it does so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import counts from the module's own package.
            here = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*here, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{name.name}") for name in node.names)


def violations(module: str, source: str) -> list[str]:
    """One line for each import of a module that its floor does not allow.

    Args:
        module: full name, `nextrl.room...`; a package's `__init__` is written out.
    """
    room = module.split(".")[1]
    if room == "__init__":
        return []  # the face of the package: it may show anything, and nothing imports it
    if room not in FLOOR:
        return [f"{module}: {room} is on no floor: give it one in FLOORS"]
    found = []
    for line, name in imports(module, source):
        top, _, rest = name.partition(".")
        other, _, inner = rest.partition(".")
        if top != "nextrl":
            continue
        if other == room:
            trainer = inner.partition(".")[0]
            if room == "engines" and trainer in TRAINERS and trainer != module.split(".")[2]:
                found.append(f"{module}:{line} imports {name}: a trainer's own package")
            continue
        if other not in FLOOR:
            found.append(f"{module}:{line} imports {name}: the package's face, or a room on no floor")
        elif FLOOR[other] >= FLOOR[room]:
            found.append(f"{module}:{line} imports {name}: {other} is not below {room}")
    return found


def test_every_import_goes_down() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("nextrl", *path.relative_to(PACKAGE).with_suffix("").parts))
        found += violations(module, path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nextrl.trajectory.run", "from nextrl.judge.backtest import backtest"),
        ("nextrl.trajectory.run", "from nextrl import judge"),
        ("nextrl.trajectory.run", "import nextrl.judge.backtest"),
        ("nextrl.trajectory.run", "from ..judge import backtest"),
        ("nextrl.trajectory.run", "from .. import judge"),
        ("nextrl.trajectory.deep.run", "from ...judge.backtest import backtest"),
        ("nextrl.trajectory.__init__", "from ..judge import backtest"),
        ("nextrl.trajectory.run", "def late():\n    from nextrl.judge.backtest import backtest"),
        ("nextrl.trajectory.run", "if TYPE_CHECKING:\n    from nextrl.judge.backtest import backtest"),
        ("nextrl.judge.advice", "from nextrl.leaps.leap import leap"),
        ("nextrl.judge.advice", "import nextrl"),
        ("nextrl.judge.advice", "from nextrl import Trajectory"),
        ("nextrl.judge.advice", "from nextrl.attic import chest"),
        ("nextrl.attic.chest", ""),
        ("nextrl.engines.verl.remote", "from nextrl.engines.trl.seam import Seam"),
        ("nextrl.engines.verl.remote", "from nextrl.engines import trl"),
        ("nextrl.engines.verl.remote", "from ..trl.seam import Seam"),
        ("nextrl.engines.trl.callback", "import nextrl.engines.verl.shards"),
        ("nextrl.engines.session", "from nextrl.engines.trl.seam import Seam"),
        ("nextrl.engines.policies.auto", "from ..trl.seam import Seam"),
    ],
)
def test_an_import_that_does_not_go_down_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nextrl.judge.advice", "from nextrl.trajectory.persistence import excess"),
        ("nextrl.judge.advice", "from nextrl.judge.backtest import backtest"),
        ("nextrl.judge.advice", "from .backtest import backtest"),
        ("nextrl.judge.advice", "from nextrl import extrapolators"),
        ("nextrl.judge.advice", "import torch\nfrom trl import GRPOTrainer"),
        ("nextrl.__init__", "from nextrl.cli import main"),
        ("nextrl.engines.verl.remote", "from nextrl.engines.session import Session"),
        ("nextrl.engines.verl.remote", "from nextrl.engines.verl.shards import Shards"),
        ("nextrl.engines.trl.callback", "from nextrl.engines.trl.seam import Seam"),
        ("nextrl.runs.loop", "from nextrl.engines.trl.callback import LeapCallback"),
    ],
)
def test_an_import_that_goes_down_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_the_map_in_contributing_has_every_room_on_its_floor() -> None:
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE)
    shown = {
        room.rstrip("/"): int(floor) - 1 for floor, rooms in rows for room in re.findall(r"`(.*?)`", rooms)
    }
    wanted = {room: floor for room, floor in FLOOR.items() if room != "__main__"}
    wrong = sorted(room for room in shown.keys() | wanted.keys() if shown.get(room) != wanted.get(room))
    assert not wrong, f"CONTRIBUTING.md's map and FLOORS differ in the floor of {', '.join(wrong)}"
