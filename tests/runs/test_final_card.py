"""The card in `final/`: what was trained, and what was done to it on the way."""

from __future__ import annotations

from typing import Any

import pytest

from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.runs.adapters import _card
from nextrl.runs.arm import ArmRecord, ArmSettings


def card(lora: LoraSettings | None, *decisions: dict[str, Any]) -> str:
    arm = ArmSettings(
        name="run", kind="auto", label="run", train=TrainSettings(), lora=lora, auto=True, eval_at=(4,)
    )
    record = ArmRecord.model_validate(
        {
            "name": "run",
            "kind": "auto",
            "label": "run",
            "decisions": [{"step": 2, "reason": "", **decision} for decision in decisions],
        }
    )
    return _card(arm, record, "final")


@pytest.mark.parametrize("back", ["step", "window", "run"])
def test_what_was_taken_back_is_no_leap(back: str) -> None:
    text = card(LoraSettings(), {"alpha": -1.0, "back": back}, {"alpha": 0.0})
    assert "| leaps taken | 0 |" in text
    assert "| steps, windows or leaps taken back | 1 |" in text


def test_a_leap_that_the_guard_took_back_is_said_to_be() -> None:
    leapt = {"alpha": 2.0, "method": "secant", "horizon": 50}
    text = card(LoraSettings(), leapt, {"alpha": 0.0, "rolled_back": 2})
    assert "| leaps taken | 1 |" in text
    assert "| steps, windows or leaps taken back | 1 |" in text
    assert "taken back" not in card(LoraSettings(), leapt)


def test_a_model_that_was_trained_is_not_called_merged() -> None:
    text = card(None)
    assert "# Trained model written by nextrl" in text
    assert "erged" not in text
    assert "AutoModelForCausalLM.from_pretrained('final')" in text
    assert "# LoRA adapter written by nextrl" in card(LoraSettings())
