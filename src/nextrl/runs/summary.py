"""Records of arms and the checkpoints they left -> a `Result`: of a comparison, or of a single run."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextrl.engines import named_optimizers
from nextrl.errors import TooShort
from nextrl.judge.advice import Advice
from nextrl.judge.advise import advise
from nextrl.judge.regime import DEFAULT_WINDOW, above_rounding, mean_excess, recent_windows, regime_of
from nextrl.runs import comparison, verdict
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.result import FORMAT, ArmSeries, Recommendation, Result, TrajectoryFigures
from nextrl.trajectory import trainer_log
from nextrl.trajectory.persistence import adam_persistence, excess, measured_persistence
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION

WINDOWS = (DEFAULT_WINDOW, 20, 50)
"""Lengths in steps of the windows whose persistence a page draws."""

# Leaps, and a rate that follows them, change a run as it goes: only its last windows speak about where it stands.
_LAST_WINDOWS = 5
_SERIES = (
    "steps", "accuracy", "se", "greedy", "completions", "seconds", "learning_rate", "rate_steps", "rates"
)  # fmt: skip


def summarise(
    arms: Mapping[str, ArmRecord],
    settings: Sequence[ArmSettings],
    plain_run: Path,
    *,
    leap_at: int,
    sweep: Sequence[str],
) -> Result:
    """The result of a comparison.

    Args:
        arms: records by name, "plain" and "auto" among them.
        settings: of the arms, the plain one first.
        plain_run: folder with the plain arm's checkpoints.
        leap_at: step of the single leaps.
        sweep: names of the arms that tune the learning rate.
    """
    first, plain = settings[0], arms["plain"]
    target, per_step = plain.accuracy[-1], first.train.completions_per_step
    traj = Trajectory.load(plain_run)
    recent = _excess_at_the_end(traj)
    saved = {
        name: comparison.saved(arm, plain, target, per_step) for name, arm in arms.items() if name != "plain"
    }
    tuned = comparison.best_rate(arms, sweep, target)
    if tuned:
        saved["tuned"] = saved[tuned]
        saved["tuned-with-sweep"] = comparison.sweep_charged(arms, sweep, target, per_step)
    advice = _advice(traj)
    result = Result(
        version=FORMAT,
        seed=first.train.seed,
        task=first.task,
        config={
            "plain": first.train.model_dump(),
            "lora": first.lora and first.lora.model_dump(),
            "leap_at": leap_at,
            "test_prompts": first.eval_prompts,
        },
        provenance=provenance(),
        target=target,
        arms={name: series(arm) for name, arm in arms.items()},
        saved=saved,
        tuned=tuned,
        after={name: comparison.after(arm, leap_at) for name, arm in arms.items()},
        costs={name: comparison.costs(arm, per_step) for name, arm in arms.items()},
        leaps={name: listed for name, arm in arms.items() if (listed := comparison.leaps(arm))},
        reach={name: comparison.reach(arm, target) for name, arm in arms.items()},
        trajectory=trajectory_figures(traj),
        regime=None if recent is None else regime_of(recent),
        **_recommended(advice),
    )
    result.verdict = verdict.of_comparison(arms, result, recent, advice)
    return result


def summarise_run(
    record: ArmRecord, arm: ArmSettings, config: Mapping[str, Any], traj: Trajectory | None
) -> Result:
    """The result of one run: the keys of a comparison with one arm, "run".

    Only a comparison with the same run without leaps can tell what it saved. So there is no target and no saving here,
    and the verdict says so.

    Args:
        record: what the run did.
        arm: what it was told.
        config: the whole config, kept in the result.
        traj: its checkpoints; None where all weights were trained, which `nextrl analyze --base` looks at.
    """
    k, taken = arm.train.save_every, comparison.leaps(record)
    figures, recent, advice = TrajectoryFigures(), None, None
    if traj is not None:
        jumps = _jumps(record, traj.steps)
        figures = trajectory_figures(traj, [w for w in WINDOWS if w % k == 0] or [k], jumps)
        recent = _recent_excess(figures, traj, bool(jumps))
        # A rate that followed `auto`, and a leap in the path, are in the last windows too: advice is for constant ones.
        constant = arm.kind == "plain" and not named_optimizers.get(arm.train.optimizer).rate_free
        advice = _advice(traj) if constant else None
    return Result(
        version=FORMAT,
        seed=arm.train.seed,
        task=arm.task,
        config={**config, "test_prompts": record.test_prompts or arm.eval_prompts},
        provenance=provenance(),
        target=None,
        arms={"run": series(record)},
        saved={"run": comparison.NOTHING_SAVED},
        tuned=None,
        costs={"run": comparison.costs(record, arm.train.completions_per_step)},
        leaps={"run": taken} if taken else {},
        trajectory=figures,
        resumed=record.resumed,
        regime=None if recent is None else regime_of(recent),
        **_recommended(advice),
        verdict=verdict.of_run(record, arm, taken, recent, advice),
    )


def _advice(traj: Trajectory) -> Advice | None:
    """What `nextrl advise` says of the run; None where it was too short for it.

    Raises:
        InputError: what the run left cannot be read.
    """
    try:
        return advise(traj)
    except TooShort:
        return None


def _recommended(advice: Advice | None) -> dict[str, Any]:
    """The fields of a result that hold an advice."""
    if advice is None:
        return {"advice": None, "recommendation": None}
    evidence = advice.evidence
    found = Recommendation(
        advice=advice.advice,
        method=advice.recommended,
        horizon=advice.horizon if advice.advice == "leap" else None,
        factor=advice.factor,
        factor_range=[] if evidence is None else [evidence.lowest, evidence.highest],
        confidence=advice.confidence,
        answer=advice.answer,
    )
    return {"advice": advice.advice, "recommendation": found}


def trajectory_figures(
    traj: Trajectory, windows: Sequence[int] = WINDOWS, jumps: Sequence[tuple[int, int]] = ()
) -> TrajectoryFigures:
    """What the checkpoints alone show: top singular values, persistence, its zero point and the excess over it.

    Where the optimizer's file does not say how much momentum there is, the last two are left out.

    Args:
        traj: the checkpoints.
        windows: lengths in steps.
        jumps: pairs of steps between which the run leapt; a persistence that would span one is left out.
    """
    beta1 = trainer_log.beta1_or_default(traj)
    # Without a zero point there is nothing that an excess would be over.
    zero = {w: adam_persistence(w, beta1) for w in windows} if trainer_log.knows_beta1(traj) else {}
    table = measured_persistence(traj, windows)
    kept = {
        w: {
            s: c for s, c in row.items() if c == c and not _spans(s - 2 * w, s, jumps)
        }  # c == c: NaN is left out
        for w, row in table.items()
    }
    return TrajectoryFigures(
        steps=list(traj.steps),
        sigma={
            m: [float(traj.delta(m, traj.start, s).top(1).sigma[0]) for s in traj.steps] for m in traj.modules
        },
        persistence={str(w): {str(s): c for s, c in row.items()} for w, row in kept.items()},
        excess={str(w): {str(s): excess(c, zero[w]) for s, c in kept[w].items()} for w in zero},
        zero={str(w): c for w, c in zero.items()},
    )


def _spans(start: int, end: int, jumps: Sequence[tuple[int, int]]) -> bool:
    return any(start <= low and high <= end for low, high in jumps)


def provenance() -> dict[str, str]:
    """What made a result."""
    return {"nextrl": VERSION, "python": platform.python_version(), "machine": platform.machine()}


def series(arm: ArmRecord) -> ArmSeries:
    """An arm as a result lists it: one entry per evaluation, and its rates."""
    return ArmSeries(kind=arm.kind, label=arm.label, **{key: getattr(arm, key) for key in _SERIES})


def _jumps(record: ArmRecord, steps: Sequence[int]) -> list[tuple[int, int]]:
    """Checkpoints between which the adapter was moved: a named method leaps after its step was saved, `auto` before."""
    jumps = []
    for decision in record.decisions:
        if decision.accepted or decision.undone:
            step, after_save = decision.step, decision.horizon is not None
            before = max((t for t in steps if t < step or (after_save and t == step)), default=0)
            jumps.append((before, min((t for t in steps if t > before), default=step)))
    return jumps


def _recent_excess(figures: TrajectoryFigures, traj: Trajectory, leapt: bool) -> float | None:
    """Mean excess persistence where the run stands, None where it was too short to show any.

    A run that did not leap is measured as `nextrl advise` does. After a leap the last windows may span it: then the
    run's own windows speak, which a leap never lies in.
    """
    if not leapt:
        return _excess_at_the_end(traj)
    seen = next((list(row.values()) for row in figures.excess.values() if row), [])
    known = [value for value in seen if value is not None][-_LAST_WINDOWS:]
    return sum(known) / len(known) if known else None


def _excess_at_the_end(traj: Trajectory) -> float | None:
    """Mean excess over the last windows, as `nextrl advise` measures it; None without windows or a zero point."""
    if not trainer_log.knows_beta1(traj):
        return None
    windows = recent_windows(traj, trainer_log.beta1_or_default(traj))
    try:
        return mean_excess(above_rounding(traj, windows)) if windows else None
    except TooShort:
        return None
