"""Puts `tests/` on the path (for `lora_runs`) and keeps torch on one thread, as many tests run side by
side."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
