"""verl as a child process: start it, wait for it, and say in one line why it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nextrl.errors import InputError

COMMAND = (sys.executable, "-m", "verl.trainer.main_ppo")
GRACE = 30.0  # seconds that a stopped verl has to shut Ray down before it is killed


def run(command: Sequence[str], log: Path) -> None:
    """Run verl to its end, output appended to `log`.

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
        raise InputError(f"engine verl: killed by {name}{hint}; run again to resume; {log}")
    if code:
        raise InputError(f"engine verl: exit code {code}: {_last_line(log)}; see {log}")


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
