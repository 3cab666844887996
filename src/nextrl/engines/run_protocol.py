"""A training run as the session and its parts meet it, and what it is measured with, whichever trainer it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from nextrl.engines.candidate_scores import Rollouts
from nextrl.engines.live_weights import State, Weights
from nextrl.engines.moments import Moments
from nextrl.engines.ranks import Ranks
from nextrl.judge.decision import DecisionRecord
from nextrl.judge.fresh_batch import BatchGain


class FreshBatch(Protocol):
    """Judges other weights on what the latest step was trained on."""

    def listen(self, moments: Moments) -> None:
        """A step begins, which will be asked about.

        Args:
            moments: the optimizer's state where it begins.
        """

    def stop(self) -> None:
        """The step is over."""

    def moved(self, anchor: State, most: int) -> float:
        """Nats per token between the weights that the step began from and the present ones; NaN if not measured.

        Args:
            anchor: what is trained, where the step began.
            most: completions of each process that are looked at.
        """

    def gain(self, anchor: State, candidate: State) -> BatchGain | None:
        """What the batch, sampled at the anchor, says of other weights; None where it cannot say."""


class StepReward(Protocol):
    """The training reward of each step.

    Attributes:
        latest: the latest mean; NaN before any.
        sampled: whether the latest call of `new` found anything new.
    """

    latest: float
    sampled: bool

    def new(self) -> float:
        """Mean reward of what was sampled since the last call; where nothing was, the last mean."""

    def mark(self) -> None:
        """Take what the trainer holds now as read."""


class Tools(Protocol):
    """What a run is measured with.

    Attributes:
        rollouts: scores held-out rows; under a policy that never searches only its count of completions is read.
        rewards: reads the training reward of each step.
        fresh: judges other weights on what the latest step was trained on.
    """

    @property
    def rollouts(self) -> Rollouts: ...
    @property
    def rewards(self) -> StepReward: ...
    @property
    def fresh(self) -> FreshBatch: ...


class Run(Protocol):
    """A training run as a leap finds it: TRL's (`trl.live_run.LiveRun`), or one whose weights lie on verl's workers.

    What stands for the weights (`State`) and the optimizer's state (`Moments`) is the run's own affair: tensors here,
    the names of copies that the workers hold there.

    Attributes:
        adapter, ranks, tools: what is trained, on which processes, measured with what.
        rate: the present learning rate.
        share: the present rate as a share of the schedule's height (below 1 in its warm-up and in its decay).
        rate_set_elsewhere: whether somebody else than the schedule has set the rate.
        completions_per_step: fresh completions per step, over all processes; a buffered generation batch counts once.
        max_steps: optimizer steps of the whole run.
        group: completions of each held-out prompt, as far as rewards need whole groups; else 1.
        optimizer_name: its class, for messages.
        resolution: nats per token that the precision of the model's passes and weights hides.
        stretches: whether a step can be written longer than it was taken: nothing that is trained is kept in half
            precision or lies beside the adapter.
        fresh_next: whether the next step begins with fresh rollouts.
        restorable: whether a leap can be taken back, moments and all.
        beside: what is trained beside the adapter, as far as it lies here whole.
    """

    ranks: Ranks

    @property
    def adapter(self) -> Weights: ...
    @property
    def tools(self) -> Tools: ...
    @property
    def rate(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def rate_set_elsewhere(self) -> bool: ...
    @property
    def completions_per_step(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def optimizer_name(self) -> str: ...
    @property
    def resolution(self) -> float: ...
    @property
    def stretches(self) -> bool: ...
    @property
    def fresh_next(self) -> bool: ...
    @property
    def restorable(self) -> bool: ...
    @property
    def beside(self) -> Sequence[Tensor]: ...

    def falls_by_itself(self, begin: int, end: int) -> bool:
        """Whether the schedule lowers the rate between two steps."""

    def rises(self, steps: int) -> bool | None:
        """Whether the rate's next change, within so many steps, is a rise (`rehearsal.rises`); None: nobody knows."""

    def follows(self, steps: int) -> bool | None:
        """Whether a factor reaches every rate of the schedule (`rehearsal.follows`); None: nobody knows."""

    def move(self, state: State) -> None:
        """Write what is trained, the same on every process, and see to it that nothing of the old policy is used."""

    def way(self, start: State, moments: Moments) -> tuple[float, float]:
        """How far all that is trained has come, and the cosine of that way with the way from its start to 0.

        The cosine is NaN where there is no way (`live_weights.length_and_shrinking`).
        """

    def took_gradient(self, moments: Moments) -> bool:
        """Whether a gradient has come into the optimizer's state since this copy of it; without one, nobody knows."""

    def moments(self) -> Moments:
        """A copy of the optimizer's state."""

    def put_moments(self, moments: Moments) -> None:
        """Put a copy back; without moments nothing is changed."""

    def multiply_rate(self, factor: float) -> None:
        """Multiply the learning rate, the schedule's base included."""

    def release_rate(self, factor: float) -> None:
        """Divide the schedule's rates by a factor again; what is set now stays as whoever set it wants it."""

    def check_delivery(self) -> None:
        """Look at the first rollouts after a leap, where an engine of its own sampled them.

        Raises:
            StaleWeights: they came from the weights before it.
        """

    def tell(self, record: DecisionRecord) -> None:
        """Write a decision down, and show it among the trainer's metrics."""
