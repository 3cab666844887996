"""What is imported when: the top package and the overview load nothing heavy, reading a run no trainer."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import nextrl
from isolation import loaded, python
from lora_runs import write_run
from nextrl.version import VERSION

ROOT = Path(__file__).parents[1]
NUMERIC = {"torch", "numpy", "scipy", "safetensors", "pydantic", "yaml", "jinja2"}
OPTIONAL = {
    "accelerate",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "mechanic_pytorch",
    "pandas",
    "peft",
    "prodigyplus",
    "sklearn",
    "transformers",
    "trl",
}


def test_import_nextrl_loads_nothing_heavy() -> None:
    assert not loaded("import nextrl") & (NUMERIC | OPTIONAL | {"typer", "rich"})


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_overview_loads_nothing_heavy(option: str) -> None:
    found = loaded("from nextrl.cli import main; main()", option)
    assert "typer" in found
    assert not found & (NUMERIC | OPTIONAL)


def test_inspect_loads_no_trainer(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=(10, 20))
    found = loaded("from nextrl.cli import main; main()", "inspect", str(tmp_path / "run"))
    assert "torch" in found
    assert not found & OPTIONAL


LIGHT = (
    "nextrl.engines.settings",
    "nextrl.engines.algorithms",
    "nextrl.engines.named_optimizers",
    "nextrl.engines.verl.config",
    "nextrl.extrapolators",
    "nextrl.judge.analysis_figures",
    "nextrl.judge.backtest",
    "nextrl.leaps.leap",
    "nextrl.runs.comparison",
    "nextrl.runs.config",
    "nextrl.runs.config_file",
    "nextrl.runs.report",
    "nextrl.tasks",
    "nextrl.tasks.bases",
    "nextrl.tasks.evaluate",
    *(f"nextrl.cli.{path.stem}" for path in sorted((ROOT / "src/nextrl/cli").glob("[a-z]*.py"))),
)


def test_what_is_not_a_trainer_imports_without_one() -> None:
    code = f"""
import importlib, sys
for module in {LIGHT!r}:
    importlib.import_module(module)
    found = {OPTIONAL!r} & set(sys.modules)
    assert not found, (module, found)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_settings_are_checked_and_a_config_is_read_without_a_trainer() -> None:
    code = "from nextrl.runs.config import RunConfig; RunConfig(algorithm='dapo').derived()"
    assert not loaded(code) & OPTIONAL


def test_dir_lists_what_is_public_and_each_name_is_there() -> None:
    assert {"InputError", "Leap", "LeapCallback", "Trajectory", "advise", "backtest", "leap"} <= set(
        nextrl.__all__
    )
    assert {name for name in dir(nextrl) if not name.startswith("__")} == set(nextrl.__all__) - {
        "__version__"
    }
    assert "__version__" in dir(nextrl)
    for name in nextrl.__all__:
        assert getattr(nextrl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nextrl.nothing  # noqa: B018


def test_type_checkers_are_told_the_same_names_and_homes() -> None:
    tree = ast.parse((ROOT / "src/nextrl/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        a.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    assert told == nextrl._HOMES


def test_nothing_inside_imports_the_top_package() -> None:
    for path in (ROOT / "src/nextrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "nextrl" not in names, f"{path}:{node.lineno}"


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    assert nextrl.__version__ == VERSION
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    # Until it is released, the section is "Unreleased" and says which version it will be.
    heading = r"^## \[(?:Unreleased\]\n\nThe first release, )?([\d.]+)[,\]]"
    changes = re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation
    assert changes
    assert citation[1] == changes[1] == VERSION
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert VERSION not in [word.strip('"') for word in project.split()]
    pattern = re.search(r"^pattern = '(.+)'$", project, re.MULTILINE)
    assert pattern
    found = re.search(pattern[1], (ROOT / "src/nextrl/version.py").read_text())
    assert found
    assert found["version"] == VERSION
