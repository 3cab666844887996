"""A LoRA run as a trajectory: modules x checkpoints of factors, read on demand, and what follows from them.

As in docs/design.md (words and mathematics), `W_t = W_base + s B_t A_t` with B (m, r) and A (r, n). No dense matrix is
ever formed, and a view (`upto`, `at`) reads no checkpoint outside itself. `checkpoints` knows where the files lie.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints import StoredCheckpoint, dense, open_run
from nextrl.checkpoints.consistency import common_gap
from nextrl.checkpoints.run import knows_start, no_checkpoint
from nextrl.errors import InputError, shown
from nextrl.files import usable_path
from nextrl.scalars import integer, integer_from, several
from nextrl.trajectory import full_weights
from nextrl.trajectory.blocks import pair_products
from nextrl.trajectory.given_factors import checkpoints_of
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint

MEMORY = "memory"
"""The layout of a trajectory whose factors were given, not read from files."""

FULL = "full"
"""The layout of full-weight checkpoints, each reduced to factors by itself: those of two have nothing in common."""


@dataclass(frozen=True, repr=False, eq=False)
class Trajectory:
    """The run's checkpoints, sorted by step. Make one with `load` or `from_factors`.

    Attributes:
        checkpoints: sorted by step, all with the same modules and shapes.
        source: the directory, or None for factors in memory.
        adapter_config: `adapter_config.json` of the last checkpoint; of full weights what such a file says of the base.
        layout: name of the reader.
        skipped: what `skip_bad_checkpoints`, `load` and `from_full_weights` left out, one line each.
        start: the step of W_0, from which every displacement and all time is counted: 0, or that of the leap that
            this stretch of the run begins with. W_0 is the checkpoint of that step, or, for 0 without one, the
            base model where the adapter is known to start at zero.
        doubt: why W_0 may not be the base model after all (`unsure_start`), and then it is unknown; "" where the user
            says that it is, and None where nobody asked.
    """

    checkpoints: tuple[StoredCheckpoint, ...]
    source: Path | None = None
    adapter_config: dict[str, Any] = field(default_factory=dict)
    layout: str = MEMORY
    skipped: tuple[str, ...] = ()
    start: int = 0
    doubt: str | None = None
    _products: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict, repr=False)
    _sizes: dict[str, dict[int, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise InputError("a trajectory needs at least one checkpoint; none was given")
        if self.start > self.checkpoints[0].step:
            raise InputError(
                f"a run cannot start at step {self.start}, after its first checkpoint (step "
                f"{self.checkpoints[0].step})"
            )

    def __repr__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        where = "in memory" if self.source is None else repr(str(self.source))
        return (
            f"Trajectory({where}, {self.layout}, {len(self.steps)} checkpoints from step {first} to {last}, "
            f"{len(self.modules)} modules)"
        )

    @classmethod
    def load(
        cls,
        path: str | Path | Mapping[int, str | Path],
        *,
        layout: str | None = None,
        steps: Sequence[int] | None = None,
        skip_bad_checkpoints: bool = False,
        allow_pickle: bool = False,
        start: int | None = None,
    ) -> Trajectory:
        """Read a run from disk (headers now, values when needed).

        Args:
            path: the run's directory, or a mapping step -> adapter folder.
            layout: name of a reader where the automatic choice is wrong.
            steps: only these checkpoints, and W_0 where its checkpoint is there: without it the base model would be
                taken for it.
            skip_bad_checkpoints: leave broken checkpoints out (this reads all values once, to find NaN).
            allow_pickle: read `adapter_model.bin` too, with `weights_only=True`.
            start: the step at which this stretch of the run began; by default that of the last checkpoint that a
                leap wrote (`nextrl.json` beside it says so) and that training went on from, and 0 otherwise. What
                comes before it is left out, and so is a leap that nothing was trained from. 0 says that the run began
                at the base model, too, however far off its first checkpoint lies.

        Raises:
            InputError: `path` is none, nothing found, or a checkpoint is broken and may not be left out.
        """
        source = _source(path)
        start = None if start is None else integer_from(0)("start", start)
        steps = None if steps is None else several(integer_from(0))("steps", steps)
        run = open_run(source, layout=layout, steps=steps, allow_pickle=allow_pickle, start=start)
        fatal = [problem for problem in run.problems if problem.fatal]
        good = list(run.checkpoints)
        if skip_bad_checkpoints:
            fatal += [problem for checkpoint in good if (problem := checkpoint.broken_values()) is not None]
            good = [c for c in good if c.step not in {problem.step for problem in fatal}]
        elif fatal:
            more = f" (and {len(fatal) - 1} more: nextrl inspect lists them)" if len(fatal) > 1 else ""
            raise InputError(f"{fatal[0]}{more}")
        if not good:
            raise InputError(
                f"{path}: no usable checkpoint; {next(iter([*fatal, *run.left_out]), 'none found')}"
            )
        skipped = tuple(str(problem) for problem in [*fatal, *run.left_out])
        config, doubt = dict(good[-1].settings.raw), None if start is None else ""
        return cls(tuple(good), run.source, config, run.layout, skipped, run.start, doubt)

    @classmethod
    def from_full_weights(
        cls,
        path: str | Path | Mapping[int, str | Path],
        base: str | Path,
        *,
        rank: int = 16,
        steps: Sequence[int] | None = None,
        skip_bad_checkpoints: bool = False,
    ) -> Trajectory:
        """A full fine-tuning run as a trajectory: each W_t - W_base reduced to its best rank-`rank` factors.

        Exact leading triples (`checkpoints.dense`), one matrix in memory at a time; what lies beyond `rank`
        is dropped, so shares of energy are shares of what was kept. Matrices that never move are left out, and so is
        all that is no matrix: `skipped` names what of it moved, and its share of the movement. Each checkpoint has
        factors of its own, so that no method can step inside them.

        Args:
            path: the run's directory: folders checkpoint-N, global_step_N, step_N or iter_N with `model.safetensors` or
                shards, in verl's also below actor/huggingface or where its merger wrote; or a JSON file or a mapping of
                steps and folders.
            base: folder of the model that training started from.
            rank: triples kept per matrix.
            steps: only these checkpoints.
            skip_bad_checkpoints: leave folders of a step that hold no whole model out, and say so in `skipped`.

        Raises:
            InputError: no such checkpoints, or the two models do not have the same matrices.
        """
        run = _source(path)
        found, problems = dense.located(run)
        if not found and not problems:
            raise InputError(dense.nothing(run))
        source = None if isinstance(run, dict) else run
        bad = {problem.step: problem for problem in problems if problem.step is not None}
        wanted = sorted({*found, *bad}) if steps is None else several(integer_from(0))("steps", steps)
        broken = [bad[step] for step in wanted if step in bad]
        if broken and not skip_bad_checkpoints:
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            raise InputError(f"{broken[0]}{more}")
        wanted = [step for step in wanted if step not in bad]
        if not wanted:
            raise InputError(f"{path}: no usable checkpoint; {next(iter(broken), 'none was asked for')}")
        if missing := [step for step in wanted if step not in found]:
            raise no_checkpoint(missing[0], found, source or "")
        stored = full_weights.checkpoints_of({step: found[step] for step in wanted}, usable_path(base), rank)
        skipped = (*map(str, broken), *stored[-1].left_out.lines())
        return cls(stored, source, dense.adapter_settings(base), FULL, skipped)

    @classmethod
    def from_factors(
        cls,
        steps: Sequence[int],
        factors: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
        *,
        scaling: float | Mapping[str, float] | None = None,
        adapter_config: dict[str, Any] | None = None,
        start: int = 0,
    ) -> Trajectory:
        """A trajectory of tensors in memory; all that is computed from them lies on the CPU.

        Args:
            steps: optimizer steps, one per checkpoint, ascending.
            factors: for each step, module -> (A (r, n), B (m, r)), the same modules and shapes at each; copied, so
                that parameters of a model may train on. A module is named as in the base model, or as in PEFT's.
            scaling: s, for all modules or each; by default what `adapter_config` says (r, lora_alpha, patterns,
                use_rslora), and 1 where it says nothing.
            adapter_config: as in `adapter_config.json`; its `init_lora_weights` decides whether W_0 = W_base
                is known (it is by default).
            start: the step of W_0; one other than 0 must be among `steps`, or W_0 is unknown.

        Raises:
            InputError: steps that do not ascend, factors that do not fit together or differ in modules or shapes, a
                scaling that is none or contradicts `adapter_config`.
        """
        config = dict(adapter_config or {})
        stored = checkpoints_of(steps, factors, scaling, config)
        return cls(stored, None, config, start=integer_from(0)("start", start))

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps on disk, ascending; 0 only where a checkpoint of it is there."""
        return tuple(c.step for c in self.checkpoints)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the adapted matrices as in the base model ("model.layers.0.self_attn.q_proj")."""
        return self.checkpoints[-1].modules

    @property
    def knows_start(self) -> bool:
        """Whether W_0 is known: its checkpoint is there, or it is the base model (B_0 A_0 = 0)."""
        return not self.doubt and knows_start(self.checkpoints[0], self.start)

    @property
    def spacing(self) -> int:
        """The most common difference of successive steps (the smaller on a tie); the step itself if there is one."""
        steps = self.steps
        return max(steps[0] - self.start, 1) if len(steps) == 1 else common_gap(steps)

    def shape(self, module: str) -> tuple[int, int, int]:
        """(m, n, r) of a module."""
        return self._known(module).shape(module)

    def scaling(self, module: str) -> float:
        """The LoRA scaling s of a module."""
        return self._known(module).scaling(module)

    def factors(self, step: int, module: str) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r) as stored (dtype of the file, without s)."""
        self._known(module)
        return self._at(step).factors(module)

    def dtypes(self, step: int, module: str) -> tuple[torch.dtype, torch.dtype]:
        """The dtypes in which A and B are stored; nothing is read for them."""
        self._known(module)
        return self._at(step).dtypes_of(module)

    def stacks(self, module: str, *, check: bool = True) -> tuple[Tensor, Tensor]:
        """A (T, r, n) and B (T, m, r) of all checkpoints as stored, without s; `check` refuses NaN and Inf."""
        self._known(module)
        pairs = [checkpoint.factors(module, check=check) for checkpoint in self.checkpoints]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    def beyond(self, step: int, module: str) -> float:
        """The part of |W_step - W_base|^2 that `from_full_weights` left out of the factors; 0 of an adapter."""
        stored = self._at(step)
        return stored.beyond(module) if isinstance(stored, MemoryCheckpoint) else 0.0

    def weight(self, step: int, module: str) -> LowRank:
        """`W_step - W_base = s B A` as factors (m, r), (n, r), float64.

        Step 0 needs no checkpoint where B_0 A_0 = 0: it is the zero matrix.
        """
        m, n, _ = self.shape(module)
        if step == self.start and step not in self.steps:
            self._need_start()
            return LowRank.zeros(m, n)
        a, b = self.factors(step, module)
        return LowRank(b.double() * self.scaling(module), a.double().mT)

    def delta(self, module: str, start: int, stop: int) -> LowRank:
        """`W_stop - W_start` as factors of width <= 2r, float64.

        Written as `s [(B - B'), B'] [A; (A - A')]` and not as `s [B, -B'] [A; A']`: the differences of stored
        values are exact, so a small update between two near checkpoints does not drown in cancellation.
        """
        if self.start in (start, stop) and self.start not in self.steps:
            self._need_start()
            return self.weight(stop, module) if start == self.start else -self.weight(start, module)
        (a0, b0), (a1, b1) = self.factors(start, module), self.factors(stop, module)
        a0, b0, a1, b1 = a0.double(), b0.double(), a1.double(), b1.double()
        left = torch.cat([b1 - b0, b0], -1) * self.scaling(module)
        return LowRank(left, torch.cat([a1, a1 - a0], 0).mT)

    def upto(self, step: int) -> Trajectory:
        """The trajectory as it was at `step`: a view that holds no later checkpoint.

        Raises:
            InputError: there is no checkpoint up to that step.
        """
        last = integer("step", step)
        if last < self.steps[0]:
            raise InputError(f"no checkpoint up to step {last}; the first is at step {self.steps[0]}")
        return self.at([s for s in self.steps if s <= last])

    def at(self, steps: Sequence[int]) -> Trajectory:
        """A view of these checkpoints only. Inner products already computed are shared with it.

        A view without the checkpoint that is W_0 takes the base model for it, as any run without one does, and
        computes its own.
        """
        kept = tuple(self._at(step) for step in sorted(set(steps)))
        own = (self.source, self.adapter_config, self.layout, self.skipped, self.start, self.doubt)
        same = kept and (kept[0].step == self.start) == (self.steps[0] == self.start)
        return Trajectory(kept, *own, self._products if same else {}, self._sizes)

    def gram(self, module: str) -> Tensor:
        """(T, T) float64: <W_s - W_0, W_t - W_0> over `steps`. Computed once, O((m + n) r^2 T^2).

        W_0 is the checkpoint of `start`, or the base model where B_0 A_0 = 0 and no step 0 is there. Entries are
        Frobenius inner products s^2 sum((B_s^T B_t) * (A_s A_t^T)).
        """
        known = self._products.setdefault(module, {})
        missing = [s for s in self.steps if any((s, t) not in known for t in self.steps)]
        if missing:
            self._need_start()
            products = self._inner_products(module)
            known.update(
                {(s, t): products[i][j] for i, s in enumerate(self.steps) for j, t in enumerate(self.steps)}
            )
        return torch.tensor(
            [[known[s, t] for t in self.steps] for s in self.steps], dtype=torch.float64, device="cpu"
        )

    def product_sizes(self, module: str) -> Tensor:
        """(T,) float64: s |B_t| |A_t| (Frobenius norms), what the rounding errors of `gram` are relative to.

        An entry (s, t) of `gram` is a sum of numbers of about `sizes[s] * sizes[t]`, however small it is itself.
        """
        if any(step not in self._sizes.get(module, {}) for step in self.steps):
            self.gram(module)
        return torch.tensor(
            [self._sizes[module][step] for step in self.steps], dtype=torch.float64, device="cpu"
        )

    def base_index(self, module: str) -> int:
        """Position in `steps` of the checkpoint that is W_0, or -1 where W_0 is the base model itself.

        Raises:
            InputError: W_0 is unknown.
        """
        self._known(module)
        if self.steps[0] == self.start:
            return 0
        self._need_start()
        return -1

    def _inner_products(self, module: str) -> list[list[float]]:
        stack_a, stack_b = self.stacks(module)
        count = len(self.steps)
        pairs = [(i, j) for i in range(count) for j in range(i, count)]
        of_b, of_a = pair_products(stack_b.mT, pairs), pair_products(stack_a, pairs)
        squares = [products.diagonal(dim1=1, dim2=2).sum(1) for products in (of_b, of_a)]
        sizes = (squares[0] * squares[1]).sqrt() * abs(self.scaling(module))
        raw = torch.empty(count, count, dtype=torch.float64, device="cpu")
        values = (of_b * of_a).sum((1, 2)) * self.scaling(module) ** 2
        for (i, j), value, size in zip(pairs, values, sizes.tolist(), strict=True):
            raw[i, j] = raw[j, i] = value
            if i == j:
                self._sizes.setdefault(module, {})[self.steps[i]] = size
        if self.steps[0] == self.start:
            raw = raw - raw[:, :1] - raw[:1, :] + raw[:1, :1]
        return [[float(x) for x in row] for row in raw]

    def persistence(self, window: int, at: int | None = None) -> float:
        """cos(W_T - W_{T-w}, W_{T-w} - W_{T-2w}), all modules together, from three checkpoints.

        Args:
            window: w, in steps.
            at: T; the last step by default.

        Returns:
            The cosine, or NaN where one of the two windows did not move at all.

        Raises:
            InputError: one of the three checkpoints is not there.
        """
        window = integer_from(1)("window", window)
        last = self.steps[-1] if at is None else integer("at", at)
        middle, first = last - window, last - 2 * window
        for step in (first, middle, last):
            if step not in self.steps and not (step == self.start and self.knows_start):
                raise InputError(
                    f"persistence over windows of {window} steps at {last} needs step {step}: not there"
                )
        dot, late, early = self.window_products(first, middle, last)
        return dot / (late * early) ** 0.5 if late > 0 and early > 0 else float("nan")

    def window_products(self, first: int, middle: int, last: int) -> tuple[float, float, float]:
        """(<l, e>, |l|^2, |e|^2) of e = W_middle - W_first and l = W_last - W_middle, all modules together.

        Read from the factors, so that short windows of a long path keep their digits.
        """
        dot = late = early = 0.0
        for module in self.modules:
            now, before = self.delta(module, middle, last), self.delta(module, first, middle)
            dot += float(now.inner(before))
            late += float(now.norm()) ** 2
            early += float(before.norm()) ** 2
        return dot, late, early

    def groups(self) -> dict[tuple[int, int, int], list[str]]:
        """Modules of equal (m, n, r), for batching."""
        table: dict[tuple[int, int, int], list[str]] = {}
        for module in self.modules:
            table.setdefault(self.shape(module), []).append(module)
        return table

    def _known(self, module: str) -> StoredCheckpoint:
        last = self.checkpoints[-1]
        if module not in last.modules:
            raise InputError(
                f"no module {module!r} in this trajectory; there are {', '.join(self.modules[:3])} ..."
            )
        return last

    def _at(self, step: int) -> StoredCheckpoint:
        for checkpoint in self.checkpoints:
            if checkpoint.step == step:
                return checkpoint
        raise no_checkpoint(integer("a step", step), self.steps)

    def _need_start(self) -> None:
        if self.knows_start:
            return
        if self.doubt:
            raise InputError(self.doubt)
        if self.start:
            raise InputError(
                f"this stretch of the run began at step {self.start}, whose checkpoint is not there, so W_0 is "
                "unknown; add it"
            )
        init = self.adapter_config.get("init_lora_weights")
        raise InputError(
            f"the adapter was initialised with init_lora_weights={init!r}, so B_0 A_0 is not zero and W_0 is "
            "unknown; save the initial adapter as checkpoint-0"
        )


def _source(given: str | Path | Mapping[int, str | Path]) -> Path | dict[int, Path]:
    """Where a run is to be read from.

    Raises:
        InputError: it is no path, and no mapping from steps to paths.
    """
    if isinstance(given, Mapping):
        return {integer_from(0)("a step of a run", step): _path(folder) for step, folder in given.items()}
    return _path(given)


def _path(given: object) -> Path:
    place = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(place, str):
        raise InputError(f"a run's folder must be a path, not {shown(given)}")
    return usable_path(place)
