"""One arm: its costs, its evaluations, its record (whole comparisons: test_demo.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from nextrl import Trajectory
from nextrl.engines.settings import TrainSettings
from nextrl.errors import InputError
from nextrl.leaps.leap import leap as make_leap
from nextrl.runs import loop
from nextrl.runs.arm import ArmRecord, ArmSettings, LeapSettings, read_record, settings_hash
from nextrl.runs.loop import run_arm, temperature_control
from nextrl.tasks import bases

TRAIN = TrainSettings(steps=4, save_every=2, prompts_per_step=4, completions_per_prompt=4, learning_rate=1e-3)


def arm(name: str = "plain", kind: Any = "plain", **more: Any) -> ArmSettings:
    return ArmSettings(
        name=name, kind=kind, label=name, **{"train": TRAIN, "eval_at": (2, 4), "eval_prompts": 20, **more}
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArmRecord]:
    folder = tmp_path_factory.mktemp("plain")
    return folder, run_arm(arm(save=True), folder, folder)


def test_a_record_has_one_entry_an_evaluation_and_the_arm_s_own_costs(plain: tuple[Path, ArmRecord]) -> None:
    folder, record = plain
    assert record.steps == [0, 2, 4]
    assert record.completions == [0, 32, 64]
    assert record.seconds[0] == 0.0
    assert record.seconds[0] < record.seconds[1] < record.seconds[2]
    assert record.seconds[-1] == pytest.approx(record.train_seconds, abs=0.01)
    assert len(record.rewards) == 4
    assert record.learning_rate == [1e-3] * 3
    assert all(0 <= a <= 1 for a in record.accuracy + record.greedy)
    assert read_record(folder) == record


def test_evaluating_changes_no_training(plain: tuple[Path, ArmRecord], tmp_path: Path) -> None:
    unseen = run_arm(arm(eval_at=(4,)), tmp_path, tmp_path)
    assert unseen.rewards == plain[1].rewards
    assert unseen.accuracy[-1] == plain[1].accuracy[-1]


def test_a_finished_arm_is_read_back_and_not_run(plain: tuple[Path, ArmRecord]) -> None:
    folder, record = plain
    steps: list[int] = []
    assert run_arm(arm(save=True), folder, folder, lambda name, step: steps.append(step)) == record
    assert steps == []


def test_progress_is_told_every_step(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    run_arm(
        arm("lr", "control", eval_at=(4,)), tmp_path, tmp_path, lambda name, step: seen.append((name, step))
    )
    assert seen == [("lr", s) for s in (1, 2, 3, 4)]


def test_an_arm_with_auto_is_charged_for_its_looks(tmp_path: Path) -> None:
    record = run_arm(arm("auto", "auto", auto=True, window=2), tmp_path, tmp_path)
    assert record.decisions
    assert record.completions == [0, 32, 64]
    assert record.search_completions == 0
    assert record.search_seconds > 0


def test_a_leap_starts_at_the_plain_arm_s_checkpoint_with_its_costs(
    plain: tuple[Path, ArmRecord], tmp_path: Path
) -> None:
    settings = LeapSettings(method="secant", horizon=2, alphas=(0.5,), prompts=8, accept="argmax")
    record = run_arm(
        arm("secant", "leap", start=2, leap=settings, eval_at=(4,)), tmp_path / "secant", plain[0]
    )
    assert record.steps == [2, 4]
    assert record.completions == [32 + 16, 64 + 16]
    assert len(record.decisions) == 1
    assert record.decisions[0].step == 2
    assert record.search_completions == 16
    assert record.seconds[0] > plain[1].seconds[1]


def test_going_on_without_a_leap_is_the_plain_arm_to_the_bit(
    plain: tuple[Path, ArmRecord], tmp_path: Path
) -> None:
    resumed = run_arm(arm("again", "control", start=2, eval_at=(4,)), tmp_path, plain[0])
    assert resumed.accuracy == plain[1].accuracy[1:]
    assert resumed.rewards == plain[1].rewards


def test_going_on_in_a_later_epoch_has_that_epoch_s_order_of_prompts(
    tmp_path: Path, few_chain_prompts: Callable[[int], None]
) -> None:
    few_chain_prompts(8)  # two steps of four are an epoch
    whole = run_arm(arm(save=True), tmp_path / "plain", tmp_path / "plain")
    again = run_arm(arm("again", "control", start=2, eval_at=(4,)), tmp_path / "again", tmp_path / "plain")
    assert again.rewards == whole.rewards


def test_a_restart_counts_on_from_where_it_began(plain: tuple[Path, ArmRecord], tmp_path: Path) -> None:
    record = run_arm(arm("restart", "control", start=2, merge=True, eval_at=(2,)), tmp_path, plain[0])
    assert record.steps == [2, 4]
    assert record.completions == [32, 64]
    # Merging changes nothing but rounding: the policy begins as the checkpoint's.
    assert record.accuracy[0] == pytest.approx(plain[1].accuracy[1], abs=0.11)


def test_a_leap_is_merged_whole_and_trained_on_with_a_fresh_adapter(
    plain: tuple[Path, ArmRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leap_by = LeapSettings(method="secant", horizon=2, alphas=(1.5,), search=False)
    settings = arm("merged", "leap", start=4, merge=True, leap=leap_by, eval_at=(2,))
    settings = settings.model_copy(update={"train": TRAIN.model_copy(update={"steps": 6})})
    began: dict[str, Any] = {}
    really = loop.build_trainer

    def look(model: Any, *others: Any, **more: Any) -> Any:
        began.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return really(model, *others, **more)

    monkeypatch.setattr(loop, "build_trainer", look)
    record = run_arm(settings, tmp_path, plain[0])
    assert record.steps == [4, 6]
    assert record.completions == [64, 96]
    assert [(d.step, d.alpha) for d in record.decisions] == [(4, 1.5)]
    assert record.search_seconds == record.fit_seconds > 0.0
    assert record.seconds[0] >= plain[1].seconds[-1] + record.fit_seconds - 0.01
    base_model, _ = bases.load("tiny", "chain")
    weights = dict(base_model.named_parameters())
    made = make_leap(Trajectory.load(plain[0]), "secant", 2, 1.5, at=4)
    for module in made.traj.modules:
        name = f"base_model.model.{module}"
        target = made.target(module)
        wanted = weights[f"{module}.weight"].double() + target.left @ target.right.mT
        torch.testing.assert_close(
            began[f"{name}.base_layer.weight"].double(), wanted, rtol=0, atol=2e-6, msg=module
        )
        assert float(began[f"{name}.lora_B.default.weight"].abs().max()) == 0.0


def test_full_fine_tuning_trains_what_lora_leaves_alone(tmp_path: Path) -> None:
    record = run_arm(arm(lora=None, save=True), tmp_path, tmp_path)
    assert record.steps == [0, 2, 4]
    base_model, _ = bases.load("tiny", "chain")
    before = {n: p.detach() for n, p in base_model.named_parameters()}
    after = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert all(
        not torch.equal(before[name], after[name]) for name in after if "embed" in name or "proj" in name
    )
    assert any("embed" in name for name in after)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lora": None, "leap": LeapSettings(method="secant", alphas=(1.0,))}, "no adapter"),
        ({"lora": None, "merge": True, "start": 2}, "no adapter"),
        ({"merge": True, "start": 2, "leap": LeapSettings(method="secant", alphas=(1.0,))}, "search=False"),
    ],
)
def test_what_cannot_leap_or_merge_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        arm(**wrong)


def test_the_temperature_control_picks_on_validation_and_pays(
    plain: tuple[Path, ArmRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TEMPERATURES", (1.0, 0.2))
    record = temperature_control(arm("temperature", "control", start=2), tmp_path / "t", plain[0])
    assert record.label.startswith("temperature ")
    assert record.search_completions == 2 * 128
    assert record.completions == [32 + 2 * 128]
    assert temperature_control(arm("temperature", "control", start=2), tmp_path / "t", plain[0]) == record


def test_any_setting_changes_the_hash() -> None:
    assert settings_hash([arm()]) == settings_hash([arm()])
    others = [arm(save=True), arm("x"), arm(train=TRAIN.model_copy(update={"seed": 1})), arm(eval_at=(4,))]
    assert len({settings_hash([a]) for a in [arm(), *others]}) == 5
    assert settings_hash([arm(), arm("x")]) != settings_hash([arm()])


@pytest.mark.parametrize("bad", [{"start": -1}, {"kind": "magic"}, {"surprise": 1}, {"eval_prompts": 1}])
def test_an_arm_s_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        arm(**bad)


@pytest.mark.parametrize("wrong", [{"leap": {"step": 1, "alpha": 2.0}}, {"cycles": []}, {"steps": 5}])
def test_a_record_with_what_nothing_reads_or_damaged_is_one_line(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    record = {"name": "run", "kind": "leap", "label": "x", **wrong}
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"record\.json: damaged .*remove it, and the arm is run again"):
        read_record(tmp_path)
