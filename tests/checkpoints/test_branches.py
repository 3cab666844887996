"""Checkpoints of an abandoned branch, which a run that was resumed from an earlier one left behind."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_runs import write_run
from nextrl.checkpoints import branches, open_run
from nextrl.checkpoints.trainer_folder import STATE
from nextrl.errors import InputError
from nextrl.trajectory.trajectory import Trajectory

STEPS = (10, 20, 30, 40, 50)
NAN = float("nan")


def entries(steps: Iterable[int], branch: int = 0) -> list[dict[str, Any]]:
    """What a trainer logs at every fifth step; from one branch to another the reward differs."""
    return [{"step": t, "loss": 0.1, "reward": t / 100 + branch, "learning_rate": 1e-5} for t in steps]


def log_of(step: int, old: bool = False, since: int = 20) -> list[dict[str, Any]]:
    """The log of a branch that parted from the other after `since`."""
    return entries(range(5, min(step, since) + 1, 5)) + entries(range(since + 5, step + 1, 5), int(old))


def run_with(
    root: Path,
    logs: Mapping[int, Sequence[object]],
    order: Sequence[int] | None = None,
    *,
    indent: int | None = 2,
) -> Path:
    """A run whose trainers' logs are these, written in an order of steps; None: in that of the steps."""
    write_run(root, steps=tuple(logs))
    for time, step in enumerate(order or sorted(logs)):
        state = {"best_metric": None, "global_step": step, "log_history": logs[step], "max_steps": 100}
        path = root / f"checkpoint-{step}" / STATE
        path.write_text(json.dumps(state, indent=indent))
        os.utime(path, (1e9 + time, 1e9 + time))
    return root


def astray(run: Path) -> list[int | None]:
    return [problem.step for problem in open_run(run).problems if problem.path.name == STATE]


@pytest.mark.parametrize("indent", [2, None], ids=["as transformers writes it", "on one line"])
def test_what_the_abandoned_branch_left_behind_is_named_and_left_out(
    tmp_path: Path, indent: int | None
) -> None:
    """Resumed from 20, now at 30: 40 and 50 are of the branch that was given up."""
    logs = {step: log_of(step, old=step > 30) for step in STEPS}
    run = run_with(tmp_path, logs, (10, 20, 40, 50, 30), indent=indent)
    assert astray(run) == [40, 50]
    with pytest.raises(
        InputError, match=r"checkpoint-40/trainer_state.json: step 40 is of another branch than"
    ) as no:
        Trajectory.load(run)
    assert "step 30: its log has reward 1.25 at step 25, there it is 0.25; leave it out or move it" in str(
        no.value
    )
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == (10, 20, 30)
    assert Trajectory.load(run, steps=[10, 20, 40, 50]).steps == (10, 20, 40, 50)


def test_branches_are_told_apart_beside_named_adapters_too(tmp_path: Path) -> None:
    """PEFT saves a named adapter as checkpoint-N/policy/, the trainer its log as checkpoint-N/trainer_state.json."""
    run = run_with(tmp_path, {s: log_of(s, old=s > 30) for s in STEPS}, (10, 20, 40, 50, 30))
    named = {}
    for step in STEPS:
        folder = run / f"checkpoint-{step}" / "policy"
        folder.mkdir()
        for path in list(folder.parent.glob("adapter_*")):
            path.rename(folder / path.name)
        named[step] = folder
    assert [problem.step for problem in open_run(named).problems] == [40, 50]
    with pytest.raises(InputError, match=r"checkpoint-40/trainer_state.json: step 40 is of another branch"):
        Trajectory.load(named)


def test_a_branch_that_saves_at_other_steps_has_overtaken_the_old_one(tmp_path: Path) -> None:
    logs = {step: log_of(step, old=step in (30, 50)) for step in (10, 20, 30, 40, 50, 60)}
    run = run_with(tmp_path, logs, (10, 20, 30, 50, 40, 60))
    assert astray(run) == [30, 50]
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == (10, 20, 40, 60)


@pytest.mark.parametrize(
    "order",
    [(10, 20, 30, 40, 50), (50, 40, 30, 20, 10), (10, 50, 20, 40, 30)],
    ids=["by name", "backwards", "anyhow"],
)
def test_where_the_times_do_not_tell_no_branch_is_preferred(tmp_path: Path, order: Sequence[int]) -> None:
    """A copy's times are those of the copying."""
    run = run_with(tmp_path, {step: log_of(step, old=step > 30) for step in STEPS}, order)
    assert astray(run) == [30, 40, 50]
    with pytest.raises(InputError, match=r"the files' times do not tell which the run went on with; move"):
        Trajectory.load(run)
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == (10, 20)


BY_NAME = (10, 100, 20, 200, 30, 300, 40, 50, 60, 70, 80, 90)


@pytest.mark.parametrize(
    "order", [BY_NAME, BY_NAME[::-1], (10, 100, 30, 20, 200, 300, 40, 60, 50, 70, 80, 90)]
)
@pytest.mark.parametrize("since", [0, 80], ids=["from the beginning", "from 80"])
def test_a_copy_in_the_order_of_names_does_not_make_the_run_the_abandoned_branch(
    tmp_path: Path, order: Sequence[int], since: int
) -> None:
    """checkpoint-90 is what was abandoned, and the last to be copied."""
    logs = {step: log_of(step, old=step == 90, since=since) for step in BY_NAME}
    run = run_with(tmp_path, logs, order)
    with pytest.raises(InputError, match=r"the files' times do not tell which the run went on with"):
        Trajectory.load(run)
    assert set(astray(run)) >= {90, 100, 200, 300}


def test_two_left_of_a_run_that_were_copied_by_name_are_both_named(tmp_path: Path) -> None:
    """What both branches have is gone: the times are as if 10 and 11 had been abandoned."""
    logs = {step: log_of(step, old=step == 9, since=5) for step in (9, 10, 11)}
    logs[9] = entries([5]) + entries([9], branch=1)
    for step in (10, 11):
        logs[step] = entries([5, 9, step])
    assert astray(run_with(tmp_path, logs, (10, 11, 9))) == [9, 10, 11]


@pytest.mark.parametrize(
    "order",
    [(20, 10, 40, 50, 30), (10, 20, 50, 40, 30), (10, 40, 50, 20, 30)],
    ids=["the run's own", "the other branch's", "what both have"],
)
def test_times_that_no_training_has_tell_nothing(tmp_path: Path, order: Sequence[int]) -> None:
    run = run_with(tmp_path, {step: log_of(step, old=step > 30) for step in STEPS}, order)
    assert astray(run) == [30, 40, 50]


def test_times_that_are_all_the_same_tell_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path, {step: log_of(step, old=step > 30) for step in STEPS})
    for state in run.glob(f"*/{STATE}"):
        os.utime(state, (1e9, 1e9))
    assert astray(run) == [30, 40, 50]


SAVED = (
    "adapter_model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    STATE,
)


def begun_anew(
    root: Path, order: Sequence[int] = (10, 20, 30, 40, 50, 60, 10, 20, 30, 40), **logs: Any
) -> Path:
    """A run whose trainer saved in this order, without a log, and whose files have the times of that."""
    run_with(root, {step: logs.get(f"step_{step}", []) for step in sorted(set(order))})
    for time, step in enumerate(order):
        for i, name in enumerate(SAVED):
            path = root / f"checkpoint-{step}" / name
            path.touch()
            os.utime(path, (1e9 + 60 * time + i / 10, 1e9 + 60 * time + i / 10))
    return root


def test_what_an_earlier_training_without_a_log_left_is_named(tmp_path: Path) -> None:
    """The cell that trains was run again, and stopped after step 40, before its first log."""
    run = begun_anew(tmp_path)
    assert astray(run) == [50, 60]
    with pytest.raises(InputError, match=r"step 50 was written before step 40, so it is left of an earlier"):
        Trajectory.load(run)
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == (10, 20, 30, 40)
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)  # as `cp -a` and rsync do
    assert astray(kept) == [50, 60]


@pytest.mark.parametrize("only", ["weights", "all"])
def test_a_branch_that_logged_nothing_since_it_parted_is_told_by_its_times(tmp_path: Path, only: str) -> None:
    """Resumed from 20, at 30 again; the next log will be at 35, the earlier branch's came at 30."""
    logs = {f"step_{step}": log_of(step if step != 30 else 20) for step in STEPS}
    run = begun_anew(tmp_path, (10, 20, 30, 40, 50, 30), **logs)
    for name in SAVED[2:5] * (only == "weights"):  # save_only_model
        for path in run.glob(f"*/{name}"):
            path.unlink()
    assert astray(run) == [40, 50]


def test_a_run_that_was_resumed_and_logs_what_it_had_logged_is_one(tmp_path: Path) -> None:
    logs = {f"step_{step}": log_of(step) for step in STEPS}
    assert astray(begun_anew(tmp_path, (10, 20, 30, 40, 50, 30), **logs)) == []


@pytest.mark.parametrize("order", [(10, 20, 30, 40), (10, 20, 30, 40, 30, 40, 50)], ids=["once", "resumed"])
def test_times_that_rise_with_the_steps_are_no_alarm(tmp_path: Path, order: Sequence[int]) -> None:
    assert astray(begun_anew(tmp_path, order)) == []


def test_a_run_of_others_steps_is_not_held_against_its_times(tmp_path: Path) -> None:
    run = begun_anew(tmp_path)
    for step in (50, 60):
        path = run / f"checkpoint-{step}" / STATE
        times = path.stat()
        path.write_text(json.dumps({"global_step": step - 40, "log_history": []}))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert astray(run) == []


@pytest.mark.parametrize("seed", [None, *range(20)])
def test_the_times_of_a_copy_are_no_alarm(tmp_path: Path, seed: int | None) -> None:
    """`cp -r` by name (9, 10, 11 as 10, 11, 9), and as the names lie on a disk: in each folder in the same order."""
    run = begun_anew(tmp_path, (8, 9, 10, 11))
    folders, names = ["checkpoint-10", "checkpoint-11", "checkpoint-8", "checkpoint-9"], sorted(SAVED)
    if seed is not None:
        random.Random(seed).shuffle(names)
    for time, (folder, name) in enumerate(itertools.product(folders, names)):
        os.utime(run / folder / name, (1e9 + time, 1e9 + time))
    assert astray(run) == []


def changed(change: str) -> dict[int, Any]:
    """Logs of one branch, in a form that is no sign of another."""
    logs: dict[int, Any] = {step: log_of(step) for step in STEPS}
    if change == "with NaN":
        return {step: [{**entry, "loss": NAN} for entry in log] for step, log in logs.items()}
    if change == "entries twice":
        return {step: [entry for entry in log for _ in (0, 1)] for step, log in logs.items()}
    if change == "an evaluation and a summary beside a step":
        beside = [{"step": 30, "eval_loss": 3.0, "eval_reward": 2.0}, {"step": 50, "train_loss": 9.0}]
        return {step: log + beside * (step == 50) for step, log in logs.items()}
    if change == "cut":
        return {step: log[-2:] for step, log in logs.items()}
    if change == "nothing in common":
        return {step: log[-1:] for step, log in logs.items()}
    if change == "no log":
        return {step: [] for step in STEPS}
    if change == "no entries":
        return {step: ["text", None, {"step": "x", "loss": 1.0}, {"loss": 2.0 * step}] for step in STEPS}
    return logs


@pytest.mark.parametrize(
    "change",
    [
        "none",
        "with NaN",
        "entries twice",
        "an evaluation and a summary beside a step",
        "cut",
        "nothing in common",
        "no log",
        "no entries",
    ],
)
@pytest.mark.parametrize("indent", [2, None])
@pytest.mark.parametrize("order", [STEPS, (50, 10, 40, 30, 20)], ids=["as trained", "copied"])
def test_a_run_of_one_branch_is_no_alarm(
    tmp_path: Path, change: str, indent: int | None, order: Sequence[int]
) -> None:
    assert astray(run_with(tmp_path, changed(change), order, indent=indent)) == []


def test_a_run_joined_from_two_that_count_their_own_steps_is_no_alarm(tmp_path: Path) -> None:
    run = run_with(tmp_path, {step: log_of(step) for step in STEPS})
    for step in (40, 50):
        own = {"global_step": step - 30, "log_history": log_of(step - 30, old=True, since=0)}
        (run / f"checkpoint-{step}" / STATE).write_text(json.dumps(own, indent=2))
    assert astray(run) == []


@pytest.mark.parametrize(("step", "counted"), [(50, 5000), (50, 40), (30, 12)])
def test_a_log_that_counts_other_steps_than_its_folder_is_named(
    tmp_path: Path, step: int, counted: int
) -> None:
    run = run_with(tmp_path, {step: log_of(step) for step in STEPS})
    path = run / f"checkpoint-{step}" / STATE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": counted}))
    (problem,) = open_run(run).problems
    assert (problem.path, problem.step, problem.fatal) == (path, step, False)
    assert f"{path}: counts {counted} optimizer steps (global_step) in the checkpoint of step {step}" in str(
        problem
    )
    assert Trajectory.load(run).steps == STEPS


def test_checkpoints_that_are_numbered_by_epochs_are_no_alarm(tmp_path: Path) -> None:
    run = run_with(tmp_path, {step: log_of(step) for step in (0, 1, 2, 3)})
    for step in (1, 2, 3):
        path = run / f"checkpoint-{step}" / STATE
        path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": 50 * step}))
    assert astray(run) == []


def test_a_log_that_is_missing_or_damaged_says_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path, {step: log_of(step) for step in STEPS})
    (run / "checkpoint-50" / STATE).unlink()
    (run / "checkpoint-30" / STATE).write_text('{"log_history": [')
    assert astray(run) == []


def test_of_many_logs_one_for_each_branch_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred checkpoints of 2000 logged steps took 25 s, with every load."""
    steps = range(10, 210, 10)
    logs = {step: log_of(step, old=step in (100, 110), since=90) for step in steps}
    run = run_with(tmp_path, logs)
    parsed: list[int] = []
    real = branches.parse_json
    monkeypatch.setattr(
        branches, "parse_json", lambda data, where: parsed.append(len(data)) or real(data, where)
    )
    assert astray(run) == list(range(100, 210, 10))
    assert len([size for size in parsed if size > 1000]) == 2
