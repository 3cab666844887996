"""Where a run's adapters lie: one file a layout, found automatically.

`open_run` is the only way in. A reader is a function `find(run) -> Layout`; adding one is a line in READERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nextrl.checkpoints import peft
from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.run import Layout, Located, Problem, StoredCheckpoint
from nextrl.errors import InputError

__all__ = [
    "AdapterCheckpoint",
    "Layout",
    "Located",
    "Problem",
    "READERS",
    "Run",
    "StoredCheckpoint",
    "open_run",
]

READERS: Mapping[str, Callable[[Path], Layout]] = {"trl": peft.find}


@dataclass(frozen=True)
class Run:
    """A run with its checkpoints opened.

    Attributes:
        layout: name of the reader that found it.
        checkpoints: those that could be opened, by step.
        problems: everything that is wrong, fatal or not.
    """

    layout: str
    source: Path | None
    checkpoints: tuple[AdapterCheckpoint, ...]
    problems: tuple[Problem, ...]


def open_run(
    source: Path | Mapping[int, Path],
    *,
    layout: str | None = None,
    steps: Sequence[int] | None = None,
    allow_pickle: bool = False,
) -> Run:
    """Find and open the checkpoints of a run; problems are collected, not raised.

    Raises:
        InputError: `source` is no run at all (missing, unknown layout, two layouts in one folder, no such step).
    """
    if isinstance(source, Mapping):
        name, path = "peft-list", None
        found = Layout(name, tuple(sorted(Located(int(s), Path(f)) for s, f in source.items())))
    else:
        path = source
        found = detect(path, layout)
    wanted = None if steps is None else set(steps)
    if wanted is not None and (missing := wanted - {where.step for where in found.located}):
        raise InputError(f"{path}: no checkpoint of step {min(missing)}; there are {_listed(found)}")
    problems = list(found.problems)
    opened = []
    for where in found.located:
        if wanted is not None and where.step not in wanted:
            continue
        try:
            opened.append(AdapterCheckpoint.open(where.step, where.folder, allow_pickle=allow_pickle))
        except InputError as error:
            problems.append(Problem(where.folder, str(error), where.step))
    problems += _disagreements(opened)
    return Run(found.name, path, tuple(opened), tuple(problems))


def detect(run: Path, layout: str | None = None) -> Layout:
    """The layout of a folder, by asking every reader (or the one named).

    Raises:
        InputError: no such folder, unknown `layout`, nothing found, or two layouts found.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such directory; give the directory that holds the run's checkpoints")
    if layout is not None and layout not in READERS:
        raise InputError(f"--layout {layout}: unknown; choose one of {', '.join(READERS)}")
    names = [layout] if layout else list(READERS)
    found = [result for name in names if (result := READERS[name](run)).found]
    if not found:
        raise InputError(
            f"{run}: no LoRA checkpoints found (looked for layouts {', '.join(names)}); "
            "give the directory that holds checkpoint-N or global_step_N folders"
        )
    if len(found) > 1:
        raise InputError(
            f"{run}: holds two layouts ({' and '.join(result.name for result in found)}); choose with --layout"
        )
    return found[0]


def _listed(layout: Layout) -> str:
    return ", ".join(str(where.step) for where in layout.located) or "none"


def _disagreements(opened: Sequence[AdapterCheckpoint]) -> list[Problem]:
    """Checkpoints whose modules, ranks or scalings differ from the majority's."""
    if not opened:
        return []
    shapes = [tuple(sorted(c.shapes.items())) for c in opened]
    usual = max(shapes, key=shapes.count)
    reference = opened[shapes.index(usual)]
    problems = []
    for checkpoint, shape in zip(opened, shapes, strict=True):
        if shape != usual:
            text = f"{checkpoint.file.path}: {_difference(checkpoint, reference)}; leave it out or load a range of steps"
            problems.append(Problem(checkpoint.file.path, text, checkpoint.step))
        elif module := next(
            (m for m in usual_modules(usual) if checkpoint.scaling(m) != reference.scaling(m)), None
        ):
            text = (
                f"{checkpoint.settings.path}: scaling of {module} is {checkpoint.scaling(module):g}, "
                f"{reference.scaling(module):g} at step {reference.step}; make lora_alpha, r and use_rslora agree"
            )
            problems.append(Problem(checkpoint.settings.path, text, checkpoint.step))
    return problems


def usual_modules(shapes: tuple[tuple[str, tuple[int, int, int]], ...]) -> list[str]:
    """Names of the modules in a sorted shape table."""
    return [name for name, _ in shapes]


def _difference(checkpoint: AdapterCheckpoint, reference: AdapterCheckpoint) -> str:
    missing = [m for m in reference.modules if m not in checkpoint.shapes]
    extra = [m for m in checkpoint.modules if m not in reference.shapes]
    if missing:
        return f"{len(missing)} modules of step {reference.step} are missing ({missing[0]})"
    if extra:
        return f"{len(extra)} modules that step {reference.step} does not have ({extra[0]})"
    module = next(m for m in reference.modules if checkpoint.shapes[m] != reference.shapes[m])
    (m, n, r), (m0, n0, r0) = checkpoint.shapes[module], reference.shapes[module]
    return f"{module} is {m}x{n} of rank {r}, at step {reference.step} it is {m0}x{n0} of rank {r0}"
