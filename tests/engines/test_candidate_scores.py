"""Scoring candidate adapters: what is measured of them, and what is not."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from nextrl.engines.candidate_scores import CandidateScores
from nextrl.engines.live_weights import State, along
from nextrl.judge.guard import Guard
from nextrl.judge.paired_search import grid_search

START, END = {"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}


class Adapter:
    """One weight."""

    def __init__(self) -> None:
        self.state: State = END

    def write(self, state: State) -> None:
        self.state = state


class Rollouts:
    """Any adapter earns the same; nothing is known of the completions."""

    completions, group, mean_length, truncated = 0, 1, math.nan, math.nan

    def rewards(self, rows: list[dict[str, str]], seed: int) -> Tensor:
        return torch.ones(len(rows), dtype=torch.float64)

    def log_probabilities(self) -> Tensor:
        raise AssertionError("asked for what no bound needs")


def test_a_divergence_that_no_bound_asks_for_is_unknown_and_not_zero() -> None:
    scores = CandidateScores(Adapter(), Rollouts(), Guard(divergence=math.inf))  # type: ignore[arg-type]
    score = scores.scorer(partial(along, START, END), END, lambda start, stop: [{}] * (stop - start), 0)
    for alpha in (0.0, 2.0):
        score(alpha, 0, 4)
    assert list(scores.divergences) == [2.0]
    assert math.isnan(scores.divergences[2.0])


def test_a_search_is_told_which_answers_are_to_one_prompt() -> None:
    rollouts = Rollouts()
    rollouts.group = 4
    scores = CandidateScores(Adapter(), rollouts, Guard(divergence=math.inf))  # type: ignore[arg-type]
    score = scores.scorer(partial(along, START, END), END, lambda start, stop: [{}] * (stop - start), 0)
    found = grid_search(score, [2.0], 4)
    assert found.error(2.0) == math.inf  # a single prompt, answered four times
    assert grid_search(score, [2.0], 8).error(2.0) == 0.0
