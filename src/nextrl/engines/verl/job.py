"""`engine: verl` of `nextrl run`: one process of verl with nextrl's plugin, and its adapters where nextrl reads them.

OUT/global_step_N/                       verl's checkpoints; in each `nextrl/` is what leaps remember
OUT/global_step_N/actor/lora_adapter/    the adapter, written when verl is done: OUT is a run that nextrl can read
OUT/data/                                what verl reads of the task
OUT/metrics.jsonl, OUT/verl.log          what verl logged and printed, before a resume and after it
OUT/nextrl_decisions.jsonl               one line per decision
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextrl.checkpoints.adapter import WEIGHTS
from nextrl.checkpoints.atomic import write_bytes, write_json
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.layouts.verl import EARLIER_METRICS, FOLDER, METRICS, SETTINGS, tracked
from nextrl.engines.folder_lock import claimed
from nextrl.engines.verl import adapters, config, process
from nextrl.engines.verl.config import VerlSettings
from nextrl.engines.verl.data import TEMPLATE, plain_template, tokenizer, write_data
from nextrl.engines.verl.options import check_model, check_run, check_versions, options_of
from nextrl.errors import InputError
from nextrl.files import read_bytes, read_json, visible
from nextrl.judge import decision_file
from nextrl.judge.decision import DecisionRecord
from nextrl.tasks import base

log = logging.getLogger(__name__)

MAX_LOG = 2**32
"""Bytes of verl's log that are joined with what it logs after a resume; a step takes some 5 kB."""


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        step: optimizer steps taken.
        adapter: the folder of the last adapter.
        decisions: in order.
    """

    step: int
    adapter: Path
    decisions: list[DecisionRecord]


def plan(settings: VerlSettings, out: Path) -> str:
    """The command that would be started. Nothing is read but the task: no model, no verl.

    Where the model's tokenizer puts a token before a text, the run's own template has it in front.
    """
    return shlex.join([*process.COMMAND, *_words(settings, out, settings.chat_template or TEMPLATE)])


def run(settings: VerlSettings, out: Path) -> Outcome:
    """Train, or go on where an earlier run in this folder was stopped.

    Raises:
        InputError: something is missing or wrong, another run lies in the folder, or verl failed or ended early.
    """
    template = settings.chat_template or plain_template(tokenizer(settings.model))
    words = _words(settings, out, template)
    check_versions(config.installed())
    _check(settings, config.check(words))
    with claimed(out):
        _begin(settings, out)
        command = [*process.COMMAND, *words]
        log.info("engine verl: %s", shlex.join(command))
        with _log_kept(out):
            process.run(command, out / "verl.log")
        return _outcome(settings, out)


@contextmanager
def _log_kept(out: Path) -> Iterator[None]:
    """Around verl, whose file logger begins its file anew: what a run had logged before stands in front afterwards."""
    _join_logs(out)
    if (out / METRICS).is_file():
        (out / METRICS).replace(out / EARLIER_METRICS)
    try:
        yield
    finally:
        _join_logs(out)


def _join_logs(out: Path) -> None:
    """One log of both parts. Where we are killed in here some lines are there twice, of which the later counts."""
    if not (out / EARLIER_METRICS).is_file():
        return
    parts = [read_bytes(out / name, MAX_LOG) for name in (EARLIER_METRICS, METRICS) if (out / name).is_file()]
    # A line that was cut off when verl was killed ends here, so that the next one is whole.
    write_bytes(out / METRICS, b"".join(p if p.endswith(b"\n") or not p else p + b"\n" for p in parts))
    (out / EARLIER_METRICS).unlink()


def _outcome(settings: VerlSettings, out: Path) -> Outcome:
    """Give every checkpoint its adapter, and see that the last step was reached.

    Raises:
        InputError: it was not.
    """
    reached = tracked(out)
    # What lies above the tracker is of a branch that was left.
    steps = [step for step, _ in numbered(out, FOLDER)[0] if reached is None or step <= reached]
    for step in steps[1:]:
        # verl has removed the actor of earlier ones where it is told to keep but a few (max_actor_ckpt_to_keep).
        if step == steps[-1] or (out / f"global_step_{step}" / "actor").is_dir():
            adapters.collect(out / f"global_step_{step}", out / config.START)
    reached = steps[-1] if reached is None else reached
    if reached < settings.train.steps:
        raise InputError(
            f"engine verl: verl ended after step {reached} of {settings.train.steps} and called it done; "
            f"{out / 'verl.log'} has what it said"
        )
    adapter = out / f"global_step_{steps[-1]}" / "actor" / "lora_adapter"
    return Outcome(steps[-1], adapter, decision_file.read(out))


def _check(settings: VerlSettings, composed: Any) -> None:
    """See that the run works with the user's own overrides, too.

    Args:
        composed: verl's config, overrides included.

    Raises:
        InputError: see `options.check_run`; or it would end early, or leave no adapter.
    """
    if settings.dials is None:
        check_model(composed)
    else:
        check_run(composed)
        options_of(composed.trainer.v1.get("nextrl"))
    if "model" not in composed.actor_rollout_ref.actor.checkpoint.save_contents:
        raise InputError(
            "verl override actor_rollout_ref.actor.checkpoint.save_contents: the adapters are read out of what it "
            "saves: name 'model' among them"
        )
    rows, most = len(base.get(settings.task).examples("train")), composed.data.get("train_max_samples", -1)
    used = min(rows, most) if most and most > 0 else rows
    ends = config.steps_per_pass(used, composed.data.train_batch_size) * composed.trainer.total_epochs
    if ends < settings.train.steps:
        raise InputError(
            f"verl would end after step {ends} of {settings.train.steps}: among verl.overrides give more of "
            "trainer.total_epochs or data.train_max_samples, or leave them out"
        )


def _words(settings: VerlSettings, out: Path, template: str) -> list[str]:
    return config.arguments(config.compose(settings, out.absolute(), template), settings.overrides)


def _begin(settings: VerlSettings, out: Path) -> None:
    """Write the data and the adapter to start from; nothing where a run with these settings has begun here.

    The last step may be moved, to go on with a finished run, and other loggers named. The adapter's tensors are written
    last: without them the beginning was cut short, and is written again.

    Raises:
        InputError: the folder holds something else, or the adapter fits no such run; nothing was written then.
    """
    path, start = out / SETTINGS, out / config.START
    asked = settings.model_dump(mode="json")
    del asked["train"]["steps"], asked["loggers"]
    if not path.exists() and visible(out):
        raise InputError(f"{out}: is not empty and holds no verl run to resume; choose another folder")
    if path.exists() and read_json(path) != asked:
        raise InputError(
            f"{out}: holds a run with other settings; choose another folder, or give the same settings to resume"
        )
    if path.exists() and (start / WEIGHTS).is_file():
        return
    adapter = adapters.fresh_adapter(settings.model, settings.lora, settings.train.seed)
    write_json(path, asked)
    write_data(base.get(settings.task), out / "data")
    adapter.write(start)
