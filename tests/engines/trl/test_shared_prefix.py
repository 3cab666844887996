"""Shared prefixes: the same hidden states, gradients and completions as row by row, for fewer tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.shared_prefix import _SLIDING, share_prefixes
from nextrl.engines.trl.trainer import with_adapter
from nextrl.errors import InputError
from prefix_batches import PAD, SHOTS, batch, llama


def counted(model) -> list[int]:
    """Tokens that the first layer has been asked for, one entry a pass."""
    seen: list[int] = []
    layer = model.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    return seen


def positions(mask):
    return (mask.cumsum(1) - 1).clamp_min(0)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(3, 11), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 4),
    st.booleans(),
)
def test_hidden_states_are_those_of_each_row_alone(tails, group, completions, few_shot):
    prompts = [(SHOTS if few_shot else []) + tail for tail in tails]
    ids, mask = batch(prompts, group, completions)
    plain, shared = llama(), llama()
    share_prefixes(shared)
    with torch.no_grad():
        expected = plain.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask))
        found = shared.model(input_ids=ids, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(
        found.last_hidden_state[real], expected.last_hidden_state[real], atol=1e-5, rtol=1e-4
    )


def test_gradients_of_an_adapter_are_the_same_and_fewer_tokens_are_computed():
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7], [*SHOTS, 8, 8, 8]], group=8, completions=3)
    gradients, tokens = [], []
    for shares in (False, True):
        model = with_adapter(llama(), LoraSettings(r=2, alpha=4), 0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        if shares:
            share_prefixes(model)
        seen = counted(model.get_base_model())
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -4:-1]
        logps = logits.log_softmax(-1).gather(-1, ids[:, -3:, None]).squeeze(-1)
        (logps * mask[:, -3:]).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        tokens.append(sum(seen))
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=2e-5, rtol=2e-3)
    assert tokens[0] == ids.numel()
    # The shots once, three questions once, and the completions of 24 rows with the ends of longer prompts.
    assert tokens[1] < 0.45 * tokens[0]


def tokens_generated(make, *, new: int, sample: bool) -> float:
    """The same completions with and without shared prompts, for this share of the tokens."""
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7], [*SHOTS, 8, 8, 8]], group=4)
    assert ids.shape[1] == len(SHOTS) + 3
    config = GenerationConfig(max_new_tokens=new, do_sample=sample, pad_token_id=PAD, eos_token_id=1)
    texts, tokens = [], []
    for shares in (False, True):
        model = make()
        if shares:
            share_prefixes(model)
        seen = counted(model)
        torch.manual_seed(3)
        texts.append(model.generate(input_ids=ids, attention_mask=mask, generation_config=config))
        tokens.append(sum(seen))
    assert torch.equal(*texts)
    return tokens[1] / tokens[0]


@pytest.mark.parametrize("sample", [False, True])
def test_generate_gives_the_same_completions(sample):
    assert tokens_generated(llama, new=6, sample=sample) < 0.7


def test_a_model_with_learned_positions():
    config = GPT2Config(
        vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=1
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7]], group=4, completions=2)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask)).logits
        share_prefixes(model)
        found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)


SIZES = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": PAD, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
BOTH = ["sliding_attention", "full_attention"]
KINDS = {
    "gemma3_text": lambda window: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, sliding_window=window, layer_types=BOTH)
    ),
    "gemma2": lambda window: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, sliding_window=window, layer_types=BOTH)
    ),
    "mistral": lambda window: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)),
}


def windowed(window: int, kind: str = "gemma3_text"):
    """A model with a sliding window."""
    torch.manual_seed(0)
    return KINDS[kind](window).eval()


def test_a_kind_that_was_not_tried_is_refused():
    config = Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=BOTH
    )
    with pytest.raises(InputError, match="not tried with 'qwen2'"):
        share_prefixes(Qwen2ForCausalLM(config))
    assert sorted(KINDS) == sorted(_SLIDING)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fit_into_a_sliding_window_share_their_prefix(kind):
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7], [*SHOTS, 8, 8, 8]], group=4, completions=3)
    outs, tokens = [], []
    for shares in (False, True):
        model = windowed(ids.shape[1] + 1, kind)
        if shares:
            share_prefixes(model)
        seen = counted(model)
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=mask, position_ids=None if shares else positions(mask))
        outs.append(out.logits[mask.bool()])
        tokens.append(sum(seen))
    torch.testing.assert_close(outs[1], outs[0], atol=1e-5, rtol=1e-4)
    assert tokens[1] < 0.6 * tokens[0]


def test_rows_beyond_a_sliding_window_go_through_unchanged():
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6, 7]], group=4)
    model, shared = windowed(ids.shape[1]), windowed(ids.shape[1])
    share_prefixes(shared)
    seen = counted(shared)
    with torch.no_grad():
        outs = [m(input_ids=ids, attention_mask=mask).logits for m in (model, shared)]
    assert torch.equal(*outs)
    assert seen == [ids.numel()]


@pytest.mark.parametrize("kind", KINDS)
def test_generation_goes_on_beyond_a_sliding_window_after_a_shared_prompt(kind):
    width = len(SHOTS) + 3  # of the prompts
    assert tokens_generated(lambda: windowed(width + 3, kind), new=8, sample=True) < 0.8


@pytest.mark.parametrize("case", ["one row", "nothing shared", "a hole in the mask", "a filled cache"])
def test_what_does_not_fit_goes_through_unchanged(case):
    ids, mask = batch([[*SHOTS, 5], [*SHOTS, 6]], group=2)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if case == "one row":
        arguments = {"input_ids": ids[:1], "attention_mask": mask[:1]}
    elif case == "nothing shared":
        ids = torch.tensor([[3, 4, 5], [4, 4, 5]])
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif case == "a hole in the mask":
        mask[0, 4] = 0
    model, shared = llama(), llama()
    share_prefixes(shared)
    with torch.no_grad():
        if case == "a filled cache":
            one = {"input_ids": ids[:, :-1], "attention_mask": mask[:, :-1], "use_cache": True}
            caches = [m.model(**one) for m in (model, shared)]
            name = "cache" if "cache" in caches[0] else "past_key_values"
            outs = [
                m.model(input_ids=ids[:, -1:], attention_mask=mask, **{name: c[name]}).last_hidden_state
                for m, c in zip((model, shared), caches, strict=True)
            ]
            torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-4)
            return
        assert torch.equal(
            model.model(**arguments).last_hidden_state, shared.model(**arguments).last_hidden_state
        )
