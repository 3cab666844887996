"""Optimizers of users' runs: each takes a leap as AdamW does, or is refused by name before the first step."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer

from nextrl import LeapCallback
from nextrl.checkpoints.tensorfile import read_tensors
from nextrl.engines.memory import TENSORS
from nextrl.engines.moments import parameters, read_moments, write_moments
from nextrl.engines.optimizer_state import took_gradient
from nextrl.engines.optimizers import check_optimizer
from nextrl.engines.policies import Auto
from nextrl.engines.settings import LoraSettings
from nextrl.errors import InputError
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from nextrl.judge.window import Window
from trainer_options import Combined, Preconditioned, Prodigy
from trl_runs import VALIDATION, Scripted, fresh_model, same, scripted_policy, trainable, trainer, weights


class AdamWScheduleFree(torch.optim.AdamW):
    """Called as the real one."""


class Lookahead:
    """Called as the real ones, which wrap another optimizer."""

    def __init__(self, optimizer: Any) -> None:
        self.inner = optimizer


class Undoing(Controller):
    """Undoes the second window of two steps."""

    length = 2

    def checks(self, step: int) -> bool:
        return False

    def window(self, window: Window, look: Any) -> Decision:
        return replace(stay("scripted"), **({"alpha": -1.0, "back": "window"} if window.step > 2 else {}))


def leaping(out: Path, optimizer: Any = None, model: Any = None, **options: Any) -> tuple[Any, LeapCallback]:
    callback = LeapCallback(policy=scripted_policy(Scripted([(2.0, 1.0)])), validation=VALIDATION)
    return trainer(out, [callback], model=model, optimizers=(optimizer, None), **options), callback


def test_an_optimizer_that_keeps_weights_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = fresh_model()
    before = trainable(model)
    optimizer = AdamWScheduleFree([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    run, _ = leaping(tmp_path, optimizer, model)
    with pytest.raises(InputError, match="AdamWScheduleFree keeps weights of its own") as refusal:
        run.train()
    assert "\n" not in str(refusal.value)
    assert same(trainable(model), before)


def test_moments_that_cannot_be_copied_are_refused() -> None:
    kind = type("_AdamW", (torch.optim.AdamW,), {"__module__": "torchao.optim.adam"})
    with pytest.raises(InputError, match=r"^_AdamW of torchao keeps moments that can neither"):
        check_optimizer(kind([torch.nn.Parameter(torch.ones(2))]))


def lorafa(parameters: Any, lr: float, model: Any) -> Any:
    """PEFT's own, which keeps its moments under names of modules."""
    return create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=lr / 100, weight_decay=0.0)


def test_what_lies_under_a_name_goes_back_and_goes_where_there_was_none() -> None:
    model = fresh_model()
    made = lorafa((), 1.0, model)
    trained = [p for p in model.parameters() if p.requires_grad]

    def step(gradient: float) -> None:
        for p in trained:
            p.grad = torch.full_like(p, gradient)
        made.step()

    none = read_moments(made)
    step(1.0)
    assert took_gradient(made, parameters(made), none)
    kept, name = read_moments(made), next(key for key in made.state if isinstance(key, str))
    held = made.state[name]["exp_avg_B"]
    first = held.clone()
    step(0.0)
    assert not took_gradient(made, parameters(made), kept)
    step(math.nan)
    write_moments(made, kept)
    assert made.state[name]["exp_avg_B"] is held
    assert torch.equal(held, first)
    assert made.state[name]["step"] == 1
    write_moments(made, none)
    assert not any(isinstance(key, str) for key in made.state)


@pytest.mark.parametrize("kind", [Preconditioned, Prodigy, lorafa])
def test_other_kinds_of_state_are_saved_and_a_resumed_run_ends_the_same(tmp_path: Path, kind: Any) -> None:
    """The window that is undone began before the kill, so that what is taken back was in the file."""

    def run(resume: bool) -> dict[str, torch.Tensor]:
        model = fresh_model()
        more = {"model": model} if kind is lorafa else {}
        made = kind([p for p in model.parameters() if p.requires_grad], lr=1.0, **more)
        callback = LeapCallback(policy=Auto(ControllerConfig(every=2, cooldown=0.0), Undoing))
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
        built = trainer(tmp_path, [callback], model=model, optimizers=(made, None), **options)
        built.train(resume_from_checkpoint=resume or None)
        assert [(d.step, d.back) for d in callback.decisions] == [(3, ""), (5, "window")]
        # Two steps before the window, and one after it.
        assert built.optimizer.param_groups[0].get("k", 3) == 3
        return weights(model)

    whole = run(False)
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert same(run(True), whole)


def test_frozen_weights_in_an_optimizer_are_neither_kept_nor_looked_at(tmp_path: Path) -> None:
    """`AdamW(model.parameters())` holds the base model, too; an Inf there (a mask, say) is not the run's doing."""
    model = fresh_model()
    mask = torch.nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False)
    made = torch.optim.AdamW([*model.parameters(), mask], lr=2e-4)
    callback = LeapCallback(every=4)
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, [callback], model=model, optimizers=(made, None), **options).train()
    assert not any(d.back for d in callback.decisions)
    kept = read_tensors(tmp_path / "checkpoint-2" / TENSORS)
    assert {name.rpartition("/")[2] for name in kept if "moments/" in name} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_a_wrapped_one_is_found_and_others_pass() -> None:
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    check_optimizer(plain)
    check_optimizer(None)
    check_optimizer(SimpleNamespace(optimizer=plain))
    with pytest.raises(InputError, match="slow weights"):
        check_optimizer(Lookahead(plain))


class Sharpness(torch.optim.Optimizer):
    """Takes its steps by another one, as SAM does (Foret et al., 2010.01412)."""

    def __init__(self, params: Any, lr: float, *, shows: bool = False) -> None:
        super().__init__(params, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups
        if shows:
            self.state = self.base_optimizer.state


class Named(torch.optim.Optimizer):
    """Holds others by name."""

    def __init__(self, params: Any, lr: float) -> None:
        self.parts = {"all": torch.optim.Adam(params, lr=lr)}
        super().__init__([p for group in self.parts["all"].param_groups for p in group["params"]], {"lr": lr})


@pytest.mark.parametrize(("kind", "inside"), [(Combined, "AdamW"), (Sharpness, "SGD"), (Named, "Adam")])
def test_moments_that_other_optimizers_keep_are_refused(kind: Any, inside: str) -> None:
    made = kind([torch.nn.Parameter(torch.ones(2)) for _ in range(2)], lr=1e-3)
    name = kind.__name__
    for given in (made, SimpleNamespace(optimizer=made)):
        with pytest.raises(
            InputError, match=rf"^{name} steps through optimizers inside it \({inside}\)"
        ) as refusal:
            check_optimizer(given)
        assert "adamw_torch" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_an_optimizer_that_shows_the_state_of_the_one_inside_it_is_copied_whole() -> None:
    """As DeepSpeed's do. Its moments go back with it."""
    p = torch.nn.Parameter(torch.ones(2))
    made = Sharpness([p], lr=1e-3, shows=True)
    check_optimizer(made)
    p.grad = torch.ones(2)
    made.base_optimizer.step()
    kept = read_moments(made)
    made.base_optimizer.step()
    write_moments(made, kept)
    assert torch.equal(made.base_optimizer.state[p]["momentum_buffer"], torch.ones(2))


@pytest.mark.parametrize(
    "name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree", "ScheduleFreeWrapper"]
)
def test_the_real_schedule_free_optimizers_are_known(name: str) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    p = [torch.nn.Parameter(torch.ones(2))]
    given = torch.optim.SGD(p, lr=0.1) if name == "ScheduleFreeWrapper" else p
    with pytest.raises(InputError, match=f"{name} keeps weights"):
        check_optimizer(getattr(schedulefree, name)(given))


@pytest.mark.parametrize(
    ("name", "needs"),
    [("adamw_torch", None), ("sgd", None), ("adafactor", None), ("rmsprop", None), ("adamw_8bit", "bitsandbytes"),
     ("adamw_torch_8bit", "torchao"), ("lion_32bit", "bitsandbytes")],
)  # fmt: skip
def test_a_leap_stays_where_it_landed(tmp_path: Path, name: str, needs: str | None) -> None:
    """With a rate of 0 in effect after the leap, the weights are those of the leap at the end."""
    if needs:
        pytest.importorskip(needs)
    landed: list[Any] = []
    # Wide enough that 8-bit optimizers keep 8 bits: below 4096 numbers a tensor's moments are not quantised.
    wide = LoraSettings(r=64, alpha=64, target_modules=["q_proj"])
    run, callback = leaping(tmp_path, model=fresh_model(wide), optim=name, max_steps=6)

    class Still:
        """Takes steps of no length from the leap on."""

        def __call__(self, step: int) -> float:
            return 1.0 if step < 2 else 0.0

    run.create_optimizer()
    run.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, Still())
    real = callback.end_step

    def after(state: Any) -> None:
        before = trainable(run.model)
        real(state)
        landed.append((before, trainable(run.model)))

    callback.end_step = after  # type: ignore[method-assign]
    run.train()
    (walked, leapt) = landed[1]
    assert not same(walked, leapt)
    assert callback.decisions[0].alpha == 2.0
    assert same(trainable(run.model), leapt)
    kept = read_moments(run.optimizer)
    write_moments(run.optimizer, kept)
    for before, now in zip(kept, read_moments(run.optimizer), strict=True):
        assert all(torch.equal(v, now[k]) for k, v in before.items() if isinstance(v, torch.Tensor))
    if name == "adamw_8bit":
        assert kept[0]["state1"].dtype == torch.uint8
