"""Taking a leap back in a real run: adapter, rate and moments as before it, and the same after a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from nextrl.engines.moments import read_moments
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.rollouts import RewardMeter
from trl_runs import VALIDATION, Scripted, same, scripted_policy, trainable, trainer, weights


class Watch(TrainerCallback):
    """Weights, moments and rate at the end of every step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.moments: list[Any] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.see(kwargs)

    def see(self, kwargs: Any) -> None:
        self.states.append(trainable(kwargs["model"]))
        self.moments.append(read_moments(kwargs["optimizer"]))
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


class Before(Watch):
    """The same as the optimizer leaves it, before any leap."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.see(kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass


def run(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    rewards: dict[int, float],
    resume: bool = False,
    **options: Any,
) -> tuple[Any, LeapCallback, Watch, Watch]:
    """Windows of two steps; a leap of 3 with rate x 2 at step 4; training rewards as given by step."""
    policy = scripted_policy(Scripted([(0.0, 1.0), (3.0, 2.0)]))
    callback, before, after = LeapCallback(policy=policy, validation=VALIDATION, **options), Before(), Watch()
    built = trainer(
        out,
        [before, callback, after],
        max_steps=8,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=1,
    )

    def new(meter: RewardMeter) -> float:
        meter.sampled = True
        return rewards.get(built.state.global_step, 0.5)

    monkeypatch.setattr(RewardMeter, "new", new)
    built.train(resume_from_checkpoint=resume or None)
    return built, callback, before, after


FELL = {5: 0.2, 6: 0.21}


def test_a_fall_after_a_leap_puts_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, callback, before, after = run(tmp_path, monkeypatch, FELL)
    assert not same(after.states[3], before.states[3])
    assert same(after.states[5], before.states[3])
    for now, then in zip(after.moments[5], before.moments[3], strict=True):
        assert all(torch.equal(now[k], then[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    assert any(
        not torch.equal(a["exp_avg"], b["exp_avg"])
        for a, b in zip(before.moments[5], before.moments[3], strict=True)
    )
    # The schedule goes on as it was: after step k the rate is 2e-4 (8 - k) / 8, times 2 after the leap.
    assert after.rates[4] == pytest.approx(2 * 2e-4 * 3 / 8)
    assert after.rates[5] == pytest.approx(2e-4 * 2 / 8)
    third = callback.decisions[2]
    assert third.rolled_back == 4
    assert "the reward fell from 0.5 to 0.205 after the leap of step 4: rolled back" in third.reason
    assert third.claimed_steps == callback.costs.leapt_steps == -2.0
    assert [d.rolled_back for d in callback.decisions] == [None, None, 4, None]
    lines = (tmp_path / "nextrl_decisions.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == third.model_dump(mode="json")


@pytest.mark.parametrize(
    ("rewards", "options"), [({5: 0.45, 6: 0.46}, {}), (FELL, {"rollback": False}), ({7: 0.2, 8: 0.2}, {})]
)
def test_nothing_is_taken_back_for_noise_later_falls_or_where_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewards: dict[int, float], options: dict[str, Any]
) -> None:
    _, callback, *_ = run(tmp_path, monkeypatch, rewards, **options)
    assert [d.rolled_back for d in callback.decisions] == [None] * 4
    assert callback.costs.leapt_steps == 6.0


def test_a_mean_that_several_steps_were_trained_on_is_measured_once(tmp_path: Path) -> None:
    """One good batch before a leap and a bad one after it, each trained on three times, prove nothing."""
    policy = scripted_policy(Scripted([(1.0, 1.0)]), every=3)
    batches = iter([0.9, 0.1, 0.5])

    def rewards(completions: list[str], **kwargs: Any) -> list[float]:
        mean = next(batches)
        return [mean + 0.01 * (i % 2) for i in range(len(completions))]

    callback = LeapCallback(policy=policy, validation=VALIDATION)
    trainer(tmp_path, [callback], rewards=rewards, max_steps=9, num_iterations=3).train()
    measured = [[r == r for r in window.rewards] for window in policy.windows]
    assert measured == [[True, False, False]] * 3
    assert [d.reward for d in callback.decisions] == pytest.approx([0.905, 0.105, 0.505])
    assert [d.rolled_back for d in callback.decisions] == [None] * 3


def test_a_window_without_rollouts_of_its_own_has_no_reward(tmp_path: Path) -> None:
    policy = scripted_policy(Scripted(), every=1)
    callback = LeapCallback(policy=policy, validation=VALIDATION)
    trainer(tmp_path, [callback], max_steps=2, num_iterations=2).train()
    assert [d.reward is None for d in callback.decisions] == [False, True]
    lines = (tmp_path / "nextrl_decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] is None for line in lines] == [False, True]


def test_a_run_stopped_between_leap_and_rollback_ends_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, *_ = run(tmp_path / "whole", monkeypatch, FELL)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for step in (6, 7, 8):
        shutil.rmtree(tmp_path / "again" / f"checkpoint-{step}")
    resumed, second, *_ = run(tmp_path / "again", monkeypatch, FELL, resume=True)
    assert second.decisions[2].rolled_back == 4
    assert same(weights(resumed.model), weights(whole.model))


def test_a_leap_that_leaves_the_policy_is_refused_whatever_its_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    class Asks(Scripted):
        def choose(self, window: Any, score: Any) -> Any:
            from nextrl.judge.paired_search import Refused

            score(0.0, 0, 16)
            for alpha in (1e-3, 1e6):
                try:
                    score(alpha, 0, 16)
                except Refused as refusal:
                    seen.append(alpha)
                    reasons.append(refusal.reason)
            return super().choose(window, score)

    reasons: list[str] = []
    callback = LeapCallback(
        policy=scripted_policy(Asks([])), validation=VALIDATION, truncated=1.0, longest=100.0
    )
    trainer(tmp_path, [callback], max_steps=2, learning_rate=1e-3).train()
    assert seen == [1e6]
    assert "leaves the current policy" in reasons[0]
    nearby, far = callback._session.scores.divergences.values()
    assert 0.0 <= nearby < 1e-3 < 3.0 < far
