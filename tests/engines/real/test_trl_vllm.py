"""TRL with vLLM inside the training process: what the engine samples with after a leap, in a search, and under auto.

The engine is one for all tests here, in float32, so that it and the trainer agree to rounding. TRL sends the weights
before the first rollout of each trainer; all that is checked happens after that.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from nextrl.engines.all_weights import trained_in
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import LiveWeights, State, along
from nextrl.engines.policies import Auto
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.delivery import StaleWeights
from nextrl.engines.trl.fresh_rollouts import FreshRollouts
from nextrl.engines.trl.rollouts import TrainerRollouts, log_probabilities
from nextrl.judge.controller import Controller, Look
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision
from nextrl.judge.fresh_batch import BatchGain
from nextrl.judge.window import Window
from nextrl.tasks.bases.tiny import shipped
from trl_runs import VALIDATION, fresh_model, trainer

ROUNDING = 1e-4  # nats, the most that two ways to compute one token's log-probability in float32 differ by
ALPHA = 20.0  # a leap that nobody could take for rounding


@pytest.fixture(scope="module")
def engines() -> dict[str, Any]:
    """The engines made so far, by dtype: an engine takes seconds to make, and TRL would make one for each trainer."""
    return {}


@pytest.fixture
def vllm_trainer(engines: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes trainers whose rollouts vLLM samples; imports TRL and vLLM when it is first asked."""
    from trl.generation import vllm_generation

    plain = vllm_generation.LLM

    def build(
        *callbacks: TrainerCallback, dtype: str = "float32", whole: bool = False, **options: Any
    ) -> Any:
        def engine(**arguments: Any) -> Any:
            if dtype not in engines:
                engines[dtype] = plain(**arguments, dtype=dtype, enforce_eager=True)
            return engines[dtype]

        monkeypatch.setattr(vllm_generation, "LLM", engine)
        model = fresh_model()
        base = model.get_base_model()
        if whole:
            model = base = model.unload().requires_grad_(True)
        base.name_or_path = base.config._name_or_path = str(shipped("chain"))
        wanted: dict[str, Any] = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 64}
        return trainer(tmp_path, callbacks, model=model, **wanted, **options)

    return build


def engine_s_model(run: Any) -> Any:
    """The network inside a trainer's engine."""
    return run.vllm_generation.llm.llm_engine.model_executor.driver_worker.model_runner.model


def engine_s_differences(run: Any, adapter: LiveWeights, weights: State) -> torch.Tensor:
    """|engine - trainer| of the log-probability of each token sampled for this step, the trainer's at some weights."""
    (batch,) = run._buffered_inputs
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with adapter.holding(weights):
        own = log_probabilities(run, ids, attention, batch["completion_ids"].size(1))
    return (batch["sampling_per_token_logps"] - own).abs()[batch["completion_mask"].bool()]


class Delivered(TrainerCallback):
    """How far the engine's log-probabilities of each step's rollouts are from the trainer's, in nats per token.

    Ahead of `LeapCallback`, which drops the rollouts when it leaps.

    Attributes:
        now: step -> largest difference from the trainer's, at the weights that the step began from.
        before: step -> mean difference from the trainer's at the weights that the step before it began from.
    """

    run: Any

    def __init__(self) -> None:
        self.now: dict[int, float] = {}
        self.before: dict[int, float] = {}
        self.begins: list[State] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = trained_in(kwargs["model"])
        self.begins.append(self.adapter.read())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        self.now[step] = float(engine_s_differences(self.run, self.adapter, self.begins[-1]).max())
        if len(self.begins) > 1:
            self.before[step] = float(engine_s_differences(self.run, self.adapter, self.begins[-2]).mean())


def test_after_each_leap_the_engine_samples_from_the_leapt_policy(vllm_trainer: Any) -> None:
    delivered = Delivered()
    leaps = LeapCallback(every=3, method="linear", at=[3, 6], horizon=3, alpha=ALPHA, rollback=False)
    run = delivered.run = vllm_trainer(delivered, leaps, max_steps=8, learning_rate=1e-3)
    run.train()
    assert [d.step for d in leaps.decisions if d.alpha] == [3, 6]
    assert list(delivered.now) == list(range(1, 9))
    assert max(delivered.now.values()) < ROUNDING
    # Had a leap not arrived, the first rollouts after it would show it.
    assert min(delivered.before[4], delivered.before[7]) > 100 * ROUNDING


def test_an_engine_that_throws_weights_away_stops_the_run(vllm_trainer: Any, monkeypatch: Any) -> None:
    leaps = LeapCallback(every=3, method="linear", at=[3], horizon=3, alpha=ALPHA, rollback=False)
    run = vllm_trainer(leaps, max_steps=8, learning_rate=1e-3)
    # Brought to where the run begins, and deaf from then on.
    run.vllm_generation.sync_weights()
    monkeypatch.setattr(engine_s_model(run), "load_weights", lambda weights: {name for name, _ in weights})
    with pytest.raises(StaleWeights, match="did not reach it"):
        run.train()
    assert run.state.global_step == 4  # the first rollouts after the leap of step 3


def test_a_candidate_is_scored_with_its_own_weights(vllm_trainer: Any) -> None:
    run = vllm_trainer(max_steps=2, learning_rate=1e-3)
    adapter = LiveAdapter(run.model)
    start = adapter.read()
    run.train()
    stop, reported = adapter.read(), []
    sample = run.vllm_generation.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        result = sample(*arguments, **options)
        reported.append(result[2])
        return result

    run.vllm_generation.generate = generate
    rollouts, rows = TrainerRollouts(run), [VALIDATION[i] for i in range(8)]
    own = []
    for alpha in (0.0, ALPHA, -1.0):
        with adapter.holding(along(start, stop, alpha)):
            rollouts.rewards(rows, seed=0)
            logps = rollouts.log_probabilities()
            assert logps is not None
            own.append(logps)
    assert len(reported) == 3
    for engine, logps in zip(reported, own, strict=True):
        for tokens, expected in zip(engine, logps, strict=True):
            found = torch.tensor([token[0] for token in tokens])
            torch.testing.assert_close(found, expected[: len(found)], atol=ROUNDING, rtol=0)


class Looks(TrainerCallback):
    """What auto's instrument says of the weights that a step began from: of weights compared with themselves."""

    run: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = LiveAdapter(kwargs["model"])
        self.fresh = FreshRollouts(self.run, self.adapter, Ranks(self.run.accelerator))
        self.itself: list[BatchGain | None] = []
        self.engine: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.anchor = self.adapter.read()
        self.fresh.listen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fresh.stop()
        self.itself.append(self.fresh.gain(self.anchor, self.anchor))
        self.engine.append(float(engine_s_differences(self.run, self.adapter, self.anchor).mean()))


@pytest.mark.parametrize("corrected", [True, False])
def test_auto_looks_with_the_trainer_s_own_log_probabilities(vllm_trainer: Any, corrected: bool) -> None:
    looks = Looks()
    run = looks.run = vllm_trainer(
        looks, dtype="bfloat16", max_steps=3, vllm_importance_sampling_correction=corrected
    )
    run.train()
    for gain in looks.itself:
        assert gain is not None
        assert gain.completions == 32
        assert gain.nats_k2 < 1e-9
        assert abs(gain.gain.value) < 1e-6
    # An engine in bfloat16 reports others: by these, weights would differ from themselves.
    assert min(looks.engine) > 1e-4


class Undoing(Controller):
    """Takes its first window back, whatever it was, and leaves the steps alone."""

    def step(self, *arguments: Any, **named: Any) -> None: ...

    def window(self, window: Window, look: Look) -> Decision:
        decided = super().window(window, look)
        undone = decided if self._judged > 1 else replace(decided, alpha=-1.0, back="window")
        return replace(undone, rate_factor=1.0)


@pytest.mark.parametrize(("what", "whole"), [("step", False), ("window", False), ("step", True)])
def test_what_auto_takes_back_the_engine_takes_back(vllm_trainer: Any, what: str, whole: bool) -> None:
    policy = None if what == "step" else Auto(ControllerConfig(every=3), Undoing)
    delivered, leaps = Delivered(), LeapCallback(every=None if policy else 4, policy=policy)
    rate = 0.05 if policy else 0.3  # so high that even a first step is taken back
    run = delivered.run = vllm_trainer(delivered, leaps, max_steps=6, learning_rate=rate, whole=whole)
    run.train()
    taken = next(decision.step for decision in leaps.decisions if decision.back == what)
    # A window is judged by the step after it, which is taken back with it.
    before, after = delivered.begins[taken - (1 if what == "step" else 2)], delivered.begins[taken]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(delivered.now) == list(range(1, 7))
    assert max(delivered.now.values()) < ROUNDING
