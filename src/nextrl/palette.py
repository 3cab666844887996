"""The colours of every picture: the report page, the picture in README, the plots of `analyze` and `backtest`.

Each set was searched for by computer so that every two of its colours stay apart to normal eyes and under simulated
deuteranopia and protanopia (matrices of Machado, Oliveira & Fernandes 2009, second-hand): a test asks for a distance of
20 in CIE Lab. No set relies on red against green, and what matters most has a dash or a marker of its own as well.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "plain": "#1c2126",
    "auto": "#e05a0a",
    "tuned": "#14408c",
    "free": "#c868d5",
    "control": "#7e858d",
    "leap": "#015f30",
    "other": "#a78e66",
}
"""Role of an arm -> its colour on white: as configured, auto, the tuned rate, rate-free optimizers, other controls,
leaps by a named method, the rest."""

DARK: Mapping[str, str] = {
    "plain": "#f2f0ec",
    "auto": "#ea6d09",
    "tuned": "#529be2",
    "free": "#a024f7",
    "control": "#8a96a2",
    "leap": "#0ff787",
    "other": "#887652",
}
"""The same on a dark page."""

SERIES = ("#0f4bdf", "#803b0a", "#175542", "#813d8e", "#c08105", "#1e8ef1", "#859194")
"""For lines that have no role: windows, kinds of modules, methods."""

SERIES_DARK = ("#368cf7", "#e3633d", "#4fe68d", "#875e91", "#e0bf1d", "#85bdea", "#9c918e")

INK, SOFT, GRID, AXIS = "#1c2126", "#59626c", "#e6e8ea", "#c4c9ce"
"""Text, text that stands back, lines behind the data, and axes, on white."""


def css(dark: bool) -> str:
    """The colours as CSS variables: `--c-auto` for a role, `--c-m0` for a series."""
    roles, series = (DARK, SERIES_DARK) if dark else (LIGHT, SERIES)
    named = {**roles, **{f"m{i}": colour for i, colour in enumerate(series)}}
    return " ".join(f"--c-{name}: {colour};" for name, colour in named.items())
