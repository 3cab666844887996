"""Scripts under `accelerate launch`, in two processes on CPUs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parent


def launch(
    script: Path, *arguments: str, flags: Sequence[str] = ("--multi_gpu",), timeout: float = 600
) -> str:
    """`accelerate launch` with two processes, which must succeed; what they wrote to stderr."""
    code, said = launched(script, *arguments, flags=flags, timeout=timeout)
    assert code == 0, said[-3000:]
    return said


def launched(
    script: Path, *arguments: str, flags: Sequence[str] = ("--multi_gpu",), timeout: float = 600
) -> tuple[int, str]:
    """`accelerate launch` with two processes, until they have ended by themselves: (exit status, stderr).

    `--cpu` would start one process (it leaves the others to MPI). Fails where they have not ended after so many
    seconds: whatever is left of them is killed then.
    """
    options = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    options["main_process_port"] = _free_port()
    path = os.pathsep.join([str(TESTS), str(script.parent), os.environ.get("PYTHONPATH", "")])
    command = [
        *(sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch"),
        *flags,
        *(f"--{name}={value}" for name, value in options.items()),
        str(script),
        *arguments,
    ]
    # A file: a pipe would have to wait for whoever holds it open.
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            process.wait(timeout)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
            # Asked to end, the launcher ends its processes, each of which has a session of its own.
            process.terminate()
            process.wait(120)
        said.seek(0)
        text = said.read()
    assert ended, f"not ended after {timeout:g} s: {text[-3000:]}"
    return process.returncode, text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
