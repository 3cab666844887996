"""`nextrl.leap`, `nextrl.advise` and `nextrl.backtest` take a run or its folder, and refuse all else in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nextrl
import synthetic_runs as synthetic
from nextrl.errors import LONGEST

VERBS: dict[str, Callable[..., Any]] = {
    "leap": lambda run, **given: nextrl.leap(run, **{"method": "secant", **given}),
    "advise": nextrl.advise,
    "backtest": lambda run, **given: nextrl.backtest(run, **{"methods": "secant", **given}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(
        tmp_path_factory.mktemp("place") / "run", synthetic.line, synthetic.noisy(lambda t: 0.3)
    )


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(nextrl.InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= LONGEST + 5
    return message


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_is_as_good_as_its_trajectory(verb: str, folder: Path) -> None:
    loaded = repr(VERBS[verb](nextrl.Trajectory.load(folder)))
    assert repr(VERBS[verb](folder)) == repr(VERBS[verb](str(folder))) == loaded


@pytest.mark.parametrize("verb", VERBS)
def test_a_list_file_is_as_good_as_the_folder_it_lists(verb: str, folder: Path, tmp_path: Path) -> None:
    steps = nextrl.Trajectory.load(folder).steps
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({str(s): str(folder / f"checkpoint-{s}") for s in steps if s}))
    assert repr(VERBS[verb](listed)) == repr(VERBS[verb](folder))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("run", [None, 7, 2.5, b"runs/x", ["runs/x"], object(), nextrl.Trajectory, ""])
def test_what_is_no_run_is_one_line(verb: str, run: object) -> None:
    one_line(lambda: VERBS[verb](run))


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_is_not_there_is_one_line(verb: str, tmp_path: Path) -> None:
    assert "nowhere" in one_line(lambda: VERBS[verb](tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("verb", "given", "says"),
    [
        ("leap", {"horizon": 2.5}, "horizon must be a whole number, not 2.5"),
        ("leap", {"horizon": "50"}, "horizon must be a whole number, not '50'"),
        ("leap", {"horizon": True}, "horizon must be a whole number, not True"),
        ("leap", {"horizon": 0}, "horizon must be at least 1, not 0"),
        ("leap", {"alpha": "auto"}, "alpha must be a number, not 'auto'"),
        ("leap", {"alpha": float("nan")}, "alpha must be a number"),
        ("leap", {"at": "last"}, "at must be a whole number, not 'last'"),
        ("leap", {"seed": -1}, "seed must be at least 0, not -1"),
        ("leap", {"method": 3}, "a method is named by text"),
        ("leap", {"method": ["secant"]}, "a method is named by text"),
        (
            "backtest",
            {"horizon": 2.5},
            "horizon must be a whole number, not 2.5",
        ),
        ("backtest", {"horizon": "50"}, "horizon must be a list of numbers, not '50'"),
        ("backtest", {"horizon": [10, 0]}, "each of horizon must be at least 1, not 0"),
        ("backtest", {"horizon": []}, "horizon is empty"),
        ("backtest", {"max_origins": 0}, "max_origins must be at least 1, not 0"),
        ("backtest", {"methods": 5}, "methods must be names, or extrapolators, not 5"),
        ("backtest", {"methods": [5]}, "each of methods must be a name, or an extrapolator, not 5"),
        ("advise", {"tested": "factors"}, "tested must be what nextrl.backtest returned"),
    ],
)
def test_what_is_of_another_kind_is_one_line(
    verb: str, given: dict[str, object], says: str, folder: Path
) -> None:
    assert says in one_line(lambda: VERBS[verb](nextrl.Trajectory.load(folder), **given))


def test_numbers_of_any_library_are_numbers(folder: Path) -> None:
    given = {"horizon": np.int64(20), "alpha": np.float32(2.0), "at": 100.0, "seed": np.int64(1)}
    made = nextrl.leap(folder, "secant", **given)
    assert (made.horizon, made.alpha, made.from_step) == (20, 2.0, 100)
    assert nextrl.backtest(folder, np.int64(20), "secant").horizon == 20
