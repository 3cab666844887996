"""The interface of a policy, what it is shown, and how all processes come to the same decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.live_adapter import LiveAdapter, State
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.history import AdapterHistory
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.decision import Decision
from nextrl.judge.paired_search import Score
from nextrl.judge.window import Diverge, Window


@dataclass(frozen=True)
class View:
    """What a policy is shown at the end of a window.

    Attributes:
        window: what the run shows for free.
        start, end: the adapter's factors where the window began, and now.
        history: checkpoints in memory since the run began or last leapt.
        adapter: the live adapter.
        ranks: the run's processes.
        score: a candidate -> how its alphas are scored on held-out prompts.
        distances: a candidate -> (exact, rough) divergence by alpha.
    """

    window: Window
    start: State
    end: State
    history: AdapterHistory
    adapter: LiveAdapter
    ranks: Ranks
    score: Callable[[Candidate], Score]
    distances: Callable[[Candidate], tuple[Diverge, Diverge]]


class Policy(Protocol):
    """Decides at the ends of windows.

    Attributes:
        method: its name in logs.
        every: optimizer steps per window.
        acceptance: how candidates are accepted; says how many held-out prompts are wanted.
        steps_of_one: optimizer steps that alpha = 1 stands for.
        searches: whether held-out prompts are needed at all.
        keeps_history: whether it is fitted on checkpoints in memory, which have to be kept then.
        listens: whether it asks for the rough divergence, which has to be prepared during a window's last step.
        fall, fall_errors: when a leap is taken back, see `Snapshot.fell`.
    """

    method: str
    every: int
    acceptance: Acceptance
    searches: bool
    keeps_history: bool
    listens: bool
    fall: float
    fall_errors: float

    @property
    def steps_of_one(self) -> int: ...

    def begin(self, beta1: float, rows: int) -> None:
        """A run begins, or goes on: forget everything.

        Args:
            beta1: memory of the optimizer's first moment.
            rows: held-out prompts that are there.
        """
        ...

    def ends_window(self, step: int) -> bool:
        """Whether a window ends after this step."""
        ...

    def waits_for_checkpoint(self, step: int) -> bool:
        """Whether the decision after this step needs the trainer's checkpoint of it."""
        ...

    def decide(self, view: View) -> tuple[Decision, Candidate]:
        """What to do, and the adapter as a function of alpha; every process gets the same answer."""
        ...

    def moved(self, step: int, alpha: float) -> None:
        """The adapter was moved at `step`: by the leap just decided, or (alpha 0) by taking one back."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        ...


def agreed(
    ranks: Ranks, policy: Policy, decide: Callable[..., Decision], *tools: Callable[..., Any]
) -> Decision:
    """Process 0's decision, and what its policy remembers of it, on every process."""

    def once(*collective: Any) -> tuple[Decision, dict[str, Any]]:
        return decide(*collective), policy.state()

    decision, state = ranks.once(once, *tools)
    if not ranks.leader:
        policy.restore(state)
    return decision
