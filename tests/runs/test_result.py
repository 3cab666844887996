"""`result.json`: its keys and verdict from records, one regime for a run, and what reading an old file leaves out."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import lora_runs
import synthetic_runs as synthetic
from nextrl.engines.settings import TrainSettings
from nextrl.errors import InputError
from nextrl.judge.advise import advise
from nextrl.judge.decision import DecisionRecord
from nextrl.judge.regime import MEANING, regime_of
from nextrl.leaps.leap import leap
from nextrl.runs.arm import ArmRecord, ArmSettings, LeapSettings
from nextrl.runs.layout import RESULT
from nextrl.runs.report import render
from nextrl.runs.result import FORMAT, Result, parse_result, read_result, write_result
from nextrl.runs.summary import summarise, summarise_run, trajectory_figures
from nextrl.trajectory.persistence import adam_persistence, excess
from nextrl.trajectory.trajectory import Trajectory


def record(name: str, kind: str, steps: list[int], accuracy: list[float], **more: Any) -> ArmRecord:
    return ArmRecord(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        label=name,
        steps=steps,
        accuracy=accuracy,
        se=[0.01] * len(steps),
        greedy=[a + 0.1 for a in accuracy],
        completions=[128 * s for s in steps],
        seconds=[0.2 * s for s in steps],
        learning_rate=[5e-5] * len(steps),
        **more,
    )


def arms(auto: list[float] = (0.3, 0.9), leap: list[float] = (0.5, 0.6)) -> dict[str, ArmRecord]:
    leaped = DecisionRecord(step=20, method="next", alpha=2.0, learning_rate=5e-5, reason="")
    spent = {"search_completions": 128, "fit_seconds": 1.0}
    return {
        "plain": record("plain", "plain", [0, 20, 40], [0.3, 0.45, 0.7]),
        "auto": record("auto", "auto", [0, 20], list(auto), search_completions=256),
        "lr-0.001": record("lr-0.001", "control", [0, 20], [0.3, 0.75]),
        "next": record("next", "leap", [20, 40], list(leap), decisions=[leaped], **spent),
    }


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    lora_runs.write_run(folder)
    return folder


def summary(plain_run: Path, **options: Any) -> dict[str, Any]:
    settings = [
        ArmSettings(name=n, kind=a.kind, label=n, train=TrainSettings(), eval_at=(40,))
        for n, a in arms(**options).items()
    ]
    return summarise(arms(**options), settings, plain_run, leap_at=20, sweep=["lr-0.001"]).as_dict()


def test_the_contract_s_keys_are_all_there(plain_run: Path) -> None:
    result = summary(plain_run)
    wanted = "target arms saved regime verdict seed task config costs leaps after trajectory"
    assert set(wanted.split()) <= result.keys()
    series = "steps accuracy se greedy completions seconds learning_rate rate_steps rates kind label"
    for arm in result["arms"].values():
        assert set(series.split()) == arm.keys()
    assert result["target"] == 0.7
    assert set(result["saved"]) == {"auto", "lr-0.001", "next", "tuned", "tuned-with-sweep"}
    assert all(s.keys() == {"steps", "completions", "seconds"} for s in result["saved"].values())
    assert result["saved"]["auto"]["completions"] == 0.5
    assert result["saved"]["next"]["steps"] is None
    assert result["after"]["next"] == {"leap": 0.5, "plus50": None, "plus100": None}
    assert result["tuned"] == "lr-0.001"
    assert result["trajectory"]["steps"] == list(lora_runs.STEPS)


def test_the_verdict_states_the_figures(plain_run: Path) -> None:
    text = summary(plain_run)["verdict"]
    assert "reaches 0.700 after 40 steps" in text
    assert "50 % of the completions saved" in text
    assert "ends 0.150 ahead, with no sweep" in text
    assert "changed by +0.050, past the noise" in text


def test_the_verdict_says_so_where_nothing_was_gained(plain_run: Path) -> None:
    text = summary(plain_run, auto=[0.3, 0.5], leap=[0.46, 0.5])["verdict"]
    assert "auto did not reach the plain run's final accuracy (0.700); it ended at 0.500" in text
    assert "behind, with no sweep" in text
    assert "changed by +0.010, within the noise: it did not pay" in text


def test_where_the_plain_run_never_rose_there_is_nothing_to_save(plain_run: Path) -> None:
    flat = {**arms(), "plain": record("plain", "plain", [0, 20, 40], [0.5, 0.6, 0.45])}
    flat["rule"] = record("rule", "control", [0, 20], [0.5, 0.6])
    settings = [
        ArmSettings(name=n, kind=a.kind, label=n, train=TrainSettings(), eval_at=(40,))
        for n, a in flat.items()
    ]
    result = summarise(flat, settings, plain_run, leap_at=20, sweep=["lr-0.001"])
    text = result.verdict or ""
    assert "ends at 0.450, no higher than it began, so that there is nothing to save" in text
    assert "never" not in text
    assert "saves" not in text
    assert result.saved["auto"].completions is None
    assert "nothing to save" in render(result)


@pytest.mark.parametrize(
    ("accuracy", "outcome"), [([0.3, 0.75], "saves 50 %"), ([0.3, 0.6], "never reaches the target")]
)
def test_the_verdict_says_how_the_published_rule_did(
    plain_run: Path, accuracy: list[float], outcome: str
) -> None:
    with_rule = {**arms(), "rule": record("rule", "control", [0, 20], accuracy)}
    settings = [
        ArmSettings(name=n, kind=a.kind, label=n, train=TrainSettings(), eval_at=(40,))
        for n, a in with_rule.items()
    ]
    text = summarise(with_rule, settings, plain_run, leap_at=20, sweep=["lr-0.001"]).verdict or ""
    wanted = (
        f"The published rule's rate (5e-05, known before any run) {outcome} and ends at {accuracy[-1]:.3f}."
    )
    assert wanted in text


def test_figures_are_the_trajectory_s_own(plain_run: Path) -> None:
    traj = Trajectory.load(plain_run)
    figures = trajectory_figures(traj, windows=(10, 20)).as_dict()
    # The run has steps 10 ... 40 and begins at zero, which counts as a checkpoint.
    assert list(figures["persistence"]["10"]) == ["20", "30", "40"]
    assert list(figures["persistence"]["20"]) == ["40"]
    c = traj.persistence(10, at=30)
    assert figures["persistence"]["10"]["30"] == pytest.approx(c)
    assert figures["excess"]["10"]["30"] == pytest.approx(excess(c, adam_persistence(10)))
    for module, sigma in figures["sigma"].items():
        assert len(sigma) == 4
        assert sigma[-1] == pytest.approx(float(traj.delta(module, 0, 40).singular_values()[0]), rel=1e-4)


def measured_by_advise(traj: Trajectory) -> tuple[str, float]:
    advice = advise(traj)
    return advice.regime, advice.features.excess


def straight(folder: Path, share: float) -> Path:
    """A run whose steps hold so much of one direction, the rest noise."""
    config = {"target_modules": ["q_proj", "up_proj"], "base_model_name_or_path": "tiny"}
    traj = synthetic.run(synthetic.walk(share), range(10, 161, 10), adapter_config=config)
    for step in traj.steps:
        leap(traj, "none", at=step).save_adapter(folder / f"checkpoint-{step}")
    return folder


@pytest.mark.parametrize("share", [0.0, 0.6, 1.2, 5.0])
def test_demo_run_report_and_advise_call_a_run_by_one_regime(tmp_path: Path, share: float) -> None:
    folder = straight(tmp_path, share)
    wanted, excess_there = measured_by_advise(Trajectory.load(folder))
    settings = [
        ArmSettings(name=n, kind=a.kind, label=n, train=TrainSettings(), eval_at=(40,))
        for n, a in arms().items()
    ]
    compared = summarise(arms(), settings, folder, leap_at=20, sweep=["lr-0.001"])
    plain = ArmSettings(name="run", kind="plain", label="run", train=TrainSettings(), eval_at=(40,))
    alone = summarise_run(record("run", "plain", [0, 20], [0.3, 0.4]), plain, {}, Trajectory.load(folder))
    assert compared.regime == alone.regime == wanted
    for result in (compared, alone):
        assert f"excess persistence is {excess_there:.2f} at its end: {MEANING[wanted]}" in str(
            result.verdict
        )
        page = html.unescape(render(result))
        assert f"at its end: <b>{wanted}</b> ({MEANING[wanted]})" in page


def test_a_run_too_short_to_advise_on_has_a_result_and_a_damaged_one_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ArmSettings(name="run", kind="plain", label="run", train=TrainSettings(), eval_at=(40,))
    short = Trajectory.load(straight(tmp_path, 1.2)).at((10,))
    done = record("run", "plain", [0, 20], [0.3, 0.4])
    assert summarise_run(done, plain, {}, short).advice is None

    def unreadable(traj: Trajectory) -> None:
        raise InputError("nextrl_decisions.jsonl: not readable as JSON")

    monkeypatch.setattr("nextrl.runs.summary.advise", unreadable)
    with pytest.raises(InputError, match="not readable"):
        summarise_run(done, plain, {}, short)


def test_the_shares_above_cover_every_regime(tmp_path: Path) -> None:
    seen = {
        measured_by_advise(Trajectory.load(straight(tmp_path / str(s), s)))[0] for s in (0.0, 0.6, 1.2, 5.0)
    }
    assert seen == {"noise", "mixed", "signal"}


def test_a_run_that_leapt_is_measured_by_its_own_windows(plain_run: Path) -> None:
    arm = ArmSettings(name="run", kind="auto", label="run", train=TrainSettings(), eval_at=(40,), auto=True)
    decided = [
        {"step": s, "alpha": a, "scores": {}, "reason": "r", "learning_rate": 1e-4}
        for s, a in ((10, 8.0), (20, 0.0), (30, 0.0))
    ]
    leapt = record("run", "auto", [0, 40], [0.3, 0.4], decisions=decided)
    result = summarise_run(leapt, arm, {}, Trajectory.load(plain_run))
    own = list(result.trajectory.excess["10"].values())
    assert result.regime == regime_of(sum(own) / len(own))
    # The leap at step 10 lies between step 0 and 10: no window may span it.
    assert list(result.trajectory.persistence["10"]) == ["30", "40"]


def test_a_leap_that_was_taken_back_is_not_told_as_one_that_stayed(plain_run: Path) -> None:
    leap = LeapSettings(method="secant", horizon=10, alphas=(1.0,))
    arm = ArmSettings(name="run", kind="leap", label="run", train=TrainSettings(), eval_at=(40,), leap=leap)
    decided = [
        {"step": s, "alpha": a, "reason": "r", "rolled_back": b}
        for s, a, b in ((10, 8.0, None), (20, 0.0, 10), (30, 2.0, None))
    ]
    leapt = record("run", "leap", [0, 40], [0.3, 0.4], decisions=decided)
    verdict = str(summarise_run(leapt, arm, {}, Trajectory.load(plain_run)).verdict)
    assert "took 2 of them (at step 10, 30); what was done at step 10 was taken back" in verdict


def test_what_auto_changed_and_took_back_is_told(plain_run: Path) -> None:
    arm = ArmSettings(name="run", kind="auto", label="run", train=TrainSettings(), eval_at=(40,), auto=True)
    decided = [
        {"step": 1, "alpha": 0.0, "reason": "r", "rate_factor": 40.0},
        {"step": 11, "alpha": -1.0, "reason": "r", "rate_factor": 0.5, "back": "window"},
        {"step": 21, "alpha": 0.0, "reason": "r"},
    ]
    changed = record("run", "auto", [0, 40], [0.3, 0.4], decisions=decided)
    result = summarise_run(changed, arm, {}, Trajectory.load(plain_run))
    assert "auto changed the learning rate 2 times, and took back what had done harm at step 11" in str(
        result.verdict
    )
    assert [entry.step for entry in result.leaps["run"]] == [1, 11, 21]
    decided[1] |= {"back": "run", "rate_factor": 0.2}
    again = summarise_run(
        record("run", "auto", [0, 40], [0.3, 0.4], decisions=decided), arm, {}, Trajectory.load(plain_run)
    )
    assert "2 times, and began again at step 11, since its first step had gone too far; it" in str(
        again.verdict
    )


ROSE = [{"step": 1, "alpha": 0.0, "reason": "r", "rate_factor": 40.0, "learning_rate": 2e-3}]
OVERSHOT = [
    *ROSE,
    {"step": 2, "alpha": -1.0, "reason": "r", "rate_factor": 0.5, "back": "step", "learning_rate": 1e-3},
]


@pytest.mark.parametrize(
    ("decided", "rates", "told"),
    [
        (
            ROSE,
            ([1, 2, 33, 34, 40], [5e-5, 2e-3, 1e-3, 9e-4, 1e-4]),
            "began at 5e-05, was highest at 0.002 (from step 1 on) and was brought down to 0.0001 by the cooldown that "
            "ends a run over the last 8 steps.",
        ),
        (
            OVERSHOT,
            ([1, 2, 3, 33, 40], [5e-5, 2e-3, 1e-3, 9e-4, 1e-4]),
            "began at 5e-05, was highest at 0.002 (from step 1 on), stood at 0.001 and was brought down to 0.0001 by "
            "the cooldown that ends a run over the last 8 steps.",
        ),
        (
            OVERSHOT,
            ([1, 2, 3], [5e-5, 2e-3, 1e-3]),
            "began at 5e-05, was highest at 0.002 (from step 1 on) and ended at 0.001.",
        ),
        # A record of an earlier version knows the rates of its evaluations and decisions alone.
        (
            ROSE,
            ([], []),
            "began at 5e-05, was highest at 0.002 (from step 1 on) and was brought down to 0.0001 by the cooldown that "
            "ends a run.",
        ),
    ],
)
def test_the_way_of_auto_s_rate_is_told_with_its_height_and_its_cooldown(
    plain_run: Path, decided: list[dict[str, Any]], rates: tuple[list[int], list[float]], told: str
) -> None:
    arm = ArmSettings(name="run", kind="auto", label="run", train=TrainSettings(), eval_at=(40,), auto=True)
    run = record("run", "auto", [0, 20, 40], [0.3, 0.4, 0.9], decisions=decided)
    run.rate_steps, run.rates = rates
    run.learning_rate = [5e-5, decided[-1]["learning_rate"], rates[1][-1] if rates[1] else 1e-4]
    result = summarise_run(run, arm, {}, Trajectory.load(plain_run))
    assert f"Its learning rate {told}" in str(result.verdict)
    assert "went from 5e-05" not in str(result.verdict)


def test_the_regime_is_no_headline_of_a_run_whose_rate_was_changed_on_the_way(plain_run: Path) -> None:
    arm = ArmSettings(name="run", kind="auto", label="run", train=TrainSettings(), eval_at=(40,), auto=True)
    run = record("run", "auto", [0, 40], [0.3, 0.9], decisions=ROSE)
    result = summarise_run(run, arm, {}, Trajectory.load(plain_run))
    assert result.regime is not None
    assert "Regime" not in render(result)
    assert "at its end" in str(result.verdict)


def test_figures_follow_the_run_s_own_beta1(tmp_path: Path) -> None:
    lora_runs.write_run(tmp_path)
    for step in lora_runs.STEPS:
        state = {"param_groups": [{"betas": (0.5, 0.999)}]}
        torch.save(state, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    figures = trajectory_figures(Trajectory.load(tmp_path), windows=(10,))
    assert figures.zero["10"] == pytest.approx(adam_persistence(10, 0.5))


def test_a_run_whose_momentum_is_unsaid_has_no_zero_point(tmp_path: Path) -> None:
    lora_runs.write_run(tmp_path)
    for step in lora_runs.STEPS:
        lion = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"betas": (0.9, 0.99)}]}
        torch.save(lion, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    arm = ArmSettings(name="run", kind="plain", label="run", train=TrainSettings(), eval_at=(40,))
    result = summarise_run(record("run", "plain", [0, 40], [0.3, 0.9]), arm, {}, Trajectory.load(tmp_path))
    assert result.trajectory.persistence
    assert (result.trajectory.zero, result.trajectory.excess, result.regime) == ({}, {}, None)
    assert "Excess persistence" not in render(result)


def test_what_is_written_is_read_back(plain_run: Path, tmp_path: Path) -> None:
    result = parse_result(summary(plain_run))
    write_result(tmp_path / RESULT, result)
    read = read_result(tmp_path / RESULT)
    assert read.as_dict() == summary(plain_run)
    assert read.version == FORMAT
    assert read.digest == Result.model_validate(summary(plain_run)).digest
    assert render(read) == render(Result.model_validate(summary(plain_run)))


def test_whole_numbers_and_unknown_keys_stay_as_they_are() -> None:
    value = {
        "arms": {"a": {"steps": [0, 10], "accuracy": [0.5, 1], "new": [1]}},
        "seed": 3,
        "later": {"x": 1},
    }
    assert json.dumps(parse_result(value).as_dict(), sort_keys=True) == json.dumps(value, sort_keys=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": math.nan},
        {"target": "text"},
        {"arms": {"a": {"accuracy": [True]}}},
        {"arms": None},
        {"seed": [1]},
        {"saved": {"a": {"steps": math.inf}}},
    ],
)
def test_nothing_odd_is_written_though_it_is_left_out_on_reading(wrong: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"arms": {"a": {"accuracy": [0.5]}}}
    with pytest.raises(ValidationError):
        Result.model_validate({**whole, **wrong})
    if wrong.get("arms", True) is not None:
        read = parse_result({**whole, **wrong})
        assert "NaN" not in json.dumps(read.as_dict())
        assert (read.target, read.seed) == (None, None)


def test_a_file_without_a_version_is_read() -> None:
    old = {"arms": {"plain": {"kind": "plain", "steps": [0, 10], "accuracy": [0.1, 0.2]}}, "regime": "signal"}
    read = parse_result(old)
    assert (read.version, read.regime, read.reach) == (None, "signal", None)
    assert read.leaps == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no result.json"),
        ("{", "not readable as JSON"),
        ("[]", "not an object"),
        ("{}", "no arms"),
    ],
)
def test_files_that_hold_no_result(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / RESULT).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        read_result(tmp_path / RESULT)
    assert str(tmp_path) in str(error.value)
