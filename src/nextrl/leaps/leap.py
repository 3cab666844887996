"""A leap: one extrapolator applied at one checkpoint, ready to go back into training or out to a file.

`leap` computes, `Leap` hands out: factors of the adapter's own rank for a running trainer, or files through
`adapter_file` and `merged_model`. Whether a leap pays is not asked here; the `judge` asks it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from nextrl.checkpoints.naming import live_key
from nextrl.checkpoints.run import no_checkpoint
from nextrl.extrapolators import InsideFactors, Prediction, check_alpha, get, tags_of
from nextrl.files import usable_path
from nextrl.leaps.adapter_file import adapter_state, write_adapter
from nextrl.leaps.hub import check_push, push
from nextrl.leaps.merged_model import write_merged
from nextrl.leaps.provenance import left_out_of
from nextrl.leaps.rank import RankFit, fit_to_frozen, fit_to_rank
from nextrl.scalars import MAX_SEED, integer_from, number
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.given import Run, trajectory_of
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory
from nextrl.trajectory.unsure_start import doubting

# Without a horizon: what the paper uses, if the run is long enough.
DEFAULT_HORIZON = 50
DEFAULT_METHOD = "factors"


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Leap:
    """The result of `leap`.

    Attributes:
        traj: the trajectory, its last checkpoint is the one leapt from.
        prediction: what the method's `fit` returned.
        method: its name.
        from_step: T.
        horizon: h in steps; the leap claims to stand at T + alpha h.
        alpha: the step length, as it was asked for or the method's own.
        seconds: time of the fit.
        frozen: module -> which of its factors the run does not train, "A", "B" or "AB": those stay as they are.
    """

    traj: Trajectory
    prediction: Prediction
    method: str
    from_step: int
    horizon: int
    alpha: float
    seconds: float
    frozen: Mapping[str, str] = field(default_factory=dict)
    _fits: dict[str, RankFit] = field(default_factory=dict, init=False, repr=False, compare=False)

    def delta(self, module: str) -> LowRank:
        """`W_leap - W_T` of one module, (m, n)."""
        self.traj.shape(module)  # refuses a module that the run does not have
        return self.prediction.delta(module, self.alpha)

    def target(self, module: str) -> LowRank:
        """`W_leap - W_base` of one module, (m, n), exact (wider than rank r in general)."""
        return self._target(module, *self.traj.factors(self.from_step, module))

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """The leap as an adapter of the rank it has: A (r, n), B (m, r), float32 or wider, copies of the caller's own.

        Each row of A and each column of B means what Adam's moments at T think it means (`rank.fit_to_rank`).
        """
        fit = self._fit(module)
        return fit.a.clone(), fit.b.clone()

    @cached_property
    def discarded(self) -> float:
        """Share of the squared norm of `W_leap - W_base` that rank r cannot hold, over all modules, in [0, 1].

        Of full weights what `from_full_weights` left out of W_T is counted as lost, too.
        """
        if isinstance(self.prediction, InsideFactors):
            return 0.0
        fits = [self._fit(module) for module in self.traj.modules]
        beyond = sum(self.traj.beyond(self.from_step, module) for module in self.traj.modules)
        total = sum(fit.energy for fit in fits) + beyond
        return (sum(fit.lost * fit.energy for fit in fits) + beyond) / total if total > 0 else 0.0

    def leap_state(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """PEFT state-dict names -> tensors of the adapter's rank and dtype, to load in place while training.

        Args:
            adapter_name: None for the names in a file (`...lora_A.weight`, what `peft.set_peft_model_state_dict`
                takes); "default" for the parameters of a live model (`...lora_A.default.weight`).
        """
        tensors = {}
        for module in self.traj.modules:
            stored = self.traj.dtypes(self.from_step, module)
            a, b = (
                new.to(dtype).contiguous() for new, dtype in zip(self.factors(module), stored, strict=True)
            )
            tensors[module] = (a, b)
        state = adapter_state(self.traj, self.from_step, tensors)
        live = {name: tensor for name, tensor in state.items() if ".lora_" in name}
        if adapter_name is None:
            return live
        return {live_key(name, adapter_name): tensor for name, tensor in live.items()}

    def provenance(self) -> dict[str, Any]:
        """What `nextrl.json` says of the files made from this leap."""
        return {
            "method": self.method,
            "from_step": self.from_step,
            "horizon": self.horizon,
            "alpha": self.alpha,
            "seconds": round(self.seconds, 3),
            "checkpoints": list(self.traj.steps),
            "discarded_energy": self.discarded,
            **left_out_of(self.traj.checkpoints[-1]),
        }

    def save_adapter(self, out: str | Path, rank: int | None = None, task: str | None = None) -> None:
        """Write the leap as a PEFT adapter at the rank it has, or at `rank` (best approximation).

        Args:
            out: the folder to write.
            rank: of the adapter; None for the run's.
            task: what the run was trained on, for the model card.

        Raises:
            InputError: the folder cannot be written, or rank < 1.
        """
        rank = None if rank is None else integer_from(1)("rank", rank)
        out = usable_path(out)
        notes = self.provenance()
        if rank is None:
            fits = {module: self._fit(module) for module in self.traj.modules}
            factors = {module: (fit.a, fit.b) for module, fit in fits.items()}
            write_adapter(self.traj, self.from_step, factors, out, provenance=notes, task=task)
            return
        targets = {module: self.target(module) for module in self.traj.modules}
        del notes["discarded_energy"]  # `write_adapter` measures what the wanted rank loses
        write_adapter(self.traj, self.from_step, targets, out, rank=rank, provenance=notes, task=task)

    def save_merged(self, out: str | Path, base: str | Path, name: str | None = None) -> None:
        """Write the base model with the leap added to its weights.

        Args:
            out: folder to write.
            base: the base model's folder or name.
            name: what the base is called where `base` is a folder of the moment.
        """
        targets = {module: self.target(module) for module in self.traj.modules}
        notes = self.provenance() | ({} if name is None else {"base": name})
        write_merged(self.traj, self.from_step, targets, base, usable_path(out), notes)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Write the adapter and send it to the Hugging Face Hub; returns its address.

        Raises:
            InputError: as `leaps.hub.push`.
        """
        check_push(repository)
        with tempfile.TemporaryDirectory() as folder:
            adapter = Path(folder) / repository.rsplit("/", 1)[-1]  # the card calls it by its folder's name
            self.save_adapter(adapter)
            return push(adapter, repository, private=private)

    def __repr__(self) -> str:
        return (
            f"Leap({self.method}, from step {self.from_step}, {self.horizon} steps ahead, alpha {self.alpha:g}, "
            f"{len(self.traj.modules)} modules)"
        )

    def _target(self, module: str, a_old: Tensor, b_old: Tensor) -> LowRank:
        """`target`, from the factors at T."""
        weight = LowRank(b_old.double() * self.traj.scaling(module), a_old.double().mT)
        return weight + self.delta(module)

    def _fit(self, module: str) -> RankFit:
        """The module at the adapter's rank, computed the first time that it is asked for."""
        if module not in self._fits:
            self._fits[module] = self._compute_fit(module)
        return self._fits[module]

    def _compute_fit(self, module: str) -> RankFit:
        frozen = self.frozen.get(module, "")
        if isinstance(self.prediction, InsideFactors):
            a, b = self.prediction.factors(module, self.alpha)
            held = self.traj.factors(self.from_step, module) if frozen else (a, b)
            return RankFit(held[0] if "A" in frozen else a, held[1] if "B" in frozen else b, 0.0, 0.0)
        a_old, b_old = self.traj.factors(self.from_step, module)
        if frozen:
            return fit_to_frozen(self.delta(module), a_old, b_old, self.traj.scaling(module), frozen)
        return fit_to_rank(self._target(module, a_old, b_old), a_old, b_old, self.traj.scaling(module))


def leap(
    traj: Run,
    method: str = DEFAULT_METHOD,
    horizon: int | None = None,
    alpha: float | None = None,
    at: int | None = None,
    seed: int = 0,
    **params: Any,
) -> Leap:
    """Extrapolate a run.

    The leap is made as it is asked for. Whether the run is fit for one (its reward may have collapsed) is not asked, as
    `nextrl leap RUN` without a method does: `advise(run).recommended` says so, and names the method.

    Args:
        traj: the run, or its folder.
        method: an extrapolator's name, see `nextrl.extrapolators.names()`.
        horizon: h in steps; by default 50, or what a shorter run has.
        alpha: step length; 1 is h steps further by the method's own reckoning, 0 to stay, negative to go back. None
            is the one that the method takes unseen (`next-paper`: 1.5), and 1 for the others.
        at: leap from this checkpoint and read nothing later; the last by default.
        seed: of methods that draw random numbers.
        params: the method's own parameters.

    Raises:
        InputError: an argument is not of its kind, no run that can be read, unknown method or parameter, too few
            checkpoints for the horizon, alpha out of range, no checkpoint at `at`, an adapter that does not move, a
            method that counts from the base model and a run that does not seem to have begun there.
    """
    horizon = None if horizon is None else integer_from(1)("horizon", horizon)
    at, seed = None if at is None else integer_from(0)("at", at), integer_from(0, MAX_SEED)("seed", seed)
    # Before the method is fitted, which may take long; so is what the method itself is asked for.
    fitting = get(method, **params)
    own = tags_of(fitting).alpha
    alpha = check_alpha(number("alpha", alpha) if alpha is not None else 1.0 if own is None else own)
    traj = trajectory_of(traj)
    if at is not None:
        if at not in traj.steps:
            raise no_checkpoint(at, traj.steps)
        traj = traj.upto(at)
    traj = doubting(traj)
    known = known_steps(traj)
    if horizon is None:
        horizon = max(1, min(DEFAULT_HORIZON, known[-1] - known[0]))
    started = time.perf_counter()
    prediction = fitting.fit(traj, horizon, seed=seed)
    seconds = time.perf_counter() - started
    return Leap(
        traj=traj,
        prediction=prediction,
        method=method,
        from_step=traj.steps[-1],
        horizon=horizon,
        alpha=alpha,
        seconds=seconds,
    )
