"""`auto` on synthetic objectives: no trainer, no model, a real Adam on functions whose right rate is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from nextrl.controller import Controller, ControllerConfig, Decision, Window, rate_factor
from nextrl.errors import InputError

TUNED = 0.01
PROMPTS = 64


def quadratic(x: Tensor) -> float:
    """0 at the start (all ones), 1 at the optimum (zero)."""
    return max(0.0, 1.0 - float(x.square().mean()))


@dataclass
class Run:
    """Adam on `reward` with gradient noise of the gradient's own size, steered by a controller."""

    rate: float
    seed: int = 0
    reward: Callable[[Tensor], float] = quadratic
    budget: bool = False
    controller: Controller = field(default_factory=Controller)
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)
        self.x = torch.nn.Parameter(torch.ones(300))
        self.adam = torch.optim.Adam([self.x], lr=self.rate)
        self.previous: Tensor | None = None

    def _score(self, start: Tensor, end: Tensor) -> Callable[[float], Tensor]:
        hard = 0.3 * torch.randn(PROMPTS, generator=self.random, dtype=torch.float64)

        def score(alpha: float) -> Tensor:
            noise = 0.08 * torch.randn(PROMPTS, generator=self.random, dtype=torch.float64)
            return self.reward(end + alpha * (end - start)) + hard + noise

        return score

    def train(self, steps: int, every: int = 10) -> Run:
        done = every * len(self.decisions)
        for begin in range(done, done + steps, every):
            start, rewards = self.x.detach().clone(), []
            for _ in range(every):
                self.x.grad = self.x.detach() + torch.randn(300, generator=self.random)
                rewards.append(self.reward(self.x.detach()))
                self.adam.step()
            end = self.x.detach().clone()
            moved = end - start
            cos = (
                None if self.previous is None else float(torch.cosine_similarity(moved, self.previous, dim=0))
            )
            self.previous = moved
            trained = (begin + every) * 128 if self.budget else None
            rate = self.adam.param_groups[0]["lr"]
            decision = self.controller.step(
                Window(begin + every, cos, tuple(rewards), rate, trained), self._score(start, end)
            )
            with torch.no_grad():
                self.x.copy_(end + decision.alpha * moved)
            self.adam.param_groups[0]["lr"] = rate * decision.rate_factor
            self.decisions.append(decision)
        return self

    @property
    def ends_at(self) -> float:
        return float(self.adam.param_groups[0]["lr"])


def plain(rate: float, steps: int, seed: int = 0) -> float:
    """What an unsteered run reaches."""
    still = Controller(ControllerConfig(level=math.inf, screen=2.0, fall=math.inf))
    run = Run(rate, seed, controller=still).train(steps)
    assert run.ends_at == rate
    return quadratic(run.x.detach())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("too_low", [5, 20, 100])
def test_a_too_low_rate_climbs_to_near_the_right_one(too_low: int, seed: int) -> None:
    run = Run(TUNED / too_low, seed).train(200)
    assert TUNED / 8 < run.ends_at < TUNED * 8
    assert quadratic(run.x.detach()) > plain(TUNED, 200, seed) - 0.1
    assert quadratic(run.x.detach()) > plain(TUNED / too_low, 200, seed) + 0.3 or too_low == 5


@pytest.mark.parametrize("seed", range(4))
def test_a_tuned_rate_is_left_alone(seed: int) -> None:
    run = Run(TUNED, seed).train(200)
    assert TUNED / 4 < run.ends_at < TUNED * 4
    assert quadratic(run.x.detach()) > plain(TUNED, 200, seed) - 0.05
    # Once the path keeps no direction of its own, searches stop.
    assert sum(d.completions > 0 for d in run.decisions[10:]) <= 4


def curve(by_alpha: Callable[[float], float], noise: float = 0.0, seed: int = 0) -> Callable[[float], Tensor]:
    """Scores whose mean is a function of alpha."""
    random = torch.Generator().manual_seed(seed)

    def score(alpha: float) -> Tensor:
        draws = noise * torch.randn(PROMPTS, generator=random, dtype=torch.float64)
        return by_alpha(alpha) + 0.1 * torch.arange(PROMPTS, dtype=torch.float64).sin() + draws

    return score


def window(
    step: int = 20,
    persistence: float | None = 0.95,
    rewards: Sequence[float] = (0.5,),
    rate: float = 1e-4,
    trained: int | None = None,
) -> Window:
    return Window(step, persistence, tuple(rewards), rate, trained)


def test_a_leap_over_a_cliff_is_refused() -> None:
    def cliff(alpha: float) -> float:
        return 0.5 + 0.02 * alpha if alpha < 5 else 0.0

    controller = Controller()
    decision = controller.step(window(), curve(cliff, 0.02))
    assert decision.alpha == 2.0
    assert set(decision.scores) == {0.0, 2.0, 8.0}
    # No later search pays for that reach again while the memory is fresh.
    later = controller.step(window(30, rate=1e-4 * decision.rate_factor), curve(cliff, 0.02))
    assert later.alpha == 2.0
    assert max(later.scores) == 2.0


def test_a_cliff_nearer_than_every_candidate_is_never_crossed() -> None:
    def cliff(alpha: float) -> float:
        return 0.5 if alpha <= 0 else 0.0

    controller = Controller()
    decisions = [controller.step(window(10 * i), curve(cliff, 0.02)) for i in range(1, 6)]
    assert [d.alpha for d in decisions] == [0.0] * 5
    assert [d.rate_factor for d in decisions] == [1.0] * 5
    assert [len(d.scores) for d in decisions] == [3, 2, 2, 2, 2]
    faster = controller.step(window(60, rate=2e-4), curve(cliff, 0.02))
    assert (faster.alpha, faster.completions) == (0.0, 0)
    assert "hurt lately" in faster.reason


def test_a_run_never_ends_beyond_the_cliff() -> None:
    def cliff(x: Tensor) -> float:
        # As the quadratic, but past the optimum by more than a little there is nothing.
        return quadratic(x) if float(x.mean()) > -0.2 else 0.0

    for seed in range(3):
        run = Run(TUNED / 100, seed, reward=cliff).train(200)
        assert cliff(run.x.detach()) > 0.8


def test_a_plateau_moves_nothing_and_raises_the_rate_only_where_the_path_persists() -> None:
    flat = curve(lambda alpha: 0.3)
    first = Controller().step(window(10, None), flat)
    assert (first.alpha, first.rate_factor) == (0.0, 1.0)
    controller = Controller()
    persisting = controller.step(window(20, 0.98), flat)
    assert persisting.alpha == 0.0
    assert 1.0 < persisting.rate_factor <= rate_factor(controller.config.grid[-1])
    assert "does no harm" in persisting.reason
    noisy = Controller().step(window(20, 0.5), flat)
    assert (noisy.alpha, noisy.rate_factor, noisy.completions) == (0.0, 1.0, 0)


def test_a_collapse_in_the_first_window_is_undone() -> None:
    def before_was_better(alpha: float) -> float:
        return 0.5 if alpha == -1.0 else 0.02

    controller = Controller()
    decision = controller.step(window(10, None, (0.5, 0.4, 0.1, 0.0)), curve(before_was_better))
    assert decision.alpha == -1.0
    assert decision.rate_factor == 0.2
    # What was undone teaches nothing about leaps forward: the next search starts where a first one would.
    after = controller.step(window(20, 0.98, (0.5,)), curve(lambda a: 0.5))
    assert 8.0 in after.scores


def test_a_run_that_starts_far_too_high_survives_its_first_window() -> None:
    def narrow(x: Tensor) -> float:
        return 0.4 + 0.6 * quadratic(x) if float(x.abs().max()) < 3.0 else 0.0

    run = Run(4.0, reward=narrow).train(200)
    assert run.decisions[0].alpha == -1.0
    assert run.ends_at < 4.0 / 5
    assert narrow(run.x.detach()) > 0.8


def test_an_oscillating_path_is_averaged_where_that_pays() -> None:
    middle = curve(lambda alpha: 0.6 if alpha == -0.5 else 0.5)
    decision = Controller().step(window(persistence=-0.5), middle)
    assert (decision.alpha, decision.rate_factor) == (-0.5, pytest.approx(1 / 3))
    mild = Controller().step(window(persistence=0.35), curve(lambda alpha: 0.5 + alpha))
    assert (mild.alpha, mild.rate_factor) == (0.0, 1.0)
    strong = Controller().step(window(persistence=-0.5), curve(lambda alpha: 0.5 + alpha))
    assert (strong.alpha, strong.rate_factor) == (0.0, 0.5)


def test_noise_alone_seldom_moves_the_weights() -> None:
    moved = [
        Controller(ControllerConfig(level=2.0)).step(window(), curve(lambda a: 0.5, 0.3, seed)).alpha != 0
        for seed in range(200)
    ]
    assert sum(moved) < 20


def test_searches_stay_within_their_share_of_the_completions_trained_on() -> None:
    controller = Controller()
    spent = 0
    for step in range(10, 2010, 10):
        decision = controller.step(window(step, 0.98, trained=step * 128), curve(lambda a: 0.5, 0.05, step))
        spent += decision.completions
    trained = 2000 * 128
    assert spent <= controller.config.share * trained + 2 * 4 * PROMPTS
    assert spent >= 0.5 * controller.config.share * trained


def test_the_budget_never_blocks_an_undo() -> None:
    controller = Controller(ControllerConfig(share=0.0))
    for step in (10, 20, 30):
        last = controller.step(window(step, 0.98, trained=1), curve(lambda a: 0.5))
    assert last.completions == 0
    assert "budget" in last.reason
    fallen = controller.step(window(40, 0.98, (0.1,), trained=1), curve(lambda a: 0.1 - 0.3 * a))
    assert fallen.alpha == -1.0


@pytest.mark.parametrize("budget", [False, True])
def test_a_restored_controller_takes_the_same_decisions(budget: bool) -> None:
    whole = Run(TUNED / 100, budget=budget).train(200)
    stopped = Run(TUNED / 100, budget=budget)
    for _ in range(20):
        saved = json.loads(json.dumps(stopped.controller.state()))
        stopped.controller = Controller()
        stopped.controller.restore(saved)
        stopped.train(10)
    assert stopped.decisions == whole.decisions
    assert stopped.controller.state() == whole.controller.state()


def test_state_is_plain_json_from_the_start() -> None:
    fresh = Controller()
    again = Controller()
    again.restore(json.loads(json.dumps(fresh.state(), allow_nan=False)))
    assert again.state() == fresh.state()


def test_negative_rewards_are_not_taken_for_a_fall() -> None:
    controller = Controller()
    reasons = [
        controller.step(window(s, 0.5, (-0.5,)), curve(lambda a: -0.5)).reason for s in (10, 20, 30, 40)
    ]
    assert not any("fell" in r for r in reasons)
    assert "fell" in controller.step(window(50, 0.5, (-0.7,)), curve(lambda a: -0.7)).reason


def test_a_fall_is_measured_on_the_rewards_own_scale() -> None:
    controller = Controller()
    controller.step(window(10, 0.5, (60.0,)), curve(lambda a: 60.0))
    assert "fell" not in controller.step(window(20, 0.5, (59.0,)), curve(lambda a: 59.0)).reason
    assert "fell" in controller.step(window(30, 0.5, (50.0,)), curve(lambda a: 50.0)).reason


def test_a_reward_that_was_not_measured_is_no_reward() -> None:
    controller = Controller()
    controller.step(window(10, 0.5, (0.5,)), curve(lambda a: 0.5))
    controller.step(window(20, 0.5, (math.nan,)), curve(lambda a: 0.5))
    assert "fell" in controller.step(window(30, 0.5, (0.1, math.nan)), curve(lambda a: 0.1)).reason


def test_a_rate_that_has_decayed_to_nothing_ends_the_searches_and_not_the_run() -> None:
    controller = Controller()
    assert controller.step(window(10), curve(lambda a: 0.5 + 0.01 * a)).alpha > 0
    last = controller.step(window(20, rate=0.0), curve(lambda a: 0.5 + 0.01 * a))
    assert (last.alpha, last.rate_factor, last.completions) == (0.0, 1.0, 0)


def test_the_rate_follows_the_alpha() -> None:
    assert rate_factor(0.0) == 1.0
    assert rate_factor(8.0) == 3.0
    assert rate_factor(-0.5) == pytest.approx(1 / 3)
    assert rate_factor(-1.0) == 0.2


@pytest.mark.parametrize(
    "bad",
    [{"every": 0}, {"grid": ()}, {"grid": (8.0, 2.0)}, {"grid": (-1.0, 2.0)}, {"candidates": 1}],
)
def test_dials_out_of_range_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ControllerConfig(**bad)  # type: ignore[arg-type]
