"""A run as one call: what it writes, how it goes on where it was stopped, and what it will not touch.

Every resumed run must end as the unbroken one, to the bit. tests/test_killed_runs.py kills whole processes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from peft import PeftModel

from nextrl.engines.folder_lock import LOCK
from nextrl.errors import InputError
from nextrl.runs import run as module
from nextrl.runs.config import RunConfig
from nextrl.runs.layout import CONFIG
from nextrl.runs.resume import MARKER, Checkpoint, last_checkpoint, read, sealed
from nextrl.runs.run import Outcome, run
from nextrl.runs.stop import StopSignal
from nextrl.tasks import base, bases
from nextrl.tasks.bases import tiny
from nextrl.tasks.bases.device import placed
from nextrl.tasks.evaluate import evaluate

SMALL: dict[str, Any] = {
    "train": {
        "steps": 6,
        "save_every": 2,
        "learning_rate": 5e-4,
        "prompts_per_step": 4,
        "completions_per_prompt": 4,
    },
    "lora": {"r": 4, "alpha": 8},
    "eval": {"every": 3, "prompts": 20},
}
LEAPS: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto", "every": 2},
    "searched": {"method": "secant", "at": [2, 4], "prompts": 16},
    "fixed": {"method": "secant", "every": 2, "alpha": 1.0},
    "none": {"method": "none"},
}


def config(out: Path, leap: str = "auto", **more: Any) -> RunConfig:
    return RunConfig(**{**SMALL, **more}, leap=LEAPS[leap], output_dir=out)


def adapter(out: Path) -> bytes:
    return (out / "final" / "adapter_model.safetensors").read_bytes()


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The result without what a resume changes by right: the clock, and that it was resumed."""
    arm = {k: v for k, v in result["arms"]["run"].items() if k != "seconds"}
    leaps = [{k: v for k, v in x.items() if "seconds" not in k} for x in result["leaps"].get("run", [])]
    return {"arm": arm, "leaps": leaps, "trajectory": result["trajectory"], "regime": result["regime"]}


def stopping_at(step: int) -> tuple[Callable[[], bool], Callable[[str, int], None]]:
    """A stop that is asked for while `step` is taken."""
    seen = {"step": 0}

    def progress(name: str, at: int) -> None:
        seen["step"] = at

    return lambda: seen["step"] >= step, progress


def stop(settings: RunConfig, step: int) -> Outcome:
    asked, progress = stopping_at(step)
    return run(settings, stop_asked=asked, progress=progress)


@pytest.fixture(scope="module", params=list(LEAPS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """(kind of leap, folder, result) of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return request.param, out, run(config(out, request.param)).result.as_dict()


def test_a_run_writes_what_it_says(whole: tuple[str, Path, Any]) -> None:
    _, out, result = whole
    names = {p.name for p in out.iterdir()}
    assert {"config.yaml", "trajectory", "final", "result.json", "report.html"} <= names
    kept = {"config.yaml", "inputs.json", "trajectory", "final", "result.json", "report.html"}
    assert names - {"leaps", LOCK} == kept
    assert sorted(p.name for p in (out / "trajectory").glob("checkpoint-*")) == [
        f"checkpoint-{s}" for s in (2, 4, 6)
    ]
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    model = PeftModel.from_pretrained(tiny.load("chain")[0], str(out / "final"))
    assert any(float(p.abs().max()) > 0 for n, p in model.named_parameters() if "lora_B" in n)
    assert adapter(out) == (out / "trajectory" / "checkpoint-6" / "adapter_model.safetensors").read_bytes()
    assert "<html" in (out / "report.html").read_text()


def test_a_result_has_the_contract_s_keys_and_says_what_it_cannot(whole: tuple[str, Path, Any]) -> None:
    kind, _, result = whole
    assert {"target", "arms", "saved", "regime", "verdict"} <= result.keys()
    assert result["target"] is None
    assert result["saved"] == {"run": {"steps": None, "completions": None, "seconds": None}}
    arm = result["arms"]["run"]
    series = ("steps", "accuracy", "se", "greedy", "completions", "seconds", "learning_rate")
    assert len({len(arm[key]) for key in series}) == 1
    assert (arm["steps"][0], arm["steps"][-1]) == (0, 6)
    # The rate of each step, in which a decision's shows from the next step on.
    rate_of = dict(zip(arm["rate_steps"], arm["rates"], strict=True))
    assert rate_of[1] == arm["learning_rate"][0]
    changed = [
        leap for leap in result["leaps"].get("run", []) if leap["rate_factor"] != 1.0 and leap["step"] < 6
    ]
    assert [rate_of[leap["step"] + 1] for leap in changed] == [leap["learning_rate"] for leap in changed]
    assert bool(changed) == (kind == "auto")
    assert arm["completions"][-1] == 6 * 16 + result["costs"]["run"]["search_completions"]
    assert ("only the same run with leap.method=none can say" in result["verdict"]) == (kind != "none")


def test_leaps_happen_where_they_were_asked_for(whole: tuple[str, Path, Any]) -> None:
    kind, out, result = whole
    leaps = result["leaps"].get("run", [])
    if kind == "none":
        assert leaps == []
    if kind in ("searched", "fixed"):
        assert [leap["step"] for leap in leaps] == [2, 4]
        taken = [leap["step"] for leap in leaps if leap["accepted"]]
        assert sorted(p.name for p in (out / "leaps").glob("leap-*")) == [f"leap-{s}" for s in taken]
        # Measured before and right after each leap that moved the adapter, once at other evaluations.
        steps = result["arms"]["run"]["steps"]
        assert steps == sorted([0, 3, 6, *taken])
    if kind == "fixed":
        # Where the reward fell after a leap it is taken back, as on the draws of the lowest versions.
        assert [leap["alpha"] for leap in leaps] in ([1.0, 1.0], [1.0, 0.0])
        assert all(leap["alpha"] == 1.0 or leap["rolled_back"] == 2 for leap in leaps)
        assert result["costs"]["run"]["search_completions"] == 0
        assert result["costs"]["run"]["fit_seconds"] > 0
    if kind == "searched":
        # Six candidates each, on a quarter of the 16 prompts at first, on all of them where none is settled.
        assert 2 * 6 * 4 <= result["costs"]["run"]["search_completions"] <= 2 * 6 * 16


def test_a_second_cycle_starts_where_the_first_leap_ended(whole: tuple[str, Path, Any]) -> None:
    kind, out, _ = whole
    if kind != "fixed" or not (out / "leaps" / "leap-4").exists():
        pytest.skip("asked of the leaps that are always taken, where none was taken back")
    notes = json.loads((out / "leaps" / "leap-4" / "nextrl.json").read_text())
    assert [Path(p).parent.name for p in notes["source_sha256"]] == ["leap-2", "checkpoint-4"]


@pytest.mark.parametrize("step", [2, 3])
def test_a_stopped_run_goes_on_to_the_bit(whole: tuple[str, Path, Any], tmp_path: Path, step: int) -> None:
    kind, out, result = whole
    here = config(tmp_path / "out", kind)
    first = stop(here, step)
    assert (first.step, first.result) == (step, None)
    assert not (tmp_path / "out" / "result.json").exists()
    lines: list[str] = []
    second = run(here, say=lines.append)
    assert lines == [f"going on from step {step} of 6"]
    assert second.result is not None
    assert figures(second.result.as_dict()) == figures(result)
    assert second.result.resumed == [step]
    assert adapter(tmp_path / "out") == adapter(out)
    # Nothing is left of the checkpoint between two saves, and the trajectory is the unbroken run's.
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in out.iterdir()}
    names = [{p.name for p in (o / "trajectory").iterdir()} for o in (out, tmp_path / "out")]
    assert names[0] == names[1]


@pytest.mark.parametrize("method", ["none", "auto"])
def test_full_fine_tuning_leaves_a_model_and_goes_on_to_the_bit(tmp_path: Path, method: str) -> None:
    settings = {name: config(tmp_path / name, method, lora=None) for name in ("whole", "stopped")}
    unbroken = run(settings["whole"]).result
    assert stop(settings["stopped"], 3).step == 3
    resumed = run(settings["stopped"]).result
    assert unbroken is not None
    assert resumed is not None
    assert figures(resumed.as_dict()) == figures(unbroken.as_dict())
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in settings]
    assert weights[0] == weights[1]
    model, tokenizer = bases.load(str(tmp_path / "whole" / "final"), "chain")
    # Where the run sampled: a GPU draws other numbers than a CPU.
    measured = evaluate(placed(model), tokenizer, base.get("chain"), prompts=20)
    assert measured.accuracy == unbroken.arms["run"].accuracy[-1]
    assert not (tmp_path / "whole" / "final" / "adapter_config.json").exists()
    assert (unbroken.trajectory.sigma, unbroken.advice) == ({}, None)


def test_the_clock_goes_on_too(tmp_path: Path) -> None:
    here = config(tmp_path, "none")
    stop(here, 3)
    marker = json.loads((tmp_path / "trajectory" / "checkpoint-3" / MARKER).read_text())
    spent = marker["record"]["train_seconds"]
    assert spent > 0
    # As if those three steps had taken an hour: it must be on the bill at the end.
    marker["record"]["train_seconds"] = 3600.0
    (tmp_path / "trajectory" / "checkpoint-3" / MARKER).write_text(json.dumps(sealed(marker)))
    result = run(here).result
    assert result is not None
    assert 3600 < result.arms["run"].seconds[-1] < 3600 + 100


BREAK: dict[str, Callable[[Path], None]] = {
    "no marker": lambda folder: (folder / MARKER).unlink(),
    "half a marker": lambda folder: (folder / MARKER).write_text('{"step": 4, "fil'),
    "a list": lambda folder: (folder / MARKER).write_text("[]"),
    "half an optimizer": lambda folder: (folder / "optimizer.pt").write_bytes(b"PK"),
    "no adapter": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no memory of the callback": lambda folder: (folder / "nextrl_state.json").unlink(),
}


@pytest.mark.parametrize("how", list(BREAK))
def test_an_incomplete_checkpoint_is_removed_and_the_one_before_is_used(
    whole: tuple[str, Path, Any], tmp_path: Path, how: str
) -> None:
    kind, out, _ = whole
    if kind != "auto":
        pytest.skip("the checkpoints of auto hold most")
    here = config(tmp_path / "out")
    stop(here, 4)
    BREAK[how](tmp_path / "out" / "trajectory" / "checkpoint-4")
    lines: list[str] = []
    run(here, say=lines.append)
    assert [line.split(" (")[0] for line in lines] == [
        "checkpoint 4 is incomplete or damaged",
        "going on from step 2 of 6",
    ]
    assert adapter(tmp_path / "out") == adapter(out)


def test_one_bit_in_any_file_of_the_newest_checkpoint_is_seen(
    whole: tuple[str, Path, Any], tmp_path: Path
) -> None:
    """Each file in turn, sizes unchanged: the run goes on from the checkpoint before, to the bit."""
    kind, out, _ = whole
    if kind != "auto":
        pytest.skip("the checkpoints of auto hold most")
    stop(config(tmp_path / "start"), 4)
    newest = tmp_path / "start" / "trajectory" / "checkpoint-4"
    names = sorted(file.relative_to(newest).as_posix() for file in newest.rglob("*") if file.is_file())
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json", MARKER} <= set(names)
    for name in names:
        place = tmp_path / "damaged"
        shutil.copytree(tmp_path / "start", place)
        file = place / "trajectory" / "checkpoint-4" / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        lines: list[str] = []
        found = last_checkpoint(place / "trajectory", place / "stopped", lambda s: s % 2 == 0, lines.append)
        assert found is not None, name
        assert found.step == 2, name
        assert len(lines) == 1
        if name == "adapter_model.safetensors":
            run(config(place))
            assert adapter(place) == adapter(out)
        shutil.rmtree(place)


def test_an_earlier_adapter_that_was_changed_is_refused_and_nothing_removed(tmp_path: Path) -> None:
    stop(config(tmp_path, "fixed"), 4)
    file = tmp_path / "trajectory" / "checkpoint-2" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        InputError, match=r"checkpoint-2: adapter_model\.safetensors is not as it was written"
    ):
        run(config(tmp_path, "fixed"))
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_whole_checkpoint_it_begins_again(whole: tuple[str, Path, Any], tmp_path: Path) -> None:
    kind, out, _ = whole
    if kind != "searched":
        pytest.skip("one kind is enough")
    here = config(tmp_path / "out", kind)
    stop(here, 1)
    (tmp_path / "out" / "trajectory" / "checkpoint-1" / MARKER).unlink()
    lines: list[str] = []
    run(here, say=lines.append)
    assert lines[-1] == "no whole checkpoint was left: starting again from step 0"
    assert adapter(tmp_path / "out") == adapter(out)


def test_a_trajectory_on_another_disk_gives_up_a_checkpoint_between_two_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be a link to where there is room: from there nothing can be renamed into `stopped`."""
    stop(config(tmp_path, "none"), 3)

    def elsewhere(source: Any, target: Any, **_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", elsewhere)
        found = last_checkpoint(tmp_path / "trajectory", tmp_path / "stopped", lambda s: s % 2 == 0, print)
    assert found is not None
    assert (found.step, found.folder) == (3, tmp_path / "stopped" / "checkpoint-3")
    assert isinstance(read(found.folder), Checkpoint)
    assert not (tmp_path / "trajectory" / "checkpoint-3").exists()


def test_checkpoints_that_somebody_has_removed_are_named(tmp_path: Path) -> None:
    """A method that leaps later is fitted on what is left, and gives another leap."""
    stop(config(tmp_path, "none"), 5)
    for step in (2, 4):
        shutil.rmtree(tmp_path / "trajectory" / f"checkpoint-{step}")
    lines: list[str] = []
    found = last_checkpoint(tmp_path / "trajectory", tmp_path / "stopped", lambda s: s % 2 == 0, lines.append)
    assert found is not None
    assert found.step == 5
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'trajectory'} lacks the checkpoints of steps 2, 4: leaps that")


def test_killed_after_its_last_checkpoint_it_only_writes_the_rest(
    whole: tuple[str, Path, Any], tmp_path: Path
) -> None:
    kind, out, result = whole
    here = config(tmp_path / "out", kind)
    shutil.copytree(out, tmp_path / "out")
    for name in ("result.json", "report.html"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / ".result.json.abc").write_text("{")  # the half that `atomic` had written
    steps: list[int] = []
    again = run(here, progress=lambda name, step: steps.append(step))
    assert steps == []
    assert again.result is not None
    assert again.result.as_dict()["arms"] == result["arms"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in out.iterdir()}


def test_a_finished_run_is_not_touched(whole: tuple[str, Path, Any]) -> None:
    kind, out, result = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != LOCK}
    again = run(config(out, kind))
    assert not again.trained
    assert again.result.as_dict() == json.loads(json.dumps(result))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != LOCK} == before


def test_another_config_is_refused_with_the_keys_named(tmp_path: Path) -> None:
    stop(config(tmp_path), 1)
    other = RunConfig(**{**SMALL, "lora": {"r": 8}}, seed=1, leap=LEAPS["auto"], output_dir=tmp_path)
    with pytest.raises(
        InputError, match=r"different in seed, lora\.r, lora\.alpha: choose another output_dir"
    ):
        run(other)
    with pytest.raises(InputError, match=r"different in leap\.method"):
        run(config(tmp_path, "none"))


def edited(settings: RunConfig, **more: Any) -> RunConfig:
    """The config, written over the one that lies in the run's folder, as somebody with an editor would."""
    other = RunConfig(**{**settings.as_dict(), **more})
    (settings.output_dir / CONFIG).write_text(other.as_yaml())
    return other


def test_a_config_that_was_edited_in_the_run_s_folder_is_refused(tmp_path: Path) -> None:
    """A run that went on had the old rate, optimizer and schedule, and the page said that it had the new ones."""
    here = config(tmp_path, "none")
    stop(here, 3)
    other = edited(here, train={**SMALL["train"], "learning_rate": 1e-2, "save_every": 4})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        InputError,
        match=r"was changed since .*checkpoint-3 was written, in train\.save_every, train\.learning_rate: change",
    ):
        run(other)
    assert sorted(tmp_path.rglob("*")) == before
    edited(here)
    assert run(here).result is not None
    # And nothing of a finished run says that it had twice as many steps.
    longer = edited(here, train={**SMALL["train"], "steps": 12})
    with pytest.raises(InputError, match=r"was changed since .*result\.json was written, in train\.steps"):
        run(longer)


def test_a_checkpoint_that_keeps_no_config_is_gone_on_from(tmp_path: Path) -> None:
    """As those of earlier versions."""
    here = config(tmp_path, "none")
    stop(here, 4)
    path = tmp_path / "trajectory" / "checkpoint-4" / MARKER
    marker = json.loads(path.read_text())
    del marker["config"]
    path.write_text(json.dumps(sealed(marker)))
    outcome = run(here)
    assert outcome.result is not None
    assert outcome.result.resumed == [4]


TASK_FILE = """
from nextrl.tasks import base
CHAIN = base.get("chain")
def examples(split): return [(e.prompt, e.answer) for e in CHAIN.examples(split)[:60]]
def reward(completion, answer): return CHAIN.reward(completion, answer)
max_completion_length = 6
"""


def with_files(folder: Path) -> RunConfig:
    """A run in the folder, of a task file and a model that lie beside it."""
    (folder / "task.py").write_text(TASK_FILE)
    for part in tiny.load("chain"):
        part.save_pretrained(folder / "base")
    return config(folder / "run", "none", task=str(folder / "task.py"), model=str(folder / "base"))


def changed_reward(folder: Path) -> None:
    (folder / "task.py").write_text(TASK_FILE + "\nreward = lambda completion, answer: 1.0\n")


def changed_examples(folder: Path) -> None:
    (folder / "task.py").write_text(TASK_FILE.replace("[:60]", "[1:61]"))


def changed_weights(folder: Path) -> None:
    model = tiny.load("chain")[0]
    model.model.norm.weight.data += 0.3
    model.save_pretrained(folder / "base")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed_reward, "the task's code changed since this run began"),
        (changed_examples, "the task's examples changed since this run began"),
        (changed_weights, "the model's weights and settings changed since this run began"),
    ],
)
def test_a_run_goes_on_only_with_what_it_began_with(
    tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    here = with_files(tmp_path)
    stop(here, 3)
    change(tmp_path)
    with pytest.raises(InputError, match=says):
        run(here)
    (tmp_path / "run" / "inputs.json").unlink()
    assert run(here).result is not None


@pytest.mark.parametrize("name", ["keep", "write_bytes"], ids=["before the digests", "before the config"])
def test_a_cut_while_a_run_is_begun_does_not_switch_the_check_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = with_files(tmp_path)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.inputs if name == "keep" else module, name, cut)
        with pytest.raises(KeyboardInterrupt):
            run(here)
    half = tmp_path / "run" / ".inputs.json.k1ll3d"
    half.parent.mkdir(exist_ok=True)
    half.write_text("{")
    stop(here, 3)
    assert not half.exists()
    changed_examples(tmp_path)
    with pytest.raises(InputError, match="the task's examples changed since this run began"):
        run(here)


def test_a_file_of_somebody_else_s_that_has_the_name_of_the_digests_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text('{"learning_rate": 0.1}')
    with pytest.raises(InputError, match="is not empty and holds no run"):
        run(config(tmp_path, "none"))
    assert (tmp_path / "inputs.json").read_text() == '{"learning_rate": 0.1}'


def test_more_prompts_than_there_are_for_an_algorithm_s_batch_are_refused(
    tmp_path: Path, few_chain_prompts: Callable[[int], None]
) -> None:
    """TRL trained nothing then, and the run told that it had been stopped."""
    few_chain_prompts(6)
    with pytest.raises(InputError, match="has 6 training prompts, and dapo samples for 8 at a time"):
        run(config(tmp_path / "out", "none", algorithm="dapo"))
    assert not (tmp_path / "out").exists()


def test_a_trainer_that_ends_by_itself_was_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._train
    monkeypatch.setattr(module, "_train", lambda *given: (real(*given)[0], 2))
    with pytest.raises(InputError, match="ended by itself after step 2 of 6"):
        run(config(tmp_path, "none"))


def test_the_prompts_of_an_accuracy_are_those_that_there_were(
    tmp_path: Path, few_chain_prompts: Callable[[int], None]
) -> None:
    few_chain_prompts(60)
    settings = config(tmp_path, "none", eval={"every": 6, "prompts": 500})
    result = run(settings).result
    assert result is not None
    assert result.config["test_prompts"] == 40


def test_accuracy_is_measured_at_the_length_that_was_trained(tmp_path: Path) -> None:
    train = {**SMALL["train"], "steps": 2, "max_completion_length": 1}
    result = run(config(tmp_path, "none", train=train)).result
    assert result is not None
    assert result.arms["run"].greedy == [0.0, 0.0]  # no answer of this task has one token


def test_mechanic_cannot_be_gone_on_with_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("mechanic_pytorch")
    here = config(tmp_path, "none", train={**SMALL["train"], "optimizer": "mechanic"})
    stop(here, 3)
    with pytest.raises(InputError, match="mechanic cannot be gone on with"):
        run(here)


def test_settings_that_a_model_came_with_are_written_with_the_whole_model(tmp_path: Path) -> None:
    for part in tiny.load("chain"):
        part.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "top_p": 0.5, "do_sample": True}))
    run(config(tmp_path / "run", "none", model=str(tmp_path / "base"), lora=None))
    written = json.loads((tmp_path / "run" / "final" / "generation_config.json").read_text())
    assert (written["top_p"], written["do_sample"]) == (0.5, True)


def test_a_folder_may_be_moved_and_the_logger_changed(tmp_path: Path) -> None:
    stop(config(tmp_path / "a", "none"), 2)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = config(tmp_path / "b", "none", report_to=["tensorboard"])
    assert run(moved).result is not None
    assert list((tmp_path / "b" / "logs").glob("events*"))


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    stop(config(tmp_path), 1)
    before = sorted(tmp_path.rglob("*"))
    with FileLock(tmp_path / LOCK), pytest.raises(InputError, match="another process is running there"):
        run(config(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert run(config(tmp_path)).result is not None


def test_a_lock_is_held_while_training(tmp_path: Path) -> None:
    refused: list[str] = []

    def second(name: str, step: int) -> None:
        with pytest.raises(InputError, match="another process") as error:
            run(config(tmp_path, "none"))
        refused.append(str(error.value))

    assert run(config(tmp_path, "none"), progress=second).result is not None
    assert len(refused) == 6


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task": "chian"}, "unknown task 'chian'"),
    "model": ({"model": "/no/such/model"}, "unknown model '/no/such/model'"),
    "prompts": ({"train": {"prompts_per_step": 10**6}}, "lower train.prompts_per_step"),
    "module": (
        {**SMALL, "lora": {"target_modules": ["q_proj", "v_prj"]}},
        "no module 'v_prj'; did you mean v_proj",
    ),
    "context": ({"train": {**SMALL["train"], "max_completion_length": 60}}, "the model takes 64 together"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_writes_nothing(tmp_path: Path, what: str) -> None:
    values, wanted = BAD[what]
    with pytest.raises(InputError, match=wanted):
        run(RunConfig(**values, output_dir=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_logger_that_is_not_installed_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextrl.runs.run.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="wandb is not installed"):
        run(config(tmp_path / "out", report_to=["wandb"]))
    assert list(tmp_path.iterdir()) == []


def test_somebody_else_s_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        run(config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        run(config(tmp_path / "thesis.tex"))


def test_a_kill_while_claiming_leaves_a_folder_that_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / f".{CONFIG}.x1y2").write_text("mod")
    (tmp_path / LOCK).touch()
    assert stop(config(tmp_path), 1).step == 1
    assert not list(tmp_path.glob(f".{CONFIG}.*"))


def test_the_second_epoch_of_a_resumed_run_has_its_own_order(
    tmp_path: Path, few_chain_prompts: Callable[[int], None]
) -> None:
    few_chain_prompts(12)  # three steps of four are an epoch
    shorter = {**SMALL["train"], "steps": 8}
    run(config(tmp_path / "whole", "none", train=shorter))
    here = config(tmp_path / "stopped", "none", train=shorter)
    stop(here, 4)
    run(here)
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "whole")


def test_a_run_that_reuses_rollouts_stops_where_none_are_left(tmp_path: Path) -> None:
    run(config(tmp_path / "whole", "none", algorithm="dapo"))
    here = config(tmp_path / "stopped", "none", algorithm="dapo")
    assert stop(here, 3).step == 4
    run(here)
    assert adapter(tmp_path / "stopped") == adapter(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_it_came_in(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def progress(name: str, step: int) -> None:
        if step == 3:
            signal.raise_signal(number)

    with StopSignal() as asked:
        outcome = run(config(tmp_path), stop_asked=asked.asked, progress=progress)
        assert asked.received == number
    assert outcome.step == 3
    assert signal.getsignal(number) == before
    assert (tmp_path / "trajectory" / "checkpoint-3" / MARKER).is_file()


def test_a_signal_before_training_trains_nothing(tmp_path: Path) -> None:
    assert run(config(tmp_path), stop_asked=lambda: True) == replace(Outcome(0, None))
    assert not (tmp_path / "trajectory").exists()


def test_a_second_signal_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    with StopSignal() as asked:
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr("nextrl.runs.stop.signal.raise_signal", raised.append)
        asked._note(signal.SIGTERM, None)
        assert raised == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
