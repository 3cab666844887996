"""Arguments that a user may plausibly give wrongly: one line each, which names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import synthetic_runs as synthetic
from nextrl.errors import InputError
from nextrl.extrapolators import LowRank, NewDirection, get
from nextrl.judge.advise import advise
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

MODULE = next(iter(synthetic.MODULES))


def run() -> Trajectory:
    return synthetic.run(synthetic.walk(2.0))


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rank as text": (
        lambda p: leap(run(), "secant", 10).save_adapter(p / "o", rank="8"),
        "rank must be a whole number",
    ),
    "rank of a half": (
        lambda p: leap(run(), "secant", 10).save_adapter(p / "o", rank=1.5),
        "rank must be a whole",
    ),
    "no folder": (
        lambda p: leap(run(), "secant", 10).save_adapter(None),
        "must be named by a path, not None",
    ),
    "no merged folder": (
        lambda p: leap(run(), "secant", 10).save_merged(None, p),
        "must be named by a path, not None",
    ),
    "window as text": (lambda p: run().persistence("50"), "window must be a whole number"),
    "step as text": (lambda p: run().delta(MODULE, "10", 20), "a step must be a whole number, not '10'"),
    "a view of nothing": (lambda p: run().upto(5), "no checkpoint up to step 5; the first is at step 10"),
    "another module": (lambda p: leap(run(), "window", 10).delta("zz"), "no module 'zz' in this trajectory"),
    "another module's direction": (lambda p: leap(run(), "dmd", 10).delta("zz"), "no module 'zz' in this"),
    "accuracies as a list": (
        lambda p: get("alpharl", accuracy=[0.1, 0.2]).fit(run(), 10),
        "accuracy must map steps to values",
    ),
    "another kind of picture": (
        lambda p: backtest(run(), 20, "secant").plot(p / "p.xyz"),
        "must end in .png, .svg",
    ),
    "a backtest from the future": (
        lambda p: advise(run().upto(100), tested=backtest(run(), 20, "secant")),
        "tested was measured at step 160, which this run .steps 10 to 100. does not have",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_line(case: str, tmp_path: Path) -> None:
    act, words = CASES[case]
    with pytest.raises(InputError, match=words) as caught:
        act(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_whole_rank_of_another_kind_is_taken(tmp_path: Path) -> None:
    leap(run(), "secant", 10).save_adapter(tmp_path / "out", rank=8.0)


def test_what_holds_tensors_compares_and_hashes_as_objects_do() -> None:
    one, other = run(), run()
    pairs = [(one, other), (leap(one), leap(one)), (one.weight(10, MODULE), one.weight(10, MODULE))]
    for left, right in [*pairs, (one.checkpoints[0], other.checkpoints[0])]:
        assert left == left
        assert left != right
        assert len({left, right, left}) == 2


def test_a_direction_can_be_made_from_public_names() -> None:
    left, right = (one.weight(10, MODULE) for one in (run(), run()))
    made = NewDirection({MODULE: LowRank(left.left, right.right)})
    assert made.delta(MODULE, 2.0).shape == left.shape
