"""Checkpoints of the live adapter in memory: the trajectory that a named method is fitted on inside a trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from nextrl.engines.live_adapter import LiveAdapter, State
from nextrl.trajectory.trajectory import Trajectory


@dataclass
class AdapterHistory:
    """The run since it began or since its last leap; steps count from there, so the first is 0 and W_0 is known.

    A method must not take a leap for a window of training, so the history begins anew with each.

    Attributes:
        steps: optimizer steps of each checkpoint in the run's own count.
        states: the adapter's factors at each.
        rewards: step -> mean training reward of the window that ended there.
        most: checkpoints kept; beyond that the second-oldest goes, since the first is W_0.
    """

    steps: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)
    most: int = 15

    def begin(self, step: int, state: State) -> None:
        """Forget everything; `state` is where the run now stands."""
        self.steps, self.states, self.rewards = [step], [state], {}

    def add(self, step: int, state: State, reward: float) -> None:
        """One more checkpoint, with the reward of the window that led to it."""
        self.steps.append(step)
        self.states.append(state)
        self.rewards[step] = reward
        if len(self.steps) > self.most:
            self.rewards.pop(self.steps[1], None)
            del self.steps[1], self.states[1]

    def trajectory(self, adapter: LiveAdapter) -> Trajectory:
        """What is kept, by module name; nothing is copied."""
        pairs = adapter.pairs.items()
        factors = [{m: (state[a], state[b]) for m, (a, b, _) in pairs} for state in self.states]
        scaling = {m: s for m, (_, _, s) in pairs}
        return Trajectory.from_factors(self._own(self.steps), factors, scaling=scaling)

    def accuracy(self) -> dict[int, float]:
        """Step, counted as in `trajectory` -> mean training reward, where one was measured."""
        return {s - self.steps[0]: r for s, r in self.rewards.items() if r == r}

    def _own(self, steps: list[int]) -> list[int]:
        return [s - self.steps[0] for s in steps]
