"""`--alpha auto`: on the tiny model with a reward whose answer is known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from nextrl.cli.leap import leap as leap_verb
from nextrl.engines import offline
from nextrl.engines.offline import ModelRollouts, choose_alpha
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.errors import InputError
from nextrl.judge.guard import Guard
from nextrl.leaps.leap import leap
from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.tasks.evaluate import sample
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
    """Grade by how far the adapter in the model has moved instead of by its answers.

    `rewards(ratio, rows)`: norm of the adapter over that of the checkpoint leapt from, and the rows asked.
    """
    seen = []

    def graded(self, rows, seed):
        size = next(float(p.norm()) for n, p in self._model.named_parameters() if "lora_B" in n)
        seen.append((size, tuple(row["prompt"] for row in rows), seed))
        self.completions += len(rows)
        return rewards(size / seen[0][0], rows)

    monkeypatch.setattr(ModelRollouts, "rewards", graded)
    return seen


def test_a_clear_gain_is_taken_and_every_candidate_is_loaded_on_the_same_prompts(run_dir, monkeypatch):
    def rewards(ratio, rows):
        best = abs(ratio - 5 / 3) < 1e-3  # W_30 is 3 units long, alpha 1 over h = 20 makes it 5
        return torch.full((len(rows),), float(best), dtype=torch.float64)

    seen = scored(monkeypatch, rewards)
    found = choose_alpha(leap(Trajectory.load(run_dir), "factors", 20), *tiny.load("chain"), TASK, prompts=32)
    assert found.alpha == 1.0
    assert "(8 prompts; the best of 5, chosen on them, so the gain is too high)" in found.reason
    assert [round(size / seen[0][0], 3) for size, _, _ in seen] == [1.0, 0.667, 1.333, 1.667, 2.333, 3.667]
    # A clear winner is settled on a quarter of the prompts.
    assert found.completions == 6 * 8 == sum(len(prompts) for _, prompts, _ in seen)
    assert len({(prompts, seed) for _, prompts, seed in seen}) == 1


def test_prompts_too_few_for_any_gain_are_refused(run_dir):
    fitted = leap(Trajectory.load(run_dir), "factors", 20)
    with pytest.raises(
        InputError, match=r"^--prompts 3: on so few no gain can be told from chance: give 4 or"
    ):
        choose_alpha(fitted, *tiny.load("chain"), TASK, prompts=3)


def test_an_open_case_sees_more_prompts_and_a_win_within_the_noise_is_not_taken(run_dir, monkeypatch):
    def rewards(ratio, rows):
        spread = torch.arange(len(rows), dtype=torch.float64) % 2
        # One half of the prompts wins what the other half loses, but for a tenth.
        return spread + (0.6 if ratio > 3 else 0.0) * (2 * spread - 1) + (0.05 if ratio > 3 else 0.0)

    seen = scored(monkeypatch, rewards)
    found = choose_alpha(leap(Trajectory.load(run_dir), "factors", 20), *tiny.load("chain"), TASK, prompts=16)
    assert found.alpha == 0.0
    assert "no candidate beats staying put" in found.reason
    assert {len(prompts) for _, prompts, _ in seen} == {4, 8}  # stretches 0-4, 4-8, 8-16
    with_less = choose_alpha(
        leap(Trajectory.load(run_dir), "factors", 20), *tiny.load("chain"), TASK, prompts=16, level=0.0
    )
    assert with_less.alpha == 4.0


def test_a_leap_forward_that_breaks_the_answers_is_refused_whatever_its_reward(run_dir, monkeypatch):
    def rewards(ratio, rows):
        return torch.full((len(rows),), ratio, dtype=torch.float64)

    seen = scored(monkeypatch, rewards)
    graded = ModelRollouts.rewards

    def sampled(self, rows, seed):
        chosen = [row["prompt"] for row in rows]
        self._latest = sample(self._model, self._tokenizer, chosen, max_new_tokens=4)
        self.mean_length, self.truncated = 4.0, 0.0
        return graded(self, rows, seed)

    monkeypatch.setattr(ModelRollouts, "rewards", sampled)
    fitted = leap(Trajectory.load(run_dir), "factors", 20)
    assert choose_alpha(fitted, *tiny.load("chain"), TASK, prompts=16).alpha == 4.0
    strict = choose_alpha(fitted, *tiny.load("chain"), TASK, prompts=16, guard=Guard(divergence=1e-12))
    assert strict.alpha <= 0.0
    assert "refused: it leaves the current policy" in strict.reason
    assert seen


def test_a_base_model_without_all_of_the_adapter_s_modules_is_refused_before_anything_is_sampled(
    run_dir, monkeypatch
):
    seen = scored(monkeypatch, lambda ratio, rows: torch.ones(len(rows), dtype=torch.float64))
    model, tokenizer = tiny.load("chain")
    model.model.layers = model.model.layers[:1]
    with pytest.raises(InputError, match=r"does not fit the base model \(.*layers\.1.* is not in both\)"):
        choose_alpha(leap(Trajectory.load(run_dir), "factors", 20), model, tokenizer, TASK, prompts=16)
    assert seen == []


def test_log_probabilities_are_those_of_the_completions_and_zero_beside_them(monkeypatch):
    model, tokenizer = tiny.load("chain")
    rollouts = ModelRollouts(model, tokenizer, TASK)
    assert rollouts.log_probabilities() is None
    examples = TASK.examples("validation")[:6]
    rollouts.rewards([{"prompt": e.prompt, "example": e} for e in examples], seed=3)
    found, latest = rollouts.log_probabilities(), rollouts._latest
    assert found.shape == latest.mask.shape
    assert bool((found[latest.mask == 0] == 0).all())
    # Row by row, without padding, the model says the same.
    for row in range(len(examples)):
        keep = latest.attention[row].bool()
        ids = latest.ids[row][keep][None]
        own = int(latest.mask[row].sum())
        with torch.no_grad():
            alone = model(input_ids=ids).logits[0].float().log_softmax(-1)
        expected = alone[-own - 1 : -1].gather(-1, ids[0, -own:, None])[:, 0]
        torch.testing.assert_close(found[row][latest.mask[row].bool()], expected, rtol=1e-4, atol=1e-4)
    assert rollouts.divergence(found, found) == pytest.approx(0.0, abs=1e-12)
    # As many rows at once as logits have room for.
    monkeypatch.setattr(offline, "_LOGITS", 2 * latest.ids.shape[1] * model.config.vocab_size)
    rows, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: (rows.append(len(given["input_ids"])), forward(**given))[1]
    )
    torch.testing.assert_close(rollouts.log_probabilities(), found)
    assert rows == [2, 2, 2]


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
    assert 6 * 2 <= facts["search"]["completions"] <= 6 * 8
    assert not out.exists()
    assert "No leap." in call(*options, "--level", "50").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--alpha", "auto"), "needs --task"),
        (("--alpha", "auto", "--task", "chain", "--base", "nowhere"), "unknown model 'nowhere'"),
        (("--alpha", "much"), "a number or auto"),
        (("--alpha", "nan"), "alpha must be"),
        (("--alpha", "auto", "--task", "chess", "--base", "tiny"), "chess"),
        (("--alpha", "auto", "--task", "chain", "--base", "tiny", "--prompts", "1"), "--prompts"),
        (
            ("--alpha", "auto", "--task", "chain", "--base", "tiny", "--prompts", "0"),
            "--prompts must be at least 2",
        ),
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


def test_a_candidate_without_probabilities_has_left_the_policy_altogether():
    model, tokenizer = tiny.load("chain")
    rollouts = ModelRollouts(model, tokenizer, TASK)
    rollouts.rewards([{"prompt": e.prompt, "example": e} for e in TASK.examples("validation")[:2]], seed=0)
    current = rollouts.log_probabilities()
    assert rollouts.divergence(torch.full_like(current, float("nan")), current) == float("inf")
    assert math.isnan(rollouts.divergence(None, current))
