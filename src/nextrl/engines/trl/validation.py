"""The rows that candidate leaps are scored on: given, the trainer's eval_dataset, or rows it will not train on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Sampler

from nextrl.engines.candidate_scores import Row
from nextrl.engines.trl.seam import dataset_sampler, replace_dataset_sampler, training_loader
from nextrl.errors import InputError

log = logging.getLogger(__name__)


def validation_rows(trainer: Any, given: Any, prompts: int) -> Sequence[Row]:
    """Rows to validate on: `given`, else the trainer's eval_dataset, else rows held back from its training data.

    Args:
        given: a list of rows, a datasets.Dataset, a stream (its first rows are taken), a dict of them, or None.
        prompts: rows that one scoring takes.

    Raises:
        InputError: there are fewer than 2 rows, or none can be held back.
    """
    given = given if given is not None else getattr(trainer, "eval_dataset", None)
    rows = hold_back(trainer, prompts) if given is None else _indexable(given, 8 * prompts)
    if len(rows) < 2:
        raise InputError(f"validation has {len(rows)} rows: give at least 2, better {4 * prompts}")
    return rows


def _indexable(given: Any, most: int) -> Sequence[Row]:
    if isinstance(given, Mapping):
        return [row for part in given.values() for row in itertools.islice(iter(part), most)]
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        rows: Sequence[Row] = given
        return rows
    return list(itertools.islice(iter(given), most))


def hold_back(trainer: Any, prompts: int) -> Sequence[Row]:
    """Rows of the training dataset that the trainer will not train on from now on.

    They are spread evenly over the dataset, a tenth of it at most. Where the sampler draws one of them (or another
    row with the same prompt) a row that stays takes its place, so that the length of an epoch, and with it the
    number of steps and the learning-rate schedule, stay what they were.

    Raises:
        InputError: the dataset is a stream, or too small to give any away.
    """
    dataset, loader = trainer.train_dataset, training_loader(trainer)
    sampler = dataset_sampler(loader)
    if not hasattr(dataset, "__len__") or sampler is None:
        raise InputError(
            "the training dataset cannot be split: give LeapCallback(validation=rows) held-out rows"
        )
    held = min(8 * prompts, len(dataset) // 10)
    if held < 2:
        raise InputError(f"the training dataset has {len(dataset)} rows: give LeapCallback(validation=rows)")
    chosen = [i * len(dataset) // held for i in range(held)]
    rows = [dataset[i] for i in chosen]
    # A dataset that was tokenised for supervised fine-tuning has no prompts any more.
    column = "prompt" if "prompt" in rows[0] else "input_ids"
    seen = {str(row[column]) for row in rows}
    barred = [i for i, value in enumerate(dataset[column]) if str(value) in seen]
    replace_dataset_sampler(loader, _Without(sampler, barred, len(dataset)))
    log.info("held back %d of %d training rows to validate leaps", len(barred), len(dataset))
    return rows


class _Without(Sampler[int]):
    """A sampler that never yields some indices: each gives way to one that stays, always to the same one."""

    def __init__(self, sampler: Any, barred: Sequence[int], size: int) -> None:
        """Wrap `sampler` over `range(size)`.

        Raises:
            InputError: nothing would stay.
        """
        gone = set(barred)
        stays = [i for i in range(size) if i not in gone]
        if not stays:
            raise InputError("every training row has a held-out prompt: give LeapCallback(validation=rows)")
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
