"""What a verl run with leaps remembers between its processes, and where its files lie.

OUT/state.json                       this file's `RunState`, written after each window
OUT/data/                            what verl reads of the task
OUT/leg-000/global_step_N/           verl's checkpoints; a leg is what happens between two restarts, and verl
                                     counts its steps from 0 in each
OUT/leg-000/adapters/checkpoint-S/   the adapters, S in steps of the whole run: a run that nextrl can read
OUT/leg-000/metrics-S-A.jsonl        what verl logged from step S on, attempt A
OUT/leg-000/verl.log                 what it printed
OUT/decisions.jsonl                  one line per window
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nextrl.checkpoints.atomic import write_bytes
from nextrl.errors import InputError
from nextrl.judge.decision import DecisionRecord


class Leg(BaseModel):
    """One stretch between restarts.

    Attributes:
        index: 0, 1, ...
        begins: step of the whole run at which it starts.
        model: folder of its base model.
        rate: its learning rate.
    """

    model_config = ConfigDict(extra="forbid")

    index: int = 0
    begins: int = 0
    model: str
    rate: float

    def folder(self, out: Path) -> Path:
        """Where the leg lies."""
        return out / f"leg-{self.index:03d}"

    def adapter(self, out: Path, step: int) -> Path:
        """The adapter at a step of the whole run."""
        return self.folder(out) / "adapters" / f"checkpoint-{step}"


class RunState(BaseModel):
    """The run after its last finished window.

    Attributes:
        settings: hash of everything that must not change when a run is resumed.
        step: optimizer steps done.
        leg: the current leg.
        previous: (leg, start, stop) of the window before, for persistence.
        controller: memory of the controller.
        rows: how far into the held-out prompts searches have come.
        spent: completions that searches took.
        seconds: wall seconds of training and of searching.
        decisions: one per window.
        final: the adapter that the run stands at, relative to OUT.
    """

    model_config = ConfigDict(extra="forbid")

    settings: str
    step: int = 0
    leg: Leg
    previous: tuple[Leg, int, int] | None = None
    controller: dict[str, Any] | None = None
    rows: int = 0
    spent: int = 0
    seconds: dict[str, float] = {"training": 0.0, "search": 0.0}
    decisions: list[DecisionRecord] = []
    final: str | None = None


def load(out: Path, settings: str) -> RunState | None:
    """The state in a folder, or None where there is none.

    Raises:
        InputError: it is broken, or belongs to a run with other settings.
    """
    path = out / "state.json"
    if not path.is_file():
        return None
    try:
        state = RunState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path}: is no state of a verl run ({error.error_count()} errors)") from None
    if state.settings != settings:
        raise InputError(
            f"{out}: holds a run with other settings; choose another folder, or give the same settings to resume"
        )
    return state


def save(state: RunState, out: Path) -> None:
    """Write state.json, atomically."""
    write_bytes(out / "state.json", state.model_dump_json(indent=1).encode())
