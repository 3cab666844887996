"""EffOPD's leaps: at steps 1, 2, 4, 8 ... further along the way since the last of them, while held-out prompts improve.

The nearest relative of `auto` in print, and a control for it (2605.11739; from a third party's summary): at a look
`W += a (W - W_prev)` with a = 2, then again, so that the displacement since the last look is 3, 5, 7, 9 and 11 times as
long, at most five tries; the first try that does not improve a small validation set ends it and is taken back. What the
guard of this package refuses (`judge.guard`) counts as no improvement.
"""

from __future__ import annotations

from functools import partial

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.live_weights import along
from nextrl.engines.policies.base import LeapingView, LeapsOnly, agreed
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.decision import Decision, searched
from nextrl.judge.paired_search import Score, Scores
from nextrl.judge.window import Window

TRIES = (2.0, 4.0, 6.0, 8.0, 10.0)
"""alpha of the five tries: what is added to the displacement since the last look, in lengths of it."""


class EffOpd(LeapsOnly):
    """The policy; it never changes the learning rate, and what a leap does later takes nothing back.

    Args:
        prompts: of the validation set, the same number for every try.
    """

    def __init__(self, prompts: int = 64) -> None:
        self.method, self.every, self.steps_of_one = "effopd", 1, 1
        self.acceptance = self._given = Acceptance((prompts,), argmax=True)
        self.searches, self.keeps_history = True, False
        self.fall_errors = float("inf")

    def begin(self, rows: int) -> None:
        """As many validation prompts as there are."""
        self.acceptance = self._given.within(rows)

    def announced(self, steps: int, per_step: int, group: int) -> str:
        """What the searches cost at most."""
        looks = max(0, steps).bit_length()
        most = looks * (len(TRIES) + 1) * self.acceptance.prompts
        return f"effopd: {looks} searches take at most {most / max(1, steps * per_step):.0%} of this run's completions"

    def ends_window(self, window: Window, began: int, fresh: bool) -> bool:
        """At powers of two."""
        return window.step > 0 and window.step & (window.step - 1) == 0

    def decide(self, view: LeapingView) -> tuple[Decision, Candidate]:
        """The longest of the tries before the first that gains nothing."""
        candidate: Candidate = partial(along, view.start, view.end)
        return agreed(view.ranks, self, self._choose, view.score(candidate)), candidate

    def _choose(self, score: Score) -> Decision:
        scores, best = Scores(score), 0.0
        for alpha in TRIES:
            scores.extend(alpha, self.acceptance.prompts)
            if not scores.gain(alpha) > (scores.gain(best) if best else 0.0):
                break
            best = alpha
        return searched(self.method, best, scores)
