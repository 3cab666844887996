"""What the batch of verl's latest step says of other weights, and what it earned."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.policies.base import MOST
from nextrl.engines.verl.delivery import Delivery, delivery
from nextrl.engines.verl.remote_adapter import Held, RemoteAdapter
from nextrl.judge.fresh_batch import BatchGain, batch_gain, batch_sums

CENTRED = frozenset({"grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg"})
"""`algorithm.adv_estimator` whose advantages are 0 where all completions of a prompt earned the same."""


@dataclass(frozen=True)
class Batch:
    """The batch of the step just taken, padded; n completions of at most L tokens.

    Attributes:
        anchor: (n, L) log-probabilities under the weights that the step began from.
        sampled: (n, L) as the rollout servers reported them.
        mask: (n, L), 1 at the model's own tokens; 0 throughout in rows that verl padded the batch with.
        advantages: (n,), a completion's mean over its tokens.
        groups: (n,), a number for each prompt.
        reward: mean over completions.
    """

    anchor: Tensor
    sampled: Tensor
    mask: Tensor
    advantages: Tensor
    groups: Tensor
    reward: float


def batch_of(
    fields: Mapping[str, Tensor], uids: Sequence[str], padding: Sequence[bool], centred: bool = False
) -> Batch:
    """A batch from verl's columns.

    Args:
        fields: `old_log_probs`, `rollout_log_probs`, `response_mask`, `advantages`, `rm_scores`, (n, L) each.
        uids: the prompt of each row.
        padding: whether a row is a copy that fills the batch up.
        centred: whether verl's estimator is one of `CENTRED`.
    """
    real = torch.tensor([not p for p in padding])
    mask = fields["response_mask"].double() * real[:, None]
    advantages = (fields["advantages"].double() * mask).sum(1) / mask.sum(1).clamp_min(1.0)
    rewards = fields["rm_scores"].double().sum(1)[real]
    groups = torch.tensor([zlib.crc32(uid.encode()) for uid in uids])
    if centred:
        advantages = _without_residue(advantages, groups * real)
    return Batch(
        fields["old_log_probs"].double(), fields["rollout_log_probs"].double(), mask, advantages, groups,
        float(rewards.mean()) if len(rewards) else float("nan"),
    )  # fmt: skip


def _without_residue(advantages: Tensor, groups: Tensor) -> Tensor:
    """Advantages, exactly 0 where those of a group, several that should add up to 0, are all the same number.

    A mean of equal rewards differs from them by a last digit of float32, and that is divided by their deviation.
    """
    ids, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    ends = [
        torch.zeros(len(ids)).double().scatter_reduce(0, index, advantages, e, include_self=False)
        for e in ("amin", "amax")
    ]
    dead = (ends[0] == ends[1]) & (counts > 1)
    return torch.where(dead[index], 0.0, advantages)


class LatestBatch:
    """Judges weights on the rollouts of the latest step, as `FreshRollouts` does in TRL.

    Args:
        adapter: what candidates are written into; it is left as it was.
        read: log-probabilities (n, L) of the latest batch under the weights that the actor now has.
    """

    def __init__(self, adapter: RemoteAdapter, read: Callable[[], Tensor]) -> None:
        self._adapter, self._read = adapter, read
        self.batch: Batch | None = None
        self.exact = True  # whether the batch's log-probabilities are the actor's own, not the rollout's
        self._anchor: Tensor | None = None

    def listen(self, moments: Any = None) -> None:
        """Nothing to do: verl keeps a step's batch until the step is over."""

    def stop(self) -> None:
        """Nothing to do."""

    def take(self, batch: Batch) -> None:
        """The batch of the step just taken."""
        self.batch, self._anchor = batch, batch.anchor if self.exact else None

    def moved(self, anchor: Held, most: int = MOST) -> float:
        """Divergence between the weights that the step began from and the present ones, nats per token."""
        batch = self._known()
        change = (self._read().double() - self._at(anchor)).square() / 2
        change = torch.where(batch.mask != 0, change, 0.0)
        if not bool(change.isfinite().all()):
            return float("inf")
        tokens = float(batch.mask.sum())
        return float(change.sum()) / tokens if tokens else float("nan")

    def gain(self, anchor: Held, candidate: Held) -> BatchGain | None:
        """What the batch, sampled at the anchor, says of other weights."""
        batch, known = self._known(), self._at(anchor)
        with self._adapter.holding(candidate):
            found = self._read().double()
        keep = batch.mask.any(1)
        return batch_gain(
            batch_sums((found - known)[keep], batch.advantages[keep], batch.groups[keep], batch.mask[keep])
        )

    def delivery(self, before: Held, anchor: Held) -> Delivery:
        """Whether the rollouts came from the weights that the step began from, or from those before a change."""
        batch, new = self._known(), self._at(anchor)
        with self._adapter.holding(before):
            old = self._read().double()
        known = (batch.mask != 0) & batch.sampled.isfinite()
        return delivery(batch.sampled, new, old, known)

    def _at(self, anchor: Held) -> Tensor:
        if self._anchor is None:
            with self._adapter.holding(anchor):
                self._anchor = self._read().double()
        return self._anchor

    def _known(self) -> Batch:
        assert self.batch is not None, "no step has been taken"
        return self.batch


class StepRewards:
    """The training reward of the latest step."""

    def __init__(self) -> None:
        self.latest, self.sampled = float("nan"), True

    def new(self) -> float:
        """The step's."""
        return self.latest

    def mark(self) -> None:
        """Nothing to do."""
