"""A TRL run on shards, watched at each step: for the scripts here that run in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import State
from nextrl.engines.trl.callback import LeapCallback
from trl_runs import trainer


class Before(TrainerCallback):
    """The whole adapter where each step begins, and as the optimizer leaves it, before any leap."""

    def __init__(self) -> None:
        self.begins: list[State] = []
        self.ends: list[State] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begins.append(LiveAdapter(kwargs["model"]).read())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(LiveAdapter(kwargs["model"]).read())


class After(TrainerCallback):
    """The whole adapter after each step and what the callback made of it, and this process's share of it."""

    def __init__(self) -> None:
        self.after: list[State] = []
        self.shares: list[dict[str, Tensor]] = []
        self.kinds: set[str] = set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        adapter = LiveAdapter(kwargs["model"])
        self.after.append(adapter.read())
        self.shares.append({n: _share(p) for n, p in adapter.parameters.items()})
        self.kinds |= {_kind(p) for p in adapter.parameters.values()}


def _share(p: Any) -> Tensor:
    """What this process holds of a parameter: all of it, or a piece."""
    here: Tensor = p.to_local() if hasattr(p, "to_local") else getattr(p, "ds_tensor", p)
    return here.detach().clone()


def _kind(p: Any) -> str:
    marks = {"full_tensor": "FSDP2", "ds_id": "ZeRO-3", "_hp_mapping": "ZeRO-2"}
    return next((kind for mark, kind in marks.items() if hasattr(p, mark)), "whole")


def watched_run(out: Path, leaps: LeapCallback, **options: Any) -> dict[str, Any]:
    """What was there at each step of a run with leaps, to be saved."""
    before, after = Before(), After()
    run = trainer(out, [before, leaps, after], use_cpu=False, per_device_train_batch_size=16, **options)
    run.train()
    return {
        "begins": before.begins,
        "ends": before.ends,
        "after": after.after,
        "shares": after.shares,
        "kinds": after.kinds,
        "decisions": [decision.model_dump(mode="json") for decision in leaps.decisions],
    }
