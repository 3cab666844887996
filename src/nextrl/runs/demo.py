"""The main job on the embedded default: a cautious run, its leaps, its controls, and an honest verdict.

`demo_plan` says what is compared; `run` trains the arms in two processes side by side and returns the result. An arm
that is finished on disk is not run again, so a stopped demo goes on where it was. A lock keeps a second process out of
the folder, and a worker ends with the process that started it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from nextrl.checkpoints.atomic import making_folder, write_json
from nextrl.engines.folder_lock import locked
from nextrl.errors import InputError
from nextrl.files import read_json, visible
from nextrl.runs.arm import ArmRecord, ArmSettings, settings_hash
from nextrl.runs.demo_plan import Plan, plan
from nextrl.runs.layout import ARMS, DEMO, RESULT
from nextrl.runs.loop import one_thread, run_arm, temperature_control
from nextrl.runs.result import Result, write_result
from nextrl.runs.summary import summarise

__all__ = ["Plan", "Watcher", "claim", "plan", "run"]

_NEEDED_BYTES = 300 * 1024**2


def claim(out: Path, what: Plan) -> None:
    """Make `out` this demo's folder.

    Raises:
        InputError: it is a file, cannot be written, holds something else or another demo, or the disk is full.
    """
    marker = out / DEMO
    fingerprint = settings_hash(what.arms)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder with --out")
    try:
        if marker.is_file():
            if _claimed_by(marker) != fingerprint:
                raise InputError(f"{out} holds a demo with other settings: choose another --out")
            return
        if out.is_dir() and visible(out):
            raise InputError(f"{out} is not empty and holds no demo: choose another --out")
        # Asked of the folder that is there already, so that a refusal leaves nothing behind.
        free = shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free
        if free < _NEEDED_BYTES:
            raise InputError(
                f"{out} has {free // 1024**2} MB free, the demo needs {_NEEDED_BYTES // 1024**2} MB: free some "
                "or choose another --out"
            )
        with making_folder(out):
            write_json(marker, {"settings": fingerprint})
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): choose another --out") from error


def _claimed_by(marker: Path) -> object:
    """The settings' fingerprint in a marker, None where it is not one of ours."""
    try:
        value = read_json(marker)
    except InputError:
        return None
    return value.get("settings") if isinstance(value, dict) else None


_queue: Any = None


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone.

    A worker of a killed demo would train its arm to the end, in the folder in which the next call trains it, too, and
    then wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing has started has a parent to end with"

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _start_worker(queue: Any) -> None:
    global _queue
    _queue = queue
    end_with_parent()
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
    folder, plain = out / ARMS / arm.name, out / ARMS / "plain"
    if arm.name == "temperature":
        return temperature_control(arm, folder, plain)
    return run_arm(arm, folder, plain, _report)


Watcher = Callable[[str, int], None]


def run(out: Path, what: Plan, watch: Watcher, *, workers: int = 2) -> Result:
    """Train every arm, write `out/result.json`, and return what it holds.

    Args:
        watch: called with an arm's name and its latest step as training goes on.

    Raises:
        InputError: another process is at it there, or an arm cannot be run.
    """
    with locked(out):
        return _run(out, what, watch, workers)


def _run(out: Path, what: Plan, watch: Watcher, workers: int) -> Result:
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
    result = summarise(ordered, what.arms, out / ARMS / "plain", leap_at=what.leap_at, sweep=what.sweep)
    write_result(out / RESULT, result)
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
