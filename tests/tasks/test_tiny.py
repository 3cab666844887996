"""The shipped bases and their tokenizer (the rebuilt base is in test_rebuilt_base.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from nextrl.errors import InputError
from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.tasks.evaluate import evaluate


def test_text_survives_the_tokenizer() -> None:
    encode = tiny.tokenizer()
    ids = encode("3+4*5-2=")["input_ids"]
    assert ids[0] == encode.bos_token_id
    assert len(ids) == 9
    assert encode.decode(ids, skip_special_tokens=True) == "3+4*5-2="
    padded = encode(["3+4*5-2=", "1="], padding=True)["input_ids"]
    assert padded[1][:6] == [encode.pad_token_id] * 6


@pytest.mark.parametrize("task", sorted(tiny.RECIPES))
def test_the_shipped_tokenizer_is_the_one_in_code(task: str) -> None:
    shipped = AutoTokenizer.from_pretrained(tiny.shipped(task))
    assert shipped("06+-*=")["input_ids"] == tiny.tokenizer()("06+-*=")["input_ids"]
    assert shipped.padding_side == "left"


@pytest.mark.parametrize(
    ("task", "sampled", "greedy"),
    [("chain", (0.29, 0.47), (0.95, 1.0)), ("chain-wrong-rule", (0.20, 0.34), (0.25, 0.41))],
)
def test_each_base_starts_where_its_task_needs_it(
    task: str, sampled: tuple[float, float], greedy: tuple[float, float]
) -> None:
    model, encode = tiny.load(task)
    result = evaluate(model, encode, base.get(task), prompts=1000)
    assert sampled[0] < result.accuracy < sampled[1]
    assert result.greedy is not None
    assert greedy[0] <= result.greedy <= greedy[1]
    assert sum(p.numel() for p in model.parameters()) < 450_000


def test_training_is_the_same_twice_and_differs_by_seed() -> None:
    short = tiny.Recipe(wrong_rule=False, noise=0.3, until_loss=0.0, batch=8, updates=(2, 2))
    one, two = tiny.train(short), tiny.train(short)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = tiny.train(
        tiny.Recipe(wrong_rule=False, noise=0.3, until_loss=0.0, batch=8, updates=(2, 2), seed=1)
    )
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_first_phase_ends_when_the_loss_is_low_enough() -> None:
    recipe = tiny.Recipe(wrong_rule=False, noise=0.0, until_loss=100.0, batch=4)
    model = tiny.fresh_model(0)
    used = tiny._phase(model, recipe, updates=40, learning_rate=1e-3, noise=0.0, stop=100.0)
    assert used == 20


def test_the_command_writes_a_model_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        tiny.RECIPES,
        "chain",
        tiny.Recipe(wrong_rule=False, noise=0.1, until_loss=0.0, batch=4, updates=(1, 1)),
    )
    tiny.main(["--task", "chain", "--out", str(tmp_path / "base")])
    assert (tmp_path / "base" / "model.safetensors").stat().st_size < 2_000_000
    assert AutoTokenizer.from_pretrained(tmp_path / "base")("1=")["input_ids"] == [2, 4, 13]


def test_there_is_no_base_for_other_tasks() -> None:
    with pytest.raises(InputError, match="no tiny base is shipped for task 'gsm8k'"):
        tiny.load("gsm8k")
