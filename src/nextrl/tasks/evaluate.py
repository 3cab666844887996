"""Sampled and greedy accuracy of a model on a task's held-out prompts, with standard errors.

Generation is Hugging Face `generate`; the seed fixes the draws, and the caller's random state is left as it
was, so that evaluating a run does not change it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.tasks.base import Example, Task
from nextrl.tasks.generation import end_tokens, generating, plain_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_MOST, _CACHE = 1024, 2**32  # prompts of one call of `generate`, and bytes of their keys and values


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on `n` prompts, one completion each.

    Attributes:
        accuracy: mean reward of sampled completions, in [0, 1].
        se: its standard error over prompts.
        greedy: mean reward of greedy completions, or None where not asked for.
        n: prompts.
    """

    accuracy: float
    se: float
    greedy: float | None
    n: int


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's, numpy's and Python's random states set to `seed` inside, restored outside (torch's of every device)."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """The model in eval mode without gradients inside, its mode restored outside."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Completions:
    """One sampled completion per prompt, padded: prompts on the left, completions on the right.

    Attributes:
        texts: without special tokens.
        ids: (n, prompt + completion) int64.
        attention: (n, prompt + completion) int64, 0 at padding.
        mask: (n, completion) int64, 1 at the model's own tokens, end-of-sequence included.
        ended: (n,) bool, whether the end-of-sequence token is there.
    """

    texts: list[str]
    ids: Tensor
    attention: Tensor
    mask: Tensor
    ended: Tensor


def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float | None = 1.0,
    seed: int = 0,
    batch: int | None = None,
) -> list[str]:
    """One completion per prompt, as text without special tokens.

    Args:
        max_new_tokens: most tokens per completion, end-of-sequence included.
        temperature: sampling temperature; None is greedy.
        batch: prompts in one call of `generate`; None for `batch_size`'s answer.
    """
    texts: list[str] = []
    tokens = check_context(model, tokenizer, prompts, max_new_tokens)  # of all, before any is answered
    if batch is None:
        batch = batch_size(model, tokens)
    with seeded(seed):
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            found = sample(model, tokenizer, part, max_new_tokens=max_new_tokens, temperature=temperature)
            texts += found.texts
    return texts


def check_context(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> int:
    """Tokens of the longest prompt and its completion together, if the model takes as many.

    Raises:
        InputError: its context is shorter.
    """
    longest = max(map(len, tokenizer(list(prompts))["input_ids"]), default=0) if prompts else 0
    _check_length(model, longest, max_new_tokens)
    return longest + max_new_tokens


def _check_length(model: Any, prompt: int, completion: int) -> None:
    """Learned positions end at the context's end, other models only get worse there, and a million tokens never end."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and prompt + completion > limit:
        raise InputError(
            f"a prompt has {prompt:,} tokens and its completion may have {completion:,}, and the model takes "
            f"{limit:,} together: shorten the prompts, or lower the task's number of tokens"
        )


def batch_size(model: Any, tokens: int) -> int:
    """Sequences of so many tokens that `generate` takes at once: 1024, or as many as keep 4 GB of keys and values.

    By the model's config and dtype, not by what is free: prompts that are sampled together share random numbers, so
    that an accuracy is the same on each machine only where they are the same.
    """
    config = model.config.get_text_config()
    width = config.hidden_size
    if heads := getattr(config, "num_attention_heads", None):
        size = getattr(config, "head_dim", None) or width // heads
        width = size * (getattr(config, "num_key_value_heads", None) or heads)
    cache = 2 * config.num_hidden_layers * width * tokens * model.dtype.itemsize
    return int(max(1, min(_MOST, _CACHE // cache)))


def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float | None = 1.0,
) -> Completions:
    """As `complete`, for a single batch and with the tokens; torch's present random state is drawn from.

    Raises:
        InputError: a prompt and its completion exceed the model's context, or the model's output is NaN or Inf.
    """
    config = plain_config(
        model,
        tokenizer,
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        temperature=temperature,
        top_k=0 if temperature is not None else None,
    )
    ending = end_tokens(model, tokenizer)
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True)
    ids, attention = encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)
    _check_length(model, ids.shape[1], max_new_tokens)
    with inference(model), generating(model, config):
        try:
            out = model.generate(input_ids=ids, attention_mask=attention, generation_config=config)
        except RuntimeError as error:
            if not any(sign in str(error) for sign in ("probability tensor", "device-side assert")):
                raise
            raise InputError(
                "the model's output is NaN or Inf: its weights, or its adapter's, are broken"
            ) from error
    own = out[:, ids.shape[1] :]
    ends = torch.isin(own, torch.tensor(ending, device=own.device))
    # Tokens before the first end-of-sequence token, and that one.
    mask = ((ends.cumsum(1) - ends.long()) == 0).long()
    texts = tokenizer.batch_decode(own, skip_special_tokens=True)
    return Completions(texts, out, torch.cat([attention, mask], 1), mask, ends.any(1))


def grade(task: Task, examples: Sequence[Example], completions: Sequence[str]) -> Tensor:
    """Rewards (n,) float64 of one completion per example."""
    rewards = [task.reward(c, e.answer) for c, e in zip(completions, examples, strict=True)]
    return torch.tensor(rewards, dtype=torch.float64)


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    prompts: int = 1000,
    temperature: float = 1.0,
    greedy: bool = True,
    seed: int = 0,
    examples: Sequence[Example] | None = None,
    batch: int | None = None,
    max_new_tokens: int | None = None,
) -> Accuracy:
    """Accuracy on the first `prompts` held-out test examples (or on `examples`).

    A reward that draws random numbers draws the same ones each time, and none of the caller's.

    Args:
        batch: see `complete`.
        max_new_tokens: of a completion; None for as many as the task says.

    Raises:
        InputError: fewer than 2 prompts.
    """
    chosen = list(examples if examples is not None else task.examples("test"))[:prompts]
    if len(chosen) < 2:
        raise InputError(f"an accuracy needs at least 2 prompts, not {len(chosen)}")
    texts = [e.prompt for e in chosen]
    length = max_new_tokens or task.max_completion_length
    answer = partial(complete, model, tokenizer, texts, max_new_tokens=length, batch=batch)
    sampled = answer(temperature=temperature, seed=seed)
    with seeded(seed):
        rewards = grade(task, chosen, sampled)
    best: float | None = None
    if greedy:
        surest = answer(temperature=None)
        with seeded(seed):
            best = float(grade(task, chosen, surest).mean())
    se = float(rewards.std(unbiased=True)) / math.sqrt(len(chosen))
    return Accuracy(float(rewards.mean()), se, best, len(chosen))
