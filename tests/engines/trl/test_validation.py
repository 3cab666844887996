"""Held-out rows are the user's data: how many of which are held back, and what a user's dataset may be."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from nextrl import LeapCallback
from nextrl.engines.trl.validation import _spread, validation_rows
from nextrl.errors import InputError
from trl_runs import TASK, VALIDATION, Scripted, scripted_policy, trainer

PROMPTS = [{"prompt": e.prompt, "answer": e.answer} for e in TASK.examples("train")[:400]]


class Seen:
    """A reward function that remembers what was trained on."""

    def __init__(self) -> None:
        self.trained: Counter[str] = Counter()
        self.scored: set[str] = set()
        self.run: Any = None
        self.__name__ = "seen"

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        (self.trained.update if self.run.model.training else self.scored.update)(prompts)
        return [float(len(c)) for c in completions]


def searching(
    out: Path, rows: Any, *, prompts: int = 16, validation: Any = None, **options: Any
) -> tuple[Seen, Any]:
    """A run with a search in each of its windows, over an epoch."""
    seen = Seen()
    policy = scripted_policy(Scripted([], search=(0.0, 2.0)), prompts=prompts)
    callback = LeapCallback(policy=policy, validation=validation)
    options = {"max_steps": -1, "num_train_epochs": 1, **options}
    map_style = isinstance(rows, Mapped)
    run = trainer(out, [callback], rows=None if map_style else rows, rewards=seen, **options)
    if map_style:  # TRL takes none; a trainer derived from its own may.
        run.train_dataset = rows
    seen.run = run
    run.train()
    return seen, callback


def held_back(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "held back" in r.getMessage()]


def test_of_repeated_prompts_a_tenth_of_the_rows_is_held_back_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen, callback = searching(tmp_path, Dataset.from_list(PROMPTS[:50] * 8), prompts=64)
    held = {row["prompt"] for row in callback._session.rows}
    assert len(held) == 5
    assert seen.scored <= held
    assert not held & set(seen.trained)
    assert len(seen.trained) == 45
    assert seen.run.state.global_step == 400 // 8
    (line,) = held_back(caplog)
    assert line.startswith(
        "nextrl: held back 5 of 50 prompts (40 of 400 rows) from training, to validate leaps on"
    )
    # Shown by a program that has not set up logging.
    assert [r.levelno for r in caplog.records if r.getMessage() == line] == [logging.WARNING]
    assert logging.getLogger("nextrl.engines.trl.validation").isEnabledFor(logging.WARNING)


def test_no_more_is_held_back_than_searches_need(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.callback_handler.train_dataloader = run.get_train_dataloader()
    rows, _ = validation_rows(run, None, 16)  # completions, of four prompts
    assert len({row["prompt"] for row in rows}) == 8 * 4
    assert len(rows) == 8 * 16


def test_prompts_with_many_copies_stay_where_they_are_more_than_a_tenth() -> None:
    copies = [range(900), *([900 + i] for i in range(100))]
    held = _spread([list(c) for c in copies], 64, 1000 // 10)
    assert len(held) == 10
    assert all(len(places) == 1 for places in held)
    assert sum(map(len, _spread([list(range(3))] * 100, 64, 30))) == 30
    # The first that the spread falls on do not fit; others do.
    assert _spread([list(range(9)), list(range(9)), [18], [19]], 4, 2) == [[18], [19]]


def test_too_few_prompts_to_give_any_away_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"400 rows of 5 prompts, and no 2 prompts are within a tenth"):
        searching(tmp_path, Dataset.from_list(PROMPTS[:5] * 80))


def test_an_eval_dataset_leaves_the_training_data_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, given in (("eval", {"eval_dataset": VALIDATION}), ("own", {"validation": VALIDATION})):
        seen, _ = searching(tmp_path / name, Dataset.from_list(PROMPTS[:80]), **given)
        assert set(seen.trained) == {row["prompt"] for row in PROMPTS[:80]}
        assert seen.scored <= {row["prompt"] for row in VALIDATION}
    assert held_back(caplog) == []


# What a training dataset may be.


class Mapped(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def transformed(rows: list[Any]) -> Any:
    """Rows whose prompt a transform makes out of another column."""
    stored = Dataset.from_list([{"question": row["prompt"][:-1], "answer": row["answer"]} for row in rows])

    def make(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "prompt": [question + "=" for question in batch["question"]]}

    return stored.with_transform(make)


def same_prompts(rows: list[Any]) -> Any:
    """A transform over rows that have a prompt already."""
    return Dataset.from_list(rows).with_transform(lambda batch: dict(batch))


@pytest.mark.parametrize("make", [Dataset.from_list, transformed, same_prompts, Mapped])
def test_rows_of_each_kind_are_held_back(tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen, callback = searching(tmp_path, make(PROMPTS[:40] * 2))
    held = {row["prompt"] for row in callback._session.rows}
    assert len(held) == 4
    assert set(seen.trained) == {row["prompt"] for row in PROMPTS[:40]} - held
    assert len(held_back(caplog)) == 1


def test_rows_with_pictures_are_each_a_question_of_their_own(tmp_path: Path) -> None:
    rows = [{"prompt": "what is it?", "image": f"picture {i}"} for i in range(40)]
    run = trainer(tmp_path)
    run.train_dataset = Mapped(rows)
    run.callback_handler.train_dataloader = run.get_train_dataloader()
    assert len({row["image"] for row in validation_rows(run, None, 16)[0]}) == 4


def test_a_stream_cannot_be_held_back_and_says_what_to_do(tmp_path: Path) -> None:
    stream = Dataset.from_list(PROMPTS[:64]).to_iterable_dataset()
    with pytest.raises(InputError, match=r"is a stream.*give the trainer an eval_dataset, or LeapCallback"):
        searching(tmp_path / "a", stream, max_steps=2)
    seen, _ = searching(tmp_path / "b", stream, max_steps=2, validation=VALIDATION)
    assert seen.scored <= {row["prompt"] for row in VALIDATION}


# What may be given to validate on.

STREAM = VALIDATION.to_iterable_dataset()
GIVEN = {
    "list": list(VALIDATION),
    "dataset": VALIDATION,
    "transform": VALIDATION.with_transform(lambda batch: dict(batch)),
    "map-style": Mapped(list(VALIDATION)),
    "stream": STREAM,
    "dict": {"a": VALIDATION.select(range(32)), "b": VALIDATION.select(range(32, 64))},
    "DatasetDict": DatasetDict(a=VALIDATION.select(range(32)), b=VALIDATION.select(range(32, 64))),
    "dict of streams": {"a": STREAM.take(32), "b": STREAM.skip(32)},
    "IterableDatasetDict": IterableDatasetDict(a=STREAM.take(32), b=STREAM.skip(32)),
    "dict of map-style": {"a": Mapped(list(VALIDATION)[:32]), "b": Mapped(list(VALIDATION)[32:])},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_what_is_given_to_validate_on_may_be_of_any_kind(tmp_path: Path, kind: str) -> None:
    given = GIVEN[kind]
    rows, _ = validation_rows(trainer(tmp_path), given, 256)
    mixed = "dict" in kind.lower()
    order = [half * 32 + i for i in range(32) for half in (0, 1)] if mixed else range(64)
    assert [rows[i] for i in range(0, len(rows), 4)] == [VALIDATION[i] for i in order]
    assert all(rows[i] is rows[i - 1] for i in range(len(rows)) if i % 4)
    assert not isinstance(given, IterableDataset) or len(rows) == 256


GIVEN_WITHOUT = {
    "list": [*VALIDATION, {"prompt": "1+1="}],
    "dataset": VALIDATION.remove_columns("answer"),
    "stream": STREAM.remove_columns("answer"),
    "dict": {"a": VALIDATION, "b": VALIDATION.remove_columns("answer")},
}


def searched_at_the_end(out: Path, callbacks: Any = (), **options: Any) -> Any:
    """A run whose search is far away: what is wrong with its rows must not wait for it."""
    validation = options.pop("validation", None)
    leaps = LeapCallback(1, "secant", at=[3], horizon=1, prompts=8, validation=validation)
    return trainer(out, [leaps], max_steps=3, **options)


@pytest.mark.parametrize("kind", GIVEN_WITHOUT)
def test_rows_without_the_columns_of_training_are_refused_before_the_first_step(
    tmp_path: Path, kind: str
) -> None:
    run = searched_at_the_end(tmp_path, validation=GIVEN_WITHOUT[kind])
    with pytest.raises(InputError, match=r"^a validation row has no answer, which the rows of the training"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1+1=", "2+2=", "3+3="], "^validation rows must be dicts with a prompt .* not '1\\+1='$"),
        ([{"question": "1+1=", "answer": "2"}] * 3, "^a validation row has no prompt, which"),
        ([{}] * 3, "^a validation row has no answer, prompt, which"),
    ],
)
def test_what_is_no_row_is_refused_before_the_first_step(tmp_path: Path, rows: Any, message: str) -> None:
    run = searched_at_the_end(tmp_path, validation=rows)
    with pytest.raises(InputError, match=message):
        run.train()
    assert run.state.global_step == 0


def test_only_columns_that_reward_functions_are_handed_are_asked_for(tmp_path: Path) -> None:
    train = Dataset.from_list([{**row, "completion": "x"} for row in PROMPTS[:64]])
    searched_at_the_end(tmp_path / "a", rows=train, validation=list(VALIDATION)).train()
    # Of a stream that does not say its columns nobody knows them; of one whose columns are removed there are none.
    bare = VALIDATION.remove_columns("answer")
    for name, options in (
        ("b", {"rows": Dataset.from_list(PROMPTS[:64]).to_iterable_dataset().map(lambda row: row)}),
        ("c", {"remove_unused_columns": True}),
    ):
        searched_at_the_end(tmp_path / name, rewards=[long], validation=bare, **options).train()


def long(completions: list[str], **_: Any) -> list[float]:
    return [float(len(c)) for c in completions]


def test_a_column_that_no_reward_names_may_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = Dataset.from_list([{**row, "source": "x"} for row in PROMPTS[:64]])
    searched_at_the_end(tmp_path, rows=train, validation=VALIDATION).train()
    assert "validation has no source, which the training dataset has" in caplog.text


def test_an_eval_dataset_with_fewer_columns_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = VALIDATION.remove_columns("answer")
    searched_at_the_end(tmp_path, eval_dataset=bare, rewards=[long]).train()
    said = [r.getMessage() for r in caplog.records if "has no answer" in r.getMessage()]
    assert said == [
        "nextrl: the eval_dataset, on which leaps are validated, has no answer, which the training dataset has: a "
        "search ends in an error if a reward function reads it"
    ]


def test_a_search_of_a_single_prompt_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    validation_rows(trainer(tmp_path), VALIDATION, 7)
    assert "7 completions in groups of 4 sees a single prompt" in caplog.text
    caplog.clear()
    validation_rows(trainer(tmp_path), VALIDATION, 8)
    assert caplog.text == ""
