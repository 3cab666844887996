"""Was a run begun from the base model at all? What to ask where its first checkpoint lies too far away for that.

Training that goes on from an adapter (of supervised fine-tuning, say) leaves a configuration like any other, and its
first checkpoint holds all that the adapter had learned. Whatever counts from the base takes that for the run's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from nextrl.checkpoints import AdapterCheckpoint
from nextrl.trajectory import trainer_log
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

FAR = 5.0
"""Times the way of the second window, step for step and at the same learning rate."""

# Of the run before the first checkpoint, at most: an adapter's way is little beside a longer one.
_WINDOWS = 3


def doubt_of(traj: Trajectory) -> str:
    """What to ask of a run's start, as `far_start`; "" where there is nothing to ask, or the user has said it."""
    stored = [c for c in traj.checkpoints if isinstance(c, AdapterCheckpoint)]
    if traj.doubt is not None or traj.start or not traj.knows_start or len(stored) < len(traj.checkpoints):
        return traj.doubt or ""
    asked = far_start(stored)
    return asked and f"{asked} (--start 0, in Python start=0, says that it was not)"


def doubting(traj: Trajectory) -> Trajectory:
    """The run with its start unknown where there is something to ask of it, so that nothing is counted from there."""
    doubt = doubt_of(traj)
    return replace(traj, doubt=doubt, _products={}, _sizes={}) if doubt else traj


def far_start(checkpoints: Sequence[AdapterCheckpoint]) -> str:
    """What to ask where a run seems to have begun from an adapter, of which its configuration says nothing; else "".

    Such a run's first checkpoint holds all of that adapter's training, which methods would take for the run's own.
    Where old checkpoints were deleted and the rate has fallen since, the first one lies far off in any run.
    """
    if len(checkpoints) < 2 or checkpoints[0].step == 0:
        return ""
    first, second = checkpoints[:2]
    fallen, window = _fall_of_rate(first, second), second.step - first.step
    if first.step > window * (1 if fallen is None else _WINDOWS):
        return ""
    far = moved = 0.0
    for module in first.modules:
        (a, b), (a2, b2) = first.factors(module), second.factors(module)
        start, scale = LowRank(b.double(), a.double().mT), first.scaling(module)
        far += scale**2 * float(start.square)
        moved += scale**2 * float((LowRank(b2.double(), a2.double().mT) - start).square)
    ratio = math.sqrt(far / moved) * window / first.step / (fallen or 1.0) if moved > 0 else 0.0
    if ratio <= FAR:
        return ""
    return (
        f"{first.folder}: lies {ratio:.0f} times as far from the base model, per step and rate, as step {second.step} "
        "lies from it: was the run begun from an adapter? Then add that as checkpoint-0, or deltas from the start are "
        "wrong"
    )


def _fall_of_rate(first: AdapterCheckpoint, second: AdapterCheckpoint) -> float | None:
    """The mean learning rate up to the first checkpoint over that up to the second one; None where none is known."""
    rates = trainer_log.learning_rates(Trajectory((first, second)))
    before = [rate for step, rate in rates.items() if step <= first.step]
    after = [rate for step, rate in rates.items() if step > first.step]
    if not before or not after or sum(after) <= 0.0 or sum(before) <= 0.0:
        return None
    return (sum(before) / len(before)) / (sum(after) / len(after))
