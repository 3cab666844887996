"""A Python user who trains without HF_HUB_OFFLINE set: building, training and saving ask no host for anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Every way out goes through one of these two; the hub's client reports in a thread of its own.
CODE = """
import socket, sys, threading
asked = []
def refuse(*arguments, **options):
    asked.append(arguments[:2])
    raise OSError("no network in this test")
socket.getaddrinfo = refuse
socket.socket.connect = refuse

from huggingface_hub import constants
assert not constants.HF_HUB_OFFLINE
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.tasks import base
from nextrl.tasks.bases import tiny

model, tokenizer = tiny.load("chain")
model.name_or_path = model.config._name_or_path = "some-owner/some-model"  # as one loaded from the hub by its name
settings = TrainSettings(steps=1, save_every=1, prompts_per_step=2, completions_per_prompt=2)
trainer = build_trainer(with_adapter(model, LoraSettings(), 0), tokenizer, base.get("chain"), settings, sys.argv[1])
trainer.train()
assert not constants.HF_HUB_OFFLINE  # the user's own downloads go on working
for thread in threading.enumerate():
    if thread.daemon:
        thread.join(2)
print(asked)
"""


def test_no_host_is_asked_for_anything(tmp_path: Path) -> None:
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors").is_file()
    assert done.stdout.splitlines()[-1] == "[]"
