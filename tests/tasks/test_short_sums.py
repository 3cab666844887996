"""Short sums: prompts, splits, reward."""

from __future__ import annotations

import pytest

from nextrl import tasks
from nextrl.tasks.short_sums import SHOTS

TASK = tasks.get("short-sums")
SPLITS = ("train", "validation", "test")


def test_the_prompt_is_four_worked_sums_and_one_to_answer() -> None:
    prompts = {e.prompt: e.answer for split in SPLITS for e in TASK.examples(split)}
    assert prompts["12+5=17\n20-6=14\n9+8=17\n31-9=22\n27-8="] == "19"
    assert all(p.startswith(SHOTS) and eval(p.splitlines()[-1][:-1]) == int(a) for p, a in prompts.items())
    assert all(0 <= int(a) <= 60 for a in prompts.values())


def test_splits_are_disjoint_and_large_enough_to_measure_on() -> None:
    by_split = [{e.prompt for e in TASK.examples(split)} for split in SPLITS]
    assert len(set.union(*by_split)) == sum(map(len, by_split)) == 28 * 28 + 28 * 29 // 2
    assert len(TASK.examples("test")) >= 256
    assert len(TASK.examples("validation")) >= 128
    assert TASK.examples("test") == tasks.get("short-sums").examples("test")


@pytest.mark.parametrize(
    ("completion", "reward"),
    [("19", 1.0), ("19\n3", 1.0), (" 19 \n", 1.0), ("1\n9", 0.0), ("190", 0.0), ("", 0.0), ("\n19", 0.0)],
)
def test_the_first_line_must_be_the_answer(completion: str, reward: float) -> None:
    assert TASK.reward(completion, "19") == reward
