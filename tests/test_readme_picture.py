"""README's picture: which accuracy it shows, and the base's greedy accuracy beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from nextrl.runs.result import parse_result
from synthetic_result import synthetic_result

SCRIPT = Path(__file__).parents[1] / "docs" / "make_readme_picture.py"


def drawn(value: dict[str, Any]) -> Axes:
    spec = importlib.util.spec_from_file_location("make_readme_picture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    figure, axes = plt.subplots()
    script.draw(parse_result(value), axes)
    script.dress(axes, parse_result(value))
    plt.close(figure)
    return axes


def test_it_says_which_accuracy_it_shows_and_what_the_base_can_do_without_sampling() -> None:
    value = synthetic_result()
    axes, greedy = drawn(value), value["arms"]["plain"]["greedy"][0]
    assert axes.get_ylabel() == "sampled held-out accuracy, ± 1 standard error"
    assert [text.get_text() for text in axes.texts] == [f"the base, greedy: {greedy:.3f}"]
    (line,) = [line for line in axes.lines if list(line.get_ydata()) == [greedy, greedy]]
    assert line.get_linewidth() == pytest.approx(0.8)


def test_without_the_base_s_greedy_accuracy_there_is_no_line_for_it() -> None:
    value = synthetic_result()
    for arm in value["arms"].values():
        arm["greedy"] = []
    assert [text.get_text() for text in drawn(value).texts] == []
