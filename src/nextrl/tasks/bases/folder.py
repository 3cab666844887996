"""A base model from a local Hugging Face folder: looked at before transformers builds what its config describes.

A stranger's `config.json` of 300 bytes can describe a model that fills any memory, and one with a billion layers is
never built to the end. So the model is first built without weights, and compared with the tensors that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nextrl.errors import InputError, first_line, needs, shown
from nextrl.files import MAX_CONFIG, no_safetensors, read_object, regular_file
from nextrl.tasks.generation import plain_config

_LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"}
_LARGEST = 10**8  # of any number in a config: vocabularies have 10^6, contexts 10^7
_READ = {"chat_template.jinja", "tokenizer.model", "spiece.model", "vocab.txt", "merges.txt"}
"""What transformers reads beside weights and JSON files: a chat template, slow tokenizers, vocabularies."""
_SPARE = 2.0  # parameters described over parameters stored; a tied output layer is described twice


def load_folder(folder: Path) -> tuple[Any, Any]:
    """(model in float32 on the CPU, tokenizer padded on the left); nothing is fetched, no pickle is read.

    Raises:
        InputError: the folder holds no causal language model in safetensors, or a config that its files belie.
    """
    with needs("trl", f"model '{folder}'"):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    _refuse_no_files(folder)
    _check_numbers(folder, *(stored := _stored(folder)))
    options: dict[str, Any] = {"local_files_only": True}
    try:
        with torch.device("meta"):
            bare = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **options))
        described = sum(p.numel() for p in bare.parameters())
        if described > _SPARE * stored[1]:
            raise InputError(
                f"{folder / 'config.json'}: describes {described:,} parameters, and the weights beside it are "
                f"{stored[1]:,}: the two are not of one model; restore them"
            )
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        # Much of a config is read only when the model is used: use it once.
        start = torch.tensor([[tokenizer.eos_token_id or 0]])
        model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=1, do_sample=False)
    except InputError:
        raise
    except Exception as error:
        # Whatever transformers, and tokenizers (Rust, which raises plain `Exception`), make of files of no use to them.
        raise InputError(
            f"{folder}: transformers cannot load a model and its tokenizer there ({first_line(error)})"
        ) from error
    if missing := sorted(report["missing_keys"]):
        # transformers draws them at random, with a warning at most.
        raise InputError(
            f"{folder}: the weights lack {shown(missing[0])} ({len(missing)} of the model's tensors): restore them"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().weight.shape[0]
    for name, number in (("eos", tokenizer.eos_token_id), ("pad", tokenizer.pad_token_id)):
        if number is None or not 0 <= number < rows:
            raise InputError(
                f"{folder}: the tokenizer's {name} token is {shown(number)}, and the model has tokens 0 to {rows - 1}: "
                "restore tokenizer.json and tokenizer_config.json"
            )
    tokenizer.padding_side = "left"
    # A trainer's rollouts, too, would take what they leave open from it. `own_generation_config` is put back where all
    # of the model is written out.
    model.own_generation_config = model.generation_config
    model.generation_config = plain_config(model, tokenizer)
    return model, tokenizer


def bare_model(folder: Path, otherwise: str) -> Any:
    """The model that a folder's config.json describes, as transformers builds it, without weights.

    It is of the class that the config names, so that what that class ties or turns is as it will be when loaded.

    Args:
        folder: the model's.
        otherwise: what else a user can do where this fails, as the end of a sentence.

    Raises:
        InputError: transformers cannot build it, or its numbers are not those of the weights beside it.
    """
    with needs(
        "trl",
        "to know the layers of a base model (of full weights, embeddings, output layers or GPT-2's square ones)",
    ):
        import transformers
    _refuse_no_files(folder)
    _check_numbers(folder, *_stored(folder))
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        named = getattr(transformers, str((getattr(config, "architectures", None) or [""])[0]), None)
        with torch.device("meta"):
            if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
                build: Any = named
                return build._from_config(config)
            return transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever transformers makes of a config of no use to it
        line = first_line(error)
        raise InputError(
            f"{folder / 'config.json'}: transformers cannot build this model ({line}), so what its layers are is "
            f"unknown: {otherwise}"
        ) from error


def _refuse_no_files(folder: Path) -> None:
    """Refuse what is no file where one is read: transformers waits for a pipe, and takes a folder for no file."""
    for kind in ("[!.]*", "additional_chat_templates/[!.]*"):
        for file in sorted(folder.glob(kind)):
            if file.name in _READ or file.suffix in (".json", ".jinja"):
                regular_file(file)


def _stored(folder: Path) -> tuple[int, int]:
    """(tensors, numbers in them) of the folder's safetensors files, from their headers."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder}: holds no model.safetensors (a pickle, pytorch_model.bin, is not read); save it with "
            "save_pretrained"
        )
    tensors = numbers = 0
    for file in files:
        try:
            with safe_open(regular_file(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # no mapping, a method
                    count = 1
                    for extent in opened.get_slice(name).get_shape():
                        count *= extent
                    tensors, numbers = tensors + 1, numbers + count
        except (SafetensorError, OSError) as error:
            raise no_safetensors(file, error) from error
    return tensors, numbers


def _check_numbers(folder: Path, tensors: int, numbers: int) -> None:
    """Refuse a config whose numbers are beyond any model's, or beyond what is stored."""
    path = folder / "config.json"
    config = read_object(path, MAX_CONFIG)
    level: list[Mapping[str, Any]] = [config]
    while level:
        inner: list[Mapping[str, Any]] = []
        for part in level:
            for key, value in part.items():
                if isinstance(value, dict):
                    inner.append(value)
                elif isinstance(value, int) and (
                    value > (tensors if key in _LAYERS else _LARGEST) or (key in _LAYERS and value < 1)
                ):
                    raise InputError(
                        f"{path}: {shown(key)} is {shown(value)}, and the weights beside it are {tensors} tensors of "
                        f"{numbers:,} numbers in all: the two are not of one model; restore them"
                    )
        level = inner
