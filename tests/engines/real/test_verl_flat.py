"""Whether verl finds an adapter under FSDP1 is PEFT's affair: the bound in `options.check_delivery` is the real one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from nextrl.engines.verl.options import NAMELESS
from nextrl.tasks.bases import tiny

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="real engines: no Ray here")
SCRIPT = Path(__file__).parent / "verl_flat.py"


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_what_verl_sends_of_an_adapter(strategy):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny.shipped("chain")), strategy],
        capture_output=True,
        text=True,
        env={**os.environ, "VERL_PLATFORM": "cpu"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    peft = tuple(int(part) for part in metadata.version("peft").split(".")[:2])
    empty = strategy == "fsdp" and peft >= NAMELESS
    assert int(done.stdout.split()[-1]) == (0 if empty else 28)
