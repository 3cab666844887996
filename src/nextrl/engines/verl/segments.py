"""RLVR through verl on Ray, with leaps: segments of verl's own trainer, and a decision between each two.

A segment is one process of `python -m verl.trainer.main_ppo` that ends by itself after a window of steps. nextrl
reads the adapter from verl's checkpoint and the rewards from verl's log, asks the controller of `auto`, and starts the
next segment: from verl's own checkpoint, with Adam's moments and the place in the data, where nothing was decided;
from the leap (or from the same adapter, at another rate) where something was. Such a restart begins with fresh
moments, since verl takes an adapter but no optimizer state beside it. verl is neither patched nor imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from nextrl.checkpoints.adapter import WEIGHTS
from nextrl.checkpoints.atomic import write_bytes
from nextrl.engines.verl import (
    adapters as verl_adapters,
)
from nextrl.engines.verl import (
    config as verl_config,
)
from nextrl.engines.verl import (
    process as verl_process,
)
from nextrl.engines.verl import (
    state as verl_state,
)
from nextrl.engines.verl.config import Segment, VerlSettings
from nextrl.engines.verl.data import plain_template, tokenizer, write_data
from nextrl.engines.verl.scoring import Scorer, TransformersScorer
from nextrl.engines.verl.segment_config import SegmentConfig
from nextrl.engines.verl.segment_controller import SegmentController
from nextrl.engines.verl.state import Leg, RunState
from nextrl.errors import InputError
from nextrl.judge.decision import Decision, DecisionRecord
from nextrl.judge.paired_search import SEED_STRIDE
from nextrl.judge.window import Window
from nextrl.leaps.provenance import write_provenance
from nextrl.tasks import base
from nextrl.trajectory.lowrank import LowRank, cosine
from nextrl.trajectory.persistence import adam_persistence
from nextrl.trajectory.trajectory import Trajectory

log = logging.getLogger(__name__)


class VerlRun:
    """One run of verl with leaps in a folder; `run` starts it, or resumes what the folder holds.

    Args:
        settings: what to run.
        out: its folder (on storage that all nodes see).
        controller: dials of `auto`; `every` is the length of a segment.
        scorer: scores candidates; by default `TransformersScorer`.
        command: what is started in place of verl's trainer, up to its overrides.
        merger: verl's model merger, up to its verb.
    """

    def __init__(
        self,
        settings: VerlSettings,
        out: Path,
        *,
        controller: SegmentConfig | None = None,
        scorer: Scorer | None = None,
        command: Sequence[str] = verl_process.COMMAND,
        merger: Sequence[str] = verl_adapters.MERGER,
    ) -> None:
        if settings.train.optimizer != "adamw":
            raise InputError(f"engine verl trains with adamw, not {settings.train.optimizer}")
        if settings.train.algorithm not in ("grpo", settings.algorithm):
            raise InputError(
                f"engine verl: algorithm is {settings.algorithm}, train.algorithm another: set one"
            )
        self._settings, self._out = settings, out.resolve()
        self._config = controller or SegmentConfig()
        self._task = base.get(settings.task)
        self._length = settings.train.max_completion_length or self._task.max_completion_length
        self._scorer = scorer or TransformersScorer(self._task, self._length, settings.train.temperature)
        self._command, self._merger = tuple(command), tuple(merger)
        self._template = settings.chat_template

    def plan(self) -> str:
        """The first segment's command, as it would be typed in a shell; nothing is written or started.

        Raises:
            InputError: verl's config tree does not take one of its overrides.
        """
        state = RunState(settings="", leg=self._first_leg())
        overrides = self._overrides(state.leg, self._stop(state))
        verl_config.check(overrides)
        return shlex.join([*self._command, *overrides])

    def run(self) -> RunState:
        """Run to the last step, or go on where a stopped run was.

        Raises:
            InputError: a setting is wrong, or verl failed; what was done until then is kept and resumed.
        """
        state = verl_state.load(self._out, self._fingerprint()) or self._begin()
        while state.step < self._settings.train.steps:
            began = time.monotonic()
            stop = self._stop(state)
            self._train(state.leg, stop)
            self._add_seconds(state, "training", began)
            began = time.monotonic()
            self._end_window(state, stop)
            self._add_seconds(state, "search", began)
            verl_state.save(state, self._out)
        return state

    def _first_leg(self) -> Leg:
        return Leg(model=self._settings.model, rate=self._settings.train.learning_rate)

    def _begin(self) -> RunState:
        """Everything that can be wrong is found before anything is written."""
        leg, settings = self._first_leg(), self._settings
        tokenizer(settings.model)
        if self._command == verl_process.COMMAND:
            verl_config.check(self._overrides(leg, self._config.every))
        if self._out.is_dir() and any(self._out.iterdir()):
            raise InputError(
                f"{self._out}: is not empty and holds no verl run to resume; choose another folder"
            )
        verl_adapters.fresh_adapter(
            settings.model, settings.lora, settings.train.seed, leg.adapter(self._out, 0)
        )
        write_data(self._task, self._out / "data")
        state = RunState(settings=self._fingerprint(), leg=leg)
        verl_state.save(state, self._out)
        return state

    def _fingerprint(self) -> str:
        """Changes with everything but the last step, which may be moved to go on with a finished run."""
        settings = self._settings.model_dump(mode="json")
        del settings["train"]["steps"]
        text = json.dumps([settings, asdict(self._config)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _stop(self, state: RunState) -> int:
        """The end of the window that begins now, in steps of the whole run."""
        return min(state.step + self._config.every, self._settings.train.steps)

    def _train(self, leg: Leg, stop: int) -> None:
        """Have verl train to `stop` and take its adapter; nothing where that was done before an interruption."""
        taken = leg.adapter(self._out, stop)
        if (taken / WEIGHTS).is_file():
            return
        checkpoint = leg.folder(self._out) / f"global_step_{stop - leg.begins}"
        if not self._saved(leg, stop):
            where = f"to step {stop} ({leg.folder(self._out).name})"
            command = [*self._command, *self._overrides(leg, stop)]
            log.info("engine verl, %s: %s", where, shlex.join(command))
            verl_process.run(command, leg.folder(self._out) / "verl.log", where)
        like = leg.adapter(self._out, leg.begins)
        verl_adapters.collect(checkpoint, like, taken, self._settings.adapters, self._merger)

    def _saved(self, leg: Leg, stop: int) -> bool:
        """Whether verl itself has written down that this checkpoint is whole."""
        tracker = leg.folder(self._out) / "latest_checkpointed_iteration.txt"
        return tracker.is_file() and tracker.read_text().strip() == str(stop - leg.begins)

    def _overrides(self, leg: Leg, stop: int) -> list[str]:
        settings, folder, train = self._settings, leg.folder(self._out), self._settings.train
        attempts = len(list(folder.glob(f"metrics-{stop}-*.jsonl")))
        examples = len(self._task.examples("train"))
        segment = Segment(
            folder=folder,
            stop=stop - leg.begins,
            save_every=self._config.every,
            learning_rate=leg.rate,
            model=leg.model,
            adapter=leg.adapter(self._out, leg.begins),
            # verl's place in the data is not carried over a restart: other prompts, or it would repeat its first ones.
            seed=train.seed + 1000 * leg.index,
            data=self._out / "data",
            metrics=folder / f"metrics-{stop}-{attempts:03d}.jsonl",
            rollouts=self._rollouts(leg),
            chat_template=self._chat_template(),
            max_completion_length=self._length,
            passes=1 + math.ceil(train.steps * train.prompts_per_step / max(1, examples)),
        )
        return verl_config.arguments(verl_config.compose(settings, segment), settings.overrides)

    def _chat_template(self) -> str:
        if self._template is None:
            self._template = plain_template(tokenizer(self._settings.model))
        return self._template

    def _end_window(self, state: RunState, stop: int) -> None:
        """Decide at the end of a window and lay out the next leg where the decision asks for one."""
        leg, start = state.leg, state.step
        state.step, state.final = stop, str(leg.adapter(self._out, stop).relative_to(self._out))
        if stop - start < self._config.every:
            return
        traj = self._window(leg, start, stop)
        measured, persistence = self._persistence(state, traj, fresh=start == leg.begins)
        window = Window(stop, persistence, self._rewards(leg, start, stop), leg.rate, self._trained(stop))
        controller = SegmentController(self._config)
        if state.controller is not None:
            controller.restore(state.controller)
        decision = self._decide(controller, window, state, traj)
        state.controller, state.previous = controller.state(), (leg, start, stop)
        self._record(state, window, measured, decision)
        if decision.alpha or decision.rate_factor != 1.0:
            self._restart(state, traj, decision)

    def _window(self, leg: Leg, start: int, stop: int) -> Trajectory:
        return Trajectory.load({step: leg.adapter(self._out, step) for step in (start, stop)})

    def _persistence(
        self, state: RunState, traj: Trajectory, fresh: bool
    ) -> tuple[float | None, float | None]:
        """(the measured cosine, the cosine on the controller's scale), None in the first window.

        The controller's zero point is what Adam's moments keep of a direction from one window to the next. Across a
        restart nothing is kept, the zero point is 0, and the excess is the cosine itself: it is handed over as the
        cosine that has this excess above the usual zero point.
        """
        if state.previous is None:
            return None, None
        before = self._window(*state.previous)
        measured = cosine(*(_displacement(window, traj.modules) for window in (before, traj)))
        if not fresh:
            return measured, measured
        zero = adam_persistence(self._config.every, self._config.memory)
        return measured, zero + measured * (1.0 - zero)

    def _rewards(self, leg: Leg, start: int, stop: int) -> tuple[float, ...]:
        """Training reward of each step of the window; NaN where verl logged none."""
        files = sorted(leg.folder(self._out).glob("metrics-*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
        logged = verl_process.read_rewards(files)
        return tuple(logged.get(step - leg.begins, math.nan) for step in range(start + 1, stop + 1))

    def _trained(self, step: int) -> int:
        return step * self._settings.train.completions_per_step

    def _decide(
        self, controller: SegmentController, window: Window, state: RunState, traj: Trajectory
    ) -> Decision:
        """The controller's decision, with candidates written to a scratch folder and looked at there."""
        held_out, count = self._task.examples("validation"), self._config.stages[-1]
        examples = [held_out[(state.rows + i) % len(held_out)] for i in range(count)]
        here, model = state.leg.adapter(self._out, window.step), state.leg.model
        scratch, seed = self._out / "candidates", self._settings.train.seed + window.step
        shutil.rmtree(scratch, ignore_errors=True)

        def at(alpha: float) -> Path:
            folder = scratch / f"{alpha:g}" if alpha else here
            if alpha and not folder.is_dir():
                self._write_leap(state.leg, traj, alpha, folder)
            return folder

        def score(alpha: float, start: int, stop: int) -> Tensor:
            return self._scorer.score(model, at(alpha), examples[start:stop], seed + SEED_STRIDE * start)

        rollouts = verl_process.read_rollouts(self._rollouts(state.leg), window.step - state.leg.begins)

        def diverge(alpha: float) -> float:
            return self._scorer.divergence(model, here, at(alpha), rollouts) if rollouts else math.nan

        try:
            decision = controller.step(window, score, diverge)
        finally:
            self._scorer.close()
            shutil.rmtree(scratch, ignore_errors=True)
        state.spent += decision.completions
        state.rows = (state.rows + count) % len(held_out) if decision.completions else state.rows
        return decision

    def _rollouts(self, leg: Leg) -> Path:
        return leg.folder(self._out) / "rollouts"

    def _write_leap(self, leg: Leg, traj: Trajectory, alpha: float, out: Path) -> None:
        start, stop = (leg.adapter(self._out, step) for step in traj.steps)
        verl_adapters.write_leap(start, stop, alpha, out)

    def _restart(self, state: RunState, traj: Trajectory, decision: Decision) -> None:
        """Write the next leg's first adapter and, if asked for, its merged base."""
        old, settings = state.leg, self._settings
        new = Leg(
            index=old.index + 1, begins=state.step, model=old.model, rate=old.rate * decision.rate_factor
        )
        shutil.rmtree(new.folder(self._out), ignore_errors=True)  # of an attempt that was interrupted here
        adapter = new.adapter(self._out, state.step)
        if decision.alpha and settings.restart == "merged":
            merged = new.folder(self._out) / "base"
            scratch = new.folder(self._out) / "leap"
            self._write_leap(old, traj, decision.alpha, scratch)
            verl_adapters.merge(scratch, old.model, merged)
            tokenizer(old.model).save_pretrained(merged)
            new = new.model_copy(update={"model": str(merged)})
            verl_adapters.fresh_adapter(new.model, settings.lora, settings.train.seed + new.index, adapter)
        else:
            self._write_leap(old, traj, decision.alpha, adapter)
        if decision.alpha:
            # So that who reads the leg as a run counts from here: its adapters say they began at zero.
            notes = {"kind": "adapter", "method": "factors", "horizon": self._config.every}
            notes |= {"alpha": decision.alpha, "restart": settings.restart}
            write_provenance(traj, state.step, adapter, notes)
        state.leg, state.final = new, str(adapter.relative_to(self._out))

    def _record(self, state: RunState, window: Window, measured: float | None, decision: Decision) -> None:
        record = DecisionRecord.of(
            decision,
            step=window.step,
            leg=state.leg.index,
            learning_rate=state.leg.rate * decision.rate_factor,
            persistence=measured,
            reward=window.reward,
            cost_completions=state.spent,
        )
        state.decisions.append(record)
        lines = "".join(decided.model_dump_json() + "\n" for decided in state.decisions)
        write_bytes(self._out / "decisions.jsonl", lines.encode())

    def _add_seconds(self, state: RunState, what: str, began: float) -> None:
        state.seconds[what] = round(state.seconds[what] + time.monotonic() - began, 3)


def _displacement(traj: Trajectory, modules: Sequence[str]) -> Iterator[LowRank]:
    """A window's displacement, one module after the other."""
    return (traj.delta(module, traj.steps[0], traj.steps[-1]) for module in modules)
