"""A shared prefix is computed once and changes nothing: logits, gradients, generated tokens."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nextrl.engines.trl import LoraSettings, with_adapter
from nextrl.models import shared_prefix
from nextrl.models.shared_prefix import share_prefix

PREFIX = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def _model(shared: bool) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    if shared:
        share_prefix(model)
    adapted = with_adapter(model, LoraSettings(r=4), 1)
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted


def _batch(prefix: list[int]) -> tuple[Tensor, Tensor]:
    """Left-padded prompts with suffixes of 1 to 4 tokens, then completions of 3 columns, some cut short."""
    suffixes = [[20], [21, 22, 23, 24], [20, 25], [26, 27, 28]]
    rows = [prefix + s for s in suffixes]
    width = max(map(len, rows))
    completions, ends = [[30, 31, 32], [33, 34, 0], [35, 0, 0], [30, 36, 37]], [3, 2, 1, 3]
    ids = [[0] * (width - len(r)) + r + c for r, c in zip(rows, completions, strict=True)]
    mask = [
        [0] * (width - len(r)) + [1] * (len(r) + e) + [0] * (3 - e) for r, e in zip(rows, ends, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def test_logits_and_gradients_are_those_of_the_plain_forward() -> None:
    ids, mask = _batch(PREFIX)
    results = []
    for shared in (False, True):
        model = _model(shared)
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=4, use_cache=False).logits
        chosen = logits[:, :-1].log_softmax(-1).gather(2, ids[:, -3:, None])[mask[:, -3:].bool()]
        chosen.sum().backward()
        results.append((chosen.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (plain, plain_grads), (ours, our_grads) = results
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    assert len(our_grads) == len(plain_grads) > 10
    for ours_, plain_ in zip(our_grads, plain_grads, strict=True):
        torch.testing.assert_close(ours_, plain_, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sample", [False, True])
def test_generation_goes_on_as_from_the_plain_forward(sample: bool) -> None:
    ids, mask = (t[:, :-3] for t in _batch(PREFIX))
    texts = []
    for shared in (False, True):
        torch.manual_seed(3)
        model = _model(shared).eval()
        torch.manual_seed(4)
        layer = model.base_model.model.model.layers[0]
        rows: list[int] = []
        layer.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        texts.append(model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=sample))
        assert (1 in rows) == shared
    assert torch.equal(*texts)


def test_the_prefix_is_run_with_batch_1() -> None:
    ids, mask = _batch(PREFIX)
    model = _model(True)
    layer, seen = model.base_model.model.model.layers[0], []
    layer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    model(input_ids=ids, attention_mask=mask, logits_to_keep=4)
    assert seen == [(1, 10), (4, 7)]


@pytest.mark.parametrize(
    "change",
    [
        {"prefix": [5, 6, 7]},  # too short to pay
        {"logits_to_keep": 0},  # logits are wanted everywhere
        {"logits_to_keep": 12},  # and here inside the prefix
        {"rows": 1},
    ],
)
def test_where_there_is_nothing_to_share_the_plain_forward_runs(change: dict[str, Any]) -> None:
    ids, mask = _batch(change.get("prefix", PREFIX))
    rows, keep = change.get("rows", 4), change.get("logits_to_keep", 4)
    with patch.object(shared_prefix, "_shared", side_effect=AssertionError):
        _model(True)(input_ids=ids[:rows], attention_mask=mask[:rows], logits_to_keep=keep)
