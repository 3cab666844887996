"""One LoRA adapter folder as a checkpoint: factors of each module, read on demand.

Every layout (TRL, verl, OpenRLHF, ours) ends in such folders, `adapter_config.json` beside
`adapter_model.safetensors`, as PEFT's `save_pretrained` writes them (read from peft 0.21.2); the layouts only
differ in where they put them. This file knows nothing of runs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nextrl.checkpoints.lora_settings import AdapterConfig
from nextrl.checkpoints.naming import KeyMap, ModuleKeys, sort_out
from nextrl.checkpoints.run import Problem
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.errors import InputError, shown
from nextrl.files import MAX_CONFIG, NoSuchFile, is_number, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
LARGEST = 1e15
"""Of a weight. Weights of models are near 1; products of four beyond this leave the range of float64 in sums."""

MAX_EXPERTS = 4096
"""In one stack of PEFT's `target_parameters`; the largest models have some hundreds."""
NOTE = "nextrl.json"
"""What nextrl writes beside an adapter of its own making (`leaps.provenance`)."""


@dataclass(frozen=True)
class Slot:
    """One matrix of the trajectory inside the stored tensors.

    Attributes:
        keys: where A and B lie.
        expert, experts: for PEFT's `target_parameters` on a stack of experts, which of how many this is.
    """

    keys: ModuleKeys
    expert: int = 0
    experts: int = 1


@dataclass(frozen=True)
class AdapterCheckpoint:
    """The adapter in `folder` as the run's state after `step` optimizer steps.

    Opening checks the configuration and the header; values are read (and checked for NaN and Inf) by `factors`.

    Attributes:
        step: optimizer steps done when it was written.
        folder: the adapter's folder.
        settings: its `adapter_config.json`.
        file: its tensors.
        slots: name of each adapted matrix -> where its A and B lie in `file`; in natural order.
        carried: names of the tensors in `file` that belong to no A or B.
        shapes: name of each adapted matrix -> (m, n, r).
    """

    step: int
    folder: Path
    settings: AdapterConfig
    file: TensorFile
    slots: Mapping[str, Slot]
    carried: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        step: int,
        folder: Path,
        *,
        overrides: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
    ) -> AdapterCheckpoint:
        """Open one adapter folder; `overrides` replace fields of its `adapter_config.json`.

        Raises:
            InputError: a missing or truncated file, a pickle that is not allowed, an adapter that is not
                linear, factors that do not fit together.
        """
        _say_where_it_lies(folder)
        settings = AdapterConfig.read(folder / CONFIG, overrides)
        file = TensorFile(weights_path(folder), allow_pickle=allow_pickle)
        keys, slots, shapes = arrange(file, settings)
        return cls(step, folder, settings, file, slots, keys.carried, shapes)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the adapted matrices, in natural order."""
        return tuple(self.slots)

    def shape(self, module: str) -> tuple[int, int, int]:
        """(m, n, r) of one module."""
        return self.shapes[module]

    def scaling(self, module: str) -> float:
        """The scaling s of one module."""
        return self.settings.scaling(self.slots[module].keys.name)

    @property
    def starts_at_zero(self) -> bool:
        """Whether W_0 equals the base model by construction."""
        return self.settings.starts_at_zero

    def factors(self, module: str, *, check: bool = True) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r) in the stored dtype.

        Raises:
            InputError: a value is NaN or Inf (`check`).
        """
        a, b = self.split(
            module, self.file.get(self.slots[module].keys.a), self.file.get(self.slots[module].keys.b)
        )
        if check:
            self._refuse_broken(module, a, b)
        return a, b

    def broken_values(self) -> Problem | None:
        """The first tensor with a NaN or Inf, as a problem; None if all values are finite. Reads everything once."""
        try:
            for module in self.modules:
                self.factors(module)
            for key in self.carried:
                self.carried_tensor(key)
        except InputError as error:
            return Problem(self.file.path, str(error), self.step)
        return None

    def carried_tensor(self, key: str) -> Tensor:
        """A tensor that belongs to no A or B, as it is stored.

        Raises:
            InputError: a value is NaN or Inf.
        """
        tensor = self.file.get(key)
        if tensor.is_floating_point():
            self._refuse_broken(shown(key), tensor)
        return tensor

    def _refuse_broken(self, name: str, *tensors: Tensor) -> None:
        for tensor in tensors:
            if not finite(tensor):
                raise InputError(
                    f"{self.file.path}: {broken(tensor)} in {name}; this step of the run is broken: leave the "
                    "checkpoint out (--skip-bad-checkpoints) and look at what training did there"
                )

    def split(self, module: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The module's part of the stored tensors as two matrices (expert stacks cut, convolutions flattened)."""
        return matrices(self.slots[module], a, b)

    def join(
        self, modules: Sequence[str], tensors: Mapping[str, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The reverse of `split`: the stored A and B of modules that share them (all experts of a stack)."""
        keys = self.slots[modules[0]].keys
        shapes = (self.file.entries[keys.a][0], self.file.entries[keys.b][0])
        return stored([tensors[module] for module in modules], *shapes)

    def dtypes_of(self, module: str) -> tuple[torch.dtype, torch.dtype]:
        """The stored dtypes of A and of B, from the header."""
        keys = self.slots[module].keys
        stored_a, stored_b = (self.file.entries[key][1] for key in (keys.a, keys.b))
        assert isinstance(stored_a, torch.dtype)  # `open` refuses factors that cannot be computed with
        assert isinstance(stored_b, torch.dtype)
        return stored_a, stored_b

    @functools.cached_property
    def dtypes(self) -> frozenset[str]:
        """Names of all factors' dtypes ("bfloat16")."""
        found = {dtype for module in self.slots for dtype in self.dtypes_of(module)}
        return frozenset(str(dtype).removeprefix("torch.") for dtype in found)


def leapt(folder: Path) -> bool:
    """Whether a leap wrote the adapter in a folder, by the note beside it; the adapter itself may be damaged.

    Raises:
        InputError: the note is damaged, or is none.
    """
    if not folder.is_dir():
        return False
    path = folder / NOTE
    try:
        note = read_json(path, MAX_CONFIG)
    except NoSuchFile:
        return False
    method, alpha = (note.get("method"), note.get("alpha")) if isinstance(note, dict) else (None, None)
    if not isinstance(method, str) or not is_number(alpha):
        raise InputError(
            f"{path}: does not say by method and alpha whether a leap wrote the adapter beside it, as nextrl does; "
            "restore it, or remove it where training wrote the adapter"
        )
    # `none` and alpha 0 stay where the run was: their adapter is a checkpoint like any other.
    return alpha != 0 and method != "none"


class Header(Protocol):
    """The tensors of an adapter by name, shape and dtype, in a file or in a live model.

    Attributes:
        path: where they are, for messages.
        entries: name -> (shape, dtype; a string where it is none of ours).
    """

    @property
    def path(self) -> Path: ...

    @property
    def entries(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype | str]]: ...


def arrange(
    header: Header, settings: AdapterConfig
) -> tuple[KeyMap, dict[str, Slot], dict[str, tuple[int, int, int]]]:
    """Which tensors belong to which matrix: (all names sorted out, label -> slot, label -> (m, n, r)).

    The one place that says whether an adapter's tensors are `W_base + s B A`, for files and for live models.

    Raises:
        InputError: they are not, or do not fit together or to the configuration.
    """
    keys = sort_out(header.entries)
    _refuse(header.path, keys)
    for key, (shape, _) in header.entries.items():
        if 0 in shape:
            raise InputError(
                f"{header.path}: {shown(key)} is empty ({list(shape)}), as DeepSpeed ZeRO-3 leaves parameters that "
                "were not gathered before saving; save it again with stage3_gather_16bit_weights_on_model_save"
            )
    settings.check_patterns(keys.modules)
    slots: dict[str, Slot] = {}
    shapes: dict[str, tuple[int, int, int]] = {}
    for name, entry in keys.modules.items():
        rows, columns, rank, experts = _measure(header, entry, settings)
        for expert in range(experts):
            label = name if experts == 1 else f"{name}[{expert}]"
            slots[label] = Slot(entry, expert, experts)
            shapes[label] = (rows, columns, rank)
    return keys, slots, shapes


def matrices(slot: Slot, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A (r, n) and B (m, r) of one matrix from the stored tensors (expert stacks cut, convolutions flattened)."""
    if slot.experts == 1:
        return a.flatten(1), b.flatten(1)
    # peft's ParamWrapper: A is (experts * r, n), B is (m, r * experts) with the expert index running fastest.
    stack_a = a.reshape(slot.experts, -1, a.shape[1])
    stack_b = b.reshape(b.shape[0], -1, slot.experts)
    return stack_a[slot.expert], stack_b[:, :, slot.expert]


def stored(
    parts: Sequence[tuple[Tensor, Tensor]], shape_a: Sequence[int], shape_b: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The reverse of `matrices`: A and B as they are stored, from those of each expert (or of the one matrix).

    Args:
        shape_a, shape_b: of the stored tensors; the rank may be another now.
    """
    a, b = parts[0]
    if len(parts) > 1:
        stack_a = torch.stack([part[0] for part in parts])
        stack_b = torch.stack([part[1] for part in parts], -1)
        return stack_a.flatten(0, 1), stack_b.flatten(1)
    return a.reshape(-1, *shape_a[1:]), b.reshape(shape_b[0], -1, *shape_b[2:])


def _say_where_it_lies(folder: Path) -> None:
    """Refuse, with the way out, an adapter that PEFT saved under a name of its own, and one in shards.

    Raises:
        InputError: it is one of the two.
    """
    if not (folder / CONFIG).exists() and (named := sorted(folder.glob(f"*/{CONFIG}"))):
        inner = " and ".join(path.parent.name for path in named[:3])
        raise InputError(
            f"{folder}: holds no adapter itself, but in {inner} (PEFT saves an adapter that is not named default so): "
            f'give a JSON file that names the folder of each step, like {{"10": "{named[0].parent}"}}'
        )
    if (folder / f"{WEIGHTS}.index.json").exists() and not weights_path(folder).exists():
        raise InputError(
            f"{folder}: its adapter is in shards ({WEIGHTS}.index.json), which PEFT does not load; save it as one "
            f"{WEIGHTS}"
        )


def weights_path(folder: Path) -> Path:
    """The adapter's tensors: safetensors if there, else the pickle if there, else the name that is missing."""
    safe, pickle = folder / WEIGHTS, folder / PICKLE
    return pickle if pickle.exists() and not safe.exists() else safe


def finite(t: Tensor) -> bool:
    """No NaN, no Inf, nothing beyond `LARGEST`: asked of the two extremes (NaN propagates through both)."""
    if t.numel() == 0:
        return True
    # In float64: in float16 the bound itself would be Inf, and Inf within it.
    low, high = torch.stack(torch.aminmax(t)).double().tolist()
    return bool(low >= -LARGEST and high <= LARGEST)


def broken(*tensors: Tensor) -> str:
    """What is wrong with values that are not `finite`, in words."""
    return (
        f"a weight beyond {LARGEST:.0e}" if all(bool(t.isfinite().all()) for t in tensors) else "NaN or Inf"
    )


def _refuse(path: Path, keys: KeyMap) -> None:
    for module, parameter in keys.refused.items():
        raise InputError(f"{path}: {module} has {parameter}: its weight is not W_base + s B A: not supported")
    if keys.twice:
        raise InputError(
            f"{path}: {shown(keys.twice[0])} is there twice under two names; save the adapter again"
        )
    if keys.halves:
        raise InputError(
            f"{path}: {keys.halves[0]} has only one of lora_A and lora_B; write the checkpoint again"
        )
    if not keys.modules:
        raise InputError(f"{path}: holds no lora_A and lora_B tensors; is this a LoRA adapter?")


def _measure(file: Header, keys: ModuleKeys, settings: AdapterConfig) -> tuple[int, int, int, int]:
    """(m, n, r, experts) of one module from the header; checks that A, B and the configuration agree."""
    (shape_a, type_a), (shape_b, type_b) = file.entries[keys.a], file.entries[keys.b]
    for key, kind in ((keys.a, type_a), (keys.b, type_b)):
        if isinstance(kind, str):
            raise InputError(
                f"{file.path}: {key} is {kind}; float16, bfloat16, float32 and float64 can be read"
            )
    width = shape_b[1] if len(shape_b) > 1 else 0
    if len(shape_a) < 2 or shape_a[0] != width or any(extent != 1 for extent in shape_b[2:]):
        raise InputError(
            f"{file.path}: {keys.name} has A {list(shape_a)} and B {list(shape_b)}: they do not fit"
        )
    columns = 1
    for extent in shape_a[1:]:
        columns *= extent
    rank = settings.rank(keys.name)
    if width == rank:
        return shape_b[0], columns, rank, 1
    if width % rank == 0 and settings.raw.get("target_parameters"):
        if width // rank > MAX_EXPERTS:
            raise InputError(
                f"{file.path}: {keys.name} has rank {width}, {settings.path.name} says {rank}: {width // rank} experts "
                f"in one stack, {MAX_EXPERTS} at most; correct r"
            )
        return shape_b[0], columns, rank, width // rank
    raise InputError(
        f"{file.path}: {keys.name} has rank {width}, {settings.path.name} says {rank}; "
        "the two are from different runs, or rank_pattern is missing"
    )
