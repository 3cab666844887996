"""`alpharl`: v is that of T, alpha = 1 is the target accuracy, and the code's variant does what the code does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LinearRegression

import synthetic_runs as synthetic
from nextrl.errors import InputError
from nextrl.extrapolators import get
from nextrl.trajectory.trajectory import Trajectory

AT = 100


def wandering() -> Trajectory:
    """A line with enough noise that u, v and sigma all move from checkpoint to checkpoint."""
    return synthetic.run(synthetic.walk(drift=2.0)).upto(AT)


def accuracy(traj: Trajectory) -> dict[int, float]:
    """Rising, not evenly."""
    return {step: 0.2 + step / 400 + 0.02 * (step % 30) / 30 for step in traj.steps}


@pytest.mark.parametrize("variant", [{}, {"variant": "code"}])
def test_v_is_that_of_the_last_checkpoint(variant: dict[str, str]) -> None:
    traj = wandering()
    prediction = get("alpharl", accuracy=accuracy(traj), **variant).fit(traj, 40)
    for module in traj.modules:
        v = traj.delta(module, 0, AT).top(1).v[:, 0]
        moved = prediction.delta(module).dense()
        assert float(moved.norm()) > 0.01
        torch.testing.assert_close(moved, torch.outer(moved @ v, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("target", "steps"), [(0.95, -5), (1.4, 40)])
def test_alpha_1_is_the_target_accuracy_even_above_1(target: float, steps: int) -> None:
    traj = synthetic.run(synthetic.rank_one_line)
    given = {t: t / 100 for t in traj.steps}
    prediction = get("alpharl", accuracy=given, target=target).fit(traj.upto(AT), 10)
    for module in traj.modules:
        one_step = traj.delta(module, 90, AT).dense() / 10
        for alpha in (0.5, 1.0, 2.0):
            expected = one_step * steps * alpha
            torch.testing.assert_close(
                prediction.delta(module, alpha).dense(), expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_alpha_0_stays_and_alpha_1_is_the_fit_s_own_goal(variant: str) -> None:
    """The regression passes W_T by on a run with noise: only the formula at alpha = 0 is not taken at its word."""
    traj = wandering()
    prediction = get("alpharl", accuracy=accuracy(traj), variant=variant).fit(traj, 40)
    for module in traj.modules:
        assert float(prediction.delta(module, 0.0).dense().norm()) == 0.0
        goal = prediction.left[module].at(prediction.accuracy + prediction.gain)
        now = prediction.now[module].left[:, 0] if variant == "paper" else torch.zeros_like(goal)
        whole = torch.outer(goal - now, prediction.now[module].right[:, 0])
        torch.testing.assert_close(prediction.delta(module, 1.0).dense(), whole)


def test_without_a_target_the_accuracy_is_capped_at_1() -> None:
    traj = synthetic.run(synthetic.rank_one_line)
    prediction = get("alpharl", accuracy={t: t / 110 for t in traj.steps}).fit(traj.upto(AT), 40)
    module = traj.modules[0]
    torch.testing.assert_close(
        prediction.delta(module).dense(), traj.delta(module, AT, 110).dense(), rtol=1e-4, atol=1e-5
    )


def test_the_code_s_variant_is_the_code_s_arithmetic() -> None:
    """Scaled PLS, accuracy on scores by linear regression, inverted at y*, times v of T, added to W_T."""
    traj, wanted = wandering(), 0.9
    given = accuracy(traj)
    prediction = get("alpharl", accuracy=given, target=wanted, variant="code").fit(traj, 40)
    y = np.array([given[step] for step in traj.steps])
    for module in traj.modules:
        tops = [traj.delta(module, 0, step).top(1) for step in traj.steps]
        vectors = [(t.u[:, 0] * t.sigma[0]).numpy() for t in tops]
        sign = 1.0
        for i in range(1, len(vectors)):  # as the code: each agrees with the one before
            sign = 1.0 if float(vectors[i] @ vectors[i - 1]) >= 0 else -1.0
            vectors[i] = vectors[i] * sign
        pls = PLSRegression(n_components=1)
        scores = pls.fit_transform(np.array(vectors), y.reshape(-1, 1))[0]
        line = LinearRegression().fit(scores, y)
        x = pls.inverse_transform(((wanted - line.intercept_) / line.coef_).reshape(1, -1))[0]
        expected = torch.outer(torch.from_numpy(x), tops[-1].v[:, 0]) * sign
        torch.testing.assert_close(prediction.delta(module).dense(), expected, rtol=1e-4, atol=1e-5)
        assert float(prediction.delta(module, 0.0).norm()) == 0.0


def test_an_accuracy_that_is_not_a_number_is_one_that_is_not_known() -> None:
    traj = wandering()
    given = accuracy(traj)
    without = get("alpharl", accuracy={s: a for s, a in given.items() if s != 40}).fit(traj, 40)
    spoiled = get("alpharl", accuracy={**given, 40: math.nan}).fit(traj, 40)
    for module in traj.modules:
        assert torch.equal(spoiled.delta(module).dense(), without.delta(module).dense())
    few = {step: a if step < 30 else math.inf for step, a in given.items()}
    with pytest.raises(InputError, match="at least 3 checkpoints, 2 known"):
        get("alpharl", accuracy=few).fit(traj, 40)


def test_an_unknown_variant_is_refused() -> None:
    traj = wandering()
    with pytest.raises(InputError, match="variant must be paper or code, not 'both'"):
        get("alpharl", accuracy=accuracy(traj), variant="both").fit(traj, 40)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_rewards_beyond_1_do_not_turn_the_leap_back(scale: float) -> None:
    """Only accuracies end at 1: a reward of 60 is no accuracy, and 1 is far behind it."""
    traj = synthetic.run(synthetic.rank_one_line)
    given = {t: scale * (0.2 + t / 400) for t in traj.steps}
    prediction = get("alpharl", accuracy=given).fit(traj.upto(AT), 40)
    for module in traj.modules:
        expected = traj.delta(module, AT, AT + 40).dense()
        torch.testing.assert_close(prediction.delta(module).dense(), expected, rtol=1e-4, atol=1e-5)


def test_a_line_that_lies_above_1_already_leaves_nothing_to_gain() -> None:
    traj = synthetic.run(synthetic.rank_one_line).upto(AT)
    given = {t: min(1.0, 0.1 + t / 90) for t in traj.steps}
    prediction = get("alpharl", accuracy=given).fit(traj, 40)
    assert prediction.accuracy > 1.0
    assert prediction._goal(1.0) == prediction.accuracy
