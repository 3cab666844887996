"""The predicted rounding noise against measured rounding."""

import math

import pytest
import torch

from nextrl.trajectory.precision import noise_floor, noise_share, rounding_variance
from nextrl.trajectory.trajectory import Trajectory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_variance_matches_real_rounding(dtype):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    stored = x.to(dtype)
    measured = float((stored.double() - x.double()).square().mean())
    assert rounding_variance(stored) == pytest.approx(measured, rel=0.1)
    assert rounding_variance(torch.zeros(3, dtype=dtype)) == 0.0


def test_floor_is_the_size_of_the_measured_noise():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 300, generator=g), torch.randn(400, 8, generator=g)
    errors = []
    for _ in range(5):  # tiny true moves, so that a delta is rounding only
        a1, b1 = a + 1e-2 * torch.randn(a.shape, generator=g), b + 1e-2 * torch.randn(b.shape, generator=g)
        rounded = (b1.bfloat16().double() @ a1.bfloat16().double()) - b1.double() @ a1.double()
        errors.append(2**0.5 * float(torch.linalg.matrix_norm(rounded, 2)))
    traj = Trajectory.from_factors([10, 20], [{"w": (a.bfloat16(), b.bfloat16())}] * 2)
    floor = noise_floor(traj, 20, "w")
    assert 0.5 < floor / (sum(errors) / 5) < 2.0
    assert noise_share(traj, "w", floor * 5) == pytest.approx(0.2)
    wide = Trajectory.from_factors([10, 20], [{"w": (a, b)}] * 2)
    assert noise_floor(wide, 20, "w") < 1e-4 * floor


def test_a_share_of_what_is_not_known_is_not_known():
    still = Trajectory.from_factors([10], [{"w": (torch.zeros(2, 6), torch.zeros(5, 2))}])
    assert noise_share(still, "w", 0.0) == 0.0
    assert math.isnan(noise_share(still, "w", math.nan))
