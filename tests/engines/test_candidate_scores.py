"""Divergences of candidate leaps: what is read under which weights, and that nothing is read twice."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from nextrl.engines.candidate_scores import CandidateScores
from nextrl.engines.live_adapter import State, along
from nextrl.judge.guard import Guard
from nextrl.judge.paired_search import grid_search

START, END, LAST = {"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}, torch.tensor(1.9)


class Adapter:
    """One weight."""

    def __init__(self) -> None:
        self.state: State = END

    def write(self, state: State) -> None:
        self.state = state


class Measure:
    """Reads the weight itself; a divergence is the square of a difference."""

    def __init__(self, adapter: Adapter, heard: bool = True, more: bool = False, held: bool = True) -> None:
        self.adapter, self.heard, self.more, self.held = adapter, heard, more, held
        self.rollouts: object = None
        self.current = torch.tensor(math.nan)
        self.reads: list[float] = []

    def recall(self) -> bool:
        if self.heard:
            self.rollouts, self.current = object(), LAST
        return self.heard

    def anchor(self) -> bool:
        if self.more or not self.heard:
            self.rollouts = object()
        if self.held:
            self.current = self.read()
        return self.held

    def read(self) -> Tensor:
        self.reads.append(float(self.adapter.state["w"]))
        return self.adapter.state["w"]

    def divergence(self, candidate: Tensor) -> float:
        return float((candidate - self.current) ** 2)


def distances(measure: Measure):
    scores = CandidateScores(measure.adapter, None, Guard(2.0, 0.1, 1.0))  # type: ignore[arg-type]
    return scores.distances(partial(along, START, END), END, measure)  # type: ignore[arg-type]


def test_the_exact_look_reads_only_what_the_glance_has_not() -> None:
    measure = Measure(Adapter())
    diverge, glance = distances(measure)
    assert glance(-1.0) == pytest.approx(0.81)
    assert measure.reads == [1.0]
    assert diverge(-1.0) == pytest.approx(1.0)
    assert measure.reads == [1.0, 2.0]
    assert diverge(2.0) == pytest.approx(4.0)
    assert measure.reads == [1.0, 2.0, 4.0]
    assert measure.adapter.state is END


def test_other_rollouts_are_read_anew() -> None:
    measure = Measure(Adapter(), more=True)
    diverge, glance = distances(measure)
    assert glance(-1.0) == pytest.approx(0.81)
    assert diverge(-1.0) == pytest.approx(1.0)
    assert measure.reads == [1.0, 2.0, 1.0]


def test_without_rollouts_there_is_no_number() -> None:
    measure = Measure(Adapter(), heard=False, held=False)
    diverge, glance = distances(measure)
    assert math.isnan(glance(-1.0))
    assert math.isnan(diverge(-1.0))
    assert measure.reads == []


def test_the_adapter_is_as_before_even_where_reading_fails() -> None:
    measure = Measure(Adapter())
    measure.read = lambda: 1 / 0  # type: ignore[assignment,method-assign]
    with pytest.raises(ZeroDivisionError):
        distances(measure)[1](-1.0)
    assert measure.adapter.state is END


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
