"""The main job on the embedded default: a cautious run, its leaps, its controls, and an honest verdict.

`arms` says what is compared, `run` trains the arms in two processes side by side and returns the result. An arm
that is finished on disk is not run again, so a stopped demo goes on where it was.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from nextrl.checkpoints.atomic import write_json
from nextrl.engines.settings import OptimizerName, TrainSettings
from nextrl.errors import InputError
from nextrl.runs.arm import PAPER_ALPHAS, WIDE_ALPHAS
from nextrl.runs.loop import (
    ArmRecord,
    ArmSettings,
    LeapSettings,
    one_thread,
    run_arm,
    settings_hash,
    temperature_control,
)
from nextrl.runs.result import summarise

CAUTIOUS = 5e-5
SWEEP = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
LEAP_METHODS = ("linear", "secant", "window", "factors", "lawa", "next-paper", "next")
_NEEDED_BYTES = 300 * 1024**2


@dataclass(frozen=True)
class Plan:
    """What the demo runs.

    Attributes:
        arms: in the order in which they start; "plain" first.
        leap_at: the plain run's step that single leaps start from.
        sweep: names of the learning-rate controls.
    """

    arms: tuple[ArmSettings, ...]
    leap_at: int
    sweep: tuple[str, ...]


def _evaluations(last: int, first: int = 0) -> tuple[int, ...]:
    """Every 10 steps up to 100 and every 20 after, from `first` to `last`."""
    steps = [s for s in range(first, last + 1) if s > first and s % (10 if s <= 100 else 20) == 0]
    return tuple(sorted({*steps, last}))


def _leap_settings(method: str, horizon: int) -> LeapSettings:
    """A rival's leap; NExt as published keeps the paper's own range of alpha."""
    alphas = PAPER_ALPHAS if method == "next-paper" else WIDE_ALPHAS
    return LeapSettings(method=method, horizon=horizon, alphas=alphas)


def plan(seed: int, quick: bool, task: str = "chain", rate: float = CAUTIOUS) -> Plan:
    """The arms of the demo; `quick` has fewer and shorter ones."""
    total, control_steps, leap_at, on = (160, 80, 80, 40) if quick else (400, 200, 200, 100)
    rates = (5e-4, 1e-3) if quick else SWEEP
    methods = ("secant", "next") if quick else LEAP_METHODS

    def train(steps: int, learning_rate: float = rate, optimizer: OptimizerName = "adamw") -> TrainSettings:
        return TrainSettings(steps=steps, learning_rate=learning_rate, seed=seed, optimizer=optimizer)

    def arm(name: str, kind: Any, label: str, settings: TrainSettings, **more: Any) -> ArmSettings:
        evaluations = more.pop("eval_at", _evaluations(settings.steps, more.get("start", 0)))
        return ArmSettings(
            name=name, kind=kind, label=label, task=task, train=settings, eval_at=evaluations, **more
        )

    wanted = [
        arm("plain", "plain", f"plain, lr {rate:g} (as configured)", train(total), save=True),
        arm("auto", "auto", f"auto, from lr {rate:g}", train(control_steps), auto=True),
    ]
    sweep = {
        f"lr-{r:g}": arm(f"lr-{r:g}", "control", f"plain, lr {r:g}", train(control_steps, r), save=True)
        for r in rates
    }
    wanted += sweep.values()
    free: tuple[tuple[OptimizerName, str], ...] = (
        ("prodigy-schedulefree", "Prodigy + schedule-free"),
        ("mechanic", "Mechanic around AdamW"),
    )
    wanted += [
        arm(n, "control", label, train(control_steps, rate, n)) for n, label in free[: 1 if quick else 2]
    ]
    end = leap_at + on
    wanted += [
        arm(
            method,
            "leap",
            f"{method}, one leap at {leap_at}",
            train(end),
            start=leap_at,
            eval_at=tuple(sorted({leap_at + s for s in (20, 50, on) if s <= on})),
            leap=_leap_settings(method, 20 if quick else 50),
        )
        for method in methods
    ]
    if not quick:
        restart = train(end)
        wanted.append(
            arm(
                "restart",
                "control",
                f"restart at {leap_at}",
                restart,
                start=leap_at,
                merge=True,
                eval_at=(20, 50, on),
            )
        )
    wanted.append(
        arm("temperature", "control", "plain at lower temperature", train(end), start=leap_at, eval_at=())
    )
    return Plan(tuple(wanted), leap_at, tuple(sweep))


def claim(out: Path, what: Plan) -> None:
    """Make `out` this demo's folder.

    Raises:
        InputError: it is a file, cannot be written, holds something else or another demo, or the disk is full.
    """
    marker = out / "demo.json"
    fingerprint = settings_hash(what.arms)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder with --out")
    try:
        if marker.is_file():
            if _claimed_by(marker) != fingerprint:
                raise InputError(f"{out} holds a demo with other settings: choose another --out")
            return
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} is not empty and holds no demo: choose another --out")
        # Asked of the folder that is there already, so that a refusal leaves nothing behind.
        free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free
        if free < _NEEDED_BYTES:
            raise InputError(
                f"{out} has {free // 1024**2} MB free, the demo needs {_NEEDED_BYTES // 1024**2} MB: free some "
                "or choose another --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_json(marker, {"settings": fingerprint})
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): choose another --out") from error


def _claimed_by(marker: Path) -> object:
    """The settings' fingerprint in a marker, None where it is not one of ours."""
    try:
        value = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value.get("settings") if isinstance(value, dict) else None


_queue: Any = None


def _start_worker(queue: Any) -> None:
    global _queue
    _queue = queue
    # Ctrl-C is the parent's to handle: it tells the workers to stop and says how to go on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    one_thread()


def _report(name: str, step: int) -> None:
    _queue.put((name, step))


def _work(arm: ArmSettings, out: Path) -> ArmRecord:
    folder, plain = out / "arms" / arm.name, out / "arms" / "plain"
    if arm.name == "temperature":
        return temperature_control(arm, folder, plain)
    return run_arm(arm, folder, plain, _report)


Watcher = Callable[[str, int], None]


def run(out: Path, what: Plan, watch: Watcher, *, workers: int = 2) -> dict[str, Any]:
    """Train every arm and write `out/result.json`; returns what it holds.

    Args:
        watch: called with an arm's name and its latest step as training goes on.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    records: dict[str, ArmRecord] = {}
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(queue,)
    ) as pool:
        try:
            for record in _all(pool, out, what, lambda: _drain(queue, watch)):
                records[record.name] = record
        except BaseException:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = {arm.name: records[arm.name] for arm in what.arms}
    result = summarise(ordered, what.arms, out / "arms" / "plain", leap_at=what.leap_at, sweep=what.sweep)
    write_json(out / "result.json", result)
    return result


def _all(pool: ProcessPoolExecutor, out: Path, what: Plan, tick: Callable[[], None]) -> Iterator[ArmRecord]:
    """Records as they come; arms that go on from the plain run's checkpoint wait for it."""
    waiting = [arm for arm in what.arms if arm.start]
    running: set[Future[ArmRecord]] = {pool.submit(_work, arm, out) for arm in what.arms if not arm.start}
    while running:
        done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
        tick()
        for future in done:
            record = future.result()
            if record.name == "plain":
                running |= {pool.submit(_work, arm, out) for arm in waiting}
            yield record


def _drain(queue: Any, watch: Watcher) -> None:
    while not queue.empty():
        watch(*queue.get())
