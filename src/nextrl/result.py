"""Arms -> `result.json`: the figures, the trajectory's own evidence, and the verdict in plain sentences."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nextrl
from nextrl import comparison
from nextrl.loop import ArmRecord, ArmSettings
from nextrl.persistence import adam_persistence, excess
from nextrl.trajectory import Trajectory

_SERIES = ("steps", "accuracy", "se", "greedy", "completions", "seconds", "learning_rate")


def trajectory_figures(traj: Trajectory, windows: Sequence[int] = (10, 20, 50)) -> dict[str, Any]:
    """What the checkpoints alone show: top singular value of each global delta, persistence, excess, zero point."""
    sigma = {m: [float(traj.delta(m, 0, s).top(1).sigma[0]) for s in traj.steps] for m in traj.modules}
    persistence: dict[str, dict[str, float]] = {}
    over: dict[str, dict[str, float]] = {}
    zero = {str(w): adam_persistence(w) for w in windows}
    for window in windows:
        steps = [s for s in traj.steps if {s - window, s - 2 * window} <= {0, *traj.steps}]
        values = {s: traj.persistence(window, at=s) for s in steps}
        persistence[str(window)] = {str(s): c for s, c in values.items()}
        over[str(window)] = {str(s): excess(c, zero[str(window)]) for s, c in values.items()}
    return {"steps": list(traj.steps), "sigma": sigma, "persistence": persistence, "excess": over, "zero": zero}


def _mean_excess(figures: Mapping[str, Any]) -> float:
    values = list(figures["excess"]["10"].values())
    return sum(values) / len(values) if values else 0.0


def regime(figures: Mapping[str, Any]) -> str:
    """"signal" where the mean excess over windows of 10 steps is above .5, "noise" below .15, else "mixed"."""
    mean = _mean_excess(figures)
    return "signal" if mean > 0.5 else "noise" if mean < 0.15 else "mixed"


def _percent(fraction: float | None) -> str:
    return "never" if fraction is None else f"{100 * fraction:.0f} %"


def _best_leap(arms: Mapping[str, ArmRecord]) -> ArmRecord | None:
    singles = [a for a in arms.values() if a.kind == "leap"]
    return max(singles, key=lambda a: a.accuracy[-1]) if singles else None


def verdict(arms: Mapping[str, ArmRecord], figures: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Four to six sentences: what was saved, how it stands against tuned and free rates, what to do."""
    plain, auto, target = arms["plain"], arms["auto"], result["target"]
    saved = result["saved"]["auto"]["completions"]
    sentences = []
    if saved is None:
        sentences.append(
            f"auto did not reach the plain run's final accuracy ({target:.3f}); it ended at {auto.accuracy[-1]:.3f}."
        )
    else:
        at = comparison.reach(auto, target)
        assert at is not None
        sentences.append(
            f"The run as configured reaches {target:.3f} after {plain.steps[-1]} steps; auto, from the same cautious "
            f"learning rate, is there at step {at.steps}, its search charged: {_percent(saved)} of the completions saved."
        )
    tuned = result["tuned"]
    if tuned:
        gap = auto.accuracy[-1] - arms[tuned].accuracy[-1]
        sentences.append(
            f"Against the tuned rate ({tuned.removeprefix('lr-')}, found by a sweep), which saves "
            f"{_percent(result['saved']['tuned']['completions'])} before the sweep is paid for and "
            f"{_percent(result['saved']['tuned-with-sweep']['completions'])} after, auto ends "
            f"{abs(gap):.3f} {'ahead' if gap >= 0 else 'behind'}, with no sweep."
        )
    leap = _best_leap(arms)
    if leap is not None:
        start = plain.accuracy[plain.steps.index(leap.steps[0])]
        gain, margin = leap.accuracy[0] - start, 2 * (leap.se[0] ** 2 * 2) ** 0.5
        sentences.append(
            f"Of the single leaps at step {leap.steps[0]}, {leap.name} ends best ({leap.accuracy[-1]:.3f}); right after "
            f"it the accuracy changed by {gain:+.3f}"
            + (", which is past the noise." if gain > margin else ", which did not pay beyond the noise.")
        )
    kind = result["regime"]
    sentences.append(f"The plain run's excess persistence averages {_mean_excess(figures):.2f}: {_MEANING[kind]}")
    return " ".join(sentences)


_MEANING = {
    "signal": "its path is far straighter than Adam's memory explains, so the learning rate is too low: raise it, or run auto.",
    "mixed": "part of its direction lasts, so a test of a leap is worth its price, a blind leap is not.",
    "noise": "its path keeps no more direction than Adam's own memory, so go on, and do not leap.",
}


def summarise(
    arms: Mapping[str, ArmRecord],
    settings: Sequence[ArmSettings],
    plain_run: Path,
    *,
    leap_at: int,
    sweep: Sequence[str],
) -> dict[str, Any]:
    """Everything `result.json` holds (keys as in DESIGN section 4, and what the report draws)."""
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
        "provenance": {"nextrl": nextrl.__version__, "python": platform.python_version(), "machine": platform.machine()},
        "target": target,
        "arms": {
            name: {"kind": a.kind, "label": a.label, **{key: getattr(a, key) for key in _SERIES}}
            for name, a in arms.items()
        },
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
