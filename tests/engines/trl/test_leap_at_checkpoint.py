"""One leap that waits for its checkpoint: fitted on the past, chosen on validation prompts, written, moments kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

import trl_runs
from nextrl.engines.history import DiskHistory
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.policies import AtSteps
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.rollouts import TrainerRollouts
from nextrl.errors import InputError
from nextrl.judge.acceptance import Acceptance
from nextrl.leaps.leap import leap
from nextrl.tasks.bases import tiny
from nextrl.trajectory.trajectory import Trajectory
from trl_runs import VALIDATION, same, trainable, trainer, weights

ROWS = [VALIDATION[i] for i in range(8)]
SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    trainer(folder, **SAVED).train()
    return folder


def prefer(monkeypatch: pytest.MonkeyPatch, wanted: dict[str, torch.Tensor] | None) -> None:
    """Rewards that are 1 where the live adapter is the wanted one, else 0."""

    def rewards(self: Any, rows: Any, seed: int) -> torch.Tensor:
        live = LiveAdapter(self._trainer.model).read()
        hit = wanted is not None and all(torch.equal(live[n], wanted[n]) for n in live)
        return torch.full((len(rows),), float(hit), dtype=torch.float64)

    monkeypatch.setattr(TrainerRollouts, "rewards", rewards)


class Moments(TrainerCallback):
    """Weights and Adam's moments when training begins, after the callbacks before it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights = weights(kwargs["model"])
        self.moments = [s["exp_avg"].clone() for s in kwargs["optimizer"].state.values()]


def leaper(
    run: Path, out: Path, at: int, horizon: int = 2, method: str = "secant", **options: Any
) -> LeapCallback:
    """As the papers do: the best mean on all rows at once, no bounds, nothing taken back."""
    policy = AtSteps(
        method,
        horizon,
        at=(at,),
        every=None,
        acceptance=Acceptance((len(ROWS),), argmax=True),
        disk=DiskHistory(run, out / "leaps"),
        **options,
    )
    bounds = {"longest": math.inf, "truncated": 1.0, "divergence": math.inf}
    return LeapCallback(policy=policy, validation=ROWS, rollback=False, **bounds)


def run_from(plain: Path, out: Path, **options: Any) -> tuple[Any, LeapCallback, Moments]:
    single, moments = leaper(plain, out, 4, **options), Moments()
    built = trainer(out, [single, moments], **SAVED)
    built.train(resume_from_checkpoint=str(plain / "checkpoint-4"))
    return built, single, moments


def test_the_alpha_that_wins_on_validation_is_taken_and_written(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = leap(Trajectory.load(plain).upto(4), "secant", 2, alpha=2.0)
    wanted = fitted.leap_state()
    live = {n.removesuffix(".weight"): n for n in LiveAdapter(trl_runs.fresh_model()).parameters}
    assert {n.removesuffix(".weight") for n in wanted} == set(live)
    prefer(monkeypatch, wanted)
    _, single, moments = run_from(plain, tmp_path, alphas=(1.0, 2.0, 4.0))
    [decision] = single.decisions
    assert (decision.step, decision.alpha, decision.horizon) == (4, 2.0, 2)
    assert decision.scores == {"0": 0.0, "1": 0.0, "2": 1.0, "4": 0.0}
    assert decision.completions == 4 * len(ROWS)
    after = LiveAdapter(trl_runs.fresh_model()).parameters
    assert all(
        torch.equal(moments.weights[n.replace(".weight", ".default.weight")], wanted[n]) for n in after
    )
    loaded = PeftModel.from_pretrained(tiny.load("chain")[0], str(tmp_path / "leaps" / "leap-4"))
    for name, value in LiveAdapter(loaded).read().items():
        torch.testing.assert_close(value, wanted[name])


def test_without_a_winner_the_run_goes_on_as_if_nothing_had_been_tried(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, None)
    built, single, _ = run_from(plain, tmp_path)
    [decision] = single.decisions
    assert decision.alpha == 0.0
    assert not (tmp_path / "leaps" / "leap-4").exists()
    unbroken = PeftModel.from_pretrained(tiny.load("chain")[0], str(plain / "checkpoint-6"))
    assert same(LiveAdapter(built.model).read(), LiveAdapter(unbroken).read())


def test_real_rollouts_leave_the_draws_of_training_alone(plain: Path, tmp_path: Path) -> None:
    built, single, _ = run_from(plain, tmp_path, alphas=(1e-12,))
    [decision] = single.decisions
    if decision.alpha == 0.0:
        unbroken = PeftModel.from_pretrained(tiny.load("chain")[0], str(plain / "checkpoint-6"))
        assert same(LiveAdapter(built.model).read(), LiveAdapter(unbroken).read())


def test_moments_and_base_are_kept(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = leap(Trajectory.load(plain).upto(4), "secant", 2, alpha=1.0).leap_state()
    prefer(monkeypatch, wanted)
    built, _, moments = run_from(plain, tmp_path, alphas=(1.0,))
    saved = torch.load(plain / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert all(torch.equal(m, saved[i]["exp_avg"]) for i, m in enumerate(moments.moments))
    frozen = {n for n, p in built.model.named_parameters() if not p.requires_grad}
    fresh = weights(trl_runs.fresh_model())
    assert all(torch.equal(moments.weights[n], fresh[n]) for n in frozen)
    assert not same(trainable(built.model), {n: fresh[n] for n in trainable(built.model)})


def test_nothing_after_the_leap_s_step_is_read(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    past = tmp_path / "past"
    shutil.copytree(plain, past)
    shutil.rmtree(past / "checkpoint-6")
    prefer(monkeypatch, None)
    _, with_future, _ = run_from(plain, tmp_path / "a")
    _, without, _ = run_from(past, tmp_path / "b")
    assert with_future.decisions[0].scores == without.decisions[0].scores
    assert with_future.decisions[0].scores


@pytest.mark.parametrize("at", [4, 5])
def test_a_run_that_reaches_the_step_saves_and_leaps_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    saved: list[dict[str, torch.Tensor]] = []

    def rewards(self: Any, rows: Any, seed: int) -> torch.Tensor:
        saved.append(LiveAdapter(self._trainer.model).read())
        return torch.full((len(rows),), float(len(saved)), dtype=torch.float64)  # the last is best

    monkeypatch.setattr(TrainerRollouts, "rewards", rewards)
    single = leaper(tmp_path, tmp_path, at, horizon=1 if at == 5 else 2, alphas=(1.0,))
    built = trainer(tmp_path, [single], **SAVED)
    built.train()
    [decision] = single.decisions
    assert (decision.step, decision.alpha) == (at, 1.0)
    # The first candidate is staying put: the checkpoint of that very step.
    loaded = PeftModel.from_pretrained(tiny.load("chain")[0], str(tmp_path / f"checkpoint-{at}"))
    assert same(LiveAdapter(loaded).read(), saved[0])
    assert not same(saved[0], saved[1])


def test_a_single_leap_that_cannot_be_fitted_stops_the_run(plain: Path, tmp_path: Path) -> None:
    single = leaper(plain, tmp_path, 4, horizon=50)
    with pytest.raises(InputError, match="secant needs"):
        trainer(tmp_path, [single], **SAVED).train(resume_from_checkpoint=str(plain / "checkpoint-4"))
