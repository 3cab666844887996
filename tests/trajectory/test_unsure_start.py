"""A run that seems to have begun from an adapter: every verb asks, and nothing is counted from the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from nextrl.cli import build
from nextrl.errors import InputError
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

ASKED = "was the run begun from an adapter?"
STEPS = range(10, 90, 10)
VERBS = (
    ["inspect"],
    ["analyze", "--plots", "none"],
    ["advise", "--updates-per-step", "1"],
    ["backtest", "--methods", "secant"],
    ["leap", "--method", "secant", "--horizon", "10"],
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Reinforcement learning, straight on, from an adapter of supervised fine-tuning; no checkpoint-0."""
    draws = torch.Generator().manual_seed(0)
    a, b, drift = (torch.randn(size, generator=draws) for size in ((4, 32), (32, 4), (32, 4)))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    for step in (0, *STEPS):
        folder = tmp_path / "run" / f"checkpoint-{step}" if step else tmp_path / "begun"
        folder.mkdir(parents=True)
        factors = {"A": a / 6, "B": 0.1 * b + 1e-4 * step * drift}
        state = {f"base_model.model.q_proj.lora_{k}.weight": t for k, t in factors.items()}
        save_file(state, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def call(*words: object) -> tuple[str, str]:
    """What a verb said, and the refusal that it ended in."""
    result = CliRunner().invoke(build(), [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, InputError | SystemExit)
    return " ".join(result.output.split()), str(result.exception or "")


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_every_verb_asks_unless_the_user_has_said_it(words: list[str], run: Path, tmp_path: Path) -> None:
    verb, *options = words
    out = ("--out", tmp_path / "out") if verb == "leap" else ()
    said, _ = call(verb, run, *options, *out)
    assert said.count(ASKED) == 1
    assert ("--start 0, in Python start=0" in said) == (verb != "inspect")  # which has no such option
    if verb != "inspect":
        assert ASKED not in call(verb, run, "--start", "0", *options, *out)[0]
    (tmp_path / "begun").rename(run / "checkpoint-0")
    assert ASKED not in call(verb, run, *options, *out)[0]


@pytest.mark.parametrize("method", ["relex", "linear"])
def test_a_method_that_counts_from_the_base_is_refused(method: str, run: Path, tmp_path: Path) -> None:
    """It took what the adapter had learned for the run's own, and leapt back against the run."""
    out = tmp_path / "out"
    assert ASKED in call("leap", run, "--method", method, "--horizon", "20", "--out", out)[1]
    assert not out.exists()
    with pytest.raises(InputError, match=r"was the run begun from an adapter\?"):
        leap(run, method, horizon=20)
    assert leap(Trajectory.load(run, start=0), method, horizon=20)
    assert call("leap", run, "--method", method, "--horizon", "20", "--start", "0", "--out", out)[1] == ""
    assert ASKED in backtest(run, 20, [method, "secant"]).horizons[20].skipped[method]
    (tmp_path / "begun").rename(run / "checkpoint-0")
    traj = Trajectory.load(run)
    made = leap(traj, method, horizon=20)
    moved, true = made.delta("q_proj"), traj.delta("q_proj", 60, 80)
    assert float(moved.inner(true) / moved.norm() / true.norm()) == pytest.approx(1.0, abs=1e-3)


def test_what_needs_no_base_leaps_as_before(run: Path) -> None:
    traj = Trajectory.load(run)
    for method in ("secant", "factors"):
        moved, true = leap(traj, method, horizon=20).delta("q_proj"), traj.delta("q_proj", 60, 80)
        assert float(moved.inner(true) / moved.norm() / true.norm()) == pytest.approx(1.0, abs=1e-3)
    assert leap(traj.upto(40), "secant", horizon=20).from_step == 40
