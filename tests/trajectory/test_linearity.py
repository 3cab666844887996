"""Lines through checkpoints, judged on the ones after them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nextrl.trajectory.linearity import linearity_ahead, r2_ahead
from nextrl.trajectory.spectra import Spectrum

STEPS = tuple(range(10, 160, 10))


def spectrum(angle: float, sigma: torch.Tensor | None = None, flips: bool = False) -> Spectrum:
    """u turns by `angle` per checkpoint in a plane, v stays."""
    turn = torch.arange(15) * angle
    u = torch.stack([turn.cos(), turn.sin(), torch.zeros(15)], 1).float()
    v = torch.tensor([[0.6, 0.8]]).repeat(15, 1)
    if flips:
        sign = torch.tensor([(-1.0) ** n for n in range(15)])[:, None]
        u, v = u * sign, v * sign
    values = torch.arange(1.0, 16.0).double() if sigma is None else sigma
    return Spectrum(STEPS, torch.stack([values, values / 10], 1), u, v)


def reference(rows: np.ndarray, fit: int = 10) -> float:
    """The same by numpy's least squares, entry by entry."""
    x = np.array(STEPS, dtype=float)
    found = rows.reshape(len(rows), -1)
    line = np.polynomial.polynomial.polyfit(x[:fit], found[:fit], 1)
    predicted = line[0] + x[fit:, None] * line[1]
    truth = found[fit:]
    return float(1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum())


@pytest.mark.parametrize("angle", [0.02, 0.1, 0.4])
def test_it_agrees_with_least_squares_on_the_entries(angle: float) -> None:
    s = spectrum(angle)
    found = linearity_ahead(s)
    assert found["u"] == pytest.approx(reference(s.u.double().numpy()), abs=1e-5)
    dense = torch.einsum("t,ti,tj->tij", s.sigma[:, 0], s.u.double(), s.v.double()).numpy()
    assert found["rank1"] == pytest.approx(reference(dense), abs=1e-5)
    assert found["sigma"] == pytest.approx(1.0)
    assert math.isnan(found["v"])  # it never changes


def test_a_path_that_turns_is_straight_only_within_the_sample() -> None:
    turning = linearity_ahead(spectrum(0.3))["u"]
    assert turning < 0.0
    u = spectrum(0.3).u.double()
    x = torch.arange(15.0).double()
    design = torch.stack([torch.ones(15).double(), x], 1)
    fitted = design @ torch.linalg.pinv(design) @ u
    within = 1 - float((u - fitted).square().sum() / (u - u.mean(0)).square().sum())
    assert within > 0.3 > turning


def test_the_arbitrary_sign_of_a_pair_changes_nothing() -> None:
    assert linearity_ahead(spectrum(0.1, flips=True))["u"] == pytest.approx(
        linearity_ahead(spectrum(0.1))["u"], abs=1e-6
    )


def test_a_straight_rank_1_path_is_one() -> None:
    found = linearity_ahead(spectrum(0.0, sigma=torch.arange(1.0, 16.0).double()))
    assert found["rank1"] == pytest.approx(1.0)


def test_too_few_checkpoints_give_nothing() -> None:
    s = spectrum(0.1)
    short = Spectrum(STEPS[:14], s.sigma[:14], s.u[:14], s.v[:14])
    assert linearity_ahead(short) == {}
    assert set(linearity_ahead(short, fit=4, ahead=2)) == {"u", "v", "sigma", "rank1"}


def test_unevenly_spaced_steps_are_steps_not_numbers() -> None:
    steps = (1, 2, 4, 8, 16, 32)
    values = torch.tensor([float(s) for s in steps]).double()
    assert r2_ahead(values.outer(values), steps, 4) == pytest.approx(1.0)
