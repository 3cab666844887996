"""What a GPU would refuse: tensors of two devices. Real runs on what pretends to be one, beside the same on the CPU.

They found six methods dead on a GPU, `next` among them: their checkpoints lay there, and their networks on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch cannot pretend",
)

TESTS = Path(__file__).parents[1]
TOOLS = TESTS.parent / "tools"
CASES = (
    "fitted", "auto", "auto, windows", "auto, taken back", "auto, NaN", "auto, RLOO", "auto, beta", "auto, resumed",
    "auto, all weights", "auto, all weights, taken back",
    "next", "next, resumed", "secant, searched", "effopd", "auto, SFT", "secant, SFT", "arms",
    "asked", "delivered",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Name of a case -> what came of it on the CPU and on the accelerator, which a process can have only once."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TOOLS), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "pretended_cases.py", tmp_path_factory.mktemp("cases")],
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: both for name, *both in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_it_does_on_an_accelerator_what_it_does_on_the_cpu(found: dict[str, list[Any]], case: str) -> None:
    on_cpu, on_accelerator = found[case]
    for outcome in (on_cpu, on_accelerator):
        assert not isinstance(outcome, str), outcome
    assert on_accelerator == near(on_cpu)


def test_the_cases_come_to_what_they_are_for(found: dict[str, list[Any]]) -> None:
    """Two sides that both did nothing would be the same."""
    for case in ("auto, taken back", "auto, NaN"):
        assert [back for _, _, back, _ in found[case][0]["done"] if back] == ["step"]
    whole = found["auto, all weights, taken back"][0]["done"]
    assert {back for _, _, back, _ in whole if back} == {"step"}
    for case in ("next", "next, resumed", "secant, SFT"):
        assert any(alpha for _, alpha, _, _ in found[case][0]["done"])
    for case in ("secant, searched", "effopd"):
        assert any(completions for _, _, _, completions in found[case][0]["done"])
    assert found["auto"][0]["rates"][0] > 1e-3
    assert found["delivered"][0][1:] == [True] * 4
    assert (
        min(length for name, lengths in found["fitted"][0].items() for length in lengths if name != "none")
        > 0.1
    )


def test_two_devices_are_refused_there(found: dict[str, list[Any]]) -> None:
    on_cpu, on_accelerator = found["two devices"]
    assert on_cpu == 4.0
    assert "expected all tensors to be on the same device" in on_accelerator
    assert set(found) == {*CASES, "two devices"}


def near(outcome: Any) -> Any:
    """The same but for rounding."""
    if isinstance(outcome, dict):
        return {key: near(value) for key, value in outcome.items()}
    if isinstance(outcome, list):
        return [near(value) for value in outcome]
    return pytest.approx(outcome, rel=0.02) if isinstance(outcome, float) else outcome
