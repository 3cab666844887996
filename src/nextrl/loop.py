"""One arm: train a model on a task, evaluate it on the way, leap where the arm says so, write down what it cost.

An arm writes one JSON file when it is done; a comparison is a set of arms. Costs are the arm's own: completions of
training and of search, and seconds without the evaluations, which measure the run and are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl import models
from nextrl.atomic import write_bytes
from nextrl.callback import LeapCallback
from nextrl.engines.trl import LoraSettings, TrainSettings, as_dataset, build_trainer, with_adapter
from nextrl.evaluate import Accuracy, evaluate
from nextrl.single_leap import SingleLeap
from nextrl.tasks import base

Kind = Literal["plain", "control", "leap", "auto"]
Progress = Callable[[str, int], None]
"""Called with an arm's name and its step, after every step."""


class LeapSettings(BaseModel):
    """A single leap by a named method from a checkpoint of another arm."""

    model_config = ConfigDict(extra="forbid")

    method: str
    horizon: int = Field(50, ge=1)
    alphas: tuple[float, ...]
    prompts: int = Field(128, ge=2)


class ArmSettings(BaseModel):
    """One arm of a comparison.

    Attributes:
        model: a name or folder for `models.load`.
        start: step of the plain arm's checkpoint that this arm goes on from (0: from scratch).
        merge: at `start`, fold the adapter into the base and begin a fresh adapter and optimizer (restart control).
        leap: leap once at `start`.
        auto: run with `LeapCallback`.
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
    save: bool = False
    eval_at: tuple[int, ...]
    eval_prompts: int = Field(1000, ge=2)


class ArmRecord(BaseModel):
    """What an arm did: lists with one entry an evaluation, costs cumulative."""

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
    search_completions: int = 0
    search_seconds: float = 0.0
    train_seconds: float = 0.0


class _Meter(TrainerCallback):
    """Evaluates at the given steps and keeps the arm's clock, which stands still during evaluations."""

    def __init__(
        self, arm: ArmSettings, tokenizer: Any, record: ArmRecord, before: tuple[int, float]
    ) -> None:
        self._arm, self._tokenizer, self.record = arm, tokenizer, record
        self._task = base.get(arm.task)
        self._completions, self._seconds = before
        self.search: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
        self.progress: Progress = lambda name, step: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the arm where it starts, leap included."""
        self._mark = time.perf_counter()
        self._offset = state.global_step
        self._evaluate(state.global_step, kwargs["model"], kwargs["optimizer"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the clock; evaluate if due."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self.record.train_seconds = self._seconds
        if state.global_step in self._arm.eval_at:
            self._evaluate(state.global_step, kwargs["model"], kwargs["optimizer"])
        self._mark = time.perf_counter()
        self.progress(self._arm.name, state.global_step)

    def _evaluate(self, step: int, model: Any, optimizer: Any) -> None:
        with _evaluation_weights(optimizer):
            result: Accuracy = evaluate(model, self._tokenizer, self._task, prompts=self._arm.eval_prompts)
        r = self.record
        r.steps.append(step)
        r.accuracy.append(result.accuracy)
        r.se.append(result.se)
        r.greedy.append(result.greedy if result.greedy is not None else float("nan"))
        trained = (step - self._offset) * self._arm.train.completions_per_step
        r.completions.append(self._completions + trained + self.search()[0])
        r.seconds.append(round(self._seconds, 3))
        r.learning_rate.append(float(getattr(optimizer, "optimizer", optimizer).param_groups[0]["lr"]))


class _evaluation_weights:
    """Schedule-free optimizers keep the averaged weights aside: swap them in while evaluating."""

    def __init__(self, optimizer: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        self._optimizer = inner if hasattr(inner, "eval") and hasattr(inner, "train") else None

    def __enter__(self) -> None:
        if self._optimizer is not None:
            self._optimizer.eval()

    def __exit__(self, *_: object) -> None:
        if self._optimizer is not None:
            self._optimizer.train()


def _model(arm: ArmSettings, plain: Path) -> tuple[Any, Any]:
    """The arm's PEFT model and its tokenizer."""
    base_model, tokenizer = models.load(arm.model, arm.task)
    if not arm.merge:
        return with_adapter(base_model, arm.lora, arm.train.seed), tokenizer
    merged = PeftModel.from_pretrained(base_model, str(plain / f"checkpoint-{arm.start}")).merge_and_unload()
    return with_adapter(merged, arm.lora, arm.train.seed + 1), tokenizer


def _before(arm: ArmSettings, plain_record: ArmRecord | None) -> tuple[int, float]:
    """Completions and seconds that the plain arm had spent at `start`."""
    if not arm.start or plain_record is None:
        return 0, 0.0
    at = max(i for i, step in enumerate(plain_record.steps) if step <= arm.start)
    return plain_record.completions[at], plain_record.seconds[at]


def run_arm(arm: ArmSettings, folder: Path, plain: Path, progress: Progress | None = None) -> ArmRecord:
    """Run an arm to its end and write `folder/record.json`; one that is there already is read back instead.

    Args:
        folder: the arm's own folder.
        plain: the folder of the plain arm, whose checkpoints an arm with `start` goes on from.
    """
    done = folder / "record.json"
    if done.is_file():
        return ArmRecord.model_validate_json(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = _model(arm, plain)
    plain_record = read_record(plain) if arm.start else None
    record = ArmRecord(name=arm.name, kind=arm.kind, label=arm.label)
    meter = _Meter(arm, tokenizer, record, _before(arm, plain_record))
    meter.progress = progress or meter.progress
    callbacks, leaper = _leapers(arm, folder, plain)
    # A restart begins its own count: a fresh adapter and optimizer know nothing of the steps before.
    settings = arm.train.model_copy(update={"steps": arm.train.steps - arm.start}) if arm.merge else arm.train
    task = base.get(arm.task)
    trainer = build_trainer(
        model, tokenizer, task, settings, folder, save=arm.save, callbacks=[*callbacks, meter]
    )
    if isinstance(leaper, SingleLeap):
        leaper.trainer = trainer
    meter.search = lambda: _spent(leaper)
    resume = str(plain / f"checkpoint-{arm.start}") if arm.start and not arm.merge else None
    trainer.train(resume_from_checkpoint=resume)
    _finish(record, arm, leaper, trainer)
    write_bytes(done, record.model_dump_json(indent=1).encode())
    return record


def _leapers(
    arm: ArmSettings, folder: Path, plain: Path
) -> tuple[list[TrainerCallback], TrainerCallback | None]:
    validation = as_dataset(base.get(arm.task).examples("validation"))
    if arm.auto:
        callback = LeapCallback(validation=validation, seed=arm.train.seed)
        return [callback], callback
    if arm.leap is not None:
        rows = [validation[i] for i in range(arm.leap.prompts)]
        single = SingleLeap(
            plain,
            arm.start,
            arm.leap.method,
            rows,
            folder / "leap",
            horizon=arm.leap.horizon,
            alphas=arm.leap.alphas,
            prompts=arm.leap.prompts,
            seed=arm.train.seed,
        )
        return [single], single
    return [], None


def _spent(leaper: TrainerCallback | None) -> tuple[int, float]:
    """(completions, seconds) that searches and fits have taken so far."""
    if isinstance(leaper, LeapCallback):
        return leaper.costs.search_completions, leaper.costs.search_seconds
    if isinstance(leaper, SingleLeap) and leaper.record is not None:
        return leaper.record.search_completions, leaper.record.search_seconds + leaper.record.fit_seconds
    return 0, 0.0


def _finish(record: ArmRecord, arm: ArmSettings, leaper: TrainerCallback | None, trainer: Any) -> None:
    record.search_completions, record.search_seconds = _spent(leaper)
    if isinstance(leaper, LeapCallback):
        record.decisions = leaper.decisions
    if isinstance(leaper, SingleLeap) and leaper.record is not None:
        record.leap = leaper.record.as_dict()
        # A single leap happens before the first step, when the meter's clock has not begun.
        record.seconds = [round(s + record.search_seconds, 3) for s in record.seconds]
    if arm.merge:
        record.steps = [step + arm.start for step in record.steps]
    record.rewards = [float(h["reward"]) for h in trainer.state.log_history if h.get("reward") is not None]


def read_record(folder: Path) -> ArmRecord:
    """The record of a finished arm."""
    return ArmRecord.model_validate_json((folder / "record.json").read_text())


def temperature_control(
    arm: ArmSettings, folder: Path, plain: Path, temperatures: Sequence[float] = (1.0, 0.8, 0.6, 0.4, 0.2)
) -> ArmRecord:
    """The plain arm's checkpoint at `start`, sampled at the temperature that validation prompts prefer.

    What sharpening alone would give, with no training at all; charged for the validation completions.
    """
    done = folder / "record.json"
    if done.is_file():
        return ArmRecord.model_validate_json(done.read_text())
    base_model, tokenizer = models.load(arm.model, arm.task)
    model = PeftModel.from_pretrained(base_model, str(plain / f"checkpoint-{arm.start}"))
    task = base.get(arm.task)
    validation = task.examples("validation")[:128]
    began = time.perf_counter()
    scores = {
        t: evaluate(model, tokenizer, task, temperature=t, greedy=False, examples=validation).accuracy
        for t in temperatures
    }
    seconds = time.perf_counter() - began
    best = max(scores, key=lambda t: scores[t])
    result = evaluate(model, tokenizer, task, prompts=arm.eval_prompts, temperature=best)
    completions, before = _before(arm, read_record(plain))
    record = ArmRecord(
        name=arm.name,
        kind=arm.kind,
        label=f"{arm.label} {best:g}",
        steps=[arm.start],
        accuracy=[result.accuracy],
        se=[result.se],
        greedy=[result.greedy or 0.0],
        completions=[completions + len(validation) * len(scores)],
        seconds=[round(before + seconds, 3)],
        learning_rate=[arm.train.learning_rate],
        search_completions=len(validation) * len(scores),
        search_seconds=seconds,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(done, record.model_dump_json(indent=1).encode())
    return record


def one_thread() -> None:
    """Two arms side by side on two cores are faster with one thread each than with two."""
    torch.set_num_threads(1)


def settings_hash(arms: Sequence[ArmSettings]) -> str:
    """A short text that changes with any setting of any arm, to tell one comparison's folder from another's."""
    text = json.dumps([arm.model_dump(mode="json") for arm in arms], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
