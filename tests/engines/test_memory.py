"""Stopped and resumed: the callback's memory lies in the trainer's checkpoint, and the run ends the same to the bit."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

import hostile_inputs as hostile
from nextrl.engines import memory as memory_files
from nextrl.engines.fingerprint import belongs, fingerprint
from nextrl.engines.history import AdapterHistory
from nextrl.engines.memory import JSON, TENSORS, Memory
from nextrl.engines.point import Point
from nextrl.engines.policies import Auto
from nextrl.engines.rollback import Snapshot
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.trainer import as_dataset
from nextrl.errors import InputError
from nextrl.judge import decision_file
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision
from nextrl.tasks.bases import tiny
from trl_runs import TASK, Breaks, same, trainer, weights

STEPS, EVERY, SAVE = 10, 2, 2


class Acting(Controller):
    """Undoes every second window and nudges the rate after the others, so that a lost memory cannot go unnoticed."""

    windows = 0

    def window(self, window: Any, look: Any) -> Decision:
        self.windows += 1
        seen = super().window(window, look)
        if self.windows % 2:
            return replace(seen, rate_factor=1.25)
        return replace(seen, alpha=-1.0, back="window", rate_factor=0.5)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "acted": self.windows}

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.windows = state["acted"]


QUIET = ControllerConfig(every=100, goal=1e-30)  # never finds a step too short


def leaper(**options: Any) -> LeapCallback:
    return LeapCallback(policy=Auto(ControllerConfig(every=EVERY), Acting), **options)


def run(out: Path, kind: type = GRPOTrainer, resume: Any = None, **options: Any) -> tuple[Any, LeapCallback]:
    callback = options.pop("callback", None) or leaper()
    built = trainer(
        out,
        [callback, *options.pop("extra", ())],
        kind=kind,
        **{
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": SAVE,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 2,
            **options,
        },
    )
    built.train(resume_from_checkpoint=resume)
    return built, callback


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, LeapCallback]:
    out = tmp_path_factory.mktemp("whole")
    return (out, *run(out))


def stopped_after(whole: Path, step: int, out: Path) -> Path:
    """A copy of the run as a kill right after its checkpoint of that step would have left it."""
    shutil.copytree(whole, out)
    for folder in out.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    return out


@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_a_resumed_run_ends_with_the_same_adapter_to_the_bit(
    whole: tuple[Path, Any, LeapCallback], step: int, tmp_path: Path
) -> None:
    folder, unbroken, first = whole
    assert any(d.back == "window" for d in first.decisions)
    assert any(d.learning_rate > 1e-3 and not d.back for d in first.decisions)
    out = stopped_after(folder, step, tmp_path / "again")
    resumed, second = run(out, resume=True)
    assert same(weights(resumed.model), weights(unbroken.model))
    assert second.decisions == first.decisions
    assert second.costs.search_completions == first.costs.search_completions
    lines = [json.loads(line) for line in (out / "nextrl_decisions.jsonl").read_text().splitlines()]
    assert lines == [d.model_dump(mode="json") for d in first.decisions]


def test_a_checkpoint_elsewhere_can_be_resumed(whole: tuple[Path, Any, LeapCallback], tmp_path: Path) -> None:
    folder, unbroken, first = whole
    resumed, second = run(tmp_path / "elsewhere", resume=str(folder / "checkpoint-4"))
    assert same(weights(resumed.model), weights(unbroken.model))
    assert second.decisions == first.decisions


def test_rloo_resumes_too(tmp_path: Path) -> None:
    unbroken, _ = run(tmp_path / "run", RLOOTrainer, max_steps=6)
    out = stopped_after(tmp_path / "run", 2, tmp_path / "again")
    resumed, _ = run(out, RLOOTrainer, resume=True, max_steps=6)
    assert same(weights(resumed.model), weights(unbroken.model))


def test_without_its_state_a_run_goes_on_with_the_next_full_window(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = stopped_after(whole[0], 4, tmp_path / "again")
    (out / "checkpoint-4" / JSON).unlink()
    _, callback = run(out, resume=True)
    assert "checkpoint-4 holds no state of LeapCallback (nextrl_state.json not there)" in caplog.text
    before = [d for d in whole[2].decisions if d.step <= 4]
    assert callback.decisions[: len(before)] == before != []
    assert [d.step for d in callback.decisions[len(before) :] if d.back != "step"] == [6, 8, 10]
    assert decision_file.read(out) == callback.decisions


def test_a_kill_between_the_trainer_s_save_and_ours_loses_nothing(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, unbroken, first = whole

    killed_at_four(tmp_path)
    assert not (tmp_path / "checkpoint-4" / JSON).exists()
    resumed, second = run(tmp_path, resume=True)
    assert "holds no state" not in caplog.text
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(unbroken.model))
    assert not (tmp_path / memory_files.PENDING).exists()


class Killed(LeapCallback):
    """Dies when the trainer has written its own files of step 4, and before the memory is among them."""

    def deliver(self, args: Any, state: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt
        super().deliver(args, state)


class Stops(TrainerCallback):
    """Stops a run in the middle, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def killed_at_four(out: Path, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(out, callback=Killed(policy=Auto(ControllerConfig(every=EVERY), Acting)), **options)
    assert (out / memory_files.PENDING / "checkpoint-4" / JSON).is_file()


@pytest.mark.parametrize("resume", [True, "checkpoint-2", None])
def test_what_a_kill_left_waiting_lies_in_its_checkpoint_before_anything_is_forgotten(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, resume: Any
) -> None:
    """Killed at the save of step 4; the next run (from there, from before, or anew) is killed before it saves."""
    _, unbroken, first = whole
    killed_at_four(tmp_path)
    again = str(tmp_path / resume) if isinstance(resume, str) else resume
    begins = {True: 5, "checkpoint-2": 3, None: 1}[resume]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, resume=again, extra=[Stops(begins)])
    resumed, second = run(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(unbroken.model))


def test_a_kill_at_the_end_of_an_epoch_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "save_strategy": "epoch",
        "rows": as_dataset(TASK.examples("train")[:16]),
    }  # two steps an epoch
    killed_at_four(tmp_path, **options)
    _, second = run(tmp_path, resume=True, max_steps=5, **options)
    assert "holds no state" not in caplog.text
    assert [d.step for d in second.decisions if d.back != "step"][:2] == [2, 4]


def test_steps_in_a_row_that_left_nan_are_counted_on(tmp_path: Path) -> None:
    def built(out: Path) -> tuple[Any, LeapCallback]:
        callback, breaks = LeapCallback(4), Breaks(3, 4, 5, 6)
        options = {"learning_rate": 1e-3, "max_steps": 7, "save_strategy": "steps", "save_steps": 1}
        return trainer(out, [callback, breaks], **options), callback

    unbroken, first = built(tmp_path / "whole")
    unbroken.train()
    assert [d.step for d in first.decisions if d.back] == [3, 4, 5, 6]
    resumed, second = built(tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-5"))
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(unbroken.model))


def test_saving_in_the_middle_of_a_step_is_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path, [leaper()])
    built.args.enable_jit_checkpoint = True
    with pytest.raises(InputError, match="enable_jit_checkpoint=True saves in the middle of a step"):
        built.train()


@pytest.mark.parametrize("moved", [(), (TENSORS,)])
def test_a_state_that_an_earlier_run_left_in_the_checkpoint_gives_way_to_the_one_that_waits(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, moved: tuple[str, ...]
) -> None:
    """Killed before the state is moved over the earlier one, or between its two files."""
    _, unbroken, first = whole
    run(tmp_path, max_steps=4, seed=3)
    killed_at_four(tmp_path)
    for name in moved:
        (tmp_path / memory_files.PENDING / "checkpoint-4" / name).replace(tmp_path / "checkpoint-4" / name)
    resumed, second = run(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(unbroken.model))


@pytest.mark.parametrize("damage", [False, True])
def test_a_state_that_waits_for_other_weights_leaves_the_checkpoint_s_own(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, damage: bool
) -> None:
    """A run is killed before the trainer has written over an earlier run's checkpoint of that step."""
    _, unbroken, first = whole
    out = stopped_after(whole[0], 4, tmp_path / "again")
    killed_at_four(tmp_path / "other", seed=3)
    shutil.move(tmp_path / "other" / memory_files.PENDING, out)
    if damage:
        (out / memory_files.PENDING / "checkpoint-4" / JSON).write_text("{")
    resumed, second = run(out, resume=True)
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(unbroken.model))


def test_a_kill_between_the_two_files_of_a_state_loses_nothing(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, unbroken, first = whole
    out = stopped_after(whole[0], 4, tmp_path / "again")
    waiting = out / memory_files.PENDING / "checkpoint-4"
    waiting.mkdir(parents=True)
    (out / "checkpoint-4" / JSON).rename(waiting / JSON)
    resumed, second = run(out, resume=True)
    assert "holds no state" not in caplog.text
    assert second.decisions == first.decisions
    assert same(weights(resumed.model), weights(unbroken.model))


def test_windows_of_another_length_begin_anew(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = stopped_after(whole[0], 4, tmp_path / "again")
    other = LeapCallback(4)
    run(out, resume=True, callback=other)
    assert "another length" in caplog.text
    assert [d.step for d in other.decisions] == [2, 4, 6, 8]
    assert [d.step for d in decision_file.read(out)] == [2, 4, 6, 8]
    assert other.decisions[:2] == whole[2].decisions[:2]


def test_a_run_whose_steps_are_of_another_size_now_says_so(
    whole: tuple[Path, Any, LeapCallback], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one process is that goes on where two were: `accelerate launch --cpu` starts one, whatever it is asked for."""
    out = stopped_after(whole[0], 4, tmp_path / "again")
    _, again = run(out, resume=True, per_device_train_batch_size=16)
    said = [record.getMessage() for record in caplog.records if "completions" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("nextrl, step 4: a step is trained on 16 completions now, and was on 32")
    assert again.decisions[:2] == whole[2].decisions[:2]
    caplog.clear()
    half = stopped_after(out, 6, tmp_path / "half")
    run(half, resume=True, per_device_train_batch_size=16)
    assert "completions" not in caplog.text


def test_a_checkpoint_of_the_model_alone_keeps_the_learning_rate_it_had_reached(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_steps": 6,
        "save_only_model": True,
        "lr_scheduler_type": "constant",
        "learning_rate": 2e-4,
    }

    class Thrice(LeapCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 1 and self._session.memory.factor == 1.0:
                from nextrl.engines.schedules import set_rate_factor

                set_rate_factor(kwargs["optimizer"], kwargs["lr_scheduler"], 3.0)
                self._session.memory.factor = 3.0

    built, _ = run(tmp_path / "run", callback=Thrice(config=QUIET), **options)
    assert built.optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)
    out = stopped_after(tmp_path / "run", 2, tmp_path / "again")
    resumed, _ = run(out, resume=True, callback=LeapCallback(config=QUIET), **options)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)


def memory() -> Memory:
    random = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(2, 3, generator=random), "b": torch.randn(4, 2, generator=random).bfloat16()}
    moments = [{"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3, generator=random), "plain": 7}, {}]
    before = {n: t + 1 for n, t in start.items()}
    snapshot = Snapshot(Point(before, moments, 20), 8.0, 80.0, 1.5, 0.4, float("inf"), 1)
    history = AdapterHistory([10, 20], [start, before], {20: 0.25})
    origin = Point({n: t - 1 for n, t in start.items()}, [{}, {"exp_avg": torch.ones(2)}], 5)
    return Memory(
        start=Point(start, moments, 7),
        rewards=[0.5, float("nan")],
        rate=1e-4,
        offset=128,
        factor=3.0,
        cooled=0.5,
        snapshot=snapshot,
        history=history,
        origin=origin,
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    kept = memory()
    memory_files.write(tmp_path, kept, {"controller": {"x": 1}})
    found = memory_files.read(tmp_path, kept.start.state)
    assert found is not None
    again, rest = found
    assert same(again.start.state, kept.start.state)
    assert again.start.state["b"].dtype == torch.bfloat16
    assert torch.equal(again.start.moments[0]["exp_avg"], kept.start.moments[0]["exp_avg"])
    assert (again.start.moments[0]["plain"], again.start.moments[1], again.start.step) == (7, {}, 7)
    assert str((again.rewards, again.rate, again.offset, again.factor, again.cooled)) == str(
        ([0.5, float("nan")], 1e-4, 128, 3.0, 0.5)
    )
    assert rest["controller"] == {"x": 1}
    there, back = kept.snapshot, again.snapshot
    assert there is not None
    assert back is not None
    assert same(back.point.state, there.point.state)
    assert back.point.moments[0]["plain"] == 7
    assert torch.equal(back.point.moments[0]["exp_avg"], there.point.moments[0]["exp_avg"])
    assert torch.equal(back.point.moments[0]["step"], there.point.moments[0]["step"])
    assert back.point.moments[1] == {}
    assert (back.point.step, back.alpha, back.steps, back.factor, back.reward) == (20, 8.0, 80.0, 1.5, 0.4)
    assert (back.variance, back.measured) == (float("inf"), 1)
    assert (again.history.steps, again.history.rewards) == ([10, 20], {20: 0.25})
    assert all(same(a, b) for a, b in zip(again.history.states, kept.history.states, strict=True))
    assert kept.origin is not None
    assert again.origin is not None
    assert same(again.origin.state, kept.origin.state)
    assert (again.origin.step, again.origin.moments[0]) == (5, {})
    assert torch.equal(again.origin.moments[1]["exp_avg"], torch.ones(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [JSON, TENSORS]


def test_moments_of_any_shape_are_read_back_as_they_were(tmp_path: Path) -> None:
    kept = memory()
    ones = torch.ones(2)
    nested = {
        "GG": [ones, ones * 2],
        "pair": (ones * 3, [], None),
        "by": {0: ones * 4, "deep": [(ones * 5,), 0.5]},
    }
    kept.start.moments[1] = {**nested, "exp_avg": ones * 6, "k": 7, "nextrl_group/d": 0.25}
    memory_files.write(tmp_path, kept, {})
    found = memory_files.read(tmp_path, kept.start.state)
    assert found is not None
    assert str(sorted(found[0].start.moments[1].items())) == str(sorted(kept.start.moments[1].items()))
    assert found[0].start.moments[0].keys() == kept.start.moments[0].keys()


def test_a_state_is_read_in_the_dtype_that_the_adapter_now_has(tmp_path: Path) -> None:
    kept = memory()
    memory_files.write(tmp_path, kept, {})
    # PEFT makes an adapter in half precision float32 when a trainer loads its checkpoint.
    found = memory_files.read(tmp_path, {n: t.float() for n, t in kept.start.state.items()})
    assert found is not None
    again = found[0]
    assert again.snapshot is not None
    assert again.origin is not None
    for state in (again.start.state, again.snapshot.point.state, again.origin.state, *again.history.states):
        assert {t.dtype for t in state.values()} == {torch.float32}
    assert torch.equal(again.start.state["b"], kept.start.state["b"].float())


def test_a_state_is_read_to_where_each_part_of_a_split_model_lies(tmp_path: Path) -> None:
    kept = memory()
    memory_files.write(tmp_path, kept, {})
    first, *rest = kept.start.state
    found = memory_files.read(
        tmp_path, {n: t.to("meta") if n == first else t for n, t in kept.start.state.items()}
    )
    assert found is not None
    again = found[0]
    assert rest
    assert again.snapshot is not None
    assert again.origin is not None
    for state in (again.start.state, again.snapshot.point.state, again.origin.state):
        assert {n: t.device.type for n, t in state.items()} == {first: "meta"} | dict.fromkeys(rest, "cpu")
    assert all(t.device.type == "cpu" for state in again.history.states for t in state.values())


def test_a_folder_without_a_state_has_none(tmp_path: Path) -> None:
    assert memory_files.read(tmp_path, memory().start.state) is None
    memory_files.write(tmp_path, Memory(Point(memory().start.state, [], 0)), {})
    found = memory_files.read(tmp_path, memory().start.state)
    assert found is not None
    assert found[0].start.moments == []
    assert found[0].origin is None


def _with_another_rate(text: str) -> str:
    value = json.loads(text)
    value["window"]["rate"] += 1e-5
    return json.dumps(value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / JSON).write_text("{"), "is damaged"),
        (lambda f: (f / JSON).write_text("[]"), "is damaged"),
        (lambda f: (f / JSON).write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda f: (f / TENSORS).unlink(), "no such file"),
        (lambda f: (f / TENSORS).write_bytes(b"half"), "does not belong"),
        (
            lambda f: (f / JSON).write_text((f / JSON).read_text().replace('"version": 7', '"version": 6')),
            "is of version 6, not 7",
        ),
        (lambda f: (f / JSON).write_text((f / JSON).read_text().replace('"offset"', '"off"')), "is damaged"),
        # One digit of a number that means something: another run, and nothing else would say so.
        (
            lambda f: (f / JSON).write_text(_with_another_rate((f / JSON).read_text())),
            "not as it was written",
        ),
        (lambda f: (f / JSON).write_text("[" * 100_000), "is damaged"),
    ],
)
def test_a_damaged_state_is_one_clear_error(damage: Any, message: str, tmp_path: Path) -> None:
    memory_files.write(tmp_path, memory(), {})
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        memory_files.read(tmp_path, memory().start.state)


def test_another_adapter_s_state_is_refused(tmp_path: Path) -> None:
    memory_files.write(tmp_path, memory(), {})
    with pytest.raises(InputError, match="another adapter"):
        memory_files.read(tmp_path, {"a": torch.ones(2, 3)})


def test_every_checkpoint_of_a_run_holds_a_state(whole: tuple[Path, Any, LeapCallback]) -> None:
    for step in range(SAVE, STEPS + 1, SAVE):
        assert (whole[0] / f"checkpoint-{step}" / JSON).is_file()


def test_a_pipe_in_the_place_of_the_pending_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / memory_files.PENDING)
    with hostile.bounded(60):
        memory_files.forget_pending(tmp_path)
    assert (tmp_path / memory_files.PENDING).is_fifo()


@pytest.mark.parametrize("all_weights", [False, True])
@pytest.mark.parametrize("pending", [False, True])
def test_a_state_that_lies_beside_another_run_s_weights_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, all_weights: bool, pending: bool
) -> None:
    """A run without the callback writes into the same folder, and leaves the files that are not its own."""

    def made(steps: int, *callbacks: Any, **options: Any) -> Any:
        model = tiny.load("chain")[0] if all_weights else None
        kept = {"save_strategy": "steps", "save_steps": 2, **options}
        return trainer(tmp_path, list(callbacks), model=model, max_steps=steps, **kept)

    made(2, LeapCallback(4), learning_rate=1e-5).train()
    if pending:
        waiting = tmp_path / "nextrl_pending" / "checkpoint-2"
        waiting.mkdir(parents=True)
        for name in (JSON, TENSORS):
            (tmp_path / "checkpoint-2" / name).rename(waiting / name)
    made(2, seed=3).train()
    again = LeapCallback(4)
    last = made(3, again, seed=3)
    last.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "holds the state of another run" in caplog.text
    assert [decision.step for decision in again.decisions if decision.step <= 2] == []
    rates = [line["learning_rate"] for line in last.state.log_history if "learning_rate" in line]
    assert rates[2] == 2e-4


def test_a_state_s_own_weights_are_known_in_another_precision() -> None:
    """PEFT makes a half-precision adapter float32; what was narrowed, and what nobody wrote down, passes."""
    stored = {"a": torch.randn(8, 3, dtype=torch.bfloat16), "b": torch.randn(3).double()}
    known = fingerprint(stored)
    wide = {name: tensor.double() for name, tensor in stored.items()}
    assert belongs(known, stored)
    assert belongs(json.loads(json.dumps(known)), wide)
    assert not belongs(known, {**wide, "a": wide["a"] * 1.01})
    assert belongs(known, {**wide, "b": wide["b"].float() + 1})
    assert belongs(None, {"a": torch.zeros(2)})
