"""Full-weight checkpoints (no LoRA): the tensors of a model's folder, and the exact leading triples of a delta.

`RUN/checkpoint-N/model.safetensors` (or sharded with `model.safetensors.index.json`) as transformers 5.24.0
writes it. The leading k triples come from Lanczos (`scipy.sparse.linalg.svds`, ARPACK) on the difference and are
accepted only if |D v - sigma u| and |D^T u - sigma v| are below RESIDUAL * sigma_1; otherwise LAPACK decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, svds
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG, LARGEST, finite
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.errors import InputError, shown
from nextrl.files import read_json, read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RESIDUAL = 1e-7
_FOLDER = re.compile(r"^(?:checkpoint-|global_step_?)(\d+)(?:_hf)?$")


def holds_full_model(folder: Path) -> bool:
    """Whether a folder holds all weights of a model, and no adapter."""
    if (folder / CONFIG).exists() or any(folder.glob("adapter_model.*")):
        return False
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def find(run: Path) -> dict[int, Path]:
    """step -> folder of every full-weight checkpoint of `run`."""
    return {step: folder for step, folder in numbered(run, _FOLDER)[0] if holds_full_model(folder)}


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

    def floats(self) -> list[str]:
        """Whole names of the tensors of floats: weights, and no buffers of positions and the like."""
        return [key for key, f in self.places.items() if isinstance(f.entries[key][1], torch.dtype)]

    def refuse_quantised(self, otherwise: str = "") -> None:
        """Refuse a model whose configuration says that it holds codes.

        Args:
            otherwise: what else a user can do, as the end of a sentence.
        """
        path = self.folder / "config.json"
        config = read_object(path) if path.exists() else {}
        if config.get("quantization_config"):
            raise InputError(
                f"{path}: the model is quantised (quantization_config), and codes are no weights: give its "
                f"unquantised weights{otherwise}"
            )

    def refuse_codes(self, key: str, otherwise: str = "") -> None:
        """Refuse a tensor, by its whole name, that holds no float weights; `otherwise` as above."""
        dtype = self.places[key].entries[key][1]
        if not isinstance(dtype, torch.dtype):
            raise InputError(
                f"{self.places[key].path}: {key} is stored as {dtype}, which are codes and no weights: give the "
                f"model's float weights{otherwise}"
            )

    def get(self, module: str) -> Tensor:
        """The stored weight of one module.

        Raises:
            InputError: as `tensor`, or it is stored in codes.
        """
        key = f"{module}.weight"
        if key in self.places:
            self.refuse_codes(key)
        return self.tensor(key)

    def tensor(self, key: str) -> Tensor:
        """A stored tensor by its whole name.

        Raises:
            InputError: there is none, or a value of it is NaN or Inf.
        """
        if key not in self.places:
            raise InputError(f"{self.folder}: has no weight {key}; is it a checkpoint of the same model?")
        tensor = self.places[key].get(key)
        if tensor.is_floating_point() and not finite(tensor):
            broken = f"a weight beyond {LARGEST:.0e}" if bool(tensor.isfinite().all()) else "NaN or Inf"
            raise InputError(
                f"{self.places[key].path}: {broken} in {key}: look at what training did there, and leave the "
                "checkpoint out"
            )
        return tensor

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a stored tensor, from the header."""
        return self.places[key].entries[key][0]


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


def factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, n) and B (m, rank), float32, with B A the best approximation of a difference (m, n) of that rank."""
    u, sigma, v = leading_triples(difference, min(rank, *difference.shape))
    root = sigma.sqrt()
    return (v * root).mT.float(), (u * root).float()
