"""With every engine installed: what trains nothing imports none of them (TRL alone imports vLLM, for some 10 s)."""

from __future__ import annotations

from pathlib import Path

import pytest

from isolation import loaded
from lora_runs import write_run

ROOT = Path(__file__).parents[3]
ENGINES = {"deepspeed", "ray", "trl", "verl", "vllm"}


@pytest.mark.parametrize("example", ["tiny", "verl"])
def test_printing_a_config_imports_no_engine(example: str) -> None:
    config = str(ROOT / "examples" / f"{example}.yaml")
    found = loaded("from nextrl.cli import main; main()", "run", config, "--print-config")
    assert "pydantic" in found
    assert not found & ENGINES


@pytest.mark.parametrize("verb", ["inspect", "advise"])
def test_reading_a_run_imports_no_engine(verb: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=(10, 20, 30, 40, 50, 60))
    assert not loaded("from nextrl.cli import main; main()", verb, str(tmp_path / "run")) & ENGINES
