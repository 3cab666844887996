"""`auto` in real TRL runs: what it takes back it takes back to the bit, and what it only looks at stays as it was."""

from __future__ import annotations

import math
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import RLOOTrainer

from nextrl.engines import sharded, step_divergence
from nextrl.engines.memory import TENSORS
from nextrl.engines.policies import Auto
from nextrl.engines.trl import fresh_rollouts, live_run
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.fresh_rollouts import FreshRollouts
from nextrl.engines.trl.live_run import LiveRun
from nextrl.engines.trl.seam import Seam
from nextrl.errors import InputError
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from nextrl.tasks.bases import tiny
from trl_runs import Breaks, Watch, fresh_model, same, trainable, trainer, weights

QUIET = ControllerConfig(
    every=2, goal=1e-30, sure=1e9, surer=0.0, undo=1e9, alarm=1e9, patience=99, cooldown=0.0
)
BUFFERED = {"per_device_train_batch_size": 16, "num_generations": 4, "steps_per_generation": 4}


class Undoing(Controller):
    """Undoes the first window, whatever it is shown."""

    windows = 0

    def checks(self, step: int) -> bool:
        return False

    def window(self, window: Any, look: Any) -> Decision:
        self.windows += 1
        self.seen = look(-1.0)
        if self.windows > 1:
            return stay("enough")
        return replace(stay("undone"), alpha=-1.0, back="window", rate_factor=0.5)


def test_a_rate_far_too_low_is_raised_after_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen.extend(prompts)
        return [float("3" in c) for c in completions]

    callback = LeapCallback()
    run = trainer(tmp_path, [callback], rewards=reward, learning_rate=1e-6, max_steps=3)
    run.train()
    first = callback.decisions[0]
    assert (first.step, first.back, first.alpha) == (1, "", 0.0)
    assert first.learning_rate > 1e-3
    assert "less than it should" in first.reason
    assert first.rate_factor == pytest.approx(first.learning_rate / 1e-6)
    said = [r.message for r in caplog.records if r.message.startswith("nextrl, step 1: learning rate times ")]
    assert len(said) == 1  # a line that is seen by default
    assert len(seen) == 3 * 32  # not one completion more than training's
    assert callback.costs.search_completions == 0
    assert len(run.train_dataset) == 400


def test_a_reckless_first_step_is_taken_back_to_the_bit(tmp_path: Path) -> None:
    before, after = Watch(), Watch()
    callback = LeapCallback()
    trainer(tmp_path, [before, callback, after], learning_rate=0.5, max_steps=2).train()
    first = callback.decisions[0]
    assert (first.step, first.back, first.alpha) == (1, "step", -1.0)
    assert first.learning_rate < 0.05
    assert same(after.ends[1][0], before.begins[1][0])
    assert not same(before.stepped[1][0], before.begins[1][0])
    assert after.ends[1][1] == []  # Adam has not taken a step yet
    assert after.ends[1][2] == pytest.approx(first.learning_rate)


@pytest.mark.parametrize("part", ["weights", "moments"])
def test_an_interrupt_leaves_no_step_half_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    before, interrupted = Watch(), []
    plain_move, plain_write = LiveRun.move, live_run.write_moments

    def move(run: LiveRun, state: Any) -> None:
        if part == "weights" and not interrupted:
            interrupted.append(True)
            half = dict(list(run.adapter.parameters.items())[:2])
            sharded.write(half, state)
            raise KeyboardInterrupt
        plain_move(run, state)

    def write_moments(optimizer: Any, moments: Any) -> None:
        if part == "moments" and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        plain_write(optimizer, moments)

    monkeypatch.setattr(LiveRun, "move", move)
    monkeypatch.setattr(live_run, "write_moments", write_moments)
    run = trainer(tmp_path, [before, LeapCallback()], learning_rate=0.5, max_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert interrupted
    assert same(trainable(run.model), before.begins[1][0])
    assert not any(
        "exp_avg" in state for state in run.optimizer.state.values()
    )  # as before Adam's first step


def test_a_reckless_step_right_after_a_bold_one_begins_the_run_again(tmp_path: Path) -> None:
    before, after = Watch(), Watch()
    callback = LeapCallback(config=ControllerConfig(goal=1e-6, bold=1e-6, reckless=1e-5, ruinous=1e9))
    callbacks = [before, callback, after, StopsAt(3)]
    run = trainer(tmp_path, callbacks, rewards=by_chance, learning_rate=4e-3, max_steps=100)
    run.train()
    first = callback.decisions[0]
    assert (first.step, first.back, first.alpha) == (2, "run", -1.0)
    assert first.learning_rate <= 2e-3
    assert same(after.ends[2][0], before.begins[1][0])
    assert not same(before.stepped[2][0], before.begins[1][0])
    assert after.ends[2][1] == []  # Adam has not taken a step yet
    assert after.ends[2][2] == pytest.approx(first.learning_rate)
    assert callback.decisions[0].claimed_steps == -2


def by_chance(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward that nobody can learn in a few steps, the same for the same text."""
    return [float(zlib.crc32((p + c).encode()) % 2) for p, c in zip(prompts, completions, strict=True)]


PROBATION = ControllerConfig(
    goal=1e-6,
    bold=1e-6,
    reckless=1e9,
    far=1e9,
    every=2,
    undo=1e9,
    alarm=1e9,
    harm=1e9,
    sure=1e9,
    patience=99,
    cooldown=0.0,
)


class StopsAt(TrainerCallback):
    """Ends a run early: one of 100 steps is long enough to begin again."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_a_bold_start_that_does_not_rise_begins_again_to_the_bit(tmp_path: Path) -> None:
    before, after = Watch(), Watch()
    callback = LeapCallback(config=PROBATION)
    callbacks = [before, callback, after, StopsAt(30)]
    run = trainer(tmp_path, callbacks, rewards=by_chance, learning_rate=4e-3, max_steps=100)
    run.train()
    (again,) = [d for d in callback.decisions if d.back]
    assert (again.back, again.alpha) == ("run", -1.0)
    assert 25 <= again.step < 30
    assert same(after.ends[again.step][0], before.begins[1][0])
    assert after.ends[again.step][1] == []  # Adam has not taken a step yet
    assert after.ends[again.step][2] == pytest.approx(again.learning_rate)
    assert again.learning_rate <= 2e-3
    assert callback.costs.leapt_steps == -again.step
    assert not same(weights(run.model), before.begins[1][0])  # and trained on


WARM_UP = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 12}


@pytest.mark.parametrize(
    ("schedule", "until", "remembered"),
    [({}, 30, (True, True, False)), (WARM_UP, 40, (True, True, True, False))],
)
def test_a_probation_goes_on_where_a_run_was_stopped(
    tmp_path: Path, schedule: dict[str, Any], until: int, remembered: tuple[bool, ...]
) -> None:
    ends = []
    for stopped in (False, True):
        out, options = (
            tmp_path / str(stopped),
            {"rewards": by_chance, "learning_rate": 4e-3, "max_steps": 100},
        )
        options |= {"save_strategy": "steps", "save_steps": 10, **schedule}
        if stopped:
            shutil.copytree(tmp_path / "False" / "checkpoint-10", out / "checkpoint-10")
        callback = LeapCallback(config=PROBATION)
        run = trainer(out, [callback, StopsAt(until)], **options)
        run.train(resume_from_checkpoint=stopped)
        ends.append((callback.decisions, weights(run.model)))
    assert [d.back for d in ends[0][0] if d.back] == ["run"]
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])
    held = [
        any(
            name.startswith("origin/") for name in load_file(tmp_path / "False" / f"checkpoint-{n}" / TENSORS)
        )
        for n in range(10, until + 1, 10)
    ]
    assert held == list(remembered)


@pytest.mark.parametrize("steps", [False, True])
def test_a_decay_is_no_warm_up(tmp_path: Path, steps: bool) -> None:
    """Where no reward differed at first, a schedule without a warm-up is below its height at the first real step."""
    model = fresh_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    made = (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)) if steps else (None, None)
    calls = iter(range(100))

    def late(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return by_chance(prompts, completions) if next(calls) >= 8 else [0.0] * len(prompts)

    policy = Auto(PROBATION)
    callbacks = [LeapCallback(policy=policy), StopsAt(10)]
    options = {"learning_rate": 4e-3, "lr_scheduler_type": "linear", "max_steps": 100}
    trainer(tmp_path, callbacks, rewards=late, model=model, optimizers=made, **options).train()
    assert policy.controller.settled
    assert policy.controller.state()["probation"] is not None


@pytest.mark.parametrize("low", [1e-6, 1e-4])
def test_half_precision_finds_the_rate_that_float32_finds(tmp_path: Path, low: float) -> None:
    """A first step at 1e-6 moves no bfloat16 log-probability, or some by a whole digit: neither is a measurement."""
    rates = {}
    for bf16 in (False, True):
        callback = LeapCallback(config=ControllerConfig(every=100))
        trainer(tmp_path / str(bf16), [callback], learning_rate=low, max_steps=6, bf16=bf16).train()
        rates[bf16] = callback.decisions[-1].learning_rate
    assert rates[True] == pytest.approx(rates[False], rel=0.6)


def test_the_rounding_of_a_deep_model_is_not_taken_for_movement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty layers in bfloat16 add .003 nats per token, others at each change of the weights (docs/precision.md)."""
    really = Seam.per_token_logps

    def rounded(self: Seam, ids: torch.Tensor, attention: torch.Tensor, length: int) -> torch.Tensor:
        exact = really(self, ids, attention, length)
        state = b"".join(p.detach().numpy().tobytes() for p in trainable(self.trainer.model).values())
        noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(zlib.crc32(state)))
        return exact + noise * 0.003**0.5

    rates = []
    for deep in (False, True):
        if deep:
            monkeypatch.setattr(Seam, "per_token_logps", rounded)
        policy = Auto(ControllerConfig(every=100))
        callback = LeapCallback(policy=policy)
        trainer(tmp_path / str(deep), [callback], learning_rate=1e-4, max_steps=4, bf16=deep).train()
        assert callback.decisions[0].step == 1
        rates.append(callback.decisions[-1].learning_rate)
    # Three times the good step ruins this policy: what is seen before that tells less exactly, and never too much.
    assert 10 * 1e-4 < 0.1 * rates[0] < rates[1] < 1.4 * rates[0]
    assert policy.controller.state()["rounding"] == pytest.approx(0.003, rel=0.4)


@pytest.mark.parametrize("case", ["float32", "a head beside the adapter", "weights in bfloat16"])
def test_where_a_step_is_not_held_against_its_multiples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """In float32 there is no need; a head is not multiplied with it; rounded weights are no part of a longer step."""

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(step_divergence, "tell_apart", never)
    model = fresh_model()
    if case == "a head beside the adapter":
        lora = LoraConfig(
            target_modules="all-linear", modules_to_save=["lm_head"], exclude_modules=["lm_head"]
        )
        model = get_peft_model(tiny.load("chain")[0], lora)
    callback = LeapCallback(config=ControllerConfig(every=100))
    low = trainer(
        tmp_path,
        [callback],
        model=tiny.load("chain")[0].to(torch.bfloat16) if case == "weights in bfloat16" else model,
        learning_rate=1e-5,
        max_steps=3,
        bf16=case == "a head beside the adapter",
    )
    low.train()
    assert callback.decisions[0].step == 1
    assert caplog.text.count("rounding may hide") == (case != "float32")


def test_an_undone_window_is_as_it_began_to_the_bit_moments_too(tmp_path: Path) -> None:
    before, after = Watch(), Watch()
    policy = Auto(ControllerConfig(every=3), Undoing)
    run = trainer(tmp_path, [before, LeapCallback(policy=policy), after], learning_rate=1e-3, max_steps=5)
    run.train()
    # Windows are short at first: one step, judged after the second, whose rollouts were sampled where it ended.
    assert policy.controller.windows >= 1
    assert same(after.ends[2][0], before.begins[1][0])
    assert after.ends[2][1] == before.begins[1][1] == []
    assert after.ends[2][2] == pytest.approx(5e-4)
    assert policy.controller.seen.nats_k2 > 0.0


@pytest.mark.parametrize("options", [{}, BUFFERED, {"kind": RLOOTrainer}, {"num_iterations": 2}])
def test_looking_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = trainer(tmp_path / "plain", max_steps=9, learning_rate=1e-3, **options)
    plain.train()
    callback = LeapCallback(config=QUIET)
    watched = trainer(tmp_path / "watched", [callback], max_steps=9, learning_rate=1e-3, **options)
    watched.train()
    assert callback.decisions
    assert all(d.gains for d in callback.decisions)
    assert same(weights(watched.model), weights(plain.model))


def test_windows_end_where_the_buffer_turns_over(tmp_path: Path) -> None:
    callback = LeapCallback(config=QUIET)
    trainer(tmp_path, [callback], max_steps=14, learning_rate=1e-3, **BUFFERED).train()
    # Steps 1, 5, 9 and 13 begin with fresh rollouts; the first window of a run begins at 0.
    assert [d.step for d in callback.decisions] == [5, 9, 13]


def test_switched_off_it_only_watches(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "plain", learning_rate=1e-6)
    plain.train()
    callback = LeapCallback(adapt_lr=False, leaps=False)
    watched = trainer(tmp_path / "watched", [callback], learning_rate=1e-6)
    watched.train()
    assert same(weights(watched.model), weights(plain.model))
    assert all(d.learning_rate == pytest.approx(1e-6) for d in callback.decisions)


def test_a_window_is_judged_at_its_last_weights_by_what_they_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    real = FreshRollouts.gain

    def gain(self: Any, anchor: Any, candidate: Any) -> Any:
        asked.append((anchor, candidate))
        return real(self, anchor, candidate)

    monkeypatch.setattr(FreshRollouts, "gain", gain)
    before = Watch()
    callback = LeapCallback(policy=Auto(ControllerConfig(every=3), Undoing))
    trainer(tmp_path, [before, callback], learning_rate=1e-3, max_steps=2).train()
    (anchor, candidate), *more = asked
    assert not more
    assert all(torch.equal(a, b) for a, b in zip(anchor.values(), before.begins[2][0].values(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(candidate.values(), before.begins[1][0].values(), strict=True)
    )


@pytest.mark.parametrize(("schedule", "cooled"), [("constant", True), ("linear", False)])
def test_a_constant_rate_falls_at_the_end_and_a_schedule_is_left_alone(
    tmp_path: Path, schedule: str, cooled: bool
) -> None:
    plain, watch = Watch(), Watch()
    options = {"max_steps": 10, "learning_rate": 1e-3, "lr_scheduler_type": schedule}
    trainer(tmp_path / "plain", [plain], **options).train()
    callback = LeapCallback(config=replace(QUIET, cooldown=0.5))
    trainer(tmp_path / "auto", [callback, watch], **options).train()
    shares = [watch.begins[s][2] / plain.begins[s][2] for s in range(1, 11)]
    assert shares == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2] if cooled else [1] * 10)


@pytest.mark.parametrize("rate", [1e-6, 0.05])
def test_where_the_rate_is_to_stay_windows_are_judged_and_steps_left_alone(
    tmp_path: Path, rate: float
) -> None:
    callback = LeapCallback(config=QUIET, adapt_lr=False)
    trainer(tmp_path, [callback], learning_rate=rate, max_steps=7).train()
    assert callback.decisions
    assert all(d.gains and not d.back for d in callback.decisions)


def test_a_reckless_step_stays_where_the_rate_has_to_stay(tmp_path: Path) -> None:
    """Taken back at the same rate, the next step would be as reckless, and the run would never get anywhere."""
    before, after = Watch(), Watch()
    callback = LeapCallback(config=QUIET, adapt_lr=False)
    trainer(tmp_path, [before, callback, after], learning_rate=0.5, max_steps=1).train()
    assert same(after.ends[1][0], before.stepped[1][0])
    assert not [d for d in callback.decisions if d.back]


def test_a_mean_reward_counts_once_however_many_steps_it_is_trained_on(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Remember(Undoing):
        windows = 1  # nothing is undone

        def window(self, window: Any, look: Any) -> Decision:
            seen.append(window.rewards)
            return super().window(window, look)

    callback = LeapCallback(policy=Auto(ControllerConfig(every=12), Remember))
    trainer(tmp_path, [callback], learning_rate=1e-3, max_steps=9, **BUFFERED).train()
    assert [not math.isnan(r) for r in seen[0]] == [True, False, False, False, True]


def gives_way(
    tmp_path: Path, *steps: int, more: int = 2, **options: Any
) -> tuple[LeapCallback, Watch, Watch, Any]:
    """A run in which these steps turn to NaN; the callback, what was there before and after it, and the model."""
    before, after = Watch(), Watch()
    callback = LeapCallback(config=replace(QUIET, every=6), **options)
    callbacks = [before, callback, after, Breaks(*steps)]
    run = trainer(tmp_path, callbacks, learning_rate=1e-3, max_steps=steps[-1] + more)
    run.train()
    assert all(p.isfinite().all() for p in trainable(run.model).values())
    return callback, before, after, run.model


@pytest.mark.parametrize(("step", "adapt_lr", "back"), [(3, True, 3), (7, True, 6), (7, False, 6)])
def test_what_a_step_to_nan_did_is_taken_back(tmp_path: Path, step: int, adapt_lr: bool, back: int) -> None:
    """Step 3 follows a window's end and goes back to it; step 7 is looked at for no other reason."""
    callback, before, after, model = gives_way(tmp_path, step, adapt_lr=adapt_lr)
    (taken,) = [d for d in callback.decisions if d.back]
    assert (taken.step, taken.claimed_steps) == (step, back - step - 1)
    assert "NaN" in taken.reason
    assert same(after.ends[step][0], before.begins[back][0])
    assert all(m.isfinite().all() for m in after.ends[step][1])
    assert after.ends[step][2] == before.begins[step][2]  # the rate has held: it is not the reason
    assert not same(trainable(model), after.ends[step][0])  # and trained on


def test_a_step_to_nan_in_what_is_trained_beside_the_adapter_is_taken_back(tmp_path: Path) -> None:
    before, after = Watch(), Watch()
    callback = LeapCallback(config=replace(QUIET, every=6))
    nan = Breaks(3, only="modules_to_save")
    run = trainer(
        tmp_path,
        [before, callback, nan, after],
        model=with_head(),
        # Clipping by the norm of all gradients would spread the NaN to the adapter.
        max_grad_norm=0.0,
        learning_rate=1e-3,
        max_steps=5,
    )
    run.train()
    assert [d.step for d in callback.decisions if d.back] == [3]
    assert all(p.isfinite().all() for p in trainable(run.model).values())
    assert same(after.ends[3][0], before.begins[3][0])


def nothing(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def noisily(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Passes that round otherwise from one batch to another, as a GPU's kernels do."""
    really = Seam.per_token_logps
    monkeypatch.setattr(
        Seam, "per_token_logps", lambda *given: (found := really(*given)) + size * torch.randn_like(found)
    )


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_weight_decay_alone_says_nothing_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, noise: float
) -> None:
    noisily(monkeypatch, noise)
    model = fresh_model()
    for name, p in model.named_parameters():
        if "lora_B" in name:  # an adapter that was trained before
            torch.nn.init.normal_(p, std=0.05)
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.1)
    callback = LeapCallback(4)
    run = trainer(
        tmp_path, [callback], model=model, rewards=nothing, optimizers=(optimizer, None), max_steps=4
    )
    run.train()
    assert callback.decisions
    assert {d.rate_factor for d in callback.decisions} == {1.0}


def with_head() -> Any:
    """A model whose head is trained beside its adapter."""
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    return get_peft_model(tiny.load("chain")[0], lora)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("made", [fresh_model, with_head])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_that_moved_no_weight_says_nothing_of_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool, made: Any, weight_decay: float
) -> None:
    noisily(monkeypatch, 2e-3)
    callback = LeapCallback(4)
    options = {"learning_rate": 1e-4, "max_steps": 4, "bf16": bf16, "weight_decay": weight_decay}
    trainer(tmp_path, [callback], model=made(), rewards=nothing, **options).train()
    assert {d.rate_factor for d in callback.decisions} <= {1.0}


def test_what_is_trained_beside_the_adapter_is_part_of_what_a_step_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where passes are looked at for randomness, the anchor is read with the head that it had."""

    def decided(folder: str) -> list[Any]:
        callback = LeapCallback(4)
        trainer(tmp_path / folder, [callback], model=with_head(), learning_rate=2e-4, max_steps=4).train()
        return [d.model_dump() for d in callback.decisions]

    looked = decided("a")
    assert looked[0]["rate_factor"] > 1.0
    monkeypatch.setattr(FreshRollouts, "repeatable", True)
    assert decided("b") == looked


@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupt_leaves_what_is_trained_beside_the_adapter_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    plain, writes, seen = fresh_rollouts._write, iter(range(1, 99)), Watch()

    def write(values: Any) -> None:
        if next(writes) != nth:
            plain(values)
            return
        for p, _ in values:
            p.data.zero_()
        raise KeyboardInterrupt

    monkeypatch.setattr(fresh_rollouts, "_write", write)
    run = trainer(tmp_path, [seen, LeapCallback()], model=with_head(), max_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert same(trainable(run.model), seen.stepped[1][0])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_under_dropout_a_step_moves_as_far_as_without(tmp_path: Path, dropout: float) -> None:
    """Most of it is the head's."""
    model, callback = with_head(), LeapCallback(4)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    trainer(tmp_path, [callback], model=model, learning_rate=2e-4, max_steps=1).train()
    assert 1e-5 < callback.decisions[0].divergence < 2e-4


def test_a_second_step_to_nan_in_a_row_lowers_the_rate(tmp_path: Path) -> None:
    callback = gives_way(tmp_path / "row", 7, 8)[0]
    assert [(d.step, d.learning_rate) for d in callback.decisions if d.back] == [(7, 1e-3), (8, 5e-4)]
    apart = gives_way(tmp_path / "apart", 3, 5, 7, 9, 11, 13)[0]
    assert [d.learning_rate for d in apart.decisions if d.back] == [1e-3] * 6


def test_steps_that_are_nan_at_any_rate_end_the_run(tmp_path: Path) -> None:
    for adapt_lr, why in ((True, "lower rates did not help"), (False, "the learning rate may be too high")):
        run = trainer(
            tmp_path,
            [LeapCallback(adapt_lr=adapt_lr), Breaks(*range(3, 99))],
            learning_rate=1e-3,
            max_steps=20,
        )
        with pytest.raises(InputError, match=f"^5 steps in a row left NaN or Inf .*{why}") as error:
            run.train()
        assert "\n" not in str(error.value)
        assert run.state.global_step == 7
        assert all(p.isfinite().all() for p in trainable(run.model).values())  # for whoever saves it now


def test_a_step_to_nan_that_cannot_be_taken_back_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveRun, "restorable", False)
    with pytest.raises(InputError, match=r"^step 3 left NaN .* It cannot be taken back"):
        gives_way(tmp_path, 3)


def test_where_nothing_may_be_moved_nan_is_left_to_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="probability tensor"):
        gives_way(tmp_path, 3, leaps=False)


def test_a_step_to_nan_early_in_a_probation_begins_the_run_again(tmp_path: Path) -> None:
    before, after = Watch(), Watch()
    callbacks = [before, LeapCallback(config=PROBATION), after, Breaks(2), StopsAt(3)]
    trainer(tmp_path, callbacks, learning_rate=4e-3, max_steps=100).train()
    (taken,) = [d for d in callbacks[1].decisions if d.back]
    assert (taken.step, taken.back) == (2, "run")
    assert same(after.ends[2][0], before.begins[1][0])


def test_a_run_that_may_not_begin_again_takes_the_step_back(tmp_path: Path) -> None:
    options = {"learning_rate": 4e-3, "max_steps": 100, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, [LeapCallback(config=PROBATION), StopsAt(1)], **options).train()
    callback = LeapCallback(config=PROBATION, adapt_lr=False)
    run = trainer(tmp_path, [callback, Breaks(2), StopsAt(3)], **options)
    run.train(resume_from_checkpoint=True)
    assert [d.back for d in callback.decisions if d.back] == ["step"]
    assert all(p.isfinite().all() for p in trainable(run.model).values())


def test_a_run_taken_up_from_a_named_method_s_has_moments_to_go_back_to(tmp_path: Path) -> None:
    options = {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 4}
    named = LeapCallback(6, "secant", horizon=6, alpha=1.0)
    trainer(tmp_path, [named], max_steps=4, **options).train()
    after = Watch()
    callback = LeapCallback(config=replace(QUIET, every=6), adapt_lr=False)
    run = trainer(tmp_path, [callback, after, Breaks(6)], max_steps=8, **options)
    run.train(resume_from_checkpoint=True)
    assert [d.back for d in callback.decisions if d.back]
    assert after.ends[6][1]
    assert all(m.isfinite().all() for m in after.ends[6][1])


def test_the_rate_is_given_back_when_training_has_ended(tmp_path: Path) -> None:
    watch = Watch()
    callback = LeapCallback(config=replace(QUIET, cooldown=0.5))
    run = trainer(tmp_path, [callback, watch], max_steps=10, learning_rate=1e-3)
    run.train()
    assert watch.begins[10][2] == pytest.approx(2e-4)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_schedule_made_of_several_tells_its_share(tmp_path: Path) -> None:
    from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR

    model = fresh_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    warm_up = LinearLR(optimizer, 0.01, total_iters=10)
    schedule = SequentialLR(optimizer, [warm_up, ConstantLR(optimizer, 1.0)], [10])
    callback = LeapCallback(config=replace(QUIET, goal=0.004))
    run = trainer(tmp_path, [callback], model=model, optimizers=(optimizer, schedule), max_steps=1)
    run.train()
    # A hundredth of the rate was asked about as such.
    assert run.optimizer.param_groups[0]["initial_lr"] < 0.1
