"""The chain task: arithmetic, splits, reward."""

from __future__ import annotations

import random
import zlib

import pytest

from nextrl.errors import InputError
from nextrl.tasks import base
from nextrl.tasks.chain import ChainTask, apply, solve

TASK = ChainTask()


@pytest.mark.parametrize(
    ("prompt", "right"),
    [
        ("3+4*5-2=", "005=5"),  # 3+4 = 7 = 0, 0*5 = 0, 0-2 = -2 = 5
        ("6*6*6-6=", "160=0"),  # 36 = 1, 6, 0
        ("0-1+0-1=", "665=5"),
    ],
)
def test_solutions_worked_out_by_hand(prompt: str, right: str) -> None:
    assert solve(prompt) == right
    if "*" not in prompt:
        assert solve(prompt, wrong_rule=True) == right


def test_the_wrong_rule_is_one_off_in_products_only() -> None:
    assert all(apply("*", a, b, wrong_rule=True) == (a * b + 1) % 7 for a in range(7) for b in range(7))
    assert all(
        apply(o, a, b, wrong_rule=True) == apply(o, a, b) for o in "+-" for a in range(7) for b in range(7)
    )
    assert solve("2*3+0+0=", wrong_rule=True) == "000=0"  # 2*3+1 = 7 = 0


def test_noise_goes_on_from_the_wrong_value() -> None:
    rng = random.Random(0)
    noisy = [solve("1+1+1+1=", noise=0.3, rng=rng) for _ in range(3000)]
    # Each step keeps its value with probability .7 + .3/7, and the answer always repeats the last step.
    assert all(text[2] == text[4] for text in noisy)
    first_right = sum(text[0] == "2" for text in noisy) / len(noisy)
    assert first_right == pytest.approx(0.7 + 0.3 / 7, abs=0.03)
    assert sum(int(t[1]) == (int(t[0]) + 1) % 7 for t in noisy) / len(noisy) == pytest.approx(
        first_right, abs=0.03
    )


def test_splits_are_disjoint_complete_and_the_same_on_every_machine() -> None:
    splits = {s: [e.prompt for e in TASK.examples(s)] for s in ("train", "validation", "test")}
    everything = [p for prompts in splits.values() for p in prompts]
    assert len(everything) == len(set(everything)) == 7**4 * 3**3
    assert len(splits["train"]) == 51977
    for name, bucket in (("test", 0), ("validation", 1)):
        assert 6300 < len(splits[name]) < 6700
        assert all(zlib.crc32(p.encode()) % 10 == bucket for p in splits[name])
    assert TASK.examples("test") == ChainTask().examples("test")
    assert base.split_of("3+4*5-2=") in splits
    assert TASK.examples("test")[0].prompt != min(splits["test"])  # shuffled


def test_a_caller_cannot_spoil_the_examples() -> None:
    TASK.examples("test").clear()
    assert TASK.examples("test")


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("005=5", 1.0),
        (" 005=5\n", 1.0),
        ("000=5", 1.0),  # the answer counts; the way there is the model's own
        ("005=4", 0.0),
        ("05=5", 0.0),
        ("0055", 0.0),
        ("005=5=5", 0.0),
        ("007=5", 0.0),
        ("", 0.0),
    ],
)
def test_reward(completion: str, reward: float) -> None:
    assert TASK.reward(completion, "5") == reward


def test_every_answer_is_its_prompt_s() -> None:
    assert all(TASK.reward(solve(e.prompt), e.answer) == 1.0 for e in TASK.examples("validation")[:500])


def test_an_unknown_task_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        InputError, match=r"unknown task 'chian'; did you mean chain\? known: .*chain-wrong-rule.*FILE\.py"
    ):
        base.get("chian")
    assert base.get("chain-wrong-rule").name == "chain-wrong-rule"
    assert isinstance(base.get("chain"), base.Task)
