"""Divergence from a trainer's own rollouts, against the definition over the whole vocabulary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from nextrl.engines.live_adapter import LiveAdapter, along
from nextrl.engines.trl.divergence import RolloutDivergence
from trl_runs import same, trainable, trainer


def now(measure: RolloutDivergence) -> float:
    """Divergence of the weights the model now has."""
    return measure.divergence(measure.read())


class Probe(TrainerCallback):
    """Measures at the end of the second step how far leaps along the run so far would go."""

    def __init__(self, alphas: tuple[float, ...]) -> None:
        self.alphas, self.run = alphas, None
        self.found: dict[float, float] = {}
        self.exact: dict[float, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = LiveAdapter(kwargs["model"])
        self.start = self.adapter.read()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 2:
            return
        measure, end = RolloutDivergence(self.run, sequences=1000), self.adapter.read()
        assert measure.anchor()
        before = trainable(kwargs["model"])
        p = self.distribution(kwargs["model"])
        for alpha in self.alphas:
            self.adapter.write(along(self.start, end, alpha))
            self.found[alpha] = now(measure)
            q = self.distribution(kwargs["model"])
            mask = torch.cat([b["completion_mask"] for b in self.run._buffered_inputs])
            self.exact[alpha] = float((((p.exp() * (p - q)).sum(-1)) * mask).sum() / mask.sum())
        self.adapter.write(end)
        assert same(trainable(kwargs["model"]), before)

    def distribution(self, model: Any) -> torch.Tensor:
        batches = self.run._buffered_inputs
        prompt, completion = (torch.cat([b[k] for b in batches]) for k in ("prompt_ids", "completion_ids"))
        attention = torch.cat(
            [torch.cat([b[k] for b in batches]) for k in ("prompt_mask", "completion_mask")], 1
        )
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, completion], 1), attention_mask=attention).logits
        return torch.log_softmax(logits[:, prompt.shape[1] - 1 : -1], -1)


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_it_is_the_kl_divergence_of_the_policies_on_their_own_rollouts(tmp_path: Path, kind: type) -> None:
    probe = Probe((0.0, -1.0, 2.0, 8.0))
    probe.run = trainer(
        tmp_path, [probe], kind=kind, max_steps=2, learning_rate=5e-4, per_device_train_batch_size=256
    )
    probe.run.train()
    assert probe.found[0.0] == 0.0
    for alpha in (-1.0, 2.0, 8.0):
        assert probe.found[alpha] == pytest.approx(probe.exact[alpha], rel=0.35)
    assert probe.found[-1.0] < probe.found[2.0] < probe.found[8.0]


def test_a_trainer_without_rollouts_has_nothing_to_measure_on(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    measure = RolloutDivergence(run, sequences=10)
    assert not measure.anchor()
    assert not measure.recall()
    assert math.isnan(measure.divergence(torch.zeros(1, 1)))


def test_rollouts_of_all_micro_batches_count(tmp_path: Path) -> None:
    probe = Probe(())
    probe.run = trainer(
        tmp_path, [probe], max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    probe.run.train()
    measure = RolloutDivergence(probe.run, sequences=10)
    assert measure.anchor()
    assert measure.rollouts is not None
    assert measure.rollouts[0].shape[0] == 10


class Listener(Probe):
    """Listens to the third step, whose forward passes stand for the policy before it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure = getattr(self, "measure", None) or RolloutDivergence(self.run, sequences=1000)
        if state.global_step == 2:
            self.before = self.adapter.read()
            self.measure.listen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure.stop()
        if state.global_step < 3:
            assert not self.measure.recall()
            return
        after, exact = self.adapter.read(), RolloutDivergence(self.run, sequences=1000)
        self.adapter.write(self.before)
        exact.anchor()
        assert self.measure.recall()
        assert now(self.measure) == pytest.approx(0.0, abs=1e-10)
        self.adapter.write(self.start)
        self.found[-1.0], self.exact[-1.0] = now(self.measure), now(exact)
        self.adapter.write(after)
        self.recalled = self.measure.rollouts
        assert self.measure.anchor()
        assert now(self.measure) == 0.0


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_the_last_steps_own_log_probabilities_spare_a_pass(tmp_path: Path, kind: type) -> None:
    probe = Listener(())
    probe.run = trainer(
        tmp_path,
        [probe],
        kind=kind,
        max_steps=3,
        learning_rate=5e-4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )
    probe.run.train()
    assert probe.found[-1.0] > 0.0
    assert probe.found[-1.0] == pytest.approx(probe.exact[-1.0], rel=1e-4)
    assert "_get_per_token_logps_and_entropies" not in vars(probe.run)
    assert probe.measure.rollouts is probe.recalled  # what was read of them need not be read again


def test_rollouts_of_one_small_step_give_way_to_all_that_the_trainer_holds(tmp_path: Path) -> None:
    probe = Listener(())
    probe.run = trainer(
        tmp_path,
        [probe],
        max_steps=3,
        per_device_train_batch_size=8,
        steps_per_generation=4,
        learning_rate=5e-4,
    )
    probe.run.train()
    assert len(probe.recalled[0]) == 8
    assert len(probe.measure.rollouts[0]) == 32


def test_micro_batches_of_several_lengths_are_not_mixed(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    measure = RolloutDivergence(run, sequences=10)
    lengths = iter((5, 6))

    def computed(model: Any, ids: torch.Tensor, mask: torch.Tensor, length: int) -> tuple[torch.Tensor]:
        return (torch.zeros(2, length),)

    run._get_per_token_logps_and_entropies = computed
    measure.listen()
    for length in lengths:
        ids = torch.ones(2, length, dtype=torch.long)
        run._get_per_token_logps_and_entropies(run.model, ids, ids, 3)
    measure.stop()
    assert run._get_per_token_logps_and_entropies is computed
    assert not measure.recall()


def test_dropout_leaves_nothing_to_listen_to(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    next(iter(run.model.modules())).extra = torch.nn.Dropout(0.1)
    measure = RolloutDivergence(run, sequences=10)
    measure.listen()
    assert "_get_per_token_logps_and_entropies" not in vars(run)
    measure.stop()
    assert not measure.recall()
