"""Checkpoints of runs that train all weights: factors of the matrices that are followed, and what is left out of them.

Followed are the two-dimensional tensors named `*.weight`. Whatever else a run moves (norms, biases, experts in one
tensor of three dimensions) is measured once and named. Of one checkpoint and of the base one tensor each is in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nextrl.checkpoints import dense
from nextrl.checkpoints.dense import FullModel
from nextrl.errors import InputError
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.rounding import rounding_variance

_NAMED = 4
"""Kinds of tensors that a line about those left out names."""


@dataclass(frozen=True)
class LeftOut:
    """The tensors that a run had moved by some step and that are not followed.

    Attributes:
        step: T.
        squares: name -> |W_T - W_base|^2, the largest first.
        followed: the same of all matrices that are followed, together.
        resized: names of those that have another number of rows than the base's; `squares` is of the common ones.
        unknown: names of those that the base lacks, so that how far they moved is unknown.
    """

    step: int
    squares: Mapping[str, float]
    followed: float
    resized: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @property
    def share(self) -> float:
        """Share of the squared movement of all tensors together, in [0, 1]."""
        left = sum(self.squares.values())
        return left / (left + self.followed) if left else 0.0

    def lines(self) -> tuple[str, ...]:
        """What to say of them, a line each; nothing where nothing is left out."""
        said = []
        if self.squares:
            said.append(
                f"{len(self.squares)} tensors, {100 * self.share:.3g}% of the squared movement up to step {self.step}, "
                "since two-dimensional *.weight alone are followed (a merged model has them as they are there, an "
                f"adapter lacks them): {_kinds(self.squares)}"
            )
        if self.resized:
            said.append(
                f"{_kinds(self.resized)}: not of the base's number of rows, since the run resized its vocabulary; "
                "resize the base in the same way to have them followed"
            )
        if self.unknown:
            said.append(
                f"{len(self.unknown)} tensors that the base lacks, so that their movement is unknown: "
                f"{_kinds(self.unknown)}; a leap lacks it: give the base that has them to have them followed"
            )
        return tuple(said)


def _kinds(names: Iterable[str]) -> str:
    """The first of some names; those that differ in their numbers alone are one."""
    kinds = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
    more = f" and {len(kinds) - _NAMED} more kinds" if len(kinds) > _NAMED else ""
    return f"{', '.join(kinds[:_NAMED])}{more}"


@dataclass(frozen=True, eq=False, kw_only=True)
class FullCheckpoint(MemoryCheckpoint):
    """A full-weight checkpoint, reduced to factors by itself.

    Attributes:
        model: its files.
        base: those of the model that training started from.
        squares: module -> |W_t - W_base|^2, with what lies beyond the rank that is kept.
        rounding: module -> mean variance of the storage error of W_t's entries.
        stored: module -> the dtype in which W_t is stored.
    """

    model: FullModel
    base: FullModel
    squares: Mapping[str, float]
    rounding: Mapping[str, float]
    stored: Mapping[str, torch.dtype]

    def dtypes_of(self, module: str) -> tuple[torch.dtype, torch.dtype]:
        """The dtype of the weights that A and B were computed from, twice: their rounding is in both."""
        return self.stored[module], self.stored[module]

    def beyond(self, module: str) -> float:
        """The part of |W_t - W_base|^2 that the factors do not hold."""
        a, b = (tensor.double() for tensor in self.tensors[module])
        return max(0.0, self.squares[module] - float(LowRank(b, a.mT).square))

    def not_followed(self, base: FullModel) -> list[str]:
        """Whole names of the tensors that this checkpoint and a base have, and that no module is."""
        followed = {f"{module}.weight" for module in self.modules}
        return [key for key in base.floats() if key in self.model.places and key not in followed]

    @cached_property
    def left_out(self) -> LeftOut:
        """What had moved by this step and is not followed; all of it is read for this, once.

        Raises:
            InputError: a tensor has another shape than the base's, or holds NaN or Inf.
        """
        keys = self.not_followed(self.base)
        moved = {key: _square(self.model, self.base, key) for key in keys}
        resized = [key for key in keys if self.model.resized(key, self.base)]
        ordered = sorted(moved.items(), key=lambda item: -item[1])
        return LeftOut(
            self.step,
            {key: s for key, s in ordered if s > 0},
            sum(self.squares.values()),
            resized,
            _unknown(self.model, self.base),
        )


def _unknown(model: FullModel, base: FullModel) -> list[str]:
    """Tensors of a checkpoint that the base lacks, but for copies of others (tied layers, stored twice)."""
    lacking = [key for key in model.floats() if key not in base.places]
    return [key for key in lacking if model.twin(key, base) is None]


def _refuse_fragment(model: FullModel, base: FullModel) -> None:
    """Refuse a base that lacks most of what a checkpoint's matrices hold."""
    sizes = {key: math.prod(model.shape(key)) for key in (f"{m}.weight" for m in model.matrices())}
    lacking = [key for key in sizes if key not in base.places]
    if 2 * sum(sizes[key] for key in lacking) > sum(sizes.values()):
        raise InputError(
            f"{base.folder}: lacks {len(lacking)} of the {len(sizes)} matrices of {model.folder} ({_kinds(lacking)}); "
            "is it the model that training started from, with all of its files?"
        )


def checkpoints_of(found: Mapping[int, Path], base: Path, rank: int) -> tuple[FullCheckpoint, ...]:
    """The checkpoints of `Trajectory.from_full_weights`, with factors of all matrices that move in one of them.

    Args:
        found: step -> folder of the model.
        base: folder of the model that training started from.
        rank: triples kept per matrix.

    Raises:
        InputError: not the same matrices in all of them, or none that moves; a model is quantised.
    """
    start, models = FullModel.open(base), {step: FullModel.open(found[step]) for step in sorted(found)}
    for model in (start, *models.values()):
        model.refuse_quantised()
    _refuse_fragment(models[max(models)], start)
    modules = [m for m in start.matrices() if _comparable(f"{m}.weight", start, list(models.values()))]
    read = [_read(step, model, start, modules, rank) for step, model in models.items()]
    moved = [m for m in modules if any(checkpoint.squares[m] for checkpoint in read)]
    if not moved:
        where = ", ".join(str(found[step]) for step in sorted(found)[:2])
        raise InputError(
            f"{where}: no matrix differs from {base}; is it the model that training started from?"
        )
    return tuple(replace(c, tensors={m: c.tensors[m] for m in moved}) for c in read)


def _comparable(key: str, base: FullModel, models: Sequence[FullModel]) -> bool:
    """Whether a matrix of the base can be followed.

    One of a resized vocabulary cannot. One that a checkpoint lacks need not be, where a tied layer's has its values.
    """
    lacking = next((model for model in models if key not in model.places), None)
    if lacking is not None:
        return base.twin(key, lacking) is None  # without a twin it is asked for, and refused
    return not any(model.resized(key, base) for model in models)


def _read(step: int, model: FullModel, base: FullModel, modules: Sequence[str], rank: int) -> FullCheckpoint:
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    squares: dict[str, float] = {}
    rounding: dict[str, float] = {}
    stored: dict[str, torch.dtype] = {}
    for module in modules:
        weight = model.get(module)
        base.refuse_codes(f"{module}.weight")
        difference = _difference(weight, model, base, f"{module}.weight")
        factors[module], squares[module] = dense.factors(difference, rank), float(difference.square().sum())
        rounding[module] = rounding_variance(weight)
        stored[module] = weight.dtype
    return FullCheckpoint(
        step, factors, 1.0, model=model, base=base, squares=squares, rounding=rounding, stored=stored
    )


def _difference(new: Tensor, model: FullModel, base: FullModel, key: str) -> Tensor:
    """W - W_base of a tensor W of a checkpoint, float64; of the common rows where the vocabulary was resized.

    Raises:
        InputError: the base's is missing, has another shape, or holds NaN or Inf.
    """
    old = base.tensor(key)
    if model.resized(key, base):
        rows = min(len(new), len(old))
        new, old = new[:rows], old[:rows]
    if new.shape != old.shape:
        raise InputError(f"{model.folder}: {key} is {list(new.shape)}, in the base model {list(old.shape)}")
    return new.double() - old.double()


def _square(model: FullModel, base: FullModel, key: str) -> float:
    return float(_difference(model.tensor(key), model, base, key).square().sum())
