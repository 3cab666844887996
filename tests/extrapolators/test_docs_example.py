"""The example of docs/extrapolators.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import synthetic_runs as synthetic
from nextrl.errors import InputError
from nextrl.extrapolators import base, names
from nextrl.leaps.leap import leap
from nextrl.registry import Registry
from nextrl.testing import check_extrapolator

PAGE = Path(__file__).parents[2] / "docs" / "extrapolators.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the page's class for one test only."""
    monkeypatch.setattr(base, "METHODS", Registry("method", {n: base.METHODS.get(n) for n in base.METHODS}))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), {"__name__": "docs_example"})


@pytest.mark.usefixtures("example")
def test_the_printed_method_works() -> None:
    assert "damped-secant" in names()
    traj = synthetic.run(synthetic.line)
    made = leap(traj, "damped-secant", horizon=20, damping=1.0)
    module = traj.modules[0]
    assert float((made.delta(module) - traj.delta(module, 140, 160)).norm()) < 1e-9
    with pytest.raises(InputError, match="damping must be"):
        leap(traj, "damped-secant", horizon=20, damping=2.0)


@pytest.mark.usefixtures("example")
def test_the_printed_method_keeps_the_promises_of_a_method() -> None:
    check_extrapolator("damped-secant")


def test_the_page_lists_every_method() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name in names() if f"`{name}`" not in text]
    assert not missing, f"add a row for {', '.join(missing)} to docs/extrapolators.md"
