"""TRL's fused head at the completion tokens only, where TRL would project every position.

TRL computes per-token log-probabilities with a head of its own, which skips positions without a label on devices with
Triton. Elsewhere it projects every position, prompts included, to keep shapes fixed (TRL 1.16, `add_fused_lm_head`).
With a vocabulary of 49,000 and prompts longer than completions, this is most of a training step on a CPU. Here the head
is handed the labelled columns alone, as `shift_labels`, which it takes for context parallelism.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nextrl.engines.trl.seam import check_fused_head


def score_labelled_columns(model: Any) -> None:
    """Have a trainer's model project the columns from its first labelled one on, in place.

    Log-probabilities come back for those columns, which is what TRL reads of them: it slices from the right.

    Args:
        model: the trainer's model, after the trainer has given it its head.

    Raises:
        InputError: this TRL's head does not take shifted labels.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    check_fused_head(inner)
    decoder = inner.get_decoder()
    scored, states = inner.forward, decoder.forward
    wanted: list[slice] = []

    def hidden(*args: Any, **kwargs: Any) -> Any:
        out = states(*args, **kwargs)
        if wanted:
            out.last_hidden_state = out.last_hidden_state[:, wanted[-1]]
        return out

    def forward(*args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        first = _first_labelled(labels) if kwargs.get("fused_lm_head") else 0
        if labels is None or first == 0:
            return scored(*args, **kwargs) if labels is None else scored(*args, labels=labels, **kwargs)
        wanted.append(slice(first - 1, -1))
        try:
            return scored(*args, shift_labels=labels[:, first:], **kwargs)
        finally:
            wanted.pop()

    # `generate` and TRL read the signatures of both.
    hidden.__wrapped__, forward.__wrapped__ = states, scored  # type: ignore[attr-defined]
    decoder.forward, inner.forward = hidden, forward


def _first_labelled(labels: Tensor | None) -> int:
    """First column, from the second on, in which a row has a label; 0 where none has."""
    if labels is None:
        return 0
    columns = (labels[:, 1:] != -100).any(0).nonzero()
    return int(torch.min(columns)) + 1 if len(columns) else 0
