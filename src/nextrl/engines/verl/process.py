"""verl as a child process: start it, wait for it, read the rewards it logged, and say in one line why it failed.

Rewards come from verl's own file logger (utils/tracking.py:FileLogger: one JSON object a line, `{"step", "data"}`),
whose file begins anew with each process; `critic/score/mean` is the mean score before any KL penalty
(trainer/ppo/metric_utils.py).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nextrl.errors import InputError

COMMAND = (sys.executable, "-m", "verl.trainer.main_ppo")
REWARD = "critic/score/mean"
GRACE = 30.0  # seconds that a stopped verl has to shut Ray down before it is killed


def run(command: Sequence[str], log: Path, where: str) -> None:
    """Run verl to its end, output appended to `log`.

    Args:
        where: what it was doing ("from step 20 to 30"), for the error.

    Raises:
        InputError: it could not be started, exited with an error, or was killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                list(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise InputError(f"engine verl: cannot start {command[0]}: {error.strerror}") from None
        with _stopped_with_us(child):
            code = child.wait()
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise InputError(
            f"engine verl: killed by {name}{hint} on the way {where}; run again to resume; {log}"
        )
    if code:
        raise InputError(f"engine verl: exit code {code} on the way {where}: {_last_line(log)}; see {log}")


@contextmanager
def _stopped_with_us(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ask the child's whole group to stop where we are interrupted; Ray's workers are in it."""
    try:
        yield
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _last_line(log: Path) -> str:
    """The last line that says something, at most 200 characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:200] if said else "it said nothing"


def read_rewards(files: Sequence[Path]) -> dict[int, float]:
    """Mean training reward by verl's step; a later file wins where a resumed process did a step again.

    A line that is not whole (the process was killed while writing) is left out.
    """
    rewards: dict[int, float] = {}
    for path in files:
        for line in path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                value = float(entry["data"][REWARD])
                step = int(entry["step"])
            except (ValueError, KeyError, TypeError):
                continue
            if math.isfinite(value):
                rewards[step] = value
    return rewards


def read_rollouts(folder: Path, step: int, limit: int = 32) -> list[tuple[str, str]]:
    """(prompt, completion) of some of a step's rollouts, as `trainer.rollout_data_dir` has verl write them.

    Files of earlier steps are removed: only the latest are ever looked at. Empty where verl wrote none.
    """
    path = folder / f"{step}.jsonl"
    if not path.is_file():
        return []
    for other in folder.glob("*.jsonl"):
        if other.stem.isdigit() and int(other.stem) < step:
            other.unlink(missing_ok=True)
    pairs = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            pairs.append((str(entry["input"]), str(entry["output"])))
        except (ValueError, KeyError, TypeError):
            continue
    # Rows come sorted by group; taking one in every so many gives some of each group.
    return pairs[:: max(1, len(pairs) // limit)][:limit]
