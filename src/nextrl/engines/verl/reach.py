"""The length of a leap that moves the policy by a wanted divergence, found by measuring a few lengths."""

from __future__ import annotations

import math

from nextrl.judge.window import Diverge

LONGEST = 1e4  # windows; a factor's change of 1e-4 of its size is all that float32 leaves of a longer one
_TINY = 1e-12  # a divergence below this is rounding


def reaching(diverge: Diverge, goal: float, moved: float) -> float:
    """The alpha, to 3 digits, that moves the policy by about `goal`: by 0.67 to 1.5 times as much.

    Near 0 the divergence grows with alpha squared, which gives the first guess. Each guess is measured and corrected
    by what was found, since the rule fails further out and where `moved` is mere rounding. Once one alpha is known to
    be too short and another too long, the next guess is their geometric mean. Where no guess hits the goal, the
    answer is the longest alpha that was measured to be too short.

    Args:
        diverge: alpha -> divergence, nats per token.
        goal: the divergence that is wanted.
        moved: the divergence of the window itself, alpha -1.
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
