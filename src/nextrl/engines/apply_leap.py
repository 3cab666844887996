"""Carrying a leap out in a running trainer: the one place where a policy's weights are moved.

Whoever decides (`policies`), and whether it is a leap or one that is taken back, the same happens here: the factors are
written in place, the inference engine is told that its weights are stale, rollouts of the old policy are dropped, and
with an engine of its own the first rollouts afterwards are checked for having come from the new weights.
"""

from __future__ import annotations

from functools import partial

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.interrupts import to_the_end
from nextrl.engines.memory import Memory
from nextrl.engines.moments import Moments
from nextrl.engines.point import Point
from nextrl.engines.rollback import Snapshot
from nextrl.engines.run_protocol import Run
from nextrl.judge.decision import Decision, stay
from nextrl.judge.window import Window


def carry_out(
    run: Run,
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
        if rollback and decision.alpha > 0.0 and run.restorable:
            memory.snapshot = Snapshot(
                point=Point(run.adapter.read(), moments_of(run), window.step),
                alpha=decision.alpha,
                steps=steps,
                factor=memory.factor,
                reward=window.reward,
                variance=window.variance,
                measured=window.measured,
            )
        to_the_end(partial(run.move, run.ranks.same(candidate(decision.alpha))), run.restorable)
    scale_rate(run, memory, decision.rate_factor)


def take_back(run: Run, memory: Memory, before: Snapshot, window: Window) -> Decision:
    """Put adapter, rate and moments back as they were before the last leap."""
    _put_back(run, before.point)
    scale_rate(run, memory, before.factor / memory.factor)
    memory.factor = before.factor
    why = f"the reward fell from {before.reward:.3g} to {window.reward:.3g} after the leap of step {before.point.step}"
    return stay(f"{why}: rolled back")


def go_back(run: Run, memory: Memory, decision: Decision, point: Point) -> None:
    """Take back a step, a window or all of the run: what is trained and the moments as they were, at another rate."""
    _put_back(run, point)
    scale_rate(run, memory, decision.rate_factor)


def _put_back(run: Run, point: Point) -> None:
    """Without moments (processes that hold pieces of parameters) the optimizer's state stays."""

    def put() -> None:
        run.move(point.state)
        run.put_moments(point.moments)

    to_the_end(put, run.restorable)


def moments_of(run: Run) -> Moments:
    """A copy of the optimizer's state, and of what it trains beside the adapter.

    Empty where each process holds but pieces of parameters.
    """
    return run.moments() if run.restorable else []


def scale_rate(run: Run, memory: Memory, factor: float) -> None:
    """Multiply the learning rate, and remember by how much in all."""
    if factor != 1.0:
        run.multiply_rate(factor)
        memory.factor *= factor
