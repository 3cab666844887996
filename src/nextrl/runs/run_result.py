"""`result.json` of a single run: the keys of a comparison with one arm, "run", and null where a plain arm would speak.

What a run saved can only be said beside the same run without leaps, so `target` and `saved` are null here and the
verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nextrl.runs import comparison
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.result import provenance, regime_of, series, trajectory_figures
from nextrl.trajectory.trajectory import Trajectory

# `auto` changes the rate as it goes: only its last windows speak about where it stands.
_LAST_WINDOWS = 5
_MEANING = {
    "signal": "the path is far straighter than Adam's memory explains; the learning rate is still low.",
    "mixed": "part of the direction lasts.",
    "noise": "the path keeps no more direction than Adam's own memory, which is what a rate that is high enough shows.",
}


def summarise_run(
    record: ArmRecord, arm: ArmSettings, config: Mapping[str, Any], traj: Trajectory
) -> dict[str, Any]:
    """Everything `result.json` of one run holds.

    Args:
        record: what the run did.
        arm: what it was told.
        config: the whole config, kept in the result.
        traj: its checkpoints.
    """
    per_step, k = arm.train.completions_per_step, arm.train.save_every
    windows = [w for w in (10, 20, 50) if w % k == 0] or [k]
    figures = trajectory_figures(traj, windows, _jumps(record, traj.steps))
    taken = comparison.leaps(record)
    mean = _excess(record, figures)
    result: dict[str, Any] = {
        "version": 1,
        "seed": arm.train.seed,
        "task": arm.task,
        "config": {**config, "test_prompts": arm.eval_prompts},
        "provenance": provenance(),
        "target": None,
        "arms": {"run": series(record)},
        "saved": {"run": {"steps": None, "completions": None, "seconds": None}},
        "tuned": None,
        "costs": {"run": comparison.costs(record, per_step)},
        "leaps": {"run": taken} if taken else {},
        "trajectory": figures,
        "resumed": record.resumed,
        "regime": None if mean is None else regime_of(mean),
    }
    result["verdict"] = " ".join(_sentences(record, arm, taken, mean))
    return result


def _jumps(record: ArmRecord, steps: Sequence[int]) -> list[tuple[int, int]]:
    """Checkpoints between which the run leapt: a named method leaps after its step was saved, `auto` before."""
    jumps = []
    for decision in record.decisions:
        if decision.accepted or decision.rolled_back is not None:
            step, after_save = decision.step, decision.horizon is not None
            before = max((t for t in steps if t < step or (after_save and t == step)), default=0)
            jumps.append((before, min((t for t in steps if t > before), default=step)))
    return jumps


def _excess(record: ArmRecord, figures: Mapping[str, Any]) -> float | None:
    """Mean excess persistence where the run stands, None where it was too short to show any."""
    seen = [d.excess for d in record.decisions if d.excess is not None][-_LAST_WINDOWS:]
    if not seen:
        seen = next((list(v.values()) for v in figures["excess"].values() if v), [])
    return sum(seen) / len(seen) if seen else None


def _sentences(
    record: ArmRecord, arm: ArmSettings, taken: Sequence[Mapping[str, Any]], mean: float | None
) -> list[str]:
    first, last = record.accuracy[0], record.accuracy[-1]
    sentences = [
        f"The run went from {first:.3f} to {last:.3f} ± {record.se[-1]:.3f} sampled accuracy in "
        f"{record.steps[-1]} steps ({record.completions[-1]} completions)."
    ]
    if arm.kind == "plain":
        sentences.append("No leap was asked for.")
    else:
        sentences += [_about_leaps(record, arm, taken)]
        if record.learning_rate[-1] != record.learning_rate[0]:
            sentences.append(
                f"Its learning rate went from {record.learning_rate[0]:.2g} to {record.learning_rate[-1]:.2g}."
            )
        sentences.append(
            "Whether that saved anything, only the same run with leap.method=none can say: there is no plain arm here."
        )
    if mean is not None:
        where = (
            "over its last windows" if any(d.excess is not None for d in record.decisions) else "over the run"
        )
        sentences.append(f"Its excess persistence averages {mean:.2f} {where}: {_MEANING[regime_of(mean)]}")
    return sentences


def _about_leaps(record: ArmRecord, arm: ArmSettings, taken: Sequence[Mapping[str, Any]]) -> str:
    accepted = sum(bool(leap["accepted"]) for leap in taken)
    share = record.search_completions / max(1, record.completions[-1])
    steps = ", ".join(str(leap["step"]) for leap in taken if leap["accepted"])
    looked = f"{len(taken)} time{'' if len(taken) == 1 else 's'}"
    name = "auto" if arm.auto else arm.leap.method if arm.leap else "it"
    if not taken:
        return f"{name} saw no reason to try a leap."
    cost = f"{share:.1%} of all completions" if record.search_completions else "no completions"
    outcome = f"took {accepted} of them (at step {steps})" if accepted else "took none"
    return f"{name} tried candidates for a leap {looked} and {outcome}; the search took {cost}."
