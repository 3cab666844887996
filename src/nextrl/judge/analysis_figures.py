"""The figures of an analysis: takes an `Analysis`, returns matplotlib figures. Writes nothing, needs no display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextrl.errors import needs
from nextrl.judge.analysis import Analysis, analyze
from nextrl.judge.drawing import plain_settings
from nextrl.judge.regime import MIXED, OSCILLATES
from nextrl.palette import SERIES
from nextrl.trajectory.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = dict(zip(("global", "local", "target"), SERIES, strict=False))
MARKERS = {"global": "o", "local": "s", "target": "^"}
SINGULAR_COLOURS = (SERIES[0], SERIES[5], *("#a9a9a9", "#b5b5b5", "#bdbdbd", "#c6c6c6", "#cfcfcf", "#dedede"))


def _axes(columns: int, height: float = 3.4) -> tuple[Figure, list[Any]]:
    with needs("plots", "a figure of an analysis"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, n + 1) for n in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _plot(axis: Any, row: Mapping[int, float], **style: Any) -> None:
    if row:
        drawn = {"marker": "o", "markersize": 3, "linewidth": 1.5, **style}
        axis.plot(list(row), list(row.values()), **drawn)


def _legend(axis: Any) -> None:
    """A legend where there is something to explain: a run that never moves draws nothing."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)


def dominance(a: Analysis) -> Figure:
    """Rank-1 and rank-4 energy share of the three deltas; singular values of the module that moved most."""
    figure, (left, middle, right) = _axes(3)
    for axis, k in ((left, 1), (middle, 4)):
        for kind, colour in COLOURS.items():
            _plot(axis, a.energy_share[kind][k], color=colour, marker=MARKERS[kind], label=kind)
        axis.set(title=f"Energy of rank {k}", xlabel="step", ylim=(0, 1.02))
        _legend(axis)
    left.set_ylabel("share of squared norm, all modules")
    most = max(a.modules, key=lambda m: m.norm)
    values = most.sigma["global"]
    for n, colour in enumerate(SINGULAR_COLOURS):
        row = {s: x[n] for s, x in values.items() if len(x) > n and x[n] > 0}
        _plot(right, row, color=colour, label=f"$\\sigma_{n + 1}$" if n in (0, 1, 7) else None)
    right.set(title=f"Spectrum over time\n{most.name}", xlabel="step", ylabel="singular value of $W_t-W_0$")
    right.title.set_fontsize(9)
    right.set_ylim(bottom=0)
    _legend(right)
    return figure


def directions(a: Analysis) -> Figure:
    """Whether the first left and right vectors turn: mean |cosine| with the previous and with the last checkpoint."""
    figure, axes = _axes(2)
    titles = ("with the previous checkpoint's", "with the last one's")
    for axis, first, title in zip(axes, (0, 2), titles, strict=True):
        for kind, colour in COLOURS.items():
            style = {"color": colour, "marker": MARKERS[kind]}
            _plot(axis, a.mean_cosine(kind, first), label=f"{kind}, u", **style)
            _plot(axis, a.mean_cosine(kind, first + 1), label=f"{kind}, v", linestyle=":", **style)
        axis.set(title=f"First direction {title}", xlabel="step", ylim=(0, 1.02))
    axes[0].set_ylabel("mean |cosine| over modules")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=6, loc="outside lower center")
    return figure


def persistence(a: Analysis) -> Figure:
    """Cosine of successive windows over the run, against what Adam's momentum alone would keep."""
    figure, (left, right) = _axes(2)
    for (window, row), colour in zip(a.persistence.items(), SERIES, strict=False):
        _plot(left, row, color=colour, label=f"{window} steps")
        if window in a.zero:
            left.axhline(a.zero[window], color=colour, linewidth=0.8, linestyle="--", alpha=0.7)
            _plot(right, a.excess[window], color=colour, label=f"{window} steps")
    dashed = "" if a.beta1 is None else f" (dashed: Adam's memory alone, $\\beta_1={a.beta1:g}$)"
    left.set(title=f"Persistence{dashed}", xlabel="step", ylabel="cosine")
    left.title.set_fontsize(10)
    left.set_ylim(-1.02, 1.02)
    right.set(title="Excess over Adam's memory", xlabel="step", ylabel="excess")
    # The band of the regime "noise", down to where the run oscillates.
    right.axhspan(OSCILLATES, MIXED, color="#999999", alpha=0.15, linewidth=0)
    right.axhline(0, color="#555555", linewidth=0.8)
    right.set_ylim(top=1.02)
    if a.persistence:
        left.legend(frameon=False, fontsize=8, title="window")
    return figure


def path(a: Analysis) -> Figure:
    """The coefficient along the first direction with its line, drift against noise, and predictability."""
    figure, (left, middle, right) = _axes(3)
    steps = np.asarray(a.steps, dtype=float)
    coefficient = np.asarray(a.line.coefficient)
    slope, start = np.polyfit(steps, coefficient, 1)
    left.plot(steps, coefficient, "o", color=COLOURS["global"], markersize=4)
    left.plot(steps, slope * steps + start, color="#555555", linewidth=1)
    left.set(
        title=f"First direction (in-sample R² of a line {a.line.r2:.3f})", xlabel="step", ylabel="coefficient"
    )
    left.title.set_fontsize(10)
    if a.drift is not None:
        h = np.asarray(a.drift.windows, dtype=float)
        middle.loglog(h, a.drift.squares, "o", color="#333333", markersize=4, label="$|W_{t+h}-W_t|^2$")
        for y, label, colour, dash in (
            (a.drift.mu2 * h**2, "drift $h^2\\mu^2$", COLOURS["global"], "-"),
            (a.drift.s2 * h, "noise $h s^2$", COLOURS["local"], "--"),
        ):
            if y.any():
                middle.loglog(h, y, dash, color=colour, linewidth=1.5, label=label)
        middle.set(title=a.drift.in_words, xlabel="window h (steps)", ylabel="mean squared movement")
        middle.title.set_fontsize(9)
        middle.legend(frameon=False, fontsize=8)
    _plot(right, a.predictability, color=COLOURS["global"])
    right.axhline(0, color="#555555", linewidth=0.8)
    right.set(title="cos($W_t-W_0$, $W_{2t}-W_t$)", xlabel="t", ylabel="cosine", ylim=(-1.02, 1.02))
    return figure


def module_maps(a: Analysis) -> Figure:
    """Heat maps layer x module type: movement, persistence of the shortest window, rank-1 share."""
    kinds = list(dict.fromkeys(m.kind for m in a.modules))
    layers = sorted({m.layer for m in a.modules if m.layer is not None}) or [0]
    height = 1.6 + 0.32 * max(len(layers), 4)
    figure, axes = _axes(3, min(height, 12.0))
    window = min(a.persistence, default=0)
    last = a.steps[-1]
    norms = {m.name: m.norm for m in a.modules}
    lasting = {m.name: m.persistence.get(window, np.nan) for m in a.modules}
    share = {m.name: m.share["global"].get(last, np.nan) for m in a.modules}
    grids: list[tuple[str, dict[str, float], str, tuple[float | None, float | None]]] = [
        ("$|W_T-W_0|$", norms, "viridis", (0, None)),
        (f"persistence, {window} steps", lasting, "PuOr", (-1, 1)),
        ("rank-1 share of $W_T-W_0$", share, "viridis", (0, 1)),
    ]
    for axis, (title, values, colours, (low, high)) in zip(axes, grids, strict=True):
        grid: NDArray[np.float64] = np.full((len(layers), len(kinds)), np.nan)
        for m in a.modules:
            grid[layers.index(m.layer) if m.layer is not None else 0, kinds.index(m.kind)] = values[m.name]
        axis.grid(False)
        image = axis.imshow(grid, aspect="auto", cmap=colours, vmin=low, vmax=high, origin="lower")
        axis.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", fontsize=8)
        stride = max(1, len(layers) // 12)
        axis.set_yticks(range(0, len(layers), stride), [str(n) for n in layers[::stride]], fontsize=8)
        axis.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axis, shrink=0.85)
    axes[0].set_ylabel("layer")
    return figure


def analysis_figures(source: Trajectory | Analysis) -> dict[str, Figure]:
    """The plots of an analysis, name -> figure: "dominance", "directions", "persistence", "path", "modules"."""
    result = analyze(source) if isinstance(source, Trajectory) else source
    with plain_settings("a figure"):
        return {
            "dominance": dominance(result),
            "directions": directions(result),
            "persistence": persistence(result),
            "path": path(result),
            "modules": module_maps(result),
        }
