"""The trajectory that a named method is fitted on inside a trainer: in memory, or the trainer's own checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextrl.checkpoints.layouts.listing import trainer_checkpoints
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import State
from nextrl.errors import InputError
from nextrl.leaps.leap import Leap
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.trajectory import Trajectory

KEPT = 16
"""Checkpoints of the adapter held in memory, if nothing else is said."""


@dataclass
class AdapterHistory:
    """The run since it began or since its last leap; steps count from there, so the first is 0 and W_0 is known.

    A method must not take a leap for a window of training, so the history begins anew with each. It lies in the CPU's
    memory, wherever the model is: methods compute there, and an accelerator has no room for so many adapters.

    Attributes:
        steps: optimizer steps of each checkpoint in the run's own count.
        states: the adapter's factors at each.
        rewards: step -> mean training reward of the window that ended there.
        most: checkpoints kept. Beyond that the third-oldest goes, since the first is W_0 and the first two together are
            the run's first update; of three or fewer the second-oldest, so that the last window stays whole.
    """

    steps: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)
    most: int = KEPT

    def begin(self, step: int, state: State) -> None:
        """Forget everything; `state` is where the run now stands."""
        self.steps, self.states, self.rewards = [step], [_on_cpu(state)], {}

    def add(self, step: int, state: State, reward: float) -> None:
        """One more checkpoint, with the reward of the window that led to it."""
        self.steps.append(step)
        self.states.append(_on_cpu(state))
        self.rewards[step] = reward
        if len(self.steps) > self.most:
            gone = 2 if self.most > 3 else 1
            self.rewards.pop(self.steps[gone], None)
            del self.steps[gone], self.states[gone]

    def trajectory(self, adapter: LiveAdapter) -> Trajectory:
        """What is kept, by module name, on the CPU; nothing is copied."""
        factors = [adapter.matrices(state) for state in self.states]
        scalings = adapter.scalings()
        stored = zip(self.steps, factors, strict=True)
        return Trajectory(tuple(MemoryCheckpoint(s - self.steps[0], f, scalings) for s, f in stored))

    def accuracy(self) -> dict[int, float]:
        """Step, counted as in `trajectory` -> mean training reward, where one was measured."""
        return {s - self.steps[0]: r for s, r in self.rewards.items() if r == r}


def _on_cpu(state: State) -> State:
    """The same tensors where they lie there already."""
    return {name: tensor.cpu() for name, tensor in state.items()}


class DiskHistory:
    """The trainer's checkpoints on disk since the run began or since its last leap.

    A leap's own adapter is written, too: the run stands there afterwards, and the next cycle's trajectory begins there.

    Args:
        run: directory of `checkpoint-N` folders.
        leaps: directory for the adapters that leaps leave (`leap-N`).
        writes: whether this process writes them (process 0).
    """

    def __init__(self, run: Path, leaps: Path, *, writes: bool = True) -> None:
        self._run, self._leaps, self._writes = run, leaps, writes
        self.begin()

    def begin(self) -> None:
        """Nothing has leapt yet."""
        self._since, self._leapt = 0, False

    def trajectory(self, step: int) -> Trajectory:
        """Checkpoints since the last leap, up to `step`, counted from there; read when their values are needed.

        After a leap that was taken back the run stands where the checkpoint of that step does; where the trainer kept
        none, W_0 is unknown, and the methods that need it say so.

        Raises:
            InputError: there are none, or one cannot be read.
        """
        folders = {found.step: found.folder for found in trainer_checkpoints(self._run)}
        found = {s: folder for s, folder in folders.items() if self._since < s <= step}
        if self._leapt:
            found[self._since] = self._leaps / f"leap-{self._since}"
        elif self._since in folders:
            found[self._since] = folders[self._since]
        if not found:
            raise InputError(f"{self._run}: holds no checkpoint-N folder up to step {step}")
        return Trajectory.load(found, start=self._since)

    def moved(self, step: int, leap: Leap | None) -> None:
        """Begin anew at `step`: with the adapter of a leap, or (None) where one was taken back."""
        if leap is not None and self._writes:
            folder = self._leaps / f"leap-{step}"
            shutil.rmtree(folder, ignore_errors=True)  # half of a leap, of a killed process
            leap.save_adapter(folder)
        self._since, self._leapt = step, leap is not None

    def state(self) -> dict[str, Any]:
        """JSON-ready memory."""
        return {"since": self._since, "leapt": self._leapt}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self._since, self._leapt = state["since"], state["leapt"]
