"""`LeapCallback` in real TRL runs: what it changes, what it never touches, every trap it must not fall into."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer, SFTTrainer

import trl_runs
from nextrl.engines.trl.callback import LeapCallback, attach
from nextrl.engines.trl.delivery import StaleWeights
from nextrl.engines.trl.rollouts import TrainerRollouts, log_probabilities
from nextrl.engines.trl.seam import Seam
from nextrl.engines.trl.trainer import as_dataset
from nextrl.errors import InputError
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import searched
from trl_runs import (
    COMMON,
    VALIDATION,
    Scripted,
    fresh_model,
    same,
    scripted_policy,
    sft_trainer,
    trainable,
    trainer,
    weights,
)


def leaper(every: int = 2, controller: Any = None, **options: Any) -> LeapCallback:
    """A callback on the validation rows; with a controller, that one decides."""
    prompts = options.pop("prompts", 16)
    options = {"validation": VALIDATION, **options}
    if controller is not None:
        return LeapCallback(policy=scripted_policy(controller, every, prompts), **options)
    return LeapCallback(policy=Searching(every=every, prompts=prompts), **options)


class Searching(Scripted):
    """Takes the better of staying put and going on by a window, by a paired search."""

    def choose(self, window: Any, score: Any) -> Any:
        self.windows.append(window)
        alpha, scores = self.acceptance.choose(score, (1.0,))
        return searched("asked", alpha, scores)


def scripted(*answers: tuple[float, float], search: tuple[float, ...] = ()) -> Scripted:
    return Scripted(answers, search)


class Watch(TrainerCallback):
    """Snapshots at the end of every step, leaps included."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []
        self.moments: list[list[torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(weights(kwargs["model"]))
        optimizer = kwargs["optimizer"]
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.moments.append([s["exp_avg"].clone() for s in optimizer.state.values()])


class Before(TrainerCallback):
    """The same as the optimizer leaves it, before any leap."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.moments: list[list[torch.Tensor]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(weights(kwargs["model"]))
        self.moments.append([s["exp_avg"].clone() for s in kwargs["optimizer"].state.values()])


def plain_run(tmp_path: Path, **options: Any) -> dict[str, torch.Tensor]:
    run = trainer(tmp_path / "plain", **options)
    run.train()
    return weights(run.model)


def test_searches_leave_the_training_unchanged_to_the_bit(tmp_path: Path) -> None:
    expected = plain_run(tmp_path)
    callback = leaper(leaps=False, adapt_lr=False)
    run = trainer(tmp_path / "searched", [callback])
    run.train()
    assert callback.costs.search_completions > 0
    assert same(weights(run.model), expected)


def test_random_states_metrics_and_logs_are_as_if_nothing_had_been_scored(tmp_path: Path) -> None:
    class Trace(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            metrics = {
                m: {k: list(v) for k, v in values.items() if "time" not in k and "profiling" not in k}
                for m, values in run._metrics.items()
            }
            pending = {k: list(v) for k, v in run._pending_metrics.items()}
            logs = {k: list(v) for k, v in run._logs.items() if hasattr(v, "__len__")}
            randomness = (
                torch.get_rng_state().tolist(),
                random.getstate(),
                np.random.get_state()[1].tolist(),
            )
            self.seen.append(
                (metrics, pending, logs, randomness, state.num_input_tokens_seen, run.model.training)
            )

    def noisy_reward(completions: list[str], log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
        random.random()
        np.random.rand()
        log_metric("my_metric", 1.0)
        log_extra("my_column", ["x"] * len(completions))
        return [float(len(c)) for c in completions]

    controller = scripted(search=(0.0, 2.0))
    traces = []
    for callbacks in ([], [leaper(controller=controller)]):
        random.seed(0)
        np.random.seed(0)
        trace = Trace()
        run = trainer(
            tmp_path / f"{len(callbacks)}", [*callbacks, trace], rewards=noisy_reward, log_completions=False
        )
        run.train()
        traces.append(trace.seen)
        assert [h.get("my_metric") for h in run.state.log_history[:4]] == [1.0] * 4
        assert "eval" not in run._metrics or not run._metrics["eval"]
    without, with_search = traces
    for clean, watched in zip(without, with_search, strict=True):
        metrics, *others = watched
        metrics["train"] = {k: v for k, v in metrics["train"].items() if not k.startswith("leap/")}
        assert str((metrics, *others)) == str(clean)


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    ends, decisions = [], []
    for name in ("one", "two"):
        callback = leaper(controller=scripted((2.0, 1.0), search=(0.0, 2.0)))
        run = trainer(tmp_path / name, [callback], max_steps=6)
        run.train()
        ends.append(weights(run.model))
        decisions.append(callback.decisions)
    assert decisions[0] == decisions[1]
    assert any(d.alpha != 0 for d in decisions[0])
    assert same(*ends)


def test_a_leap_moves_the_adapter_as_announced_and_nothing_else(tmp_path: Path) -> None:
    controller = scripted((3.0, 1.0))
    start = fresh_model()
    begin, before, after = trainable(start), Before(), Watch()
    run = trainer(tmp_path, [before, leaper(controller=controller), after], model=start)
    run.train()
    at, leapt = before.states[1], after.states[1]
    for name, value in begin.items():
        torch.testing.assert_close(leapt[name], at[name] + 3.0 * (at[name] - value), rtol=1e-5, atol=1e-7)
    frozen = [n for n in at if n not in begin]
    assert all(torch.equal(leapt[n], at[n]) for n in frozen)
    # Adam's moments stay, to the bit, and stay attached: the next step still uses them.
    assert all(torch.equal(a, b) for a, b in zip(before.moments[1], after.moments[1], strict=True))
    assert not same(before.states[2], leapt)
    # A window never spans a leap.
    assert same({n: after.states[0][n] for n in frozen}, {n: after.states[3][n] for n in frozen})


def test_an_undo_puts_the_window_s_start_back_to_the_bit(tmp_path: Path) -> None:
    controller = scripted((0.0, 1.0), (-1.0, 0.2))
    after = Watch()
    run = trainer(tmp_path, [leaper(controller=controller), after], max_steps=4)
    run.train()
    assert same(after.states[3], after.states[1])
    assert after.rates[-1] == pytest.approx(0.2 * 2e-4)


def test_switched_off_parts_stay_off(tmp_path: Path) -> None:
    controller = scripted((3.0, 5.0), (3.0, 5.0))
    expected = plain_run(tmp_path)
    rate_only = Watch()
    still = leaper(controller=controller, leaps=False)
    run = trainer(tmp_path / "rate", [still, rate_only], max_steps=2)
    run.train()
    assert rate_only.rates == pytest.approx([2e-4, 1e-3])
    assert [d.alpha for d in still.decisions] == [0.0]  # a record says what was done
    assert still.decisions[0].reason.endswith("not done: the weights may not be changed")
    controller = scripted((3.0, 5.0), (3.0, 5.0))
    leaps_only = Watch()
    fixed = leaper(controller=controller, adapt_lr=False)
    run = trainer(tmp_path / "leaps", [fixed, leaps_only])
    run.train()
    assert fixed.decisions[0].reason.endswith("not done: the rate may not be changed")
    assert leaps_only.rates == [2e-4] * 4
    assert not same(weights(run.model), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cooldown", r"give config=nextrl\.ControllerConfig\(cooldown=\.\.\.\)"),
        ("adapt_rate", "did you mean adapt_lr?"),
        ("zzz", "LeapCallback has no argument zzz; choose every, method"),
    ],
)
def test_an_argument_that_there_is_not_is_told_where_it_belongs(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        attach(trainer(tmp_path, []), **{name: 0.0})


def test_two_callbacks_in_one_trainer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two LeapCallbacks"):
        trainer(tmp_path, [leaper(), leaper(every=3)], max_steps=2).train()
    built = trainer(tmp_path, [leaper()], max_steps=2)
    with pytest.raises(InputError, match="attach it once"):
        attach(built, every=2)


def test_attach_adds_a_callback_that_knows_its_trainer(tmp_path: Path) -> None:
    built = trainer(tmp_path, [], max_steps=2)
    leaps = attach(built, every=2, method="linear", horizon=2, validation=VALIDATION, prompts=4)
    built.train()
    assert [d.step for d in leaps.decisions] == [2]
    assert leaps in built.callback_handler.callbacks


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_warm_up_and_decay_keep_their_shape(tmp_path: Path, schedule: str) -> None:
    options = {"lr_scheduler_type": schedule, "warmup_steps": 3, "max_steps": 8}
    plain, scaled = Watch(), Watch()
    trainer(tmp_path / "plain", [plain], **options).train()
    controller = scripted((0.0, 3.0), (0.0, 0.5))
    trainer(tmp_path / "scaled", [leaper(controller=controller), scaled], **options).train()
    factors = [1.0, 3.0, 3.0, 1.5, 1.5, 1.5, 1.5, 1.5]
    assert scaled.rates == pytest.approx([r * f for r, f in zip(plain.rates, factors, strict=True)])


def test_a_rate_decayed_to_nothing_does_not_break_the_last_window(tmp_path: Path) -> None:
    callback = leaper()
    run = trainer(tmp_path, [callback], lr_scheduler_type="linear", max_steps=4)
    run.train()
    assert len(callback.decisions) == 2


def test_the_controller_sees_the_rate_the_window_was_trained_at(tmp_path: Path) -> None:
    controller = scripted((0.0, 3.0))
    trainer(tmp_path, [leaper(controller=controller)]).train()
    assert [w.rate for w in controller.windows] == pytest.approx([2e-4, 6e-4])
    assert [w.step for w in controller.windows] == [2, 4]
    assert [w.trained for w in controller.windows] == [64, 128]
    assert all(len(w.rewards) == 2 for w in controller.windows)


def test_rewards_are_each_seen_once_whatever_the_logging(tmp_path: Path) -> None:
    seen = {}
    for logging_steps in (1, 3):
        controller = scripted(search=(0.0,))
        run = trainer(
            tmp_path / str(logging_steps), [leaper(controller=controller)], logging_steps=logging_steps
        )
        run.train()
        seen[logging_steps] = [w.rewards for w in controller.windows]
        if logging_steps == 1:
            logged = [h["reward"] for h in run.state.log_history if "reward" in h]
    assert seen[1] == seen[3]
    assert [r for rewards in seen[1] for r in rewards] == pytest.approx(logged)


def logs_each_step(run: Any) -> None:
    """Have a callback of the user's log between sampling and the step's end."""

    class Logs(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run.log({"of my own": 1.0})

    run.add_callback(Logs())


def logs_each_loss(run: Any) -> None:
    """Have the trainer log each loss, as a subclass may, before the next rollouts of the same step are sampled."""
    plain = run.compute_loss

    def compute_loss(*arguments: Any, **options: Any) -> Any:
        run.log({"of my own": 1.0})
        return plain(*arguments, **options)

    run.compute_loss = compute_loss


@pytest.mark.parametrize(
    ("logs", "make", "options"),
    [
        (logs_each_step, trainer, {}),
        (logs_each_step, trainer, {"kind": RLOOTrainer}),
        (logs_each_step, sft_trainer, {}),
        (logs_each_loss, trainer, {"gradient_accumulation_steps": 2, "steps_per_generation": 1}),
    ],
)
def test_rewards_are_seen_whoever_has_the_trainer_log_in_a_step(
    tmp_path: Path, logs: Any, make: Any, options: dict[str, Any]
) -> None:
    def rewards(name: str, *prepare: Any) -> list[Any]:
        controller = scripted()
        run = make(tmp_path / name, [leaper(controller=controller, validation=None)], **options)
        for one in prepare:
            one(run)
        run.train()
        return [w.rewards for w in controller.windows]

    plain = rewards("plain")
    assert len(plain) == 2
    assert not any(math.isnan(reward) for window in plain for reward in window)
    assert rewards("logging", logs) == plain


@pytest.mark.parametrize("silent", [True, False])
def test_a_run_without_rewards_is_told(
    tmp_path: Path, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [None if silent else 0.5] * len(completions)

    trainer(tmp_path, [LeapCallback()], rewards=reward, max_steps=7).train()
    said = [
        r.getMessage() for r in caplog.records if "measured no reward in its first 5 steps" in r.getMessage()
    ]
    assert len(said) == silent


BUFFERED = {"per_device_train_batch_size": 16, "num_generations": 4, "steps_per_generation": 4}


def test_rollouts_from_before_a_leap_are_not_trained_on_after_it(tmp_path: Path) -> None:
    drawn: list[int] = []

    def run_with(answers: list[tuple[float, float]], name: str) -> list[int]:
        controller = scripted(*answers)
        run = trainer(tmp_path / name, [leaper(controller=controller)], **BUFFERED)
        generate = run._generate_and_score_completions
        drawn.clear()
        run._generate_and_score_completions = lambda inputs: (
            drawn.append(run.state.global_step),
            generate(inputs),
        )[1]
        run.train()
        return list(drawn)

    assert run_with([], "plain") == [0]
    assert run_with([(1.0, 1.0)], "leap") == [0, 2]


def test_a_buffer_that_is_older_than_a_window_is_no_measurement_of_it(tmp_path: Path) -> None:
    controller = scripted()
    run = trainer(tmp_path, [leaper(controller=controller, every=1)], num_iterations=2, **BUFFERED)
    run.train()
    assert [[reward == reward for reward in w.rewards] for w in controller.windows] == [[True]] + [
        [False]
    ] * 3
    assert controller.windows[-1].trained == 4 * 16 // 2
    assert all(h.get("reward", 0.0) is not None for h in run.state.log_history)


class FakeVLLM:
    """Knows only the weights it was last handed, and answers every n-th prompt n times, as TRL's engine does.

    It reports the log-probabilities of its answers under the weights it holds. A broken one takes new weights once.
    """

    broken = False

    def __init__(self, run: Any) -> None:
        self.run, self.syncs = run, 0
        self.held: dict[str, torch.Tensor] = {}
        self.generated_with: list[bool] = []

    def sync_weights(self) -> None:
        self.syncs += 1
        if not (self.broken and self.held):
            self.held = trainable(self.run.model)

    def generate(self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any) -> tuple:
        self.generated_with.append(same(self.held, trainable(self.run.model)))
        distinct = prompts[::num_generations]
        answers = [[*p[-3:], 1] for p in distinct for _ in range(num_generations)]
        return prompts, answers, self.log_probabilities(prompts, answers), None

    def log_probabilities(self, prompts: list[list[int]], answers: list[list[int]]) -> list[Any]:
        live, parameters = trainable(self.run.model), dict(self.run.model.named_parameters())
        put = {n: p.data.copy_ for n, p in parameters.items() if n in live}
        longest = max(len(p) for p in prompts)
        ids = torch.tensor([[0] * (longest - len(p)) + p + a for p, a in zip(prompts, answers, strict=True)])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * (len(p) + 4) for p in prompts])
        for name, write in put.items():
            write(self.held[name])
        found = log_probabilities(self.run, ids, mask, 4)
        for name, write in put.items():
            write(live[name])
        return [[[x] for x in row] for row in found.tolist()]


def with_fake_vllm(run: Any) -> FakeVLLM:
    engine = FakeVLLM(run)
    run.use_vllm, run.vllm_generation, run._last_loaded_step = True, engine, -1
    run.vllm_importance_sampling_correction = False
    return engine


@pytest.mark.parametrize(("mode", "states"), [("colocate", 2), ("server", 4)])
def test_processes_of_one_engine_draw_from_one_random_state(tmp_path: Path, mode: str, states: int) -> None:
    run = trainer(tmp_path)
    run.args.vllm_mode, run.args.vllm_tensor_parallel_size = mode, 2
    assert Seam(run).ranks_per_engine == 1  # without an engine
    with_fake_vllm(run)
    rollouts, drawn = TrainerRollouts(run), []
    rollouts._seam.score = lambda batch: torch.rand(1).item()
    for rank in range(4):
        rollouts._ranks = SimpleNamespace(rank=rank, share=list)
        drawn.append(rollouts._score(VALIDATION.to_list()[:1], 5))
    assert len(set(drawn)) == states
    assert (drawn[0] == drawn[1]) == (mode == "colocate")


def test_vllm_never_answers_with_stale_weights(tmp_path: Path) -> None:
    controller = scripted((2.0, 1.0), search=(0.0, 2.0, 8.0))
    run = trainer(tmp_path, [leaper(controller=controller)], max_steps=3)
    engine = with_fake_vllm(run)
    run.train()
    # Three training batches and one search of three candidates, each with the weights of that moment.
    assert engine.generated_with == [True] * 6
    assert engine.syncs == 6


def test_an_engine_that_a_leap_does_not_reach_stops_the_run(tmp_path: Path) -> None:
    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]  # equal answers, unequal rewards

    controller = scripted((200.0, 1.0))
    run = trainer(tmp_path, [leaper(controller=controller)], max_steps=3, rewards=reward)
    with_fake_vllm(run).broken = True
    with pytest.raises(StaleWeights, match="weights before the leap"):
        run.train()
    assert run.state.global_step == 3  # after the first rollout that could show it


def test_vllm_answers_the_rows_that_are_graded(tmp_path: Path) -> None:
    graded: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        graded.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    controller = scripted(search=(0.0,))
    run = trainer(tmp_path, [leaper(controller=controller)], max_steps=2, rewards=reward)
    with_fake_vllm(run)
    run.train()
    assert len(graded) == 2 * 32 + 16
    assert all(completion == prompt[-3:] for prompt, completion in graded)
    assert run.num_generations_eval == run.args.num_generations


def test_a_reference_adapter_and_the_base_stay_as_they_are(tmp_path: Path) -> None:
    from peft import PeftModel

    first = trainer(tmp_path / "first", max_steps=2)
    first.train()
    first.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(
        trl_runs.tiny.load("chain")[0], str(tmp_path / "adapter"), is_trainable=True
    )
    controller = scripted((3.0, 1.0), search=(0.0, 2.0))
    run = trainer(tmp_path / "second", [leaper(controller=controller)], model=loaded, beta=0.1)
    others = {n: t for n, t in weights(run.model).items() if ".default." not in n}
    assert any(".ref." in n for n in others)
    run.train()
    assert same({n: t for n, t in weights(run.model).items() if n in others}, others)


def test_rank_and_shapes_never_change(tmp_path: Path) -> None:
    controller = scripted((8.0, 1.0))
    run = trainer(tmp_path, [leaper(controller=controller)])
    shapes = {n: p.shape for n, p in run.model.named_parameters()}
    run.train()
    assert {n: p.shape for n, p in run.model.named_parameters()} == shapes


def test_held_back_rows_are_never_trained_on_and_the_run_keeps_its_length(tmp_path: Path) -> None:
    trained: set[str] = set()

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        if run.model.training:
            trained.update(prompts)
        return [0.0] * len(prompts)

    controller = scripted(search=(0.0,))
    rows = as_dataset(trl_runs.TASK.examples("train")[:40])
    callback = leaper(controller=controller, prompts=4, validation=None)
    run = trainer(tmp_path, [callback], rows=rows, rewards=reward, max_steps=-1, num_train_epochs=3)
    run.train()
    held = {row["prompt"] for row in callback._session.rows}
    assert len(held) == 4
    assert run.state.global_step == 3 * 5  # 8 prompts a step
    assert not held & trained
    assert trained == {row["prompt"] for row in rows} - held
    assert len(controller.windows) == 7


def test_a_held_back_prompt_is_barred_in_all_its_copies(tmp_path: Path) -> None:
    trained: set[str] = set()

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        if run.model.training:
            trained.update(prompts)
        return [0.0] * len(prompts)

    controller = scripted()
    rows = as_dataset(trl_runs.TASK.examples("train")[:30] * 2)
    callback = leaper(controller=controller, prompts=4, validation=None)
    run = trainer(tmp_path, [callback], rows=rows, rewards=reward, max_steps=8)
    run.train()
    assert not {row["prompt"] for row in callback._session.rows} & trained
    assert trained


def test_the_trainer_s_eval_dataset_serves_before_anything_is_held_back(tmp_path: Path) -> None:
    controller = scripted()
    for given in (VALIDATION, {"a": VALIDATION.select(range(5)), "b": VALIDATION.select(range(5, 9))}):
        callback = leaper(controller=controller, prompts=4, validation=None)
        run = trainer(tmp_path, [callback], eval_dataset=given, max_steps=2)
        run.train()
        # Each row as often as a training batch has it, the datasets of a dictionary among each other.
        order = [0, 5, 1, 6, 2, 7, 3, 8, 4] if isinstance(given, dict) else range(64)
        assert list(callback._session.rows) == [VALIDATION[i] for i in order for _ in range(4)]


def test_each_search_takes_new_prompts_and_pairs_its_candidates(tmp_path: Path) -> None:
    scored: list[list[str]] = []

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        if not run.model.training:
            scored.append(prompts)
        return [float(c.count("0")) for c in completions]

    controller = scripted(search=(0.0, 2.0, 8.0))
    run = trainer(tmp_path, [leaper(controller=controller)], rewards=reward)
    run.train()
    first, second = scored[:3], scored[3:]
    assert first[0] == first[1] == first[2]
    assert second[0] == second[1] == second[2]
    assert not set(first[0]) & set(second[0])
    assert len(controller.scores) == 2


def test_candidates_share_prompts_and_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Twice(Scripted):
        def choose(self, window: Any, score: Any) -> Any:
            seen.append((score(0.0, 0, 64), score(2.0, 0, 64), score(0.0, 0, 64)))
            return super().choose(window, score)

    trainer(tmp_path, [leaper(controller=Twice([]), prompts=64)], max_steps=2, learning_rate=2e-2).train()
    first, leap, again = seen[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, leap)


def test_a_leap_that_makes_completions_run_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextrl.engines.trl.rollouts import TrainerRollouts

    real = TrainerRollouts.rewards

    def rewards(self: Any, rows: Any, seed: int) -> torch.Tensor:
        scored = real(self, rows, seed)
        put = same(trainable(self._trainer.model), at_rest)
        self.mean_length = 10.0 if put else 25.0
        return scored if put else scored + 1.0  # longer, and better by its reward

    class Remember(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at_rest.update(trainable(kwargs["model"]))

    at_rest: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(TrainerRollouts, "rewards", rewards)
    callback = leaper()
    trainer(tmp_path / "refused", [Remember(), callback], max_steps=2).train()
    entry = callback.decisions[0]
    assert "refused: completions grow from 10 to 25 tokens" in entry.reason
    assert entry.alpha <= 0.0
    assert not any(float(a) > 0 for a in entry.scores)
    patient = leaper(longest=3.0)
    trainer(tmp_path / "taken", [Remember(), patient], max_steps=2).train()
    assert patient.decisions[0].alpha != 0.0
    assert "refused" not in patient.decisions[0].reason


def test_decisions_are_logged_and_written_beside_the_checkpoints(tmp_path: Path) -> None:
    callback = leaper()
    run = trainer(tmp_path, [callback], max_steps=5)
    (tmp_path / "nextrl_decisions.jsonl").write_text('{"step": 999}\n')  # an earlier run's
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "nextrl_decisions.jsonl").read_text().splitlines()]
    assert lines == [d.model_dump(mode="json") for d in callback.decisions]
    assert [entry["step"] for entry in lines] == [2, 4]
    logged = {h["step"]: h for h in run.state.log_history if "leap/alpha" in h}
    assert sorted(logged) == [2, 4]
    for entry in lines:
        assert logged[entry["step"]]["leap/alpha"] == entry["alpha"]
        assert logged[entry["step"]]["leap/lr"] == pytest.approx(entry["learning_rate"])
        assert logged[entry["step"]]["leap/cost_completions"] == entry["cost_completions"]
    assert lines[-1]["cost_completions"] == callback.costs.search_completions
    assert callback.costs.search_completions > 0
    per_step = 32
    assert logged[4]["leap/claimed_steps"] == pytest.approx(
        callback.costs.leapt_steps - callback.costs.search_completions / per_step
    )


@pytest.mark.parametrize("logging_steps", [1, 3, 10])
def test_what_is_logged_of_a_window_is_its_own_however_seldom_the_trainer_logs(
    tmp_path: Path, logging_steps: int
) -> None:
    controller = scripted((0.0, 3.0), (2.0, 0.5), (0.0, 1.0), (0.0, 4.0))
    callback, watch = leaper(controller=controller, rollback=False), Watch()
    options = {"max_steps": 10, "lr_scheduler_type": "linear", "logging_steps": logging_steps}
    run = trainer(tmp_path, [callback, watch], **options)
    run.train()
    logged = [h for h in run.state.log_history if "leap/lr" in h]
    ends = {d.step: d for d in callback.decisions}
    assert sorted(ends) == [2, 4, 6, 8, 10]
    assert [h["step"] for h in logged] == {1: [2, 4, 6, 8, 10], 3: [3, 6, 9, 10], 10: [10]}[logging_steps]
    for entry in logged:
        step = max(s for s in ends if s <= entry["step"])
        assert entry["leap/lr"] == ends[step].learning_rate == watch.rates[step - 1]
        assert (
            entry["leap/lr_factor"]
            == ends[step].lr_factor
            == math.prod([3.0, 0.5, 1.0, 4.0, 1.0][: step // 2])
        )
        assert entry["leap/alpha"] == ends[step].alpha
    assert [d.alpha for d in callback.decisions] == [0.0, 2.0, 0.0, 0.0, 0.0]


def test_rows_that_could_not_be_scored_are_counted_in_the_decision(tmp_path: Path) -> None:
    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [None if i % 4 == 1 and not run.model.training else 1.0 for i in range(len(completions))]

    callback = leaper()
    run = trainer(tmp_path, [callback], rewards=reward, max_steps=2)
    run.train()
    (decision,) = callback.decisions
    assert decision.completions == callback.costs.search_completions > 0
    assert decision.unscored == decision.completions // 4
    line = (tmp_path / "nextrl_decisions.jsonl").read_text()
    assert json.loads(line)["unscored"] == decision.unscored


def test_a_second_training_starts_afresh(tmp_path: Path) -> None:
    callback = leaper()
    run = trainer(tmp_path, [callback], max_steps=2)
    run.train()
    run.train()
    assert [d.step for d in callback.decisions] == [2]


def test_a_callback_of_another_trainer_leaps_in_that_one(tmp_path: Path) -> None:
    callback = leaper()
    for name in ("first", "second"):
        run = trainer(tmp_path / name, [callback], max_steps=2)
        run.train()
        assert callback._running().run.trainer is run


def test_a_callback_attached_to_one_trainer_and_added_to_the_next_leaps_in_that_one(tmp_path: Path) -> None:
    """A notebook's cell that is run again, with arguments that both trainers share; the second run is longer."""
    seen = trl_runs.Watch()
    first = trainer(tmp_path / "first", max_steps=2)
    callback = attach(first, config=ControllerConfig(goal=1e-30))
    first.train()
    second = trainer(tmp_path / "second", [callback, seen], max_steps=8)
    second.train()
    assert callback._running().run.trainer is second
    rates = [seen.begins[step][2] for step in (1, 5, 8)]
    assert rates == pytest.approx(
        [COMMON["learning_rate"], COMMON["learning_rate"], COMMON["learning_rate"] / 2]
    )
    assert (tmp_path / "second" / "nextrl_decisions.jsonl").is_file()


def test_a_trainer_of_trl_that_is_built_on_sft_is_refused_at_once(tmp_path: Path) -> None:
    gkd = type("GKDTrainer", (SFTTrainer,), {"__module__": "trl.experimental.gkd.gkd_trainer"})
    built = sft_trainer(tmp_path, [LeapCallback()])
    built.__class__ = gkd
    with pytest.raises(InputError, match="GKDTrainer trains for something else than its rows' likelihood"):
        built.train()
    own = sft_trainer(tmp_path / "own", [LeapCallback(2)], max_steps=2)
    own.__class__ = type("MySFTTrainer", (SFTTrainer,), {"__module__": "my_script"})
    own.train()


def test_rloo_works_too(tmp_path: Path) -> None:
    expected = trainer(tmp_path / "plain", kind=RLOOTrainer)
    expected.train()
    callback = leaper(leaps=False, adapt_lr=False)
    run = trainer(tmp_path / "rloo", [callback], kind=RLOOTrainer)
    run.train()
    assert same(weights(run.model), weights(expected.model))
    assert callback.costs.search_completions > 0
    assert 0.2 < callback.decisions[0].scores["0"] < 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 1}, "prompts must be at least 2"),
        ({"prompts": 64}, "auto does not use prompts=; only a named method does"),
        (
            {"method": "linear", "config": ControllerConfig()},
            "the dials of auto, which method 'linear' does not",
        ),
        ({"method": "linear", "longest": 0.5}, "longest must be above 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"every": "10"}, "every must be a whole number, not '10'"),
        ({"every": 2.5}, r"every must be a whole number, not 2\.5"),
        ({"every": True}, "every must be a whole number, not True"),
        ({"every": math.inf}, "every must be a whole number, not inf"),
        ({"method": None}, "method must be 'auto' or an extrapolator's name, not None"),
        ({"config": {"every": 3}}, "config must be a nextrl.ControllerConfig, not"),
        ({"config": ControllerConfig(every=2.5)}, r"config's every must be a whole number, not 2\.5"),
        ({"config": ControllerConfig(undo=True)}, "config's undo must be a number, not True"),
        ({"adapt_lr": "no"}, "adapt_lr must be True or False, not 'no'"),
        ({"seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
        ({"method": "linear", "divergence": math.nan}, "divergence must be a number, not nan"),
        ({"method": "linear", "longest": None, "truncated": "all"}, "truncated must be a number, not 'all'"),
        ({"method": "linear", "validation": "rows.jsonl"}, "validation must be rows .* not 'rows.jsonl'"),
        ({"method": "linear", "validation": 5}, "validation must be rows .* not 5"),
        (
            {"method": "window", "params": 3},
            "params must be a dict of a method's own parameters by name, not 3",
        ),
        ({"method": "window", "params": {1: 2}}, "params must be a dict"),
        ({"method": "window", "params": {"foo": 1}}, "method 'window' has no parameter 'foo'; it takes rank"),
        ({"policy": Scripted(), "params": {"rank": 2}}, "in place of params=: give the one"),
        ({"trainer": "x"}, "trainer must be the trainer itself"),
        (
            {"policy": "next"},
            "policy must be an object with the members of JudgingPolicy or LeapingPolicy, not",
        ),
        (
            {"policy": Searching},
            "policy must be an object with the members of JudgingPolicy or LeapingPolicy",
        ),
        (
            {"policy": SimpleNamespace(decide=print, undoes=True)},
            "policy must have the members of JudgingPolicy .* lacks acceptance, begin, broken, checks",
        ),
        ({"policy": Scripted(), "on_leap": "f"}, "on_leap must be a function, not 'f'"),
    ],
)
def test_bad_settings_are_named_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LeapCallback(**options)


# What each would say to auto, to a method that takes its alpha unseen, and beside a policy.
FOR_SEARCHES: dict[str, Any] = {"prompts": 64, "longest": 2.0, "truncated": 0.1, "divergence": 1.0}
FOR_NAMED: dict[str, Any] = {
    **FOR_SEARCHES, "at": [3], "horizon": 50, "params": {}, "alpha": 1.0, "alphas": [1.0], "rollback": False,
    "keep": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({n: v}, f"auto does not use {n}=; only a named method does") for n, v in FOR_NAMED.items()),
        ({"at": 3, "keep": 4}, "auto does not use at=, keep=; only a named"),
        *(
            (
                {"method": "linear", "alpha": 1.0, n: v},
                f"its alpha unseen and does not use {n}=; only a search does",
            )
            for n, v in FOR_SEARCHES.items()
        ),
        ({"method": "next-paper", "prompts": 64}, "its alpha unseen and does not use prompts="),
        ({"method": "linear", "alpha": 1.0, "alphas": [2.0]}, "alpha= is taken unseen, and alphas= are"),
        ({"on_leap": print}, "method 'auto' does not use on_leap=; only a policy="),
        ({"method": "linear", "on_leap": print}, "method 'linear' does not use on_leap="),
        ({"policy": Scripted(), "every": 2, "method": "next"}, "in place of every=, method=: give the one"),
        ({"policy": Scripted(), "config": ControllerConfig()}, "in place of config=: give the one"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LeapCallback(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "next-paper", "alphas": [1.0], "prompts": 64},
        {"method": "linear", "divergence": math.inf, "longest": math.inf, "truncated": 1},
        {"policy": Scripted(), "keep": 4, "longest": 3.0, "rollback": False, "on_leap": print},
        {"seed": 3, "adapt_lr": np.bool_(False), "config": ControllerConfig(every=np.int64(4), sure=3)},
    ],
)
def test_an_option_that_is_read_is_taken(options: dict[str, Any]) -> None:
    LeapCallback(**options)


@pytest.mark.parametrize("given", [None, "x", torch.nn.Linear(1, 1), GRPOTrainer])
def test_what_is_no_trainer_cannot_be_attached_to(given: Any) -> None:
    with pytest.raises(InputError, match=r"^trainer must be the trainer itself .* not "):
        attach(given)


def test_a_callback_that_comes_too_late_says_so(tmp_path: Path) -> None:
    class Late(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                attach(run)

    run = trainer(tmp_path, [Late()], max_steps=2)
    with pytest.raises(InputError, match=r"added while training runs: add it before trainer\.train\(\)"):
        run.train()


@pytest.mark.parametrize("step", [1, 2])  # the first is the one that the next run begins with, too
def test_a_step_that_broke_off_is_listened_to_no_longer(step: int, tmp_path: Path) -> None:
    graded: list[int] = []

    def breaks(completions: list[Any], **_: Any) -> list[float]:
        graded.append(len(completions))
        if len(graded) == step:
            raise RuntimeError("the judge is down")
        return [float(len(str(c)) % 3) for c in completions]

    run = trainer(tmp_path, rewards=breaks, max_steps=3)
    leaps = attach(run)
    with pytest.raises(RuntimeError, match="the judge is down"):
        run.train()
    fresh = leaps._running().run.tools.fresh
    assert "_get_per_token_logps_and_entropies" in vars(run)  # nobody was told that the step is over
    run.remove_callback(leaps)
    run.train()
    assert "_get_per_token_logps_and_entropies" not in vars(run)
    assert fresh._passes == []
    fresh.stop()  # once more does nothing


def test_what_cannot_work_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="validation has 1 rows"):
        trainer(tmp_path, [leaper(validation=[VALIDATION[0]])]).train()
    with pytest.raises(InputError, match="the training dataset has 12 rows"):
        trainer(
            tmp_path, [LeapCallback(2, "linear")], rows=as_dataset(trl_runs.TASK.examples("train")[:12])
        ).train()
    plain = trl_runs.tiny.load("chain")[0]
    with pytest.raises(InputError, match="one active LoRA adapter"):
        trainer(tmp_path, [leaper()], model=plain).train()


def test_a_trainer_that_generates_nothing_is_refused(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=1, disable_tqdm=True
    )
    encode = trl_runs.tiny.tokenizer()
    ids = [{"input_ids": encode("1+1+1+1=")["input_ids"], "labels": [1] * 9} for _ in range(8)]
    with pytest.raises(InputError, match="Trainer generates no completions to score"):
        Trainer(fresh_model(), arguments, train_dataset=ids, callbacks=[leaper()]).train()
