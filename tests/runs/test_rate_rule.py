"""`learning_rate: rule`: the published numbers, the models known by name, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextrl.errors import InputError
from nextrl.runs.config import RunConfig
from nextrl.runs.rate_rule import SHAPES, rule_rate
from nextrl.tasks.bases import tiny


@pytest.mark.parametrize(
    ("family", "width", "rate"),
    # What get_lr of tinker-cookbook 0.6.1 returns for Llama-3.2-1B, Llama-3.1-8B, Qwen3-8B and Qwen3-32B.
    [("llama", 2048, 4.9e-4), ("llama", 4096, 2.9e-4), ("qwen3", 4096, 4.7e-4), ("qwen3", 5120, 4.6e-4)],
)
def test_the_published_rates(family: str, width: int, rate: float) -> None:
    assert rule_rate(family, width) == rate


def test_the_models_known_by_name_are_as_the_table_says() -> None:
    config = json.loads((tiny.shipped("chain") / "config.json").read_text())
    assert SHAPES["tiny"] == (config["model_type"], config["hidden_size"])


def test_a_config_holds_the_number() -> None:
    config = RunConfig(train={"learning_rate": "rule"})
    assert config.train.learning_rate == rule_rate(*SHAPES["tiny"])
    assert RunConfig(**config.as_dict()) == config


def test_all_weights_take_the_rate_without_lora_s_factor() -> None:
    """The published function's `is_lora=False`: a tenth of what an adapter gets."""
    config = RunConfig(lora=None, train={"learning_rate": "rule"}, leap={"method": "none"})
    assert config.train.learning_rate == rule_rate(*SHAPES["tiny"], lora=False) == 4.3e-4
    assert RunConfig(**config.as_dict()).train.learning_rate == 4.3e-4


def test_a_folder_is_asked_for_its_width(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"model_type": "qwen3", "hidden_size": 4096}})
    )
    config = RunConfig(model=str(tmp_path), train={"learning_rate": "rule"})
    assert config.train.learning_rate == 4.7e-4


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gpt2", "hidden_size": 768}, "calibrated for llama and qwen"),
        ({}, "names no hidden_size"),
    ],
)
def test_what_the_rule_does_not_know_is_refused(tmp_path: Path, config: dict[str, object], why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((InputError, ValueError), match=why):
        RunConfig(model=str(tmp_path), train={"learning_rate": "rule"})
