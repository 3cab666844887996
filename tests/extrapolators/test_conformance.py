"""One suite over every registered method: a new file is tested by being registered."""

from __future__ import annotations

import pytest
import torch

import synthetic_runs as synthetic
from nextrl.errors import InputError
from nextrl.extrapolators import Extrapolator, InsideFactors, get, names
from nextrl.leaps.leap import Leap, leap

HORIZON, AT = 20, 120
FAST = {"next-paper": {"epochs": 5}, "next": {"updates": 20}, "nowcast": {"updates": 20}}
ACCURACY = {t: 0.2 + t / 400 for t in synthetic.STEPS}


def make(name: str) -> Extrapolator:
    if name == "alpharl":
        return get(name, accuracy=ACCURACY)
    return get(name, **FAST.get(name, {}))


def drifting() -> synthetic.Trajectory:
    return synthetic.run(synthetic.walk(drift=2.0))


every_method = pytest.mark.parametrize("name", names())


@every_method
def test_says_what_it_is(name: str) -> None:
    method = get(name)
    assert method.name == name
    assert method.summary
    assert method.reference
    assert isinstance(method.averages, bool)
    assert method.min_checkpoints(50, 10) >= method.min_checkpoints(10, 10) >= 1


@every_method
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 3.0])
def test_delta_has_the_modules_shape_and_finite_numbers(name: str, alpha: float) -> None:
    traj = drifting().upto(AT)
    prediction = make(name).fit(traj, HORIZON)
    for module in traj.modules:
        delta = prediction.delta(module, alpha)
        assert tuple(delta.shape) == traj.shape(module)[:2]
        assert torch.isfinite(delta.dense()).all()


@every_method
def test_same_seed_same_prediction(name: str) -> None:
    traj = drifting().upto(AT)
    state = torch.random.get_rng_state()
    one, two = (make(name).fit(traj, HORIZON, seed=3) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state()), "the global random state must not move"
    for module in traj.modules:
        assert torch.equal(one.delta(module).dense(), two.delta(module).dense())


@every_method
def test_nothing_later_is_read(name: str) -> None:
    sealed = synthetic.seal_after(drifting(), AT)
    prediction = make(name).fit(sealed.upto(AT), HORIZON)
    for module in sealed.modules:
        prediction.delta(module, 1.0)


@every_method
def test_too_few_checkpoints_says_how_many_and_what_would_work(name: str) -> None:
    method, traj = make(name), drifting()
    if method.min_checkpoints(1000, 10) > 17:
        with pytest.raises(
            InputError, match=rf"{name} needs \d+ checkpoints.*horizon of \d+ steps would work"
        ):
            method.fit(traj, 1000)
    few = method.min_checkpoints(10, 10)
    if few > 2:
        with pytest.raises(InputError, match=r"needs .*"):
            method.fit(traj.at(synthetic.STEPS[: few - 2]), 10)


@every_method
def test_the_horizon_that_is_offered_works(name: str) -> None:
    method, traj = make(name), drifting()
    if method.min_checkpoints(1000, 10) <= 17:
        pytest.skip("no horizon is too long for it")
    with pytest.raises(InputError) as caught:
        method.fit(traj, 1000)
    offered = int(str(caught.value).split("a horizon of ")[-1].split()[0])
    method.fit(traj, offered)


@every_method
@pytest.mark.parametrize("horizon", [0, -10])
def test_horizon_must_be_positive(name: str, horizon: int) -> None:
    with pytest.raises(InputError, match="horizon must be at least 1"):
        make(name).fit(drifting(), horizon)


@every_method
def test_constant_run_is_refused(name: str) -> None:
    if name == "none":
        pytest.skip("staying put needs no movement")
    still = synthetic.run(lambda t, p, q, noise: p)
    with pytest.raises(InputError, match="does not move"):
        make(name).fit(still, HORIZON)
    with pytest.raises(InputError, match="does not move"):
        make(name).fit(synthetic.run(lambda t, p, q, noise: 0 * p), HORIZON)


@every_method
def test_a_module_that_never_moves_stays(name: str) -> None:
    first, second = synthetic.MODULES
    traj = synthetic.run({first: synthetic.line, second: lambda t, p, q, noise: 0 * p})
    prediction = make(name).fit(traj, HORIZON)
    assert float(prediction.delta(second, 1.0).norm()) == pytest.approx(0.0, abs=1e-9)
    assert torch.isfinite(prediction.delta(first, 1.0).dense()).all()


@every_method
@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e3, -50.0])
def test_alpha_out_of_range(name: str, alpha: float) -> None:
    traj = drifting()
    prediction = make(name).fit(traj, HORIZON)
    with pytest.raises(InputError, match="alpha must be"):
        prediction.delta(traj.modules[0], alpha)


@every_method
def test_uneven_spacing_is_accepted(name: str) -> None:
    traj = synthetic.run(synthetic.line, (10, 20, 30, 35, 50, 60, 70, 80, 90, 110, 120, 130, 140, 150))
    method = make(name)
    prediction = method.fit(traj, HORIZON)
    assert torch.isfinite(prediction.delta(traj.modules[0], 1.0).dense()).all()


@every_method
def test_comes_out_at_the_adapters_rank(name: str) -> None:
    traj = drifting().upto(AT)
    result = Leap(traj, make(name).fit(traj, HORIZON), name, AT, HORIZON, 1.0, 0.0)
    state = result.leap_state()
    assert len(state) == 2 * len(traj.modules)
    for module in traj.modules:
        a, b = result.factors(module)
        old_a, old_b = traj.factors(AT, module)
        assert a.shape == old_a.shape
        assert b.shape == old_b.shape
        target = result.target(module)
        best, lost = target.recompress(synthetic.RANK)
        made = traj.scaling(module) * (b.double() @ a.double())
        assert float((made - best.dense()).norm()) <= 1e-5 * float(target.norm()) or isinstance(
            result.prediction, InsideFactors
        )
        assert 0.0 <= float(lost) < 1.0
    assert 0.0 <= result.discarded < 1.0


def test_unknown_method_and_parameter() -> None:
    with pytest.raises(InputError, match=r"unknown method 'nxt'; known: none, factors"):
        get("nxt")
    with pytest.raises(InputError, match=r"method 'window'.*size"):
        get("window", size=3)
    with pytest.raises(InputError, match="unknown method"):
        leap(drifting(), "nxt")
