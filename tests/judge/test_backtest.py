"""The judge: right where the future is known, silent on noise, blind to what comes after an origin."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

import pytest
import torch

import synthetic_runs as synthetic
from nextrl import extrapolators
from nextrl.errors import InputError
from nextrl.extrapolators import CombinationOfCheckpoints, NewDirection, get, resolve, tags_of
from nextrl.extrapolators.base import METHODS
from nextrl.extrapolators.secant import Secant
from nextrl.judge import backtest as backtest_module
from nextrl.judge.backtest import Backtest, backtest, origins_for
from nextrl.judge.backtest_scores import ForecastScore, MethodScore
from nextrl.trajectory.combinations import pooled_gram
from nextrl.trajectory.persistence import adam_carry
from nextrl.trajectory.trajectory import Trajectory

QUICK = tuple(n for n in extrapolators.names() if not get(n).tags.trains)


def test_straight_line_recommends_the_longest_leap_it_saw() -> None:
    result = backtest(synthetic.run(synthetic.line), methods=QUICK)
    assert result.recommended != "none"
    assert result.horizon == 50
    best = result.methods[result.recommended]
    assert best.mean("cosine") == pytest.approx(1.0, abs=1e-6)
    assert best.mean("relative_error") < 1e-4
    assert result.methods["none"].mean("relative_error") == 1.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "path",
    [synthetic.noise, synthetic.offset_noise, lambda: synthetic.walk(0.0)],
    ids=["noise", "offset", "walk"],
)
def test_pure_noise_recommends_none(path, seed: int) -> None:
    rule = path() if path not in (synthetic.noise, synthetic.offset_noise) else path
    result = backtest(synthetic.run(rule, seed=seed), methods=QUICK)
    assert result.recommended == "none"


def test_pure_noise_recommends_none_with_every_method() -> None:
    assert backtest(synthetic.run(synthetic.walk(0.0)), 20).recommended == "none"


def test_a_clear_drift_in_noise_is_found() -> None:
    result = backtest(synthetic.run(synthetic.walk(2.0), steps=range(10, 301, 10)), methods=QUICK)
    assert result.recommended != "none"


def test_momentum_alone_is_not_a_signal() -> None:
    """White noise through Adam's momentum: successive windows agree with c0, and that is no reason to
    leap."""
    state: dict[tuple[int, ...], list[synthetic.Tensor]] = {}

    def path(t: float, p: synthetic.Tensor, q: synthetic.Tensor, noise: synthetic.Tensor) -> synthetic.Tensor:
        velocity, place = state.setdefault(noise.shape, [0 * noise, 0 * noise])
        for _ in range(10):
            noise = noise.roll(1, 0) * (1 - 2 * (synthetic.torch.rand(noise.shape) < 0.5).double())
            velocity.mul_(0.9).add_(noise)
            place.add_(velocity)
        return place.clone()

    synthetic.torch.manual_seed(0)
    result = backtest(synthetic.run(path, steps=range(10, 201, 10)), horizon=10, methods=QUICK)
    assert result.horizons[10].control == "momentum"
    assert result.recommended == "none"


def test_fit_sees_nothing_later_than_its_origin(monkeypatch) -> None:
    seen: list[tuple[int, int]] = []
    real = extrapolators.secant.Secant.fit

    def spy(self, traj: Trajectory, horizon: int, *, seed: int = 0):
        sealed = synthetic.seal_after(traj, traj.steps[-1])
        seen.append((traj.steps[-1], max(c.step for c in sealed.checkpoints)))
        return real(self, traj, horizon, seed=seed)

    monkeypatch.setattr(extrapolators.secant.Secant, "fit", spy)
    result = backtest(synthetic.run(synthetic.line), 20, "secant")
    assert [t for t, _ in seen] == list(result.origins)
    assert all(t == last for t, last in seen)


@pytest.mark.parametrize("name", QUICK)
def test_changing_the_future_changes_no_earlier_score(name: str) -> None:
    if name == "alpharl":
        pytest.skip("needs accuracies")
    traj = synthetic.run(synthetic.walk(1.0))
    whole = backtest(traj, 20, name, max_origins=100)
    short = backtest(traj.upto(120), 20, name, max_origins=100)
    for t, outcome in short.methods[name].outcomes.items():
        assert whole.methods[name].outcomes[t].skill == pytest.approx(outcome.skill, abs=1e-9)


def test_uneven_spacing_pairs_by_steps() -> None:
    traj = synthetic.run(synthetic.line, (10, 20, 30, 45, 50, 60, 70, 80, 100))
    assert (45, 70) not in origins_for(traj, 20)
    assert all(abs(later - t - 20) <= 5 for t, later in origins_for(traj, 20))
    assert backtest(traj, 20, "secant").methods["secant"].mean("cosine") == pytest.approx(1.0, abs=1e-6)


def test_outcome_figures() -> None:
    outcome = ForecastScore(inner=3.0, predicted=4.0, actual=9.0)
    assert outcome.cosine == pytest.approx(0.5)
    assert outcome.norm_ratio == pytest.approx(2 / 3)
    assert outcome.skill == pytest.approx(2 / 9)
    assert outcome.relative_error == pytest.approx((7 / 9) ** 0.5)
    assert ForecastScore(0.0, 0.0, 9.0).cosine == 0.0
    unknown = ForecastScore(math.nan, math.nan, 9.0)
    assert math.isnan(unknown.cosine)
    assert math.isnan(MethodScore({10: unknown}, {}, 0.0, 0.0).best_alpha)


def test_a_method_that_predicts_nan_is_left_out_and_says_so() -> None:
    class Spoiled(Secant):
        """Sound before step 120, and NaN from there on, in one of the modules."""

        name = "spoiled"
        since: ClassVar[int] = 120

        def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
            good, last = super().fit(traj, horizon, seed=seed), traj.modules[-1]
            factor = {
                m: math.nan if m == last and traj.steps[-1] >= self.since else 1.0 for m in traj.modules
            }
            return NewDirection({m: good.delta(m) * factor[m] for m in traj.modules})

    class AlwaysSpoiled(Spoiled):
        name = "always-spoiled"
        since = 0

    result = backtest(synthetic.run(synthetic.walk(1.0)), 20, [Spoiled(), AlwaysSpoiled()])
    tried = result.horizons[20]
    assert max(tried.methods["spoiled"].outcomes) == 110
    assert "always-spoiled" not in tried.methods
    assert tried.skipped == {"always-spoiled": "predicts a NaN or an Inf from step 140"}


class CrashesInFit(Secant):
    """Divides by zero."""

    name = "crashes"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        return horizon / 0


class CrashesInDelta(Secant):
    """Fits, and fails from step 120 on where it is asked how far the weights move."""

    name = "crashes"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        good = super().fit(traj, horizon, seed=seed)
        late = CombinationOfCheckpoints(traj, lambda alpha: [][int(alpha)])
        return late if traj.steps[-1] >= 120 else good


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (CrashesInFit, "ZeroDivisionError: division by zero"),
        (CrashesInDelta, "IndexError: list index out of range"),
    ],
)
def test_a_method_that_crashes_ends_the_backtest_only_where_it_was_named(
    broken: type[Secant], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traj = synthetic.run(synthetic.walk(1.0))
    monkeypatch.setattr(METHODS, "_entries", {**METHODS._entries, "crashes": broken})
    monkeypatch.setattr(backtest_module, "names", lambda: ("none", "secant", "crashes"))
    result = backtest(traj, 20)
    assert set(result.methods) == {"none", "secant"}
    assert result.as_dict()["skipped"] == {"crashes": words}
    for named in ("crashes", [broken()]):
        with pytest.raises((ZeroDivisionError, IndexError)):
            backtest(traj, 20, named)


def test_as_dict_is_the_contract() -> None:
    result = backtest(synthetic.run(synthetic.walk(1.0)), [10, 20], "secant,lawa")
    out = json.loads(json.dumps(result.as_dict()))
    assert {"horizon", "origins", "methods", "recommended"} <= set(out)
    assert set(out["methods"]) == {"none", "secant", "lawa"}
    assert {"cosine", "norm_ratio", "relative_error"} <= set(out["methods"]["secant"])


def test_plot(tmp_path) -> None:
    result: Backtest = backtest(synthetic.run(synthetic.walk(1.0)), 20, "secant,lawa")
    result.plot(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("run", "horizon", "words"),
    [
        (synthetic.run(synthetic.line), 100, "horizons up to 80 would work"),
        (synthetic.run(synthetic.line), 0, "horizon must be at least 1, not 0"),
        (synthetic.run(synthetic.line, (10,)), None, "at least 3 checkpoints"),
        (synthetic.run(lambda t, p, q, noise: p), 20, "does not move"),
    ],
)
def test_bad_input(run: Trajectory, horizon: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        backtest(run, horizon, "secant")


def test_by_default_only_candidates_are_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    traj = synthetic.run(synthetic.line)
    monkeypatch.setattr(backtest_module, "names", lambda: ["none", "linear", "secant", "factors"])
    monkeypatch.setattr(backtest_module, "CANDIDATES", ("factors",))
    assert backtest(traj, 20).recommended == "factors"
    assert backtest(traj, 20, ["linear"]).recommended == "linear"


def test_no_candidate_trains_a_network() -> None:
    assert not [name for name in backtest_module.CANDIDATES if tags_of(resolve(name)[0]).trains]


def test_a_notebook_shows_the_table() -> None:
    result = backtest(synthetic.run(synthetic.line), 20, "linear,secant")
    html = result._repr_html_()
    assert html.count("<tr>") == 1 + len(result.methods)
    assert "<th>secant</th>" in html
    assert len(repr(result)) < 120


def test_the_momentum_control_takes_a_window_that_is_there_where_early_checkpoints_are_gone() -> None:
    """It took the origin itself for the start of its window, and so stood still."""
    traj = synthetic.run(synthetic.line, range(400, 511, 10))
    gram = pooled_gram(traj)
    for horizon in (10, 20):
        for t, later in backtest_module.origins_for(traj, horizon):
            before = min((s for s in (0, *traj.steps) if s < t), key=lambda s: (abs(s - (2 * t - later)), s))
            carried = adam_carry(later - t, 0.9, t - before) * (t - before) / (later - t)
            found = backtest_module._not_leaping(traj, gram, t, later, 0.9)["momentum"]
            assert found == pytest.approx(1 - (1 - carried) ** 2)
            assert found > 0


def test_the_controls_do_not_care_whether_step_0_lies_on_disk() -> None:
    steps = range(10, 121, 10)
    without = synthetic.run(synthetic.saturating(60.0), steps)
    factors = [{m: without.factors(s, m) for m in without.modules} for s in steps]
    zero = {m: (a, torch.zeros_like(b)) for m, (a, b) in factors[0].items()}
    scaling = {m: without.scaling(m) for m in without.modules}
    with_it = Trajectory.from_factors((0, *steps), [zero, *factors], scaling=scaling)
    for t, later in backtest_module.origins_for(without, 20):
        here, there = (
            backtest_module._not_leaping(traj, pooled_gram(traj), t, later, 0.9)
            for traj in (without, with_it)
        )
        assert here == pytest.approx(there)


def test_a_recommendation_on_a_handful_of_weights_says_that_it_may_be_chance() -> None:
    a, b = torch.ones(1, 4), torch.ones(3, 1)
    steps = range(10, 121, 10)
    few = Trajectory.from_factors(steps, [{"q_proj": (a, b * s)} for s in steps])
    assert backtest(few, methods="secant").reason.endswith("with 12 weights in all, that may well be chance")
    assert "chance" not in backtest(synthetic.run(synthetic.line), methods="secant").reason


def test_the_gate_is_what_the_page_says() -> None:
    assert not MethodScore({}, {}, 0.08, 0.03).convincing
    assert MethodScore({}, {}, 0.08, 0.01).convincing


def test_two_methods_of_one_name_are_refused_and_the_same_twice_is_once() -> None:
    traj = synthetic.run(synthetic.walk(1.0))
    with pytest.raises(InputError, match=r"two of the methods are called dmd .*kept by name") as caught:
        backtest(traj, 20, [get("dmd", modes=1), get("dmd", modes=2)])
    assert "\n" not in str(caught.value)
    assert list(backtest(traj, 20, "secant,none,secant").methods) == ["secant", "none"]


@pytest.mark.parametrize(("horizon", "offered"), [(45, "40"), (11, "10"), (19, "20")])
def test_a_horizon_that_no_two_checkpoints_have_is_refused_with_one_that_they_have(
    horizon: int, offered: str
) -> None:
    traj = synthetic.run(synthetic.line)
    words = f"no two checkpoints lie {horizon} steps apart; give {offered}, as some do"
    with pytest.raises(InputError, match=words):
        backtest(traj, horizon, "secant")
    assert backtest(traj, int(offered), "secant").horizon == int(offered)


def test_the_worth_of_a_leap_counts_the_steps_that_were_measured() -> None:
    steps = (10, 20, 30, 40, 51, 60, 70, 80, 92, 100, 110)
    scores = backtest(synthetic.run(synthetic.line, steps), 20, "secant").horizons[20]
    pairs = origins_for(synthetic.run(synthetic.line, steps), 20)[-8:]
    assert scores.spans == {t: later - t for t, later in pairs}
    assert any(span != 20 for span in scores.spans.values())
    mean = sum(scores.spans.values()) / len(scores.spans)
    assert scores.expected_steps("secant") == pytest.approx(mean, rel=1e-3)
