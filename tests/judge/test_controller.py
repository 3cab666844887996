"""The decisions of `auto`, each rule by itself and in short synthetic runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from nextrl.errors import InputError
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.few_samples import t_of_normal
from nextrl.judge.fresh_batch import BatchGain, Estimate
from nextrl.judge.rounding import tell_apart
from nextrl.judge.window import Window

NAN = math.nan


def seen(
    z: float, nats: float = 0.01, groups: int = 16, degenerate: str = "", left_out: int = 0
) -> BatchGain:
    """A batch that says `z` standard errors of a candidate that goes `nats` far."""
    gain = Estimate(z * 0.01, 0.01)
    return BatchGain(
        gain=gain,
        plain=gain,
        slope=gain,
        completions=128,
        groups=groups,
        left_out=left_out,
        informative=128,
        informative_groups=groups,
        ess=128.0,
        mean_weight=1.0,
        nats_k2=nats,
        nats_k3=nats,
        degenerate=degenerate,
    )


def window(step: int = 11, rewards: tuple[float, ...] = (0.5, 0.52, 0.49, 0.51, 0.5, 0.52)) -> Window:
    return Window(step, rewards, 1e-3)


FALLEN = (0.5, 0.52, 0.49, 0.51, 0.5, 0.49, 0.51, 0.5, 0.04, 0.05)
FLAT = (0.5, 0.52, 0.49, 0.51, 0.5, 0.52, 0.49, 0.51, 0.5, 0.51)
SAGGING = (0.5, 0.55, 0.5, 0.52, 0.5, 0.48, 0.46, 0.48, 0.45, 0.44)


class Looks:
    """What the batch says by alpha; which alphas were asked about."""

    def __init__(self, **by_alpha: BatchGain) -> None:
        self.by_alpha = {float(name[1:].replace("m", "-")): value for name, value in by_alpha.items()}
        self.asked: list[float] = []

    def __call__(self, alpha: float) -> BatchGain | None:
        self.asked.append(alpha)
        return self.by_alpha.get(alpha, seen(0.0))


def settled(**dials: Any) -> Controller:
    controller = Controller(ControllerConfig(**dials))
    assert controller.step(1, 0.004) is None
    return controller


# -------------------------------------------------------------------------------------------------- single steps


@pytest.mark.parametrize("far", [3e-4, 1e-3, 0.1, 10.0, 100.0, 1e4])
def test_the_rate_is_found_within_a_few_steps_whatever_it_was(far: float) -> None:
    """Divergence is quadratic in the rate: from any start, where a step moves the policy by `goal` or so."""
    controller, rate = Controller(), far
    for step in range(1, 6):
        if controller.checks(step) and (decision := controller.step(step, 0.004 * rate**2)) is not None:
            moved = 0.004 * rate**2
            assert decision.back == ("step" if moved > 1.0 else "run" if moved > 0.3 else "")
            rate *= decision.rate_factor
    assert 0.4 < rate < 7.0
    if far < 0.4:
        assert rate == pytest.approx(1.0)
    assert controller.step(6, 0.001) is None


def test_a_step_to_nan_lowers_a_rate_that_has_not_held() -> None:
    first = Controller().broken(1, again=False)
    assert (first.back, first.alpha, first.rate_factor) == ("step", -1.0, 0.01)
    held = settled()
    one, two = held.broken(5, again=False), held.broken(6, again=True)
    assert [(d.back, d.alpha, d.rate_factor) for d in (one, two)] == [
        ("step", -1.0, 1.0),
        ("step", -1.0, 0.5),
    ]
    assert [d.divergence for d in (first, one, two)] == [None] * 3
    assert held.checks(7)  # the first step at the new rate
    assert held.state()["hot"] == -2.0
    bold = Controller()
    assert bold.step(1, 0.1) is None
    assert bold.broken(2, again=False).back == "run"


@pytest.mark.parametrize("left", [0, 10, 38])
def test_a_rate_that_is_first_seen_in_the_cooldown_is_left_alone(left: int) -> None:
    """A run taken up there without its memory: a short step is the cooldown's, and was a rate too low."""
    controller = Controller()
    for step in (200 - left, min(200, 201 - left)):
        assert controller.step(step, 1e-5, left=200 - step) is None
    early = Controller().step(150, 1e-5, left=50)
    assert early is not None
    assert early.rate_factor > 2.0


def test_a_rate_near_the_goal_is_left_alone() -> None:
    for moved in (0.0009, 0.004, 0.1):
        assert Controller().step(1, moved) is None


def test_a_warm_up_is_judged_by_the_rate_that_it_is_heading_for() -> None:
    # A tenth of the rate moves a hundredth as far: the full rate is fine, and nothing is raised.
    assert Controller().step(2, 0.004 / 100, share=0.1) is None
    low = Controller().step(2, 0.004 / 100 / 400, share=0.1)
    assert low is not None
    assert low.rate_factor == pytest.approx(20.0)
    high = Controller().step(2, 0.02, share=0.1)
    assert high is not None
    assert (high.back, high.rate_factor) == ("", pytest.approx(math.sqrt(0.004 / 2.0)))
    assert Controller().step(1, 0.0, share=0.0) is None


def test_a_bold_warm_up_is_looked_at_step_by_step_and_tried_at_its_end() -> None:
    controller = Controller()
    for step, share in enumerate((0.1, 0.2, 0.3, 0.4), 1):
        assert controller.checks(step)
        assert controller.step(step, 0.5 * share**2, share) is None
        other = Controller()
        other.restore(controller.state())
        assert not other.alarmed(window(rewards=LOST))
        assert other.window(window(rewards=LOST), Looks(am1=seen(0.0, nats=0.05))).back == ""
        assert controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05))).back == ""
    early = Controller()
    early.restore(controller.state())
    taken_back = early.step(5, 0.16, 0.5)
    assert taken_back is not None
    assert taken_back.back == "step"
    assert taken_back.rate_factor == pytest.approx(math.sqrt(0.004 / 0.64))
    shrunk = Controller()
    shrunk.restore(controller.state())
    assert shrunk.step(10, 0.01, 1.0) is None  # Adam's later steps are shorter
    assert shrunk.settled
    assert not shrunk.may_begin_again
    assert controller.step(10, 0.1, 1.0) is None
    assert controller.may_begin_again
    backs = [controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05))).back for _ in range(3)]
    assert backs == ["", "", "run"]


def warmed_up(windows: Sequence[tuple[float, ...]], moved: float = 0.2) -> Controller:
    """A controller at the last step of a bold warm-up in which so many windows ended."""
    controller = Controller()
    for n, rewards in enumerate(windows, 1):
        share = 0.8 * n / len(windows)
        assert controller.step(10 * n, moved * share**2, share) is None
        controller.window(window(rewards=rewards), Looks(am1=seen(0.0, nats=0.05)))
    return controller


def test_a_probation_after_a_warm_up_compares_with_how_the_run_began() -> None:
    """What was learnt in the warm-up is a rise, and a reward that stays there is no reason to begin again."""
    high = tuple(reward + 0.5 for reward in STILL)
    for first, back in ((RISING, ""), (high, "run")):
        controller = warmed_up([first, high, high])
        assert controller.step(31, 0.1) is None
        assert controller.may_begin_again
        backs = [controller.window(window(rewards=high), Looks()).back for _ in range(3)]
        assert backs == ["", "", back] if back else ["", "", ""]
        assert not controller.may_begin_again
    lost = warmed_up([high, high])
    assert lost.step(31, 0.1) is None
    assert lost.alarmed(window(rewards=STILL))  # where the run stands is far below where it began
    assert lost.window(window(rewards=STILL), Looks()).back == "run"


def test_the_first_rewards_of_a_warm_up_count_once() -> None:
    controller = Controller()
    for step, rewards in enumerate(((0.1, 0.2, 0.3), (0.3, NAN, 0.4, 0.5), (0.5, 0.6, 0.7)), 1):
        assert controller.step(step, 0.002, 0.1) is None
        controller.window(window(rewards=rewards), Looks())
    assert controller.state()["probation"]["rewards"] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_one_short_step_in_a_bold_warm_up_decides_nothing() -> None:
    """A step may be short since rewards hardly differ, or since all is lost: the rate is not too low for that."""
    for moved, hidden in ((0.003, 0.0), (1e-6, 0.0), (BF16, BF16), (0.0, 0.0), (NAN, 0.0)):
        controller = warmed_up([STILL])
        assert controller.step(40, moved, 0.92, hidden) is None
        assert not controller.settled
        assert controller.may_begin_again
        assert controller.step(41, 0.1, 1.0) is None
        assert controller.settled
        assert controller.may_begin_again
    controller = warmed_up([STILL])
    assert controller.step(40, 1e-6, 1.0) is None
    assert controller.settled
    assert not controller.may_begin_again


def test_the_first_steps_of_a_probation_are_checked_whenever_it_begins() -> None:
    assert [step for step in range(1, 20) if _on_probation(1).checks(step)] == [1, 2, 4, 8, 16]
    assert [step for step in range(101, 120) if _on_probation(101).checks(step)] == [101, 102, 104, 108, 116]


def _on_probation(step: int) -> Controller:
    controller = Controller()
    assert controller.step(step, 0.1) is None
    assert controller.may_begin_again
    return controller


def test_only_the_first_step_of_a_run_may_go_as_far_as_the_ruinous() -> None:
    """A step at the end of a long warm-up is none of Adam's first ones."""
    for windows, back in (([], ""), ([STILL], "step")):
        decision = warmed_up(windows).step(40, 0.3, 0.97)
        assert ("" if decision is None else decision.back) == back
    cut = warmed_up([STILL])
    cut.step(40, 0.3, 0.97)
    assert not cut.may_begin_again
    assert cut.state()["hot"] == 0.0


def test_a_bold_warm_up_is_suspected_as_soon_as_a_bold_first_step() -> None:
    controller = Controller()
    controller.step(1, 0.032 / 4, 0.5)
    assert harms(controller, 1.5, windows=2) == [2]


@pytest.mark.parametrize("dials", [{"ruinous": math.inf}, {"reckless": math.inf}, {"reckless": 1e9}])
def test_a_policy_without_probabilities_is_taken_back_whatever_the_dials(dials: dict[str, float]) -> None:
    controller = Controller(ControllerConfig(**dials))
    decision = controller.step(1, math.inf)
    assert decision is not None
    assert (decision.back, decision.rate_factor) == ("step", 0.01)


def test_the_noise_of_half_precision_in_a_warm_up_cuts_no_rate() -> None:
    controller = Controller()
    assert controller.step(2, 1.3e-4, share=0.01) is None  # 1.3 nats at the full rate, if it were no noise
    assert controller.checks(3)
    decision = Controller().step(2, 0.149, share=1e-4)
    assert decision is not None
    assert decision.rate_factor == 0.01  # never to nothing


BF16 = 3e-5  # nats per token that passes in bfloat16 hide


@pytest.mark.parametrize("far", [5e-4, 5e-3, 0.05, 0.3, 1.0])
def test_half_precision_hides_no_rate_that_is_too_low(far: float) -> None:
    """Passes in bfloat16 add up to twice the nats of a good step; the rate ends where float32 puts it."""
    for rounding in (0.0, 8e-4, 0.004, 0.01):
        controller, rate, draws = Controller(), far, Random(0)

        def read(alpha: float) -> float:
            return 0.004 * (rate * alpha) ** 2 + rounding * math.exp(draws.gauss(0.0, 0.2))  # noqa: B023

        for step in range(1, 9):
            if controller.settled:
                break
            moved = tell_apart(read, BF16, read(1.0))
            decision = controller.step(step, moved.nats, hidden=moved.hidden, rounding=moved.rounding)
            if decision is not None:
                rate *= decision.rate_factor
        seen_at_all = 0.004 * (4096.0 * far) ** 2 > 8.0 * rounding
        assert (0.25 if seen_at_all else far) <= rate < 1.6
        if seen_at_all and far < 0.1 and rounding in (8e-4, 0.004):
            assert controller.state()["rounding"] == pytest.approx(rounding, rel=0.6)


def test_what_no_multiple_of_a_step_shows_is_raised_as_far_as_it_allows() -> None:
    controller = Controller()
    decision = controller.step(1, BF16, hidden=BF16)
    assert decision is not None
    assert decision.rate_factor == pytest.approx(math.sqrt(0.004 / BF16))
    assert "half precision hides" in decision.reason
    assert not controller.settled
    warming = Controller()
    for share in (0.01, 0.02, 0.03):  # of a rate that may be right
        assert warming.step(1, BF16, share, hidden=BF16) is None
        assert not warming.settled


def test_what_is_never_seen_is_not_raised_for_ever() -> None:
    """Three times by a hundred at most: a pass that does not see what is trained would send the rate to infinity."""
    controller, rate = Controller(), 1e-6
    for step in range(1, 20):
        if controller.checks(step) and (decision := controller.step(step, 2e-12, hidden=2e-12)) is not None:
            rate *= decision.rate_factor
    assert rate == pytest.approx(1.0)
    assert controller.settled


def test_the_least_rounding_that_was_seen_counts() -> None:
    controller = Controller()
    for seen_, kept in ((0.004, 0.004), (0.009, 0.004), (None, 0.004), (0.003, 0.003)):
        controller.step(1, 4e-5, rounding=seen_)
        assert controller.state()["rounding"] == kept


def test_what_rounding_adds_is_no_movement_of_a_window() -> None:
    """In bfloat16 a window that hardly moved the policy shows .004 nats: its reward's fall is not its fault."""
    harm = []
    for rounding in (0.0, 0.004):
        controller = settled()
        controller.step(2, 0.004, rounding=rounding)
        for step in (10, 20, 30):
            decision = controller.window(window(step=step), Looks(am1=seen(1.5, nats=0.0042)))
        harm.append(controller.harm)
        assert decision.divergence == pytest.approx(0.0042 - rounding)
        other = Controller()
        other.restore(controller.state())
        assert other.state() == controller.state()
    assert harm[0] > 0.0
    assert harm[1] == 0.0


def test_a_raise_is_bounded_and_rounding_is_no_movement() -> None:
    assert Controller().step(1, 1e-13) is None
    decision = Controller().step(1, 1e-12)
    assert decision is not None
    assert decision.rate_factor == 5000.0


def test_what_cannot_be_measured_once_unsettles_nothing() -> None:
    controller = settled()
    assert controller.step(2, NAN) is None
    assert controller.settled


def test_a_step_without_a_gradient_says_nothing_and_the_next_one_is_asked() -> None:
    controller = Controller()
    assert controller.step(1, 0.0) is None
    assert controller.step(2, NAN) is None
    assert controller.checks(3)
    decision = controller.step(3, 1e-8)
    assert decision is not None
    assert decision.rate_factor == pytest.approx(math.sqrt(0.004 / 1e-8))


def test_what_can_never_be_measured_is_not_asked_for_ever() -> None:
    controller = Controller()
    for step in range(1, 6):
        if controller.checks(step):
            assert controller.step(step, NAN) is None
    assert [step for step in range(6, 40) if controller.checks(step)] == [8, 16, 32]


def test_checks_thin_out_and_begin_again_after_a_raise() -> None:
    controller = settled()
    assert [step for step in range(1, 40) if controller.checks(step)] == [1, 2, 4, 8, 16, 32]
    controller.window(window(step=9), Looks(am1=seen(-4.0), a1=seen(6.0)))
    assert [step for step in range(10, 40) if controller.checks(step)] == [10, 11, 13, 17, 25]


def test_after_a_raise_a_step_that_still_hardly_moves_is_raised_again() -> None:
    """Half-precision noise can hide how little a step moves; what a first step showed is else believed."""
    controller = Controller()
    assert controller.step(1, 5e-5) is not None
    assert controller.step(2, 5e-5) is not None
    again = Controller()
    assert again.step(1, 5e-5) is not None
    assert again.step(2, 4e-4) is None


def test_a_late_reckless_step_is_taken_back_and_only_halves_the_rate() -> None:
    decision = settled().step(8, 3.0)
    assert decision is not None
    assert (decision.back, decision.alpha, decision.rate_factor) == ("step", -1.0, 0.5)
    early = Controller().step(1, math.inf)
    assert early is not None
    assert early.rate_factor == 0.01


def test_a_first_step_may_go_further_than_any_later_one() -> None:
    for moved, back in ((0.9, ""), (1.1, "step")):
        decision = Controller().step(1, moved)
        assert ("" if decision is None else decision.back) == back
    controller = Controller()
    controller.step(1, 0.9)
    assert controller.step(2, 0.29) is None  # Adam's first steps are its longest
    second = controller.step(2, 0.31)
    assert second is not None
    # What the first one did is not worth keeping either.
    assert (second.back, second.rate_factor) == ("run", pytest.approx(math.sqrt(0.004 / 0.9)))
    assert not controller.may_begin_again
    third = controller.step(3, 0.16)
    assert third is not None
    assert (third.back, third.rate_factor) == ("step", 0.5)
    later = Controller()
    later.step(1, 0.9)
    later.window(window(rewards=STILL[:4]), Looks(am1=seen(0.0, nats=0.05)))
    fourth = later.step(4, 0.16)
    assert fourth is not None
    assert fourth.back == "step"  # one burst among many
    short = Controller()
    short.step(1, 0.9, left=59)
    assert short.step(2, 0.31) == second
    raised = Controller()
    raised.step(1, 1e-6)
    after = raised.step(2, 0.2)  # the rate is one that `auto` set
    assert after is not None
    assert after.back == "step"
    wide = Controller(ControllerConfig(reckless=5.0))
    assert wide.step(1, 4.0) is None


# ------------------------------------------------------------------------------------------------------ windows


def test_a_window_whose_start_was_better_is_undone() -> None:
    looks = Looks(am1=seen(4.5))
    decision = settled().window(window(), looks)
    assert (decision.back, decision.alpha, decision.rate_factor) == ("window", -1.0, pytest.approx(1 / 3))
    assert looks.asked == [-1.0]
    assert decision.completions == 0
    assert settled().window(window(), Looks(am1=seen(3.0))).back == ""


def test_few_prompts_are_believed_less() -> None:
    """4.5 standard errors, themselves estimated from so few prompts, are 1 in 5,000 for 16 prompts, 1 in 100 for 4."""
    assert settled().window(window(), Looks(am1=seen(4.5, groups=16))).back == "window"
    assert settled().window(window(), Looks(am1=seen(4.5, groups=4))).back == ""
    raised = [
        settled().window(window(), Looks(am1=seen(-4.0, groups=n), a1=seen(4.5, groups=n))).rate_factor
        for n in (16, 4)
    ]
    assert raised[0] > 1.0 == raised[1]


def test_a_window_that_hardly_moved_the_policy_is_not_undone() -> None:
    assert settled().window(window(), Looks(am1=seen(9.0, nats=1e-5))).back == ""


def test_where_weights_degenerate_an_undo_needs_a_fallen_reward_too() -> None:
    back = seen(4.5, nats=0.1, degenerate="the weights have degenerated")
    assert settled().window(window(), Looks(am1=back)).back == ""
    assert settled().window(window(rewards=FALLEN), Looks(am1=back)).back == "window"


def test_a_collapsed_policy_is_undone_though_its_batch_says_nothing() -> None:
    silent = seen(0.0, nats=5.0, groups=0)
    assert settled().window(window(rewards=FALLEN), Looks(am1=silent)).back == "window"
    assert settled().window(window(), Looks(am1=silent)).back == ""
    assert "says nothing of this window" in settled().window(window(), Looks(am1=silent)).reason
    near = seen(0.0, nats=0.01, groups=0)
    assert settled().window(window(rewards=FALLEN), Looks(am1=near)).back == ""


def test_a_fallen_reward_undoes_no_window_that_paid_by_its_batch() -> None:
    """Data may have got harder. A batch that leans neither way is no excuse: of a policy far off it knows little."""
    for z, back in ((-1.5, ""), (-0.5, "window"), (0.5, "window")):
        for degenerate in ("", "the weights have degenerated"):
            looks = Looks(am1=seen(z, nats=0.5, degenerate=degenerate))
            assert settled().window(window(rewards=FALLEN), looks).back == back


def test_a_fallen_reward_ends_a_window_before_its_time() -> None:
    controller = Controller()
    assert controller.alarmed(window(rewards=FALLEN))
    assert not controller.alarmed(window())
    assert not controller.alarmed(window(rewards=(0.9, 0.1)))  # too few to know the noise
    shifted = tuple(-100.0 + 0.05 * r for r in FALLEN)
    assert controller.alarmed(window(rewards=shifted))  # whatever the scale


def test_the_rate_rises_where_going_on_would_gain_for_sure() -> None:
    decision = settled().window(
        window(), Looks(am1=seen(-4.0), a1=seen(4.0), a3=seen(8.0, 0.02), a7=seen(9.0, 1.0))
    )
    assert decision.rate_factor == pytest.approx(2.0)  # sqrt(1 + 3); seven windows go too far
    assert decision.alpha == 0.0
    unsure = settled().window(window(), Looks(am1=seen(-4.0), a1=seen(3.2), a3=seen(3.2), a7=seen(3.2)))
    assert unsure.rate_factor == 1.0
    risky = settled().window(window(), Looks(am1=seen(-4.0), a1=seen(4.0, nats=0.15), a3=seen(4.0, nats=0.5)))
    assert risky.rate_factor == 1.0  # more nats, more evidence


def test_what_several_windows_agree_on_counts_as_one() -> None:
    controller = settled()
    factors = [controller.window(window(), Looks(am1=seen(-1.4), a1=seen(1.6))).rate_factor for _ in range(4)]
    assert factors == [1.0, 1.0, 1.0, pytest.approx(math.sqrt(2.0))]
    again = settled()
    assert all(
        again.window(window(), Looks(am1=seen(-1.4), a1=seen(1.0))).rate_factor == 1.0 for _ in range(8)
    )


def test_windows_are_short_after_a_change_of_the_rate() -> None:
    controller, lengths = settled(), []
    for z in (0.0, 0.0, 0.0, 4.5, 0.0, 0.0):
        lengths.append(controller.length)
        controller.window(window(), Looks(am1=seen(z)))
    assert lengths == [3, 5, 10, 10, 3, 5]
    for _ in range(4):
        controller.window(window(), Looks(am1=seen(0.0)))
    assert controller.length == 20  # where nothing has changed for long, half as many looks
    assert Controller(ControllerConfig(every=1)).length == 1


def test_a_window_that_earned_nothing_is_not_looked_ahead_of() -> None:
    looks = Looks(am1=seen(-0.9), a1=seen(9.0))
    settled().window(window(), looks)
    assert looks.asked == [-1.0]


def test_a_candidate_that_rules_out_what_was_sampled_is_no_gain() -> None:
    looks = Looks(am1=seen(-4.0), a1=seen(9.0, left_out=1))
    assert settled().window(window(), looks).rate_factor == 1.0


def harms(controller: Controller, z: float, windows: int = 40, nats: float = 0.05, **how: Any) -> list[int]:
    """The windows, from 1, after which the rate was cut, where each is `z` standard errors worse than its start."""
    found = []
    for n in range(1, windows + 1):
        decision = controller.window(window(rewards=FLAT), Looks(am1=seen(z, nats, **how)))
        if decision.rate_factor < 1.0:
            assert (decision.rate_factor, decision.back) == (0.6, "")
            found.append(n)
    return found


def test_small_harms_of_many_windows_add_up() -> None:
    assert harms(settled(), 1.5, windows=12) == [6, 12]  # and begin anew at the new rate
    assert harms(settled(), 0.3) == []  # as much is noise
    assert harms(settled(), 1.5, nats=1e-4) == []  # a window that went nowhere harms nobody
    assert harms(settled(), 1.5, windows=9, groups=2) == []  # two prompts say little
    healed, seen_so_far = settled(), [1.5, 1.5, 1.5, -4.0, 1.5, 1.5, 1.5]
    assert all(
        healed.window(window(rewards=FLAT), Looks(am1=seen(z))).rate_factor == 1.0 for z in seen_so_far
    )


def cut_by_chance(random: Random, runs: int, windows: int, nats: float, hot: float = 0.0) -> int:
    """How many of some runs, in which nothing gains or harms, have their rate cut."""

    def cut() -> bool:
        controller = settled()
        controller.restore({**controller.state(), "hot": hot})
        for _ in range(windows):
            rewards = tuple(random.gauss(0.2, 0.03) for _ in range(10))
            looks = Looks(am1=seen(random.gauss(0.0, 1.0), nats=nats))
            if controller.window(window(rewards=rewards), looks).rate_factor < 1.0:
                return True
        return False

    return sum(cut() for _ in range(runs))


def test_chance_alone_hardly_ever_adds_up() -> None:
    """Of 300 runs of 25 windows in which nothing gains or harms, at most one in twenty is cut."""
    assert 0 < cut_by_chance(Random(0), 300, 25, nats=0.5) <= 15


@pytest.mark.parametrize("succeeds", [0.98, 0.02])
def test_single_completions_do_not_add_up_where_the_batch_is_mute(succeeds: float) -> None:
    """Of 1000 windows of 10 steps with 16 completions in which nothing changes, at most 2 in 100 cut the rate."""
    random, cut = Random(0), 0
    controller = settled()
    for _ in range(1000):
        rewards = tuple(sum(random.random() < succeeds for _ in range(16)) / 16 for _ in range(11))
        looks = Looks(am1=seen(0.0, nats=0.05, groups=0))
        cut += controller.window(window(rewards=rewards), looks).rate_factor < 1.0
    assert cut <= 20


def test_after_a_bold_first_step_chance_alone_often_adds_up() -> None:
    """What docs/auto.md says of it: so much is the price of believing sooner that a bold rate is too high."""
    random = Random(0)
    shares = [cut_by_chance(random, 200, 14, nats=0.05, hot=hot) / 200 for hot in (0.0, 2.0, 3.0)]
    assert shares[0] < 0.1
    assert 0.15 < shares[1] < 0.5
    assert 0.5 < shares[2] < 0.9


def test_chance_alone_hardly_ever_raises_the_rate() -> None:
    """Of 300 runs of 30 windows in which nothing gains or harms, at most one in twenty is raised."""
    random, raised = Random(0), 0
    for _ in range(300):
        controller = settled()
        for _ in range(30):
            z = random.gauss(0.0, 1.0)
            looks = Looks(am1=seen(z), a1=seen(-z))
            if controller.window(window(rewards=FLAT), looks).rate_factor > 1.0:
                raised += 1
                break
    assert 0 < raised <= 15


def by_chance(random: Random, runs: int, windows: int, steps: int | None) -> dict[str, float]:
    """Shares of runs in which nothing gains or harms that have their rate cut, a window undone, their rate raised."""
    shares = {"cut": 0.0, "undone": 0.0, "raised": 0.0}
    for _ in range(runs):
        controller, found = settled(), set()
        for _ in range(windows):
            rewards = tuple(random.gauss(0.2, 0.03) for _ in range(20))
            z = t_of_normal(random.gauss(0.0, 1.0), 15)  # as sure as a normal variable is
            ahead = {"a1": seen(-z), "a3": seen(-z, 0.16), "a7": seen(-z, 0.64)}
            looks = Looks(am1=seen(z), **ahead)
            decision = controller.window(Window(11, rewards, 1e-3, steps=steps), looks)
            if decision.rate_factor != 1.0:
                found.add("undone" if decision.back else "cut" if decision.rate_factor < 1.0 else "raised")
        for what in found:
            shares[what] += 1 / runs
    return shares


def test_in_a_long_run_chance_has_no_more_say_than_in_a_short_one() -> None:
    """Of 50 runs of 200 windows; docs/auto-details.md has the table."""
    assert max(by_chance(Random(0), 50, 200, steps=3940).values()) <= 0.2
    assert by_chance(Random(0), 50, 200, steps=None)["cut"] >= 0.3


def test_dials_are_as_they_stand_up_to_thirty_windows() -> None:
    dials = ControllerConfig()
    assert dials.over(None) == dials.over(1) == dials.over(540) == dials
    long = dials.over(20_000 - 60)  # a thousand windows of 20 steps
    assert (long.harm, long.undo, long.sure) == pytest.approx((7.51, 4.23, 4.0), abs=0.01)
    never = ControllerConfig(harm=math.inf, undo=math.inf, sure=math.inf)
    assert never.over(20_000) == never


def test_windows_that_agree_raise_the_rate_together_unless_one_speaks_against_it() -> None:
    def factors(*backs: float) -> list[float]:
        controller = settled()
        return [controller.window(window(), Looks(am1=seen(z), a1=seen(-z))).rate_factor for z in backs]

    assert factors(-1.9, -1.9, -1.9) == [1.0, 1.0, pytest.approx(2**0.5)]
    assert factors(-1.9, 0.9, -1.9, -1.9, -1.9) == [1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors(-1.9, 0.9, -1.9, -1.9, -1.9, -1.9)[-1] == pytest.approx(2**0.5)


def test_a_sagging_reward_speaks_with_half_a_voice() -> None:
    controller = settled()
    assert 1.5 < window(rewards=SAGGING).fall < 4.0
    factors = [
        controller.window(window(rewards=SAGGING), Looks(am1=seen(1.0, nats=0.05))).rate_factor
        for _ in range(4)
    ]
    assert factors == [1.0, 1.0, 0.6, 1.0]
    silent = settled()
    found = [
        silent.window(window(rewards=SAGGING), Looks(am1=seen(0.0, nats=0.05, groups=0))).rate_factor
        for _ in range(3)
    ]
    assert found == [1.0, 0.6, 1.0]  # where no prompt of the batch informs, the reward is all there is


RISING = (0.26, 0.24, 0.27, 0.28, 0.27, 0.31, 0.3, 0.34, 0.33, 0.37)
STILL = (0.26, 0.24, 0.27, 0.25, 0.24, 0.26, 0.23, 0.25, 0.26, 0.25)


def probation(rewards: Sequence[tuple[float, ...]], moved: float = 0.032, **how: Any) -> list[str]:
    """What is taken back after each window of a run whose first step moved the policy so far."""
    controller = Controller()
    assert controller.step(1, moved, **how) is None
    return [controller.window(window(rewards=r), Looks(am1=seen(0.0, nats=0.05))).back for r in rewards]


def test_a_bold_start_that_does_not_rise_begins_again() -> None:
    assert probation([STILL, STILL, STILL, STILL]) == ["", "", "run", ""]
    assert probation([STILL[:3], STILL[:5], STILL, STILL]) == ["", "", "", "run"]
    assert probation([STILL, STILL, RISING]) == ["", "", ""]
    assert probation([STILL, RISING, STILL]) == ["", "", "run"]  # and fell again
    assert probation([STILL] * 3, moved=0.015) == [""] * 3  # not bold
    assert probation([STILL] * 3, moved=0.0008, share=0.2) == [""] * 3  # in a warm-up nothing can have risen
    assert probation([STILL] * 3, share=0.99) == [
        "",
        "",
        "run",
    ]  # a decay has begun, since step 1 had no gradient
    assert probation([STILL] * 3, left=59) == [""] * 3  # too short a run to begin again
    assert probation([STILL] * 3, left=60) == ["", "", "run"]


def test_a_goal_beyond_bold_is_nothing_to_be_on_probation_for() -> None:
    for moved, tried in ((0.04, False), (0.06, True)):
        controller = Controller(ControllerConfig(goal=0.05, reckless=1.0))
        controller.step(1, moved)
        assert controller.may_begin_again == tried


def test_a_probation_waits_for_rewards_that_were_measured() -> None:
    shared = [(reward, NAN, NAN, after) for reward, after in itertools.pairwise(STILL * 3)]
    # Each window begins with the reward that the one before it ended with.
    assert probation(shared).index("run") == 23
    # What was not measured at a window's end is not measured at the beginning of the next one either.
    gaps = [(*STILL[:3], NAN)] * 9
    assert probation(gaps).index("run") == 8


def test_rewards_count_where_no_rollouts_were_there_to_look_at() -> None:
    controller = Controller()
    controller.step(1, 0.032)
    assert [controller.window(window(rewards=STILL), lambda alpha: None).back for _ in range(3)] == [
        "",
        "",
        "run",
    ]


def test_a_run_that_begins_again_does_so_at_goal_whatever_was_cut_before() -> None:
    controller = Controller()
    controller.step(1, 0.032)
    cut = controller.window(window(rewards=STILL), Looks(am1=seen(2.5, nats=0.05)))
    assert (cut.rate_factor, cut.back) == (0.6, "")
    controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    again = controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    assert again.back == "run"
    assert cut.rate_factor * again.rate_factor == pytest.approx(0.6 * 0.5)  # half at most
    controller = Controller()
    controller.step(1, 0.128)
    controller.window(window(rewards=STILL), Looks(am1=seen(2.5, nats=0.05)))
    controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    again = controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    assert 0.6 * again.rate_factor == pytest.approx(math.sqrt(0.004 / 0.128))


LOST = (0.26, 0.28, 0.05, 0.02, 0.03, 0.02)


def test_a_probation_ends_early_where_all_is_lost() -> None:
    controller = Controller()
    assert not controller.alarmed(window(rewards=LOST))  # nothing is known of the first step yet
    controller.step(1, 0.5)
    assert not controller.alarmed(window(rewards=LOST[:5]))
    assert not controller.alarmed(window(rewards=STILL))
    assert window(rewards=LOST).fall < ControllerConfig().alarm
    assert controller.alarmed(window(rewards=LOST))
    again = controller.window(window(rewards=LOST), Looks(am1=seen(0.0, nats=0.05)))
    assert (again.back, again.rate_factor) == ("run", pytest.approx(math.sqrt(0.004 / 0.5)))
    assert not controller.alarmed(window(rewards=LOST))
    assert probation([LOST[:4], LOST[3:]]) == ["", "run"]  # over two windows


def test_what_steps_cut_from_the_rate_is_not_cut_again() -> None:
    controller = Controller()
    controller.step(1, 0.256)
    controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    for step in (16, 32):
        decision = controller.step(step, 0.2)
        assert decision is not None
        assert (decision.back, decision.rate_factor) == ("step", 0.5)  # a burst among many steps
    controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    again = controller.window(window(rewards=STILL), Looks(am1=seen(0.0, nats=0.05)))
    assert (again.back, again.rate_factor) == ("run", 0.5)  # sqrt(.004 / .256) is an eighth


def test_the_beginning_is_remembered_as_long_as_the_probation_lasts() -> None:
    controller = Controller()
    assert controller.may_begin_again  # who knows
    controller.step(1, 0.032)
    for _ in range(2):
        controller.window(window(rewards=STILL), Looks())
    assert controller.may_begin_again
    resumed = Controller()
    resumed.restore(json.loads(json.dumps(controller.state())))
    assert [c.window(window(rewards=STILL), Looks()).back for c in (controller, resumed)] == ["run", "run"]
    assert not controller.may_begin_again
    for moved in (1e-6, 0.004, 2.0):
        other = Controller()
        other.step(1, moved)
        assert not other.may_begin_again


def test_a_first_step_that_went_far_is_suspected_sooner() -> None:
    hot = Controller(ControllerConfig(bold=1.0))
    assert hot.step(1, 0.032) is None  # eight times `goal`: three doublings
    assert harms(hot, 1.5, windows=6) == [2, 6]  # each cut makes it less suspect
    cold = Controller()
    assert cold.step(1, 0.001) is None
    assert harms(cold, 1.5, windows=6) == [6]
    very = Controller(ControllerConfig(bold=1.0))
    assert very.step(1, 0.14) is None
    assert harms(very, 0.3) == []  # some evidence is always asked for


def test_nothing_to_look_at_decides_nothing() -> None:
    decision = settled().window(window(), lambda alpha: None)
    assert (decision.rate_factor, decision.back, decision.reason) == (
        1.0,
        "",
        "no rollouts are there to judge the window by",
    )


def test_what_was_seen_is_in_the_decision() -> None:
    decision = settled().window(window(), Looks(am1=seen(-4.0, nats=0.03)))
    assert decision.divergence == 0.03
    assert set(decision.looks) >= {-1.0, 1.0}


def test_the_rate_falls_at_the_end_of_a_run() -> None:
    shares = [Controller().cooled(step, 100) for step in (1, 80, 81, 82, 91, 100)]
    assert shares == [1.0, 1.0, 1.0, pytest.approx(0.95), 0.5, 0.05]
    assert Controller(ControllerConfig(cooldown=0.0)).cooled(100, 100) == 1.0
    assert Controller().cooled(101, 100) == Controller().cooled(100, 100) > 0.0
    assert Controller().cooled(1, 1) == 1.0  # too short to have an end


def test_memory_goes_through_json_and_on() -> None:
    first, second = Controller(), Controller()
    assert first.step(1, 0.01) is None
    for _ in range(2):
        first.window(window(), Looks(am1=seen(1.5, nats=0.05)))
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert second.window(window(), Looks(am1=seen(2.0, nats=0.05))).rate_factor == 0.6
    assert [s for s in range(1, 20) if second.checks(s)] == [s for s in range(1, 20) if first.checks(s)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"every": 0}, "every must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"goal": 0.0}, "goal must be above 0"),
        ({"goal": 1.0}, "below reckless"),
        ({"bold": 0.0}, "bold must be above 0"),
        ({"ruinous": 0.0}, "ruinous must be above 0"),
        ({"rise": NAN}, "rise must be at least 0"),
        ({"target": 0.2}, "at most far"),
        ({"undo": -1.0}, "undo must be at least 0"),
        ({"cooldown": 1.0}, "cooldown must be from 0"),
        ({"sure": NAN}, "sure must be at least 0"),
    ],
)
def test_dials_out_of_range_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ControllerConfig(**bad)
