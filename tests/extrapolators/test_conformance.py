"""Every registered method keeps the promises of `nextrl.testing`, and each of its checks can tell when one does not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import synthetic_runs as synthetic
from nextrl import testing
from nextrl.errors import InputError
from nextrl.extrapolators import (
    CombinationOfCheckpoints,
    InsideFactors,
    NewDirection,
    Tags,
    get,
    names,
    nearest_step,
    register,
    require,
    spacings_in,
)
from nextrl.extrapolators.base import METHODS
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import leap
from nextrl.trajectory.combinations import unit
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

FAST = {"next-paper": {"epochs": 5}, "next": {"updates": 20}, "nowcast": {"updates": 20}}


@pytest.mark.parametrize("check", list(testing.CHECKS))
@pytest.mark.parametrize("name", names())
def test_every_method_keeps_its_promises(name: str, check: str) -> None:
    testing.CHECKS[check](testing.maker(name, **FAST.get(name, {})))


@pytest.mark.parametrize("name", names())
def test_what_every_method_predicts_can_be_pickled(name: str) -> None:
    run = testing.synthetic_run(testing.drifting_walk(2.0))
    known = {"accuracy": {step: 0.2 + step / 400 for step in run.steps}} if name == "alpharl" else {}
    made = leap(run, name, horizon=10, **known, **FAST.get(name, {}))
    again = pickle.loads(pickle.dumps(made))
    for module in run.modules:
        assert torch.equal(again.delta(module).dense(), made.delta(module).dense())


def test_the_tags_of_the_shipped_methods() -> None:
    tags = {name: get(name).tags for name in names()}
    assert {n for n, t in tags.items() if t.averages} == {"lawa", "ema", "bema", "rna"}
    assert {n for n, t in tags.items() if t.trains} == {"next", "next-paper", "nowcast"}
    assert {n for n, t in tags.items() if t.needs_accuracy} == {"alpharl"}
    assert {n for n, t in tags.items() if t.stays} == {"none"}


def test_unknown_method_and_parameter() -> None:
    with pytest.raises(InputError, match=r"unknown method 'nxt'; did you mean next\? known: none, factors"):
        get("nxt")
    with pytest.raises(InputError, match=r"unknown method 'secnat'; did you mean secant\? known: none, "):
        get("secnat")
    with pytest.raises(InputError, match=r"method 'window'.*size"):
        get("window", size=3)
    with pytest.raises(InputError, match="unknown method"):
        leap(synthetic.run(synthetic.line), "nxt")


# ---------------------------------------------------------------- a method of somebody else's, sound and broken


@dataclass
class LastStep:
    """The last step between two checkpoints, again; with nothing that it may leave out."""

    name: ClassVar[str] = "last-step"
    reference: ClassVar[str] = "this test"
    summary: ClassVar[str] = "the last step, again"

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        return spacings_in(horizon, spacing) + 1

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        require(self, traj, horizon)
        return CombinationOfCheckpoints(traj, lambda alpha: alpha * self.coefficients(traj, horizon))

    def coefficients(self, traj: Trajectory, horizon: int) -> torch.Tensor:
        c = torch.zeros(len(traj.steps), dtype=torch.float64)
        c[-1], c[-2] = 1.0, -1.0
        return c * horizon / (traj.steps[-1] - traj.steps[-2])


class OfAView(LastStep):
    """Its coefficients are of the last two checkpoints, and of no others."""

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        require(self, traj, horizon)
        recent = traj.at(traj.steps[-2:])
        return CombinationOfCheckpoints(recent, lambda alpha: alpha * self.coefficients(recent, horizon))


class OfItsOwn(LastStep):
    """Its coefficients are of two checkpoints of its own making, at steps of the run's."""

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        require(self, traj, horizon)
        a = {m: traj.factors(traj.steps[-1], m)[0] for m in traj.modules}
        doubled = [{m: (2 * a[m], traj.factors(s, m)[1]) for m in traj.modules} for s in traj.steps[-2:]]
        made = Trajectory.from_factors(traj.steps[-2:], doubled, scaling=1.0)
        return CombinationOfCheckpoints(made, lambda alpha: alpha * self.coefficients(made, horizon))


class BadName(LastStep):
    name = "Last Step"


class NoSummary(LastStep):
    summary = ""


class LooseTags(LastStep):
    tags = {"trains": False}  # noqa: RUF012


class FewerForFar(LastStep):
    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        return max(1, 20 - horizon // spacing)


class WrongShape(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        good = super().fit(traj, horizon, seed=seed)
        return NewDirection({m: LowRank(good.delta(m).right, good.delta(m).left) for m in traj.modules})


class Infinite(LastStep):
    def coefficients(self, traj: Trajectory, horizon: int) -> torch.Tensor:
        return super().coefficients(traj, horizon) / 0.0


class InfiniteWhenUneven(LastStep):
    def coefficients(self, traj: Trajectory, horizon: int) -> torch.Tensor:
        gaps = {b - a for a, b in zip(traj.steps, traj.steps[1:], strict=False)}
        return super().coefficients(traj, horizon) / (0.0 if len(gaps) > 1 else 1.0)


class NearestTwice(LastStep):
    """Richardson's second difference over the checkpoints nearest to T - h and T - 2h, which may be one."""

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        return 2 * spacings_in(horizon, spacing) + 1

    def coefficients(self, traj: Trajectory, horizon: int) -> torch.Tensor:
        end = traj.steps[-1]
        middle, first = (nearest_step(traj, end - k * horizon) for k in (1, 2))
        late, early = (
            (unit(traj, b) - unit(traj, a)) * (1.0 / (b - a)) for a, b in ((middle, end), (first, middle))
        )
        return horizon * (2.0 * late - early)


class InfiniteAcrossAGap(NearestTwice):
    """The same in tensors, which divide by zero in silence."""

    def coefficients(self, traj: Trajectory, horizon: int) -> torch.Tensor:
        end = traj.steps[-1]
        middle, first = (nearest_step(traj, end - k * horizon) for k in (1, 2))
        return (unit(traj, end) - unit(traj, middle)) / torch.tensor(float(middle - first))


class InfiniteWhereStill(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        good = super().fit(traj, horizon, seed=seed)
        size = {m: float(good.delta(m).norm()) for m in traj.modules}
        spoiled = 1.0 if all(size.values()) else float("nan")
        return NewDirection({m: good.delta(m) * (spoiled if size[m] else 1.0) for m in traj.modules})


class MovesWhatStands(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        require(self, traj, horizon)
        ones = {m: [torch.ones(d, 1, dtype=torch.float64) for d in traj.shape(m)[:2]] for m in traj.modules}
        return NewDirection({m: LowRank(left, right) for m, (left, right) in ones.items()})


class Unseeded(LastStep):
    def coefficients(self, traj: Trajectory, horizon: int) -> torch.Tensor:
        noise = torch.rand(1, generator=torch.Generator().manual_seed(id(self) % 2**31), dtype=torch.float64)
        return super().coefficients(traj, horizon) * noise


class GlobalSeed(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return super().fit(traj, horizon)


class Peeks(LastStep):
    """Keeps the run that it was shown first, whatever it is fitted on."""

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        SEEN["run"].factors(synthetic.STEPS[-1], traj.modules[0])
        return super().fit(traj, horizon)


class NoChecks(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        return CombinationOfCheckpoints(traj, lambda alpha: alpha * self.coefficients(traj, horizon))


class Telegraphic(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        if horizon > 100:
            raise InputError("too far")
        return super().fit(traj, horizon)


class OffersTooMuch(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        if horizon > 100:
            raise InputError("last-step needs 9 checkpoints; a horizon of 900 steps would work")
        return super().fit(traj, horizon)


class AnyAlpha(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        return AnyAlphaPrediction(super().fit(traj, horizon))


@dataclass
class AnyAlphaPrediction:
    good: Any

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        return self.good.delta(module, 1.0) * alpha


class NeverStays(LastStep):
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        return NeverStaysPrediction(super().fit(traj, horizon))


@dataclass
class NeverStaysPrediction:
    good: Any

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        return self.good.delta(module, 1.0 + alpha)


class OtherRank(LastStep):
    """Inside the factors, and one row of A more than the adapter has."""

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
        require(self, traj, horizon)

        def rule(module: str, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
            a, b = traj.factors(traj.steps[-1], module)
            return torch.cat([a, a[:1]]), torch.cat([b, b[:, :1]], 1)

        return InsideFactors(traj, rule)


SEEN: dict[str, Trajectory] = {}
BROKEN: list[tuple[str, type[LastStep], str]] = [
    ("says_what_it_is", BadName, "small letters, digits and hyphens, not 'Last Step'"),
    ("says_what_it_is", NoSummary, "its summary must be one line, not ''"),
    ("says_what_it_is", LooseTags, "its tags must be nextrl.extrapolators.Tags"),
    ("says_what_it_is", FewerForFar, "it is 19 for 10 steps, 15 for 50"),
    (
        "moves_each_module_by_a_finite_matrix",
        WrongShape,
        r"delta is \(20, 24\) for a module of shape \(24, 20\)",
    ),
    ("moves_each_module_by_a_finite_matrix", Infinite, "has a NaN or an Inf on an ordinary run"),
    ("repeats_itself_for_one_seed", Unseeded, "two fits with the same seed differ"),
    ("repeats_itself_for_one_seed", GlobalSeed, "changes torch's global random state"),
    ("reads_nothing_later", Peeks, "reads past the trajectory that it is given: step 160 was read"),
    ("says_how_many_checkpoints_it_needs", NoChecks, "accepts a horizon of 1000 steps"),
    ("says_how_many_checkpoints_it_needs", Telegraphic, "says 'too far' to a horizon of 1000 steps"),
    ("says_how_many_checkpoints_it_needs", OffersTooMuch, "refuses a horizon of 900 steps on a sound run"),
    (
        "refuses_a_horizon_below_one",
        NoChecks,
        "accepts a horizon of 0 and should raise InputError; call .*require",
    ),
    ("refuses_a_run_that_does_not_move", NoChecks, "accepts a run that does not move"),
    ("leaves_a_module_that_never_moved", MovesWhatStands, "moves a module that never moved, by"),
    ("leaves_a_module_that_never_moved", InfiniteWhereStill, "spoils the prediction of another one"),
    (
        "refuses_alpha_out_of_range",
        AnyAlpha,
        "accepts alpha nan and should raise InputError; call .*check_alpha",
    ),
    ("stays_where_alpha_is_zero", NeverStays, "at alpha 0, which is to stay"),
    ("takes_uneven_spacing", InfiniteWhenUneven, "has a NaN or an Inf on a run of uneven spacing"),
    ("takes_a_gap", NearestTwice, "raises ZeroDivisionError: float division by zero on a run with a gap"),
    ("takes_a_gap", InfiniteAcrossAGap, "has a NaN or an Inf on a run with a gap .*distinct_steps"),
    ("comes_out_at_the_adapters_rank", OtherRank, r"the leap's A and B are \(\(5, 20\), \(24, 5\)\)"),
]


def test_a_sound_method_passes_whether_registered_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    testing.check_extrapolator(LastStep)
    assert not hasattr(LastStep, "tags")
    monkeypatch.setattr(METHODS, "_entries", {**METHODS._entries})
    register(type("Registered", (LastStep,), {"name": "last-step"}))
    testing.check_extrapolator("last-step")
    assert get("last-step").tags == Tags()


@pytest.mark.parametrize("kind", [OfAView, OfItsOwn])
def test_coefficients_may_be_of_a_trajectory_of_the_methods_own(kind: type[LastStep]) -> None:
    testing.check_extrapolator(kind)
    traj = synthetic.run(synthetic.walk(1.0), (0, *synthetic.STEPS))
    plain, own = (backtest(traj, 20, [method()]).methods["last-step"] for method in (LastStep, kind))
    assert own.outcomes.keys() == plain.outcomes.keys()
    for t, outcome in own.outcomes.items():
        assert outcome.cosine == pytest.approx(plain.outcomes[t].cosine, abs=1e-9)
        assert outcome.skill == pytest.approx(plain.outcomes[t].skill, abs=1e-9)


@pytest.mark.parametrize(
    ("check", "broken", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", None)
)
def test_each_check_sees_what_is_broken(
    check: str, broken: type[LastStep], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = testing.seal_after(synthetic.run(synthetic.line), testing.AT)
    monkeypatch.setitem(SEEN, "run", sealed)
    with pytest.raises(AssertionError, match=words) as caught:
        testing.CHECKS[check](testing.maker(broken))
    assert "\n" not in str(caught.value)
    if check != "reads_nothing_later":
        with pytest.raises((AssertionError, RuntimeError)):
            testing.check_extrapolator(broken)


@pytest.mark.parametrize("broken", [NearestTwice, InfiniteAcrossAGap])
def test_two_points_at_one_checkpoint_show_across_a_gap_only(broken: type[LastStep]) -> None:
    for name, check in testing.CHECKS.items():
        if name != "takes_a_gap":
            check(testing.maker(broken))


def test_a_method_may_refuse_a_gap() -> None:
    class Refuses(LastStep):
        def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
            if 50 in traj.steps and 60 not in traj.steps and 70 not in traj.steps:
                raise InputError("last-step: the checkpoints lie too far apart")
            return super().fit(traj, horizon, seed=seed)

    testing.check_extrapolator(Refuses)


def test_an_exception_that_is_no_refusal_is_told_in_one_line() -> None:
    class Raises(LastStep):
        def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Any:
            return [][horizon]

    with pytest.raises(AssertionError, match=r"^last-step: raises IndexError: list index") as caught:
        testing.check_extrapolator(Raises)
    assert isinstance(caught.value.__cause__, IndexError)


def test_every_check_is_shown_to_fail() -> None:
    assert {check for check, _, _ in BROKEN} == set(testing.CHECKS)


def test_the_checks_need_no_test_runner() -> None:
    code = (
        "import sys, nextrl.testing; nextrl.testing.check_extrapolator('secant'); "
        "sys.exit(sum(m in sys.modules for m in ('pytest', 'hypothesis')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_registering_refuses_what_is_no_method() -> None:
    with pytest.raises(ValueError, match="Nothing lacks name, reference, summary, min_checkpoints, fit"):
        register(type("Nothing", (), {}))
    with pytest.raises(ValueError, match="tags must be"):
        register(LooseTags)
    with pytest.raises(ValueError, match="'secant' is taken by nextrl"):
        register(type("Mine", (LastStep,), {"name": "secant"}))
