"""A run that begins with a leap: the leap is where it starts, for every method and every statistic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leapt_runs import MODULE, leapt_run
from lora_runs import write_run
from nextrl.checkpoints import open_run
from nextrl.cli.inspect import describe
from nextrl.errors import InputError
from nextrl.extrapolators import get, names
from nextrl.judge.advice_features import features
from nextrl.judge.analysis import analyze
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import leap
from nextrl.trajectory import trainer_log
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.persistence import measured_persistence
from nextrl.trajectory.trajectory import Trajectory

FAST = {"next-paper": {"epochs": 5}, "next": {"updates": 20}, "nowcast": {"updates": 20}}


def added(traj: Trajectory, name: str, horizon: int = 100, **params: object) -> float:
    """Steps along the line that a leap from the last checkpoint adds."""
    step = traj.delta(MODULE, traj.steps[-2], traj.steps[-1])
    moved = get(name, **params).fit(traj, horizon).delta(MODULE)
    return float(moved.inner(step) / step.square) * (traj.steps[-1] - traj.steps[-2])


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "first-update",
        "rank1-linear",
        "dmd",
        "secant",
        "factors",
        "relex",
        "relex-pinned",
        "ols",
        "window",
    ],
)
def test_a_leap_of_100_on_a_straight_line_adds_100(name: str, tmp_path: Path) -> None:
    assert added(Trajectory.load(leapt_run(tmp_path)), name) == pytest.approx(100, rel=1e-4)


def test_quadratic_does_not_take_the_leap_for_a_window_of_training(tmp_path: Path) -> None:
    """A parabola needs twice the horizon; asked for more it refuses, as it does at the start of any run."""
    traj = Trajectory.load(leapt_run(tmp_path))
    assert added(traj, "quadratic", horizon=50) == pytest.approx(50, rel=1e-4)
    with pytest.raises(InputError, match="a horizon of 50 steps would work"):
        added(traj, "quadratic", horizon=100)


@pytest.mark.parametrize("name", names())
def test_a_method_does_not_care_where_counting_begins(name: str, tmp_path: Path) -> None:
    """The same stretch counted from the leap as 0 gives the same leap."""
    folders = leapt_run(tmp_path, wobble=0.02)
    traj = Trajectory.load(folders)
    again = Trajectory.load({step - 100: folder for step, folder in folders.items()}, start=0)
    assert known_steps(again)[0] == 0
    params = dict(FAST.get(name, {}))
    moved = []
    for run, since in ((traj, 100), (again, 0)):
        given = {"accuracy": {s: (s - since) / 300 for s in run.steps}} if name == "alpharl" else {}
        moved.append(get(name, **params, **given).fit(run, 30).delta(MODULE).dense())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-9, atol=1e-12)


def test_statistics_count_from_the_leap(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path, wobble=0.02)
    traj = Trajectory.load(folders)
    again = Trajectory.load({step - 100: folder for step, folder in folders.items()}, start=0)
    assert (traj.start, known_steps(traj)[0], again.start) == (100, 100, 0)
    here, there = measured_persistence(traj, [20]), measured_persistence(again, [20])
    assert {t - 100: c for t, c in here[20].items()} == pytest.approx(there[20])
    one, other = analyze(traj), analyze(again)
    assert set(one.persistence) == set(other.persistence)
    assert {t - 100: c for t, c in one.persistence[10].items()} == pytest.approx(other.persistence[10])
    assert {t - 100: c for t, c in one.predictability.items()} == pytest.approx(other.predictability)
    assert one.drift.squares == pytest.approx(other.drift.squares)
    assert {t - 100: s for t, s in one.energy_share["global"][1].items()} == pytest.approx(
        other.energy_share["global"][1]
    )
    scores = [backtest(run, 20, ["secant", "linear"]) for run in (traj, again)]
    assert scores[0].methods["linear"].mean("skill") == pytest.approx(
        scores[1].methods["linear"].mean("skill")
    )
    assert features(traj).excess == pytest.approx(features(again).excess)


def test_rewards_of_before_the_leap_are_left_out(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path)
    log = [{"step": step, "reward": 0.1 if step <= 100 else 0.7} for step in range(1, 201)]
    (folders[200] / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    traj = Trajectory.load(folders)
    means = trainer_log.reward_by_checkpoint(traj, trainer_log.rewards(traj))
    assert means == pytest.approx(dict.fromkeys(range(110, 201, 10), 0.7))
    assert features(traj).first == pytest.approx(0.7)


def test_inspect_asks_for_no_initial_adapter_where_a_leap_is_first(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path)
    for folder in folders.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa"}))
    assert Trajectory.load(folders).knows_start
    assert describe(open_run(folders))["problems"] == []
    del folders[100]
    assert "step 0 is not there" in describe(open_run(folders))["problems"][0]


def test_what_begins_a_stretch_and_what_does_not(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path)
    later = {s: f for s, f in folders.items() if s > 100}
    # A run whose first checkpoint is far from zero and nobody says why: W_0 is the base model, as ever.
    assert Trajectory.load(later).start == 0
    assert known_steps(Trajectory.load(later))[:2] == (0, 110)
    # What comes before the leap is no part of what was trained from it.
    whole = {s: tmp_path / f"checkpoint-{s}" for s in (90, 110)} | {100: folders[100]}
    traj = Trajectory.load(whole)
    assert (traj.start, traj.steps) == (100, (100, 110))
    assert "checkpoint-90: comes before the leap that wrote step 100" in traj.skipped[0]
    assert Trajectory.load(whole, start=0).steps == (90, 100, 110)  # unless the caller knows better
    # Staying put and a zero alpha are no leaps.
    for name, alpha in (("none", 1.0), ("secant", 0.0)):
        traj = Trajectory.load(later).upto(150)
        leap(traj, name, horizon=10, alpha=alpha).save_adapter(tmp_path / "still")
        assert Trajectory.load({150: tmp_path / "still", 160: later[160]}).start == 0


def test_a_view_without_its_start_does_not_know_it(tmp_path: Path) -> None:
    traj = Trajectory.load(leapt_run(tmp_path)).at([150, 160, 200])
    assert known_steps(traj) == (150, 160, 200)
    with pytest.raises(InputError, match="began at step 100, whose checkpoint is not there"):
        traj.gram(MODULE)
    with pytest.raises(InputError, match="no checkpoint at step 0"):
        traj.weight(0, MODULE)


def test_what_comes_before_a_given_start_is_left_out(tmp_path: Path) -> None:
    traj = Trajectory.load(leapt_run(tmp_path), start=120)
    assert (traj.start, traj.steps) == (120, tuple(range(120, 201, 10)))
    assert [line.split(": ")[1] for line in traj.skipped] == ["comes before step 120, the start"] * 2
    line = traj.delta(MODULE, 120, 200)
    assert float(traj.gram(MODULE)[-1, -1]) == pytest.approx(float(line.square))
    with pytest.raises(InputError, match=r"no usable checkpoint.*comes before step 500, the start"):
        Trajectory.load(leapt_run(tmp_path / "again"), start=500)
    with pytest.raises(InputError, match="cannot start at step 120"):
        Trajectory(Trajectory.load(leapt_run(tmp_path / "more")).checkpoints, start=120)


def test_some_steps_of_a_run_are_counted_from_where_it_began(tmp_path: Path) -> None:
    """An adapter that training began from, or a leap: without it the base model was taken for W_0."""
    write_run(tmp_path / "run", steps=(0, 10, 20, 30, 40))
    whole, some = Trajectory.load(tmp_path / "run"), Trajectory.load(tmp_path / "run", steps=[20, 40])
    assert some.steps == (0, 20, 40)
    module = whole.modules[0]
    torch.testing.assert_close(some.gram(module), whole.gram(module)[::2, ::2])
    assert Trajectory.load(tmp_path / "run", steps=[20, 40], start=10).steps == (10, 20, 40)
    folders = leapt_run(tmp_path)
    several = Trajectory.load(folders, steps=[150, 160])
    assert (several.start, several.steps) == (100, (100, 150, 160))
    assert Trajectory.load(folders, steps=[100]).steps == (100,)


def test_steps_of_another_kind_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert Trajectory.load(tmp_path, steps=20).steps == (20,)
    with pytest.raises(InputError, match="each of steps must be a whole number"):
        Trajectory.load(tmp_path, steps=["20"])
    with pytest.raises(InputError, match="start must be a whole number"):
        Trajectory.load(tmp_path, start="x")


def test_a_damaged_note_beside_the_first_checkpoint_is_named(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path)
    (folders[100] / "nextrl.json").write_text("{")
    with pytest.raises(InputError, match=r"leap-100/nextrl\.json: not readable as JSON"):
        Trajectory.load(folders)
    assert describe(open_run(folders))["problems"] == [str(p) for p in open_run(folders).problems if p.fatal]
    traj = Trajectory.load(folders, skip_bad_checkpoints=True)
    assert traj.steps[0] == 110
    assert "nextrl.json" in traj.skipped[0]


WRONG_NOTES = [
    "[]",
    "null",
    "{}",
    '{"method": "secant"}',
    '{"alpha": 1.0}',
    '{"method": null, "alpha": 2}',
    '{"method": "secant", "alpha": "0"}',
    '{"method": "secant", "alpha": true}',
    '{"method": "secant", "alpha": NaN}',
    '{"method": 7, "alpha": 1}',
]


@pytest.mark.parametrize("note", WRONG_NOTES)
def test_a_note_that_does_not_say_whether_a_leap_wrote_it_is_damaged(tmp_path: Path, note: str) -> None:
    write_run(tmp_path, steps=(10, 20, 30, 40))
    (tmp_path / "checkpoint-40" / "nextrl.json").write_text(note)
    facts = describe(open_run(tmp_path))
    assert facts["steps"] == [10, 20, 30]
    assert "checkpoint-40/nextrl.json: does not say by method and alpha" in facts["problems"][0]
    with pytest.raises(InputError, match=r"checkpoint-40/nextrl\.json: does not say"):
        Trajectory.load(tmp_path)


@pytest.mark.parametrize("place", ["in the middle", "at the end"])
def test_a_leap_among_the_checkpoints_is_not_taken_for_training(tmp_path: Path, place: str) -> None:
    write_run(tmp_path, steps=(10, 20, 30, 40, *((90, 100) if place == "in the middle" else ())))
    made = leap(Trajectory.load(tmp_path, steps=[10, 20, 30, 40]), "secant", horizon=10)
    made.save_adapter(tmp_path / "checkpoint-80")
    traj, facts = Trajectory.load(tmp_path), describe(open_run(tmp_path))
    steps = (80, 90, 100) if place == "in the middle" else (10, 20, 30, 40)
    assert traj.steps == tuple(facts["steps"]) == steps
    assert traj.start == (80 if place == "in the middle" else 0)
    assert facts["skipped"] == list(traj.skipped)
    assert len(traj.skipped) == (4 if place == "in the middle" else 1)
    assert facts["problems"] == [] or "follows step 80" in facts["problems"][0]
    assert Trajectory.load({80: tmp_path / "checkpoint-80"}).steps == (80,)


def test_a_damaged_leap_at_the_beginning_is_not_made_the_base(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path)
    weights = folders[100] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    traj = Trajectory.load(folders, skip_bad_checkpoints=True)
    assert traj.steps[0] == 110
    with pytest.raises(InputError, match="began at step 100, whose checkpoint is not there"):
        traj.gram(MODULE)
    facts = describe(open_run(folders), skip_bad_checkpoints=True)
    assert "begins with the leap that wrote step 100" in facts["problems"][0]
