"""A leap: one extrapolator applied at one checkpoint, ready to go back into training or out to a file.

`leap` computes, `Leap` hands out: factors of the adapter's own rank for a running trainer, or files through
`export`. Whether a leap pays is not asked here; `backtest`, `advise` and `search` ask it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.extrapolators import InsideFactors, Prediction, check_alpha, get
from nextrl.leaps import adapter_file
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

# Without a horizon: what the paper uses, if the run is long enough.
DEFAULT_HORIZON = 50


@dataclass(frozen=True)
class Leap:
    """The result of `leap`.

    Attributes:
        traj: the trajectory, its last checkpoint is the one leapt from.
        prediction: what the method's `fit` returned.
        method: its name.
        from_step: T.
        horizon: h in steps; the leap claims to stand at T + alpha h.
        alpha: the step length that was asked for.
        seconds: time of the fit.
    """

    traj: Trajectory
    prediction: Prediction
    method: str
    from_step: int
    horizon: int
    alpha: float
    seconds: float

    def delta(self, module: str) -> LowRank:
        """`W_leap - W_T` of one module, (m, n)."""
        return self.prediction.delta(module, self.alpha)

    def target(self, module: str) -> LowRank:
        """`W_leap - W_base` of one module, (m, n), exact (wider than rank r in general)."""
        return self.traj.weight(self.from_step, module) + self.delta(module)

    def factors(self, module: str, old_basis: bool = True) -> tuple[Tensor, Tensor]:
        """The leap as an adapter of the rank it has: A (r, n), B (m, r), float32 or wider.

        Args:
            module: its name.
            old_basis: keep the gauge of the adapter at T, so that each row of A and column of B means what
                Adam's moments think it means (`adapter_file.fit_to_rank`); otherwise balanced singular factors.
        """
        return self._fitted(module, old_basis)[:2]

    @cached_property
    def discarded(self) -> float:
        """Share of the squared norm of `W_leap - W_base` that rank r cannot hold, over all modules, in [0,
        1]."""
        lost = total = 0.0
        for module in self.traj.modules:
            if isinstance(self.prediction, InsideFactors):
                return 0.0
            energy = float(self.target(module).norm()) ** 2
            lost += energy * self._fitted(module, True)[2]
            total += energy
        return lost / total if total > 0 else 0.0

    def leap_state(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """PEFT state-dict names -> tensors of the adapter's rank and dtype, to load in place while training.

        Args:
            adapter_name: None for the names in a file (`...lora_A.weight`, what
                `peft.set_peft_model_state_dict` takes); "default" for the parameters of a live model
                (`...lora_A.default.weight`).
        """
        tensors = {}
        for module in self.traj.modules:
            old = self.traj.factors(self.from_step, module)
            a, b = (new.to(o.dtype).contiguous() for new, o in zip(self.factors(module), old, strict=True))
            tensors[module] = (a, b)
        state = adapter_file.adapter_state(self.traj, self.from_step, tensors)
        live = {name: tensor for name, tensor in state.items() if ".lora_" in name}
        if adapter_name is None:
            return live
        return {f"{name.removesuffix('.weight')}.{adapter_name}.weight": t for name, t in live.items()}

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
        }

    def save_adapter(self, out: str | Path, rank: int | None = None) -> None:
        """Write the leap as a PEFT adapter at the rank it has, or at `rank` (best approximation).

        Raises:
            InputError: the folder cannot be written, or rank < 1.
        """
        if rank is not None and rank < 1:
            raise InputError(f"the rank of an adapter must be at least 1, not {rank}")
        notes = self.provenance()
        if rank is None:
            factors = {module: self.factors(module) for module in self.traj.modules}
            adapter_file.write_adapter(self.traj, self.from_step, factors, Path(out), provenance=notes)
            return
        targets = {module: self.target(module) for module in self.traj.modules}
        del notes["discarded_energy"]  # `write_adapter` measures what the wanted rank loses
        adapter_file.write_adapter(self.traj, self.from_step, targets, Path(out), rank=rank, provenance=notes)

    def save_merged(self, out: str | Path, base: str | Path) -> None:
        """Write the base model with the leap added to its weights.

        Args:
            out: folder to write.
            base: the base model's folder or name.
        """
        targets = {module: self.target(module) for module in self.traj.modules}
        adapter_file.write_merged(self.traj, self.from_step, targets, base, Path(out), self.provenance())

    def _fitted(self, module: str, old_basis: bool) -> tuple[Tensor, Tensor, float]:
        if isinstance(self.prediction, InsideFactors):
            a, b = self.prediction.factors(module, self.alpha)
            return a, b, 0.0
        a_old, b_old = self.traj.factors(self.from_step, module)
        scale = self.traj.scaling(module)
        if old_basis:
            a, b, lost = adapter_file.fit_to_rank(self.target(module), a_old, b_old, scale)
            return a, b, float(lost)
        best, lost = self.target(module).recompress(a_old.shape[0])
        dtype = torch.promote_types(a_old.dtype, torch.float32)
        a, b = torch.zeros(a_old.shape, dtype=dtype), torch.zeros(b_old.shape, dtype=dtype)
        a[: best.rank], b[:, : best.rank] = best.right.mT.to(dtype), (best.left / scale).to(dtype)
        return a, b, float(lost)


def leap(
    traj: Trajectory,
    method: str = "factors",
    horizon: int | None = None,
    alpha: float = 1.0,
    at: int | None = None,
    seed: int = 0,
    **params: Any,
) -> Leap:
    """Extrapolate a run.

    Args:
        traj: the run.
        method: an extrapolator's name, see `nextrl.extrapolators.names()`.
        horizon: h in steps; by default 50, or what a shorter run has.
        alpha: step length; 1 is h steps further by the method's own reckoning, 0 to stay, negative to go
            back.
        at: leap from this checkpoint and read nothing later; the last by default.
        seed: of methods that draw random numbers.
        params: the method's own parameters.

    Raises:
        InputError: unknown method or parameter, too few checkpoints for the horizon, alpha out of range, no
            checkpoint at `at`, an adapter that does not move.
    """
    alpha = check_alpha(alpha)
    if at is not None:
        if at not in traj.steps:
            raise InputError(f"no checkpoint at step {at}; there are {', '.join(map(str, traj.steps))}")
        traj = traj.upto(at)
    known = known_steps(traj)
    if horizon is None:
        horizon = max(1, min(DEFAULT_HORIZON, known[-1] - known[0]))
    started = time.perf_counter()
    prediction = get(method, **params).fit(traj, horizon, seed=seed)
    seconds = time.perf_counter() - started
    return Leap(traj, prediction, method, traj.steps[-1], horizon, alpha, seconds)
