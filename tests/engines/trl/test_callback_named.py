"""`LeapCallback` with a method of the registry, in real TRL runs: where it leaps, what it asks, how it resumes."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextrl.engines.live_weights import along
from nextrl.engines.policies import AtSteps
from nextrl.engines.trl.callback import LeapCallback, attach
from nextrl.engines.trl.rollouts import TrainerRollouts
from nextrl.errors import InputError
from nextrl.extrapolators.base import tags_by_name
from nextrl.extrapolators.next_paper import NextPaper
from nextrl.judge.acceptance import Acceptance
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory
from trl_runs import VALIDATION, Before, States, fresh_model, same, trainer, watched, weights

SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}


def test_a_given_alpha_is_taken_without_a_search_at_the_named_steps(tmp_path: Path) -> None:
    callback = LeapCallback(2, "factors", at=[3, 6], horizon=2, alpha=1.5)
    before, after, _ = watched(tmp_path, callback, max_steps=7)
    # Steps 2 and 3 end windows; factors takes the checkpoint nearest to T - 2 (0 or 2) and scales to 2 steps.
    b = before.states
    assert [d.step for d in callback.decisions] == [2, 3, 4, 6]
    assert [d.alpha for d in callback.decisions] == [0.0, 1.5, 0.0, 1.5]
    wanted = along(b[2], b[3], 1.5 * 2)
    for name, value in after.states[2].items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)
    # The second leap repeats what happened since the first, never the leap itself.
    wanted = along(b[4], b[6], 1.5)
    for name, value in after.states[5].items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)
    assert callback.costs.search_completions == 0
    assert callback.costs.leapt_steps == 2 * 1.5 * 2


def test_the_leap_in_memory_is_the_leap_from_disk(tmp_path: Path) -> None:
    watched(tmp_path / "plain", LeapCallback(2, "none", alpha=1.0, leaps=False), max_steps=6, **SAVED)
    wanted = leap(Trajectory.load(tmp_path / "plain").upto(6), "ols", 2, alpha=2.0).leap_state()
    callback = LeapCallback(2, "ols", at=[6], horizon=2, alpha=2.0)
    _, after, _ = watched(tmp_path / "leapt", callback, max_steps=6)
    assert callback.decisions[-1].alpha == 2.0
    for name, value in after.states[-1].items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)


# One of each kind of answer, and the one that wants rewards; the conformance suite has them all.
@pytest.mark.parametrize("method", ["rna", "next", "factors", "alpharl"])
def test_every_method_leaps_at_the_adapter_s_own_rank(method: str, tmp_path: Path) -> None:
    callback = LeapCallback(1, method, at=[8], horizon=2, alpha=1.0)
    before, after, built = watched(tmp_path, callback, max_steps=8, learning_rate=1e-2)
    assert callback.decisions[-1].alpha == 1.0, callback.decisions[-1].reason
    assert not same(before.states[-1], after.states[-1])
    assert {n: t.shape for n, t in after.states[-1].items()} == {
        n: t.shape for n, t in before.states[-1].items()
    }
    assert all(bool(t.isfinite().all()) for t in after.states[-1].values())
    assert built.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("method", "frozen"),
    [("next", ("lora_A",)), ("next", ("lora_B",)), ("next", ("lora_A", "layers.0")), ("linear", ("lora_A",))],
)
def test_a_leap_moves_no_factor_that_is_frozen(method: str, frozen: tuple[str, ...], tmp_path: Path) -> None:
    """LoRA-FA (2308.03303) trains B alone."""
    model = fresh_model()
    for name, p in model.named_parameters():
        if "lora_B" in name:  # frozen at 0 it would leave nothing to train
            torch.nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(len(name)))
        if any(part in name for part in frozen):
            p.requires_grad_(False)
    held = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before, after = Before(), States()
    callback = LeapCallback(1, method, at=[5], horizon=2, alpha=2.0)
    built = trainer(tmp_path, [before, callback, after], model=model, learning_rate=2e-3, max_steps=5)
    built.train()
    assert callback.decisions[-1].alpha == 2.0
    assert not same(after.states[-1], before.states[-1])
    assert same({n: p for n, p in weights(model).items() if n in held}, held)
    if method == "next":  # what the frozen factor cannot follow is said
        assert callback.decisions[-1].discarded > 1e-9


def test_the_published_method_leaps_once_at_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tags_by_name("next-paper").at == (150,)
    assert tags_by_name("next").at is None
    monkeypatch.setattr(NextPaper, "tags", replace(NextPaper.tags, at=(5,)))
    built = trainer(tmp_path, max_steps=7, learning_rate=1e-2)
    leaps = attach(built, every=1, method="next-paper", horizon=2)
    built.train()
    assert {d.step: d.alpha for d in leaps.decisions if d.alpha} == {5: 1.5}
    assert leaps.decisions[4].reason == "next-paper: alpha 1.5 taken unseen"
    assert leaps.costs.search_completions == 0


def test_a_run_that_never_comes_to_a_named_step_is_refused(tmp_path: Path) -> None:
    def refusal(*arguments: Any, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            trainer(tmp_path, [LeapCallback(*arguments, **options)], max_steps=2).train()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert refusal(method="next-paper") == (
        "next-paper: this run ends at step 2, before step 150, where it leaps if nothing else is said: give steps of "
        "the run with at=, or train longer"
    )
    refused = "there are 16 checkpoints (every=2, keep=16), and a horizon of 50 steps needs 28: change every="
    with pytest.raises(InputError, match=re.escape(refused)):
        trainer(tmp_path, [LeapCallback(2, "next-paper")], max_steps=200).train()
    assert "before step 3, 4, which at= names" in refusal(method="secant", at=[4, 3], alpha=1.0)


# One that comes is enough.
@pytest.mark.parametrize(("at", "named"), [([9, 2], "9"), (range(2, 30, 3), "5, 8, 11, 14, 17 ...")])
def test_steps_that_never_come_are_said_once(
    at: Any, named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = LeapCallback(1, "secant", at=at, horizon=1, alpha=1.0)
    watched(tmp_path, callback, max_steps=3, **SAVED)
    said = f"nextrl: secant: at= names {named}, and this run ends at step 3: no leap is made there"
    assert [r.getMessage() for r in caplog.records if "at= names" in r.getMessage()] == [said]
    assert [d.step for d in callback.decisions if d.alpha] == [2]


def test_the_price_counts_the_named_steps_that_the_run_comes_to() -> None:
    policy = LeapCallback(1, "secant", at=range(2, 100, 2), horizon=1)._policy
    policy.refuse_impossible(0, 8, 16)
    assert "; a search" not in str(policy.announced(0, 32, 4))
    assert "at most 4 in this run" in str(policy.announced(8, 32, 4))
    # The whole of it, though resumed after step 4.
    assert "at most 4 in this run" in str(policy.announced(4, 32, 4))


@pytest.mark.parametrize("at", [2, (2,), {2}, np.array([2]), (np.int64(step) for step in [2]), [2.0]])
def test_steps_and_numbers_may_be_given_as_they_come(at: Any, tmp_path: Path) -> None:
    callback = LeapCallback(
        np.int64(1), "secant", at=at, horizon=np.int32(1), alpha=np.float32(1.5), keep=torch.tensor(4)
    )
    watched(tmp_path, callback, max_steps=3)
    assert {d.step: d.alpha for d in callback.decisions if d.alpha} == {2: 1.5}
    assert callback.decisions[1].horizon == 1


@pytest.mark.parametrize("alphas", [2, 2.0, (2.0,), range(2, 3), np.array([2.0]), (a for a in [2.0])])
def test_alphas_may_be_given_as_they_come(
    alphas: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        TrainerRollouts, "rewards", lambda self, rows, seed: torch.ones(len(rows), dtype=torch.float64)
    )
    callback = LeapCallback(
        1, "secant", at=[1], horizon=1.0, alphas=alphas, validation=VALIDATION, prompts=np.float64(8)
    )
    watched(tmp_path, callback, max_steps=1)
    assert set(callback.decisions[0].scores) == {"0", "2"}


@pytest.mark.parametrize(("every", "alphas"), [(4, {4: 1.0}), (3, {3: 1.0, 6: 1.0})])
def test_a_given_alpha_is_not_taken_where_no_window_could_show_it_wrong(
    every: int, alphas: dict[int, float], tmp_path: Path
) -> None:
    callback = LeapCallback(every, "linear", horizon=every, alpha=1.0)
    built = trainer(tmp_path, [callback], max_steps=9 if every == 3 else 8, learning_rate=1e-3)
    built.train()
    assert {d.step: d.alpha for d in callback.decisions if d.alpha} == alphas
    assert callback.decisions[-1].reason == "linear: less than a window of the run is left: no leap"
    named = LeapCallback(every, "linear", horizon=every, at=every, alpha=1.0)
    trainer(tmp_path, [named], max_steps=every, learning_rate=1e-3).train()
    assert named.decisions[-1].alpha == 1.0  # whoever names a step means it


def test_a_callback_added_after_all_its_steps_is_refused(tmp_path: Path) -> None:
    plain, saved = tmp_path / "plain", {"save_strategy": "steps", "save_steps": 3}
    trainer(plain, max_steps=3, **saved).train()

    def resumed(*arguments: Any, **options: Any) -> LeapCallback:
        callback = LeapCallback(*arguments, **options)
        trainer(tmp_path / "on", [callback], max_steps=6).train(str(plain / "checkpoint-3"))
        return callback

    message = (
        "secant: this run goes on after step 3, with no memory of a leap, and does not come to step 2, 3, 9, which at= "
        "names: give steps of the run with at=, or leave the callback out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        resumed(1, "secant", at=[2, 3, 9], horizon=1, alpha=1.0)
    with pytest.raises(InputError, match=r"at step 150, .* there are 15 checkpoints"):
        trainer(tmp_path / "on", [LeapCallback(10, "next-paper", horizon=130)], max_steps=200).train(
            str(plain / "checkpoint-3")
        )
    found = resumed(1, "secant", at=[2, 5], horizon=1, alpha=1.0)  # one of them is still to come
    assert [d.step for d in found.decisions if d.alpha] == [5]


def test_a_run_that_has_leapt_at_all_its_steps_is_resumed(tmp_path: Path) -> None:
    def options() -> dict[str, Any]:
        return {"callbacks": [LeapCallback(1, "secant", at=[2], horizon=1, alpha=1.0)], "save_steps": 3}

    trainer(tmp_path, max_steps=3, save_strategy="steps", **options()).train()
    trainer(tmp_path, max_steps=4, save_strategy="steps", **options()).train(resume_from_checkpoint=True)


def test_searches_at_steps_of_its_own_have_no_bound() -> None:
    def price(**options: Any) -> str:
        return str(
            LeapCallback(method="next-paper", alphas=[1.0, 2.0], **options)._policy.announced(160, 32, 4)
        )

    assert price() == price(at=[150])
    assert "at most 1 in this run" in price()


def test_a_search_compares_with_staying_put_and_waits_where_nothing_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        TrainerRollouts, "rewards", lambda self, rows, seed: torch.ones(len(rows), dtype=torch.float64)
    )
    callback = LeapCallback(1, "secant", horizon=1, validation=VALIDATION, prompts=8)
    before, after, _ = watched(tmp_path, callback, max_steps=7)
    assert all(d.alpha == 0.0 for d in callback.decisions)
    assert all(same(a, b) for a, b in zip(before.states[1:], after.states, strict=True))
    searched = [d.step for d in callback.decisions if d.scores]
    assert searched == [1, 3, 6]  # one window of rest, then two
    assert set(callback.decisions[0].scores) == {"-0.5", "0", "1", "2", "4", "8", "16"}


def test_the_best_alpha_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def rewards(self: Any, rows: Any, seed: int) -> torch.Tensor:
        # A candidate is known by its weights. The first asked are 0, -0.5, 1, 2, 4, ...
        asked.append(sum(float(p.norm()) for p in self._trainer.model.parameters() if p.requires_grad))
        earned = 0.0 if asked[-1] == asked[0] else 1.0 if asked[-1:] == asked[4:5] else 0.1
        spread = torch.arange(len(rows), dtype=torch.float64) % 2
        return spread * 0.01 + earned

    monkeypatch.setattr(TrainerRollouts, "rewards", rewards)
    callback = LeapCallback(2, "secant", at=[2], horizon=2, validation=VALIDATION, prompts=32)
    watched(tmp_path, callback, max_steps=2)
    assert callback.decisions[0].alpha == 4.0
    # The leap claims so many steps; the search is charged.
    spent = callback.costs.search_completions / 32
    assert callback.decisions[0].claimed_steps == pytest.approx(4.0 * 2 - spent)


def searches(callback: LeapCallback) -> list[int]:
    return [d.step for d in callback.decisions if d.completions]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 7}, [2, 4]),  # a search at step 6 would have one step left to pay in
        ({"max_steps": 6}, [2, 4]),  # at 6 none
        ({"max_steps": 10, "lr_scheduler_type": "cosine"}, [2, 4, 6, 8]),
        # A warm-up is no end; the decay is at its end from step 6 on.
        (
            {"max_steps": 10, "schedule": [0.001, 0.002, 0.005, 1, 1, 1, 0.005, 0.005, 0.004, 0.004, 0]},
            [2, 4],
        ),
    ],
)
def test_nothing_is_searched_where_nothing_can_come_of_it(
    tmp_path: Path, options: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextrl.engines.policies.at_steps.PATIENCE", 0)
    options = dict(options)
    shape, model = options.pop("schedule", None), fresh_model()
    callback = LeapCallback(2, "factors", horizon=1, validation=VALIDATION, prompts=4, alphas=[1.0])
    built = trainer(tmp_path, [callback], model=model, **{"learning_rate": 1e-3, **options})
    if shape:
        built.create_optimizer()
        built.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(built.optimizer, lambda step: shape[step])
    built.train()
    assert searches(callback) == expected
    late = [d.reason for d in callback.decisions if d.step > max(expected)]
    assert all("no search" in reason for reason in late)


def test_a_named_step_is_searched_whatever_is_left(tmp_path: Path) -> None:
    callback = LeapCallback(2, "factors", at=[4], horizon=1, validation=VALIDATION, prompts=4, alphas=[1.0])
    trainer(tmp_path, [callback], max_steps=4, lr_scheduler_type="linear").train()
    assert searches(callback) == [4]


def priced(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "a search takes at most" in r.getMessage()]


def test_the_price_of_searches_is_said_at_the_start_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 3 candidates on 4 + 4 + 8 prompts: all on 4, then two contenders at most beside staying put.
    callback = LeapCallback(
        1, "factors", at=[2, 4], horizon=1, validation=VALIDATION, prompts=16, alphas=[1, 2]
    )
    trainer(tmp_path, [callback], max_steps=4).train()
    (line,) = priced(caplog)
    assert line == (
        "nextrl: factors: a search takes at most 48 completions of held-out prompts, 1.5 steps' worth; at most 2 in "
        "this run, 75% of its completions (prompts= makes them cheaper)"
    )
    assert all(d.completions <= 48 for d in callback.decisions)


def test_a_search_on_which_nothing_can_be_accepted_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = LeapCallback(1, "factors", at=[2], horizon=1, validation=VALIDATION, prompts=16)
    trainer(tmp_path, [callback], max_steps=3).train()
    (line,) = priced(caplog)
    assert line.endswith(
        "; a search of 16 completions in groups of 4 sees 4 prompts, on which no leap can be accepted: give "
        "LeapCallback(prompts=20) or more"
    )


def test_the_best_mean_needs_no_bar_that_prompts_could_be_too_few_for() -> None:
    searching = AtSteps("factors", at=[2], horizon=1, acceptance=Acceptance((16,)))
    assert "can be accepted" in str(searching.announced(3, 32, 8))
    searching = AtSteps("factors", at=[2], horizon=1, acceptance=Acceptance((16,), argmax=True))
    assert "can be accepted" not in str(searching.announced(3, 32, 8))


def test_without_a_word_on_searches_they_take_a_tenth_of_what_was_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def built(name: str, steps: int) -> LeapCallback:
        callback = LeapCallback(2, "factors", horizon=1, validation=VALIDATION, alphas=[1.0])
        trainer(tmp_path / name, [callback], max_steps=steps, per_device_train_batch_size=96).train()
        return callback

    short = built("short", 4)
    assert priced(caplog)[-1].endswith(
        "at most 10% of the completions trained on, for which this run is too short: no leap will be made (give at= "
        "or prompts=)"
    )
    assert searches(short) == []
    assert "waiting" in short.decisions[0].reason
    long = built("long", 20)
    assert priced(caplog)[-1].endswith("searches take at most 10% of the completions trained on")
    # 128 completions at most: a tenth of what was trained on from 1280 on, which is step 14.
    assert searches(long)[0] == 14
    assert all(d.cost_completions <= 0.1 * 96 * d.step for d in long.decisions)


def priced_at(policy: AtSteps, step: int, steps: int) -> str | None:
    """What is said of a run of so many steps that goes on after one of them."""
    policy.refuse_impossible(0, steps, 16)
    return policy.announced(steps - step, 32, 4)


@pytest.mark.parametrize("options", [{"at": [20, 40, 60]}, {"every": 10}, {"share": 0.1}])
def test_a_run_that_goes_on_names_the_price_that_it_named_at_its_beginning(options: dict[str, Any]) -> None:
    policy = AtSteps("linear", **options)
    begun = priced_at(policy, 0, 100)
    assert begun is not None
    assert "too short" not in begun
    assert [priced_at(policy, step, 100) for step in (50, 99)] == [begun, begun]


def test_a_run_that_is_over_has_no_price() -> None:
    assert AtSteps("linear").announced(0, 32, 4) is None
    assert "at most" in str(AtSteps("linear").announced(1, 32, 4))


def test_auto_says_no_price(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, [LeapCallback()], max_steps=1).train()
    assert priced(caplog) == []


@pytest.mark.parametrize("search", [{}, {"alpha": 1.0}])
def test_a_named_step_with_too_few_checkpoints_is_refused_before_anything_is_done(
    search: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError) as error:
        trainer(tmp_path, [LeapCallback(2, "secant", at=[4], horizon=50, **search)], max_steps=8).train()
    assert str(error.value) == (
        "secant: at step 4, which at= names, there are 3 checkpoints (every=2, keep=16), and a horizon of 50 steps "
        "needs 26: change every=, keep= or horizon=, or leap later"
    )
    assert caplog.text == ""  # nothing is announced, and nothing held back


def test_what_was_refused_could_not_have_been_fitted_and_what_was_not_is(tmp_path: Path) -> None:
    fitted = {}
    for at in (2, 3, 4, 5, 6, 7):
        callback = LeapCallback(2, "secant", at=at, horizon=4, alpha=1.0)
        try:
            watched(tmp_path / str(at), callback, max_steps=at)
            fitted[at] = callback.decisions[-1].alpha
        except InputError:
            fitted[at] = None
    assert fitted == {2: None, 3: None, 4: 1.0, 5: 1.0, 6: 1.0, 7: 1.0}


def test_one_of_several_named_steps_with_too_few_checkpoints_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = LeapCallback(2, "secant", at=[2, 6], horizon=4, alpha=1.0)
    watched(tmp_path, callback, max_steps=6)
    assert "at step 2, which at= names, there are 2 checkpoints (every=2, keep=16)" in caplog.text
    assert "nextrl, step 2: no leap: secant needs" in caplog.text
    assert [d.step for d in callback.decisions if d.alpha] == [6]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"horizon": 50}, "before there are checkpoints enough (every=2, keep=16) for a horizon of 50 steps"),
        ({"horizon": 1}, "for which this run is too short: no leap will be made"),
    ],
)
def test_nothing_is_held_back_for_a_run_in_which_nothing_is_searched(
    options: dict[str, int], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = LeapCallback(2, "factors", **options)
    trainer(tmp_path, [callback], max_steps=8).train()
    assert says in caplog.text
    assert caplog.text.count("no leap will be made") == 1
    assert "held back" not in caplog.text
    assert callback.costs.search_completions == 0
    caplog.clear()
    trainer(tmp_path / "named", [LeapCallback(2, "factors", horizon=1, at=4)], max_steps=4).train()
    assert "held back" in caplog.text


def test_too_few_checkpoints_are_waited_for_where_no_step_was_named(tmp_path: Path) -> None:
    patient = LeapCallback(2, "secant", horizon=4, alpha=1.0)
    watched(tmp_path, patient, max_steps=6)
    assert [d.alpha for d in patient.decisions] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("method", ["next", "ols"])
def test_a_resumed_run_ends_with_the_same_adapter_to_the_bit(method: str, tmp_path: Path) -> None:
    def built(out: Path, resume: bool) -> tuple[Any, LeapCallback]:
        callback = LeapCallback(1, method, at=[7], horizon=2, validation=VALIDATION, prompts=8)
        made = trainer(out, [callback], max_steps=8, **SAVED)
        made.train(resume_from_checkpoint=resume or None)
        return made, callback

    whole, first = built(tmp_path / "whole", False)
    assert first.decisions[6].scores
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "again" / f"checkpoint-{step}")
    resumed, second = built(tmp_path / "again", True)
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(whole.model))


def test_windows_of_another_length_go_on_with_the_account(tmp_path: Path) -> None:
    for steps, every in ((4, 2), (6, 1)):
        callback = LeapCallback(every, "factors", at=[4, 6], horizon=2, validation=VALIDATION, prompts=8)
        trainer(tmp_path, [callback], max_steps=steps, **SAVED).train(
            resume_from_checkpoint=steps == 6 or None
        )
    spent = {d.step: d.cost_completions for d in callback.decisions}
    assert list(spent) == [2, 4, 5, 6]
    assert 0 < spent[4] == spent[5] < spent[6] == callback.costs.search_completions


@pytest.mark.parametrize(("first", "then"), [("auto", "secant"), ("secant", "auto"), ("secant", "factors")])
def test_a_run_goes_on_with_another_method(first: str, then: str, tmp_path: Path) -> None:
    for steps, method in ((4, first), (8, then)):
        options = {} if method == "auto" else {"horizon": 2, "validation": VALIDATION, "prompts": 8}
        callback = LeapCallback(2, method, **options)
        trainer(tmp_path, [callback], max_steps=steps, **SAVED).train(
            resume_from_checkpoint=steps == 8 or None
        )
    methods = {d.step: d.method for d in callback.decisions}
    assert {method for step, method in methods.items() if step <= 4} == {first}
    assert {method for step, method in methods.items() if step > 4} == {then}
    assert max(methods) >= 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'; known: none, factors"),
        ({"method": "secant", "horizon": 0}, "horizon must be at least 1"),
        ({"method": "secant", "alpha": 1e9}, "alpha must be a number from"),
        ({"method": "auto", "alpha": 1.0}, "only a named method does"),
        ({"method": "auto", "at": [3]}, "only a named method does"),
        ({"method": "secant", "keep": 1}, "keep must be at least 2"),
        ({"method": "secant", "keep": 2.5}, r"keep must be a whole number, not 2\.5"),
        ({"method": "secant", "horizon": 1.5}, r"horizon must be a whole number, not 1\.5"),
        ({"method": "secant", "prompts": 8.5}, r"prompts must be a whole number, not 8\.5"),
        ({"method": "secant", "prompts": "8"}, "prompts must be a whole number, not '8'"),
        ({"method": "secant", "at": []}, "at is empty: name at least one, or leave at= out"),
        ({"method": "secant", "at": "100"}, "at must be a list of numbers, not '100'"),
        ({"method": "secant", "at": ["2"]}, "each of at must be a whole number, not '2'"),
        ({"method": "secant", "at": [-5, 2]}, "each of at must be at least 1, not -5"),
        ({"method": "secant", "at": 0}, "at must be at least 1, not 0"),
        ({"method": "secant", "at": {2: "a"}}, "at must be a list of numbers, not"),
        ({"method": "secant", "at": object()}, "at must be a whole number, not <object"),
        ({"method": "secant", "alpha": "2"}, "alpha must be a number, not '2'"),
        ({"method": "secant", "alpha": [1.0, 2.0]}, "alpha must be a number, not"),
        ({"method": "secant", "alpha": torch.ones(2)}, "alpha must be a number, not"),
        ({"method": "secant", "alphas": []}, "alphas is empty"),
        ({"method": "secant", "alphas": [0, 0.0]}, "alphas has no candidate but 0"),
        ({"method": "secant", "alphas": [1.0, math.nan]}, "each of alphas must be a number, not nan"),
    ],
)
def test_bad_settings_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LeapCallback(**options)
