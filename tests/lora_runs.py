"""Runs on disk for tests: adapters that PEFT itself wrote for tiny models built from a configuration."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import State
from nextrl.trajectory.lowrank import LowRank

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 30,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
STEPS = (10, 20, 30, 40)
PLACES = {
    "trl": "checkpoint-{}",
    "verl": "global_step_{}/actor/lora_adapter",
    "openrlhf": "global_step{}_hf",
    "folders": "step-{}",
}


@functools.cache
def _model(kind: str, tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    small = {**SMALL, "tie_word_embeddings": tied}
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=tied,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**small, num_local_experts=3))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**small))
    if kind == "gemma":
        return GemmaForCausalLM(GemmaConfig(**small, head_dim=8))
    return LlamaForCausalLM(LlamaConfig(**small, attention_bias=True))


def model(kind: str = "llama", tied: bool | None = None) -> PreTrainedModel:
    """A fresh copy of a tiny model with random weights, the same every time; None: only GPT-2's head is tied."""
    return copy.deepcopy(_model(kind, kind == "gpt2" if tied is None else tied))


def lora(**options: Any) -> LoraConfig:
    """r 4, alpha 8 on q_proj, v_proj and down_proj unless told otherwise."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    return LoraConfig(**settings)


def write_run(
    root: Path,
    config: LoraConfig | None = None,
    *,
    kind: str = "llama",
    layout: str = "trl",
    steps: Sequence[int] = STEPS,
    start: bool = False,
    base: PreTrainedModel | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PeftModel, list[dict[str, Tensor]]]:
    """Train (by drift and noise) and save with PEFT; returns the model as it ended and, for each step,
    PEFT's deltas.

    Args:
        start: save the untouched adapter as step 0 too.
        base: the model to put the adapter on, of another kind.
    """
    torch.manual_seed(1)
    peft_model = get_peft_model(copy.deepcopy(base) if base else model(kind), config or lora()).to(dtype)
    drift = {n: torch.randn_like(p) * 0.02 for n, p in peft_model.named_parameters() if p.requires_grad}
    deltas = []
    for step in ([0] if start else []) + list(steps):
        if step:
            for name, parameter in peft_model.named_parameters():
                if name in drift:
                    parameter.data += drift[name] + torch.randn_like(parameter) * 0.01
        peft_model.save_pretrained(str(root / PLACES[layout].format(step)))
        deltas.append(peft_deltas(peft_model))
    return peft_model, deltas


def peft_deltas(peft_model: PeftModel) -> dict[str, Tensor]:
    """module -> PEFT's own `get_delta_weight`, oriented as the base stores it."""
    found = {}
    for name, module in peft_model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and getattr(module, "lora_A", None) is not None:
            embedding = len(module.lora_embedding_A) > 0
            if embedding or len(module.lora_A) > 0:
                found[name] = module.get_delta_weight("default").detach().clone()
    return found


def displacement(adapter: LiveAdapter, start: State, stop: State) -> list[LowRank]:
    """`W_stop - W_start` of each matrix of a live adapter, (m, n) each, from its factors."""
    before, after, scalings = adapter.matrices(start), adapter.matrices(stop), adapter.scalings()
    deltas = []
    for name, scale in scalings.items():
        (a0, b0), (a1, b1) = ([t.float() for t in state[name]] for state in (before, after))
        # s (B1 A1 - B0 A0), written without the cancellation of two nearly equal products.
        columns = torch.cat([(b1 - b0) * scale, b0 * scale], -1)
        deltas.append(LowRank(columns.contiguous(), torch.cat([a1, a1 - a0], 0).mT.contiguous()))
    return deltas
