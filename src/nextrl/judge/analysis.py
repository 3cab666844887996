"""What a run's path looks like, as a whole and by module: dominance, directions, linearity, persistence, noise.

`analyze` computes an `Analysis` from a trajectory; `analysis_figures` draws it (also for the report page).
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.naming import module_kind
from nextrl.errors import InputError
from nextrl.nested import json_ready
from nextrl.trajectory import trainer_log
from nextrl.trajectory.linearity import COMPONENTS, linearity_ahead
from nextrl.trajectory.persistence import adam_persistence, excess
from nextrl.trajectory.precision import WARN_ABOVE, noise_share
from nextrl.trajectory.spectra import KINDS, Spectrum, map_modules, module_spectra
from nextrl.trajectory.statistics import (
    DriftNoise,
    Line,
    drift_and_noise,
    line,
    persistence_table,
    predictability,
)
from nextrl.trajectory.trajectory import FULL, Trajectory

RANKS = (1, 2, 4, 8)
_LAYER = re.compile(r"\.(?:layers|h|blocks|block|layer)\.(\d+)\.")


@dataclass
class ModuleAnalysis:
    """One adapted matrix.

    Attributes:
        sigma: kind -> step -> leading singular values, at most 8.
        share: kind -> step -> sigma_1^2 over the delta's energy, or over what was kept of it (`Analysis.kept`).
        cosines: kind -> step -> (cos of u1 and of v1 with the previous checkpoint's, and with the last's); NaN where
            either delta is zero.
        persistence: of the most recent pair of windows, window -> cosine.
        nuclear_share: kind -> step -> sigma_1 over the sum of all singular values, or of the ones that were kept.
        r2: straightness of the coefficient, of the checkpoints that the line was fitted to.
        ahead: R^2 of lines on checkpoints after the ones that they were fitted to, see `linearity_ahead`.
        norm: |W_T - W_0|.
    """

    name: str
    layer: int | None
    kind: str
    sigma: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    share: dict[str, dict[int, float]] = field(default_factory=dict)
    cosines: dict[str, dict[int, tuple[float, float, float, float]]] = field(default_factory=dict)
    persistence: dict[int, float] = field(default_factory=dict)
    nuclear_share: dict[str, dict[int, float]] = field(default_factory=dict)
    r2: float = math.nan
    ahead: dict[str, float] = field(default_factory=dict)
    norm: float = 0.0


@dataclass(kw_only=True)
class Analysis:
    """All of a run; dictionaries over steps hold only the steps where the number is defined.

    Attributes:
        energy_share: kind of delta -> k -> step -> share of the squared norm in the first k directions, all modules.
        persistence: window -> step -> cosine of the two windows that end there.
        excess: the same, as the excess over `zero`.
        noisy: module -> storage noise over the top singular value of its last local delta, where that is too much.
        beta1: Adam's first momentum coefficient, behind `zero`; None where the optimizer's file does not say it, and
            `zero` is empty then.
        zero: window -> the cosine that Adam's momentum alone gives; empty, as is `excess`, where nothing says how many
            optimizer updates a step holds.
        kept: of full weights the most singular values that each delta is reduced to, so that shares of the first ones
            are too large (`Trajectory.from_full_weights`); None where all of them are there, as of every adapter.
        updates: optimizer updates in each step; None where nothing says it.
    """

    steps: tuple[int, ...]
    horizon: int
    modules: list[ModuleAnalysis]
    energy_share: dict[str, dict[int, dict[int, float]]]
    line: Line
    persistence: dict[int, dict[int, float]]
    excess: dict[int, dict[int, float]]
    predictability: dict[int, float]
    drift: DriftNoise | None
    noisy: dict[str, float]
    beta1: float | None
    zero: dict[int, float]
    kept: int | None = None
    updates: int | None = 1

    @property
    def still(self) -> int:
        """Modules that are at the start at every checkpoint: they have no directions, and no part in means of them."""
        return sum(not any(s[0] for s in m.sigma["global"].values()) for m in self.modules)

    def mean_cosine(self, kind: str, which: int) -> dict[int, float]:
        """step -> mean over modules of one of four cosines: of u, v with the previous (0, 1), with the last (2, 3).

        Of the modules where it is defined; a step where it is so in none is left out.
        """
        found: dict[int, list[float]] = {}
        for module in self.modules:
            for step, values in module.cosines[kind].items():
                if not math.isnan(values[which]):
                    found.setdefault(step, []).append(values[which])
        return {step: sum(x) / len(x) for step, x in sorted(found.items())}

    def mean_nuclear_share(self, kind: str) -> dict[int, float]:
        """step -> mean over modules of sigma_1 over the sum of all singular values (the paper's E1, second-hand)."""
        found: dict[int, list[float]] = {}
        for module in self.modules:
            for step, share in module.nuclear_share[kind].items():
                if not math.isnan(share):
                    found.setdefault(step, []).append(share)
        return {step: sum(x) / len(x) for step, x in sorted(found.items())}

    def linearity(self) -> dict[str, dict[str, float]]:
        """Component -> {"median": R^2 ahead over modules, "below_0": share of modules}; empty for few checkpoints."""
        result: dict[str, dict[str, float]] = {}
        for name in COMPONENTS:
            found = [m.ahead[name] for m in self.modules if not math.isnan(m.ahead.get(name, math.nan))]
            if found:
                result[name] = {
                    "median": statistics.median(found),
                    "below_0": sum(r2 < 0 for r2 in found) / len(found),
                }
        return result

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `nextrl analyze --json`; numbers that are not defined are null."""
        result = {
            "steps": list(self.steps),
            "horizon": self.horizon,
            "energy_share": self.energy_share,
            "singular_values_kept": self.kept,
            "nuclear_share": {kind: self.mean_nuclear_share(kind) for kind in KINDS},
            "linear_r2": self.line.r2,
            "linear_ahead": self.linearity(),
            "cos_previous": {k: {"u": self.mean_cosine(k, 0), "v": self.mean_cosine(k, 1)} for k in KINDS},
            "cos_last": {k: {"u": self.mean_cosine(k, 2), "v": self.mean_cosine(k, 3)} for k in KINDS},
            "persistence": self.persistence,
            "excess": self.excess,
            "updates_per_step": self.updates,
            "predictability": self.predictability,
            "coefficient": self.line.coefficient,
            "first_direction_share": self.line.share,
            "drift": None if self.drift is None else self.drift._asdict(),
            "modules": [
                {
                    "name": m.name,
                    "norm": m.norm,
                    "linear_r2": m.r2,
                    "linear_ahead": m.ahead,
                    "persistence": m.persistence,
                    "energy_share": m.share,
                    "sigma": m.sigma,
                }
                for m in self.modules
            ],
            "storage_noise": self.noisy,
        }
        plain: dict[str, Any] = json_ready(result)
        return plain


def analyze(
    traj: Trajectory,
    *,
    horizon: int | None = None,
    windows: Sequence[int] | None = None,
    beta1: float | None = None,
    updates_per_step: int | None = None,
    workers: int | None = None,
) -> Analysis:
    """Everything of `Analysis` from the checkpoints of a run.

    Args:
        traj: at least two checkpoints; W_0 known.
        horizon: h of the target deltas, in steps; five spacings by default.
        windows: window lengths for persistence, in steps; 1, 2, 5, 10 spacings by default.
        beta1: Adam's first momentum coefficient, for the zero point of persistence; None: the run's own where its
            trainer left it, else `DEFAULT_BETA1`; unknown where an optimizer's file does not say it.
        updates_per_step: optimizer updates in each step, for that zero point; None: as `trainer_log.updates_per_step`
            finds it.
        workers: threads.

    Raises:
        InputError: fewer than two checkpoints.
    """
    if len(traj.steps) < 2:
        raise InputError(f"{traj.source}: one checkpoint is no trajectory; analyze needs at least two")
    h = 5 * traj.spacing if horizon is None else horizon
    lengths = list(windows) if windows else [n * traj.spacing for n in (1, 2, 5, 10)]
    energy = {kind: _Energy() for kind in KINDS}
    modules, total = [], torch.zeros(len(traj.steps), len(traj.steps), dtype=torch.float64, device="cpu")
    noisy: dict[str, float] = {}

    def work(name: str) -> tuple[dict[str, Spectrum], Tensor]:
        return module_spectra(traj, name, h), traj.gram(name)

    for name, (spectra, gram) in map_modules(traj, work, workers):
        total += gram
        noise = noise_share(traj, name, float(spectra["local"].sigma[-1, 0]))
        if noise > WARN_ABOVE:
            noisy[name] = noise
        modules.append(_module(name, spectra, gram, traj, lengths))
        for kind, spectrum in spectra.items():
            energy[kind].add(spectrum)
    table = {w: row for w, row in persistence_table(total, traj.steps, lengths, traj.start).items() if row}
    if beta1 is None and trainer_log.knows_beta1(traj):
        beta1 = trainer_log.beta1_or_default(traj)
    updates = trainer_log.updates_per_step(traj, updates_per_step)
    zero: dict[int, float] = {}
    if updates is not None and beta1 is not None:
        zero = {w: adam_persistence(w, beta1, updates=updates) for w in table}
    return Analysis(
        steps=traj.steps,
        horizon=h,
        modules=modules,
        energy_share={kind: energy[kind].shares() for kind in KINDS},
        line=line(total, traj.steps),
        persistence=table,
        excess={w: {t: excess(c, zero[w]) for t, c in table[w].items()} for w in zero},
        predictability=predictability(total, traj.steps, traj.start),
        drift=drift_and_noise(total, traj.steps, traj.start),
        noisy=noisy,
        beta1=beta1,
        zero=zero,
        kept=_kept(traj),
        updates=updates,
    )


def _kept(traj: Trajectory) -> int | None:
    """How many singular values the deltas of full weights were cut to; None where none were cut off."""
    if traj.layout != FULL:
        return None
    shapes = [traj.shape(module) for module in traj.modules]
    return max((rank for m, n, rank in shapes if rank < min(m, n)), default=None)


class _Energy:
    """Sums of squared singular values over modules, by step."""

    def __init__(self) -> None:
        self.leading: dict[int, dict[int, float]] = {k: {} for k in RANKS}
        self.all: dict[int, float] = {}

    def add(self, spectrum: Spectrum) -> None:
        squares = spectrum.sigma.square()
        for p, step in enumerate(spectrum.steps):
            self.all[step] = self.all.get(step, 0.0) + float(squares[p].sum())
            for k in RANKS:
                self.leading[k][step] = self.leading[k].get(step, 0.0) + float(squares[p, :k].sum())

    def shares(self) -> dict[int, dict[int, float]]:
        moved = [step for step, energy in self.all.items() if energy > 0]
        return {k: {s: row[s] / self.all[s] for s in moved} for k, row in self.leading.items()}


def _module(
    name: str, spectra: dict[str, Spectrum], gram: Tensor, traj: Trajectory, windows: Sequence[int]
) -> ModuleAnalysis:
    match = _LAYER.search(f".{name}.")
    result = ModuleAnalysis(name, int(match[1]) if match else None, module_kind(name))
    for kind, spectrum in spectra.items():
        share = spectrum.share().tolist()
        result.nuclear_share[kind] = dict(zip(spectrum.steps, spectrum.nuclear_share().tolist(), strict=True))
        leading = spectrum.sigma[:, : RANKS[-1]].tolist()
        result.sigma[kind] = dict(zip(spectrum.steps, leading, strict=True))
        result.share[kind] = dict(zip(spectrum.steps, share, strict=True))
        result.cosines[kind] = _cosines(spectrum)
    for window, row in persistence_table(gram, traj.steps, windows, traj.start).items():
        if row:
            result.persistence[window] = row[max(row)]
    result.ahead = linearity_ahead(spectra["global"])
    result.r2, result.norm = line(gram, traj.steps).r2, float(gram[-1, -1].clamp_min(0).sqrt())
    return result


def _cosines(spectrum: Spectrum) -> dict[int, tuple[float, float, float, float]]:
    """|cos| of u1 and v1 with the previous delta's and with the last's: the sign of one pair is arbitrary."""
    if not spectrum.steps:
        return {}
    rows: dict[int, tuple[float, float, float, float]] = {}
    # A zero delta has zero vectors: that is no direction, and no right angle to another one either.
    all_u, all_v = (torch.where(x.any(1, keepdim=True), x, math.nan) for x in (spectrum.u, spectrum.v))
    last_u, last_v = (all_u @ all_u[-1]).abs(), (all_v @ all_v[-1]).abs()
    for p, step in enumerate(spectrum.steps):
        u = float((all_u[p] @ all_u[p - 1]).abs()) if p else math.nan
        v = float((all_v[p] @ all_v[p - 1]).abs()) if p else math.nan
        rows[step] = (u, v, float(last_u[p]), float(last_v[p]))
    return rows
