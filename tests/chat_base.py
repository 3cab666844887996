"""A conversational base without the network: every printable character a token, the chat template of Qwen3."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import trl

from nextrl.engines.trl.trainer import with_adapter
from trl_runs import LORA

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


class ChatTokens:
    """A tokenizer whose template and tool calls TRL knows.

    Attributes:
        tokenizer: pads on the left.
    """

    def __init__(self) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {token: i for i, token in enumerate([*SPECIAL, *string.printable])}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        core.decoder = decoders.Fuse()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            additional_special_tokens=["<|im_start|>"],
            padding_side="left",
        )
        template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
        self.tokenizer.chat_template = template.read_text(encoding="utf-8")

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found


def chat_model(tokens: ChatTokens) -> Any:
    """An untrained model over these tokens, with an adapter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    return with_adapter(LlamaForCausalLM(config), LORA, seed=0)
