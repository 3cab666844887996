"""A verl run as a leap finds it, on verl's driver: rate, moments and weights by way of the workers."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from nextrl.engines import decision_log
from nextrl.engines.live_weights import length_and_shrinking
from nextrl.engines.ranks import Ranks
from nextrl.engines.verl.latest_batch import Batch, LatestBatch, StepRewards
from nextrl.engines.verl.remote_adapter import Held, RemoteAdapter, Workers
from nextrl.judge.decision import DecisionRecord
from nextrl.say import say

log = logging.getLogger(__name__)


class StaleRollouts(RuntimeError):
    """verl's rollout servers went on sampling from the weights before a change."""


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


@dataclass
class NoRollouts:
    """Nothing is sampled on held-out prompts: no policy that searches runs in verl."""

    completions: int = 0


@dataclass(frozen=True)
class Instruments:
    """What is measured with, see `engines.run_protocol.Tools`."""

    rollouts: NoRollouts
    rewards: StepRewards
    fresh: LatestBatch


class VerlRun:
    """A verl run as a leap finds it (`engines.run_protocol.Run`).

    Args:
        workers: where the adapter lies.
        read: see `LatestBatch`.
        folder: verl's `default_local_dir`, where decisions are written.
        max_steps, completions_per_step: of the run.

    Attributes:
        comparable: whether the rollouts' log-probabilities are near those of the whole distribution (`options`).
    """

    fresh_next = restorable = True
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
        self.tools = Instruments(NoRollouts(), self.rewards, self.latest)
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
        say(log, "it looks as if %s. Under this rollout.top_k or top_p it cannot be told for sure", said)

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
