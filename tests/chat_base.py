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


PICTURES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def seeing() -> tuple[Any, Any]:
    """(untrained model that takes pictures of 28 by 28, with an adapter; its processor)."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokens = ChatTokens().tokenizer
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokens,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=PICTURES,
        num_additional_image_tokens=1,
    )
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = CLIPVisionConfig(hidden_size=16, image_size=28, patch_size=14, projection_dim=16, **layers)
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        **layers,
    )
    torch.manual_seed(0)
    place = tokens.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=place)
    )
    model.config.pad_token_id = 0
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return get_peft_model(model, lora), processor
