"""From the keys of an adapter file to modules: which tensors are A and B of what, and what is merely carried along."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

PEFT_PREFIX = "base_model.model."

# Components that a wrapper puts into every name below it: FSDP, torch.compile, activation checkpointing. PEFT saves
# them as they are and then loads nothing from such names: an adapter that acts as none.
_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}

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
        twice: keys that name a tensor that another key names too, wrappers left out.
    """

    modules: dict[str, ModuleKeys]
    carried: tuple[str, ...]
    halves: tuple[str, ...]
    refused: dict[str, str]
    twice: tuple[str, ...] = ()


def unwrapped(key: str) -> str:
    """A key of a state dict without the components that wrappers of the model put into it."""
    bare = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    return bare.removeprefix("module.") if bare.startswith(f"module.{PEFT_PREFIX}") else bare  # DDP


def module_name(stem: str) -> str:
    """The base model's name of a module: PEFT's prefix, and those of wrappers, stripped."""
    return unwrapped(stem).removeprefix(PEFT_PREFIX)


def module_kind(name: str) -> str:
    """What a module is in whatever layer: "q_proj"; of an expert ("experts[3]") or a wrapper of PEFT what is inside."""
    parts = name.split("[")[0].split(".")
    return next((part for part in reversed(parts) if part not in ("base_layer", "default")), name)


def saved_key(module: str, side: str, embedding: bool) -> str:
    """The key under which PEFT saves A or B of a module, and from which it loads it."""
    return f"{PEFT_PREFIX}{module}." + (f"lora_embedding_{side}" if embedding else f"lora_{side}.weight")


def live_key(key: str, adapter: str) -> str:
    """The name in a live model of a LoRA tensor that PEFT saves under `key`, without the adapter's name.

    A factor of a linear layer is a module (`lora_A.default.weight`), that of an embedding a bare parameter
    (`lora_embedding_A.default`).
    """
    stem, _, part = key.rpartition(".")
    return f"{stem}.{adapter}.{part}" if part in ("weight", "bias") else f"{key}.{adapter}"


def carried_key(key: str) -> str:
    """The key under which PEFT loads a tensor that is neither A nor B."""
    return f"{PEFT_PREFIX}{module_name(key)}"


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which numbers inside names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)


def sort_out(keys: Iterable[str]) -> KeyMap:
    """Sort the keys of an adapter's state dict into modules and the rest."""
    sides: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    embeddings: set[str] = set()
    carried: list[str] = []
    refused: dict[str, str] = {}
    twice: list[str] = []
    for key in sorted(keys, key=natural):
        match, bad = _FACTOR.match(key), _REFUSED.match(key)
        if bad:
            refused[module_name(bad["stem"])] = bad["what"]
        elif match and bool(match["embedding"]) != bool(match["weight"]):
            name = module_name(match["stem"])
            if sides[match["side"]].setdefault(name, key) != key:
                twice.append(key)
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
    return KeyMap(modules, tuple(carried), tuple(halves), refused, tuple(twice))
