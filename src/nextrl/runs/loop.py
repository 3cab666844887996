"""Train -> leap -> train, any number of cycles: run one arm on a task, evaluate it on the way, write down what it cost.

`run_arm` is an arm of a comparison, `train` the same loop for whoever keeps the records (`nextrl run`, which resumes).
Costs are the arm's own: completions of training and of search, and seconds without the evaluations, which measure the
run and are not part of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerState

from nextrl.checkpoints.atomic import write_bytes
from nextrl.checkpoints.layouts.listing import trainer_checkpoint
from nextrl.engines.history import DiskHistory
from nextrl.engines.policies import AtSteps, Auto
from nextrl.engines.ranks import launched
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.samplers import PromptOrder
from nextrl.engines.trl.trainer import as_dataset, build_trainer, with_adapter
from nextrl.judge.acceptance import Acceptance, stages_up_to
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import DecisionRecord
from nextrl.leaps.leap import leap
from nextrl.runs.adapters import NamesItsBase, write_final
from nextrl.runs.arm import ArmRecord, ArmSettings, LeapSettings, Progress, read_record
from nextrl.runs.layout import FINAL, LEAPS, RECORD, STOPPED, TRAJECTORY
from nextrl.runs.meter import Meter, evaluation_weights
from nextrl.runs.resume import Checkpoint, Resumable
from nextrl.tasks import base, bases
from nextrl.tasks.bases.device import placed
from nextrl.tasks.evaluate import evaluate

TEMPERATURES = (1.0, 0.8, 0.6, 0.4, 0.2)
"""What the temperature control samples at."""


@dataclass(frozen=True)
class RunFolder:
    """Where a resumable arm writes, and how it is stopped.

    Attributes:
        out: the run's folder: `trajectory/` (the trainer's checkpoints), `leaps/`, `stopped/`, `final/`.
        resume: go on from here; None from scratch.
        stop_asked: asked after every step; True saves and stops.
        report_to: the trainer's loggers.
        config: the run's config, which each checkpoint keeps.
    """

    out: Path
    resume: Checkpoint | None = None
    stop_asked: Callable[[], bool] = lambda: False
    report_to: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


def _adapted(arm: ArmSettings, base_model: Any, seed: int) -> Any:
    """The base with a fresh adapter, or as it is where all weights are trained."""
    return base_model if arm.lora is None else with_adapter(base_model, arm.lora, seed)


@dataclass(frozen=True)
class _Start:
    """What an arm begins with: its model, and the leap that was folded into its base, with the seconds of its fit."""

    model: Any
    tokenizer: Any
    merged: tuple[DecisionRecord, ...] = ()
    fit_seconds: float = 0.0


def _start(arm: ArmSettings, plain: Path, folder: Path) -> _Start:
    base_model, tokenizer = bases.load(arm.model, arm.task)
    if not arm.merge:
        return _Start(_adapted(arm, base_model, arm.train.seed), tokenizer)
    adapter = trainer_checkpoint(plain, arm.start)
    decisions: tuple[DecisionRecord, ...] = ()
    seconds = 0.0
    if arm.leap:
        adapter = folder / LEAPS / f"leap-{arm.start}"
        decision, seconds = _leap_to_merge(arm, arm.leap, plain, adapter)
        decisions = (decision,)
    model = PeftModel.from_pretrained(base_model, str(adapter), torch_device="cpu").merge_and_unload()
    return _Start(_adapted(arm, model, arm.train.seed + 1), tokenizer, decisions, seconds)


def _leap_to_merge(
    arm: ArmSettings, settings: LeapSettings, plain: Path, place: Path
) -> tuple[DecisionRecord, float]:
    """Write the leap as an adapter that holds all of it, whatever rank that takes: it is merged, and not trained on."""
    traj, alpha = DiskHistory(plain, place.parent).trajectory(arm.start), settings.alphas[0]
    made = leap(traj, settings.method, settings.horizon, alpha, seed=arm.train.seed, **settings.params)
    made.save_adapter(place, max(made.target(module).rank for module in traj.modules), arm.task)
    decision = DecisionRecord(
        step=arm.start,
        method=settings.method,
        alpha=alpha,
        learning_rate=arm.train.learning_rate,
        reason=f"{settings.method}: alpha {alpha:g} as given, merged into the base",
        horizon=settings.horizon,
    )
    return decision, made.seconds


def _before(arm: ArmSettings, plain_record: ArmRecord | None) -> tuple[int, float]:
    """Completions and seconds that the plain arm had spent at `start`."""
    if not arm.start or plain_record is None:
        return 0, 0.0
    at = max(i for i, step in enumerate(plain_record.steps) if step <= arm.start)
    return plain_record.completions[at], plain_record.seconds[at]


def run_arm(arm: ArmSettings, folder: Path, plain: Path, progress: Progress | None = None) -> ArmRecord:
    """Run an arm of a comparison and write `folder/record.json`; one that is there already is read back instead.

    Args:
        folder: the arm's own folder.
        plain: the folder of the plain arm, whose checkpoints an arm with `start` goes on from.
    """
    done = folder / RECORD
    if done.is_file():
        return read_record(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = _start(arm, plain, folder)
    completions, seconds = _before(arm, read_record(plain) if arm.start else None)
    record = ArmRecord(name=arm.name, kind=arm.kind, label=arm.label, decisions=list(start.merged))
    meter = Meter(arm, start.tokenizer, record, (completions, seconds + start.fit_seconds))
    meter.progress = progress or meter.progress
    leaper = None if arm.merge else _leaper(arm, plain if arm.start else folder, folder)
    # A restart begins its own count: a fresh adapter and optimizer know nothing of the steps before.
    settings = arm.train.model_copy(update={"steps": arm.train.steps - arm.start}) if arm.merge else arm.train
    trainer = build_trainer(
        start.model,
        start.tokenizer,
        base.get(arm.task),
        settings,
        folder,
        save=arm.save,
        callbacks=[*([leaper] if leaper else []), meter, NamesItsBase(arm.model), PromptOrder()],
    )
    if leaper:
        meter.costs, meter.cooled = lambda: leaper.costs, lambda: leaper.cooled
    resume = str(trainer_checkpoint(plain, arm.start)) if arm.start and not arm.merge else None
    trainer.train(resume_from_checkpoint=resume)
    _update(record, leaper, trainer.state)
    if arm.merge:
        record.steps = [step + arm.start for step in record.steps]
        record.rate_steps = [step + arm.start for step in record.rate_steps]
        record.fit_seconds = record.search_seconds = start.fit_seconds
    write_bytes(done, record.model_dump_json(indent=1).encode())
    return record


def train(
    arm: ArmSettings, run: RunFolder, loaded: tuple[Any, Any], progress: Progress | None = None
) -> tuple[ArmRecord, int]:
    """Run an arm that starts from scratch, keeps its checkpoints and can be killed; returns its record and its step.

    At the last step `run.out/final/` holds the adapter. A step before the last means that the run was asked to stop.

    Args:
        loaded: base model and tokenizer.
    """
    record = run.resume.record.model_copy(deep=True) if run.resume else None
    record = record or ArmRecord(name=arm.name, kind=arm.kind, label=arm.label)
    if run.resume:
        record.resumed.append(run.resume.step)
    base_model, tokenizer = loaded
    meter = Meter(arm, tokenizer, record)
    meter.progress = progress or meter.progress
    leaper = _leaper(arm, run.out / TRAJECTORY, run.out, on_leap=meter.evaluate)
    if leaper:
        meter.costs, meter.cooled = lambda: leaper.costs, lambda: leaper.cooled

    def update(state: TrainerState) -> None:
        meter.tick()
        _update(record, leaper, state)

    def keep(model: Any, optimizer: Any) -> None:
        with evaluation_weights(optimizer):
            write_final(model, tokenizer, run.out / FINAL, arm, record)

    resumable = Resumable(record, update, keep, run.stop_asked, run.out / STOPPED, run.config)
    trainer = build_trainer(
        _adapted(arm, base_model, arm.train.seed),
        tokenizer,
        base.get(arm.task),
        arm.train,
        run.out / TRAJECTORY,
        callbacks=[*([leaper] if leaper else []), meter, NamesItsBase(arm.model), PromptOrder(), resumable],
        report_to=run.report_to,
        log_dir=run.out / "logs",
    )
    trainer.train(resume_from_checkpoint=str(run.resume.folder) if run.resume else None)
    update(trainer.state)
    return record, int(trainer.state.global_step)


def _leaper(
    arm: ArmSettings, checkpoints: Path, out: Path, on_leap: Callable[[int, Any, Any], None] | None = None
) -> LeapCallback | None:
    """The callback that leaps as the arm says; None where it does not.

    Args:
        checkpoints: folder of the run that a named method is fitted on.
        out: `leaps/` in there gets the adapters that a named method's leaps leave.
        on_leap: called after a leap in the middle of the run.
    """
    seed = arm.train.seed
    if arm.auto:
        config = ControllerConfig(**{"every": arm.window, **arm.dials})
        return LeapCallback(policy=Auto(config), seed=seed)
    if arm.leap is None:
        return None
    validation = as_dataset(base.get(arm.task).examples("validation")) if arm.leap.search else None
    policy = _policy(arm, arm.leap, DiskHistory(checkpoints, out / LEAPS, writes=launched().leader))
    if arm.leap.accept == "argmax":
        return LeapCallback(
            policy=policy,
            validation=validation,
            seed=seed,
            on_leap=on_leap,
            rollback=False,
            longest=math.inf,
            truncated=1.0,
            divergence=math.inf,
        )
    return LeapCallback(policy=policy, validation=validation, seed=seed, on_leap=on_leap)


def _policy(arm: ArmSettings, settings: LeapSettings, disk: DiskHistory) -> AtSteps:
    argmax = settings.accept == "argmax"
    return AtSteps(
        settings.method,
        settings.horizon,
        alpha=None if settings.search else settings.alphas[0],
        alphas=settings.alphas,
        at=settings.at or (arm.start,),
        every=None if argmax else arm.train.save_every,
        params=settings.params,
        acceptance=Acceptance(stages_up_to(settings.prompts), argmax=argmax),
        disk=disk,
        seed=arm.train.seed,
    )


def _update(record: ArmRecord, leaper: LeapCallback | None, state: TrainerState) -> None:
    """Bring a record up to the trainer's step; may be called any number of times."""
    if leaper is not None:
        costs = leaper.costs
        record.decisions = leaper.decisions
        record.search_completions, record.search_seconds = costs.search_completions, costs.search_seconds
        record.fit_seconds = costs.fit_seconds
    record.rewards = [float(h["reward"]) for h in state.log_history if h.get("reward") is not None]


def temperature_control(arm: ArmSettings, folder: Path, plain: Path) -> ArmRecord:
    """The plain arm's checkpoint at `start`, sampled at the temperature that validation prompts prefer.

    What sharpening alone would give, with no training at all; charged for the validation completions.
    """
    done = folder / RECORD
    if done.is_file():
        return read_record(folder)
    base_model, tokenizer = bases.load(arm.model, arm.task)
    model = PeftModel.from_pretrained(
        base_model, str(trainer_checkpoint(plain, arm.start)), torch_device="cpu"
    )
    model, task = placed(model), base.get(arm.task)
    validation = task.examples("validation")[:128]
    began = time.perf_counter()
    scores = {
        t: evaluate(model, tokenizer, task, temperature=t, greedy=False, examples=validation).accuracy
        for t in TEMPERATURES
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
