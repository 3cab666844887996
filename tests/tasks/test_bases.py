"""Base models by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nextrl.errors import InputError
from nextrl.tasks import bases
from nextrl.tasks.bases import tiny


def test_a_folder_loads_as_the_name_it_was_saved_from(tmp_path: Path) -> None:
    model, tokenizer = bases.load("tiny", "chain")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, same = bases.load(str(tmp_path), "chain")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert same("3+4*5-2=")["input_ids"] == tiny.tokenizer()("3+4*5-2=")["input_ids"]
    assert same.padding_side == "left"


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        InputError, match=r"unknown model '.*'; known: .*tiny.*; or give a local folder with a config.json"
    ):
        bases.load("nothing-there", "chain")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"num_hidden_layers": 10**9}, "the two are not of one model"),
        ({"vocab_size": 10**7}, "the two are not of one model"),
        ({"hidden_size": 10**12}, "the two are not of one model"),
        ({"model_type": "nope"}, "transformers cannot load"),
        ({"num_attention_heads": 0}, "transformers cannot load"),
    ],
)
def test_a_config_that_the_weights_belie_builds_nothing(
    tmp_path: Path, change: dict[str, object], wanted: str
) -> None:
    model, tokenizer = bases.load("tiny", "chain")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(InputError, match=wanted):
        bases.load(str(tmp_path), "chain")


def test_weights_that_are_missing_or_pickled_are_not_made_up(tmp_path: Path) -> None:
    model, tokenizer = bases.load("tiny", "chain")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    # Copies: older safetensors write into the file that is mapped.
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    save_file({k: t for k, t in state.items() if "layers.0" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the weights lack 'model\.layers\.0"):
        bases.load(str(tmp_path), "chain")
    torch.save(state, tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(InputError, match=r"a pickle, pytorch_model\.bin, is not read"):
        bases.load(str(tmp_path), "chain")
