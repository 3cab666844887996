"""What `nextrl analyze` prints: the conclusion, each figure of the whole run in a sentence, and two tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nextrl.errors import TooShort
from nextrl.judge.analysis import Analysis
from nextrl.judge.regime import MEANING, above_rounding, mean_excess, no_windows, recent_windows, regime_of
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.linearity import AHEAD, FIT
from nextrl.trajectory.trainer_log import BETA1_UNKNOWN, UPDATES_UNKNOWN
from nextrl.trajectory.trajectory import Trajectory

_COMPONENTS = {"u": "u1", "v": "v1", "sigma": "sigma_1", "rank1": "the rank-1 part as a whole"}


def tables(result: Analysis, steps: Sequence[int]) -> list[Group]:
    """One row for each of these checkpoints: energy shares, then directions; two, so that each fits 80 columns."""
    shares: dict[str, Mapping[int, float]] = {
        f"{kind}\nrank {k}": result.energy_share[kind][k]
        for kind in ("global", "local", "target")
        for k in (1, 4)
    }
    directions: dict[str, Mapping[int, float]] = {
        "u1\nprev.": result.mean_cosine("global", 0),
        "v1\nprev.": result.mean_cosine("global", 1),
        **{f"pers.\n{window}": row for window, row in result.persistence.items()},
        "pre-\ndict.": result.predictability,
    }
    return [
        _grid("Share of energy in the leading directions of each delta", shares, steps),
        _grid("Directions: cosines with the checkpoint, or window, before", directions, steps),
    ]


def _grid(title: str, columns: dict[str, Mapping[int, float]], steps: Sequence[int]) -> Group:
    """A table under its title, which a `Table`'s own would wrap at the table's width."""
    grid = Table(box=None, pad_edge=False)
    for name in ("step", *columns):
        grid.add_column(name, justify="right")
    for step in steps:
        grid.add_row(str(step), *[_cell(row.get(step)) for row in columns.values()])
    return Group(Text(title), grid)


def sentences(result: Analysis) -> list[str]:
    """The scalars, each in a sentence."""
    lines = [
        *_within(result),
        _ahead(result),
        *_dominance(result),
    ]
    if result.drift is not None:
        d = result.drift
        lines.append(f"Of a window of h steps, drift is {d.mu2:.3g} h² and noise {d.s2:.3g} h: {d.in_words}.")
    for window, row in result.persistence.items():
        moved = [step for step, cosine in row.items() if not math.isnan(cosine)]
        if moved:
            last = max(moved)
            above = result.excess.get(window, {}).get(last)
            known = "" if above is None else f", excess over Adam's memory {above:.2f}"
            lines.append(f"Windows of {window} steps at {last}: persistence {row[last]:.2f}{known}.")
    if result.still:
        lines.append(
            f"{result.still} of {len(result.modules)} modules never move. They have no directions, and means over "
            "modules leave them out."
        )
    if result.noisy:
        worst = max(result.noisy, key=lambda name: result.noisy[name])
        share = result.noisy[worst]
        # Infinite where all that a window moved was below the rounding, so that nothing of it is stored.
        reached = f"{share:.0%}" if math.isfinite(share) else "all"
        lines.append(
            f"Warning: storage rounding reaches {reached} of sigma_1 in {worst} and is "
            f"above 10% in {len(result.noisy)} modules; save checkpoints in float32, "
            "or compare checkpoints further apart."
        )
    return lines


def _within(result: Analysis) -> list[str]:
    """How straight the path is, judged by itself; nothing of one that never moves."""
    if math.isnan(result.line.r2):
        return []
    return [
        f"Within the sample, a line through all {len(result.steps)} checkpoints explains R² = {result.line.r2:.3f} of "
        f"their own coefficient along the first direction, which holds {result.line.share:.0%} of the path's energy. "
        "That says nothing of the checkpoints to come.",
    ]


def _ahead(result: Analysis) -> str:
    """Linearity judged on later checkpoints, beside the R² above, whose line saw all of them; or why there is none."""
    found = result.linearity()
    if not found:
        return f"Out of sample there is no R²: {_why_not_ahead(result)}."
    parts = [f"{words} {_r2(found[name])}" for name, words in _COMPONENTS.items() if name in found]
    return (
        f"Out of sample, lines through {FIT} checkpoints judged on the {AHEAD} after them, medians over modules: R² of "
        f"{', '.join(parts)}. Below 0 is worse than knowing the later checkpoints' mean."
    )


def _why_not_ahead(result: Analysis) -> str:
    moved = max(len(module.sigma["global"]) for module in result.modules)  # W_0's own checkpoint has no delta
    if moved < FIT + AHEAD:
        return (
            f"lines through {FIT} checkpoints are judged on the {AHEAD} after them, which takes {FIT + AHEAD} "
            f"checkpoints after the start, and there are {moved}"
        )
    return f"nothing changes over the last {AHEAD} checkpoints"


def _r2(found: Mapping[str, float]) -> str:
    """The median, and how many modules are below 0 where some are; very negative ones need no digits."""
    median, below = found["median"], found["below_0"]
    number = f"{median:.2f}" if median > -10 else f"{median:.0f}"
    return f"{number} ({below:.0%} of modules below 0)" if below else number


def _dominance(result: Analysis) -> list[str]:
    """Two shares of the first direction that are easily taken for each other."""
    nuclear, energy = result.mean_nuclear_share("global"), result.energy_share["global"][1]
    both = nuclear.keys() & energy.keys()
    if not both:
        return []
    last = max(both)
    return [
        f"At step {last} the first direction has {energy[last]:.0%} of the energy (sigma_1² over the sum of squares, "
        f"all modules together) and {nuclear[last]:.0%} of the sum of singular values (E1 = sigma_1 over their sum, "
        "NExt's measure, mean over modules).",
        *_cut_off(result),
    ]


def _cut_off(result: Analysis) -> list[str]:
    """What a reader of E1 has to know where only the first singular values are there."""
    if result.kept is None:
        return []
    return [
        f"Both shares are of the {result.kept} largest singular values of each delta, all that is kept of full "
        "weights, and too large by what lies beyond them (--rank keeps more). An adapter's leave nothing out."
    ]


def conclusion(traj: Trajectory, used_beta1: float | None, updates: int | None = 1) -> list[str]:
    """The regime at the run's end, measured as `nextrl advise` does, or why there is none; nothing of a short run.

    Args:
        traj: the run.
        used_beta1: of its optimizer, None where that does not say it.
        updates: optimizer updates in each step, None where nothing says it.
    """
    if updates is None:
        return [f"No regime: {UPDATES_UNKNOWN}."]
    if used_beta1 is None:
        return [f"No regime: {BETA1_UNKNOWN}; --beta1 says it."]
    windows = recent_windows(traj, used_beta1, updates)
    if not windows:
        return [f"No regime: {no_windows(traj)}."] if len(known_steps(traj)) > 2 else []
    try:
        mean = mean_excess(above_rounding(traj, windows))
    except TooShort as hidden:
        return [f"No regime: {hidden}."]
    regime = regime_of(mean)
    return [
        f"{regime.capitalize()}: {MEANING[regime]} (mean excess {mean:.2f} at the end). `nextrl advise` says what to "
        "do about it."
    ]


def spread_out(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _cell(x: float | None) -> str:
    return "" if x is None or math.isnan(x) else f"{x:.2f}"
