"""Whether the first rollout after a leap came from the weights after it.

An inference engine beside the trainer (vLLM) holds a copy of the weights. A copy that was not renewed samples from the
old policy, and nothing in a log says so. So the first batch after a leap is compared with both policies: the
log-probabilities that the engine reports must fit the weights after the leap better than the weights before it. Where
the engine reports none, the tokens must not be likelier under the weights before than under those after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.live_weights import LiveWeights, State
from nextrl.engines.trl.rollouts import log_probabilities
from nextrl.engines.trl.seam import Seam


class StaleWeights(RuntimeError):
    """The inference engine went on sampling from the weights before a leap."""


def check_delivery(trainer: Any, adapter: LiveWeights, before: State, after: State) -> None:
    """Look at the rollouts that the trainer holds; the adapter is left as it is.

    Args:
        before, after: the adapter on both sides of the leap; the rollouts are the first sampled since.

    Raises:
        StaleWeights: they were sampled with `before`.
    """
    buffered = Seam(trainer).buffered_rollouts()
    if not buffered:
        return
    batch = buffered[0]
    now = adapter.read()
    try:
        adapter.write(after)
        new = _log_probabilities(trainer, batch)
        adapter.write(before)
        old = _log_probabilities(trainer, batch)
    finally:
        adapter.write(now)
    if _stale(batch, new, old):
        raise StaleWeights(
            "the inference engine sampled with the weights before the leap: the leap did not reach it; "
            "check that weight synchronisation works (a plain run would go wrong in the same way, unseen)"
        )


def _log_probabilities(trainer: Any, batch: Mapping[str, Tensor]) -> Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    return log_probabilities(trainer, ids, attention, batch["completion_ids"].size(1))


def _stale(batch: Mapping[str, Tensor], new: Tensor, old: Tensor) -> bool:
    mask, engine = batch["completion_mask"].bool(), batch.get("sampling_per_token_logps")
    if engine is not None:
        known = mask & ~engine.isnan()
        if bool(known.any()):
            off_new, off_old = ((engine - own)[known].abs().mean() for own in (new, old))
            # A leap so small that both fit alike needs no alarm.
            return bool(off_old < 0.5 * off_new)
    sequences = ((old - new) * mask).sum(1)
    error = sequences.std() / len(sequences) ** 0.5
    return bool(sequences.mean() > 3.0 * error)
