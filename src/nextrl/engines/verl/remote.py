"""verl's driver: the adapter on the workers by the names of its copies, and what a step's batch says of other weights.

The driver holds no tensor of the model. Where the session (`engines.session`, the one that TRL's callback runs on)
speaks of factors and moments, it is handed `Held`: the name of a copy that lies in shards on the workers.
"""

from __future__ import annotations

import itertools
import logging
import math
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nextrl.engines import decision_log
from nextrl.engines.live_weights import length_and_shrinking
from nextrl.engines.policies.base import MOST
from nextrl.engines.ranks import Ranks
from nextrl.engines.verl.delivery import Delivery, delivery
from nextrl.judge.decision import DecisionRecord
from nextrl.judge.fresh_batch import BatchGain, batch_gain, batch_sums
from nextrl.say import say

log = logging.getLogger(__name__)


class StaleRollouts(RuntimeError):
    """verl's rollout servers went on sampling from the weights before a change."""


class Held:
    """A copy on the workers, which forget it soon after nobody here speaks of it any more."""

    def __init__(self, key: int) -> None:
        self.key = key


class Workers:
    """The processes that hold the actor.

    Args:
        call: (forgotten copies, method of `Shards`, its arguments) -> what each process answers.
    """

    def __init__(self, call: Callable[..., Sequence[Any]]) -> None:
        self._call, self._keys = call, itertools.count()
        self._forgotten: list[int] = []

    def ask(self, method: str, *arguments: Any) -> Sequence[Any]:
        """Every process's answer."""
        forgotten, self._forgotten[:] = list(self._forgotten), []
        plain = [a.key if isinstance(a, Held) else a for a in arguments]
        return self._call(forgotten, method, *plain)

    def name(self) -> Held:
        """A name for a copy that is about to be made."""
        held = Held(next(self._keys))
        weakref.finalize(held, self._forgotten.append, held.key)
        return held

    def make(self, method: str, *arguments: Any) -> Held:
        """A copy that a method of `Shards` makes."""
        held = self.name()
        self.ask(method, held, *arguments)
        return held


class RemoteAdapter:
    """What the workers train, with the reading and writing of `LiveWeights`."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._present: Held | None = None

    def trained(self) -> None:
        """A step has changed the weights, or is about to."""
        self._present = None

    def read(self) -> Held:
        """The values as they are; copied once, however often they are asked for."""
        if self._present is None:
            self._present = self._workers.make("keep")
        return self._present

    def write(self, held: Held) -> None:
        """Write the values, bit for bit."""
        self._workers.ask("put", held)
        self._present = held

    def along(self, start: Held, stop: Held, alpha: float) -> Held:
        """`stop + alpha (stop - start)`."""
        return self._workers.make("keep_along", start, stop, alpha)

    def product(self, start: Held, stop: Held, other_start: Held, other_stop: Held) -> float:
        """Inner product of two ways between copies, over all that is trained and all processes."""
        return float(sum(self._workers.ask("product", start, stop, other_start, other_stop)))

    def distance(self, start: Held, stop: Held) -> float:
        """Length of the way between two copies."""
        return math.sqrt(self.product(start, stop, start, stop))

    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf in any of them; nothing is copied for it."""
        return all(self._workers.ask("finite"))

    @contextmanager
    def holding(self, held: Held) -> Iterator[None]:
        """Other factors inside; afterwards those that were there before."""
        now = self.read()
        if held is now:
            yield
            return
        self.write(held)
        try:
            yield
        finally:
            self.write(now)


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


def batch_of(fields: Mapping[str, Tensor], uids: Sequence[str], padding: Sequence[bool]) -> Batch:
    """A batch from verl's columns.

    Args:
        fields: `old_log_probs`, `rollout_log_probs`, `response_mask`, `advantages`, `rm_scores`, (n, L) each.
        uids: the prompt of each row.
        padding: whether a row is a copy that fills the batch up.
    """
    real = torch.tensor([not p for p in padding])
    mask = fields["response_mask"].double() * real[:, None]
    advantages = (fields["advantages"].double() * mask).sum(1) / mask.sum(1).clamp_min(1.0)
    rewards = fields["rm_scores"].double().sum(1)[real]
    groups = torch.tensor([zlib.crc32(uid.encode()) for uid in uids])
    return Batch(
        fields["old_log_probs"].double(), fields["rollout_log_probs"].double(), mask, advantages, groups,
        float(rewards.mean()) if len(rewards) else float("nan"),
    )  # fmt: skip


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


class Windows:
    """How far each window led, and how straight on from the one before; of an adapter in the space of its factors.

    Args:
        adapter: on the workers.
    """

    def __init__(self, adapter: RemoteAdapter) -> None:
        self._adapter = adapter
        self._starts: list[Held] = []

    def seen(self, start: Held) -> dict[str, float]:
        """What is logged of the window that ended where this one starts; nothing as long as it is the same one."""
        if self._starts and start is self._starts[-1]:
            return {}
        starts = [*self._starts, start]
        self._starts = starts[-2:]
        ways = list(itertools.pairwise(starts))
        lengths = [self._adapter.distance(*way) for way in ways]
        found = {"leap/moved": lengths[-1]} if ways else {}
        if len(ways) == 2 and all(lengths):
            found["leap/persistence"] = self._adapter.product(*ways[0], *ways[1]) / math.prod(lengths)
        return found


class VerlRun:
    """A verl run as a leap finds it (`engines.apply_leap.Run`).

    Args:
        workers: where the adapter lies.
        read: see `LatestBatch`.
        folder: verl's `default_local_dir`, where decisions are written.
        max_steps, completions_per_step: of the run.

    Attributes:
        comparable: whether the rollouts' log-probabilities are near those of the whole distribution (`options`).
    """

    fresh_next = whole = True
    rate_set_elsewhere = False
    beside: Sequence[Tensor] = ()
    group = 1

    def __init__(
        self,
        workers: Workers,
        read: Callable[[], Tensor],
        folder: Path,
        max_steps: int,
        completions_per_step: int,
    ) -> None:
        self.workers, self.adapter = workers, RemoteAdapter(workers)
        self.ranks = Ranks(SimpleNamespace(process_index=0, num_processes=1))
        self.latest = LatestBatch(self.adapter, read)
        self.rewards = StepRewards()
        self.tools = SimpleNamespace(
            fresh=self.latest, rewards=self.rewards, rollouts=SimpleNamespace(completions=0)
        )
        self.folder, self.max_steps, self.completions_per_step = folder, max_steps, completions_per_step
        self.windows = Windows(self.adapter)
        self.comparable = True
        self.metrics: dict[str, float] = {}
        self._rates: tuple[float, float] | None = None
        self._moments: Held | None = None
        self._undelivered: tuple[Held, Held] | None = None

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return self._both()[0]

    @property
    def share(self) -> float:
        """The present rate as a share of the schedule's height."""
        return self._both()[1]

    def falls_by_itself(self, begin: int, end: int) -> bool:
        """Whether the schedule lowers the rate between two steps."""
        return bool(self.workers.ask("falls_by_itself", begin, end)[0])

    def rises(self, steps: int) -> bool | None:
        """Whether the rate's next change, within so many steps, is a rise; None where nobody knows."""
        found: bool | None = self.workers.ask("rises", steps)[0]
        return found

    def follows(self, steps: int) -> bool | None:
        """Whether a factor reaches every rate that the schedule sets; None where nobody knows."""
        found: bool | None = self.workers.ask("follows", steps)[0]
        return found

    @property
    def optimizer_name(self) -> str:
        """The optimizer's class."""
        return str(self.workers.ask("optimizer_name")[0])

    @cached_property
    def resolution(self) -> float:
        """Nats per token that the precision of the model's passes and weights hides."""
        return float(max(self.workers.ask("resolution")))

    @cached_property
    def stretches(self) -> bool:
        """Whether nothing that is trained is kept in half precision."""
        return not any(self.workers.ask("rounds_weights"))

    def _both(self) -> tuple[float, float]:
        if self._rates is None:
            self._rates = self.workers.ask("rates")[0]
        return self._rates

    def step_begins(self) -> None:
        """verl is about to change weights, moments and the rate."""
        self.adapter.trained()
        self._rates = self._moments = None

    def stepped(self, batch: Batch) -> None:
        """verl has taken a step on this batch."""
        self.metrics = {}
        self.latest.take(batch)
        self.rewards.latest = batch.reward

    def move(self, state: Held) -> None:
        """Write the values; verl delivers what it finds in the actor before it samples again."""
        self._undelivered = self.adapter.read(), state
        self.adapter.write(state)

    def way(self, start: Held, moments: Any) -> tuple[float, float]:
        """How far all that is trained has come, and the cosine of that way with the way from its start to 0."""
        parts = zip(*self.workers.ask("shrinking_parts", start, self.adapter.read()), strict=True)
        return length_and_shrinking(*(sum(part) for part in parts))

    def took_gradient(self, moments: Any) -> bool:
        """Whether a gradient has come into the optimizer's state since this copy of it; without one, nobody knows."""
        return bool(moments) and any(self.workers.ask("took_gradient", moments))

    def moments(self) -> Any:
        """A copy of the optimizer's state."""
        if self._moments is None:
            self._moments = self.workers.make("keep_moments")
        return self._moments

    def put_moments(self, moments: Any) -> None:
        """Put a copy back; without moments nothing is changed."""
        if moments:
            self.workers.ask("put_moments", moments)
            self._moments = moments

    def multiply_rate(self, factor: float) -> None:
        """Multiply the learning rate, the schedule's base included."""
        self.workers.ask("multiply_rate", factor)
        self._rates = None

    @property
    def base_rate(self) -> float:
        """The rate that the schedule makes others from, what it was multiplied by included."""
        return float(self.workers.ask("base_rate")[0])

    @property
    def base_rates(self) -> tuple[float, float]:
        """That rate as the optimizer has it and as the schedule has it."""
        in_optimizer, in_schedule = self.workers.ask("base_rates")[0]
        return float(in_optimizer), float(in_schedule)

    def set_base_rate(self, base: float) -> None:
        """Bring that rate to this one, in optimizer and schedule."""
        self.workers.ask("set_base_rate", base)
        self._rates = None

    def release_rate(self, factor: float) -> None:
        """Nobody else sets it here."""

    def check_delivery(self) -> None:
        """Look at the first rollouts after a change of ours.

        Raises:
            StaleRollouts: they came from the weights before it, and what they are sampled by lets it be told.
        """
        moved, self._undelivered = self._undelivered, None
        if moved is None:
            return
        found = self.latest.delivery(*moved)
        self.metrics |= {
            "leap/rollout_off": found.to_new,
            "leap/rollout_off_before": found.to_old,
            "leap/rollout_stale": found.slope,
        }
        if not (found.stale if self.comparable else found.surely_stale):
            return
        said = (
            "the rollout servers sampled with the weights before nextrl changed them: the change did not reach "
            "them (training/rollout_probs_diff_mean in verl's log shows it); check that weights are synchronised"
        )
        if self.comparable:
            raise StaleRollouts(said)
        say(
            log,
            "it looks as if %s. Under this rollout.top_k or top_p it cannot be told for sure",
            said,
        )

    def look_back(self, start: Any) -> None:
        """Put the way of a window that has ended among the step's metrics.

        Args:
            start: where the present window began.
        """
        self.metrics |= self.windows.seen(start)

    def tell(self, record: DecisionRecord) -> None:
        """Put a decision among the step's metrics, and into the run's folder."""
        self.metrics |= decision_log.logged(record)
        decision_log.append(self.folder, record)
        if said := decision_log.line(record):
            say(log, "%s", said, step=record.step)
