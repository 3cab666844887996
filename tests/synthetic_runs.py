"""Trajectories whose future is known in closed form: A is fixed, so W_t is linear in a B_t that is written
down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nextrl.trajectory.trajectory import MemoryCheckpoint, Trajectory

MODULES = {"model.layers.0.self_attn.q_proj": (24, 20), "model.layers.0.mlp.up_proj": (40, 20)}
RANK = 4
STEPS = tuple(range(10, 161, 10))
Path = Callable[[float, Tensor, Tensor, Tensor], Tensor]
"""(t, P, Q, noise that is fresh for each t) -> B_t (m, r)."""


def run(path: Path | dict[str, Path], steps: Sequence[int] = STEPS, *, seed: int = 0, **kwargs) -> Trajectory:
    """Checkpoints at `steps` with A (4, n) fixed and B_t from `path`, one rule for all modules or one
    each."""
    # Noise has its own generator: the directions must not depend on how many steps are asked for.
    draws, noises = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    factors: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in steps]
    for module, (m, n) in MODULES.items():
        a = torch.randn(RANK, n, generator=draws, dtype=torch.float64)
        p, q = (torch.randn(m, RANK, generator=draws, dtype=torch.float64) for _ in range(2))
        rule = path[module] if isinstance(path, dict) else path
        for at, step in zip(factors, steps, strict=True):
            noise = torch.randn(m, RANK, generator=noises, dtype=torch.float64)
            at[module] = (a, rule(step, p, q, noise))
    return Trajectory.from_factors(steps, factors, scaling=2.0, **kwargs)


def line(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Straight from zero."""
    return p * (t / 100)


def rank_one_line(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Straight, along one rank-1 matrix."""
    return torch.outer(p[:, 0], q[0]) * (t / 100)


def parabola(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Curved."""
    return p * (t / 100) + q * (t / 100) ** 2


def saturating(tau: float) -> Path:
    """1 - exp(-t / tau)."""
    return lambda t, p, q, noise: p * (1 - math.exp(-t / tau))


def rotation(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Once around in 200 steps, from zero."""
    angle = 2 * math.pi * t / 200
    return p * (math.cos(angle) - 1) + q * math.sin(angle)


def oscillation(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """To and fro in 80 steps."""
    return p * math.sin(2 * math.pi * t / 80)


def noise(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Around zero, independent at each step."""
    return noise


def offset_noise(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Around a point that is not the start."""
    return p + noise


def walk(drift: float) -> Path:
    """A random walk, plus a drift; call it once a module, steps ascending."""
    total: dict[tuple[int, ...], Tensor] = {}

    def path(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
        total[noise.shape] = total.get(noise.shape, torch.zeros_like(noise)) + noise
        return total[noise.shape] + drift * p * (t / 10)

    return path


class Sealed(MemoryCheckpoint):
    """A checkpoint that must not be read."""

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Fails."""
        raise AssertionError(f"step {self.step} was read")


def seal_after(traj: Trajectory, step: int) -> Trajectory:
    """The same run; reading a checkpoint later than `step` fails the test."""
    kept = [c if c.step <= step else Sealed(c.step, c.tensors, c.scalings) for c in traj.checkpoints]
    return Trajectory(tuple(kept), None, traj.adapter_config)


def error(traj: Trajectory, prediction, at: int, later: int, alpha: float = 1.0) -> float:
    """|predicted - actual| / |actual| over all modules."""
    wrong = real = 0.0
    for module in traj.modules:
        actual = traj.delta(module, at, later)
        wrong += float((prediction.delta(module, alpha) - actual).norm()) ** 2
        real += float(actual.norm()) ** 2
    return math.sqrt(wrong / real)
