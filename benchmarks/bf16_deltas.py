"""What bf16 storage does to local deltas, against spacing: the table of docs/precision.md.

    python benchmarks/bf16_deltas.py

One 896 x 896 matrix, r 32, s 2; 200 Adam-like steps of size 1e-5, half of each a fixed direction and half noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextrl.trajectory.precision import noise_floor
from nextrl.trajectory.trajectory import Trajectory

SIZE, RANK, RATE, STEPS = 896, 32, 1e-5, 200


def simulate() -> dict[int, tuple[Tensor, Tensor]]:
    """step -> (A, B) in float32."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(RANK, SIZE, generator=g) * 2 - 1) * SIZE**-0.5, torch.zeros(SIZE, RANK)
    way_a, way_b = torch.randn(RANK, SIZE, generator=g).sign(), torch.randn(SIZE, RANK, generator=g).sign()
    states = {}
    for step in range(1, STEPS + 1):
        a = a + RATE * (0.5 * way_a + 0.5 * torch.randn(RANK, SIZE, generator=g))
        b = b + RATE * (0.5 * way_b + 0.5 * torch.randn(SIZE, RANK, generator=g))
        states[step] = (a, b)
    return states


def main() -> None:
    """Print the table as markdown."""
    states = simulate()
    print(
        "| k | error of the delta | error in sigma_1's units | predicted floor | cos(u1) | persistence f32 | bf16 |"
    )
    print("|---|---|---|---|---|---|---|")
    for k in (1, 2, 5, 10, 20, 50):
        steps = [s for s in states if s % k == 0]
        exact = Trajectory.from_factors(steps, [{"w": states[s]} for s in steps], scaling=2.0)
        half = [{"w": (states[s][0].bfloat16(), states[s][1].bfloat16())} for s in steps]
        stored = Trajectory.from_factors(steps, half, scaling=2.0)
        a, b = exact.delta("w", STEPS - k, STEPS), stored.delta("w", STEPS - k, STEPS)
        top, seen, error = a.top(1), b.top(1), b - a
        print(
            f"| {k} | {float(error.norm() / a.norm()):.1%} | {float(error.top(1).sigma[0] / top.sigma[0]):.1%} "
            f"| {noise_floor(stored, STEPS, 'w') / float(seen.sigma[0]):.1%} "
            f"| {abs(float(top.u[:, 0] @ seen.u[:, 0])):.4f} "
            f"| {exact.persistence(k):.3f} | {stored.persistence(k):.3f} |"
        )


if __name__ == "__main__":
    main()
