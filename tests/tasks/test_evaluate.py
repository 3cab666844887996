"""Generation that is seeded, leaves no trace, and grades what it should."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

import nextrl.tasks.evaluate
from nextrl.errors import InputError
from nextrl.tasks import base, bases
from nextrl.tasks.bases import tiny
from nextrl.tasks.evaluate import batch_size, complete, evaluate, grade, inference, sample, seeded
from nextrl.tasks.generation import end_tokens

TASK = base.get("chain")
PROMPTS = [e.prompt for e in TASK.examples("test")[:40]]


@pytest.fixture(scope="module")
def loaded() -> tuple[object, object]:
    return tiny.load("chain")


def test_the_same_seed_samples_the_same_text(loaded: tuple) -> None:
    model, encode = loaded
    one = complete(model, encode, PROMPTS, max_new_tokens=6, seed=1)
    assert one == complete(model, encode, PROMPTS, max_new_tokens=6, seed=1)
    assert one != complete(model, encode, PROMPTS, max_new_tokens=6, seed=2)
    assert len(one) == len(PROMPTS)


def test_greedy_needs_no_seed_and_padding_changes_nothing(loaded: tuple) -> None:
    model, encode = loaded
    greedy = complete(model, encode, PROMPTS, max_new_tokens=6, temperature=None, seed=1)
    assert greedy == complete(model, encode, PROMPTS, max_new_tokens=6, temperature=None, seed=2)
    assert greedy == complete(model, encode, PROMPTS, max_new_tokens=6, temperature=None, batch=7)
    cold = complete(model, encode, PROMPTS, max_new_tokens=6, temperature=0.01)
    assert sum(a == b for a, b in zip(cold, greedy, strict=True)) >= len(greedy) - 2


def test_an_evaluation_leaves_no_trace(loaded: tuple) -> None:
    model, encode = loaded
    model.train()
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    evaluate(model, encode, TASK, prompts=10)
    assert torch.equal(torch.randn(3), expected)
    assert model.training
    model.eval()
    with pytest.raises(RuntimeError), inference(model), seeded(1):
        raise RuntimeError
    assert not model.training


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (LlamaForCausalLM, {"num_key_value_heads": 2}),
        (Gemma3ForCausalLM, {"head_dim": 24}),
        (GPT2LMHeadModel, {}),
    ],
)
def test_as_many_prompts_together_as_their_keys_and_values_have_room(
    monkeypatch: pytest.MonkeyPatch, kind: type, more: dict[str, int]
) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = kind(kind.config_class(**sizes, intermediate_size=16, **more)).to(torch.bfloat16)
    layers = model(torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values.layers
    bytes_each = sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))
    for room, most in ((bytes_each * 7, 7), (bytes_each * 7 - 1, 6), (1, 1), (2**60, 1024)):
        monkeypatch.setattr(nextrl.tasks.evaluate, "_CACHE", room)
        assert batch_size(model, 10) == most


def test_long_answers_are_sampled_in_several_parts(monkeypatch: pytest.MonkeyPatch, loaded: tuple) -> None:
    model, encode = loaded
    whole = complete(model, encode, PROMPTS, max_new_tokens=6, temperature=None)
    parts: list[int] = []
    real = sample

    def counted(model: object, tokenizer: object, prompts: list[str], **rest: object) -> object:
        parts.append(len(prompts))
        return real(model, tokenizer, prompts, **rest)

    monkeypatch.setattr(nextrl.tasks.evaluate, "sample", counted)
    tokens = max(map(len, encode(PROMPTS)["input_ids"])) + 6
    monkeypatch.setattr(nextrl.tasks.evaluate, "_CACHE", 15 * 2 * 2 * 128 * 4 * tokens)
    assert complete(model, encode, PROMPTS, max_new_tokens=6, temperature=None) == whole
    assert parts == [15, 15, 10]


def test_accuracy_and_its_error_are_those_of_the_graded_samples(loaded: tuple) -> None:
    model, encode = loaded
    result = evaluate(model, encode, TASK, prompts=50, seed=3)
    examples = TASK.examples("test")[:50]
    texts = complete(model, encode, [e.prompt for e in examples], max_new_tokens=6, seed=3)
    rewards = grade(TASK, examples, texts)
    p = float(rewards.mean())
    assert result.accuracy == p
    assert result.se == pytest.approx(math.sqrt(p * (1 - p) / 49))
    assert result.n == 50
    assert evaluate(model, encode, TASK, prompts=10, greedy=False).greedy is None


def test_other_examples_can_be_graded(loaded: tuple) -> None:
    model, encode = loaded
    wrong = [type(e)(e.prompt, "x") for e in TASK.examples("validation")[:5]]
    assert evaluate(model, encode, TASK, examples=wrong).accuracy == 0.0


def test_one_prompt_has_no_error(loaded: tuple) -> None:
    with pytest.raises(InputError, match="at least 2 prompts"):
        evaluate(*loaded, TASK, prompts=1)


def test_prompts_and_completions_beyond_the_context_are_refused_before_any_is_answered(
    loaded: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encode = loaded
    longest = max(map(len, encode(PROMPTS)["input_ids"]))
    room = model.config.max_position_embeddings - longest
    assert len(complete(model, encode, PROMPTS[:2], max_new_tokens=room)) == 2
    monkeypatch.setattr(
        nextrl.tasks.evaluate, "sample", lambda *_, **__: pytest.fail("a prompt was answered")
    )
    for batch in (None, 1):
        with pytest.raises(
            InputError, match=rf"completion may have {room + 1}, and the model takes 64 together"
        ):
            complete(model, encode, PROMPTS, max_new_tokens=room + 1, batch=batch)


@pytest.fixture
def chatty(tmp_path: Path) -> Any:
    """(a folder as it was saved, the same with settings for chatting and two end tokens)."""
    model, tokenizer = tiny.load("chain")
    for name, settings in (
        ("plain", {}),
        ("chatty", {"top_p": 0.5, "repetition_penalty": 1.3, "do_sample": True}),
    ):
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / name)
        path = tmp_path / name / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return tmp_path / "plain", tmp_path / "chatty"


def test_settings_that_a_model_was_published_with_change_no_accuracy(chatty: Any) -> None:
    plain, other = (evaluate(*bases.load(str(folder), "chain"), TASK, prompts=60) for folder in chatty)
    assert plain == other
    model, tokenizer = tiny.load("chain")
    model.generation_config.top_p, model.generation_config.repetition_penalty = 0.5, 1.3
    assert evaluate(model, tokenizer, TASK, prompts=60) == plain  # a model of one's own, from Python
    assert model.generation_config.top_p == 0.5


def test_a_completion_ends_at_each_of_the_model_s_end_tokens() -> None:
    model, tokenizer = tiny.load("chain")
    prompts = [example.prompt for example in TASK.examples("test")[:8]]
    before = sample(model, tokenizer, prompts, max_new_tokens=6, temperature=None)
    second = int(before.ids[0, -before.mask.shape[1] + 1])  # the token that the first answer goes on with
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, second]
    after = sample(model, tokenizer, prompts, max_new_tokens=6, temperature=None)
    assert int(after.mask[0].sum()) == 2
    assert bool(after.ended[0])
    assert end_tokens(model, tokenizer) == sorted({tokenizer.eos_token_id, second})


def test_evaluating_draws_nothing_from_python_and_numpy() -> None:
    model, tokenizer = tiny.load("chain")
    noisy = replace_reward(TASK, lambda completion, answer: random.random() * float(np.random.rand()))
    before = random.getstate(), np.random.get_state()[1].tolist()
    first, second = (evaluate(model, tokenizer, noisy, prompts=8) for _ in range(2))
    assert first == second
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def replace_reward(task: Any, reward: Any) -> Any:
    return SimpleNamespace(
        max_completion_length=task.max_completion_length, examples=task.examples, reward=reward
    )
