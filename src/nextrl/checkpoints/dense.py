"""Full-weight checkpoints (no LoRA): the tensors of a model's folder, and the exact leading triples of a delta.

`RUN/checkpoint-N/model.safetensors` (or sharded with `model.safetensors.index.json`) as transformers 5.24.0
writes it. The leading k triples come from Lanczos (`scipy.sparse.linalg.svds`, ARPACK) on the difference and are
accepted only if |D v - sigma u| and |D^T u - sigma v| are below RESIDUAL * sigma_1; otherwise LAPACK decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, svds
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG, broken, finite
from nextrl.checkpoints.layouts import folders
from nextrl.checkpoints.layouts.listing import TRAINER_FOLDER, numbered
from nextrl.checkpoints.run import Problem, repeated
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.errors import InputError, shown
from nextrl.files import MAX_CONFIG, read_json, read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RESIDUAL = 1e-7
READ_BY = "nextrl analyze RUN --base MODEL reads full weights"
"""The way out for who has given full weights where an adapter is read, as a clause."""

_NAMES = (
    TRAINER_FOLDER,
    re.compile(r"^global_step_(\d+)$"),
    re.compile(r"^global_step(\d+)_hf$"),
    re.compile(r"^global_step(\d+)$"),
    re.compile(r"^(?:step|iter)[-_]?(\d+)(?:_hf)?$"),
)
"""How trainers name the folder of a step; the first group is the step."""

_PLAIN = re.compile(r"^(\d+)(?:_hf)?$")

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of transformers' causal language models, the second that of GPT-2's kind."""


def holds_full_model(folder: Path) -> bool:
    """Whether a folder holds all weights of a model, and no adapter."""
    if (folder / CONFIG).exists() or any(folder.glob("adapter_model.*")):
        return False
    return (folder / SINGLE).exists() or (folder / INDEX).exists()


def _holds_adapter(folder: Path) -> bool:
    """Whether an adapter's configuration is in the folder of a step, or up to two levels below it."""
    return any(any(folder.glob(f"{above}{CONFIG}")) for above in ("", "*/", "*/*/"))


def model_in(folder: Path) -> Path | None:
    """The whole model in the folder of a step; None where there is none.

    It is the folder itself, what verl 0.9.1 saves in it with `save_contents=[hf_model]` (actor/huggingface), or the
    folder that verl's merger was told to write, whatever its name. A critic is no policy, and beside an adapter a whole
    model is not what was trained.
    """
    if _holds_adapter(folder):
        return None
    merged = (path for path in sorted(folder.glob("*/")) if not path.name.startswith("critic"))
    usual = (folder, folder / "actor" / "huggingface", folder / "huggingface")
    return next((path for path in (*usual, *merged) if holds_full_model(path)), None)


def find(run: Path | Mapping[int, Path]) -> dict[int, Path]:
    """step -> folder of the model of every full-weight checkpoint of a run. Takes and raises as `located`."""
    return located(run)[0]


def located(run: Path | Mapping[int, Path]) -> tuple[dict[int, Path], list[Problem]]:
    """step -> folder of the model of every full-weight checkpoint of a run, and what is wrong with others.

    Args:
        run: its directory, or a JSON file or a mapping of steps and folders; of these two all folders are taken.

    Raises:
        InputError: it cannot be listed, or holds checkpoints under two kinds of names.
    """
    if isinstance(run, Mapping) or run.is_file():
        listed = folders.listed(run) if isinstance(run, Mapping) else folders.read_list(run)
        return _sorted_out([(where.step, where.folder) for where in listed.located], [])
    # A bare number beside a trainer's own names is no checkpoint of it.
    kinds = [kind for name in _NAMES if (kind := _sorted_out(*numbered(run, name)))[0]]
    kinds = kinds or [_sorted_out(*numbered(run, _PLAIN))]
    if len(kinds) > 1:
        one, other = (next(iter(models.values())) for models, _ in kinds[:2])
        raise InputError(
            f"{run}: holds full weights under two kinds of names, {one} and {other}: move one kind away"
        )
    return kinds[0] if kinds[0][0] else ({}, [])


def _sorted_out(
    places: Iterable[tuple[int, Path]], problems: Sequence[Problem]
) -> tuple[dict[int, Path], list[Problem]]:
    """Folders of steps as models, and those that hold none as problems beside the given ones."""
    models: dict[int, Path] = {}
    found = list(problems)
    for step, folder in places:
        if (model := model_in(folder)) is not None:
            models[step] = model
        else:
            found.append(Problem(folder, _no_model(folder), step))
    return models, found + repeated(
        {step: list(model.glob("*.safetensors")) for step, model in models.items()}
    )


def _no_model(folder: Path) -> str:
    """Why a whole model cannot be read from the folder of a step, and what to do."""
    if pickled := _pickled(folder):
        return pickled
    if _holds_adapter(folder):
        return f"{folder}: holds an adapter, beside which a whole model is not what was trained; move one of them away"
    if (folder / SINGLE).is_symlink():
        return f"{folder / SINGLE}: a link that points nowhere; restore the file"
    if any(folder.glob("model-*-of-*.safetensors")):
        return f"{folder}: holds a model's shards without {INDEX}; restore it"
    return f"{folder}: holds neither {SINGLE} nor {INDEX}; restore the model, or move the folder away"


def no_adapter(folder: Path) -> str | None:
    """Why a folder that should hold an adapter has none, where it holds a whole model; None where it does not."""
    if _holds_adapter(folder):
        return None
    if (model := model_in(folder)) is not None:
        return f"{model}: a whole model, and no adapter: all weights were trained; {READ_BY}"
    return f"{pickled}; {READ_BY}" if (pickled := _pickled(folder)) else None


def _pickled(folder: Path) -> str | None:
    """What to do with a whole model that is there as a pickle only; None where there is none."""
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (folder / name).exists():
            return (
                f"{folder / name}: a whole model as a pickle, which is not read: save it as {SINGLE} "
                "(save_pretrained writes that)"
            )
    return None


def nothing(run: Path | Mapping[int, Path]) -> str:
    """Why no full weights were found in `run`, and what to do."""
    if not isinstance(run, Mapping):
        places = [folder for pattern in _NAMES for _, folder in numbered(run, pattern)[0]]
        if pickled := next(filter(None, map(_pickled, places)), None):
            return pickled
    return (
        f"{run}: no full-weight checkpoints found; give the directory of folders checkpoint-N, global_step_N, "
        f"global_stepN_hf, step_N or iter_N that hold {SINGLE} or its shards"
    )


def adapter_settings(base: str | Path) -> dict[str, Any]:
    """What `adapter_config.json` has to say of an adapter of full weights: the base, and its task where that is known.

    Args:
        base: folder of the model that training started from.

    Raises:
        InputError: its config.json cannot be read.
    """
    path = Path(base) / "config.json"
    built = read_object(path, MAX_CONFIG).get("architectures") if path.exists() else None
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

    def floats(self) -> list[str]:
        """Whole names of the tensors of floats: weights, and no buffers of positions and the like."""
        return [key for key, f in self.places.items() if isinstance(f.entries[key][1], torch.dtype)]

    def twin(self, key: str, other: FullModel) -> str | None:
        """Another tensor with the very values of `key`, which `other` has: one that tied layers share, stored twice."""
        file = self.places[key]
        alike = [k for k, f in self.places.items() if k in other.places and f.entries[k] == file.entries[key]]
        return next(
            (k for k in alike if k != key and torch.equal(self.places[k].get(k), file.get(key))), None
        )

    def resized(self, key: str, base: FullModel) -> bool:
        """Whether a tensor has another number of rows than the base's, as embeddings of a resized vocabulary have."""
        new, old, numbered_layer = self.shape(key), base.shape(key), any(map(str.isdecimal, key.split(".")))
        return not numbered_layer and len(new) == len(old) and new != old and new[1:] == old[1:]

    def refuse_quantised(self, otherwise: str = "") -> None:
        """Refuse a model whose configuration says that it holds codes.

        Args:
            otherwise: what else a user can do, as the end of a sentence.
        """
        path = self.folder / "config.json"
        config = read_object(path, MAX_CONFIG) if path.exists() else {}
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
            raise InputError(
                f"{self.places[key].path}: {broken(tensor)} in {key}: look at what training did there, and leave the "
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
