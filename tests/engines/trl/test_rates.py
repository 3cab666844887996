"""The learning rate in real runs: whoever sets it, whatever its schedule is made of, and wherever it is taken up."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler
from torch.optim.swa_utils import SWALR
from transformers import TrainerCallback
from transformers.optimization import GreedyLR

from nextrl.engines.memory import JSON
from nextrl.engines.policies import Auto
from nextrl.engines.schedules import set_elsewhere, set_rate_factor
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.trainer import reward_function
from nextrl.judge import decision_file
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from trl_runs import TASK, fresh_model, trainer

SAVING = {"save_strategy": "steps", "save_steps": 2}


class Rates(TrainerCallback):
    """The rate that each step was taken at."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))


class Sets(TrainerCallback):
    """A warm-up by hand."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.set)

    def set(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * min(1.0, (state.global_step + 1) / 3)


def factors(callback: LeapCallback) -> list[float]:
    return [d.rate_factor for d in callback.decisions]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_step_end"])
def test_a_rate_that_another_callback_sets_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, event: str, first: bool
) -> None:
    def rates(*callbacks: TrainerCallback) -> list[float]:
        seen = Rates()
        trainer(tmp_path, [*callbacks, seen], learning_rate=2e-4, max_steps=8).train()
        return seen.rates

    callback = LeapCallback(4)
    both = [Sets(event), callback] if first else [callback, Sets(event)]
    # Until it is noticed, the callback may have taken one step at what it made of the schedule's rate.
    assert rates(*both)[2:] == pytest.approx(rates(Sets(event))[2:])
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "nextrl" in r.name]
    (line,) = [
        line for line in lines if "something other than the schedule has set the learning rate" in line
    ]
    assert "\n" not in line
    assert not [line for line in lines if "param_groups" in line]
    assert len([f for f in factors(callback) if f != 1.0]) <= 1


@pytest.mark.parametrize(("rate", "scale"), [(1.0, 2e-4), (1e-6, 200.0)])
def test_a_schedule_may_hold_the_rate_in_its_function(tmp_path: Path, rate: float, scale: float) -> None:
    def run(rate: float, scale: float) -> tuple[list[float], list[float]]:
        model, seen, callback = fresh_model(), Rates(), LeapCallback(4)
        made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        optimizers = (made, LambdaLR(made, lambda step: scale))
        trainer(tmp_path, [callback, seen], model=model, optimizers=optimizers, max_steps=10).train()
        return seen.rates, factors(callback)

    usual = run(2e-4, 1.0)
    assert usual[0][1] > 10 * usual[0][0]  # raised
    assert usual[0][-1] < usual[0][-3]  # and brought down at the end
    assert run(rate, scale)[0] == pytest.approx(usual[0], rel=1e-6)


def test_a_warm_up_that_misses_its_height_by_rounding_is_over(tmp_path: Path) -> None:
    model, seen = fresh_model(), Rates()
    made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    optimizers = (made, LinearLR(made, start_factor=0.1, total_iters=3))
    trainer(tmp_path, [LeapCallback(4), seen], model=model, optimizers=optimizers, max_steps=10).train()
    assert seen.rates[-1] == pytest.approx(seen.rates[-2] / 2)


@pytest.mark.parametrize("scales", [None, (0.0, 1.0)])
def test_a_group_that_is_kept_as_it_is_hides_no_other(tmp_path: Path, scales: Any) -> None:
    def run(rates: tuple[float, float]) -> list[float]:
        model, callback = fresh_model(), LeapCallback(4)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": part, "lr": rate} for part, rate in zip((trained[:1], trained[1:]), rates, strict=True)
        ]
        made = torch.optim.AdamW(groups)
        schedule = LambdaLR(made, [lambda _, s=s: s for s in scales]) if scales and rates[0] else None
        trainer(tmp_path, [callback], model=model, optimizers=(made, schedule), max_steps=6).train()
        return [float(group["lr"]) for group in made.param_groups] + factors(callback)

    found = run((2e-4, 2e-4) if scales else (0.0, 2e-4))
    assert found[0] == 0.0
    assert found[1] > 10 * 2e-4
    assert max(found[2:]) > 10


def saved(tmp_path: Path, **options: Any) -> tuple[Any, list[float]]:
    """A run whose rate was raised, and its rates; nothing but the model is in its checkpoints."""
    seen = Rates()
    run = trainer(
        tmp_path,
        [LeapCallback(4), seen],
        save_only_model=True,
        learning_rate=2e-4,
        **{**SAVING, "max_steps": 4, **options},
    )
    run.train()
    assert seen.rates[-1] > 10 * 2e-4
    return run, seen.rates


@pytest.mark.parametrize("every", [4, 5])
@pytest.mark.parametrize("configured", [2e-4, 0.0])
def test_a_checkpoint_of_the_model_alone_goes_on_at_the_rate_it_had(
    tmp_path: Path, every: int, configured: float
) -> None:
    """Under the same callback or another, from the rate that was configured or the one that was found."""
    rate = saved(tmp_path, max_steps=8)[1][3]
    seen = Rates()
    run = trainer(
        tmp_path,
        [LeapCallback(every), seen],
        save_only_model=True,
        learning_rate=configured or rate,
        max_steps=8,
        **SAVING,
    )
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert seen.rates[0] == pytest.approx(rate)


def test_a_trainer_that_goes_on_in_the_same_process_takes_the_factor_once(tmp_path: Path) -> None:
    run, rates = saved(tmp_path, max_steps=8)
    seen = Rates()
    run.add_callback(seen)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert seen.rates[0] == pytest.approx(rates[4])


class Interrupts(TrainerCallback):
    def __init__(self, step: int, event: str = "on_step_end") -> None:
        self.step = step
        setattr(self, event, self.interrupt)

    def interrupt(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = -1
            raise KeyboardInterrupt


def test_a_training_cut_off_in_the_cooldown_leaves_no_lower_rate_behind(tmp_path: Path) -> None:
    seen = Rates()
    run = trainer(tmp_path, [LeapCallback(4), seen, Interrupts(19)], learning_rate=2e-2, max_steps=20)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    before = list(seen.rates)
    assert before[18] < before[15]
    run.train()
    assert seen.rates[len(before)] == pytest.approx(before[15])


def test_a_callback_attached_anew_takes_back_what_the_one_before_left(tmp_path: Path) -> None:
    seen = Rates()
    first = LeapCallback(4)
    run = trainer(tmp_path, [first, seen, Interrupts(19)], learning_rate=2e-2, max_steps=20)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    before = list(seen.rates)
    run.remove_callback(first)
    run.add_callback(LeapCallback(4))
    run.train()
    assert before[18] < before[15]
    assert seen.rates[len(before)] == pytest.approx(before[15])


def cut_off_in_the_cooldown(out: Path, callback: LeapCallback, seen: Rates) -> Any:
    """A trainer that was stopped in the middle of a step that the cooldown had taken most of the rate of."""
    stops = Interrupts(19, "on_step_begin")
    run = trainer(out, [callback, seen, stops], learning_rate=2e-2, max_steps=20)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    return run


def test_a_callback_that_is_removed_leaves_no_lower_rate_behind(tmp_path: Path) -> None:
    callback, seen = LeapCallback(4), Rates()
    run = cut_off_in_the_cooldown(tmp_path, callback, seen)
    before = list(seen.rates)
    run.remove_callback(callback)
    for _ in range(2):
        run.train()
    assert seen.rates[len(before) :] == pytest.approx([before[15]] * 40)


def test_a_callback_that_goes_to_another_trainer_leaves_no_lower_rate_behind(tmp_path: Path) -> None:
    callback, seen = LeapCallback(4), Rates()
    run = cut_off_in_the_cooldown(tmp_path / "a", callback, seen)
    before = list(seen.rates)
    trainer(tmp_path / "b", [callback], max_steps=1).train()
    run.train()
    assert seen.rates[len(before)] == pytest.approx(before[15])


def test_what_the_cooldown_takes_of_the_rate_is_not_in_checkpoints(tmp_path: Path) -> None:
    """A run is longer after all, without the callback, without its memory, or with it: the rate is the whole one."""
    options = {**SAVING, "learning_rate": 2e-2, "save_steps": 19}
    whole = Rates()
    run = trainer(tmp_path, [LeapCallback(4), whole], max_steps=20, **options)
    run.train()
    assert whole.rates[19] == pytest.approx(whole.rates[15] / 4)
    logged = [e["learning_rate"] for e in run.state.log_history if "learning_rate" in e]
    # Between steps the rate is whole; the log has what steps were taken at.
    assert logged[15:] == pytest.approx(whole.rates[15:])
    folders = [str(tmp_path / f"checkpoint-{step}") for step in (19, 20)]
    for folder in folders:
        without = Rates()
        trainer(tmp_path / "a", [without], max_steps=22, **options).train(resume_from_checkpoint=folder)
        assert without.rates == pytest.approx([whole.rates[15]] * len(without.rates))
    longer = Rates()
    trainer(tmp_path / "a", [LeapCallback(4), longer], max_steps=60, **options).train(folders[1])
    assert longer.rates[0] == pytest.approx(whole.rates[15])
    for path in tmp_path.glob("checkpoint-19/nextrl_state*"):
        path.unlink()
    forgotten = Rates()
    trainer(tmp_path / "a", [LeapCallback(4), forgotten], max_steps=20, **options).train(folders[0])
    assert forgotten.rates == pytest.approx(whole.rates[19:])


def late() -> Any:
    """A reward that differs between completions from the sixth step on, so that no step before settles the rate."""
    calls, real = itertools.count(), reward_function(TASK)

    def reward(completions: list[str], **columns: Any) -> list[float]:
        if next(calls) < 5:
            return [0.0] * len(completions)
        return real(completions=completions, **columns)

    return reward


def test_a_decay_is_no_warm_up_after_a_resume(tmp_path: Path) -> None:
    options = {"learning_rate": 1e-6, "lr_scheduler_type": "linear", "max_steps": 10, "save_steps": 1}
    whole = LeapCallback(4)
    trainer(tmp_path / "a", [whole], rewards=late(), **{**SAVING, **options}).train()
    again, reward = LeapCallback(4), late()
    for _ in range(5):
        reward([])
    run = trainer(tmp_path / "a", [again], rewards=reward, **{**SAVING, **options})
    run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert max(factors(whole)) > 1.0
    assert [d.model_dump(exclude={"cost_seconds"}) for d in again.decisions] == [
        d.model_dump(exclude={"cost_seconds"}) for d in whole.decisions
    ]


class Copies(TrainerCallback):
    """Takes each checkpoint elsewhere as soon as it is saved, as uploads do."""

    def __init__(self, to: Path) -> None:
        self.to = to

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = f"checkpoint-{state.global_step}"
        shutil.copytree(Path(args.output_dir) / name, self.to / name)


def test_a_copy_of_a_checkpoint_made_by_an_earlier_callback_is_whole(tmp_path: Path) -> None:
    def resumed(folder: Path) -> tuple[list[float], list[float | None]]:
        seen, callback = Rates(), LeapCallback(4)
        run = trainer(tmp_path / "more", [seen, callback], **options)
        run.train(resume_from_checkpoint=str(folder / "checkpoint-18"))
        return seen.rates, [d.lr_factor for d in callback.decisions]

    options = {"learning_rate": 2e-2, "max_steps": 20, **SAVING}
    run = trainer(tmp_path / "run", [Copies(tmp_path / "copies"), LeapCallback(4)], **options)
    run.train()
    assert resumed(tmp_path / "copies") == resumed(tmp_path / "run")


def test_a_callback_that_was_removed_writes_nothing_any_more(tmp_path: Path) -> None:
    run = trainer(tmp_path, [LeapCallback(4)], max_steps=2, **SAVING)
    run.train()
    assert (tmp_path / "checkpoint-2" / JSON).is_file()
    run.remove_callback(LeapCallback)
    shutil.rmtree(tmp_path / "checkpoint-2")
    run.train()
    assert (tmp_path / "checkpoint-2").is_dir()
    assert not (tmp_path / "checkpoint-2" / JSON).is_file()


class Shares(Controller):
    """Looks at each step, and decides nothing; what share of the rate it is told."""

    length = 10**9

    def __init__(self, config: ControllerConfig) -> None:
        super().__init__(config)
        self.told: list[float] = []

    def checks(self, step: int) -> bool:
        return True

    def step(self, step: int, moved: float, share: float = 1.0, *_: Any, **__: Any) -> None:
        self.told.append(share)


# name -> schedule, step at which a run without memory goes on, what it is told there
TAKEN_UP: dict[str, tuple[Any, int, list[float]]] = {
    "milestones": (lambda o: schedules.MultiStepLR(o, [2], 0.05), 4, [1.0] * 4),
    "before the fall": (lambda o: schedules.MultiStepLR(o, [6], 0.05), 4, [1.0] * 4),
    "linear": (lambda o: LambdaLR(o, lambda t: 1 - t / 8), 4, [1.0] * 4),
    "cosine": (lambda o: schedules.CosineAnnealingLR(o, 8), 4, [1.0] * 4),
    "one cycle, at its last step": (lambda o: schedules.OneCycleLR(o, 2e-4, total_steps=8), 7, [1.0]),
    "warm-up": (lambda o: LambdaLR(o, lambda t: min(1.0, (t + 1) / 7)), 4, [5 / 7, 6 / 7, 1.0, 1.0]),
    "warm-up, then a fall": (
        lambda o: LambdaLR(o, lambda t: (t + 1) / 6 if t < 6 else 0.5), 4, [5 / 6, 1.0, 1.0, 1.0]),
    "its top by a hair": (lambda o: LinearLR(o, 0.1, total_iters=4), 4, [1.0] * 4),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN_UP)
def test_a_schedule_that_has_fallen_is_at_its_height_and_a_warm_up_is_none(tmp_path: Path, name: str) -> None:
    """Where a run is taken up without a memory; a warm-up is told as it was from the beginning on."""

    def run(*callbacks: TrainerCallback) -> None:
        model = fresh_model()
        made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
        built = trainer(
            tmp_path,
            callbacks,
            model=model,
            optimizers=(made, make(made)),
            **{**SAVING, "max_steps": 8, "save_steps": step},
        )
        built.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}") if callbacks else None)

    make, step, expected = TAKEN_UP[name]
    run()
    policy = Auto(ControllerConfig(), Shares)
    run(LeapCallback(policy=policy))
    assert policy.controller.told == pytest.approx(expected)


class Cosine(LRScheduler):
    """By hand, of a height of its own. `held` hides it from whoever would try it beforehand."""

    def __init__(self, made: Any, height: float, held: Any = None) -> None:
        self.height, self.held = height, held
        super().__init__(made)

    def get_lr(self) -> list[Any]:
        return [self.height * 0.5 * (1 + math.cos(math.pi * self.last_epoch / 40)) for _ in self.base_lrs]


class FromGroups(Cosine):
    """The same of the groups' rates."""

    def get_lr(self) -> list[Any]:
        return [base / self.height * rate for base, rate in zip(self.base_lrs, super().get_lr(), strict=True)]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kind", [Cosine, FromGroups])
def test_a_schedule_that_no_factor_reaches_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, hidden: bool
) -> None:
    def rates(*callbacks: TrainerCallback) -> list[float]:
        model, seen = fresh_model(), Rates()
        made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        schedule = kind(made, 1e-5, SimpleNamespace(model=model) if hidden else None)
        options = {"learning_rate": 1e-5, "max_steps": 8}
        trainer(tmp_path, [*callbacks, seen], model=model, optimizers=(made, schedule), **options).train()
        assert "initial_lr" in made.param_groups[0]
        bases.append(made.param_groups[0]["initial_lr"])
        return seen.rates

    bases: list[float] = []
    callback = LeapCallback(4)
    found, plain = rates(callback), rates()
    lines = [r.getMessage() for r in caplog.records if "numbers of its own" in r.getMessage()]
    told = [d.lr_factor for d in callback.decisions]
    if kind is FromGroups:  # followed as any other, whether it can be tried or not
        assert lines == []
        assert found[-1] > 10 * plain[-1]
        assert told[-1] == pytest.approx(found[-1] / plain[-1])
        return
    (line,) = lines
    assert line.startswith(
        f"nextrl, step {3 if hidden else 1}: the schedule makes its learning rates from numbers"
    )
    assert "\n" not in line
    kept = [0, *range(2, 8)] if hidden else range(8)  # a change shows by the rate after it at the latest
    assert [found[i] for i in kept] == pytest.approx([plain[i] for i in kept])
    assert told[1 if hidden else 0 :] == [1.0] * (len(told) - hidden)
    assert len(told) > hidden
    assert [f for f in factors(callback) if f != 1.0] == factors(callback)[:1] * hidden
    assert bases[0] == pytest.approx(bases[1])


class SetsOnce(TrainerCallback):
    """Lowers the rate for good at one step, schedule and all."""

    def __init__(self, step: int, base: bool) -> None:
        self.step, self.base = step, base

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] *= 0.1
                group["initial_lr"] *= 0.1 if self.base else 1.0
            if self.base:
                kwargs["lr_scheduler"].base_lrs = [g["initial_lr"] for g in kwargs["optimizer"].param_groups]


def test_a_rate_set_in_the_event_in_which_it_would_be_raised_is_noticed(tmp_path: Path) -> None:
    seen, callback = Rates(), LeapCallback(4)
    trainer(tmp_path, [SetsOnce(1, True), callback, seen], learning_rate=2e-4, max_steps=6).train()
    # It finds the raised rate, as it does at any later step's end, and what it makes of that holds for a step.
    assert seen.rates[1] == pytest.approx(0.1 * callback.decisions[0].learning_rate)
    assert seen.rates[2:] == pytest.approx([2e-5] * 4)


def test_whoever_set_the_rate_sets_it_after_a_resume_too(tmp_path: Path) -> None:
    def run(*, resumed: bool) -> list[float]:
        seen = Rates()
        options = {"learning_rate": 2e-2, "max_steps": 10, **SAVING}
        built = trainer(tmp_path, [SetsOnce(3, True), LeapCallback(4), seen], **options)
        built.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4") if resumed else None)
        return seen.rates

    whole = run(resumed=False)
    assert whole[-1] == whole[4]  # no cooldown
    assert run(resumed=True) == whole[4:]


def test_a_factor_left_in_an_optimizer_is_no_part_of_the_configured_rate(tmp_path: Path) -> None:
    run, rates = saved(tmp_path, max_steps=8, save_steps=1, rewards=late())
    first = next(i for i, rate in enumerate(rates) if rate > 2e-4)
    assert first >= 2
    seen = Rates()
    run.add_callback(seen)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert seen.rates[0] == pytest.approx(2e-4)


class Counts:
    """A schedule's function that goes on by one whenever it is called, and ends where the run does."""

    def __init__(self, steps: int) -> None:
        self.left = [1 / (1 + i) for i in range(steps + 1)]

    def __call__(self, step: int) -> float:
        return self.left.pop(0)


@pytest.mark.parametrize("options", [{"adapt_lr": False, "leaps": False}, {}])
def test_a_schedule_that_counts_its_calls_is_left_alone(tmp_path: Path, options: dict[str, bool]) -> None:
    def rates(*callbacks: TrainerCallback) -> list[float]:
        model, seen = fresh_model(), Rates()
        made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        optimizers = (made, LambdaLR(made, Counts(12)))
        trainer(tmp_path, [*callbacks, seen], model=model, optimizers=optimizers, max_steps=4).train()
        return seen.rates

    found, plain = rates(LeapCallback(4, **options)), rates()
    factors_found = [a / b for a, b in zip(found, plain, strict=True)]
    assert factors_found[-1] == pytest.approx(factors_found[-2])  # the schedule's shape stays
    assert options == {} or found == plain


NEUTRAL = {
    "lambda": lambda o: LambdaLR(o, lambda t: min(1.0, (t + 1) / 5)),
    "linear": lambda o: LinearLR(o, 0.1, total_iters=4),
    "product": lambda o: schedules.MultiplicativeLR(o, lambda t: 0.95),
    "step": lambda o: schedules.StepLR(o, 3),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 10, eta_min=1e-5),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: schedules.OneCycleLR(o, 5e-3, total_steps=40),
    "cyclic": lambda o: schedules.CyclicLR(o, 1e-4, 1e-3, cycle_momentum=False),
    "averaging": lambda o: SWALR(o, 5e-4),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1),
    "greedy": lambda o: GreedyLR(o, patience=1, min_lr=1e-6),
    "chained": lambda o: schedules.ChainedScheduler(
        [LinearLR(o, 0.1, total_iters=4), schedules.ExponentialLR(o, 0.9)]
    ),
    "in turn": lambda o: schedules.SequentialLR(
        o,
        [LinearLR(o, 0.1, total_iters=4), schedules.CosineAnnealingLR(o, 10), schedules.ConstantLR(o, 0.5)],
        [4, 12],
    ),
}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", NEUTRAL)
def test_no_schedule_is_taken_for_somebody_else(name: str, groups: int) -> None:
    made = torch.optim.AdamW(
        [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3 * (i + 1)} for i in range(groups)]
    )
    schedule = NEUTRAL[name](made)
    for step in range(30):
        made.step()
        if step in (5, 15):
            set_rate_factor(made, schedule, 1 / 3 if step == 5 else 7.7)
        assert not set_elsewhere(made, schedule)
        schedule.step(*((1.0,) if name in ("plateau", "greedy") else ()))
        assert not set_elsewhere(made, schedule)
    made.param_groups[-1]["lr"] *= 0.5
    assert set_elsewhere(made, schedule)


def test_a_second_training_tells_its_rate_over_the_configured_one_and_keeps_the_first_log(
    tmp_path: Path,
) -> None:
    """The rate that was found stays in the optimizer; docs/callback.md has what brings the configured one back."""
    callback, seen, low = LeapCallback(), Rates(), 1e-6
    run = trainer(tmp_path, [callback, seen], learning_rate=low, max_steps=4)
    assert repr(callback) == "LeapCallback(auto, not trained yet)"
    run.train()
    callback.decisions.clear()  # a copy: what was decided stays
    first = callback.decisions
    assert first
    run.train()
    assert callback.decisions
    assert callback.decisions[0].lr_factor > 100
    for decision in [*first, *callback.decisions]:
        assert decision.lr_factor == pytest.approx(decision.learning_rate / low)
    assert [d.step for d in decision_file.read(tmp_path)] == [d.step for d in callback.decisions]
    kept = (tmp_path / "nextrl_decisions.1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [d.step for d in first]
    rate = run.optimizer.param_groups[0]["lr"]
    assert (
        repr(callback)
        == f"LeapCallback(auto, step 4, learning rate {rate:.3g}, {len(callback.decisions)} decisions)"
    )

    run.remove_callback(callback)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = run.args.learning_rate
    seen.rates.clear()
    run.train()
    assert seen.rates == [low] * 4
