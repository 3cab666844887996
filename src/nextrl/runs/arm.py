"""What one training run of a comparison is told (`ArmSettings`) and what it did (`ArmRecord`), as plain data.

`nextrl demo` compares many arms, `nextrl run` has one. No trainer in here: `loop.py` runs an arm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nextrl.engines.settings import LoraSettings, TrainSettings

# The paper sweeps 0.5 ... 4; a run far below its tuned rate wants more (DESIGN section 2: up to 8), so rivals get 16.
PAPER_ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
WIDE_ALPHAS = (1.0, 2.0, 4.0, 8.0, 16.0)

Kind = Literal["plain", "control", "leap", "auto"]
Progress = Callable[[str, int], None]
"""Called with an arm's name and its step, after every step."""


class LeapSettings(BaseModel):
    """Leaps by a named method: one from another arm's checkpoint, or any number from the arm's own.

    Attributes:
        at: leap at these steps of the arm itself, each time from its own checkpoints since the leap before; empty:
            once, where the arm starts, from the checkpoints of the arm it goes on from.
        alphas: candidates of a search on validation prompts.
        search: False takes the one alpha given, without asking.
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    horizon: int = Field(50, ge=1)
    alphas: tuple[float, ...]
    prompts: int = Field(128, ge=2)
    at: tuple[int, ...] = ()
    search: bool = True


class ArmSettings(BaseModel):
    """One arm of a comparison.

    Attributes:
        model: a name or folder for `models.load`.
        start: step of the plain arm's checkpoint that this arm goes on from (0: from scratch).
        merge: at `start`, fold the adapter into the base and begin a fresh adapter and optimizer (restart control).
        leap: leap by a named method.
        auto: run with `LeapCallback`.
        window: steps between two looks of `LeapCallback`.
        prompts: held-out prompts that it scores a candidate on.
        dials: fields of `ControllerConfig` that differ from their defaults.
        save: keep checkpoints.
        eval_at: steps at which accuracy is measured, in the trainer's own count (a merged restart counts from 0).
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: Kind
    label: str
    task: str = "chain"
    model: str = "tiny"
    train: TrainSettings
    lora: LoraSettings = LoraSettings()
    start: int = Field(0, ge=0)
    merge: bool = False
    leap: LeapSettings | None = None
    auto: bool = False
    window: int = Field(10, ge=1)
    prompts: int = Field(64, ge=2)
    dials: dict[str, Any] = {}
    save: bool = False
    eval_at: tuple[int, ...]
    eval_prompts: int = Field(1000, ge=2)


class ArmRecord(BaseModel):
    """What an arm did: lists with one entry an evaluation, costs cumulative.

    Attributes:
        leap: the single leap of an arm that goes on from another's checkpoint.
        cycles: the leaps at named steps of the arm itself, in order.
        resumed: steps from which a stopped arm went on.
    """

    name: str
    kind: Kind
    label: str
    steps: list[int] = []
    accuracy: list[float] = []
    se: list[float] = []
    greedy: list[float] = []
    completions: list[int] = []
    seconds: list[float] = []
    learning_rate: list[float] = []
    rewards: list[float] = []
    decisions: list[dict[str, Any]] = []
    leap: dict[str, Any] | None = None
    cycles: list[dict[str, Any]] = []
    search_completions: int = 0
    search_seconds: float = 0.0
    train_seconds: float = 0.0
    resumed: list[int] = []


def read_record(folder: Path) -> ArmRecord:
    """The record of a finished arm."""
    return ArmRecord.model_validate_json((folder / "record.json").read_text())


def settings_hash(arms: Sequence[ArmSettings]) -> str:
    """A short text that changes with any setting of any arm, to tell one comparison's folder from another's."""
    text = json.dumps([arm.model_dump(mode="json") for arm in arms], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
