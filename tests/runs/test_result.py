"""`result.json` from records: keys, regimes, and a verdict that says no where the answer is no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lora_runs
from nextrl.engines.settings import TrainSettings
from nextrl.runs.loop import ArmRecord, ArmSettings
from nextrl.runs.result import regime, summarise, trajectory_figures
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
    leaped = {"step": 20, "alpha": 2.0, "fit_seconds": 1.0}
    return {
        "plain": record("plain", "plain", [0, 20, 40], [0.3, 0.45, 0.7]),
        "auto": record("auto", "auto", [0, 20], list(auto), search_completions=256),
        "lr-0.001": record("lr-0.001", "control", [0, 20], [0.3, 0.75]),
        "next": record("next", "leap", [20, 40], list(leap), leap=leaped, search_completions=128),
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
    return summarise(arms(**options), settings, plain_run, leap_at=20, sweep=["lr-0.001"])


def test_the_contract_s_keys_are_all_there(plain_run: Path) -> None:
    result = summary(plain_run)
    wanted = "target arms saved regime verdict seed task config costs leaps after trajectory"
    assert set(wanted.split()) <= result.keys()
    series = "steps accuracy se greedy completions seconds learning_rate kind label"
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


def test_figures_are_the_trajectory_s_own(plain_run: Path) -> None:
    traj = Trajectory.load(plain_run)
    figures = trajectory_figures(traj, windows=(10, 20))
    # The run has steps 10 ... 40 and begins at zero, which counts as a checkpoint.
    assert list(figures["persistence"]["10"]) == ["20", "30", "40"]
    assert list(figures["persistence"]["20"]) == ["40"]
    c = traj.persistence(10, at=30)
    assert figures["persistence"]["10"]["30"] == pytest.approx(c)
    assert figures["excess"]["10"]["30"] == pytest.approx(excess(c, adam_persistence(10)))
    for module, sigma in figures["sigma"].items():
        assert len(sigma) == 4
        assert sigma[-1] == pytest.approx(float(traj.delta(module, 0, 40).singular_values()[0]), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.9, 0.7], "signal"), ([0.3], "mixed"), ([0.1, -0.4], "noise"), ([], "noise"), ([0.5], "mixed")],
)
def test_regimes(values: list[float], expected: str) -> None:
    assert regime({"excess": {"10": dict(enumerate(values))}}) == expected
