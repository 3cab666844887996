"""What other callbacks find at a step's end: weights after anything was taken back, wherever they stand in the list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import BEMACallback

from nextrl import LeapCallback, attach
from nextrl.engines import memory
from nextrl.engines.policies import Auto
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from nextrl.tasks.bases import tiny
from trl_runs import VALIDATION, Breaks, Scripted, Watch, same, scripted_policy, trainable, trainer


class Reads(TrainerCallback):
    """What another callback finds at each step's end."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found.append(trainable(kwargs["model"]))


class ReadsToo(Reads):
    """The same, in a second place."""


class Back(Controller):
    """Takes the first step back."""

    length = 10**9

    def checks(self, step: int) -> bool:
        return step == 1

    def step(self, *_: Any, **__: Any) -> Decision:  # type: ignore[override]
        return replace(stay("scripted"), alpha=-1.0, back="step", rate_factor=0.5)


def takes_back() -> LeapCallback:
    return LeapCallback(policy=Auto(ControllerConfig(cooldown=0.0), Back))


def model() -> Any:
    return tiny.load("chain")[0]


def finite(trained: Any) -> bool:
    return all(bool(p.isfinite().all()) for p in trained.parameters())


@pytest.mark.parametrize("mixup", [0.6, 1.0])
def test_a_step_to_nan_never_reaches_a_reference_that_is_synchronised(tmp_path: Path, mixup: float) -> None:
    options = {
        "beta": 0.04,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": mixup,
    }
    run = trainer(tmp_path, [Breaks(3)], model=model(), learning_rate=1e-4, max_steps=5, **options)
    callback, reads = attach(run), Reads()
    run.add_callback(reads)
    run.train()
    assert [d.step for d in callback.decisions if d.back] == [3]
    assert finite(run.model)
    assert finite(run.ref_model)
    if mixup == 1.0:  # the reference is the policy at the end of the last step
        assert same(dict(run.ref_model.named_parameters()), reads.found[-1])


def test_a_reckless_step_never_reaches_a_reference_that_is_synchronised(tmp_path: Path) -> None:
    options = {"beta": 0.04, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    run = trainer(tmp_path, model=model(), learning_rate=0.3, max_steps=1, **options)
    before, callback = trainable(run.ref_model), attach(run)
    run.train()
    assert [(d.step, d.back) for d in callback.decisions] == [(1, "step")]
    assert same(dict(run.ref_model.named_parameters()), trainable(run.model))
    assert before.keys() <= dict(run.ref_model.named_parameters()).keys()


@pytest.mark.parametrize("first", [True, False])
def test_a_step_to_nan_never_reaches_a_running_mean(tmp_path: Path, first: bool) -> None:
    run, mean = (
        trainer(tmp_path, [Breaks(3)], model=model(), learning_rate=1e-4, max_steps=4),
        BEMACallback(1),
    )
    if first:
        run.add_callback(mean)
    callback = attach(run)
    if not first:
        run.add_callback(mean)
    run.train()
    assert [d.step for d in callback.decisions if d.back] == [3]
    assert finite(mean.running_model)


def test_whoever_reads_the_weights_finds_them_taken_back_to_the_bit(tmp_path: Path) -> None:
    watch, before, after = Watch(), Reads(), ReadsToo()
    run = trainer(tmp_path, [watch, before, takes_back(), after], learning_rate=1e-3, max_steps=2)
    run.train()
    for reads in (before, after):
        assert same(reads.found[0], watch.begins[1][0])
        assert same(reads.found[1], watch.begins[2][0]) is False
        assert same(reads.found[1], trainable(run.model))
    assert not same(watch.stepped[1][0], watch.begins[1][0])


def test_whoever_reads_the_weights_finds_a_leap_in_place(tmp_path: Path) -> None:
    watch, before, after = Watch(), Reads(), ReadsToo()
    leaps = LeapCallback(policy=scripted_policy(Scripted([(3.0, 1.0)])), validation=VALIDATION)
    run = trainer(tmp_path, [watch, before, leaps, after], learning_rate=1e-3, max_steps=2)
    run.train()
    assert leaps.decisions[0].alpha == 3.0
    assert not same(before.found[1], watch.stepped[2][0])
    assert same(before.found[1], after.found[1])
    assert same(before.found[1], trainable(run.model))


def test_the_order_holds_in_a_resumed_run_and_after_the_callback_was_replaced(tmp_path: Path) -> None:
    watch, reads = Watch(), Reads()
    run = trainer(
        tmp_path, [watch, reads], learning_rate=1e-3, max_steps=2, save_steps=1, save_strategy="steps"
    )
    first = takes_back()
    run.add_callback(first)
    run.train()
    run.remove_callback(first)
    second = takes_back()
    run.add_callback(second)
    run.train()
    assert same(reads.found[2], watch.begins[1][0])
    assert [d.step for d in first.decisions] == [d.step for d in second.decisions] == [1]
    run.args.max_steps = 3
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(reads.found) == 5
    assert [d.step for d in second.decisions] == [1]


def test_a_callback_that_was_removed_decides_nothing_more(tmp_path: Path) -> None:
    run, callback = trainer(tmp_path, learning_rate=1e-3, max_steps=1), takes_back()
    run.add_callback(callback)
    run.train()
    run.remove_callback(callback)
    run.train()
    assert len(callback.decisions) == 1


class Moves(TrainerCallback):
    """Asks for a checkpoint, and moves the weights before it is written, as a projection of them does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for p in kwargs["model"].parameters():
                if p.requires_grad:
                    p.mul_(0.5)
        control.should_save = True


def test_a_checkpoint_that_another_callback_asks_for_has_its_memory_and_the_weights_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    pending = memory.write_pending

    def write(folder: Path, step: int, *rest: Any) -> None:
        waiting.append(step)
        pending(folder, step, *rest)

    monkeypatch.setattr(memory, "write_pending", write)
    callback = takes_back()
    run = trainer(tmp_path, [Moves(), callback], learning_rate=1e-3, max_steps=1)
    run.train()
    assert waiting == [1]  # before the trainer's own files, so that a kill in between loses nothing
    found = memory.read(tmp_path / "checkpoint-1", callback._running().memory.start.state)
    assert found is not None
    assert callback._running().run.adapter.belongs(found[1]["weights"])
