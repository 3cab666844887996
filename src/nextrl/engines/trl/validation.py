"""The rows that candidate leaps are scored on: given, the trainer's eval_dataset, or rows it will not train on."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from nextrl.engines.candidate_scores import Row
from nextrl.engines.trl.likelihood import check_row
from nextrl.engines.trl.rollouts import InGroups
from nextrl.engines.trl.samplers import dataset_sampler, replace_dataset_sampler, training_loader
from nextrl.engines.trl.seam import Seam
from nextrl.errors import InputError, shown
from nextrl.say import say

log = logging.getLogger(__name__)

_SEARCHES = 8  # that find other prompts each time, before the first prompts are taken again
_PICTURES = ("image", "images")
# Columns that no reward function is handed, or that may lack.
_NOT_READ = {"completion", "completion_ids", *_PICTURES}


def validation_rows(trainer: Any, given: Any, prompts: int) -> tuple[Sequence[Row], Callable[[], None]]:
    """Rows to validate on: `given`, else the trainer's eval_dataset, else some of its training data.

    Each of them comes as often as a training batch has it (`InGroups`), one after the other.

    Returns:
        The rows, and what is to be called to hold them back from training, once it is known that anything will be
        searched; it does nothing where they were none of training's.

    Args:
        given: a list of rows, a dataset with or without a transform, a stream (its first rows are taken), a dict of
            them, or None.
        prompts: rows that one scoring takes.

    Raises:
        InputError: there are fewer than 2 rows, or none can be held back; a row cannot be scored as those of training
            are: it is no dict, lacks a column that training's have, or the collator makes no batch of it (SFT).
    """
    group, own = Seam(trainer).group, given is not None
    given = given if own else getattr(trainer, "eval_dataset", None)
    wanted = _SEARCHES * -(-prompts // group)
    rows, keep_out = (
        _to_hold_back(trainer, wanted) if given is None else (_indexable(given, wanted), _nothing)
    )
    if len(rows) < 2:
        raise InputError(
            f"validation has {len(rows)} rows: give at least 2, better {max(2, 4 * prompts // group)}"
        )
    if given is not None:
        what = "validation" if own else "the eval_dataset, on which leaps are validated,"
        _check(trainer, rows, what, own)
    elif not Seam(trainer).generates:
        check_row(trainer, rows[0], False)
    if prompts < 2 * group:
        say(
            log,
            "a search of %d completions in groups of %d sees a single prompt, which no leap can be accepted on: give "
            "LeapCallback(prompts=%d) or more",
            prompts,
            group,
            8 * group,
        )
    return rows if group == 1 else InGroups(rows, group), keep_out


def _nothing() -> None:
    """Rows that were given are not trained on."""


def _indexable(given: Any, most: int) -> Sequence[Row]:
    """The rows of a dataset or of several, of a stream the first."""
    if isinstance(given, Mapping):
        return _Mixed([_indexable(part, most) for part in given.values()])
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        rows: Sequence[Row] = given
        return rows
    return list(itertools.islice(iter(given), most))


def _check(trainer: Any, rows: Sequence[Row], what: str, given: bool) -> None:
    """See that rows can be scored: what they lack would be found out in the middle of the run otherwise.

    A column that a reward function names, and has no default for, has to be there. Of another one that the training
    dataset has nobody knows whether a reward reads it, and only a warning tells.

    Args:
        what: the rows' name, for the warning.
        given: whether they are those of `validation=`.
    """
    generates = Seam(trainer).generates
    columns = _columns(trainer) if generates else set()
    needed = {"prompt"} | _named(trainer) if generates else set()
    for row in _samples(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                "validation rows must be dicts with a prompt and the columns that the reward functions read, not "
                f"{shown(row)}"
            )
        if not generates:
            check_row(trainer, dict(row), given)
            continue
        missing = columns - row.keys()
        if missing & needed:
            raise InputError(
                f"a validation row has no {', '.join(sorted(missing & needed))}, which the rows of the training "
                "dataset have: give validation rows the same columns, since reward functions read them"
            )
        if missing and trainer.is_world_process_zero():
            say(
                log,
                "%s has no %s, which the training dataset has: a search ends in an error if a reward function reads it",
                what,
                ", ".join(sorted(missing)),
            )
            return


def _named(trainer: Any) -> set[str]:
    """The parameters of reward functions that have no default; a reward model has none that matter here."""
    functions = [f for f in trainer.reward_funcs if callable(f) and not isinstance(f, torch.nn.Module)]
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
    return {
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def _columns(trainer: Any) -> set[str]:
    """What a row of training has for the trainer and its reward functions to read; as far as a stream says it."""
    dataset = trainer.train_dataset
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        columns = set(dataset[0])
    else:
        columns = set(getattr(dataset, "column_names", None) or ("prompt",))
    if trainer.args.remove_unused_columns:
        columns &= {"prompt"}
    return columns - _NOT_READ


def _samples(rows: Sequence[Row]) -> Iterator[Any]:
    """Rows that show which columns there are: all of a list, of each dataset the first."""
    if isinstance(rows, _Mixed):
        for part in rows.parts:
            yield from _samples(part)
    elif isinstance(rows, list | tuple):
        yield from rows
    elif len(rows):
        yield rows[0]


class _Mixed(Sequence[Row]):
    """Several datasets as one, each spread evenly over it, so that every search sees all of them."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        places = [(part, i) for part in range(len(parts)) for i in range(len(parts[part]))]
        self._places = sorted(places, key=lambda place: (place[1] + 0.5) / len(parts[place[0]]))
        self.parts = parts

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, place = self._places[index]
        return self.parts[part][place]


def _to_hold_back(trainer: Any, wanted: int) -> tuple[Sequence[Row], Callable[[], None]]:
    """One row of each of some prompts of the training dataset, and what has the trainer not train on them.

    They are spread evenly over the dataset. With all their copies they are a tenth of it at most. Where the sampler
    draws one of them, a row that stays takes its place, so that the length of an epoch, and with it the number of steps
    and the learning-rate schedule, stay what they were. A line in the log says how many rows of how many prompts.

    Args:
        wanted: prompts to hold back, at most.

    Returns:
        The rows, and the call from which on they are not trained on.

    Raises:
        InputError: the dataset is a stream, or has too few rows or prompts to give any away.
    """
    dataset, loader = trainer.train_dataset, training_loader(trainer)
    sampler = dataset_sampler(loader)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or sampler is None:
        raise InputError(
            "the training dataset is a stream, of which no rows can be held back to validate leaps: give the trainer "
            "an eval_dataset, or LeapCallback(validation=rows)"
        )
    copies = _places_by_prompt(dataset)
    held = _spread(list(copies.values()), wanted, len(dataset) // 10)
    if len(held) < 2:
        raise InputError(
            f"the training dataset has {len(dataset)} rows of {len(copies)} prompts, and no 2 prompts are within a "
            "tenth of the rows: give the trainer an eval_dataset, or LeapCallback(validation=rows)"
        )
    barred = sorted(itertools.chain.from_iterable(held))

    def keep_out() -> None:
        replace_dataset_sampler(loader, _Without(sampler, barred, len(dataset)))
        if trainer.is_world_process_zero():
            # A warning, because a run has fewer rows than its owner gave it, and INFO is not shown by default.
            say(
                log,
                "held back %d of %d prompts (%d of %d rows) from training, to validate leaps on; with an eval_dataset, "
                "or LeapCallback(validation=rows), nothing is held back",
                len(held),
                len(copies),
                len(barred),
                len(dataset),
            )

    return [dataset[places[0]] for places in held], keep_out


def _places_by_prompt(dataset: Any) -> dict[str, list[int]]:
    """Prompt -> the places of its rows, in the dataset's order; with pictures each row is a prompt of its own.

    The text alone says little about a row with a picture, and to compare the pictures all would have to be decoded.
    """
    first = dataset[0]
    if any(key in first for key in _PICTURES):
        return {str(place): [place] for place in range(len(dataset))}
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(_prompts(dataset, first)):
        places.setdefault(str(prompt), []).append(place)
    return places


def _prompts(dataset: Any, first: Row) -> Iterator[Any]:
    """Each row's prompt, or what stands for it; as stored, where a transform makes the rows out of what is stored."""
    # A dataset that was tokenised for supervised fine-tuning has no prompts any more, one of environments has none.
    column = next((key for key in ("prompt", "input_ids") if key in first), None)
    if column is not None and column in (getattr(dataset, "column_names", None) or ()):
        return iter(dataset.with_format(None)[column])
    rows = (dataset[place] for place in range(len(dataset)))
    return (row if column is None else row[column] for row in rows)


def _spread(copies: Sequence[Sequence[int]], wanted: int, most: int) -> list[Sequence[int]]:
    """Some of the prompts' places, spread evenly as far as they fit, which are `most` rows at most."""
    held: list[Sequence[int]] = []
    count = min(wanted, max(2, len(copies) // 10))
    spread = [number * len(copies) // count for number in range(count)]
    for number in dict.fromkeys((*spread, *range(len(copies)))):
        if len(held) < count and len(copies[number]) <= most:
            held.append(copies[number])
            most -= len(copies[number])
    return held


class _Without(Sampler[int]):
    """A sampler that never yields some indices: each gives way to one that stays, always to the same one."""

    def __init__(self, sampler: Any, barred: Sequence[int], size: int) -> None:
        """Wrap `sampler` over `range(size)`, of which some are not barred."""
        gone = set(barred)
        stays = [i for i in range(size) if i not in gone]
        stride = max(1, len(stays) // len(gone))
        self._sampler = sampler
        self._instead = {index: stays[k * stride % len(stays)] for k, index in enumerate(barred)}

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __iter__(self) -> Iterator[int]:
        return (self._instead.get(index, index) for index in self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)
