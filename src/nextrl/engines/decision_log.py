"""What a run with leaps tells: one JSON line per window, `leap/*` in the trainer's log, and the account of costs."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nextrl.checkpoints.atomic import write_bytes, writing
from nextrl.judge.decision import DecisionRecord, done
from nextrl.judge.decision_file import DECISIONS

# Field of a decision -> its name in the trainer's log. What is None there is not logged.
_LOGGED = {
    "alpha": "leap/alpha",
    "learning_rate": "leap/lr",
    "lr_factor": "leap/lr_factor",
    "divergence": "leap/divergence",
    "cost_completions": "leap/cost_completions",
    "claimed_steps": "leap/claimed_steps",
    "rolled_back": "leap/rolled_back",
}


@dataclass
class Costs:
    """What the callback has cost and claims to have won so far.

    Attributes:
        search_completions: completions that were sampled to compare candidates for a leap. Those that training samples
            are not among them, and `auto` samples none.
        search_seconds: seconds that deciding took, whether or not anything was searched: fits and searches of a named
            method, and the passes by which `auto` looks at a step or a window again on what training has sampled.
        fit_seconds: seconds of them that fitting a named method took.
        leapt_steps: optimizer steps that accepted leaps claim to have skipped (alpha windows, or alpha horizons of a
            named method); undone windows and leaps rolled back, with the window that showed it, are subtracted.
    """

    search_completions: int = 0
    search_seconds: float = 0.0
    fit_seconds: float = 0.0
    leapt_steps: float = 0.0

    def claimed_steps(self, per_step: int) -> float:
        """`leapt_steps` minus search completions in steps of `per_step`: a claim, since nobody ran the other run."""
        return self.leapt_steps - self.search_completions / per_step


def begin(output_dir: Path, decisions: Sequence[DecisionRecord], anew: bool = False) -> None:
    """Write the decisions so far (a resumed run's) in the place of what another run left.

    Before a run that begins `anew` an earlier one's are moved aside: `nextrl_decisions.1.jsonl`, then 2 and so on.
    """
    path = output_dir / DECISIONS
    if anew and path.is_file() and path.stat().st_size:
        with writing(path):
            path.rename(_free_name(path))
    lines = "".join(decision.model_dump_json() + "\n" for decision in decisions)
    write_bytes(path, lines.encode())


def _free_name(path: Path) -> Path:
    beside = (path.with_stem(f"{path.stem}.{number}") for number in itertools.count(1))
    return next(one for one in beside if not one.exists())


def append(output_dir: Path, decision: DecisionRecord) -> None:
    """One more line, handed to the system in one piece.

    Raises:
        InputError: it cannot be written (a full disk).
    """
    path, entry = output_dir / DECISIONS, (decision.model_dump_json() + "\n").encode()
    with writing(path, "the lines before are unchanged"), path.open("ab", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        # A disk that fills up takes a part of it, and says nothing: half a line would be glued to the next one.
        if file.write(entry) != len(entry):
            os.ftruncate(file.fileno(), end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def line(decision: DecisionRecord) -> str | None:
    """One line for people about what was done; None where nothing was."""
    what = done(decision)
    rate = "unknown" if decision.learning_rate is None else f"{decision.learning_rate:.3g}"
    return what and f"{what}; learning rate now {rate} ({decision.reason})"


def show(metrics: MutableMapping[str, list[float]], decision: DecisionRecord) -> None:
    """Put a decision's numbers among the metrics that the trainer logs next, in the place of an earlier decision's.

    The trainer logs the mean of what it has gathered since its last log: of one number, that number. The step of a leap
    that was taken back stays until it is logged.
    """
    for field, name in _LOGGED.items():
        value = getattr(decision, field)
        if value is not None:
            metrics[name] = [float(value)]
        elif field != "rolled_back":
            metrics.pop(name, None)


def logged(decision: DecisionRecord) -> dict[str, float]:
    """A decision's numbers by their names in the trainer's log."""
    values = {name: getattr(decision, field) for field, name in _LOGGED.items()}
    return {name: float(value) for name, value in values.items() if value is not None}
