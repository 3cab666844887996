"""LoRA adapters between verl and nextrl: the one a run starts from, and the one a verl checkpoint holds.

verl 0.9.1 saves FSDP shards, which `checkpoints.fsdp_shards` reads.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG, WEIGHTS
from nextrl.checkpoints.atomic import write_json, write_tensors
from nextrl.checkpoints.fsdp_shards import has_shards, read_shards, written_out
from nextrl.checkpoints.tensorfile import read_tensors
from nextrl.engines.adapter_fits import adapter_without_weights
from nextrl.engines.settings import LoraSettings
from nextrl.errors import InputError, needs


@dataclass(frozen=True)
class FreshAdapter:
    """An untrained adapter.

    Attributes:
        tensors: PEFT's names -> float32 tensors.
        config: what `adapter_config.json` holds.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]

    def write(self, out: Path) -> None:
        """Write it as PEFT would, the tensors last: a folder that has them is whole."""
        write_json(out / CONFIG, self.config)
        write_tensors(out / WEIGHTS, dict(self.tensors))


def fresh_adapter(model: str, lora: LoraSettings, seed: int) -> FreshAdapter:
    """An untrained adapter (A uniform in PEFT's way, B zero, float32) for the model in a folder.

    verl could make its own, but then nobody would know A at step 0, and its checkpoints do not hold the
    configuration. The model is built without weights, so a 70B takes no more memory than its adapter.

    Raises:
        InputError: no such adapter fits the model, or verl could not carry it.
    """
    with needs("verl", "engine verl"):
        from peft import get_peft_model_state_dict
        from transformers import AutoConfig, AutoModelForCausalLM

    if lora.use_rslora:
        raise InputError("engine verl: use_rslora is not carried through verl's checkpoints; leave it out")
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, local_files_only=True))
    adapted = adapter_without_weights(bare, lora, model)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = str(model)
    shapes = get_peft_model_state_dict(adapted)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _initial(name, like, generator) for name, like in shapes.items()}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return FreshAdapter(tensors, {k: getattr(v, "value", v) for k, v in plain.items()})


def _initial(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """PEFT's default start: A is kaiming-uniform with a = sqrt(5), that is uniform in +-1/sqrt(n); B is zero."""
    if "lora_B" in name or "lora_embedding_A" in name:
        return torch.zeros(like.shape)
    bound = 1.0 / math.sqrt(like.shape[-1])
    return (torch.rand(like.shape, generator=generator) * 2.0 - 1.0) * bound


def collect(checkpoint: Path, like: Path) -> Path:
    """Write the adapter of `global_step_N` where nextrl finds it, `actor/lora_adapter`, unless it is there already.

    verl writes its shards anew where a run comes to a step for a second time, and leaves an adapter beside them alone.
    So it is the shards that count; an adapter that an older verl saved has none beside it.

    Args:
        checkpoint: verl's `global_step_N` folder.
        like: an adapter of the same run, whose configuration is copied: verl's own keeps rank and alpha only.

    Returns:
        The adapter's folder.

    Raises:
        InputError: no checkpoint, a broken or incomplete one, or other tensors than the run's.
    """
    actor = checkpoint / "actor"
    if not actor.is_dir():
        raise InputError(
            f"{checkpoint}: verl left no actor checkpoint here; see its log for why it did not save"
        )
    out = actor / "lora_adapter"
    if (out / WEIGHTS).is_file() and not has_shards(actor):
        return out
    tensors, expected = read_shards(actor), read_tensors(like / WEIGHTS)
    _compare(actor, tensors, expected)
    if written_out(actor, out / WEIGHTS, {name: tensors[name] for name in expected}):
        return out
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(like / CONFIG, out / CONFIG)
    write_tensors(out / WEIGHTS, {name: tensors[name] for name in expected})
    return out


def _compare(actor: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in found:
            raise InputError(
                f"{actor}: has no {name}, which the run's adapter has; did target_modules change?"
            )
        if found[name].shape != tensor.shape:
            raise InputError(
                f"{actor}: {name} is {tuple(found[name].shape)}, the run's is {tuple(tensor.shape)}"
            )
        if not bool(torch.isfinite(found[name]).all()):
            raise InputError(f"{actor}: {name} holds NaN or infinity; the run has diverged")
