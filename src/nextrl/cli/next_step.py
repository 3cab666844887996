"""What to type after an advice: one exact command, and what it does.

What a run does not say itself (its task, its config) is looked for where `nextrl run` and `nextrl demo` leave it; what
is not there stays a word in capitals, with its explanation.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from nextrl.cli.console import rate_text
from nextrl.errors import InputError
from nextrl.files import read_json
from nextrl.judge.advice import Advice
from nextrl.runs import config_file
from nextrl.runs.layout import CONFIG, RESULT
from nextrl.tasks import bases
from nextrl.trajectory.trajectory import Trajectory

_OF_SCRIPTS = (
    "training script, set the learning rate",
    "nextrl.attach(trainer, every=10)",
    "docs/callback.md",
)
_OF_VERL = (
    "verl command, set actor_rollout_ref.actor.optim.lr",
    "trainer.v1.trainer_mode=nextrl +trainer.v1.nextrl.every=10",
    "docs/verl.md",
)
"""Where the rate is set, what finds it instead, and the page that says so."""

_ON = "train on, then ask again"
_TELL_APART = (
    "read some completions and what the reward function gives them. To go on learning, train on prompts of which some "
    "completions earn more than others, then ask again."
)
_AGAIN = "begin again, from your base model or from a checkpoint before the reward fell"

_TASK = "TASK"
_WHAT_TASK = " (TASK: what the run was trained on, a name or a file, docs/tasks.md)"


@dataclass(frozen=True)
class NextStep:
    """The command, empty where the next step is no command of nextrl's, and what follows from it."""

    command: str
    what: str

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {"command": self.command, "what": self.what}


def next_step(advice: Advice, run: Path, traj: Trajectory, at: int | None = None) -> NextStep:
    """The step that an advice asks for.

    Args:
        advice: of the run.
        run: as the user named it.
        traj: its checkpoints, as far as the advice saw them.
        at: the checkpoint that the advice was asked of, None for the last one.
    """
    if advice.withheld and advice.features.same is not None:
        return NextStep("", _TELL_APART)
    if advice.withheld and advice.features.updates is not None:
        return NextStep(
            _line("analyze", run, "--beta1", "B"),
            "shows how straight the run is beyond its momentum (B: what each update keeps of the one before, 0 without "
            "momentum).",
        )
    if advice.withheld:
        there = () if at is None else ("--at", str(at))
        return NextStep(
            _line("advise", run, *there, "--updates-per-step", "N"),
            "judges the rate (N: optimizer updates in one step, 1 where every step is an optimizer's; in verl "
            "train_batch_size / ppo_mini_batch_size times ppo_epochs).",
        )
    if advice.advice == "leap":
        return _test_a_leap(advice, run, traj, at)
    if advice.factor is not None:
        return _other_rate(advice, advice.factor, run, traj.layout)
    if advice.advice == "average":
        horizon = str(averaged(traj))
        there = () if at is None else ("--at", str(at))
        command = _line(
            "leap", run, "--method", "lawa", "--horizon", horizon, *there, "--out", _beside(run, "average")
        )
        return NextStep(
            command, f"writes the mean of the checkpoints of the last {horizon} steps as an adapter."
        )
    return NextStep(
        _line("advise", run),
        f"asks again; there is nothing to do before some {10 * traj.spacing} more steps.",
    )


def averaged(traj: Trajectory) -> int:
    """Over how many of its last steps a run is averaged where that is the advice."""
    return 5 * traj.spacing


def _test_a_leap(advice: Advice, run: Path, traj: Trajectory, at: int | None) -> NextStep:
    task = task_of(run)
    there = () if at is None else ("--at", str(at))
    base = () if _names_its_base(traj) else ("--base", "BASE")
    command = _line(
        "leap", run, "--alpha", "auto", "--task", task or _TASK, *base, *there, "--out", _beside(run, "leap")
    )
    unknown = "" if task else _WHAT_TASK
    unknown += " (BASE: the folder of the model that was trained)" if base else ""
    rate = _rate(advice, advice.factor or 1.0)
    return NextStep(
        command,
        f"tries {advice.recommended}, {advice.horizon} steps ahead, at five step lengths on at most 64 held-out "
        f"prompts of the task{unknown}, and writes an adapter only if one of them beats staying put; then train on "
        f"with the learning rate raised{rate}.",
    )


def _other_rate(advice: Advice, factor: float, run: Path, layout: str) -> NextStep:
    rate, config = advice.features.rate, _config(run)
    if rate is not None and config is not None:
        new = rate_text(rate * factor)
        out = _beside(config.parent, f"lr-{new}")
        command = _line("run", config, f"train.learning_rate={new}", f"output_dir={out}")
        return NextStep(
            command,
            f"trains the same run anew at {new} instead of {rate_text(rate)}{_highest(advice)}, in a folder of its own."
            f"{_seen(advice, rate)}",
        )
    place, words, page = _OF_VERL if layout == "verl" else _OF_SCRIPTS
    there = f"in your {place}{_rate(advice, factor)} and {_AGAIN if advice.starts_over else _ON}"
    if advice.features.auto:  # it has been asked
        return NextStep("", f"{there}.")
    return NextStep("", f"{there}; or let `{words}` find it while the run trains ({page}).")


def _seen(advice: Advice, rate: float) -> str:
    """Where the best rate lay, in rates instead of factors: one number alone would be taken for the answer."""
    seen = advice.evidence
    if seen is None:
        return ""
    low, high = rate_text(rate * seen.lowest), rate_text(rate * seen.highest)
    return f" That is the cautious end: for {seen.cases} tiny runs that looked like this, {low} to {high} was best."


def _rate(advice: Advice, factor: float) -> str:
    """ " to 3e-5 or more (it was ...)", from the rate that was judged where the run's trainer left it."""
    rate = advice.features.rate
    bound = "more" if factor > 1 else "less"
    if rate is None:
        return f" to {factor:.2g} times what it was, or {bound}"
    return f" to {rate_text(rate * factor)} or {bound} (it was {rate_text(rate)}{_highest(advice)})"


def _highest(advice: Advice) -> str:
    """Which of the run's rates is meant, where there were several in the windows that were judged."""
    return " at its highest" if advice.features.steady is False else ""


def _line(verb: str, *words: str | Path) -> str:
    return shlex.join(["nextrl", verb, *map(str, words)])


def _beside(run: Path, what: str) -> str:
    """A folder beside the run, named after it."""
    return f"{str(run).rstrip('/')}-{what}"


def _names_its_base(traj: Trajectory) -> bool:
    named = traj.adapter_config.get("base_model_name_or_path")
    return isinstance(named, str) and (named in bases.names() or Path(named).is_dir())


def _config(run: Path) -> Path | None:
    """The config of `nextrl run` that the checkpoints come from."""
    return next((p / CONFIG for p in (run, run.parent) if (p / CONFIG).is_file()), None)


def task_of(run: Path) -> str | None:
    """The task that the run's config, or the result of its demo, names."""
    if (config := _config(run)) is not None:
        try:
            return config_file.load(config, ()).task
        except InputError:
            return None
    for place in (run, run.parent, run.parent.parent):
        try:
            value = read_json(place / RESULT)
        except InputError:
            continue
        task = value.get("task") if isinstance(value, dict) else None
        return task if isinstance(task, str) and task else None
    return None
