"""Supervised fine-tuning as a control: likelihood of held-out demonstrations, in a real SFTTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trl import SFTTrainer

from nextrl import LeapCallback
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.trl.likelihood import FreshTexts, HeldOutLikelihood, log_probabilities
from nextrl.errors import InputError
from trl_runs import same, trainable
from trl_runs import sft_trainer as trainer


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_row_s_score_is_minus_its_loss(tmp_path: Path, padding_free: bool) -> None:
    run = trainer(tmp_path, padding_free=padding_free, max_length=None)
    rows = [run.eval_dataset[i] for i in range(11)]
    likelihood = HeldOutLikelihood(run)
    found = likelihood.rewards(rows, seed=0)
    assert found.dtype == torch.float64
    assert likelihood.completions == 11
    for row, score in zip(rows, found, strict=True):
        batch = run._prepare_inputs(run.data_collator([row]))
        run.model.eval()
        loss = float(run.compute_loss(run.model, batch).detach())
        assert float(score) == pytest.approx(-loss, rel=1e-4)


def test_fresh_texts_measure_how_far_weights_are_and_what_they_gain(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    adapter = LiveAdapter(run.model)
    rows = [run.eval_dataset[i] for i in range(5)]
    texts, start = FreshTexts(run, adapter, rows), adapter.read()
    assert texts.moved(start) == 0.0
    likelihood = HeldOutLikelihood(run)
    likelihood.rewards(rows, seed=0)
    further = {n: t + 0.02 if "lora_B" in n else t for n, t in start.items()}
    found = texts.gain(start, further)
    before = [float(logps.sum()) for logps, _ in log_probabilities(run, rows)]
    adapter.write(further)
    after = [float(logps.sum()) for logps, _ in log_probabilities(run, rows)]
    assert found.gain.value == pytest.approx(sum(after) / 5 - sum(before) / 5, rel=1e-4)
    assert found.nats_k2 == pytest.approx(texts.moved(start), rel=1e-4)
    assert found.nats_k2 > 0.0
    assert (found.completions, found.left_out, found.degenerate) == (5, 0, "")


def last_loss(run: SFTTrainer) -> float:
    return float(next(e["loss"] for e in reversed(run.state.log_history) if "loss" in e))


def test_a_rate_far_too_low_is_found_out_and_raised(tmp_path: Path) -> None:
    callback = LeapCallback(every=5)
    options = {"max_steps": 25, "learning_rate": 1e-6}
    with_it = trainer(tmp_path / "with", [callback], **options)
    without = trainer(tmp_path / "without", **options)
    with_it.train()
    without.train()
    assert callback.decisions[-1].learning_rate > 1e-5
    assert last_loss(with_it) < last_loss(without) - 0.02
    assert callback.costs.search_completions == 0


def test_watching_changes_nothing(tmp_path: Path) -> None:
    callback = LeapCallback(every=2, adapt_lr=False, leaps=False)
    watched, alone = trainer(tmp_path / "watched", [callback]), trainer(tmp_path / "alone")
    watched.train()
    alone.train()
    assert callback.decisions
    assert same(trainable(watched.model), trainable(alone.model))


def test_rows_are_held_back_where_none_are_given(tmp_path: Path) -> None:
    callback = LeapCallback(every=2)
    run = trainer(tmp_path, [callback], held_out=False, learning_rate=1e-6)
    run.train()
    assert callback.decisions[0].learning_rate > 1e-5


def test_rows_that_are_not_tokenised_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}] * 4
    run = trainer(tmp_path, [LeapCallback(every=2, validation=rows)], learning_rate=1e-6)
    with pytest.raises(InputError, match="eval_dataset"):
        run.train()
