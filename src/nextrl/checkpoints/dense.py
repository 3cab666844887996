"""Full-weight checkpoints (no LoRA): each delta against the base model is reduced to its exact leading triples.

`RUN/checkpoint-N/model.safetensors` (or sharded with `model.safetensors.index.json`) as transformers 5.24.0
writes it. One matrix of one checkpoint and of the base are in memory at a time. The leading k triples come
from Lanczos (`scipy.sparse.linalg.svds`, ARPACK) on the difference and are accepted only if |D v - sigma u|
and |D^T u - sigma v| are below RESIDUAL * sigma_1; otherwise LAPACK decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, svds
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.errors import InputError, shown
from nextrl.files import read_json, read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RESIDUAL = 1e-7
_FOLDER = re.compile(r"^(?:checkpoint-|global_step_?)(\d+)(?:_hf)?$")

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of transformers' causal language models, the second that of GPT-2's kind."""


def holds_full_model(folder: Path) -> bool:
    """Whether a folder holds all weights of a model, and no adapter."""
    if (folder / CONFIG).exists() or any(folder.glob("adapter_model.*")):
        return False
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def find(run: Path) -> dict[int, Path]:
    """step -> folder of every full-weight checkpoint of `run`."""
    return {step: folder for step, folder in numbered(run, _FOLDER)[0] if holds_full_model(folder)}


def adapter_settings(base: str | Path) -> dict[str, Any]:
    """What `adapter_config.json` has to say of an adapter of full weights: the base, and its task where that is known.

    Args:
        base: folder of the model that training started from.

    Raises:
        InputError: its config.json cannot be read.
    """
    path = Path(base) / "config.json"
    built = read_object(path).get("architectures") if path.exists() else None
    model = str(built[0]) if isinstance(built, list) and built else ""
    task = {"task_type": "CAUSAL_LM"} if model.endswith(_CAUSAL) else {}
    return {"base_model_name_or_path": str(base), **task}


def _sharded(folder: Path) -> dict[str, TensorFile]:
    """Tensor name -> the shard that holds it, as the index says and the shard confirms."""
    index = folder / INDEX
    value = read_json(index)
    names = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: no weight_map in it; restore it")
    for name in names.values():
        if Path(name).name != name:
            raise InputError(f"{index}: {shown(name)} is no file beside it; restore it")
    files = {name: TensorFile(folder / name) for name in sorted(set(names.values()))}
    for key, name in names.items():
        if key not in files[name].entries:
            raise InputError(f"{index}: {shown(key)} is not in {name}; the two are from different models")
    return {key: files[name] for key, name in names.items()}


@dataclass(frozen=True)
class FullModel:
    """The tensors of one model folder, whichever shard they lie in."""

    folder: Path
    places: dict[str, TensorFile]

    @classmethod
    def open(cls, folder: Path) -> FullModel:
        """Open `model.safetensors` or, where there is none, its shards, as transformers 5.24.0 does.

        Raises:
            InputError: no such files, a shard missing or truncated.
        """
        if not (folder / SINGLE).exists():
            if (folder / INDEX).exists():
                return cls(folder, _sharded(folder))
            raise InputError(f"{folder}: holds neither {SINGLE} nor {INDEX}; give a model's folder")
        file = TensorFile(folder / SINGLE)
        return cls(folder, dict.fromkeys(file.entries, file))

    def matrices(self) -> list[str]:
        """Names of the two-dimensional weights, without their `.weight`."""
        return [
            key.removesuffix(".weight")
            for key, file in self.places.items()
            if key.endswith(".weight") and len(file.entries[key][0]) == 2
        ]

    def get(self, module: str) -> Tensor:
        """The stored weight of one module."""
        key = f"{module}.weight"
        if key not in self.places:
            raise InputError(f"{self.folder}: has no weight {key}; is it a checkpoint of the same model?")
        return self.places[key].get(key)


def leading_triples(difference: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k leading triples of a dense (m, n) matrix: u (m, k), sigma (k), v (n, k), float64, descending.

    Args:
        difference: floating, finite.
        k: 1 <= k <= min(m, n).
    """
    dense: NDArray[np.float64] = difference.double().numpy()
    if 3 * k < min(dense.shape) and bool(dense.any()):
        operator = LinearOperator(dense.shape, matvec=dense.dot, rmatvec=dense.T.dot, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(min(dense.shape))
        try:
            u, s, vt = svds(operator, k=k, v0=start, tol=0)
        except ArpackError:
            s = np.zeros(0)
        if s.size == k:
            order = np.argsort(-s)
            u, s, v = u[:, order], s[order], vt[order].T
            error = max(np.abs(dense @ v - u * s).max(), np.abs(dense.T @ u - v * s).max())
            if error <= RESIDUAL * s[0]:
                return torch.from_numpy(u.copy()), torch.from_numpy(s.copy()), torch.from_numpy(v.copy())
    left, sigma, right = torch.linalg.svd(torch.from_numpy(dense), full_matrices=False)
    return left[:, :k], sigma[:k], right[:k].mT


def factors(model: FullModel, base: FullModel, module: str, rank: int) -> tuple[Tensor, Tensor, float]:
    """A (rank, n) and B (m, rank), float32, B A the best approximation of W - W_base of that rank; |W - W_base|^2."""
    new, old = model.get(module), base.get(module)
    if new.shape != old.shape:
        raise InputError(
            f"{model.folder}: {module} is {list(new.shape)}, in the base model {list(old.shape)}"
        )
    difference = new.double() - old.double()
    u, sigma, v = leading_triples(difference, min(rank, *new.shape))
    root = sigma.sqrt()
    return (v * root).mT.float(), (u * root).float(), float(difference.square().sum())
