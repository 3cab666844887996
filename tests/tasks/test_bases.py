"""Base models by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
