"""A run of a TRL trainer as a leap finds it: how its weights are moved, delivered, and its rate changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from nextrl.engines import decision_log
from nextrl.engines.live_weights import LiveWeights, State, length_and_shrinking, shrinking_parts
from nextrl.engines.moments import (
    Moments,
    parameters,
    read_moments,
    trained_beside,
    unsharded,
    values_of,
    write_moments,
)
from nextrl.engines.optimizer_state import took_gradient
from nextrl.engines.optimizers import unwrapped
from nextrl.engines.precision import of_model
from nextrl.engines.ranks import Ranks
from nextrl.engines.rehearsal import falls, follows, rises
from nextrl.engines.schedules import base_rate, rate_of, release, set_elsewhere, set_rate_factor, share_of
from nextrl.engines.trl.delivery import check_delivery
from nextrl.engines.trl.instruments import Instruments
from nextrl.engines.trl.seam import Seam
from nextrl.judge.decision import DecisionRecord
from nextrl.say import say

log = logging.getLogger(__name__)


@dataclass
class LiveRun:
    """A training run as a leap finds it.

    Attributes:
        trainer, adapter, ranks, tools: what is trained, on which processes, measured with what.
        optimizer, scheduler: whose rates are scaled.
        heights: see `schedules.heights_of`; empty where nobody asks how high the rate will be.
        undelivered: the adapter on both sides of a leap that an inference engine has yet to show it has taken.
    """

    trainer: Any
    adapter: LiveWeights
    ranks: Ranks
    tools: Instruments
    optimizer: Any
    scheduler: Any
    heights: Sequence[float] = ()
    undelivered: tuple[State, State] | None = None

    @cached_property
    def seam(self) -> Seam:
        """The trainer's private side, checked once."""
        return Seam(self.trainer)

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return rate_of(self.optimizer, self.heights)

    @property
    def share(self) -> float:
        """The present rate as a share of the schedule's height (below 1 in its warm-up and in its decay)."""
        return share_of(self.optimizer, self.scheduler, self.heights)

    @property
    def rate_set_elsewhere(self) -> bool:
        """Whether somebody else than the schedule has set the rate."""
        return set_elsewhere(self.optimizer, self.scheduler)

    def falls_by_itself(self, begin: int, end: int) -> bool:
        """Whether the schedule lowers the rate between two steps."""
        return falls(self.optimizer, self.scheduler, begin, end, self.heights)

    def rises(self, steps: int) -> bool | None:
        """Whether the rate's next change, within so many steps, is a rise; None where nobody knows."""
        return rises(self.optimizer, self.scheduler, steps, self.heights)

    def follows(self, steps: int) -> bool | None:
        """Whether a factor reaches every rate that the schedule sets; None where nobody knows."""
        return follows(self.optimizer, self.scheduler, steps)

    @property
    def group(self) -> int:
        """Completions of each held-out prompt, as far as rewards need whole groups; else 1."""
        return self.seam.group

    @property
    def optimizer_name(self) -> str:
        """The optimizer's class."""
        return type(unwrapped(self.optimizer)).__name__

    @cached_property
    def resolution(self) -> float:
        """Nats per token that the precision of the model's passes and weights hides."""
        return of_model(self.trainer.model, self.trainer.accelerator.mixed_precision)

    @cached_property
    def stretches(self) -> bool:
        """Whether nothing that is trained is kept in half precision or lies beside the adapter."""
        own = self.adapter.parameters.values()
        return not trained_beside(self.optimizer, own) and all(p.dtype.itemsize >= 4 for p in own)

    @property
    def completions_per_step(self) -> int:
        """Fresh completions per step, over all processes; a buffered generation batch counts once."""
        args = self.trainer.args
        sampled = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return max(1, int(sampled) // int(getattr(args, "num_iterations", 1)))

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.trainer.state.max_steps)

    @property
    def fresh_next(self) -> bool:
        """Whether the next step begins with fresh rollouts; texts of SFT are always fresh."""
        return not self.seam.generates or self.seam.samples_next

    @property
    def restorable(self) -> bool:
        """Whether each process holds whole parameters, and so whole moments."""
        return unsharded(self.adapter.parameters)

    @property
    def beside(self) -> Sequence[Tensor]:
        """What is trained beside the adapter (`modules_to_save`); nothing where processes hold pieces of parameters."""
        return trained_beside(self.optimizer, self.adapter.parameters.values()) if self.restorable else []

    def move(self, state: State) -> None:
        """Write the factors, and see to it that nothing of the old policy is used."""
        before = self.adapter.read()
        self.adapter.write(state)
        self.seam.weights_changed()
        self.seam.drop_buffered_rollouts()  # those of the old policy would be trained on
        if self.seam.has_engine:
            self.undelivered = before, self.adapter.read()

    def way(self, start: State, moments: Moments) -> tuple[float, float]:
        """How far all that is trained has come, and the cosine of that way with the way from its start to 0."""
        before, now = dict(start), self.adapter.read()
        for index, (value, p) in enumerate(zip(values_of(moments), self.beside, strict=False)):
            before[f"beside {index}"], now[f"beside {index}"] = value, p.detach().cpu()
        return length_and_shrinking(*shrinking_parts(before, now))

    def took_gradient(self, moments: Moments) -> bool:
        """Whether a gradient has come into the optimizer's state since this copy of it; without one, nobody knows."""
        return bool(moments) and took_gradient(self.optimizer, parameters(self.optimizer), moments)

    def moments(self) -> Moments:
        """A copy of the optimizer's state, and of what it trains beside the adapter."""
        return read_moments(self.optimizer, self.adapter.parameters.values())

    def put_moments(self, moments: Moments) -> None:
        """Put a copy back; without moments nothing is changed."""
        write_moments(self.optimizer, moments)

    def multiply_rate(self, factor: float) -> None:
        """Multiply the learning rate, the schedule's base included."""
        set_rate_factor(self.optimizer, self.scheduler, factor)

    @property
    def base_rate(self) -> float | None:
        """The rate that the schedule makes others from; None where it makes them from the present one."""
        return base_rate(self.optimizer, self.heights)

    def release_rate(self, factor: float) -> None:
        """Divide the schedule's rates by a factor again; what is set now stays as whoever set it wants it."""
        release(self.optimizer, self.scheduler, factor)

    def check_delivery(self) -> None:
        """Look at the first rollouts after a leap, where an engine of its own sampled them.

        Raises:
            StaleWeights: they came from the weights before it.
        """
        if self.undelivered is not None:
            check_delivery(self.trainer, self.adapter, *self.undelivered)
            self.undelivered = None

    def tell(self, record: DecisionRecord) -> None:
        """Put a decision among the metrics that the trainer logs next, and into the run's folder."""
        decision_log.show(self.seam.training_metrics(), record)
        if self.trainer.args.should_save:
            decision_log.append(Path(self.trainer.args.output_dir), record)
            if said := decision_log.line(record):
                say(log, "%s", said, step=record.step)
