"""Leaps from adapters whose modules have other names in the file than in the model that PEFT loads them into."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from lora_runs import SMALL, lora, peft_deltas
from nextrl.errors import InputError
from nextrl.leaps import adapter_file
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

OLD, NEW = "base_model.model.language_model.model.layers", "base_model.model.model.language_model.layers"


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 2}
    vision = {**small, "image_size": 8, "patch_size": 4}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


def written_before_the_names_changed(root: Path, base: PreTrainedModel, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    config = lora(exclude_modules=".*vision.*", **options)
    peft_model = get_peft_model(copy.deepcopy(base), config)
    for step in (10, 20, 30):
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.02
        folder = root / f"checkpoint-{step}"
        peft_model.save_pretrained(str(folder))
        weights = load_file(folder / "adapter_model.safetensors")
        old = {key.replace(NEW, OLD): tensor for key, tensor in weights.items()}
        save_file(old, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("options", "rank", "keys"),
    [
        ({"alpha_pattern": {"q_proj": 32}}, None, {"q_proj"}),
        ({"alpha_pattern": {"q_proj": 32}}, 12, {"q_proj"}),
        ({"rank_pattern": {"q_proj": 2}}, None, {"q_proj"}),
        ({"rank_pattern": {"q_proj": 2}}, 12, {"q_proj"}),  # now the alpha's, for the scaling is the same
        ({"alpha_pattern": {r".*layers\.0\.self_attn\..*": 32}}, 12, {r".*layers\.0\.self_attn\..*"}),
    ],
)
def test_patterns_hold_under_the_names_that_the_model_has_now(
    options: dict[str, Any], rank: int | None, keys: set[str], tmp_path: Path
) -> None:
    """q_proj had been loaded at a quarter of its size, for its key was the whole name in the file."""
    base = gemma()
    written_before_the_names_changed(tmp_path / "run", base, options)
    traj = Trajectory.load(tmp_path / "run")
    made = leap(traj, "secant", horizon=10)
    made.save_adapter(tmp_path / "leap", rank=12 if rank else None)
    config = json.loads((tmp_path / "leap" / "adapter_config.json").read_text())
    assert {*config["alpha_pattern"], *config["rank_pattern"]} == keys
    loaded = peft_deltas(PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "leap")))
    assert len(loaded) == len(traj.modules)
    for name, delta in loaded.items():
        module = name.replace("model.language_model.layers", "language_model.model.layers")
        a, b = made.factors(module)
        wanted = made.target(module).dense() if rank else traj.scaling(module) * b.double() @ a.double()
        torch.testing.assert_close(delta.double(), wanted, rtol=1e-4, atol=1e-6)


def test_where_the_runs_keys_no_longer_fit_the_ends_of_names_are_written() -> None:
    stems = [f"language_model.model.layers.{n}.{p}" for n in (0, 1) for p in ("q_proj", "v_proj")]
    q0, v0, q1, v1 = stems
    written = adapter_file._pattern({q0: 2, v0: 4, q1: 4, v1: 4}, 4, ["q_proj"])
    assert written == {"0.q_proj": 2}
    assert adapter_file._pattern({q0: 2, v0: 4, q1: 2, v1: 4}, 4, [q0, q1]) == {"q_proj": 2}
    both = {"vision.layers.0.q_proj": 8, "text.layers.0.q_proj": 2}
    assert adapter_file._pattern(both, 8, []) == {"text.layers.0.q_proj": 2}  # nothing less tells them apart
    assert adapter_file._pattern({q0: 4, v0: 4}, 4, ["q_proj"]) == {}


def test_a_key_that_only_the_files_own_names_match_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_before_the_names_changed(tmp_path / "run", gemma(), {"alpha_pattern": {"q_proj": 32}})
    whole = lambda values, usual, own: {name: x for name, x in values.items() if x != usual}  # noqa: E731
    monkeypatch.setattr(adapter_file, "_pattern", whole)
    with pytest.raises(InputError, match=r"would miss '.*q_proj' where it is called otherwise"):
        leap(Trajectory.load(tmp_path / "run"), "secant", horizon=10).save_adapter(tmp_path / "leap")
    assert not (tmp_path / "leap").exists()
