"""Every option of a user's trainer: `LeapCallback` works under it to the letter, or refuses it in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import along
from nextrl.engines.moments import read_moments
from nextrl.engines.policies import Auto
from nextrl.engines.trl.callback import LeapCallback
from nextrl.errors import InputError
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from trainer_options import HERE, OPTIONS, WORKS, Option, build, table
from trl_runs import Scripted, same, trainable, weights

PAGE = Path(__file__).parents[3] / "docs" / "options.md"

# Looks at steps and windows as often as it can, and does nothing.
LOOKING = ControllerConfig(
    every=2, goal=1e-30, reckless=1e9, sure=1e9, surer=0.0, undo=1e9, alarm=1e9, patience=99, cooldown=0.0
)

RUNS = [name for name, option in OPTIONS.items() if option.test == HERE]


class Seen:
    """A run between two steps."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.weights = weights(model)
        self.adapter = LiveAdapter(model).read()
        self.moments = read_moments(optimizer)
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.scheduled = [float(rate) for rate in kwargs["lr_scheduler"].get_last_lr()]
        self.randomness = torch.get_rng_state()


class Trace(TrainerCallback):
    """The run where each step begins, as the optimizer leaves it, and at its end; number 0 is the first step."""

    def __init__(self) -> None:
        self.begins: list[Seen] = []
        self.stepped: list[Seen] = []
        self.ends: list[Seen] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begins.append(Seen(kwargs))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stepped.append(Seen(kwargs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(Seen(kwargs))


class After(Trace):
    """The same, for a second place among the callbacks."""


class Acting(Controller):
    """Takes the first step back at half the rate, and quadruples the rate after the second."""

    length = 10**9

    def checks(self, step: int) -> bool:
        return step <= 2

    def step(self, step: int, *_: Any, **__: Any) -> Decision:  # type: ignore[override]
        if step == 1:
            return replace(stay("scripted"), alpha=-1.0, back="step", rate_factor=0.5)
        return replace(stay("scripted"), rate_factor=4.0)


class Leaping(Scripted):
    searches = False


def alike(one: Sequence[dict[str, Any]], two: Sequence[dict[str, Any]]) -> bool:
    """Whether two optimizers' states are the same to the bit."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) and all(map(equal, a, b))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return all(
        a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a) for a, b in zip(one, two, strict=True)
    )


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> None:
    """Warnings of TRL about its experimental features are no matter here."""


@pytest.mark.parametrize("name", [n for n in RUNS if OPTIONS[n].verdict == WORKS])
def test_it_works_to_the_letter(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    option = OPTIONS[name]
    if option.needs:
        pytest.importorskip(option.needs)
    plain = Trace()
    run = build(option, tmp_path / "plain", [plain])
    run.train()
    assert not same(plain.begins[0].weights, plain.ends[-1].weights)
    expected = trainable(run.model), read_moments(run.optimizer)
    assert_looks_leave_no_trace(option, tmp_path / "looks", plain, expected)
    assert_actions_are_exact(option, tmp_path / "acts", plain)
    assert_a_leap_lands(option, tmp_path / "leaps")
    assert not [r for r in caplog.records if "param_groups" in r.getMessage()]


def assert_looks_leave_no_trace(option: Option, out: Path, plain: Trace, expected: Any) -> None:
    """Weights, moments, rates and random numbers are those of the run without the callback, to the bit."""
    trace, callback = Trace(), LeapCallback(config=LOOKING)
    run = build(option, out, [trace, callback])
    run.train()
    assert callback.decisions
    assert all(d.alpha == 0.0 and d.rate_factor == 1.0 for d in callback.decisions)
    assert any(d.gains for d in callback.decisions), [d.reason for d in callback.decisions]
    assert callback.costs.search_completions == 0
    for before, now in zip(plain.begins, trace.begins, strict=True):
        assert torch.equal(before.randomness, now.randomness)
        assert (now.rates, now.scheduled) == (before.rates, before.scheduled)
    assert same(trainable(run.model), expected[0])
    assert alike(read_moments(run.optimizer), expected[1])


def assert_actions_are_exact(option: Option, out: Path, plain: Trace) -> None:
    """A step taken back is taken back to the bit; rates are a factor times those of the run without the callback."""
    before, after = Trace(), After()
    callback = LeapCallback(policy=Auto(LOOKING, Acting))
    run = build(option, out, [before, callback, after])
    run.train()
    assert [(d.step, d.back, d.rate_factor) for d in callback.decisions] == [(1, "step", 0.5), (2, "", 4.0)]
    assert same(after.ends[0].weights, before.begins[0].weights)
    assert alike(after.ends[0].moments, before.begins[0].moments)
    assert same(before.stepped[0].weights, plain.ends[0].weights)  # and the step itself had been the same
    factors = [1.0, 0.5, *[2.0] * (option.steps - 2)]
    for factor, theirs, ours in zip(factors, plain.begins, before.begins, strict=True):
        # Powers of two: equal to the bit.
        assert ours.rates == [factor * rate for rate in theirs.rates]
        assert ours.scheduled == [factor * rate for rate in theirs.scheduled]


def assert_a_leap_lands(option: Option, out: Path) -> None:
    """The adapter reads back as what was written, and nothing else of the model or the optimizer has moved."""
    before, after = Trace(), After()
    callback = LeapCallback(policy=Leaping([(2.0, 1.0)], every=2))
    run = build(option, out, [before, callback, after], max_steps=2)
    run.train()
    begin, end, leapt = before.begins[0], before.stepped[1], after.ends[1]
    wanted = along(begin.adapter, end.adapter, 2.0)
    assert same(leapt.adapter, wanted)
    assert not same(leapt.adapter, end.adapter)
    assert alike(leapt.moments, end.moments)
    adapter = {id(p) for p in LiveAdapter(run.model).parameters.values()}
    others = [n for n, p in run.model.named_parameters() if id(p) not in adapter]
    assert all(torch.equal(leapt.weights[n], end.weights[n]) for n in others)


@pytest.mark.parametrize("name", [n for n in RUNS if OPTIONS[n].verdict != WORKS])
def test_it_is_refused_in_one_line_before_the_first_step(tmp_path: Path, name: str) -> None:
    option = OPTIONS[name]
    for callback in (LeapCallback(), LeapCallback(2, "factors", alpha=1.0)):
        run = build(option, tmp_path, [callback])
        held = weights(run.model)
        with pytest.raises(InputError, match=option.verdict) as refusal:
            run.train()
        assert "\n" not in str(refusal.value)
        assert run.state.global_step == 0
        assert same(weights(run.model), held)


def test_the_page_has_the_table() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert "\n".join(table()) in "\n".join(lines), (
        "paste what `PYTHONPATH=tests python tests/trainer_options.py` prints"
    )


def test_each_row_names_a_test_that_is_there() -> None:
    tests = Path(__file__).parents[1]
    missing = [name for name, option in OPTIONS.items() if not (tests / option.test).is_file()]
    assert not missing, f"tests/trainer_options.py: no file is where `test` of {', '.join(missing)} points to"
