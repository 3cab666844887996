"""The length of a leap that moves the policy by a wanted divergence, found by measuring a few lengths."""

from __future__ import annotations

import math

from nextrl.judge.window import Diverge

LONGEST = 1e4  # windows; a factor's change of 1e-4 of its size is all that float32 leaves of a longer one
_TINY = 1e-12  # a divergence below this is rounding


def reaching(diverge: Diverge, goal: float, moved: float) -> float:
    """The alpha, to 3 digits, that moves the policy by about `goal` (to half of it either way).

    Divergence grows with alpha squared near 0; further out, and where `moved` is too small to be more than rounding,
    a guess is corrected by what it measures, and halved in between once it is known to lie between two. Where it
    leaps from far below the goal to far above, the longest alpha that was measured below is the answer.
    """
    alpha, below, above = math.sqrt(goal / max(moved, _TINY)), 0.0, math.inf
    for _ in range(8):
        alpha = min(alpha, LONGEST)
        found = diverge(alpha)
        if 0.67 * goal < found < 1.5 * goal:
            return float(f"{alpha:.3g}")
        below, above = (alpha, above) if found < goal else (below, alpha)
        guess = alpha * min(10.0, max(0.1, math.sqrt(goal / max(found, _TINY))))
        alpha = math.sqrt(below * above) if below > 0.0 and above < math.inf else guess
    # Not rounded up: what lies beyond was measured to be too far.
    return min(float(f"{below:.3g}"), below) if below > 0.0 else float(f"{alpha:.3g}")
