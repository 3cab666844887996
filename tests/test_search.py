"""Pairing, noise and ties of the alpha search, on hand-made rewards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextrl.search import Scores, grid_search


def rewards(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_error_is_that_of_the_paired_difference() -> None:
    scores = Scores({0.0: rewards(0, 1, 0, 1), 2.0: rewards(0, 1, 1, 1)})
    assert scores.gain(2.0) == 0.25
    assert scores.error(2.0) == pytest.approx(0.5 / math.sqrt(4))  # differences 0 0 1 0
    assert scores.better(2.0, 0.9)
    assert not scores.better(2.0, 1.0)
    assert not scores.worse(2.0, 0.0)


def test_the_hardness_of_prompts_cancels() -> None:
    hard = 10 * torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = Scores({0.0: hard, 2.0: hard + 0.01})
    assert scores.error(2.0) < 1e-9
    assert scores.best(level=3.0) == 2.0


def test_staying_put_wins_ties_and_everything_within_the_noise() -> None:
    assert Scores({0.0: rewards(1, 0), 2.0: rewards(1, 0)}).best(0.0) == 0.0
    assert Scores({0.0: rewards(1, 0, 0, 0), 2.0: rewards(0, 1, 1, 0)}).best(1.0) == 0.0


def test_of_equal_leaps_the_shorter_is_taken() -> None:
    equal = {a: rewards(1, 1, 1) for a in (8.0, 2.0, 32.0)}
    assert Scores({0.0: rewards(0, 1, 0), **equal}).best(0.0) == 2.0


def test_a_step_back_can_win() -> None:
    assert Scores({0.0: rewards(0, 0, 1), -0.5: rewards(1, 1, 1), -1.0: rewards(1, 0, 1)}).best(0.0) == -0.5


def test_a_grid_scores_staying_put_first_and_each_candidate_once() -> None:
    asked: list[float] = []

    def score(alpha: float) -> Tensor:
        asked.append(alpha)
        return rewards(alpha, 0.0)

    scores = grid_search(score, (1.0, 0.0, 4.0, 1.0))
    assert asked == [0.0, 1.0, 4.0]
    assert scores.completions() == 6
    assert scores.means() == {0.0: 0.0, 1.0: 0.5, 4.0: 2.0}
