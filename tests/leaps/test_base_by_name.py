"""`--base tiny` is the model that `nextrl eval tiny` loads, wherever a folder is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import lora_runs
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.leaps.merged_model import find_base
from nextrl.tasks.bases import folder, tiny
from nextrl.trajectory.trajectory import Trajectory

MAIN, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with two revisions of a model, main and step1000, half a unit apart."""
    repository = tmp_path / "hub" / "models--org--pythia"
    for commit, shift in ((MAIN, 0.0), (OTHER, 0.5)):
        model = lora_runs.model()
        for parameter in model.parameters():
            parameter.data += shift
        model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MAIN)
    (repository / "refs" / "step1000").write_text(OTHER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def run_of(root: Path, revision: object) -> Path:
    """A run whose adapters name this revision of the model in the cache as their base."""
    lora_runs.write_run(root, lora_runs.lora())
    for config in root.glob("*/adapter_config.json"):
        named = {"base_model_name_or_path": "org/pythia", "revision": revision}
        config.write_text(json.dumps({**json.loads(config.read_text()), **named}))
    return root


@pytest.mark.parametrize(("revision", "commit"), [("step1000", OTHER), (OTHER, OTHER), (None, MAIN)])
def test_a_leap_is_merged_into_the_revision_that_the_adapter_names(
    tmp_path: Path, cache: Path, revision: str | None, commit: str
) -> None:
    traj = Trajectory.load(run_of(tmp_path / "run", revision))
    leap(traj, "none", horizon=10).save_merged(tmp_path / "out", "org/pythia")
    key, moved = "model.layers.0.self_attn.q_proj", load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(cache / "snapshots" / commit / "model.safetensors")
    delta = traj.weight(40, key).dense().float()
    assert (moved[f"{key}.weight"] - base[f"{key}.weight"] - delta).abs().max() < 1e-6
    assert json.loads((tmp_path / "out" / "nextrl.json").read_text())["base_revision"] == commit


def test_a_revision_that_is_not_there_or_none_is_named(tmp_path: Path, cache: Path) -> None:
    for revision, why in (
        ("step9", "org/pythia, revision 'step9' .* download it first"),
        (7, "revision is 7; set it"),
    ):
        made = leap(Trajectory.load(run_of(tmp_path / f"run{revision}", revision)), "none", horizon=10)
        with pytest.raises(InputError, match=why):
            made.save_merged(tmp_path / "out", "org/pythia")


def test_a_shipped_model_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_base("tiny") == tiny.shipped("chain")
    assert find_base("tiny:chain-wrong-rule") == tiny.shipped("chain-wrong-rule")
    assert find_base(tmp_path) == tmp_path
    assert folder(str(tmp_path)) is None


def test_a_task_without_a_base_is_named() -> None:
    with pytest.raises(InputError, match="no tiny base is shipped for task 'short-sums'"):
        find_base("tiny:short-sums")
