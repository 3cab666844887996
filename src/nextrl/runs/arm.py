"""What one training run of a comparison is told (`ArmSettings`) and what it did (`ArmRecord`), as plain data.

`nextrl demo` compares many arms, `nextrl run` has one. No trainer in here: `loop.py` runs an arm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.errors import InputError
from nextrl.files import read_json
from nextrl.judge.decision import DecisionRecord
from nextrl.judge.regime import DEFAULT_WINDOW
from nextrl.leaps.leap import DEFAULT_HORIZON
from nextrl.runs.layout import RECORD

Kind = Literal["plain", "control", "leap", "auto"]
Progress = Callable[[str, int], None]
"""Called with an arm's name and its step, after every step."""


class LeapSettings(BaseModel):
    """Leaps by a named method: one from another arm's checkpoint, or any number from the arm's own.

    Attributes:
        at: leap at these steps of the arm itself, each time from its own checkpoints since the leap before; empty:
            once, where the arm starts, from the checkpoints of the arm it goes on from.
        params: the method's own parameters.
        alphas: candidates of a search on validation prompts.
        search: False takes the one alpha given, without asking.
        accept: "validated" takes what beats staying put past the noise, keeps the guard's bounds and can be taken
            back; "argmax" is the papers' rule, the best mean (`judge.acceptance`).
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    horizon: int = Field(DEFAULT_HORIZON, ge=1)
    params: dict[str, Any] = {}
    alphas: tuple[float, ...]
    prompts: int = Field(128, ge=2)
    at: tuple[int, ...] = ()
    search: bool = True
    accept: Literal["validated", "argmax"] = "validated"


class ArmSettings(BaseModel):
    """One arm of a comparison.

    Attributes:
        name, kind, label: how the arm is called, what it is compared as, and what a reader sees.
        model: a name or folder for `tasks.bases.load`.
        start: step of the plain arm's checkpoint that this arm goes on from (0: from scratch).
        lora: the adapter; None trains all weights (full fine-tuning), where `auto` works and nothing leaps.
        merge: at `start`, fold the adapter into the base and begin a fresh adapter and optimizer. With a leap of one
            given alpha it is the leap that is folded in, which is how the NExt paper goes on (second-hand); without,
            it is the restart that such a leap has to be compared with.
        leap: leap by a named method.
        auto: run with `LeapCallback`.
        window: steps between two looks of `LeapCallback`.
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
    lora: LoraSettings | None = LoraSettings()
    start: int = Field(0, ge=0)
    merge: bool = False
    leap: LeapSettings | None = None
    auto: bool = False
    window: int = Field(DEFAULT_WINDOW, ge=1)
    dials: dict[str, Any] = {}
    save: bool = False
    eval_at: tuple[int, ...]
    eval_prompts: int = Field(1000, ge=2)

    @model_validator(mode="after")
    def _possible(self) -> ArmSettings:
        if self.lora is None and (self.leap or self.merge):
            raise ValueError("lora: full fine-tuning has no adapter that could leap or be merged")
        if self.merge and self.leap and self.leap.search:
            raise ValueError("merge: the leap that is merged needs search=False and one alpha")
        return self


class ArmRecord(BaseModel):
    """What an arm did; lists have one entry per evaluation where nothing else is said, and costs add up.

    Attributes:
        rate_steps, rates: the steps that were taken at another learning rate than the step before, and that rate; empty
            in records of earlier versions.
        decisions: what was decided at the ends of windows and at named steps, in order.
        search_completions, search_seconds: what deciding took, the fits of methods included.
        fit_seconds: the part of `search_seconds` that fits took.
        resumed: steps from which a stopped arm went on.
        test_prompts: held-out prompts that each accuracy is of; None in records of earlier versions.
    """

    model_config = ConfigDict(extra="forbid")

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
    rate_steps: list[int] = []
    rates: list[float] = []
    rewards: list[float] = []
    decisions: list[DecisionRecord] = []
    search_completions: int = 0
    search_seconds: float = 0.0
    fit_seconds: float = 0.0
    train_seconds: float = 0.0
    resumed: list[int] = []
    test_prompts: int | None = None


def read_record(folder: Path) -> ArmRecord:
    """The record of a finished arm.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = folder / RECORD
    try:
        return ArmRecord.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{file}: damaged ({where}: {first['msg']}); remove it, and the arm is run again"
        ) from None


def settings_hash(arms: Sequence[ArmSettings]) -> str:
    """A short text that changes with any setting of any arm, to tell one comparison's folder from another's."""
    text = json.dumps([arm.model_dump(mode="json") for arm in arms], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
