"""A small Llama and batches as a trainer makes them: prompts of a group repeated, padded on both sides."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

PAD = 0
SHOTS = [3, 4, 5, 6, 7, 8, 9, 10, 3, 4]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def batch(prompts: list[list[int]], group: int, completions: int = 0, seed: int = 0):
    """Prompts repeated `group` times and padded left, random completions padded right at random ends."""
    draw = torch.Generator().manual_seed(seed)
    width = max(map(len, prompts))
    rows, masks = [], []
    for prompt in (p for p in prompts for _ in range(group)):
        end = int(torch.randint(1, completions + 1, (1,), generator=draw)) if completions else 0
        tail = torch.randint(3, 12, (end,), generator=draw).tolist()
        left, right = width - len(prompt), completions - end
        rows.append([PAD] * left + prompt + tail + [PAD] * right)
        masks.append([0] * left + [1] * (len(prompt) + end) + [0] * right)
    return torch.tensor(rows), torch.tensor(masks)
