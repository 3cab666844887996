"""Draw README's one picture from a demo's result: accuracy against completions, with error bars.

    python docs/make_readme_picture.py demo-out/result.json docs/demo.png

Four arms: the run as configured, the tuned rate, the best learning-rate-free optimizer, auto; a thin line is the base's
greedy accuracy, so that a reader sees how much of a gain in sampled accuracy may be sharpening. Every number in the
picture is the result's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from nextrl.palette import AXIS, GRID, INK, LIGHT, SOFT
from nextrl.runs.report.arms import Arm, base_greedy, read_arms
from nextrl.runs.result import Result, Saved, SearchCosts, read_result

# Dash and width tell the arms apart without any colour.
STYLE = {
    "plain": ("-", 2.2),
    "tuned": ("--", 2.0),
    "free": (":", 2.4),
    "auto": ("-", 3.0),
}


def choose(result: Result) -> list[Arm]:
    """One arm a role, auto last so that it is drawn on top; of the learning-rate-free ones the first at the target."""
    arms = [arm for arm in read_arms(result) if arm.role in STYLE and arm.last() is not None]

    def merit(arm: Arm) -> tuple[float, float]:
        saved = result.saved.get(arm.name, Saved()).completions
        return (-9.0 if saved is None else saved, arm.last() or 0.0)

    found = []
    for role in STYLE:
        members = [arm for arm in arms if arm.role == role]
        if members:
            found.append(max(members, key=merit))
    return found


def label(arm: Arm, result: Result) -> str:
    """The legend's line: the arm, and what it had spent when it reached the target."""
    at = (result.reach or {}).get(arm.name)
    spent = None if at is None else at.completions
    end = "target not reached" if spent is None else f"{spent:,.0f} to the target".replace(",", "\u202f")
    names = {
        "tuned": f"{arm.label.removeprefix('plain, ')}, tuned by a sweep",
        "auto": "auto, which searches nothing" if not _searched(arm, result) else "auto, its search charged",
    }
    return f"{names.get(arm.role, arm.label)}: {end}"


def _searched(arm: Arm, result: Result) -> bool:
    return bool(result.costs.get(arm.name, SearchCosts()).search_completions)


def draw(result: Result, axes: Axes) -> None:
    """The curves, the target, and where each arm reached it."""
    arms = choose(result)
    target = result.target
    lowest = []
    for arm in arms:
        colour, (dash, width) = LIGHT[arm.role], STYLE[arm.role]
        kept = [
            (x, y, e or 0.0)
            for x, y, e in zip(arm.completions, arm.accuracy, arm.se, strict=True)
            if x is not None and y is not None
        ]
        if not kept:
            continue
        x, y, e = (list(series) for series in zip(*kept, strict=True))
        axes.errorbar(
            x, y, yerr=e, color=colour, ls=dash, lw=width, elinewidth=1.1, label=label(arm, result), zorder=3
        )
        lowest += [value - error for value, error in zip(y, e, strict=True)]
        at = (result.reach or {}).get(arm.name)
        spent = None if at is None else at.completions
        if spent is not None and spent in x:
            there = y[x.index(spent)]
            axes.plot([spent, spent], [0, there], color=colour, lw=1.2, ls=(0, (1, 2)), zorder=2)
            axes.plot(spent, there, "o", ms=8, mfc="white", mec=colour, mew=2, zorder=5)
    if target is not None:
        axes.axhline(target, color=SOFT, lw=1, ls=(0, (5, 4)), zorder=1)
    draw_base(axes, base_greedy(read_arms(result)))
    if lowest:
        axes.set_ylim(bottom=max(0.0, min(lowest) - 0.02))


def draw_base(axes: Axes, greedy: float | None) -> None:
    """What the base answers without sampling: a gain below it may be that the model grew surer of what it knew."""
    if greedy is None:
        return
    axes.axhline(greedy, color=SOFT, lw=0.8, ls=":", zorder=1)
    place = {"xy": (0.97, greedy), "xycoords": axes.get_yaxis_transform(), "xytext": (-4, 3)}
    axes.annotate(
        f"the base, greedy: {greedy:.3f}",
        **place,
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=SOFT,
        fontsize=9,
    )


def given(result: Result) -> str:
    """Why the other curves are shorter, where they are."""
    ends = {arm.role: arm.steps[-1] for arm in choose(result) if arm.steps}
    first, auto = ends.get("plain", 0.0), ends.get("auto", 0.0)
    if not 0 < auto < first:
        return ""
    return f"\nthe run as configured is trained for {first:.0f} steps, the others for {auto:.0f}, by plan"


def dress(axes: Axes, result: Result) -> None:
    """Axes that stay behind the data, and a legend below it, where it covers nothing."""
    axes.set_xlabel("completions generated, training and search together", color=SOFT)
    axes.set_ylabel("sampled held-out accuracy, ± 1 standard error", color=SOFT)
    axes.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:g}k" if v else "0")
    axes.grid(axis="y", color=GRID, lw=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(AXIS)
    axes.tick_params(colors=SOFT, length=0)
    axes.margins(x=0.015)
    axes.set_title(
        f"task {result.task}, seed {result.seed}; dashed: the target, where the first run ends{given(result)}",
        loc="left",
        color=SOFT,
        fontsize=10,
    )
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
        frameon=False,
        labelcolor=INK,
        handlelength=3,
    )


def main() -> None:
    """Read the result, write the PNG."""
    parser = argparse.ArgumentParser(description="Draw README's picture from a result.json.")
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent / "demo.png")
    options = parser.parse_args()
    result = read_result(options.result)
    plt.rcParams.update({"font.size": 11, "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(figsize=(9, 5.2), facecolor="white")
    draw(result, axes)
    dress(axes, result)
    # No software or date in the file, so that the same result gives the same bytes.
    figure.savefig(options.out, dpi=160, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    main()
