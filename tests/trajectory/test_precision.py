"""The predicted rounding noise against measured rounding."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nextrl.cli.analysis_text import sentences
from nextrl.errors import InputError
from nextrl.judge.advise import advise
from nextrl.judge.analysis import analyze
from nextrl.trajectory.precision import WARN_ABOVE, noise_floor, noise_share, window_noise
from nextrl.trajectory.rounding import rounding_variance
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


def full_weights(root: Path, dtype: torch.dtype, move: float) -> Trajectory:
    """A run whose one matrix, of entries of .02, moves by `move` in every entry between two checkpoints of `dtype`."""
    draws = torch.Generator().manual_seed(0)
    weight, signs = (torch.randn(60, 40, generator=draws) for _ in range(2))
    for number in range(9):
        folder = root / ("base" if number == 0 else f"run/checkpoint-{10 * number}")
        folder.mkdir(parents=True)
        now = 0.02 * weight + number * move * signs.sign()
        save_file({"w.weight": now if number == 0 else now.to(dtype)}, folder / "model.safetensors")
    return Trajectory.from_full_weights(root / "run", root / "base", rank=40)


def test_the_floor_of_full_weights_is_the_size_of_the_measured_noise(tmp_path: Path) -> None:
    traj = full_weights(tmp_path, torch.bfloat16, 1e-3)
    exact = full_weights(tmp_path / "exact", torch.float32, 1e-3)
    noise = (traj.delta("w", 70, 80) - exact.delta("w", 70, 80)).dense()
    measured = float(torch.linalg.matrix_norm(noise, 2))
    assert 0.7 < noise_floor(traj, 80, "w") / measured < 1.5
    assert noise_floor(exact, 80, "w") < 1e-4 * measured


def test_a_step_of_full_weights_below_the_rounding_is_warned_of_and_refused(tmp_path: Path) -> None:
    traj = full_weights(tmp_path, torch.bfloat16, 1e-5)
    assert analyze(traj).noisy["w"] > WARN_ABOVE
    assert window_noise(traj, 70) > WARN_ABOVE
    with pytest.raises(InputError, match="stored in bfloat16, whose rounding is"):
        advise(traj, updates_per_step=1)
    exact = full_weights(tmp_path / "exact", torch.float32, 1e-5)
    assert analyze(exact).noisy == {}
    assert window_noise(exact, 70) == 0.0
    assert "rounding" not in " ".join(advise(exact, updates_per_step=1).reasons)
    far = full_weights(tmp_path / "far", torch.bfloat16, 1e-2)
    assert analyze(far).noisy == {}
    still = full_weights(tmp_path / "still", torch.bfloat16, 1e-10)
    assert "storage rounding reaches all of sigma_1 in w" in " ".join(sentences(analyze(still)))
