"""Where a trainer's own files lie: its log and its optimizer, beside the adapter or one level above it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from nextrl.checkpoints.adapter import AdapterCheckpoint

STATE, OPTIMIZER = "trainer_state.json", "optimizer.pt"


def trainer_folders(opened: Iterable[AdapterCheckpoint]) -> dict[int, Path]:
    """Step of a run's checkpoint -> the folder with what its trainer left, by ascending step.

    A named adapter lies one level deeper (`checkpoint-N/policy/`), and what the trainer leaves does not: where it is
    only there, the folder is the one above.
    """
    own = {c.step: c.file.path.parent for c in sorted(opened, key=lambda c: c.step)}
    # A folder that several checkpoints lie in is the run's own, and no checkpoint.
    inside = Counter(folder.parent for folder in own.values())
    return {
        step: folder.parent if inside[folder.parent] == 1 and _is_above(folder) else folder
        for step, folder in own.items()
    }


def named_by_count(counted: Mapping[int, int]) -> bool:
    """Whether checkpoints are numbered by the steps that their trainers count, as half of them, or more, are.

    Args:
        counted: step of a checkpoint -> `global_step` of the log beside it.
    """
    agree = [step == count for step, count in counted.items() if step > 0]
    return 2 * sum(agree) >= len(agree) > 0


def _is_above(folder: Path) -> bool:
    """Whether a trainer has left nothing here, and something in the folder that this one is in."""
    return not _left(folder) and _left(folder.parent)


def _left(place: Path) -> bool:
    return any((place / name).is_file() for name in (STATE, OPTIMIZER))
