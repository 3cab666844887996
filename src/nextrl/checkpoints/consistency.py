"""Do the checkpoints of a run belong together? Modules, ranks, scalings, base, dtypes, logs and steps compared."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.branches import strayed
from nextrl.checkpoints.lora_settings import AdapterConfig
from nextrl.checkpoints.run import Problem
from nextrl.errors import InputError, shown


def disagreements(opened: Sequence[AdapterCheckpoint]) -> list[Problem]:
    """Problems: a checkpoint that differs from most others (fatal for it), or, not fatal, a gap between steps."""
    if not opened:
        return []
    shapes = [tuple(sorted(c.shapes.items())) for c in opened]
    usual = Counter(shapes).most_common(1)[0][0]  # the first met, where several are as frequent
    reference = opened[shapes.index(usual)]
    foreign, (astray, miscounted) = _of_another_run(opened), strayed(opened)
    problems = []
    for checkpoint, shape in zip(opened, shapes, strict=True):
        if shape != usual:
            what, path = _difference(checkpoint, reference), checkpoint.file.path
            text = f"{path}: {what}; leave it out (--skip-bad-checkpoints) or load a range of steps"
            problems.append(Problem(path, text, checkpoint.step))
        elif differs := _scaling_differs(checkpoint, reference):
            problems.append(Problem(checkpoint.settings.path, differs, checkpoint.step))
        elif checkpoint.step in foreign:
            problems.append(Problem(checkpoint.settings.path, foreign[checkpoint.step], checkpoint.step))
        elif checkpoint.step in astray:
            problems.append(Problem(*astray[checkpoint.step], checkpoint.step))
        elif checkpoint.dtypes != reference.dtypes:
            text = (
                f"{checkpoint.file.path}: stored as {_join(checkpoint.dtypes)}, step {reference.step} as "
                f"{_join(reference.dtypes)}; deltas between the two carry the coarser one's rounding"
            )
            problems.append(Problem(checkpoint.file.path, text, checkpoint.step, fatal=False))
    alike = [c for c, shape in zip(opened, shapes, strict=True) if shape == usual]
    odd = [Problem(path, text, step, fatal=False) for step, (path, text) in sorted(miscounted.items())]
    return problems + _begun_anew(alike) + _gaps(opened) + odd


def _begun_anew(opened: Sequence[AdapterCheckpoint]) -> list[Problem]:
    """A problem of every checkpoint where the adapter was merged into the base and reset on the way (ReLoRA).

    The base is another one from there on, and no file says so. In a reset B begins at zero again, and A with new draws:
    nothing that a training does to an adapter makes B shorter and A another in one window; a run that `auto` begins
    again has B at zero, too, and A where it was.
    """
    told = ""
    for early, late in itertools.pairwise(opened):
        if _reset_between(early, late):
            told = (
                f"{late.folder}: the adapter was reset after step {early.step} (B began again at zero, and A is "
                "another), as ReLoRA does when it merges it into the base, so the checkpoints before and after it "
                "belong to different bases; read those since then alone "
                f"(--start {late.step}, in Python start={late.step})"
            )
    return [Problem(c.folder, told, c.step) for c in opened] if told else []


_LOOKED_AT = 4
"""Modules of each checkpoint that are read to see whether the adapter was reset: the smallest ones."""


def _reset_between(early: AdapterCheckpoint, late: AdapterCheckpoint) -> bool:
    """Whether each of some modules that had moved has a far shorter B, and an A that is another."""
    seen = []
    for module in sorted(early.modules, key=early.shape)[:_LOOKED_AT]:
        try:
            (a, b), (a2, b2) = (c.factors(module, check=False) for c in (early, late))
        except InputError:  # a damaged file, which says so itself where it is read
            return False
        length, length2 = float(b.double().norm()), float(b2.double().norm())
        if length > 0.0:
            cosine = torch.cosine_similarity(a.double().flatten(), a2.double().flatten(), dim=0)
            seen.append(length2 < _SHORTER * length and float(cosine) < _OTHER)
    return bool(seen) and all(seen)


_SHORTER, _OTHER = 0.7, 0.5
"""Of a reset: the length of B over what it was, and the cosine of A with what it was, at most."""


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


def _of_another_run(opened: Sequence[AdapterCheckpoint]) -> dict[int, str]:
    """Step -> what its configuration says otherwise than most others', of what training never changes."""
    found: dict[int, str] = {}
    for option, value_of in _FIXED.items():
        values = [value_of(checkpoint.settings) for checkpoint in opened]
        known = [value for value in values if value is not None]
        usual = Counter(known).most_common(1)[0][0] if known else None
        for checkpoint, value in zip(opened, values, strict=True):
            if option == "init_lora_weights" and value is True and checkpoint.step == 0:
                continue  # LLaMA-Factory writes so of pissa_init, PiSSA's own start, and W_0 is there for all to read
            if value not in (None, usual):
                there = opened[values.index(usual)]
                here, other = (shown(c.settings.raw.get(option)) for c in (checkpoint, there))
                found[checkpoint.step] = (
                    f"{checkpoint.settings.path}: {option} is {here}, at step {there.step} it is {other}, so the "
                    "two are of different runs; leave it out (--skip-bad-checkpoints), or make them agree"
                )
    return found


def _base_name(settings: AdapterConfig) -> str | None:
    """The base model's own name: the folder that it is in, or the cache, may be another after a move."""
    named = settings.raw.get("base_model_name_or_path")
    if not isinstance(named, str) or not (parts := Path(named).parts):
        return None
    cached = next((part for part in parts if part.startswith("models--")), None)
    return cached.rsplit("--", 1)[-1] if cached else parts[-1]


def _revision(settings: AdapterConfig) -> str | None:
    named = settings.raw.get("revision")
    return named if isinstance(named, str) else None


_FIXED: dict[str, Callable[[AdapterConfig], object]] = {
    "base_model_name_or_path": _base_name,
    "revision": _revision,
    "fan_in_fan_out": lambda settings: settings.transposed,
    "init_lora_weights": lambda settings: settings.starts_at_zero,
}
"""Option -> what of it all checkpoints of a run have in common; None where it says nothing."""


def common_gap(steps: Sequence[int]) -> int:
    """The most common difference of two or more successive steps; the smaller on a tie."""
    counts = Counter(b - a for a, b in itertools.pairwise(steps))
    return min(counts, key=lambda gap: (-counts[gap], gap))


def _gaps(opened: Sequence[AdapterCheckpoint]) -> list[Problem]:
    steps = [c.step for c in opened]
    if len(steps) < 3:
        return []
    usual = common_gap(steps)
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
