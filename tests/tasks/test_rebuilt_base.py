"""The recipe makes the base that is shipped. Slow (50 s on a free core), so alone in its file."""

from __future__ import annotations

import math

from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.tasks.evaluate import evaluate


def test_the_rebuilt_base_is_as_good_as_the_shipped_one() -> None:
    task = base.get("chain")
    encode = tiny.tokenizer()
    rebuilt = evaluate(tiny.train(tiny.RECIPES["chain"]), encode, task, prompts=2000)
    shipped = evaluate(tiny.load("chain")[0], encode, task, prompts=2000)
    # The same prompts and random numbers serve both, so this is wider than the paired error would be.
    assert abs(rebuilt.accuracy - shipped.accuracy) < 3 * math.hypot(rebuilt.se, shipped.se)
    assert rebuilt.greedy is not None
    assert rebuilt.greedy > 0.95
