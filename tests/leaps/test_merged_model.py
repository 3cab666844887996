"""A merged model is the base with the adapter on it, whatever the base ties or stores turned; or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import lora_runs
from lora_runs import lora, write_run
from nextrl.checkpoints.adapter import CONFIG, NOTE
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

EMBEDDINGS = {"llama": "embed_tokens", "qwen2": "embed_tokens", "gemma": "embed_tokens", "gpt2": "wte"}
SQUARE = {"llama": "o_proj", "qwen2": "o_proj", "gemma": "o_proj", "gpt2": "attn.c_proj"}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 15)[None]).logits


def bases(folder: Path, kind: str, tied: bool, config: LoraConfig) -> tuple[Path, Path]:
    """(run, base): an adapter's run on a base that ties its output layer to its embeddings, or does not."""
    model = lora_runs.model(kind, tied)
    model.save_pretrained(folder / "base")
    write_run(folder / "run", config, base=model)
    return folder / "run", folder / "base"


def difference(run: Path, base: Path, folder: Path) -> tuple[float, float]:
    """Of the merged model from the adapter on its base, and of that from the base: largest logits."""
    made = leap(Trajectory.load(run), "none", horizon=10)
    made.save_merged(folder / "merged", base)
    made.save_adapter(folder / "adapter")
    alone = AutoModelForCausalLM.from_pretrained(base)
    before = logits(alone)
    beside = logits(PeftModel.from_pretrained(alone, str(folder / "adapter")))
    within = logits(AutoModelForCausalLM.from_pretrained(folder / "merged"))
    return float((within - beside).abs().max()), float((beside - before).abs().max())


LAYERS = {
    "a square layer": lambda kind: {"target_modules": [SQUARE[kind]]},
    "a square layer and the head": lambda kind: {"target_modules": [SQUARE[kind], "lm_head"]},
    "all linear layers and the head": lambda kind: {"target_modules": ["c_attn", "c_proj", "q_proj", "lm_head"]},
    "the embeddings": lambda kind: {"target_modules": [EMBEDDINGS[kind]]},
    "the embeddings and a square layer": lambda kind: {"target_modules": [EMBEDDINGS[kind], SQUARE[kind]]},
    "a copy of the embeddings": lambda kind: {
        "target_modules": [SQUARE[kind]], "modules_to_save": [EMBEDDINGS[kind]]
    },
    "a copy of the head": lambda kind: {"target_modules": [SQUARE[kind]], "modules_to_save": ["lm_head"]},
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_merged_it_is_what_the_adapter_is_on_its_base(
    tmp_path: Path, kind: str, layers: str, tied: bool
) -> None:
    run, base = bases(tmp_path, kind, tied, lora(**LAYERS[layers](kind)))
    if tied and layers != "a square layer":
        with pytest.raises(InputError, match=r"is tied to|has no 'lm_head.weight'"):
            difference(run, base, tmp_path)
        assert not (tmp_path / "merged").exists()
        return
    error, moved = difference(run, base, tmp_path)
    assert error < 1e-5 < 0.01 < moved


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_tied_is_what_transformers_says_not_a_key_of_the_config(tmp_path: Path, kind: str) -> None:
    run, base = bases(tmp_path, kind, True, lora(target_modules=[EMBEDDINGS[kind]]))
    config = json.loads((base / "config.json").read_text())
    assert config.pop("tie_word_embeddings") is True
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"is tied to 'lm_head.weight'"):
        difference(run, base, tmp_path)


def test_a_tied_head_that_is_stored_once_more_is_refused_too(tmp_path: Path) -> None:
    """transformers 4 ties it again when it loads, and so do engines that serve the model."""
    run, base = bases(tmp_path, "llama", True, lora(target_modules=["lm_head"]))
    stored = load_file(base / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"'lm_head.weight', which the adapter moves, is tied to"):
        difference(run, base, tmp_path)


def test_without_a_config_whether_it_is_tied_is_unknown(tmp_path: Path) -> None:
    run, base = bases(tmp_path, "llama", False, lora(target_modules=["embed_tokens"]))
    (base / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config.json"):
        difference(run, base, tmp_path)


@pytest.mark.parametrize("note", ["{", "[]"])
def test_a_base_whose_note_cannot_be_read_may_hold_the_leap_already(tmp_path: Path, note: str) -> None:
    run, base = bases(tmp_path, "llama", False, lora())
    (base / NOTE).write_text(note)
    made, out = leap(Trajectory.load(run), "secant", horizon=10), tmp_path / "out"
    with pytest.raises(InputError, match=rf"{NOTE}: .*whether this base holds a leap of the run already"):
        made.save_merged(out, base)
    assert not out.exists()


def test_the_place_of_the_base_is_not_taken(tmp_path: Path) -> None:
    run, base = bases(tmp_path, "llama", False, lora())
    made, out = leap(Trajectory.load(run), "secant", horizon=10), tmp_path / "out"
    made.save_merged(out, base)
    (tmp_path / "link").symlink_to(out)
    weights = (out / "model.safetensors").read_bytes()
    for place in (out, tmp_path / "link", tmp_path / "run" / ".." / "out"):
        with pytest.raises(InputError, match="is the base itself"):
            made.save_merged(place, out)
    with pytest.raises(InputError, match="holds a leap of this run already"):
        made.save_merged(tmp_path / "twice", out)
    assert (out / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "twice").exists()
    made.save_merged(out, base)  # over an older merge, from the base, is as ever


def test_of_a_single_file_and_shards_in_one_folder_the_file_is_the_model(tmp_path: Path) -> None:
    """So transformers loads it: shards of before lie there still, where a model was saved once more."""
    run, base = bases(tmp_path, "llama", False, lora())
    old = lora_runs.model("llama", False)
    for parameter in old.parameters():
        parameter.data += 0.5
    old.save_pretrained(tmp_path / "old", max_shard_size="8KB")
    for file in (tmp_path / "old").glob("*safetensors*"):
        file.rename(base / file.name)
    error, moved = difference(run, base, tmp_path)
    assert error < 1e-5 < 0.01 < moved
    assert [file.name for file in (tmp_path / "merged").glob("*safetensors*")] == ["model.safetensors"]


def test_chat_templates_and_vocabulary_come_along(tmp_path: Path) -> None:
    """Also over an older merge, whose templates are replaced."""
    run, base = bases(tmp_path, "llama", False, lora())
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(30)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2")
    (base / "qwen.tiktoken").write_text("dDA= 0\n")
    for version in "ab":
        tokenizer.chat_template = {"default": "plain", "tool_use": f"with tools {version}"}
        tokenizer.save_pretrained(base)
        leap(Trajectory.load(run), "none", horizon=10).save_merged(tmp_path / "merged", base)
        merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert (
            merged.chat_template
            == AutoTokenizer.from_pretrained(base).chat_template
            == tokenizer.chat_template
        )
        assert (tmp_path / "merged" / "qwen.tiktoken").read_text() == "dDA= 0\n"


def test_a_base_that_holds_an_adapter_too_is_refused(tmp_path: Path) -> None:
    """transformers loads the adapter there, which a merge would leave out, or would copy without its weights."""
    run, base = bases(tmp_path, "llama", False, lora())
    made = leap(Trajectory.load(run), "none", horizon=10)
    shutil.copy(run / "checkpoint-10" / CONFIG, base)
    with pytest.raises(
        InputError, match=rf"base: holds an adapter \({CONFIG}\) beside its weights"
    ) as caught:
        made.save_merged(tmp_path / "merged", base)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_what_belongs_to_the_model_comes_along_and_nothing_of_its_training(tmp_path: Path) -> None:
    run, base = bases(tmp_path, "llama", False, lora())
    terms = ["LICENSE", "USE_POLICY.md", "NOTICE", "license.md"]
    ours = [*terms, "preprocessor_config.json", "vocab.json", "vocab.bpe", "modeling_own.py"]
    training = ["trainer_state.json", "nextrl_state.json", "nextrl_checkpoint.json", "all_results.json"]
    for name in [*ours, *training, "training_args.bin", "adapter_model.safetensors"]:
        (base / name).write_text("{}")
    leap(Trajectory.load(run), "none", horizon=10).save_merged(tmp_path / "merged", base)
    here = {file.name for file in (tmp_path / "merged").iterdir()}
    assert set(ours) <= here
    written = {"config.json", "generation_config.json", "model.safetensors", NOTE, "README.md"}
    assert here - set(ours) == written


@pytest.mark.parametrize(
    "layers",
    [
        {"target_modules": ["c_attn", "c_proj"], "lora_bias": True},
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]},
    ],
    ids=["with biases", "with a copy"],
)
def test_a_base_whose_names_lack_the_model_s_prefix_is_moved_as_well(
    tmp_path: Path, layers: dict[str, Any]
) -> None:
    """So gpt2 lies on the Hub."""
    run, base = bases(tmp_path, "gpt2", True, lora(**layers))
    file = base / "model.safetensors"
    stored = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    error, moved = difference(run, base, tmp_path)
    assert error < 1e-5 < 0.01 < moved
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == set(stored)


def test_a_tied_embedding_without_the_prefix_is_refused_too(tmp_path: Path) -> None:
    run, base = bases(tmp_path, "gpt2", True, lora(target_modules=["wte"]))
    file = base / "model.safetensors"
    stored = {key.removeprefix("transformer."): tensor for key, tensor in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"'wte.weight', which the adapter moves, is tied to 'lm_head.weight'"
    ):
        difference(run, base, tmp_path)


def test_another_beginning_of_the_names_is_another_model(tmp_path: Path) -> None:
    run, base = bases(tmp_path, "gpt2", True, lora(target_modules=["c_attn"]))
    file = base / "model.safetensors"
    other = {key.replace("transformer.", "decoder."): tensor for key, tensor in load_file(file).items()}
    save_file(other, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="which the adapter moves; a merge needs each"):
        difference(run, base, tmp_path)
