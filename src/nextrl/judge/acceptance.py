"""Which candidate leap is taken: the one rule for every leap that is searched, whoever proposes it.

Candidates are scored on held-out prompts in stages (successive halving), each against staying put on the same prompts
with the same random numbers. One is taken if its gain is so many standard errors of the paired difference (Student's t)
that chance takes one in about a tenth of all searches in which none is better: the best of many looks good by luck, and
so does what is looked at several times. What a leap taken by chance costs is the search and a move that gains
nothing, and the window after it can still take it back. `argmax` is the rule of the papers instead: the best mean,
however small its lead. It now and then takes a winner by noise (docs/predictors.md), and is there to reproduce them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nextrl.errors import InputError
from nextrl.judge.few_samples import normal_of_t
from nextrl.judge.paired_search import Score, Scores, grid_search, refine

CHANCE = 0.1
"""Share of searches in which none is better that may take a candidate all the same."""


@dataclass(frozen=True)
class Acceptance:
    """The rule.

    Attributes:
        stages: ascending numbers of held-out prompts that every candidate, and then the contenders, are scored on.
        level: standard errors of the paired difference by which a candidate must beat staying put, however many there
            are; None for what keeps chance at a tenth (`bar`).
        argmax: take the best mean over all prompts at once, as papers do; `level` is not asked then.
    """

    stages: tuple[int, ...] = (16, 32, 64)
    level: float | None = None
    argmax: bool = False

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or self.stages[0] < 2:
            raise InputError(f"stages must be ascending numbers of prompts from 2 on, not {self.stages}")
        if self.level is not None and not 0.0 <= self.level < math.inf:
            raise InputError(
                f"level must be a finite number of standard errors from 0 on, not {self.level:g}"
            )

    @property
    def prompts(self) -> int:
        """Held-out prompts that a candidate is scored on at most."""
        return self.stages[-1]

    def within(self, rows: int) -> Acceptance:
        """The same rule where only so many held-out prompts are there."""
        return self if rows >= self.prompts else replace(self, stages=stages_up_to(rows))

    def most(self, candidates: int, group: int = 1) -> int:
        """Completions that a search of so many candidates takes at most; of each prompt a whole group is sampled."""

        def cost(start: int, stop: int) -> int:
            return (-(-stop // group) - start // group) * group

        if self.argmax:
            return (1 + candidates) * cost(0, self.prompts)
        first, *later = [cost(start, stop) for start, stop in itertools.pairwise((0, *self.stages))]
        # Two contenders are seen further at each stage, and either may have been left behind at the one before.
        contenders = min(2, candidates) * sum(sum(later[: number + 1]) for number in range(len(later)))
        return (1 + candidates) * first + sum(later) + min(contenders, candidates * sum(later))

    def bar(self, candidates: int) -> float:
        """Standard errors by which one of so many candidates must beat staying put, on the scale of a normal.

        Chance has a try for each candidate (Bonferroni), and half a try more for each stage after the first: a stage
        has the prompts of the one before, and three looks at a quarter, a half and all of them are worth two. Where
        candidates have nothing in common but staying put, simulations take one of one, two or six by chance in
        .04 to .14 of searches; where most answers stay as they are, in fewer (docs/decisions/paired-search.md).
        """
        if self.level is not None:
            return self.level
        tries = max(1, candidates) * (1 + len(self.stages)) / 2
        return statistics.NormalDist().inv_cdf(1 - CHANCE / tries)

    def fewest(self, candidates: int) -> int:
        """Distinct prompts from which on one of so many candidates can be taken: on fewer not even if all agree.

        Two, which an error takes, where a `level` is given, whose height is its owner's affair, or none is asked.
        """
        if self.argmax or self.level is not None:
            return 2
        bar = self.bar(candidates)
        return next(n for n in itertools.count(2) if normal_of_t(math.sqrt(n * (n + 1)), n - 1) > bar)

    def choose(self, score: Score, candidates: Iterable[float]) -> tuple[float, Scores]:
        """The alpha to take (0.0: stay put), and what was seen of each candidate."""
        if self.argmax:
            scores = grid_search(score, candidates, self.prompts)
            return scores.best(0.0), scores
        scores = Scores(score)
        for alpha in candidates:
            scores.extend(alpha, self.stages[0])
        bar = self.bar(sum(alpha != 0.0 for alpha in {*scores.rewards, *scores.refused}))
        # A lead of less than one standard error is looked at further, however low the bar is.
        refine(scores, self.stages, max(bar, 1.0))
        return scores.best(bar), scores


def stages_up_to(prompts: int) -> tuple[int, ...]:
    """The stages of a search that ends at `prompts`: a quarter, a half, all."""
    return tuple(sorted({max(2, prompts // 4), max(2, prompts // 2), prompts}))
