"""Costs net of everything, on records written by hand."""

from __future__ import annotations

import math
import statistics
from random import Random
from typing import Any

import pytest

from nextrl.runs import comparison
from nextrl.runs.arm import ArmRecord
from nextrl.runs.result import Spent

PER_STEP = 128


def record(name: str, accuracy: list[float], steps: list[int], **more: Any) -> ArmRecord:
    """Costs 128 completions and 0.5 s a step, plus what `extra` says was searched before the last evaluation."""
    extra = more.pop("extra", 0)
    return ArmRecord(
        name=name,
        kind=more.pop("kind", "control"),
        label=name,
        steps=steps,
        accuracy=accuracy,
        se=[0.01] * len(steps),
        greedy=accuracy,
        completions=[s * PER_STEP + (extra if s else 0) for s in steps],
        seconds=[s * 0.5 for s in steps],
        learning_rate=[1e-4] * len(steps),
        **more,
    )


PLAIN = record("plain", [0.3, 0.5, 0.7], [0, 100, 200], kind="plain")


def test_reach_is_the_first_evaluation_at_least_as_good() -> None:
    up_and_down = record("x", [0.3, 0.7, 0.6, 0.9], [0, 50, 100, 150])
    at = comparison.reach(up_and_down, 0.7)
    assert at == Spent(steps=50, completions=50 * PER_STEP, seconds=25.0)
    assert comparison.reach(up_and_down, 0.95) is None


def test_saved_charges_the_search() -> None:
    fast = record("auto", [0.3, 0.7], [0, 50], extra=10 * PER_STEP, search_completions=10 * PER_STEP)
    saved = comparison.saved(fast, PLAIN, 0.7, PER_STEP).as_dict()
    assert saved["completions"] == pytest.approx(1 - 60 / 200)
    assert saved["steps"] == pytest.approx(1 - 60 / 200)
    assert saved["seconds"] == pytest.approx(1 - 50 / 200)


def test_what_never_reached_the_target_saved_nothing_that_can_be_named() -> None:
    slow = record("slow", [0.3, 0.4], [0, 200])
    assert set(comparison.saved(slow, PLAIN, 0.7, PER_STEP).as_dict().values()) == {None}


def test_a_slower_arm_saves_less_than_nothing() -> None:
    assert comparison.saved(record("s", [0.3, 0.7], [0, 300]), PLAIN, 0.7, PER_STEP).steps == -0.5


def test_an_arm_that_is_the_plain_run_saves_nothing_on_average() -> None:
    """Evaluations scatter: a curve that has flattened touches its own end early, in the plain run as in any other."""
    random, steps = Random(0), list(range(0, 410, 10))

    def run(name: str) -> ArmRecord:
        curve = [0.97 - 0.6 * math.exp(-step / 30) + random.gauss(0.0, 0.005) for step in steps]
        return record(name, curve, steps)

    found = []
    for _ in range(400):
        plain = run("plain")
        found.append(comparison.saved(run("same"), plain, plain.accuracy[-1], PER_STEP).completions)
    reached = [share for share in found if share is not None]
    assert abs(statistics.median(reached)) < 0.1


def test_after_a_leap() -> None:
    arm = record("next", [0.5, 0.6, 0.7], [100, 150, 200])
    assert comparison.after(arm, 100).as_dict() == {"leap": 0.5, "plus50": 0.6, "plus100": 0.7}
    assert comparison.after(arm, 150).as_dict() == {"leap": 0.6, "plus50": 0.7, "plus100": None}


def test_costs_keep_fit_and_search_apart() -> None:
    arm = record("next", [0.5], [100], fit_seconds=3.0, search_completions=256, search_seconds=5.0)
    assert comparison.costs(arm, PER_STEP).as_dict() == {
        "fit_seconds": 3.0,
        "search_completions": 256,
        "search_seconds": 2.0,
        "step_equivalents": 2.0,
    }


def test_leaps_say_which_were_accepted() -> None:
    asked = {"step": 100, "alpha": 0.0, "reason": "", "horizon": 50, "learning_rate": 1e-4}
    [single] = comparison.leaps(record("next", [0.5], [100], decisions=[asked]))
    wanted = {"alpha": 0.0, "step": 100, "learning_rate": 1e-4, "accepted": False}
    assert {key: getattr(single, key) for key in wanted} == wanted
    tried = [(8.0, {"0": 0.5}), (0.0, {"0": 0.5}), (0.0, {}), (-1.0, {"0": 0.1})]
    auto = record(
        "auto", [0.5], [0], decisions=[{"step": 10, "alpha": a, "reason": "", "scores": s} for a, s in tried]
    )
    assert [entry.accepted for entry in comparison.leaps(auto)] == [True, False, False, True]
    undone = {"step": 10, "alpha": -1.0, "reason": "it did harm", "back": "step"}
    [entry] = comparison.leaps(record("auto", [0.5], [0], decisions=[undone]))
    assert not entry.accepted
    assert not entry.taken
    assert not entry.model_copy(update={"accepted": True}).taken  # so earlier versions wrote it
    quiet = record(
        "next", [0.5], [0], decisions=[{"step": 10, "method": "next", "alpha": 0.0, "reason": "not due"}]
    )
    assert comparison.leaps(quiet) == []
    back = {"step": 20, "alpha": 0.0, "reason": "rolled back", "rolled_back": 10}
    assert [entry.reason for entry in comparison.leaps(record("auto", [0.5], [0], decisions=[back]))] == [
        "rolled back"
    ]
    assert comparison.leaps(PLAIN) == []


def test_the_tuned_rate_is_the_first_to_reach_the_target() -> None:
    arms = {
        "plain": PLAIN,
        "lr-a": record("lr-a", [0.3, 0.7, 0.71], [0, 50, 100]),
        "lr-b": record("lr-b", [0.3, 0.6, 0.99], [0, 50, 100]),
    }
    assert comparison.best_rate(arms, ["lr-a", "lr-b"], 0.7) == "lr-a"
    assert comparison.best_rate(arms, ["lr-a", "lr-b"], 0.999) == "lr-b"
    assert comparison.best_rate(arms, [], 0.7) is None


def test_a_sweep_is_charged_for_all_its_runs_up_to_the_winner() -> None:
    arms = {
        "plain": PLAIN,
        "lr-a": record("lr-a", [0.3, 0.7], [0, 50]),
        "lr-b": record("lr-b", [0.3, 0.4], [0, 50]),
    }
    charged = comparison.sweep_charged(arms, ["lr-a", "lr-b"], 0.7, PER_STEP)
    assert charged.as_dict() == {"steps": 0.5, "completions": 0.5, "seconds": 0.5}
    missed = comparison.sweep_charged(arms, ["lr-b"], 0.7, PER_STEP)
    assert set(missed.as_dict().values()) == {None}
