"""Compute a prefix that rows of a batch share once: few-shot examples, and the prompt of a group's completions.

Every RLVR batch repeats each prompt for all completions of its group, and a few-shot task repeats its examples in every
prompt. A causal model's hidden states there depend on nothing that comes later, so they are computed for one row and
given to the others, keys and values with them: the same numbers, up to rounding, in rollouts, log-probabilities and
gradients. Worth it where prompts are long beside completions and nothing else shares them (Hugging Face generate; vLLM
has its own prefix cache).

It wraps the decoder stack below the language-model head, which both `generate` and TRL's fused head go through.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nextrl.errors import InputError

_WORTH_IT = 0.8
"""A split must leave at most this share of the tokens; every split is one more pass through the layers."""


_SLIDING = ("gemma2", "gemma3_text", "mistral")
"""Kinds of models with sliding windows that the tests share prefixes of."""


def share_prefixes(model: Any) -> None:
    """Make a causal language model compute shared prefixes once, in place.

    Rows are taken without their padding, so that positions count real tokens, as in `generate`. A call that this does
    not fit (one row, a cache with something in it, embeddings for ids, masks with holes, rows that do not fit into the
    sliding window of a model that has one) goes through unchanged.

    Args:
        model: a transformers causal language model or a PEFT model around one, without dropout (a shared prefix would
            share its dropout too).

    Raises:
        InputError: the model has sliding windows, and is none of those that this was tried with: some share keys among
            layers (Gemma 3n), or answer for other columns than they were asked (Gemma 4).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = inner.get_decoder()
    most = _most_columns(decoder)
    plain = decoder.forward
    names = list(inspect.signature(plain).parameters)
    cache_name = "cache" if "cache" in names else "past_key_values"  # renamed within transformers 5

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        rest = dict(zip(names, args, strict=False)) | kwargs
        ids, mask, _ = (rest.pop(name, None) for name in ("input_ids", "attention_mask", "position_ids"))
        cache = rest.pop(cache_name, None)
        if not _fits(ids, mask, cache, rest, most):
            return plain(*args, **kwargs)
        start = torch.zeros(len(ids), dtype=torch.long, device=ids.device) if mask is None else mask.argmax(1)
        rolled = ids.gather(1, _columns(ids, start))
        if _split(rolled) == 0:
            return plain(*args, **kwargs)
        use_cache = bool(rest.pop("use_cache", False))

        def run(part: Tensor, past: DynamicCache) -> Any:
            return plain(input_ids=part, use_cache=True, **{cache_name: past}, **rest)

        def new_cache() -> DynamicCache:
            return DynamicCache(config=decoder.config)

        hidden, past, out = _hidden(run, rolled, new_cache)
        back = _columns(ids, -start)
        out.last_hidden_state = hidden.gather(1, back[:, :, None].expand_as(hidden))
        out[cache_name] = _filled(new_cache() if cache is None else cache, past, back) if use_cache else None
        return out

    decoder.forward = forward


def _most_columns(decoder: Any) -> float:
    """Columns up to which every layer sees, and its cache keeps, all that came before."""
    layers = DynamicCache(config=decoder.config).layers
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    kind = decoder.config.model_type
    if windows and kind not in _SLIDING:
        raise InputError(
            f"share_prefixes was not tried with '{kind}', which has sliding windows: turn it off "
            f"(it works with {', '.join(_SLIDING)}, and with models without such windows)"
        )
    return min(windows, default=math.inf) - 1  # a sliding cache holds one token less than the window


def _fits(ids: Any, mask: Any, cache: Any, rest: dict[str, Any], most: float) -> bool:
    """Whether a call is a whole batch of token rows, each padded on its sides only, of at most so many columns."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or min(ids.shape) < 2 or ids.shape[1] > most:
        return False
    if rest.get("inputs_embeds") is not None or any(
        rest.get(f"output_{extra}") for extra in ("hidden_states", "attentions")
    ):
        return False
    if cache is not None and (type(cache) is not DynamicCache or cache.get_seq_length()):
        return False
    if mask is None:
        return True
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return False
    edges = torch.diff(mask.long(), dim=1, prepend=torch.zeros_like(mask[:, :1]).long())
    return bool(((edges == 1).sum(1) == 1).all())


def _columns(ids: Tensor, start: Tensor) -> Tensor:
    """(rows, columns) int64: where to read from so that column `start` of each row comes first."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    return (columns[None] + start[:, None]) % ids.shape[1]


def _hidden(
    run: Callable[[Tensor, DynamicCache], Any], ids: Tensor, new_cache: Callable[[], DynamicCache]
) -> tuple[Tensor, DynamicCache, Any]:
    """(hidden states (rows, columns, width), cache, the last pass's output) of rows that begin at column 0."""
    split = _split(ids)
    if split == 0:
        out, cache = None, new_cache()
        out = run(ids, cache)
        return out.last_hidden_state, cache, out
    distinct, which = torch.unique(ids[:, :split], dim=0, return_inverse=True)
    hidden, cache, out = _hidden(run, distinct, new_cache)
    hidden = hidden[which]
    cache.batch_select_indices(which)
    if split < ids.shape[1]:
        out = run(ids[:, split:], cache)
        hidden = torch.cat([hidden, out.last_hidden_state], 1)
    return hidden, cache, out


def _split(ids: Tensor) -> int:
    """Columns to compute once for each distinct beginning, by tokens left to compute; 0 where that saves little."""
    rows, columns = ids.shape
    best, fewest = 0, _WORTH_IT * rows * columns
    which = torch.zeros(rows, dtype=torch.long, device=ids.device)
    for column in range(columns):
        pairs = torch.stack([which, ids[:, column]], 1)
        which = torch.unique(pairs, dim=0, return_inverse=True)[1]
        beginnings = int(which.max()) + 1
        if beginnings == rows:
            break
        tokens = beginnings * (column + 1) + rows * (columns - column - 1)
        if tokens <= fewest:
            best, fewest = column + 1, tokens
    return best


def _filled(cache: DynamicCache, past: DynamicCache, back: Tensor) -> DynamicCache:
    """Keys and values (rows, heads, columns, size) in the caller's columns, in an empty cache."""
    rows = torch.arange(len(back), device=back.device)[:, None]
    for index, layer in enumerate(past.layers):
        keys, values = (
            part.transpose(1, 2)[rows, back].transpose(1, 2) for part in (layer.keys, layer.values)
        )
        cache.update(keys, values, index)
    return cache
