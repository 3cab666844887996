"""What a search may cost: the bound that is said at the start of a run holds whatever is found."""

from __future__ import annotations

import math

import pytest
import torch

from nextrl.errors import InputError
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.paired_search import GroupedScore

ALPHAS = (-0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@pytest.mark.parametrize("group", [1, 4])
def test_no_search_takes_more_than_its_price(group: int) -> None:
    random, most = torch.Generator().manual_seed(0), 0
    for level in [0.5, 2.0, 6.0] * 20:
        acceptance = Acceptance(level=level)

        def score(alpha: float, start: int, stop: int) -> torch.Tensor:
            return torch.randn(stop - start, generator=random, dtype=torch.float64)

        _, scores = acceptance.choose(GroupedScore(score, group), ALPHAS)
        assert scores.completions() <= acceptance.most(len(ALPHAS), group) == 288
        most = max(most, scores.completions())
    assert most >= 256  # the bound is not far off


def test_the_price_is_of_whole_groups() -> None:
    assert Acceptance((16, 32)).most(1, group=6) == 2 * 18 + 24 + 24
    assert Acceptance((16, 32), argmax=True).most(3, group=4) == 4 * 32
    assert Acceptance((8,)).most(2) == 3 * 8


def test_chance_passes_the_bar_in_a_tenth_of_all_searches() -> None:
    """Of six candidates on one line, none is better: an answer that has changed stays, until it changes again."""
    draws, taken = torch.Generator().manual_seed(0), 0

    def right(n: int) -> torch.Tensor:
        return (torch.rand(n, generator=draws) < 0.4).double()

    for _ in range(400):
        answers, last = {0.0: right(64)}, 0.0
        for alpha in sorted(ALPHAS, key=abs):
            before = answers[0.0 if alpha < 0 else last]
            step = abs(alpha - last) if alpha > 0 else 0.5
            changed = torch.rand(64, generator=draws) < 1 - math.exp(-0.1 * step)
            answers[alpha] = torch.where(changed, right(64), before)
            last = max(last, alpha)
        found, _ = Acceptance().choose(lambda a, i, j, known=answers: known[a][i:j], ALPHAS)
        taken += found != 0.0
    assert 0.05 < taken / 400 < 0.2


@pytest.mark.parametrize("level", [float("nan"), -3.0])
def test_a_level_that_lets_everything_pass_is_refused(level: float) -> None:
    with pytest.raises(InputError, match="level must be at least 0"):
        Acceptance(level=level)
