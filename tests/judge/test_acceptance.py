"""What a search may cost: the bound that is said at the start of a run holds whatever is found."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.judge.acceptance import Acceptance, stages_up_to
from nextrl.judge.paired_search import GroupedScore, Scores

ALPHAS = (-0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
DRAWS = torch.Generator()


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


def searched(
    draw: Callable[[int], Tensor],
    change: float,
    prompts: int,
    group: int = 1,
    *,
    alphas: tuple[float, ...] = ALPHAS,
) -> tuple[float, Scores]:
    """A search among candidates on one line, none better: an answer that changed stays until it does again."""
    answers, last = {0.0: draw(prompts)}, 0.0
    for alpha in sorted(alphas, key=abs):
        before = answers[0.0 if alpha < 0 else last]
        step = abs(alpha - last) if alpha > 0 else 0.5
        changed = torch.rand(prompts, generator=DRAWS) < 1 - math.exp(-change * step)
        answers[alpha] = torch.where(changed, draw(prompts), before)
        last = max(last, alpha)
    return Acceptance(stages_up_to(prompts)).choose(
        GroupedScore(lambda a, i, j: answers[a][i:j], group), alphas
    )


def right(n: int, share: float = 0.4) -> Tensor:
    return (torch.rand(n, generator=DRAWS) < share).double()


def by_prompt(n: int) -> Tensor:
    """Eight answers to each prompt, some of which are harder than others."""
    hard = torch.linspace(0.0, 1.0, n // 8).repeat_interleave(8)
    return (torch.rand(n, generator=DRAWS) < hard).double()


@pytest.mark.parametrize("change", [0.1, 9.0])
@pytest.mark.parametrize("prompts", [2, 4, 64])
def test_chance_takes_a_leap_in_a_tenth_of_all_searches_at_most(prompts: int, change: float) -> None:
    """Also where every candidate answers anew (`change`), so that six have little in common."""
    DRAWS.manual_seed(0)
    taken = sum(searched(right, change, prompts)[0] != 0.0 for _ in range(200))
    assert taken / 200 < 0.16  # a tenth, and three of its standard errors


@pytest.mark.parametrize("alphas", [(1.0,), (1.0, 2.0), ALPHAS])
def test_the_bar_is_not_far_above_what_chance_asks_for(alphas: tuple[float, ...]) -> None:
    DRAWS.manual_seed(0)
    taken = sum(searched(right, 9.0, 64, alphas=alphas)[0] != 0.0 for _ in range(200))
    assert 0.04 < taken / 200 < 0.16


@pytest.mark.parametrize("draw", [by_prompt, lambda n: right(n, 0.03), lambda n: right(n, 0.97)])
def test_chance_with_groups_and_with_rewards_that_seldom_differ(draw: Callable[[int], Tensor]) -> None:
    DRAWS.manual_seed(0)
    taken = sum(searched(draw, 9.0, 64, 8 if draw is by_prompt else 1)[0] != 0.0 for _ in range(200))
    assert taken / 200 < 0.16


@pytest.mark.parametrize(("gain", "prompts", "least"), [(0.2, 128, 0.6), (0.3, 64, 0.6)])
def test_a_leap_that_gains_is_taken(gain: float, prompts: int, least: float) -> None:
    """One of six gains, by what it makes right of what was wrong: a tenth of the other answers change as well."""
    DRAWS.manual_seed(0)
    taken = 0
    for _ in range(100):
        base = right(prompts)
        other = {
            a: torch.where(torch.rand(prompts, generator=DRAWS) < 0.1, right(prompts), base) for a in ALPHAS
        }
        better = torch.rand(prompts, generator=DRAWS) < gain / 0.6
        answers = {0.0: base, **other, 4.0: torch.where(better, torch.ones(prompts).double(), other[4.0])}
        acceptance = Acceptance(stages_up_to(prompts))
        taken += acceptance.choose(lambda a, i, j, known=answers: known[a][i:j], ALPHAS)[0] == 4.0
    assert taken / 100 >= least


def test_what_is_given_as_level_is_the_bar() -> None:
    assert Acceptance(level=0.0).bar(6) == 0.0
    assert Acceptance(level=3.0).bar(6) == 3.0
    assert Acceptance().bar(6) == pytest.approx(2.394, abs=1e-3)  # twelve tries
    assert [Acceptance().fewest(k) for k in (1, 6)] == [3, 5]
    assert Acceptance(level=0.0).fewest(6) == 2
    assert Acceptance((64,)).bar(1) == pytest.approx(1.282, abs=1e-3)


@pytest.mark.parametrize("level", [float("nan"), -3.0, float("inf")])
def test_a_level_that_lets_everything_pass_is_refused(level: float) -> None:
    with pytest.raises(InputError, match="level must be a finite number of standard errors"):
        Acceptance(level=level)
