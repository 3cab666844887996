"""`auto` where a model has no adapter: all that is trained is taken back to the bit, saved, and taken up again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trl import RLOOTrainer

from nextrl import attach
from nextrl.engines.all_weights import AllWeights
from nextrl.engines.policies import Auto
from nextrl.engines.trl.callback import LeapCallback
from nextrl.errors import InputError
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from nextrl.tasks.bases import tiny
from trl_runs import Breaks, Watch, fresh_model, same, trainer, weights

QUIET = ControllerConfig(
    every=2, goal=1e-30, sure=1e9, surer=0.0, undo=1e9, alarm=1e9, patience=99, cooldown=0.0
)


def model() -> Any:
    return tiny.load("chain")[0]


def test_a_rate_far_too_low_is_raised_after_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=model(), learning_rate=1e-7, max_steps=3)
    callback = attach(run, every=2)
    run.train()
    first = callback.decisions[0]
    assert (first.step, first.back, first.alpha) == (1, "", 0.0)
    assert 1e-5 < first.learning_rate < 1e-3
    assert first.rate_factor == pytest.approx(first.learning_rate / 1e-7)
    assert callback.costs.search_completions == 0


def test_a_rate_at_which_bfloat16_rounds_each_step_away_is_raised(tmp_path: Path) -> None:
    """No weight moves, and yet there is a gradient: a rate too low, not a step that says nothing of it."""
    run = trainer(tmp_path, model=model().to(torch.bfloat16), learning_rate=1e-12, max_steps=3)
    before, callback = weights(run.model), attach(run, every=2)
    watch = Watch()
    run.add_callback(watch)
    run.train()
    assert same(watch.ends[1][0], before)
    assert callback.decisions[0].rate_factor > 5.0


def test_a_reckless_first_step_is_taken_back_to_the_bit(tmp_path: Path) -> None:
    before, after, callback = Watch(), Watch(), LeapCallback()
    trainer(tmp_path, [before, callback, after], model=model(), learning_rate=0.3, max_steps=2).train()
    first = callback.decisions[0]
    assert (first.step, first.back, first.alpha) == (1, "step", -1.0)
    assert same(after.ends[1][0], before.begins[1][0])
    assert not same(before.stepped[1][0], before.begins[1][0])
    assert after.ends[1][1] == []  # Adam has not taken a step yet
    assert after.ends[1][2] == pytest.approx(first.learning_rate)


class Undoing(Controller):
    """Undoes its second window, whatever it is shown."""

    windows = 0

    def checks(self, step: int) -> bool:
        return False

    def window(self, window: Any, look: Any) -> Decision:
        self.windows += 1
        self.seen = look(-1.0)
        if self.windows != 2:
            return stay("enough")
        return replace(stay("undone"), alpha=-1.0, back="window", rate_factor=0.5)


@pytest.mark.parametrize("options", [{}, {"kind": RLOOTrainer}])
def test_an_undone_window_is_as_it_began_to_the_bit_moments_too(tmp_path: Path, options: Any) -> None:
    before, after, policy = Watch(), Watch(), Auto(ControllerConfig(every=3), Undoing)
    callback = LeapCallback(policy=policy)
    run = trainer(
        tmp_path, [before, callback, after], model=model(), learning_rate=1e-4, max_steps=9, **options
    )
    run.train()
    undone = next(d.step for d in callback.decisions if d.back)
    began = callback.decisions[0].step  # judged a step after its window ended, where the next one began
    assert same(after.ends[undone][0], before.begins[began][0])
    assert len(after.ends[undone][1]) == len(before.begins[began][1]) > 0
    for now, then in zip(after.ends[undone][1], before.begins[began][1], strict=True):
        assert torch.equal(now, then)
    assert after.ends[undone][2] == pytest.approx(5e-5)
    assert policy.controller.seen.nats_k2 > 0.0


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}, {"gradient_checkpointing": True}])
def test_looking_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = trainer(tmp_path / "plain", model=model(), max_steps=9, learning_rate=1e-4, **options)
    plain.train()
    callback = LeapCallback(config=QUIET)
    watched = trainer(
        tmp_path / "watched", [callback], model=model(), max_steps=9, learning_rate=1e-4, **options
    )
    watched.train()
    assert callback.decisions
    assert all(d.gains for d in callback.decisions)
    assert same(weights(watched.model), weights(plain.model))


def test_a_step_to_nan_in_any_weight_is_taken_back(tmp_path: Path) -> None:
    before, after, callback = Watch(), Watch(), LeapCallback()
    callbacks = [Breaks(3, only="norm"), before, callback, after]
    trainer(tmp_path, callbacks, model=model(), learning_rate=1e-4, max_steps=4).train()
    broken = next(d for d in callback.decisions if d.step == 3)
    assert broken.back
    assert not all(t.isfinite().all() for t in before.stepped[3][0].values())
    for step in (3, 4):
        assert all(t.isfinite().all() for t in after.ends[step][0].values())


def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    options = {"max_steps": 8, "learning_rate": 1e-6, "save_strategy": "steps", "save_steps": 4}

    def run(folder: Path, **resumed: Any) -> tuple[Any, LeapCallback]:
        callback = LeapCallback(every=2)
        built = trainer(folder, [callback], model=model(), **options)
        built.train(**resumed)
        return built, callback

    whole, first = run(tmp_path / "whole")
    assert first.decisions[0].rate_factor > 10.0
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    again, second = run(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-4"))
    assert same(weights(again.model), weights(whole.model))

    def told(callback: LeapCallback) -> list[Any]:
        return [(d.step, d.back, d.learning_rate, d.reason) for d in callback.decisions]

    assert told(second) == told(first)


def test_what_is_frozen_stays_out_of_it(tmp_path: Path) -> None:
    partly = model()
    partly.model.embed_tokens.weight.requires_grad_(False)
    found = AllWeights(partly).parameters
    assert found.keys() == {n for n, p in partly.named_parameters() if p.requires_grad}
    before = weights(partly)
    callback = LeapCallback()
    trainer(tmp_path, [callback], model=partly, learning_rate=0.3, max_steps=1).train()
    assert callback.decisions[0].back == "step"
    assert same(weights(partly), before)


def test_copies_are_copies_in_the_host_s_memory_and_tied_weights_are_one() -> None:
    tied = model()
    tied.config.tie_word_embeddings = True
    tied.lm_head.weight = tied.model.embed_tokens.weight
    live = AllWeights(tied)
    state = live.read()
    assert {t.device.type for t in state.values()} == {"cpu"}
    assert "lm_head.weight" not in state
    with torch.no_grad():
        tied.lm_head.weight += 1.0
    assert not torch.equal(live.read()["model.embed_tokens.weight"], state["model.embed_tokens.weight"])
    live.write(state)
    assert torch.equal(tied.lm_head.weight, state["model.embed_tokens.weight"])
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


@pytest.mark.parametrize("options", [{"method": "next", "at": [2]}, {"method": "linear", "every": 2}])
def test_a_named_method_needs_an_adapter(tmp_path: Path, options: dict[str, Any]) -> None:
    run = trainer(tmp_path, model=model())
    attach(run, **options)
    with pytest.raises(InputError, match=r"a PEFT model with one active LoRA adapter.*none.*auto") as error:
        run.train()
    assert "\n" not in str(error.value)


def test_an_adapter_is_still_all_that_is_moved_where_there_is_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=fresh_model(), max_steps=1)
    callback = attach(run)
    run.train()
    assert callback._run is not None
    assert all("lora_" in name for name in callback._run.adapter.parameters)


class Pieces(nn.Linear):
    """Whose weight looks as DeepSpeed ZeRO-3 leaves one."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.weight.ds_id = 0


class FullyShardedDataParallel(nn.Sequential):
    """What FSDP1's wrapper is known by."""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            FullyShardedDataParallel(nn.Linear(2, 2)),
            "here they lie in pieces on several .*: train an adapter",
        ),
        (nn.Linear(2, 2).requires_grad_(False), "no parameter of this model is trained"),
        (Pieces(), "here they lie in pieces on several .*: train an adapter"),
    ],
)
def test_what_cannot_be_taken_back_whole_is_refused(given: nn.Module, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        AllWeights(given)
    assert "\n" not in str(error.value)
