"""`--alpha auto`: on the tiny model with a reward whose answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from nextrl.cli.leap import leap as leap_verb
from nextrl.engines import offline
from nextrl.engines.offline import choose_alpha
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.trajectory.trajectory import Trajectory

TASK = base.get("chain")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Three checkpoints, written by PEFT, whose adapter grows along one random line."""
    folder = tmp_path_factory.mktemp("run")
    model, _ = tiny.load("chain")
    adapted = with_adapter(model, LoraSettings(r=2, alpha=4, target_modules=["q_proj", "down_proj"]), seed=0)
    draws = torch.Generator().manual_seed(0)
    moves = {n: torch.randn(p.shape, generator=draws) for n, p in adapted.named_parameters() if "lora_B" in n}
    for step in (10, 20, 30):
        for name, parameter in adapted.named_parameters():
            if name in moves:
                parameter.data = moves[name] * step * 1e-5
        adapted.save_pretrained(folder / f"checkpoint-{step}")
    return folder


def call(*arguments):
    app = Typer()
    app.command()(leap_verb)
    return CliRunner().invoke(app, list(map(str, arguments)))


def scored(monkeypatch, rewards):
    """Grade by how far the adapter in the model has moved instead of by its answers."""
    seen = []

    def complete(model, tokenizer, prompts, *, max_new_tokens, seed):
        size = next(float(p.norm()) for n, p in model.named_parameters() if "lora_B" in n)
        seen.append((size, tuple(prompts), seed))
        return [str(size)] * len(prompts)

    monkeypatch.setattr(offline, "complete", complete)
    monkeypatch.setattr(offline, "grade", lambda task, chosen, texts: rewards(float(texts[0]), chosen, seen))
    return seen


def test_a_clear_gain_is_taken_and_every_candidate_is_loaded_on_the_same_prompts(run_dir, monkeypatch):
    def rewards(size, chosen, seen):
        best = abs(size / seen[0][0] - 5 / 3) < 1e-3  # W_30 is 3 units long, alpha 1 over h = 20 makes it 5
        return torch.full((len(chosen),), float(best), dtype=torch.float64)

    seen = scored(monkeypatch, rewards)
    found = choose_alpha(leap(Trajectory.load(run_dir), "factors", 20), *tiny.load("chain"), TASK, prompts=8)
    assert found.alpha == 1.0
    assert found.completions == 8 * 8 == sum(len(prompts) for _, prompts, _ in seen)
    assert [round(size / seen[0][0], 3) for size, _, _ in seen[:6]] == [
        1.0,
        0.667,
        1.333,
        1.667,
        2.333,
        3.667,
    ]
    assert len({(prompts, seed) for _, prompts, seed in seen}) == 2
    assert not set(seen[0][1]) & set(seen[-1][1])


def test_what_wins_only_the_first_round_is_not_taken(run_dir, monkeypatch):
    def rewards(size, chosen, seen):
        lucky = len(seen) <= 6 and size > 3 * seen[0][0]
        return torch.full((len(chosen),), float(lucky), dtype=torch.float64)

    scored(monkeypatch, rewards)
    found = choose_alpha(leap(Trajectory.load(run_dir), "factors", 20), *tiny.load("chain"), TASK, prompts=8)
    assert found.alpha == 0.0
    assert "fails on fresh prompts" in found.reason


def test_no_leap_writes_nothing_and_says_why(run_dir, tmp_path):
    out = tmp_path / "leapt"
    options = (
        run_dir,
        "--alpha",
        "auto",
        "--task",
        "chain",
        "--base",
        "tiny",
        "--prompts",
        "8",
        "--out",
        out,
    )
    result = call(*options, "--level", "50", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["alpha"], facts["out"]) == (0.0, None)
    assert facts["search"]["completions"] == 48
    assert not out.exists()
    assert "no leap" in call(*options, "--level", "50").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--alpha", "auto"), "needs --task"),
        (("--alpha", "auto", "--task", "chain", "--base", "nowhere"), "neither a folder"),
        (("--alpha", "much"), "a number or auto"),
        (("--alpha", "nan"), "alpha must be"),
        (("--alpha", "auto", "--task", "chess", "--base", "tiny"), "chess"),
        (("--alpha", "auto", "--task", "chain", "--base", "tiny", "--prompts", "1"), "--prompts"),
        (
            ("--alpha", "auto", "--task", "chain", "--base", "tiny", "--prompts", "100000"),
            "validation prompts",
        ),
    ],
)
def test_bad_input(run_dir, tmp_path, options, words):
    result = call(run_dir, "--out", tmp_path / "leapt", *options)
    assert isinstance(result.exception, InputError), result.output
    assert words in str(result.exception)
    assert not (tmp_path / "leapt").exists()
