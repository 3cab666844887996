"""The backtest: each extrapolator is tried on the run's own past, where the answer is already on disk.

For an origin t in the past a method is fitted on the checkpoints up to t and predicts the weights at t + h. The
prediction is compared with what really happened, all modules taken as one vector. A method is recommended only if it
beats every way of *not* leaping:

- standing still;
- going back, to an average of the past or to the start: on a run that is all noise these predict better than its last
  point, which is a reason to average and not to leap;
- what Adam's momentum carries on by itself, c0 times the last window, or, where no known step is as far back as the
  prediction goes, the share of the nearest window that it carries (docs/design.md, persistence and its zero point).

Closeness in weights is not accuracy: `paired_search` asks for that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.atomic import replacing
from nextrl.checkpoints.naming import module_kind
from nextrl.errors import InputError, MissingExtra, TooShort, first_line, needs, shown
from nextrl.extrapolators import CombinationOfCheckpoints, Extrapolator, Prediction, names, resolve, tags_of
from nextrl.extrapolators.base import tags_by_name
from nextrl.files import usable_path
from nextrl.judge.backtest_scores import FIGURES, NONE, ForecastScore, HorizonScores, MethodScore, counted
from nextrl.judge.drawing import plain_settings
from nextrl.palette import SERIES
from nextrl.scalars import MAX_SEED, integer_from, several
from nextrl.trajectory import trainer_log
from nextrl.trajectory.combinations import check_grid, known_steps, unit
from nextrl.trajectory.given import Run, trajectory_of
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.persistence import adam_carry
from nextrl.trajectory.trajectory import Trajectory
from nextrl.trajectory.unsure_start import doubting

# What is recommended where nobody names methods: cheap, and none of them trains a network. Those that do are scored at
# the latest three origins alone, too few to set one above the others.
CANDIDATES = ("factors", "secant", "window", "linear", "ols", "relex-pinned", "dmd")
# In fewer dimensions random directions agree by chance: a random walk of 3 x 4 weights was recommended a leap in 13 of
# 40 runs (docs/backtest.md).
FEW_WEIGHTS = 100
_PICTURES = ("png", "svg", "pdf")
# Methods that train a network at every origin are scored at the latest three only, for the sake of time.
TRAINED_ORIGINS = 3


@dataclass(frozen=True, repr=False)
class Backtest:
    """The result: the scores at every horizon and what follows from them.

    Attributes:
        horizons: h -> scores.
        horizon: the recommended horizon; the longest tried where nothing is recommended.
        recommended: a method's name, or "none".
        reason: why, in one sentence with figures.
    """

    horizons: dict[int, HorizonScores]
    horizon: int
    recommended: str
    reason: str

    @property
    def methods(self) -> dict[str, MethodScore]:
        """Scores at `horizon`."""
        return self.horizons[self.horizon].methods

    @property
    def origins(self) -> tuple[int, ...]:
        """Origins at `horizon`."""
        return self.horizons[self.horizon].origins

    def as_dict(self) -> dict[str, Any]:
        """The object that `nextrl backtest --json` prints."""
        return {
            "horizon": self.horizon,
            "origins": list(self.origins),
            "methods": {n: s.as_dict() for n, s in self.methods.items()},
            "recommended": self.recommended,
            "reason": self.reason,
            "skipped": self.horizons[self.horizon].skipped,
            "horizons": {
                str(h): {n: s.as_dict() for n, s in scores.methods.items()}
                for h, scores in self.horizons.items()
            },
        }

    def __repr__(self) -> str:
        return f"Backtest({len(self.methods)} methods, {self.horizon} steps ahead; recommended: {self.recommended})"

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("method", *FIGURES))
        rows = []
        for name, score in sorted(self.methods.items(), key=lambda item: -item[1].mean("skill")):
            cells = "".join(f"<td>{score.shown(f, ' ± ')}</td>" for f in FIGURES)
            rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
        return (
            f"<table><caption>{self.horizon} steps ahead</caption><tr>{head}</tr>{''.join(rows)}</table>"
            f"<p>{escape(self.reason)}</p>"
        )

    @plain_settings("a plot of a backtest")
    def plot(self, path: str | Path) -> None:
        """Write a picture (png, svg, pdf by suffix): cosine and skill of each method, with the spread."""
        with needs("plots", "a plot of a backtest"):
            from matplotlib.figure import Figure

        path = usable_path(path)
        suffix = path.suffix.removeprefix(".") or "png"
        if suffix not in _PICTURES:
            raise InputError(f"{path}: the name of a picture must end in .{', .'.join(_PICTURES)}")
        order = sorted(self.methods, key=lambda n: self.methods[n].mean("skill"))
        figure = Figure(figsize=(8, 0.3 * len(order) + 1.5), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, name, low in zip(axes, ("cosine", "skill"), (-1.05, -2), strict=True):
            values = [max(low, self.methods[n].mean(name)) for n in order]
            spreads = [self.methods[n].spread(name) for n in order]
            seen = None if all(math.isnan(spread) for spread in spreads) else spreads
            axis.barh(order, values, xerr=seen, color=SERIES[0])
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_xlim(low, 1.05)
            axis.set_xlabel(f"{name}, horizon {self.horizon}")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150, format=suffix)


def backtest(
    traj: Run,
    horizon: int | Sequence[int] | None = None,
    methods: str | Sequence[str] | Sequence[Extrapolator] | None = None,
    *,
    max_origins: int = 8,
    seed: int = 0,
    updates_per_step: int | None = None,
) -> Backtest:
    """Score extrapolators on the run's own past.

    Args:
        traj: the run, or its folder.
        horizon: h, several (each a distance that two checkpoints have), or None for one, two and five checkpoint
            spacings as far as the run is long enough.
        methods: names, a comma-separated string, or methods, of one name only one; by default all that are not slow,
            and always `none`.
            Where they are named any of them may be recommended, by default those of `CANDIDATES`.
        max_origins: only this many of the latest origins are used, since what held early in a run need not hold now.
        seed: of methods that draw random numbers.
        updates_per_step: as `advise` takes it; where nothing says it either, momentum is taken to carry as far as with
            one, which is the most.

    Raises:
        TooShort: fewer than three checkpoints, or a run that does not move over a horizon.
        InputError: an argument is not of its kind, no run that can be read, too few checkpoints for a horizon that was
            named (says which would work), unknown method, a method asked for by name whose package is not installed.
        Exception: whatever a method that was named raises besides; one that was not is under `skipped` instead.
    """
    horizon = None if horizon is None else several(integer_from(1))("horizon", horizon)
    max_origins, seed = integer_from(1)("max_origins", max_origins), integer_from(0, MAX_SEED)("seed", seed)
    chosen, traj = _methods(methods), trajectory_of(traj)
    updates = trainer_log.updates_per_step(traj, updates_per_step) or 1
    horizons = _horizons(traj, horizon)
    named = methods is not None
    scores = {h: _at_horizon(traj, h, chosen, max_origins, seed, named, updates) for h in horizons}
    eligible = [m.name for m in chosen] if named else CANDIDATES
    best = max(
        ((h, name) for h, s in scores.items() for name in s.convincing if name in eligible),
        key=lambda pair: scores[pair[0]].expected_steps(pair[1]),
        default=None,
    )
    if best is None:
        h = max(scores)
        return Backtest(scores, h, NONE, _why_not(scores[h]))
    h, name = best
    score = scores[h].methods[name]
    reason = (
        f"{name} at a horizon of {h} leaves {score.mean('relative_error'):.0%} of the way to go over "
        f"{counted(len(score.outcomes))} (cosine {score.mean('cosine'):.2f}, skill {score.mean('skill'):.2f})"
    )
    weights = sum(m * n for m, n, _ in map(traj.shape, traj.modules))
    if weights < FEW_WEIGHTS:
        reason += f"; with {weights} weights in all, that may well be chance"
    return Backtest(scores, h, name, reason)


def origins_for(traj: Trajectory, horizon: int) -> list[tuple[int, int]]:
    """(t, t') for each origin t that has as long a past: t' is a checkpoint within half a spacing of t + horizon."""
    slack, known = traj.spacing / 2, known_steps(traj)
    pairs = []
    for t in traj.steps:
        later = [s for s in traj.steps if s > t and abs(s - t - horizon) <= slack]
        if later and t - known[0] >= horizon - slack:
            pairs.append((t, min(later, key=lambda s, t=t: abs(s - t - horizon))))  # type: ignore[misc]
    return pairs


def _methods(methods: str | Sequence[str] | Sequence[Extrapolator] | None) -> list[Extrapolator]:
    if methods is None:
        return resolve([name for name in names() if not tags_by_name(name).slow])
    if isinstance(methods, str):
        methods = methods.split(",")
        if not any(name.strip() for name in methods):
            raise InputError("the list of methods is empty: name some, as in secant,ols, or leave it out")
    if not isinstance(methods, Iterable) or isinstance(methods, bytes | type):
        raise InputError(f"methods must be names, or extrapolators, not {shown(methods)}")
    chosen: list[Extrapolator] = []
    for method in methods:
        if not isinstance(method, str) and (isinstance(method, type) or not hasattr(method, "fit")):
            raise InputError(f"each of methods must be a name, or an extrapolator, not {shown(method)}")
        chosen += resolve(method) if isinstance(method, str) else [method]
    chosen = _once(chosen)
    return chosen if any(m.name == NONE for m in chosen) else [*resolve(NONE), *chosen]


def _once(methods: Sequence[Extrapolator]) -> list[Extrapolator]:
    """Each method once.

    Raises:
        InputError: two of one name are not the same, so that the scores of the first would be lost.
    """
    by_name: dict[str, Extrapolator] = {}
    for method in methods:
        if by_name.setdefault(method.name, method) != method:
            raise InputError(
                f"two of the methods are called {method.name} ({shown(by_name[method.name])}, {shown(method)}), and "
                "scores are kept by name: backtest one after the other"
            )
    return list(by_name.values())


def _horizons(traj: Trajectory, horizon: Sequence[int] | None) -> list[int]:
    check_grid(traj)
    k, known = traj.spacing, known_steps(traj)
    longest = max((h for h in range(k, known[-1] - known[0] + 1, k) if origins_for(traj, h)), default=None)
    if longest is None:
        raise TooShort(
            f"a backtest needs at least 3 checkpoints (the start counts where it is known); this run has "
            f"{len(known)}, at steps {', '.join(map(str, known))}"
        )
    if horizon is None:
        return [h for h in (k, 2 * k, 5 * k) if h <= longest]
    for h in horizon:
        pairs = origins_for(traj, h)
        if pairs and h not in (spans := {later - t for t, later in pairs}):
            raise InputError(
                f"no backtest at a horizon of {h}: no two checkpoints lie {h} steps apart; give "
                f"{' or '.join(map(str, sorted(spans)))}, as some do"
            )
        if not pairs:
            raise InputError(
                f"no backtest at a horizon of {h}: it needs checkpoints {h} steps before and after an origin "
                f"(about {2 * h // k + 1} checkpoints {k} steps apart, this run has {len(known)}); "
                f"horizons up to {longest} would work"
            )
    return list(horizon)


def _at_horizon(
    traj: Trajectory,
    horizon: int,
    methods: Sequence[Extrapolator],
    max_origins: int,
    seed: int,
    named: bool,
    updates: int,
) -> HorizonScores:
    pairs = origins_for(traj, horizon)[-max_origins:]
    grams = {module: traj.gram(module) for module in traj.modules}
    still = {t: sum(_actual(traj, g, t, later) for g in grams.values()) for t, later in pairs}
    pairs = [(t, later) for t, later in pairs if still[t] > 0]
    if not pairs:
        raise TooShort(f"the adapter does not move over any {horizon} steps: there is nothing to predict")
    beta1 = trainer_log.beta1_or_default(traj)
    pooled = torch.stack(list(grams.values())).sum(0)
    skills = {t: _not_leaping(traj, pooled, t, later, beta1, updates) for t, later in pairs}
    control = max(next(iter(skills.values())), key=lambda c: sum(skills[t][c] for t, _ in pairs))
    scores, skipped = {}, {}
    for method in methods:
        tried = pairs[-TRAINED_ORIGINS:] if tags_of(method).trains else pairs
        outcomes, why_not = _outcomes(traj, grams, method, tried, seed, named)
        if outcomes:
            scores[method.name] = _score(outcomes, {t: skills[t][control] for t in outcomes}, horizon)
        else:
            skipped[method.name] = why_not
    spans = {t: later - t for t, later in pairs}
    return HorizonScores(horizon, tuple(spans), scores, skipped, control, spans)


def _outcomes(
    traj: Trajectory,
    grams: Mapping[str, Tensor],
    method: Extrapolator,
    pairs: Sequence[tuple[int, int]],
    seed: int,
    named: bool,
) -> tuple[dict[int, dict[str, ForecastScore]], str]:
    """Origin t -> module -> prediction against fact, where there is a finite one; and why not at the latest other one.

    Raises:
        MissingExtra: of a method that was asked for by name.
        Exception: whatever else such a method raises that is no refusal; any other one then has no outcome at all.
    """
    outcomes: dict[int, dict[str, ForecastScore]] = {}
    why_not, unsure = "", doubting(traj)  # as a leap is made
    for t, later in pairs:
        try:
            prediction = method.fit(unsure.upto(t), later - t, seed=seed)
            found = {m: _compare(traj, grams[m], m, prediction, t, later) for m in traj.modules}
        except InputError as error:
            if named and isinstance(error, MissingExtra):
                raise
            why_not = str(error)
            continue
        except Exception as error:
            # A fault of a method that nobody asked for, a plugin's perhaps, must not cost the scores of all the others.
            if named:
                raise
            return {}, f"{type(error).__name__}: {first_line(error)}"
        if all(math.isfinite(outcome.predicted) for outcome in found.values()):
            outcomes[t] = found
        else:
            why_not = f"predicts a NaN or an Inf from step {t}"
    return outcomes, why_not


def _score(
    outcomes: Mapping[int, Mapping[str, ForecastScore]], control: Mapping[int, float], horizon: int
) -> MethodScore:
    zero = ForecastScore(0.0, 0.0, 0.0)
    overall = {t: sum(by_module.values(), zero) for t, by_module in outcomes.items()}
    by_type: dict[str, ForecastScore] = {}
    for by_module in outcomes.values():
        for module, outcome in by_module.items():
            kind = module_kind(module)
            by_type[kind] = by_type.get(kind, zero) + outcome
    gains = [overall[t].skill - control[t] for t in overall]
    # Origins closer than h share part of their future: count only as many as fit side by side.
    independent = min(len(gains), (max(overall) - min(overall)) / horizon + 1)
    error = statistics.stdev(gains) / math.sqrt(independent) if independent >= 2 else math.nan
    return MethodScore(overall, by_type, statistics.fmean(gains), error)


def _compare(
    traj: Trajectory, gram: Tensor, module: str, prediction: Prediction, t: int, later: int
) -> ForecastScore:
    """Prediction against fact for one module; combinations never leave the Gram matrix."""
    actual = _actual(traj, gram, t, later)
    c = _coefficients(traj, prediction, module)
    if c is not None:
        return ForecastScore(float(c @ gram @ _move(traj, t, later)), float(c @ gram @ c), actual)
    predicted: LowRank = prediction.delta(module)
    inner = float(predicted.inner(traj.delta(module, t, later)))
    return ForecastScore(inner, float(predicted.norm()) ** 2, actual)


def _coefficients(traj: Trajectory, prediction: Prediction, module: str) -> Tensor | None:
    """(T,) over the checkpoints of the whole run; None of what is no combination of these from the same W_0.

    A method's own trajectory may be a view of any of them (the last five), or hold others (their means).
    """
    if not isinstance(prediction, CombinationOfCheckpoints):
        return None
    own = prediction.traj
    places = {id(checkpoint): place for place, checkpoint in enumerate(traj.checkpoints)}
    same_start = (own.start, own.start in own.steps) == (traj.start, traj.start in traj.steps)
    if not same_start or any(id(checkpoint) not in places for checkpoint in own.checkpoints):
        return None
    c = torch.zeros(len(traj.steps), dtype=torch.float64, device="cpu")
    c[[places[id(checkpoint)] for checkpoint in own.checkpoints]] = prediction.coefficients(module)
    return c


def _move(traj: Trajectory, t: int, later: int) -> Tensor:
    """(T,) coefficients of `W_later - W_t`."""
    c = torch.zeros(len(traj.steps), dtype=torch.float64, device="cpu")
    c[traj.steps.index(later)], c[traj.steps.index(t)] = 1.0, -1.0
    return c


def _actual(traj: Trajectory, gram: Tensor, t: int, later: int) -> float:
    move = _move(traj, t, later)
    return max(0.0, float(move @ gram @ move))


def _not_leaping(
    traj: Trajectory, gram: Tensor, t: int, later: int, beta1: float, updates: int = 1
) -> dict[str, float]:
    """Skill of each way of not leaping at one origin; `gram` (T, T) of all modules together."""
    now, move, begin = unit(traj, t), _move(traj, t, later), 2 * t - later
    past = [s for s in known_steps(traj) if s <= t]
    # The window that momentum carries on: as long as the way ahead, or as near to that as the known steps allow.
    before = min(past[:-1], key=lambda s: (abs(s - begin), s), default=None)
    controls = {
        "average": _mean(traj, [s for s in past if s >= begin]) - now,
        "mean": _mean(traj, past) - now,
        "start": -now,
        "momentum": torch.zeros_like(now),
    }
    if before is not None:
        controls["momentum"] = adam_carry(later - t, beta1, t - before, updates) * (now - unit(traj, before))
    actual = float(move @ gram @ move)
    return {"stay": 0.0} | {
        n: float(2 * c @ gram @ move - c @ gram @ c) / actual for n, c in controls.items()
    }


def _mean(traj: Trajectory, steps: Sequence[int]) -> Tensor:
    """(T,) coefficients of the mean of `W_s - W_0` over known steps, W_0 among them or not."""
    return torch.stack([unit(traj, s) for s in steps]).mean(0)


def _why_not(scores: HorizonScores) -> str:
    rivals = {n: s for n, s in scores.methods.items() if n != NONE}
    if not rivals:
        return f"no method could be fitted at a horizon of {scores.horizon}"
    name = max(rivals, key=lambda n: rivals[n].mean("skill"))
    best = rivals[name]
    return (
        f"nothing beats not leaping (control: {scores.control}) over {counted(len(scores.origins))} at a "
        f"horizon of {scores.horizon}; the best is {name}, skill {best.shown('skill', ' +- ')}"
    )
