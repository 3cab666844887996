"""Carrying a leap out in a running trainer: the one place where a policy's weights are moved.

Whoever decides (`policies`), and whether it is a leap or one that is taken back, the same happens here: the factors are
written in place, the inference engine is told that its weights are stale, rollouts of the old policy are dropped, and
with vLLM the first rollout afterwards is checked for having come from the new weights (`delivery`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.live_adapter import LiveAdapter, State
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.delivery import check_delivery
from nextrl.engines.trl.instruments import Instruments
from nextrl.engines.trl.memory import Memory
from nextrl.engines.trl.rollback import Moments, Snapshot, read_moments, whole, write_moments
from nextrl.engines.trl.schedules import falls_by_itself, rate_of, set_rate_factor, share_of
from nextrl.engines.trl.seam import Seam
from nextrl.judge.decision import Decision
from nextrl.judge.window import Window


@dataclass
class LiveRun:
    """A training run as a leap finds it.

    Attributes:
        trainer, adapter, ranks, tools: what is trained, on which processes, measured with what.
        optimizer, scheduler: whose rates are scaled.
        undelivered: the adapter on both sides of a leap that an inference engine has yet to show it has taken.
    """

    trainer: Any
    adapter: LiveAdapter
    ranks: Ranks
    tools: Instruments
    optimizer: Any
    scheduler: Any
    undelivered: tuple[State, State] | None = None

    @cached_property
    def seam(self) -> Seam:
        """The trainer's private side, checked once."""
        return Seam(self.trainer)

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return rate_of(self.optimizer)

    @property
    def share(self) -> float:
        """The present rate as a share of the schedule's height (below 1 in its warm-up and in its decay)."""
        return share_of(self.optimizer, self.scheduler)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.trainer.state.max_steps)

    def falls_by_itself(self, begin: int, end: int) -> bool:
        """Whether the schedule lowers the rate between two steps."""
        return falls_by_itself(self.scheduler, begin, end)

    @property
    def completions_per_step(self) -> int:
        """Fresh completions per step, over all processes; a buffered generation batch counts once."""
        args = self.trainer.args
        sampled = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return max(1, int(sampled) // int(getattr(args, "num_iterations", 1)))

    def check_delivery(self) -> None:
        """Look at the first rollouts after a leap, where an engine of its own sampled them.

        Raises:
            StaleWeights: they came from the weights before it.
        """
        if self.undelivered is not None:
            check_delivery(self.trainer, self.adapter, *self.undelivered)
            self.undelivered = None


def apply_leap(run: LiveRun, state: State) -> None:
    """Move the adapter to `state` (every process the same), and see to it that nothing of the old policy is used."""
    before = run.adapter.read()
    run.adapter.write(state)
    run.tools.rollouts.mark_weights_changed()
    run.tools.rollouts.drop_buffered()
    if run.seam.has_engine:
        run.undelivered = before, run.adapter.read()


def carry_out(
    run: LiveRun,
    memory: Memory,
    decision: Decision,
    candidate: Candidate,
    window: Window,
    steps: float,
    rollback: bool,
) -> None:
    """Do what a decision says: leap, and scale the learning rate.

    Args:
        memory: gets a snapshot where the leap may be taken back, and the rate's factor.
        candidate: the adapter as a function of alpha.
        steps: optimizer steps that the leap claims to save.
        rollback: keep a snapshot of the run before a leap forward.
    """
    if decision.alpha:
        if rollback and decision.alpha > 0.0 and whole(run.adapter.parameters):
            memory.snapshot = Snapshot(
                step=window.step,
                alpha=decision.alpha,
                steps=steps,
                factor=memory.factor,
                reward=window.reward,
                variance=window.variance,
                state=run.adapter.read(),
                moments=moments_of(run),
            )
        apply_leap(run, run.ranks.same(candidate(decision.alpha)))
    scale_rate(run, memory, decision.rate_factor)


def take_back(run: LiveRun, memory: Memory, before: Snapshot, window: Window) -> Decision:
    """Put adapter, rate and moments back as they were before the last leap."""
    apply_leap(run, before.state)
    write_moments(run.optimizer, before.moments)
    scale_rate(run, memory, before.factor / memory.factor)
    memory.factor = before.factor
    why = f"the reward fell from {before.reward:.3g} to {window.reward:.3g} after the leap of step {before.step}"
    return Decision(0.0, 1.0, f"{why}: rolled back", {}, 0)


def go_back(run: LiveRun, memory: Memory, decision: Decision, start: State, moments: Moments) -> None:
    """Take back a step or a window: the adapter and the moments as they were, at another rate.

    Args:
        start, moments: how they were; without moments (processes that hold pieces of parameters) those stay.
    """
    apply_leap(run, start)
    write_moments(run.optimizer, moments)
    scale_rate(run, memory, decision.rate_factor)


def moments_of(run: LiveRun) -> Moments:
    """A copy of the optimizer's state, and of what it trains beside the adapter.

    Empty where each process holds but pieces of parameters.
    """
    factors = run.adapter.parameters
    return read_moments(run.optimizer, factors.values()) if whole(factors) else []


def scale_rate(run: LiveRun, memory: Memory, factor: float) -> None:
    """Multiply the learning rate, and remember by how much in all."""
    if factor != 1.0:
        set_rate_factor(run.optimizer, run.scheduler, factor)
        memory.factor *= factor
