"""`accelerate launch` with two processes ends: by itself where a run does, and where one process fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from launching import launch, launched

EXAMPLE = Path(__file__).parents[3] / "examples" / "grpo_with_leaps.py"
MOST = 900.0  # seconds, some 40 of which a free machine takes; the rest is for one that is not


def test_a_user_s_script_ends_by_itself() -> None:
    said = launch(EXAMPLE, "--steps=12", timeout=MOST)
    assert "destroy_process_group" not in EXAMPLE.read_text()  # the script takes nothing down itself
    # One voice of the two, for each decision.
    lines = [line for line in said.splitlines() if line.startswith("nextrl, step ")]
    assert lines
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("failing", [0, 1])
def test_both_end_where_one_fails(failing: int) -> None:
    """Process 0 decides and the other follows: neither is to wait for the other for ever."""
    code, said = launched(Path(__file__).with_name("two_failing.py"), str(failing), timeout=MOST)
    assert code
    assert "this reward cannot be computed" in said
