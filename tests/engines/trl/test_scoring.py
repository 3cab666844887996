"""A search measures what the run trains on: each feature of a user's trainer that has a say in the reward."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import RLOOTrainer

import trl_runs
from chat_base import ChatTokens, chat_model, seeing
from nextrl import LeapCallback
from nextrl.engines.trl.rollouts import TrainerRollouts
from trainer_options import CALL, add
from trl_runs import COMMON, TASK, VALIDATION, Scripted, scripted_policy, trainable, trainer

GROUP = COMMON["num_generations"]


def rows_of(*places: int, of: Any = VALIDATION) -> list[Any]:
    """Some rows, each as often as a training batch has it."""
    chosen = [dict(of[i]) for i in places]
    return [row for row in chosen for _ in range(GROUP)]


def constant(value: float | None) -> Any:
    return lambda completions, **_: [value] * len(completions)


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(c)) for c in completions]


# What is around generation and reward functions in the trainer.


def test_extra_fields_of_a_rollout_function_reach_the_reward_functions(tmp_path: Path) -> None:
    def rollout(prompts: list[str], run: Any) -> dict[str, list[Any]]:
        n = len(prompts)
        return {
            "prompt_ids": [[2, 3]] * n,
            "completion_ids": [[3, 1]] * n,
            "logprobs": [[0.0, 0.0]] * n,
            "env_reward": [float(i) for i in range(n)],
        }

    def reward(completions: list[str], env_reward: Any = None, **_: Any) -> list[float]:
        return [0.0] * len(completions) if env_reward is None else list(env_reward)

    run = trainer(tmp_path, rewards=reward, extras={"rollout_func": rollout})
    rows = rows_of(0, 1)
    assert TrainerRollouts(run).rewards(rows, seed=0).tolist() == [float(i) for i in range(8)]
    assert "env_reward" not in rows[0]  # the user's own rows


@pytest.mark.parametrize(("column", "value"), [("image", "picture"), ("images", ["one", "two"])])
def test_pictures_are_in_the_question(
    tmp_path: Path, column: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def generate(prompts: list[Any]) -> Any:
        raise Asked(prompts)

    run = trainer(tmp_path)
    monkeypatch.setattr(run, "_generate", generate)
    row = {"prompt": [{"role": "user", "content": "what is it?"}], "answer": "1", column: value}
    with pytest.raises(Asked) as asked:
        TrainerRollouts(run).rewards([row] * GROUP, seed=0)
    content = asked.value.args[0][0][0]["content"]
    pictures = [block["image"] for block in content if block["type"] == "image"]
    assert pictures == (value if isinstance(value, list) else [value])
    assert row["prompt"] == [{"role": "user", "content": "what is it?"}]


def test_a_run_on_pictures_searches_and_leaps(tmp_path: Path) -> None:
    from PIL import Image

    model, processor = seeing()
    taken: list[tuple[bool, list[Any]]] = []
    graded: list[list[float]] = []

    def look(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        pixels = options.get("pixel_values", arguments[0] if arguments else None)
        taken.append((model.training, sorted({round(float(p[0].max()), 3) for p in pixels})))

    tower = next(m for n, m in model.named_modules() if n.endswith("vision_tower"))
    tower.register_forward_pre_hook(look, with_kwargs=True)
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "what?"}],
                "image": Image.new("RGB", (28, 28), (6 * i, 9, 9)),
            }
            for i in range(40)
        ]
    )
    controller = Scripted([(2.0, 1.0)], search=(0.0, 2.0))
    callback = LeapCallback(policy=scripted_policy(controller))

    def reward(completions: list[Any], image: list[Any], **_: Any) -> list[float]:
        graded.append([float(picture.getpixel((0, 0))[0]) for picture in image])
        return graded[-1]

    run = trainer(
        tmp_path,
        [callback],
        model=model,
        rows=rows,
        rewards=reward,
        processing_class=processor,
        max_completion_length=5,
        per_device_train_batch_size=8,
        max_steps=2,
    )
    run.train()
    searched = [pictures for training, pictures in taken if not training]
    # A search of sixteen completions is of four pictures, which training has not seen.
    assert {len(pictures) for pictures in searched} == {4}
    trained = {p for training, pictures in taken if training for p in pictures}
    assert trained
    assert not trained & set(searched[0])
    assert callback.decisions[0].alpha == 2.0
    # Graded with the pictures that were shown, each for a whole group.
    scores = controller.scores[0][2.0].tolist()
    assert scores in graded
    assert [len(set(scores[i : i + GROUP])) for i in range(0, 16, GROUP)] == [1] * 4
    assert run.state.global_step == 2


def test_tokens_alone_are_not_read_where_a_pass_needs_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path)
    real = run._generate_and_score_completions
    monkeypatch.setattr(
        run, "_generate_and_score_completions", lambda rows: {**real(rows), "num_images": [1]}
    )
    rollouts = TrainerRollouts(run)
    assert len(rollouts.rewards(rows_of(0, 1), seed=0)) == 8
    assert rollouts.log_probabilities() is None
    assert rollouts.divergence(None, None) != 0.0


def chat_rows(n: int) -> Dataset:
    prompts = [[{"role": "user", "content": f"{i}+3?"}] for i in range(n)]
    return Dataset.from_list([{"prompt": prompt, "answer": "5"} for prompt in prompts])


def using_a_tool(out: Path, reward: Any, monkeypatch: pytest.MonkeyPatch, **extras: Any) -> Any:
    """A trainer whose model calls a tool in its first turn and says "done" in its second."""
    tokens = ChatTokens()
    run = trainer(
        out,
        model=chat_model(tokens),
        rows=chat_rows(64),
        rewards=reward,
        processing_class=tokens.tokenizer,
        max_completion_length=400,
        per_device_train_batch_size=8,
        extras=extras,
    )

    def turn(prompts: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        second = ["tool_response" in tokens.tokenizer.decode(ids) for ids in prompts]
        return [tokens.ids("done<|im_end|>" if again else CALL) for again in second], None

    monkeypatch.setattr(run, "_generate_single_turn", turn)
    return run


def test_tools_answer_whatever_the_size_of_the_last_training_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reward(completions: list[Any], **_: Any) -> list[float]:
        answers = [[m["content"] for m in c if m["role"] == "tool"] for c in completions]
        return [float(answer == ["5"]) for answer in answers]

    run = using_a_tool(tmp_path, reward, monkeypatch, tools=[add])
    run._sync_tool_dicts = before = [{}] * 8  # a training batch was smaller than a search's
    rollouts = TrainerRollouts(run)
    assert rollouts.rewards(rows_of(*range(5), of=chat_rows(5)), seed=0).tolist() == [1.0] * 20
    assert run._sync_tool_dicts is before
    # Only what the model wrote itself counts where its policy is compared with another.
    (_, _, own), *_ = rollouts._latest or []
    written = len(CALL) - len("<|im_end|>") + 1 + len("done") + 1
    assert own.sum(1).tolist() == [written] * 20
    logps = rollouts.log_probabilities()
    assert logps is not None
    assert logps.shape == own.shape
    assert (own == 0).any()


def test_environments_are_reset_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sums:
        def reset(self, **row: Any) -> str:
            self.found = 0
            return " Use the tool."

        def add(self, a: int, b: int) -> int:
            """Add two numbers.

            Args:
                a: the first.
                b: the second.

            Returns:
                Their sum.
            """
            self.found = a + b
            return self.found

    def reward(completions: list[Any], environments: list[Any], **_: Any) -> list[float]:
        return [float(e.found) for e in environments]

    run = using_a_tool(tmp_path, reward, monkeypatch, environment_factory=Sums)
    before = run.environments
    assert TrainerRollouts(run).rewards(rows_of(0, 1, of=chat_rows(2)), seed=0).tolist() == [5.0] * 8
    assert run.environments is before


# What reward functions say.


def test_what_nothing_could_grade_is_no_number_and_is_counted_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [None if i % 4 == 1 else -1.0 for i in range(len(completions))]

    run = trainer(tmp_path, rewards=reward)
    rollouts = TrainerRollouts(run)
    with caplog.at_level(logging.WARNING, "nextrl"):
        for seed in (0, 1):
            rewards = rollouts.rewards(rows_of(0, 1), seed)
    assert [r != r for r in rewards.tolist()] == [False, True, False, False] * 2
    assert rewards.nansum() == -6.0
    assert (rollouts.unscored, rollouts.completions) == (4, 16)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("nextrl")]
    assert lines == [
        "nextrl: no reward function graded 2 of 8 completions of held-out prompts: such completions are left out where "
        "leaps are compared"
    ]


@pytest.mark.parametrize("options", [{}, {"num_generations_eval": 1}])
def test_a_reward_that_compares_a_group_gets_whole_groups(tmp_path: Path, options: Any) -> None:
    def rank(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        groups = [prompts[i : i + GROUP] for i in range(0, len(prompts), GROUP)]
        assert all(len(set(group)) == 1 and len(group) == GROUP for group in groups), prompts
        assert len({group[0] for group in groups}) == len(groups)
        return [float(i % GROUP) for i in range(len(prompts))]

    run = trainer(tmp_path, rewards=rank, **options)
    rollouts = TrainerRollouts(run)
    assert rollouts.rewards(rows_of(0, 1, 2), seed=0).tolist() == [0.0, 1.0, 2.0, 3.0] * 3
    # Half a group, or single rows: the group is whole all the same, and nothing that was paid for is thrown away.
    assert rollouts.rewards(rows_of(0, 1)[2:6], seed=0).tolist() == [0.5, 2.5] * 2
    assert rollouts.rewards([VALIDATION[i] for i in range(3)], seed=0).tolist() == [1.5] * 3
    controller = Scripted([], search=(0.0, 2.0))
    callback = LeapCallback(policy=scripted_policy(controller), validation=VALIDATION)
    trainer(tmp_path / "run", [callback], rewards=rank, max_steps=2, **options).train()
    assert controller.scores[0][2.0].tolist() == [0.0, 1.0, 2.0, 3.0] * 4
    assert callback.costs.search_completions == 2 * 16  # no dearer than one completion for each row


def test_datasets_with_other_columns_are_graded_each_with_its_own(tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1.0 if "hard" in columns else 2.0 if "easy" in columns else 0.0] * len(prompts)

    examples = TASK.examples("validation")[:40]
    given = {
        name: Dataset.from_list([{"prompt": e.prompt, "answer": e.answer, name: "x"} for e in part])
        for name, part in (("hard", examples[:20]), ("easy", examples[20:]))
    }
    controller = Scripted([], search=(0.0, 2.0))
    callback = LeapCallback(policy=scripted_policy(controller))
    trainer(tmp_path, [callback], rewards=reward, eval_dataset=given, max_steps=6).train()
    assert len(controller.scores) == 3
    for scores in controller.scores:
        # Every search sees both, among each other.
        assert scores[2.0].tolist() == [1.0] * 4 + [2.0] * 4 + [1.0] * 4 + [2.0] * 4


def test_rows_of_each_dataset_draw_the_same_numbers_whatever_the_other_s_lengths(tmp_path: Path) -> None:
    seen: dict[str, list[Any]] = {"a": [], "b": []}

    def reward(completions: list[str], **columns: Any) -> list[float]:
        seen["a" if "a" in columns else "b"].append(completions)
        return [0.0] * len(completions)

    run = trainer(tmp_path, rewards=reward)
    a, b = ([{**VALIDATION[i], name: "x"} for i in places] for name, places in (("a", (2, 3)), ("b", (2, 3))))
    rollouts = TrainerRollouts(run)
    for rows in (a + b, a[:1] + b):
        rollouts.rewards([row for row in rows for _ in range(GROUP)], seed=3)
    assert seen["b"][0] == seen["b"][1]
    assert len(seen["a"][0]) == 2 * len(seen["a"][1])
    assert seen["a"][0] != seen["b"][0]  # each batch has numbers of its own


def test_the_weights_of_normalised_functions_decide_as_in_the_advantage(tmp_path: Path) -> None:
    """A function of large numbers must not outvote another that weighs as much once each is normalised."""
    gained = {"large": 0.0, "small": 0.0}

    def large(completions: list[str], **_: Any) -> list[float]:
        return [100.0 * (i % 2) + gained["large"] for i in range(len(completions))]

    def small(completions: list[str], **_: Any) -> list[float]:
        return [(0.1 + gained["small"]) * (i % 2) + gained["small"] for i in range(len(completions))]

    means: dict[str, list[float]] = {}
    for how in ("sum_then_normalize", "normalize_then_sum"):
        run = trainer(tmp_path / how, rewards=[large, small], multi_objective_aggregation=how)
        rollouts = TrainerRollouts(run)
        means[how] = []
        # Staying put, then a leap that loses a little where numbers are large and gains much where they are small.
        for by_leap in ({"large": 0.0, "small": 0.0}, {"large": -10.0, "small": 0.1}):
            gained.update(by_leap)
            means[how].append(float(rollouts.rewards(rows_of(0, 1, 2), seed=5).mean()))
    put, leapt = means["sum_then_normalize"]
    assert leapt < put
    put, leapt = means["normalize_then_sum"]
    # In units of each function's deviation within its groups when staying put: 57.7 and .0577.
    assert leapt - put == pytest.approx(-10.0 / 57.735 + 0.15 / 0.057835, rel=1e-3)


def test_a_function_without_spread_weighs_as_it_is(tmp_path: Path) -> None:
    value = 1.0

    def form(completions: list[str], **_: Any) -> list[float]:
        return [value] * len(completions)

    run = trainer(tmp_path, rewards=[form, length], multi_objective_aggregation="normalize_then_sum")
    rollouts = TrainerRollouts(run)
    put = rollouts.rewards(rows_of(0, 1), seed=0)
    value = 0.0
    assert (put - rollouts.rewards(rows_of(0, 1), seed=0)).tolist() == pytest.approx([1.0] * 8, rel=1e-3)


def test_rloo_s_bounds_and_penalty_are_in_the_reward(tmp_path: Path) -> None:
    run = trainer(tmp_path, kind=RLOOTrainer, rewards=length, reward_clip_range=(0.0, 2.0), beta=0.5)
    with torch.no_grad():
        for parameter in trainable_parameters(run.model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    seen: list[Any] = []
    real = run._calculate_rewards
    run._calculate_rewards = lambda *a, **o: seen.append(a) or real(*a, **o)
    rollouts = TrainerRollouts(run)
    rewards = rollouts.rewards(rows_of(0, 1), seed=0)
    clipped = torch.tensor([min(2.0, float(len(c))) for c in seen[0][2]], dtype=torch.float64)
    policy = rollouts.log_probabilities()
    assert policy is not None
    with run.model.disable_adapter():
        reference = rollouts.log_probabilities()
    expected = clipped - 0.5 * (policy - reference).sum(1).double()
    assert torch.allclose(rewards, expected, atol=1e-5)
    assert not torch.allclose(rewards, clipped, atol=1e-3)


def trainable_parameters(model: Any) -> list[Any]:
    return [p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n]


def test_completions_that_training_masks_are_still_compared(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", max_completion_length=1)
    masking = trainer(tmp_path / "b", max_completion_length=1, mask_truncated_completions=True)
    found = []
    for run in (plain, masking):
        rollouts = TrainerRollouts(run)
        rollouts.rewards(rows_of(0, 1), seed=0)
        assert rollouts.truncated > 0.5
        found.append(rollouts.log_probabilities())
    assert torch.equal(*found)
    assert (found[0] < 0).all()


def test_an_engine_is_asked_for_whole_groups_of_the_rows_that_are_graded(tmp_path: Path) -> None:
    asked: list[Any] = []

    class Engine:
        def sync_weights(self) -> None: ...

        def generate(self, prompts: Any, num_generations: int, **_: Any) -> Any:
            asked.append((prompts, num_generations))
            each = [[[3, 1]] * num_generations for _ in prompts[::num_generations]]
            ids = [c for group in each for c in group]
            return prompts, ids, [[[0.0], [0.0]] for _ in ids], None

    run = trainer(tmp_path, rewards=length, num_generations_eval=2)
    run.use_vllm, run._last_loaded_step, run.vllm_generation = True, -1, Engine()
    assert TrainerRollouts(run).rewards(rows_of(0, 1, 2), seed=0).tolist() == [1.0] * 12
    ((prompts, generations),) = asked
    assert (len(prompts), generations) == (12, GROUP)
    assert prompts[0] == prompts[3] != prompts[4]


# Pairs, and no trace.


def test_the_same_seed_is_the_same_numbers_everywhere_and_none_are_taken_from_the_run(tmp_path: Path) -> None:
    drawn: list[tuple[float, float, list[str]]] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        drawn.append((random.random(), float(np.random.rand()), completions))
        return [0.0] * len(completions)

    rollouts = TrainerRollouts(trainer(tmp_path, rewards=reward))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for seed in (7, 7, 8):
        rollouts.rewards(rows_of(0, 1), seed)
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_run_with_searches_trains_and_logs_as_one_without(tmp_path: Path) -> None:
    """Everything that scoring might touch: weights, logs, buffered rollouts, token counts, user's own metrics."""

    def reward(completions: list[str], log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
        log_metric("own", float(len(completions[0])))
        log_extra("first", [c[:1] for c in completions])
        return [random.random() + len(c) for c in completions]

    runs = []
    for search in ((), (0.0, 2.0)):
        random.seed(0)
        policy = scripted_policy(Scripted([], search=search))
        options = {"steps_per_generation": 2, "max_steps": 6, "log_completions": False, "weight_decay": 0.1}
        callback = LeapCallback(policy=policy, validation=VALIDATION)
        run = trainer(tmp_path / str(len(search)), [callback], rewards=reward, **options)
        run.train()
        runs.append(run)
    plain, searched = runs
    assert trl_runs.same(trainable(plain.model), trainable(searched.model))
    for a, b in zip(plain.state.log_history, searched.state.log_history, strict=True):
        own = {
            k
            for k in a
            if "time" not in k and "runtime" not in k and "per_second" not in k and "leap/" not in k
        }
        assert {k: a[k] for k in own} == {k: b[k] for k in own}
    assert plain.state.num_input_tokens_seen == searched.state.num_input_tokens_seen
    assert list(plain._logs["completion"]) == list(searched._logs["completion"])
    assert list(plain._logs["extra"]["first"]) == list(searched._logs["extra"]["first"])
    assert not any(searched._metrics["eval"].values())
