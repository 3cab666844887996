"""Factors that a user's Python hands in: looked at, named and scaled as those of a file are, and copied."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nextrl.checkpoints.lora_settings import AdapterConfig, starts_at_zero
from nextrl.checkpoints.naming import module_name
from nextrl.checkpoints.tensorfile import DTYPES
from nextrl.errors import InputError, shown
from nextrl.scalars import integer_from, number, several
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Module -> A (r, n), B (m, r)."""

_CONFIG = Path("adapter_config")
"""What messages call a configuration that was handed in."""

_OF_SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def checkpoints_of(
    steps: Sequence[int],
    factors: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
    scaling: float | Mapping[str, float] | None,
    config: dict[str, Any],
) -> tuple[MemoryCheckpoint, ...]:
    """The checkpoints of `Trajectory.from_factors`, whose arguments these are.

    Raises:
        InputError: steps that do not ascend, one for each checkpoint; factors that are no A and B of one shape at every
            step; a scaling that is none, is missing for a module, or is not that of the configuration.
    """
    empty = isinstance(steps, Sequence) and not steps
    numbers: tuple[int, ...] = () if empty else several(integer_from(0))("steps", steps)
    if len(numbers) != len(factors) or list(numbers) != sorted(set(numbers)):
        raise InputError(
            f"from_factors needs ascending steps, one for each checkpoint, got {shown(list(numbers))}"
        )
    stored = [_pairs(step, given) for step, given in zip(numbers, factors, strict=True)]
    for step, pairs in zip(numbers, stored, strict=True):
        _refuse_others(pairs, stored[-1], step, numbers[-1])
    scalings = _scalings(stored[-1], scaling, config) if stored else {}
    zero = starts_at_zero(config.get("init_lora_weights", True))
    return tuple(MemoryCheckpoint(s, p, scalings, zero) for s, p in zip(numbers, stored, strict=True))


def _pairs(step: int, given: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """One checkpoint's factors on the CPU, copied: a live parameter goes on changing under its name."""
    if not isinstance(given, Mapping):
        raise InputError(f"the factors at step {step} must map modules to (A, B), not be {shown(given)}")
    pairs: Pairs = {}
    for name, pair in given.items():
        module = _bare(name)
        if module in pairs:
            raise InputError(
                f"{module} is there twice at step {step}, with and without PEFT's prefix; keep one"
            )
        pairs[module] = _pair(f"{module} at step {step}", pair)
    return pairs


def _bare(name: object) -> str:
    """A module as the base model names it: `named_modules()` of a PEFT model has PEFT's prefix before that."""
    if not isinstance(name, str):
        raise InputError(f"a module is named by text, not {shown(name)}")
    return module_name(name)


def _pair(where: str, pair: object) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(t, Tensor) for t in pair):
        raise InputError(f"{where}: needs two tensors, (A, B), not {shown(pair)}")
    a, b = tuple(pair)
    shapes = f"A {list(a.shape)} and B {list(b.shape)}"
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        turned = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]
        hint = "they are the other way round: give (A, B)" if turned else "A is (r, n) and B (m, r)"
        raise InputError(f"{where} has {shapes}, which do not fit; {hint}")
    if not {a.dtype, b.dtype} <= set(DTYPES.values()):
        raise InputError(f"{where} is {a.dtype} and {b.dtype}; give float16, bfloat16, float32 or float64")
    a, b = (t.detach().to("cpu", copy=True) for t in (a, b))
    return a, b


def _refuse_others(pairs: Pairs, last: Pairs, step: int, last_step: int) -> None:
    """Refuse a checkpoint that has not the modules and shapes of the last one."""
    if odd := sorted(pairs.keys() ^ last.keys()):
        has, lacks = (step, last_step) if odd[0] in pairs else (last_step, step)
        raise InputError(
            f"{odd[0]} is there at step {has} and not at step {lacks}; all need the same modules"
        )
    for module, pair in pairs.items():
        here, there = ([list(t.shape) for t in two] for two in (pair, last[module]))
        if here != there:
            raise InputError(f"{module} has A and B of {here} at step {step}, of {there} at step {last_step}")


def _scalings(
    pairs: Pairs, given: float | Mapping[str, float] | None, config: dict[str, Any]
) -> dict[str, float]:
    """s of each module: what was given, what the configuration says, and 1 where neither says anything."""
    said = _by_config(pairs, config)
    if given is None:
        return said or dict.fromkeys(pairs, 1.0)
    found = _given(pairs, given)
    for module, value in found.items():
        if said and not math.isclose(value, said[module], rel_tol=1e-6):
            raise InputError(
                f"scaling is {value:g} for {module}, and adapter_config gives it {said[module]:g}; leave scaling out, "
                "or correct r and lora_alpha"
            )
    return found


def _given(pairs: Iterable[str], given: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(pairs, _scaling("scaling", given))
    named = {_bare(name): value for name, value in given.items()}
    if missing := [module for module in pairs if module not in named]:
        raise InputError(f"scaling has none for {missing[0]}; give one for each module, or a single number")
    return {module: _scaling(f"scaling of {module}", named[module]) for module in pairs}


def _scaling(name: str, value: object) -> float:
    found = number(name, value)
    if found == 0 or math.isinf(found):
        raise InputError(f"{name} must be finite and not 0, not {shown(value)}")
    return found


def _by_config(pairs: Pairs, config: dict[str, Any]) -> dict[str, float]:
    """s of each module by the configuration; empty where that says nothing of it."""
    if not any(config.get(key) for key in _OF_SCALING):
        return {}
    settings = AdapterConfig.of(config, _CONFIG)
    stems = {module: module.split("[")[0] for module in pairs}
    settings.check_patterns(set(stems.values()))
    for module, (a, _) in pairs.items():
        if a.shape[0] != settings.rank(stems[module]):
            raise InputError(
                f"{module} has rank {a.shape[0]}, adapter_config says {settings.rank(stems[module])}: correct r or "
                "rank_pattern"
            )
    return {module: settings.scaling(stem) for module, stem in stems.items()}
