"""What a model's `generation_config.json` says of generating, and what of it counts here: its special tokens alone.

Published folders ship settings for chatting (`top_p`, `temperature`, penalties). transformers fills in whatever a call
leaves open from them, so that an accuracy "at temperature 1" would be of another distribution than the policy's, which
is what is trained and what its log-probabilities are of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nextrl.errors import needs


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion, ascending: the tokenizer's, and those that the model names, as TRL stops at.

    Several are usual (Llama 3's and Qwen's instruct models end a turn and a text with different ones).
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *several) if token is not None})


def plain_config(model: Any, tokenizer: Any, **settings: Any) -> Any:
    """A `GenerationConfig` with the model's special tokens and these settings, and nothing else."""
    with needs("trl", "generating with a model"):
        from transformers import GenerationConfig
    return GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end_tokens(model, tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        **settings,
    )


@contextmanager
def generating(model: Any, config: Any) -> Iterator[None]:
    """Inside, the model generates by this configuration, and fills in nothing from its own."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = own
