"""How far a step moved the policy, told apart from what the rounding of half-precision passes adds.

A pass in bfloat16 rounds after every operation, and a change of the weights too small to matter turns other roundings
up or down all through the model. Log-probabilities then differ at random: by .0026 to .0044 nats per token (half their
mean square) in SmolLM2-135M on a CPU, and as many on an H200, whatever the change's size over three orders of magnitude
(docs/precision.md). A learning rate that is ten times too low moves the policy by a hundredth of that.

The step itself is quadratic in its length, and rounding does not grow with it. So the step is looked at longer than it
was: what alpha times the step shows is `n + alpha^2 s`, with n the rounding's part and s the step's own. That s is what
half precision shows of the step, less than float32 would. The rule is nextrl's own, from no paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

Reading = Callable[[float], float]
"""alpha -> nats per token between the weights before a step and those alpha times the step beyond them, as passes show
them; infinite where the policy has no probabilities there."""

_FACTOR = 4.0
"""Times as long as the last one that each multiple of the step is."""

_GROWTH = 4.0
"""Times the nats of the last multiple that the next one shows at least where the step is seen (16 without rounding)."""

_LONGEST = 4096.0
"""The longest multiple looked at: a step of a rate some thousand times too low is seen there."""

_FAR = 0.01
"""Nats per token beyond which a step is held against a quarter of it: multiples would leave what is quadratic."""

_LOST = 0.3
"""Nats per token that no rounding adds: whatever shows as many has ruined the policy, or is about to."""

_PART, _LESS = 1.0 / 16.0, 0.25
"""Part of the step that shows as much as the step where that is rounding, and less than this share of it where not."""

_ODD = 1.0 / 30.0
"""Share of what the step shows above which multiples that grow oddly may have made too little of it. Below, a part of
the step says nothing: it may be so short that no rounding turns."""

_OFF = 0.5
"""How far, relatively, what a multiple shows may be from what two others make of it."""


@dataclass(frozen=True)
class Moved:
    """How far a step moved the policy.

    Attributes:
        nats: per token; NaN where it could not be measured.
        hidden: nats per token that a step may have and not be seen; `nats` up to there say nothing.
        rounding: nats per token that rounding adds to whatever two passes of this run show; None where the step hides
            it, or it was not looked for.
    """

    nats: float
    hidden: float = 0.0
    rounding: float | None = None


def tell_apart(read: Reading, resolution: float, first: float) -> Moved:
    """Take the rounding out of how far a step moved the policy.

    Args:
        read: each call is a pass over the batch: none of a step that no rounding explains, one of a long one, two or
            three where the rate is good, four or five where it is ten times too low, eight where nothing is seen.
        resolution: nats per token of a last digit (`engines.precision`): below it nothing was rounded otherwise, so
            that the rounding has not shown yet.
        first: what `read(1.0)` gave.

    Returns:
        The step's own nats; all that it shows where no multiple up to the longest stands out, or where a part of it
        shows that it grows in another way. `hidden` is above 0 only where no pass showed anything at all.
    """
    if not first < _LOST:  # or not a number
        return Moved(first)
    found = _held_apart(read, resolution, first)
    if found.hidden and first > resolution:
        return Moved(first)  # rounding, or a policy so far off that it cannot change any more
    if found.nats < first / 2.0:
        if found.nats > _ODD * first and resolution < read(_PART) < _LESS * first:
            return Moved(first)
        return replace(found, rounding=first - found.nats if first < _FAR else None)
    # Of a step in the last digits much is rounded away, and its multiples know better.
    return replace(found, nats=min(found.nats, first)) if first > 10.0 * resolution else found


def _held_apart(read: Reading, resolution: float, first: float) -> Moved:
    if first > _FAR and _GROWTH * (shorter := read(1.0 / _FACTOR)) < first:
        return _of_two(1.0 / _FACTOR, shorter, 1.0, first)
    alpha, last = 1.0, first
    while alpha < _LONGEST:
        now = read(_FACTOR * alpha)
        grown, lost = last > resolution and not now <= _GROWTH * last, not now < _LOST
        if grown or lost:
            # Where roundings only begin to turn, nats rise once: half-way they are what they are in the end.
            middle = read(2.0 * alpha)
            expected = last + (now - last) / 5.0
            if grown and abs(middle - expected) < _OFF * expected:
                return _of_two(alpha, last, _FACTOR * alpha, now)
            if lost:
                return _before_the_loss(alpha, max(last, resolution), middle)
        alpha, last = _FACTOR * alpha, now
    hidden = max(resolution, last) / alpha**2
    return Moved(hidden, hidden)


def _before_the_loss(alpha: float, last: float, middle: float) -> Moved:
    """From what a multiple shows and twice that, where four times that multiple ruins the policy."""
    if not middle < _LOST:
        return Moved(last / alpha**2)
    if middle > 2.0 * last:
        return _of_two(alpha, last, 2.0 * alpha, middle)
    return Moved(middle / (2.0 * alpha) ** 2)


def _of_two(short: float, low: float, long: float, high: float) -> Moved:
    """From the nats of two multiples of the step."""
    return Moved((high - low) / (long**2 - short**2))
