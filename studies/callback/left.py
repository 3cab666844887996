"""How far leaps forward left the policy, over every decision that the studies recorded: what the guard's bound is for.

    python -m studies.callback.left

KL(candidate || current) in nats per token, on the candidate's own completions, as the search measured it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from studies.folders import STUDIES, parser


def decisions(value: Any) -> Iterator[dict[str, Any]]:
    """Every decision with measured divergences inside a record, however deep."""
    if isinstance(value, dict):
        # Of the present `auto` there are none: what it measures is of windows and steps that were trained.
        if "divergences" in value and "alpha" in value and value.get("scores"):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from decisions(part)


def main() -> None:
    """Print quantiles of accepted and of other candidates."""
    parser(__doc__).parse_args()
    found: dict[str, list[float]] = {"accepted": [], "not accepted": []}
    runs = 0
    for file in sorted(STUDIES.glob("*/raw/**/*.json")):
        made = list(decisions(json.loads(file.read_text())))
        runs += bool(made)
        for decision in made:
            for alpha, nats in decision["divergences"].items():
                kind = "accepted" if float(alpha) == decision["alpha"] else "not accepted"
                if nats is not None and np.isfinite(nats):
                    found[kind].append(nats)
    for kind, values in found.items():
        median, tenth, most = np.quantile(values, [0.5, 0.9, 1.0])
        print(
            f"{kind}: {len(values)} candidates, median {median:.3f}, nine in ten below {tenth:.3f}, most {most:.3f}"
        )
    print(f"{runs} runs")


if __name__ == "__main__":
    main()
