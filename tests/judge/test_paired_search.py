"""Pairing, stages, noise and ties of the alpha search, on hand-made rewards."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextrl.judge.few_samples import normal_of_t
from nextrl.judge.paired_search import GroupedScore, Refused, Scores, grid_search, refine


def rewards(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unasked(alpha: float, start: int, stop: int) -> Tensor:
    raise AssertionError(f"asked for {alpha} on {start}..{stop}")


def known(by_alpha: dict[float, Tensor]) -> Scores:
    return Scores(unasked, by_alpha)


def noisy(mean: Callable[[float], float], noise: float = 0.3, seed: int = 0) -> Callable[..., Tensor]:
    """Rewards of a prompt: its own hardness, the candidate's mean, and noise of their own."""

    def score(alpha: float, start: int, stop: int) -> Tensor:
        hard = torch.arange(start, stop, dtype=torch.float64).sin()
        random = torch.Generator().manual_seed(seed + 1000 * start + round(10 * alpha))
        return hard + mean(alpha) + noise * torch.randn(stop - start, generator=random, dtype=torch.float64)

    return score


def test_the_error_is_that_of_the_paired_difference() -> None:
    scores = known({0.0: rewards(0, 1, 0, 1), 2.0: rewards(0, 1, 1, 1)})
    assert scores.gain(2.0) == 0.25
    assert scores.error(2.0) == pytest.approx(0.5 / math.sqrt(4))  # differences 0 0 1 0
    assert scores.evidence(2.0) == pytest.approx(normal_of_t(1.0, 3))
    assert scores.better(2.0, 0.8)
    assert not scores.better(2.0, 1.0)
    assert not scores.worse(2.0, 0.0)


def test_a_difference_is_taken_over_the_prompts_that_both_have_seen() -> None:
    scores = known({0.0: rewards(0, 1, 0, 0), 2.0: rewards(1, 1)})
    assert scores.gain(2.0) == 0.5
    assert scores.completions() == 6


def test_the_hardness_of_prompts_cancels() -> None:
    hard = 10 * torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = known({0.0: hard, 2.0: hard + 0.01})
    assert scores.error(2.0) == pytest.approx(0.01 / math.sqrt(64 * 65))
    assert scores.best(level=3.0) == 2.0


NAN = math.nan


def test_pairs_without_a_score_on_either_side_are_left_out() -> None:
    whole = known({0.0: rewards(-1, -2, -1), 2.0: rewards(-1, -1, 0)})
    scores = known({0.0: rewards(-1, NAN, -2, -1, -5), 2.0: rewards(-1, 0, -1, 0, NAN)})
    assert scores.gain(2.0) == whole.gain(2.0) == pytest.approx(2 / 3)
    assert scores.error(2.0) == whole.error(2.0)
    assert (scores.unscored(2.0), scores.mean(0.0)) == (2, -2.25)
    assert scores.completions() == 10


def test_nothing_is_known_of_a_candidate_without_a_pair() -> None:
    scores = known({0.0: rewards(1, 1, 1), 2.0: rewards(NAN, NAN, NAN), 4.0: rewards(9, NAN, NAN)})
    for level in (0.0, 1.0, 2.0):
        assert scores.best(level) == 0.0
        assert not scores.worse(2.0, level)
        assert not scores.worse(4.0, level)
    assert scores.gain(2.0) == -math.inf
    assert scores.error(2.0) == scores.error(4.0) == math.inf
    assert known({0.0: rewards(NAN, NAN), 2.0: rewards(1, 1)}).best(0.0) == 0.0


def test_answers_to_one_prompt_are_not_as_many_prompts() -> None:
    """All of one prompt's answers gained, none of the other's: eight differences say as much as two."""
    by_alpha = {0.0: torch.zeros(8, dtype=torch.float64), 2.0: rewards(1, 1, 1, 1, 0, 0, 0, 0)}
    single, grouped = known(by_alpha), Scores(GroupedScore(unasked, 4), by_alpha)
    assert single.better(2.0, 2.0)
    assert grouped.error(2.0) == pytest.approx(0.5)
    assert grouped.evidence(2.0) == pytest.approx(normal_of_t(1.0, 1))  # of two prompts, not of eight answers
    assert not grouped.better(2.0, 2.0)
    # One prompt says nothing of others, however often it is answered.
    assert Scores(GroupedScore(unasked, 8), by_alpha).error(2.0) == math.inf
    # Two that happen to agree do not make the noise within them go away.
    alike = {0.0: by_alpha[0.0], 2.0: rewards(1, 0, 0, 0, 0, 1, 0, 0)}
    assert Scores(GroupedScore(unasked, 4), alike).error(2.0) == known(alike).error(2.0) > 0


@pytest.mark.parametrize(("prompts", "sure"), [(2, 1.2), (4, 2.3), (8, 4.0)])
def test_a_few_prompts_that_agree_are_not_certain(prompts: int, sure: float) -> None:
    """Their differences have no spread at all, and another prompt may still say the opposite."""
    scores = known({0.0: torch.zeros(prompts).double(), 2.0: torch.ones(prompts).double()})
    assert scores.error(2.0) == pytest.approx(1 / math.sqrt(prompts * (prompts + 1)))
    assert scores.evidence(2.0) == pytest.approx(sure, abs=0.1)
    assert scores.better(2.0, 0.0)


def test_a_group_without_any_score_is_no_prompt() -> None:
    by_alpha = {0.0: torch.zeros(6, dtype=torch.float64), 2.0: rewards(1, 1, NAN, NAN, 0, NAN)}
    assert Scores(GroupedScore(unasked, 2), by_alpha).error(2.0) == pytest.approx(0.5)


def test_staying_put_wins_ties_and_everything_within_the_noise() -> None:
    assert known({0.0: rewards(1, 0), 2.0: rewards(1, 0)}).best(0.0) == 0.0
    assert known({0.0: rewards(1, 0, 0, 0), 2.0: rewards(0, 1, 1, 0)}).best(1.0) == 0.0


def test_of_equal_leaps_the_shorter_is_taken() -> None:
    equal = {a: rewards(1, 1, 1) for a in (8.0, 2.0, 32.0)}
    assert known({0.0: rewards(0, 1, 0), **equal}).best(0.0) == 2.0


def test_a_step_back_can_win() -> None:
    assert known({0.0: rewards(0, 0, 1), -0.5: rewards(1, 1, 1), -1.0: rewards(1, 0, 1)}).best(0.0) == -0.5


def test_a_grid_scores_staying_put_first_and_each_candidate_once() -> None:
    asked: list[tuple[float, int, int]] = []

    def score(alpha: float, start: int, stop: int) -> Tensor:
        asked.append((alpha, start, stop))
        return rewards(alpha, 0.0)

    scores = grid_search(score, (1.0, 0.0, 4.0, 1.0), 2)
    assert asked == [(0.0, 0, 2), (1.0, 0, 2), (4.0, 0, 2)]
    assert scores.completions() == 6
    assert scores.means() == {0.0: 0.0, 1.0: 0.5, 4.0: 2.0}


def test_a_candidate_is_asked_in_the_stretches_in_which_staying_put_was() -> None:
    asked: list[tuple[float, int, int]] = []

    def score(alpha: float, start: int, stop: int) -> Tensor:
        asked.append((alpha, start, stop))
        return torch.zeros(stop - start, dtype=torch.float64)

    scores = Scores(score)
    scores.extend(2.0, 4)
    scores.extend(8.0, 8)
    scores.extend(2.0, 8)
    assert asked == [(0.0, 0, 4), (2.0, 0, 4), (0.0, 4, 8), (8.0, 0, 4), (8.0, 4, 8), (2.0, 4, 8)]


def test_a_refused_candidate_loses_is_not_asked_again_and_is_paid_for() -> None:
    asked: list[float] = []

    def score(alpha: float, start: int, stop: int) -> Tensor:
        asked.append(alpha)
        if alpha == 8.0 and start:
            raise Refused("too long", stop - start)
        return torch.full((stop - start,), alpha, dtype=torch.float64)

    scores = Scores(score)
    for prompts in (4, 8, 12):
        scores.extend(8.0, prompts)
    assert asked.count(8.0) == 2
    assert scores.refused == {8.0: "too long"}
    assert scores.best(0.0) == 0.0
    assert scores.completions() == 12 + 4 + 4


def test_a_clear_winner_costs_the_first_stage_only() -> None:
    scores = Scores(noisy(lambda a: 1.0 if a == 8.0 else 0.0))
    for alpha in (2.0, 8.0):
        scores.extend(alpha, 16)
    refine(scores, (16, 32, 64), 2.0)
    assert scores.best(2.0) == 8.0
    assert scores.completions() == 48


def test_clear_losers_are_dropped_and_a_close_race_is_run_to_the_end() -> None:
    scores = Scores(noisy(lambda a: -1.0 if a == 8.0 else 0.0))
    for alpha in (2.0, 8.0):
        scores.extend(alpha, 16)
    refine(scores, (16, 32, 64), 3.0)
    assert scores.prompts(8.0) == 16
    assert scores.prompts(2.0) == scores.prompts(0.0) > 16


def test_a_candidate_that_answers_alike_is_not_asked_forever() -> None:
    scores = Scores(noisy(lambda a: 0.0, noise=0.0))
    scores.extend(2.0, 16)
    refine(scores, (16, 32, 64), 2.0)
    assert scores.prompts(2.0) == 32


def test_noise_alone_seldom_wins() -> None:
    won = 0
    for seed in range(200):
        scores = Scores(noisy(lambda a: 0.0, seed=seed))
        scores.extend(2.0, 16)
        refine(scores, (16, 32, 64), 2.0)
        won += scores.best(2.0) != 0.0
    # Three looks at level 2, one-sided: about .02 + .02 + .02 at most.
    assert won <= 20
