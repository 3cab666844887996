"""The palette: every two colours of a set stay apart, for readers who do not tell red from green too."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nextrl import palette

ROOT = Path(__file__).parents[1]
# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB (second-hand).
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
SETS = {
    "light": list(palette.LIGHT.values()),
    "dark": list(palette.DARK.values()),
    "series": palette.SERIES,
    "series, dark": palette.SERIES_DARK,
}


def linear(colour: str) -> NDArray[np.float64]:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE Lab of linear sRGB, white D65."""
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = np.cbrt(np.clip(matrix @ np.clip(rgb, 0, 1), 1e-4, None) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: Sequence[str], vision: str) -> float:
    seen = [lab(VISION[vision] @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("name", SETS)
def test_every_two_colours_of_a_set_stay_apart(name: str, vision: str) -> None:
    assert nearest(SETS[name], vision) > 20


def test_the_measure_sees_what_it_should() -> None:
    red_and_green = ("#c8553d", "#6f8f2f")
    assert nearest(red_and_green, "normal") > 50 > 2 * nearest(red_and_green, "deuteranopia")


def test_no_picture_has_colours_of_its_own() -> None:
    drawing = [ROOT / "docs/make_readme_picture.py", ROOT / "src/nextrl/judge/backtest.py"]
    for path in [*drawing, ROOT / "src/nextrl/judge/analysis_figures.py"]:
        hues = {
            code
            for code in re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text())
            if len({code[1:3], code[3:5], code[5:7]}) > 1  # greys are no hue
        }
        assert not hues, path
    css = (ROOT / "src/nextrl/runs/report/templates/report.css").read_text()
    assert "--c-auto:" not in css
