"""Supervised fine-tuning as a control: likelihood of held-out demonstrations, in a real SFTTrainer."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from nextrl import LeapCallback
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.trl import fresh_rollouts
from nextrl.engines.trl.fresh_rollouts import AT_LEAST
from nextrl.engines.trl.likelihood import FreshTexts, HeldOutLikelihood, log_probabilities
from nextrl.errors import InputError
from nextrl.tasks.bases import tiny
from trl_runs import COMMON, RLVR_ONLY, demonstrations, fresh_model, same, trainable
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


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator that tokenises by itself."""
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "right"
    texts = [row["prompt"] + row["completion"] for row in rows]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def as_it_is(out: Path, collator: Any, held_out: bool = True) -> SFTTrainer:
    """A trainer that leaves its rows to the collator."""
    common = {name: value for name, value in COMMON.items() if name not in RLVR_ONLY}
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    sizes = {"per_device_train_batch_size": 8, "learning_rate": 1e-6}
    return SFTTrainer(
        model=fresh_model(),
        args=SFTConfig(output_dir=str(out), **{**common, **options, **sizes}),
        train_dataset=demonstrations(0, 100),
        eval_dataset=demonstrations(300, 340) if held_out else None,
        processing_class=tiny.tokenizer(),
        data_collator=collator,
    )


@pytest.mark.parametrize("held_out", [True, False])
def test_a_collator_that_tokenises_by_itself_is_taken_as_it_is(tmp_path: Path, held_out: bool) -> None:
    run, callback = as_it_is(tmp_path, padded, held_out), LeapCallback(every=2)
    rows = [demonstrations(340, 343)[i] for i in range(3)]
    found = HeldOutLikelihood(run).rewards(rows, seed=0)
    for row, score in zip(rows, found, strict=True):
        loss = float(run.model(**padded([row])).loss.detach())
        assert float(score) == pytest.approx(-loss, rel=1e-4)
    run.add_callback(callback)
    run.train()
    assert callback.decisions[0].learning_rate > 1e-5


def without_labels(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in padded(rows).items() if name != "labels"}


def flat(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value.reshape(1, -1) for name, value in padded(rows).items()}


def broken(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"labels": [row["answer"] for row in rows]}


@pytest.mark.parametrize(
    ("collator", "says"),
    [
        (without_labels, "makes batches without labels"),
        (flat, "makes 1 rows of 2"),
        (broken, "KeyError.*it has to take the rows of the dataset as they are"),
    ],
)
def test_a_collator_whose_batches_cannot_be_scored_is_refused(
    tmp_path: Path, collator: Any, says: str
) -> None:
    run = as_it_is(tmp_path, collator)
    run.add_callback(LeapCallback(every=2))
    with pytest.raises(InputError, match=says) as error:
        run.train()
    assert "\n" not in str(error.value)


class Passes:
    """Rows of each pass through a model."""

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        model.register_forward_hook(self._seen, with_kwargs=True)

    def _seen(self, model: Any, given: Any, options: Any, out: Any) -> None:
        self.rows.append(len(options["input_ids"]))

    def new(self) -> int:
        """Rows since this was last asked."""
        found, self.rows = sum(self.rows), []
        return found


@pytest.mark.parametrize(
    ("batch", "accumulated", "most", "texts"),
    [(1, 1, 512, 8), (1, 20, 512, 20), (8, 1, 512, 8), (8, 2, 512, 16), (32, 1, 512, 32), (8, 4, 12, 16)],
)
def test_a_step_s_movement_is_read_on_as_many_texts_as_the_step_has(
    tmp_path: Path, batch: int, accumulated: int, most: int, texts: int
) -> None:
    run = trainer(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated)
    adapter = LiveAdapter(run.model)
    fresh = FreshTexts(run, adapter, [run.eval_dataset[i] for i in range(32)])
    passes, start = Passes(run.model), adapter.read()
    fresh.moved(start, most)
    assert passes.new() == 2 * texts


def test_of_long_texts_as_many_are_read_as_hold_enough_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_rollouts, "TOKENS", 30)
    run = trainer(tmp_path, per_device_train_batch_size=32)
    adapter = LiveAdapter(run.model)
    fresh = FreshTexts(run, adapter, [run.eval_dataset[i] for i in range(32)])
    passes = Passes(run.model)
    fresh.moved(adapter.read())
    assert passes.new() == 2 * AT_LEAST


def test_the_anchor_is_read_once_in_a_look_and_anew_where_it_is_another(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    adapter = LiveAdapter(run.model)
    fresh = FreshTexts(run, adapter, [run.eval_dataset[i] for i in range(32)])
    passes, anchor = Passes(run.model), adapter.read()
    further = {n: t + 0.02 if "lora_B" in n else t for n, t in anchor.items()}
    adapter.write(further)
    found = []
    # 8 texts of both; 8 of the present weights; all of a candidate and what is left of the anchor; all of the next.
    for rows, asked in [(16, fresh.moved), (8, fresh.moved), (56, fresh.gain), (32, fresh.gain)]:
        found.append(asked(anchor) if asked == fresh.moved else asked(anchor, further))
        assert passes.new() == rows
    assert found[0] == found[1] > 0.0
    assert found[2] == found[3]
    assert same(adapter.read(), further)
    other = {n: t.clone() for n, t in further.items()}
    assert fresh.moved(other) == 0.0
    assert passes.new() == 16
    for t in other.values():  # the same tensors with other values
        t.mul_(1.5)
    assert fresh.moved(other) > 0.0
    assert passes.new() == 16
    fresh.stop()
    fresh.moved(other)
    assert passes.new() == 16


def test_a_look_keeps_no_copy_of_the_weights_alive(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    adapter = LiveAdapter(run.model)
    fresh, anchor = FreshTexts(run, adapter, [run.eval_dataset[0]]), adapter.read()
    kept = weakref.ref(next(iter(anchor.values())))
    fresh.moved(anchor)
    del anchor
    assert kept() is None
