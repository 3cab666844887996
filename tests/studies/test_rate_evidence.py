"""The ranges that advice quotes for the rate, counted again from the published records."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from nextrl.judge.advice import RATE_EVIDENCE, RateEvidence
from nextrl.judge.advise import decide
from studies.advice.table import END, MARGIN, read
from studies.folders import published


def counted() -> dict[str, RateEvidence]:
    """Kind of run -> the rates within MARGIN of the best one, as multiples of the run's own, over all cases."""
    folder = published("advice")
    good: dict[str, list[float]] = {}
    for path in folder.glob("*.json"):
        ends = defaultdict(list)
        for row in json.loads(path.read_text()):
            ends[row["rate"]].append(row["accuracy"][END])
        means = {rate: sum(values) / len(values) for rate, values in ends.items()}
        good[path.stem] = [rate for rate, mean in means.items() if mean >= max(means.values()) - MARGIN]
    found = defaultdict(list)
    for case in read(folder):
        advice = decide(case.seen)
        if advice.factor is None:
            continue
        down = "ruined" if advice.factor < 0.3 else "too high"
        found[down if advice.factor < 1 else advice.regime].append([r / case.rate for r in good[case.task]])
    return {
        kind: RateEvidence(min(map(min, several)), max(map(max, several)), len(several))
        for kind, several in found.items()
    }


def test_the_quoted_ranges_are_the_records_own() -> None:
    seen = counted()
    assert set(seen) == set(RATE_EVIDENCE)
    for kind, quoted in RATE_EVIDENCE.items():
        assert seen[kind].cases == quoted.cases
        assert (seen[kind].lowest, seen[kind].highest) == pytest.approx((quoted.lowest, quoted.highest))
