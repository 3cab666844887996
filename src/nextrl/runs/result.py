"""Arms -> `result.json`: the figures, the trajectory's own evidence, and the verdict in plain sentences."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nextrl.runs import comparison
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.trajectory.persistence import adam_persistence, excess, measured_persistence
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION

_SERIES = ("steps", "accuracy", "se", "greedy", "completions", "seconds", "learning_rate")


def trajectory_figures(
    traj: Trajectory, windows: Sequence[int] = (10, 20, 50), jumps: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """What the checkpoints alone show: top singular value of each global delta, persistence, excess, zero point.

    Args:
        windows: lengths in steps.
        jumps: pairs of steps between which the run leapt; a persistence that would span one is left out.
    """
    sigma = {m: [float(traj.delta(m, 0, s).top(1).sigma[0]) for s in traj.steps] for m in traj.modules}
    persistence: dict[str, dict[str, float]] = {}
    over: dict[str, dict[str, float]] = {}
    zero = {str(w): adam_persistence(w) for w in windows}
    for window, measured in measured_persistence(traj, windows).items():
        values = {
            s: c
            for s, c in measured.items()
            if not any(s - 2 * window <= low and high <= s for low, high in jumps)
        }
        persistence[str(window)] = {str(s): c for s, c in values.items()}
        over[str(window)] = {str(s): excess(c, zero[str(window)]) for s, c in values.items()}
    return {
        "steps": list(traj.steps),
        "sigma": sigma,
        "persistence": persistence,
        "excess": over,
        "zero": zero,
    }


def _mean_excess(figures: Mapping[str, Any]) -> float:
    values = list(figures["excess"]["10"].values())
    return sum(values) / len(values) if values else 0.0


def regime(figures: Mapping[str, Any]) -> str:
    """ "signal" where the mean excess over windows of 10 steps is above .5, "noise" below .15, else "mixed"."""
    return regime_of(_mean_excess(figures))


def regime_of(mean: float) -> str:
    """The regime that a mean excess speaks for."""
    return "signal" if mean > 0.5 else "noise" if mean < 0.15 else "mixed"


def _percent(fraction: float | None) -> str:
    return "never" if fraction is None else f"{100 * fraction:.0f} %"


def _best_leap(arms: Mapping[str, ArmRecord]) -> ArmRecord | None:
    singles = [a for a in arms.values() if a.kind == "leap"]
    return max(singles, key=lambda a: a.accuracy[-1]) if singles else None


def verdict(arms: Mapping[str, ArmRecord], figures: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """A few sentences: what was saved, how it stands against tuned rates, whether a single leap paid, what to do."""
    sentences = [_against_plain(arms, result)]
    if result["tuned"]:
        sentences.append(_against_tuned(arms, result))
    single = _best_leap(arms)
    if single is not None:
        sentences.append(_about_leap(arms["plain"], single))
    mean = _mean_excess(figures)
    sentences.append(f"The plain run's excess persistence averages {mean:.2f}: {MEANING[result['regime']]}")
    return " ".join(sentences)


def _against_plain(arms: Mapping[str, ArmRecord], result: Mapping[str, Any]) -> str:
    plain, auto, target = arms["plain"], arms["auto"], result["target"]
    at = comparison.reach(auto, target)
    if at is None:
        return f"auto did not reach the plain run's final accuracy ({target:.3f}); it ended at {auto.accuracy[-1]:.3f}."
    return (
        f"The run as configured reaches {target:.3f} after {plain.steps[-1]} steps; auto, from the same cautious "
        f"learning rate, is there at step {at.steps}: {_percent(result['saved']['auto']['completions'])} of the "
        "completions saved, its search charged."
    )


def _against_tuned(arms: Mapping[str, ArmRecord], result: Mapping[str, Any]) -> str:
    tuned, saved = result["tuned"], result["saved"]
    gap = arms["auto"].accuracy[-1] - arms[tuned].accuracy[-1]
    return (
        f"Against the tuned rate ({tuned.removeprefix('lr-')}, found by a sweep), which saves "
        f"{_percent(saved['tuned']['completions'])} before the sweep is paid for and "
        f"{_percent(saved['tuned-with-sweep']['completions'])} after, auto ends {abs(gap):.3f} "
        f"{'ahead' if gap >= 0 else 'behind'}, with no sweep."
    )


def _about_leap(plain: ArmRecord, leap: ArmRecord) -> str:
    start = plain.steps.index(leap.steps[0])
    gain = leap.accuracy[0] - plain.accuracy[start]
    noise = 2 * (leap.se[0] ** 2 + plain.se[start] ** 2) ** 0.5
    outcome = "past the noise" if gain > noise else "within the noise: it did not pay"
    return (
        f"Of the single leaps at step {leap.steps[0]}, {leap.name} ends best ({leap.accuracy[-1]:.3f}); right after "
        f"it the accuracy changed by {gain:+.3f}, {outcome}."
    )


MEANING = {
    "signal": "its path is far straighter than Adam's memory explains, so the learning rate is too low: "
    "raise it, or run auto.",
    "mixed": "part of its direction lasts, so a test of a leap is worth its price, a blind leap is not.",
    "noise": "its path keeps no more direction than Adam's own memory, so go on, and do not leap.",
}


def provenance() -> dict[str, str]:
    """What made a result."""
    return {
        "nextrl": VERSION,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def series(arm: ArmRecord) -> dict[str, Any]:
    """An arm as `result.json` lists it: one entry an evaluation."""
    return {"kind": arm.kind, "label": arm.label, **{key: getattr(arm, key) for key in _SERIES}}


def summarise(
    arms: Mapping[str, ArmRecord],
    settings: Sequence[ArmSettings],
    plain_run: Path,
    *,
    leap_at: int,
    sweep: Sequence[str],
) -> dict[str, Any]:
    """Everything `result.json` holds (what the command line promises, and what the report draws)."""
    plain = arms["plain"]
    target, per_step = plain.accuracy[-1], settings[0].train.completions_per_step
    figures = trajectory_figures(Trajectory.load(plain_run))
    others = {name: arm for name, arm in arms.items() if name != "plain"}
    saved = {name: comparison.saved(arm, plain, target, per_step) for name, arm in others.items()}
    tuned = comparison.best_rate(arms, sweep, target)
    if tuned:
        saved["tuned"] = saved[tuned]
        saved["tuned-with-sweep"] = comparison.sweep_charged(arms, sweep, target, per_step)
    reached = {name: comparison.reach(arm, target) for name, arm in arms.items()}
    result: dict[str, Any] = {
        "version": 1,
        "seed": settings[0].train.seed,
        "task": settings[0].task,
        "config": {
            "plain": settings[0].train.model_dump(),
            "lora": settings[0].lora.model_dump(),
            "leap_at": leap_at,
            "test_prompts": settings[0].eval_prompts,
        },
        "provenance": provenance(),
        "target": target,
        "arms": {name: series(a) for name, a in arms.items()},
        "saved": saved,
        "tuned": tuned,
        "after": {name: comparison.after(a, leap_at) for name, a in arms.items()},
        "costs": {name: comparison.costs(a, per_step) for name, a in arms.items()},
        "leaps": {name: listed for name, a in arms.items() if (listed := comparison.leaps(a))},
        "reach": {name: asdict(at) if at else None for name, at in reached.items()},
        "trajectory": figures,
        "regime": regime(figures),
    }
    result["verdict"] = verdict(arms, figures, result)
    return result
