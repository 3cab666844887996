"""Do the checkpoints of a run belong together? Modules, ranks, scalings, dtypes and steps compared."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.run import Problem


def disagreements(opened: Sequence[AdapterCheckpoint]) -> list[Problem]:
    """Problems: a checkpoint that differs from most others (fatal for it), or a gap between steps (not fatal)."""
    if not opened:
        return []
    shapes = [tuple(sorted(c.shapes.items())) for c in opened]
    usual = Counter(shapes).most_common(1)[0][0]  # the first met, where several are as frequent
    reference = opened[shapes.index(usual)]
    problems = []
    for checkpoint, shape in zip(opened, shapes, strict=True):
        if shape != usual:
            what, path = _difference(checkpoint, reference), checkpoint.file.path
            text = f"{path}: {what}; leave it out (--skip-bad-checkpoints) or load a range of steps"
            problems.append(Problem(path, text, checkpoint.step))
        elif differs := _scaling_differs(checkpoint, reference):
            problems.append(Problem(checkpoint.settings.path, differs, checkpoint.step))
        elif checkpoint.dtypes != reference.dtypes:
            text = (
                f"{checkpoint.file.path}: stored as {_join(checkpoint.dtypes)}, step {reference.step} as "
                f"{_join(reference.dtypes)}; deltas between the two carry the coarser one's rounding"
            )
            problems.append(Problem(checkpoint.file.path, text, checkpoint.step, fatal=False))
    return problems + _gaps(opened)


def _difference(checkpoint: AdapterCheckpoint, reference: AdapterCheckpoint) -> str:
    missing = [m for m in reference.modules if m not in checkpoint.shapes]
    extra = [m for m in checkpoint.modules if m not in reference.shapes]
    if missing:
        return f"{len(missing)} modules of step {reference.step} are missing ({missing[0]} ...)"
    if extra:
        return f"{len(extra)} modules that step {reference.step} does not have ({extra[0]} ...)"
    module = next(m for m in reference.modules if checkpoint.shapes[m] != reference.shapes[m])
    (m, n, r), (m0, n0, r0) = checkpoint.shapes[module], reference.shapes[module]
    return f"{module} is {m}x{n} of rank {r}, at step {reference.step} it is {m0}x{n0} of rank {r0}"


def _scaling_differs(checkpoint: AdapterCheckpoint, reference: AdapterCheckpoint) -> str | None:
    for module in reference.modules:
        here, there = checkpoint.scaling(module), reference.scaling(module)
        if here != there:
            return (
                f"{checkpoint.settings.path}: scaling of {module} is {here:g}, at step {reference.step} it is "
                f"{there:g}; make lora_alpha, r and use_rslora agree"
            )
    return None


def _gaps(opened: Sequence[AdapterCheckpoint]) -> list[Problem]:
    steps = [c.step for c in opened]
    if len(steps) < 3:
        return []
    counts = Counter(b - a for a, b in itertools.pairwise(steps))
    usual = min(counts, key=lambda gap: (-counts[gap], gap))
    return [
        Problem(
            late.folder,
            f"{late.folder}: follows step {early.step} after {late.step - early.step} steps, not {usual}; "
            "statistics over windows across the gap are left out",
            late.step,
            fatal=False,
        )
        for early, late in itertools.pairwise(opened)
        if late.step - early.step != usual
    ]


def _join(names: frozenset[str]) -> str:
    return "/".join(sorted(names))
