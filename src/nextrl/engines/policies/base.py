"""The interface of a policy, what it is shown, and how all processes come to the same decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.history import AdapterHistory
from nextrl.engines.live_weights import State, Weights
from nextrl.engines.ranks import Ranks
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.decision import Decision
from nextrl.judge.fresh_batch import BatchGain
from nextrl.judge.paired_search import Score
from nextrl.judge.rounding import Moved
from nextrl.judge.window import Window

D = TypeVar("D", Decision, Decision | None)

FEW, MOST = 48, 512  # completions of each process that are looked at


@dataclass(frozen=True, kw_only=True)
class View:
    """What any policy is shown at the end of a window.

    Attributes:
        window: what the run shows for free.
        start, end: what is trained, where the window began and where it ended.
        adapter: what is trained; a `LiveAdapter` where a named method decides.
        ranks: the run's processes.
        steps_left: optimizer steps of the run that are still to come.
    """

    window: Window
    start: State
    end: State
    adapter: Weights
    ranks: Ranks
    steps_left: int


@dataclass(frozen=True, kw_only=True)
class JudgingView(View):
    """What a policy that judges is shown, of a step that it checks as well.

    Attributes:
        look: what the rollouts that were sampled at `end` say of other factors; None where they cannot say.
        moved: how far the step that those rollouts were for moved the policy, by so many completions of each process;
            told apart from rounding where that is asked for (`judge.rounding`), which takes some passes.
    """

    look: Callable[[State], BatchGain | None]
    moved: Callable[[int, bool], Moved]


@dataclass(frozen=True, kw_only=True)
class LeapingView(View):
    """What a policy that leaps is shown.

    Attributes:
        history: checkpoints in memory since the run began or last leapt.
        score: a candidate -> how its alphas are scored on held-out prompts.
        decayed: whether the schedule has brought the rate down to hardly anything.
        searched: completions that searches have taken so far.
    """

    history: AdapterHistory
    score: Callable[[Candidate], Score]
    decayed: bool
    searched: int


class Policy(Protocol):
    """Decides at the ends of windows: what those that judge and those that leap have in common.

    Attributes:
        method: its name in logs.
        every: optimizer steps per window.
        acceptance: how candidates are accepted; says how many held-out prompts are wanted.
        searches: whether held-out prompts are needed at all.
    """

    method: str
    every: int
    acceptance: Acceptance
    searches: bool

    def begin(self, rows: int) -> None:
        """A run begins, or goes on: forget everything.

        Args:
            rows: held-out prompts that are there for a search.
        """

    def ends_window(self, window: Window, began: int, fresh: bool) -> bool:
        """Whether a window ends with the step just taken.

        Args:
            window: the window so far.
            began: the step after which it began.
            fresh: whether the next step begins with fresh rollouts.
        """

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""


class JudgingPolicy(Policy, Protocol):
    """Judges steps and windows by the rollouts sampled after them: sets the rate, and takes back what did harm.

    Attributes:
        undoes: whether it judges a window by the rollouts sampled after it, and may take the window back.
    """

    undoes: Literal[True]

    @property
    def may_begin_again(self) -> bool:
        """Whether it may yet take back all of the run, whose beginning has to be remembered for that."""

    def checks(self, step: int) -> bool:
        """Whether this step by itself is to be decided on (`decide_step`)."""

    def decide_step(self, view: JudgingView, step: int, share: float) -> Decision | None:
        """What to do after a step that was checked; None is nothing.

        Args:
            share: the step's rate as a share of the highest one that the schedule has yet to come to.
        """

    def decide(self, view: JudgingView) -> Decision:
        """What to do about a window; every process gets the same answer."""

    def broken(self, step: int, again: bool) -> Decision:
        """What to take back where a step left NaN or Inf in the weights.

        Args:
            again: whether the step before it did, too.
        """

    def cooled(self, step: int, steps: int) -> float:
        """The share of the rate that this step of a run of so many is to be taken at."""


class LeapingPolicy(Policy, Protocol):
    """Leaps at the ends of some windows, and leaves single steps alone.

    Attributes:
        undoes: see `JudgingPolicy`.
        keeps_history: whether it is fitted on checkpoints in memory, which have to be kept then.
        fall_errors: when a leap is taken back, see `Snapshot.fell`.
    """

    undoes: Literal[False]
    keeps_history: bool
    fall_errors: float

    @property
    def steps_of_one(self) -> int:
        """Optimizer steps that alpha = 1 stands for."""

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None:
        """See to it that this policy has something to do in a run that goes from step `begins` to step `ends`.

        Args:
            begins: the step that its memory reaches back to: 0, or where a run is resumed without its memory.
            ends: the run's last step.
            keep: checkpoints that are kept in memory.

        Raises:
            InputError: all the steps that it was told to act at lie outside, or it cannot do there what it is for.
        """

    def announced(self, steps: int, per_step: int, group: int) -> str | None:
        """What a user should read when a run begins, as one line: what searches will cost; None where nothing does.

        Args:
            steps: of the run, those to come.
            per_step: completions that a step is trained on.
            group: completions of each held-out prompt.
        """

    def never_searches(self, steps: int, per_step: int, group: int) -> bool:
        """Whether a policy that searches knows that it will not in this run: no rows are held back for it then.

        Args:
            steps, per_step, group: see `announced`.
        """

    def waits_for_checkpoint(self, step: int) -> bool:
        """Whether the decision after this step needs the trainer's checkpoint of it."""

    def decide(self, view: LeapingView) -> tuple[Decision, Candidate]:
        """What to do, and the adapter as a function of alpha; every process gets the same answer."""

    def moved(self, step: int, alpha: float) -> None:
        """The adapter was moved at `step`: by the leap just decided, or (alpha 0) by taking one back."""


class LeapsOnly:
    """A policy that leaps without a plan to announce, and remembers nothing: those members of `LeapingPolicy`."""

    undoes: Literal[False] = False

    def begin(self, rows: int) -> None:
        """Nothing is remembered."""

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None:
        """Nothing is impossible."""

    def announced(self, steps: int, per_step: int, group: int) -> str | None:
        """Nothing."""
        return None

    def never_searches(self, steps: int, per_step: int, group: int) -> bool:
        """Not that it knew."""
        return False

    def waits_for_checkpoint(self, step: int) -> bool:
        """Never."""
        return False

    def moved(self, step: int, alpha: float) -> None:
        """Nothing is remembered."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def agreed(ranks: Ranks, policy: Policy, decide: Callable[..., D], *tools: Callable[..., Any]) -> D:
    """Process 0's decision, and what its policy remembers of it, on every process."""

    def once(*collective: Any) -> tuple[D, dict[str, Any]]:
        return decide(*collective), policy.state()

    decision, state = ranks.once(once, *tools)
    if not ranks.leader:
        policy.restore(state)
    return decision
