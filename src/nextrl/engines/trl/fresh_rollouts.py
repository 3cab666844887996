"""What the rollouts of the step just taken say of other weights: how far they move the policy, and what they gain.

The trainer sampled those rollouts at the weights from which the step began (the anchor), so they are a fair judge of
any weights that they played no part in (`judge.fresh_batch`). No completion is generated: the anchor's
log-probabilities are those of the training step's own forward passes, and each candidate takes one pass more.

A model that draws random numbers in its training passes (dropout as a module or as a function, noise on embeddings,
jitter in a router) finds something else there each time. So the first passes heard are held against one without
randomness, and where the two differ by more than rounding, every anchor is read again.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.interrupts import to_the_end
from nextrl.engines.live_weights import LiveWeights, State
from nextrl.engines.moments import Moments, trained_beside, values_of
from nextrl.engines.policies.base import MOST
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.seam import Seam
from nextrl.judge.fresh_batch import BatchGain, batch_gain, batch_sums, merge
from nextrl.tasks.evaluate import inference

TOKENS, AT_LEAST = 768, 8
"""`moved` stops at so many tokens of its own, as long as so many completions have been looked at (each process).

128 completions of 6 tokens, which the controller was designed on; of completions of 200 tokens eight say as much, and
the other 120 would be most of what the callback costs.
"""

_ROUNDING = 1e-10
"""Nats per token by which two passes over the same rows may differ in float32, on any device and in any batch."""


@dataclass(frozen=True)
class _Rows:
    """Some completions, n of them.

    Attributes:
        ids, attention: (n, prompt + completion).
        mask: (n, completion), 1 at the model's own tokens.
        logps: (n, completion), under the anchor.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    logps: Tensor


class FreshRollouts:
    """Judges weights on the rollouts of one training step, from `listen` before it on.

    Args:
        trainer: TRL's GRPOTrainer or RLOOTrainer.
        adapter: what candidates are written into; it is left as it was.
        ranks: the run's processes. `moved` and `gain` are collective operations.
        resolution: nats per token that the precision of the model's passes hides.

    Attributes:
        repeatable: whether training passes draw no random numbers; None where that was not seen yet.
    """

    repeatable: bool | None = None

    def __init__(self, trainer: Any, adapter: LiveWeights, ranks: Ranks, resolution: float = 0.0) -> None:
        self._trainer, self._seam = trainer, Seam(trainer)
        self._adapter, self._ranks = adapter, ranks
        # (ids, attention mask, mask, log-probabilities) of each forward pass of the step listened to.
        self._passes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._kept: _Rows | None = None
        # Rows that the step was trained on, by how many `moved` was asked for.
        self._trained: dict[int, _Rows | None] = {}
        self._stop: Callable[[], None] | None = None
        # What is trained beside the adapter, and its values where the step began.
        self._beside: list[tuple[Tensor, Tensor]] = []
        self._bound = max(_ROUNDING, 10.0 * resolution)

    def listen(self, moments: Moments | None = None) -> None:
        """Keep what the coming step's forward passes find, but where they are known to be random.

        Args:
            moments: the optimizer's state where the step begins, with the values of what is trained beside the adapter.
        """
        beside = values_of(moments or [])
        self.stop()
        self._passes, self._kept, self._trained = [], None, {}
        live = trained_beside(self._trainer.optimizer, self._adapter.parameters.values())
        if live and not beside:  # in pieces on several processes: no anchor can be read again
            self.repeatable = True
        self._beside = list(zip(live, beside, strict=False))
        if any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self._trainer.model.modules()):
            self.repeatable = False
        if self.repeatable is not False:
            self._stop = self._seam.listen_to_logps(self._keep)

    def stop(self) -> None:
        """The step is over: the trainer's method is its own again."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def moved(self, anchor: State, most: int = MOST) -> float:
        """Divergence between the weights that the step began from and the present ones, nats per token.

        Mean over the tokens of `most` completions of `log(p_now / p_anchor)^2 / 2`, of fewer where these are long
        (`TOKENS`); NaN where it cannot be measured.
        """
        if most not in self._trained:
            self._trained[most] = self._trained_on(anchor, most)
        part, rows = torch.zeros(2, dtype=torch.float64), self._trained[most]
        if rows is not None:
            change = (self._read(rows) - rows.logps).double().square() / 2 * rows.mask
            part = torch.stack([change.sum(), rows.mask.sum().double()]).cpu()
            if not math.isfinite(part[0]) and bool((rows.logps * rows.mask).isfinite().all()):
                part[0] = math.inf  # the policy after the step has no probabilities any more
        return self._per_token(part)

    def _per_token(self, part: Tensor) -> float:
        """Nats per token of all processes, from this one's (nats, tokens)."""
        nats, tokens = torch.stack(self._ranks.gather(part)).sum(0).tolist()
        return nats / tokens if tokens else math.nan

    def gain(self, anchor: State, candidate: State) -> BatchGain | None:
        """What the batch sampled at the anchor says of other weights; None where it cannot be measured."""
        rows = self._sampled(anchor)
        if rows is None:
            return None
        batch = self._seam.buffered_rollouts()
        advantages = torch.cat([part["advantages"] for part in batch])[: len(rows.ids)]
        advantages = self._seam.without_residue(advantages)
        with self._adapter.holding(candidate), self._before_the_step():
            found = self._read(rows)
        sums = batch_sums(found - rows.logps, advantages, _prompts(rows)[: len(rows.ids)], rows.mask)
        return batch_gain(merge(self._ranks.gather(sums)))

    def _read(self, rows: _Rows) -> Tensor:
        """Log-probabilities of rows under the weights that the model now has."""
        with inference(self._trainer.model):
            return self._seam.per_token_logps(rows.ids, rows.attention, rows.mask.size(1))

    def _trained_on(self, anchor: State, most: int) -> _Rows | None:
        """Rows that the step was trained on."""
        heard = self._heard()
        # What follows is done by all processes or by none: reading other weights may be a collective operation.
        if not self._ranks.any(heard is None):
            assert heard is not None
            heard = _cut(heard, self._enough(heard, most))
            return heard if self._repeats(heard, anchor) else self._anchored(heard, anchor)
        rows = self._buffered()
        if self._ranks.any(rows is None):
            return None
        assert rows is not None
        return self._anchored(_cut(rows, self._enough(rows, most)), anchor)

    def _enough(self, rows: _Rows, most: int) -> int:
        """As many rows on every process as the one that needs most: each forward pass may be a collective operation."""
        return max(self._ranks.gather(enough(rows.mask.sum(1), most)))

    def _sampled(self, anchor: State) -> _Rows | None:
        """All rows that were sampled at the anchor, in the order of the trainer's buffer."""
        if self._kept is None:
            rows, heard = self._buffered(), self._heard()
            if self._ranks.any(rows is None):
                return None
            assert rows is not None
            known: _Rows | None = None
            if self.repeatable is not False and not bool(rows.logps.isnan().any()):
                known = rows
            elif heard is not None and torch.equal(heard.ids, rows.ids):
                known = _Rows(rows.ids, rows.attention, rows.mask, heard.logps)
            if self._ranks.any(known is None) or not self._repeats(known, anchor):
                known = self._anchored(_cut(rows, MOST), anchor)
            assert known is not None
            self._kept = _cut(known, MOST)
        return self._kept

    def _repeats(self, rows: _Rows | None, anchor: State) -> bool:
        """Whether what training passes found at the anchor is what any pass finds there; looked at once in a run."""
        if self.repeatable is None:
            assert rows is not None
            few = _cut(rows, AT_LEAST)
            off = (self._anchored(few, anchor).logps - few.logps).double().square() / 2 * few.mask
            nats = self._per_token(torch.stack([off.sum(), few.mask.sum().double()]).cpu())
            if math.isfinite(nats):
                self.repeatable = nats <= self._bound
        return self.repeatable is not False

    def _anchored(self, rows: _Rows, anchor: State) -> _Rows:
        with self._adapter.holding(anchor), self._before_the_step():
            return _Rows(rows.ids, rows.attention, rows.mask, self._read(rows))

    @contextmanager
    def _before_the_step(self) -> Iterator[None]:
        """What is trained beside the adapter as the step found it inside; afterwards as it is now."""
        now = [(p, p.detach().clone()) for p, _ in self._beside]
        try:
            _write(self._beside)
            yield
        finally:
            to_the_end(partial(_write, now))

    def _heard(self) -> _Rows | None:
        """What the step's own forward passes found; None where there are none, or each is padded in its own way."""
        if len({(ids.shape[1], mask.shape[1]) for ids, _, mask, _ in self._passes}) != 1:
            return None
        ids, attention, mask, logps = (torch.cat(part) for part in zip(*self._passes, strict=True))
        own = self._own(ids, mask)
        return None if own is None else _Rows(ids, attention, own, logps.float())

    def _own(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """The mask without what tools answered; None where the trainer holds other rows, so that nobody knows."""
        batches = self._seam.buffered_rollouts()
        if not any("tool_mask" in batch for batch in batches):
            return mask
        known = {
            _key(row): own
            for batch in batches
            for row, own in zip(
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["tool_mask"], strict=True
            )
        }
        found = [known.get(_key(row)) for row in ids]
        rows = [own for own in found if own is not None and own.shape == mask.shape[1:]]
        return mask * torch.stack(rows) if len(rows) == len(found) else None

    def _buffered(self) -> _Rows | None:
        """The trainer's rollouts; log-probabilities are NaN where it did not compute them when it sampled."""
        batch = self._seam.buffered_rollouts()
        if not batch or any(_unreadable(part) for part in batch):
            return None
        prompt, completion, prompt_mask, ends = (
            torch.cat([part[name] for part in batch])
            for name in ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
        )
        mask = ends
        if all("tool_mask" in part for part in batch):
            mask = ends * torch.cat([part["tool_mask"] for part in batch])
        logps = torch.full(mask.shape, math.nan, device=mask.device)
        if all(part.get("old_per_token_logps") is not None for part in batch):
            logps = torch.cat([part["old_per_token_logps"] for part in batch]).float()
        return _Rows(torch.cat([prompt, completion], 1), torch.cat([prompt_mask, ends], 1), mask, logps)

    def _keep(self, log_probabilities: Tensor, ids: Tensor, attention: Tensor, length: int) -> None:
        self._passes.append((ids, attention, attention[:, -length:], log_probabilities))


@torch.no_grad()
def _write(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    for p, value in values:
        p.copy_(value)


def _key(row: Tensor) -> bytes:
    """What a row of ids is found again by."""
    return bytes(row.cpu().numpy().tobytes())


def enough(tokens: Tensor, most: int) -> int:
    """How many of some rows hold `TOKENS` tokens, from `AT_LEAST` to `most`.

    Args:
        tokens: (n,) of each row, in the order in which rows are taken.
        most: rows that are asked for at most.
    """
    return max(min(AT_LEAST, most), min(most, 1 + int((tokens.cumsum(0) < TOKENS).sum())))


def _cut(rows: _Rows, most: int) -> _Rows:
    return _Rows(rows.ids[:most], rows.attention[:most], rows.mask[:most], rows.logps[:most])


def _unreadable(batch: Mapping[str, Any]) -> bool:
    """Whether tokens alone do not say what the model saw (images), or advantages are not one for each completion."""
    advantages = batch.get("advantages")
    return (
        advantages is None
        or advantages.dim() != 1
        or any(name.startswith(("pixel", "image")) for name in batch)
    )


def _prompts(rows: _Rows) -> Tensor:
    """(n,) a number for each prompt, the same in every process: the trainer shuffles its rollouts."""
    length = rows.ids.shape[1] - rows.mask.shape[1]
    texts = rows.ids[:, :length].cpu()
    known = rows.attention[:, :length].cpu().bool()
    return torch.tensor([zlib.crc32(t[k].numpy().tobytes()) for t, k in zip(texts, known, strict=True)])
