"""The demo's plan, its folder, and a whole demo of a few steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from filelock import FileLock
from peft import PeftModel

from nextrl.engines.folder_lock import LOCK
from nextrl.engines.settings import TrainSettings
from nextrl.errors import InputError
from nextrl.extrapolators.alphas import PAPER_ALPHAS, WIDE_ALPHAS
from nextrl.extrapolators.base import tags_by_name
from nextrl.runs.arm import ArmSettings, LeapSettings
from nextrl.runs.demo import Plan, claim, plan, run
from nextrl.runs.rate_rule import rate_of
from nextrl.runs.summary import summarise
from nextrl.tasks.bases import tiny

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("quick", [False, True])
def test_a_plan_compares_what_the_issue_asks_for(quick: bool) -> None:
    what = plan(seed=3, quick=quick)
    names = [arm.name for arm in what.arms]
    assert names[0] == "plain"
    assert len(names) == len(set(names))
    assert {"auto", "secant", "next", "prodigy-schedulefree", "rule", "temperature", *what.sweep} <= set(
        names
    )
    if not quick:
        assert {"linear", "window", "next-paper", "mechanic", "restart"} <= set(names)
    plain = what.arms[0]
    assert plain.save
    for arm in what.arms:
        assert arm.train.seed == 3
        assert arm.start in (0, what.leap_at)
        assert list(arm.eval_at) == sorted(set(arm.eval_at))
        assert all(arm.start < step or arm.merge for step in arm.eval_at)
        assert all(step <= arm.train.steps for step in arm.eval_at)
        if arm.leap:
            assert arm.leap.horizon % plain.train.save_every == 0
            assert arm.leap.horizon * 2 <= what.leap_at
    assert what.leap_at % plain.train.save_every == 0


@pytest.mark.parametrize("quick", [False, True])
def test_the_published_rule_is_a_control_that_no_sweep_pays_for(quick: bool) -> None:
    what = plan(seed=0, quick=quick)
    rule = next(arm for arm in what.arms if arm.name == "rule")
    assert rule.train.learning_rate == rate_of("tiny")
    assert rule.label == "plain, lr 0.0043 (by rule)"
    assert (rule.kind, rule.start, rule.auto, rule.leap) == ("control", 0, False, None)
    assert rule.train.steps == next(arm for arm in what.arms if arm.name == "auto").train.steps
    assert "rule" not in what.sweep


def test_next_as_published_keeps_the_paper_s_alphas_and_its_rivals_get_the_wide_range() -> None:
    tried = {arm.name: arm.leap.alphas for arm in plan(0, False).arms if arm.leap}
    assert tried.pop("next-paper") == PAPER_ALPHAS == tags_by_name("next-paper").alphas
    assert set(tried.values()) == {WIDE_ALPHAS}


def test_a_folder_is_claimed_once_and_taken_up_again(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    claim(out, plan(0, True))
    before = (out / "demo.json").read_bytes()
    claim(out, plan(0, True))
    assert (out / "demo.json").read_bytes() == before
    assert [p.name for p in out.iterdir()] == ["demo.json"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    claim(tmp_path / "out", plan(0, True))
    for other in (plan(1, True), plan(0, False)):
        with pytest.raises(InputError, match="other settings"):
            claim(tmp_path / "out", other)


@pytest.mark.parametrize("marker", ["{", "[]", "null", '{"settings": 1}', "\udcff"])
def test_a_marker_that_is_not_ours_is_other_settings(tmp_path: Path, marker: str) -> None:
    (tmp_path / "demo.json").write_bytes(marker.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path, plan(0, True))


def test_somebody_else_s_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(InputError, match="holds no demo"):
        claim(tmp_path, plan(0, True))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_that_was_killed_before_its_marker_was_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".demo.json.xk2u0q").write_text("")
    claim(tmp_path, plan(0, True))
    assert (tmp_path / "demo.json").is_file()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file"):
        claim(tmp_path / "out", plan(0, True))
    with pytest.raises(InputError, match="cannot be written"):
        claim(tmp_path / "out" / "below", plan(0, True))


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10 * 1024**2))
    with pytest.raises(InputError, match="10 MB free, the demo needs 300 MB"):
        claim(tmp_path / "new" / "out", plan(0, True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["iterdir", "mkdir"])
def test_a_folder_without_permission_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, place, denied)
    out = tmp_path if place == "iterdir" else tmp_path / "out"
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        claim(out, plan(0, True))


def test_a_disk_that_fills_up_while_claiming_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nextrl.checkpoints.atomic.os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        claim(tmp_path / "out", plan(0, True))
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    claim(tmp_path, small_plan())
    with FileLock(tmp_path / LOCK), pytest.raises(InputError, match="another process is running there"):
        run(tmp_path, small_plan(), lambda name, step: None)
    assert not (tmp_path / "arms").exists()


KILLED = """
import multiprocessing, os, signal, sys, time
from nextrl.runs import demo

def work():
    demo.end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

multiprocessing.get_context("fork").Process(target=work).start()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of processes as Linux shows them")
def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """It trained on for minutes where the same command trained the same arm again, and then never ended."""
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip() / "stat"
        assert worker.is_file()
        parent.kill()
    deadline = time.monotonic() + 20
    while worker.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_file() or worker.read_text().split()[2] == "Z"


def small_plan() -> Plan:
    train = TrainSettings(
        steps=6, save_every=2, prompts_per_step=4, completions_per_prompt=4, learning_rate=1e-4
    )
    shared = {"train": train, "eval_prompts": 20}
    leap = LeapSettings(method="secant", horizon=2, alphas=(0.5, 1.0), prompts=8, accept="argmax")
    arms = (
        ArmSettings(name="plain", kind="plain", label="plain", save=True, eval_at=(2, 4, 6), **shared),
        ArmSettings(name="auto", kind="auto", label="auto", auto=True, eval_at=(2, 4, 6), **shared),
        ArmSettings(name="lr-0.001", kind="control", label="lr 1e-3", eval_at=(6,), **shared),
        ArmSettings(name="secant", kind="leap", label="secant", start=4, leap=leap, eval_at=(6,), **shared),
        ArmSettings(
            name="restart", kind="control", label="restart", start=4, merge=True, eval_at=(2,), **shared
        ),
        ArmSettings(name="temperature", kind="control", label="temperature", start=4, eval_at=(), **shared),
    )
    return Plan(arms, 4, ("lr-0.001",))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[tuple[str, int]]]:
    out, seen = tmp_path_factory.mktemp("demo"), []
    what = small_plan()
    claim(out, what)
    result = run(out, what, lambda name, step: seen.append((name, step)), workers=1).as_dict()
    return out, result, seen


def test_a_whole_demo_has_every_arm_and_key(finished: tuple) -> None:
    out, result, seen = finished
    assert list(result["arms"]) == [arm.name for arm in small_plan().arms]
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    plain = result["arms"]["plain"]
    assert plain["steps"] == [0, 2, 4, 6]
    assert plain["completions"] == [0, 32, 64, 96]
    assert result["target"] == plain["accuracy"][-1]
    assert result["arms"]["restart"]["steps"] == [4, 6]
    assert result["arms"]["secant"]["steps"] == [4, 6]
    assert result["arms"]["secant"]["completions"] == [64 + 24, 96 + 24]
    assert result["arms"]["temperature"]["completions"] == [64 + 5 * 128]
    assert set(result["saved"]) >= {"auto", "secant", "restart", "temperature", "lr-0.001"}
    assert isinstance(result["verdict"], str)
    assert ("plain", 6) in seen
    assert ("secant", 5) in seen


def test_what_it_wrote_loads_in_peft(finished: tuple) -> None:
    out, result, _ = finished
    folders = [out / "arms" / "plain" / f"checkpoint-{s}" for s in (2, 4, 6)]
    if result["leaps"]["secant"][0]["accepted"]:
        folders.append(out / "arms" / "secant" / "leaps" / "leap-4")
    for folder in folders:
        model = PeftModel.from_pretrained(tiny.load("chain")[0], str(folder))
        assert any(float(p.abs().max()) > 0 for n, p in model.named_parameters() if "lora_B" in n)


def test_finished_arms_are_not_run_again(finished: tuple) -> None:
    out, result, _ = finished
    records = {p: p.stat().st_mtime_ns for p in out.glob("arms/*/record.json")}
    assert len(records) == 6
    seen: list[tuple[str, int]] = []
    again = run(out, small_plan(), lambda name, step: seen.append((name, step)), workers=1).as_dict()
    assert seen == []
    assert again == result
    assert {p: p.stat().st_mtime_ns for p in out.glob("arms/*/record.json")} == records


def test_the_result_is_a_function_of_the_records(finished: tuple) -> None:
    from nextrl.runs.arm import read_record

    out, result, _ = finished
    what = small_plan()
    records = {arm.name: read_record(out / "arms" / arm.name) for arm in what.arms}
    again = summarise(records, what.arms, out / "arms" / "plain", leap_at=4, sweep=what.sweep)
    assert again.as_dict() == result
