"""What a run costs grows with its number of checkpoints, and no faster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nextrl.checkpoints.consistency import disagreements


class CountedShape(tuple[int, int, int]):
    """(m, n, r) that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedShape.comparisons += 1
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(tuple(self))


def checkpoint(step: int, modules: int, rank: int = 4) -> Any:
    """As much of an adapter as the comparison of checkpoints asks for."""
    return SimpleNamespace(
        step=step,
        folder=Path(f"checkpoint-{step}"),
        file=SimpleNamespace(path=Path(f"checkpoint-{step}/adapter_model.safetensors")),
        modules=tuple(f"layer{i}" for i in range(modules)),
        shapes={f"layer{i}": CountedShape((8, 8, rank)) for i in range(modules)},
        dtypes=frozenset({"float32"}),
        scaling=lambda module: 1.0,
        shape=lambda module: (8, 8, rank),
        factors=lambda module, check: (torch.ones(rank, 8), torch.ones(8, rank)),
        settings=SimpleNamespace(path=Path("c"), raw={}, base=None, transposed=False, starts_at_zero=True),
    )


@pytest.mark.parametrize("count", [50, 400])
def test_comparing_checkpoints_is_linear_in_their_number(count: int) -> None:
    CountedShape.comparisons = 0
    assert disagreements([checkpoint(10 * (i + 1), 3) for i in range(count)]) == []
    assert CountedShape.comparisons <= 5 * 3 * count


def test_the_shape_of_most_checkpoints_is_the_usual_one_and_the_first_met_where_two_are_as_frequent() -> None:
    ranks = [2, 4, 4, 2]
    problems = disagreements([checkpoint(10 * (i + 1), 3, rank) for i, rank in enumerate(ranks)])
    assert [problem.step for problem in problems] == [20, 30]
    problems = disagreements([checkpoint(10 * (i + 1), 3, rank) for i, rank in enumerate([2, 4, 4])])
    assert [problem.step for problem in problems] == [10]
