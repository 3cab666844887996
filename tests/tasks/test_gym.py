"""Tasks from reasoning-gym."""

from __future__ import annotations

import pytest

from nextrl import tasks
from nextrl.errors import InputError
from nextrl.tasks.gym import _build

NAME = "reasoning_gym:gcd?shots=2&size=200&max_value=60"


def test_a_dataset_is_a_task_with_disjoint_splits_and_its_own_score() -> None:
    task = tasks.get(NAME)
    by_split = {s: task.examples(s) for s in ("train", "validation", "test")}
    prompts = [e.prompt for examples in by_split.values() for e in examples]
    assert len(prompts) == len(set(prompts)) > 150
    assert all(tasks.split_of(e.prompt) == s for s, examples in by_split.items() for e in examples)
    for example in by_split["test"]:
        answer = example.answer.split(": ")[1]
        assert task.reward(f" {answer}\n\nQuestion: another", example.answer) == 1.0
        assert task.reward(f" {answer}1", example.answer) < 1.0
    assert len(by_split["test"][0].answer.split(": ")[1]) <= task.max_completion_length - 3


def test_shots_are_solved_questions_that_are_asked_nowhere() -> None:
    task = tasks.get(NAME)
    prompt = task.examples("test")[0].prompt
    assert prompt.count("Question: ") == 3
    assert prompt.endswith("\nAnswer:")
    shots = prompt.split("\n\n")[:2]
    asked = [e.prompt.split("\n\n")[-1] for s in ("train", "validation", "test") for e in task.examples(s)]
    assert not any(shot.startswith(question) for shot in shots for question in asked)


def test_the_same_name_gives_the_same_questions() -> None:
    first = tasks.get(NAME).examples("train")
    _build.cache_clear()
    assert tasks.get(NAME).examples("train") == first
    assert tasks.get(NAME.replace("shots", "seed=1&shots")).examples("train") != first


def test_the_number_of_tokens_can_be_given() -> None:
    assert tasks.get(f"{NAME}&tokens=5").max_completion_length == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reasoning_gym:gdc", "no dataset 'gdc'; did you mean gcd"),
        ("reasoning_gym:", "no dataset ''; it has .*gcd"),
        ("reasoning_gym:gcd?shot=1", "refuses the options: .*'shot'"),
        ("reasoning_gym:gcd?min_value=0", "refuses the options"),
        ("reasoning_gym:gcd?shots=x", "shots must be a whole number of at least 0"),
        ("reasoning_gym:gcd?size=1", "size must be a whole number of at least 20"),
        ("reasoning_gym:gcd?max_value=2&min_numbers=2&max_numbers=2&size=100", "too few examples"),
    ],
)
def test_a_bad_name_is_told_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        tasks.get(name)
    assert "\n" not in str(error.value)


def test_what_a_dataset_cannot_read_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.get(NAME)
    answer = task.examples("test")[0].answer
    monkeypatch.setattr(task.dataset, "score_answer", lambda said, entry: int(said))
    assert task.reward("9" * 5000, answer) == 0.0
    assert task.reward("1", answer) == 1.0
