"""From the keys of an adapter file to modules: which tensors are A and B of what, and what is merely carried along."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

PEFT_PREFIX = "base_model.model."

_FACTOR = re.compile(
    r"^(?P<stem>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?!weight$|bias$)[^.]+)?(?P<weight>\.weight)?$"
)
_REFUSED = re.compile(
    r"^(?P<stem>.+)\.(?P<what>lora_magnitude_vector|lora_E|ranknum|vera_lambda_[bd]|lora_diag)\b"
)


@dataclass(frozen=True)
class ModuleKeys:
    """Where one module's factors lie in the file.

    Attributes:
        name: the module's name in the base model ("model.layers.0.self_attn.q_proj").
        a, b: keys of A (r, n) and B (m, r).
        embedding: whether it is an embedding layer, whose weight (vocabulary, hidden) moves by s (B A)^T.
    """

    name: str
    a: str
    b: str
    embedding: bool = False


@dataclass(frozen=True)
class KeyMap:
    """All keys of a file, sorted out.

    Attributes:
        modules: name -> keys, in natural order (layer 2 before layer 10).
        carried: keys that are neither A nor B (`modules_to_save`, biases, resized embeddings).
        halves: modules of which only A or only B is there.
        refused: module -> the parameter that makes it nonlinear (DoRA's magnitude ...).
    """

    modules: dict[str, ModuleKeys]
    carried: tuple[str, ...]
    halves: tuple[str, ...]
    refused: dict[str, str]


def module_name(stem: str) -> str:
    """The base model's name of a module: PEFT's (and a wrapper's) prefix stripped."""
    return stem.removeprefix("_fsdp_wrapped_module.").removeprefix(PEFT_PREFIX)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which numbers inside names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


def sort_out(keys: Iterable[str]) -> KeyMap:
    """Sort the keys of an adapter's state dict into modules and the rest."""
    sides: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    embeddings: set[str] = set()
    carried: list[str] = []
    refused: dict[str, str] = {}
    for key in sorted(keys, key=natural):
        match, bad = _FACTOR.match(key), _REFUSED.match(key)
        if bad:
            refused[module_name(bad["stem"])] = bad["what"]
        elif match and bool(match["embedding"]) != bool(match["weight"]):
            name = module_name(match["stem"])
            sides[match["side"]][name] = key
            if match["embedding"]:
                embeddings.add(name)
        else:
            carried.append(key)
    both = [name for name in sides["A"] if name in sides["B"]]
    halves = sorted({*sides["A"], *sides["B"]} - set(both), key=natural)
    modules = {
        name: ModuleKeys(name, sides["A"][name], sides["B"][name], name in embeddings)
        for name in sorted(both, key=natural)
    }
    return KeyMap(modules, tuple(carried), tuple(halves), refused)
