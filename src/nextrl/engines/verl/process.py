"""verl as a child process: start it, wait for it, and say in one line why it failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nextrl.errors import InputError

COMMAND = (sys.executable, "-m", "verl.trainer.main_ppo")
REFUSED = "nextrl: "
"""What a refusal of the plugin begins with."""

# Bytes at the end of a log; a traceback through several processes of Ray has some ten thousand.
_LOOKED_AT = 65536
_LINES = 5  # lines that an error's text may have
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
# What hydra says of itself, and lines of other processes that Ray passes on, which may come late.
_NOISE = re.compile(r"Set the environment variable HYDRA_FULL_ERROR|\([^()]*pid=\d")
# The last line of a traceback: a class's name, of which Ray puts another in brackets, and what is wrong.
_ERROR = re.compile(r"(?:\w+\.)*[A-Z]\w*(?:\(\w+\))?: ")
GRACE = 30.0  # seconds that a stopped verl has to shut Ray down before it is killed


def run(command: Sequence[str], log: Path) -> None:
    """Run verl to its end, output appended to `log`.

    Raises:
        InputError: it could not be started, exited with an error, or was killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.is_file() else 0
    # Without this hydra cuts an error short, and says how to see it whole.
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
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
        raise InputError(f"engine verl: exit code {code}: {_reason(log, before)}; see {log}")


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


def _reason(log: Path, before: int) -> str:
    """Why it failed, in one line of at most 300 characters: the error that it ended with, or what it said last.

    Args:
        before: bytes of the log that are an earlier run's.
    """
    with log.open("rb") as file:
        file.seek(max(before, log.stat().st_size - _LOOKED_AT))
        text = _COLOUR.sub("", file.read().decode(errors="replace"))
    said = [line for line in text.split("\n") if line.strip() and not _NOISE.match(line)]
    if not said:
        return "it said nothing"
    found = [index for index, line in enumerate(said) if _ERROR.match(line)]
    # One that was followed by much else was not the end.
    ends = found and len(said) - found[-1] <= _LINES and not said[-1].startswith(REFUSED)
    reason = said[found[-1] :] if ends else said[-1:]
    return " ".join(line.strip() for line in reason)[:300]
