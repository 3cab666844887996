"""A leap folded into its base model, shard by shard: never more than one shard in memory.

The sum is formed in float32 (float64 for a float64 base) and rounded once to the base's dtype. Folding leap
after leap into a bf16 base drifts; keep adapters and merge once, at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.atomic import write_bytes, write_tensors
from nextrl.checkpoints.dense import FullModel
from nextrl.checkpoints.naming import module_name
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.errors import InputError, needs
from nextrl.leaps.provenance import refuse_foreign_folder, write_provenance
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


def write_merged(
    traj: Trajectory,
    step: int,
    weights: Mapping[str, LowRank],
    base: str | Path,
    out: str | Path,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `base` with each module moved by its `weights` entry, in the base's shards and dtypes.

    Args:
        traj, step: the run and T; modules that `weights` does not name get W_T - W_base.
        weights: module -> (m, n) the new W - W_base, scaling included.
        base: folder of the base model (safetensors), or its name if it lies in the Hugging Face cache.
        out: folder to write: shards, index, and copies of the base's other small files.

    Raises:
        InputError: no such base, a module that it lacks, stacked experts, tied embeddings that were adapted.
    """
    out, folder = Path(out), find_base(base)
    model = FullModel.open(folder)
    changes = _changes(traj, step, weights, model)
    replaced = _replacements(traj, step)
    _check(traj, model, [*changes, *replaced])
    refuse_foreign_folder(out)
    for file in {id(f): f for f in model.places.values()}.values():
        shard = {key: _moved(key, file, changes, replaced) for key in file.entries}
        write_tensors(out / file.path.name, shard)
        del shard
    for extra in sorted(folder.iterdir()):
        if extra.is_file() and extra.suffix in {".json", ".txt", ".model", ".jinja", ".py"}:
            write_bytes(out / extra.name, extra.read_bytes())
    details = {"kind": "merged", "base": str(base), **(provenance or {})}
    write_provenance(traj, step, out, details)
    return out


def find_base(base: str | Path) -> Path:
    """The base model's folder: a path, or a name that is in the Hugging Face cache (nothing is downloaded).

    Raises:
        InputError: neither.
    """
    if Path(base).is_dir():
        return Path(base)
    with needs("trl", f"a base model by its name ({base}), not its folder,"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    try:
        return Path(snapshot_download(str(base), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"--base {base}: neither a folder nor a model in the Hugging Face cache; download it first"
        ) from error


def _changes(
    traj: Trajectory, step: int, weights: Mapping[str, LowRank], model: FullModel
) -> dict[str, LowRank]:
    """Base tensor key -> what is added to it, oriented as the base stores it."""
    changes: dict[str, LowRank] = {}
    last = traj.checkpoints[-1]
    for module in traj.modules:
        delta, key = weights[module] if module in weights else traj.weight(step, module), f"{module}.weight"
        if isinstance(last, AdapterCheckpoint):
            slot = last.slots[module]
            if slot.experts > 1:
                raise InputError(f"{module}: stacked experts cannot be merged here; use --as adapter")
            m, n = delta.shape
            stored = model.places[key].entries[key][0] if key in model.places else ()
            # fan_in_fan_out is one flag for the whole adapter, but a plain Linear in it (lm_head) is not turned.
            turned = last.settings.transposed and (m == n or stored == (n, m))
            if slot.keys.embedding or turned:
                delta = LowRank(delta.right, delta.left)
        changes[key] = delta
    return changes


def _replacements(traj: Trajectory, step: int) -> dict[str, Tensor]:
    """Base tensor key -> tensor that takes its place (modules_to_save) or is added to it (lora_bias)."""
    stored = next(c for c in traj.checkpoints if c.step == step)
    found: dict[str, Tensor] = {}
    if isinstance(stored, AdapterCheckpoint):
        for key in stored.carried:
            name = module_name(key).replace(".modules_to_save", "")
            if ".lora_B" in name:
                module = name.split(".lora_B")[0]
                found[f"+{module}.bias"] = stored.file.get(key) * stored.settings.scaling(module)
            else:
                found[name.replace(".base_layer.", ".")] = stored.file.get(key)
    return found


def _check(traj: Trajectory, model: FullModel, keys: Iterable[str]) -> None:
    for key in keys:
        if key.removeprefix("+") not in model.places:
            raise InputError(f"{model.folder}: has no {key.removeprefix('+')}; is it the base of this run?")
    last = traj.checkpoints[-1]
    embeddings = isinstance(last, AdapterCheckpoint) and any(s.keys.embedding for s in last.slots.values())
    config = model.folder / "config.json"
    if embeddings and config.exists() and json.loads(config.read_text()).get("tie_word_embeddings"):
        raise InputError(
            f"{config}: embeddings are tied to the output layer, but the adapter moves only the embeddings; "
            "merging would move both: use --as adapter"
        )


def _moved(
    key: str, file: TensorFile, changes: Mapping[str, LowRank], replaced: Mapping[str, Tensor]
) -> Tensor:
    """One tensor of the merged model."""
    old = file.get(key)
    if key in replaced:  # modules_to_save, or an embedding that PEFT saved beside its factors
        old = replaced[key].to(old.dtype)
    wide = torch.promote_types(old.dtype, torch.float32)
    if f"+{key}" in replaced:
        return (old.to(wide) + replaced[f"+{key}"].to(wide)).to(old.dtype)
    if key not in changes:
        return old
    delta = LowRank(changes[key].left.to(wide), changes[key].right.to(wide)).dense()
    if delta.shape != old.shape and (old.dim() == 2 or delta.numel() != old.numel()):
        raise InputError(f"{file.path}: {key} is {list(old.shape)}, the adapter's {list(delta.shape)}")
    return (old.to(wide) + delta.reshape(old.shape)).to(old.dtype)
