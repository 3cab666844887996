"""A decision as it is written down, now and in the published records of studies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from nextrl.judge.decision import DecisionRecord, searched, stay
from nextrl.judge.paired_search import Scores

PUBLISHED = Path(__file__).parents[2] / "studies/smollm2/raw/short-sums/seed-0/auto-before.json"


def test_a_field_s_former_name_is_read_and_its_present_one_written() -> None:
    former = {"step": 3, "alpha": 0.0, "reason": "r", "saved_steps_estimate": 2.5}
    record = DecisionRecord.model_validate(former)
    assert record.claimed_steps == 2.5
    assert "saved_steps_estimate" not in record.model_dump_json()
    assert DecisionRecord.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValidationError):
        DecisionRecord.model_validate({**former, "saved": 1})


def test_what_nothing_measures_any_more_is_read_and_not_written() -> None:
    former = {"step": 3, "alpha": 0.0, "reason": "r", "persistence": 0.4, "excess": 0.2, "leg": 1}
    written = DecisionRecord.model_validate(former).model_dump()
    assert not {"persistence", "excess", "leg"} & written.keys()


def test_published_decisions_are_still_read() -> None:
    decisions = json.loads(PUBLISHED.read_text(encoding="utf-8"))["decisions"]
    assert decisions
    for decision in decisions:
        assert DecisionRecord.model_validate(decision).claimed_steps == decision["saved_steps_estimate"]


def test_what_could_not_be_scored_is_counted_over_all_candidates() -> None:
    import torch

    nan = float("nan")
    scores = Scores(
        lambda alpha, start, stop: torch.tensor([1.0, nan, nan if alpha else 0.0][start:stop]).double()
    )
    for alpha in (0.0, 2.0):
        scores.extend(alpha, 3)
    decision = searched("why", 0.0, scores)
    assert (decision.completions, decision.unscored) == (6, 3)
    record = DecisionRecord.of(decision, step=1)
    assert (record.completions, record.unscored) == (6, 3)
    assert DecisionRecord.of(stay("r"), step=1).unscored == 0


def test_a_record_is_shown_in_one_short_line() -> None:
    record = DecisionRecord(
        step=5, alpha=-1.0, back="step", learning_rate=0.00227, reason="too far", rate_factor=0.5
    )
    line = "DecisionRecord(step 5, auto: the step is taken back, learning rate now 0.00227; too far)"
    assert (repr(record), str(record)) == (line, line)
    quiet = DecisionRecord(step=10, alpha=0.0, reason="no reason")
    assert repr(quiet) == "DecisionRecord(step 10, auto: nothing is done; no reason)"


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 1e300])
def test_a_rate_that_no_optimizer_can_have_stops_no_training(rate: float) -> None:
    record = DecisionRecord.of(stay("why"), step=3, learning_rate=rate, lr_factor=rate)
    assert (record.learning_rate, record.lr_factor) == (None, None)
