"""What a search may cost: the bound that is said at the start of a run holds whatever is found."""

from __future__ import annotations

import pytest
import torch

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
