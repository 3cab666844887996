"""A leap folded into its base model, shard by shard: never more than one shard in memory.

The sum is formed in float32 (float64 for a float64 base) and rounded once to the base's dtype. Folding leap
after leap into a bf16 base drifts; keep adapters and merge once, at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG, NOTE, AdapterCheckpoint, finite
from nextrl.checkpoints.atomic import sha256, write_bytes, write_tensors
from nextrl.checkpoints.dense import INDEX, SINGLE, FullModel
from nextrl.checkpoints.lora_settings import UNMERGEABLE, AdapterConfig, starts_at_zero
from nextrl.checkpoints.naming import module_name
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.errors import InputError, needs, shown
from nextrl.files import NoSuchFile, read_bytes, read_object, usable_path
from nextrl.leaps.base_layers import BaseLayers
from nextrl.leaps.model_card import write_card
from nextrl.leaps.provenance import leap_folder, own_card, write_provenance
from nextrl.tasks import bases
from nextrl.trajectory.full_weights import FullCheckpoint
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import FULL, Trajectory

_SMALL = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".bpe", ".codes", ".spm", ".vocab"}
"""Endings of the base's files beside the weights that belong to a model."""

_TERMS = ("license", "licence", "notice", "copying", "use_policy")
"""Beginnings of the names of the files that say on what terms a model may be used, whatever their ending."""

_OF_TRAINING = ("trainer_state.json", "*_results.json", "nextrl*.json")
"""What training leaves beside a checkpoint's weights: of another path than the merged model's."""

_TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer's chat templates beside the first (read from transformers 5.24.0, CHAT_TEMPLATE_DIR)."""

_OR_ADAPTER = ", or use --as adapter"
_MAX_EXTRA = 2**30  # bytes of a tokenizer or another small file beside the weights


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
    revision = base_revision(traj, base)
    out, folder = usable_path(out), find_base(base, revision)
    _refuse_in_place(traj, out, folder)
    model = FullModel.open(folder)
    layers = BaseLayers(model)
    changes = _changes(traj, step, weights, layers)
    changes |= _of_twins(traj, step, model, changes)
    replaced = _replacements(traj, step, layers)
    _check(traj, model, [*changes, *replaced])
    _refuse_tied(traj, layers, changes, replaced)
    # Of a model in the cache the snapshot's folder has the commit's name: what a branch's name meant at the time.
    commit = folder.name if folder.parent.name == "snapshots" else revision
    details = {"kind": "merged", "base": str(base), **(provenance or {})}
    details |= {} if commit is None else {"base_revision": commit}
    with leap_folder(out, traj) as place:
        for file in {id(f): f for f in model.places.values()}.values():
            shard = {key: _moved(key, file, changes, replaced) for key in file.entries}
            write_tensors(place / file.path.name, shard)
            del shard
        _copy_beside(folder, place)
        _check_written(place, model)
        if not own_card(out):
            write_card(place, traj, step, details, out=out)
        write_provenance(traj, step, place, details)
    return out


def _copy_beside(base: Path, place: Path) -> None:
    """Copy what belongs to the base beside its weights: configurations, tokenizer, chat templates, code, terms."""
    for extra in sorted(base.iterdir()):
        # An index beside a single file is of shards that are not this model's, and were not read.
        stale = extra.name == INDEX and (base / SINGLE).exists()
        if extra.is_file() and _of_the_model(extra) and not stale:
            write_bytes(place / extra.name, read_bytes(extra, _MAX_EXTRA))
    for template in sorted((base / _TEMPLATES).glob("*.jinja")):
        (place / _TEMPLATES).mkdir(exist_ok=True)
        write_bytes(place / _TEMPLATES / template.name, read_bytes(template, _MAX_EXTRA))


def _of_the_model(file: Path) -> bool:
    """Whether a file beside the weights belongs to the model, and not to the training that made it."""
    if any(fnmatchcase(file.name, pattern) for pattern in _OF_TRAINING):
        return False
    return file.suffix in _SMALL or file.name.lower().startswith(_TERMS)


def _check_written(folder: Path, base: FullModel) -> None:
    """Read the headers back before the folder gets its name: the base's tensors, each of its shape and dtype.

    Raises:
        InputError: transformers would not load from it what was to be written.
    """
    back = FullModel.open(folder)
    for key, file in base.places.items():
        if key not in back.places or back.places[key].entries[key] != file.entries[key]:
            raise InputError(
                f"the merged model was not written: {shown(key)} would not be what it is in the base"
            )


def base_revision(traj: Trajectory, base: str | Path) -> str | None:
    """The revision of the base model that the run was trained on, where `base` is the base that its adapters name.

    Raises:
        InputError: it is no text.
    """
    config = traj.adapter_config
    if str(base) != config.get("base_model_name_or_path") or config.get("revision") is None:
        return None
    if not isinstance(config["revision"], str):
        raise InputError(
            f"{CONFIG}: revision is {shown(config['revision'])}; set it to the base model's branch, tag or "
            "commit, or to null"
        )
    return config["revision"]


def find_base(base: str | Path, revision: str | None = None) -> Path:
    """The base model's folder: a path, a name that `nextrl eval` knows, or one in the Hugging Face cache.

    Nothing is downloaded. `tiny` is the base of `chain`, `tiny:TASK` that of another task.

    Args:
        revision: of a model in the cache, the branch, tag or commit; None for its main branch.

    Raises:
        InputError: neither.
    """
    if not isinstance(base, str | Path):
        raise InputError(f"--base {shown(base)}: must be a folder or a model's name")
    if (shipped := bases.folder(str(base))) is not None:
        return shipped
    if usable_path(base).is_dir():
        return usable_path(base)
    with needs("trl", f"a base model by its name ({base}), not its folder,"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    try:
        return Path(snapshot_download(str(base), revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        what = f"--base {base}" + (f", revision {shown(revision)} ({CONFIG} names it)" if revision else "")
        raise InputError(
            f"{what}: neither a folder nor a model in the Hugging Face cache; download it first"
        ) from error


def _changes(
    traj: Trajectory, step: int, weights: Mapping[str, LowRank], layers: BaseLayers
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
            if slot.keys.embedding or layers.turned(key, delta.shape, last.settings.transposed):
                delta = LowRank(delta.right, delta.left)
        changes[layers.stored(key)] = delta
    return changes


def _of_twins(
    traj: Trajectory, step: int, base: FullModel, changes: Mapping[str, LowRank]
) -> dict[str, LowRank]:
    """Changes of the base's tensors that full-weight checkpoints hold under a tied layer's other name.

    Raises:
        InputError: the checkpoint has a matrix of its own that the base lacks, so that a merge would lose it.
    """
    stored = next(c for c in traj.checkpoints if c.step == step)
    if not isinstance(stored, FullCheckpoint):
        return {}
    trained = stored.model
    for key in (f"{m}.weight" for m in trained.matrices()):
        if key not in base.places and trained.twin(key, trained) is None:
            raise InputError(
                f"{base.folder}: has no {key}, which the run trained ({trained.folder}): give --base the model that "
                "training started from, with this tensor in its files"
            )
    lacking = [f"{m}.weight" for m in base.matrices() if f"{m}.weight" not in trained.places]
    twins = {key: base.twin(key, trained) for key in lacking}
    return {key: changes[twin] for key, twin in twins.items() if twin is not None and twin in changes}


def _replacements(traj: Trajectory, step: int, layers: BaseLayers) -> dict[str, Callable[[], Tensor]]:
    """Base tensor key -> what reads the tensor that takes its place (modules_to_save) or is added to it (lora_bias).

    Of full weights all that is not followed takes its place, so that nothing of the training is lost.
    """
    stored = next(c for c in traj.checkpoints if c.step == step)
    if isinstance(stored, FullCheckpoint):
        return {key: partial(stored.model.tensor, key) for key in stored.not_followed(layers.model)}
    found: dict[str, Callable[[], Tensor]] = {}
    if isinstance(stored, AdapterCheckpoint):
        for key in stored.carried:
            name = module_name(key).replace(".modules_to_save", "")
            if ".lora_B" in name:
                module = name.split(".lora_B")[0]
                found[f"+{layers.stored(f'{module}.bias')}"] = partial(_bias, stored, key, module)
            else:
                found[layers.stored(name.replace(".base_layer.", "."))] = partial(stored.carried_tensor, key)
    return found


def _bias(stored: AdapterCheckpoint, key: str, module: str) -> Tensor:
    return stored.carried_tensor(key) * stored.settings.scaling(module)


def _check(traj: Trajectory, model: FullModel, keys: Iterable[str]) -> None:
    """Whether the adapter's tensors can be added to the base's: by what the base's files say, tensor by tensor."""
    last = traj.checkpoints[-1]
    if (model.folder / CONFIG).exists():
        # transformers loads the adapter on the base that it names, and so another model than the weights beside it.
        raise InputError(
            f"{model.folder}: holds an adapter ({CONFIG}) beside its weights, so which model it stands for is unclear; "
            "give --base a folder that holds the model alone"
        )
    model.refuse_quantised(_OR_ADAPTER)
    if isinstance(last, AdapterCheckpoint):
        _refuse_other_base(last.settings)
    for key in (key.removeprefix("+") for key in keys):
        if key not in model.places:
            raise InputError(
                f"{model.folder}: has no {shown(key)}, which the adapter moves; a merge needs each of these weights "
                "under the adapter's name for it: give a base that has these names, or use --as adapter"
            )
        model.refuse_codes(key, _OR_ADAPTER)


def _refuse_tied(
    traj: Trajectory, layers: BaseLayers, changes: Iterable[str], replaced: Iterable[str]
) -> None:
    """Refuse to move a tensor that is the weight of two layers, of which the adapter moves one.

    PEFT gives the layer that it adapts, or its copy in modules_to_save, a weight of its own. A tensor that is only
    saved beside the adapter (resized embeddings) is loaded into the base, and so into both layers.
    """
    last = traj.checkpoints[-1]
    if traj.layout == FULL:
        return  # its own training moved both
    saved = last.settings.raw.get("modules_to_save") if isinstance(last, AdapterCheckpoint) else None
    saved = saved if isinstance(saved, list) else []
    copies = [key for key in replaced if any(f".{key}".endswith(f".{name}.weight") for name in saved)]
    for key in [*changes, *copies]:
        if (other := layers.tied(key)) is not None:
            raise InputError(
                f"{layers.model.folder / 'config.json'}: {shown(key)}, which the adapter moves, is tied to "
                f"{shown(other)}; merging would move both: use --as adapter"
            )


def _refuse_in_place(traj: Trajectory, out: Path, base: Path) -> None:
    """Refuse to take the place of the base, and to add a leap to what it was added to before.

    Raises:
        InputError: `out` is the base, or the base is a merge of the same run or has a note that cannot be read.
    """
    if out.exists() and out.samefile(base):
        raise InputError(
            f"{out}: is the base itself, and would hold the leap twice next time; name another --out"
        )
    if Path(os.path.realpath(out)) in Path(os.path.realpath(base)).parents:
        raise InputError(f"{out}: holds the base, and would be replaced as a whole; name another --out")
    try:
        note = read_object(base / NOTE)
    except NoSuchFile:
        return
    except InputError as error:
        raise InputError(
            f"{error}; it says whether this base holds a leap of the run already, and without it nobody can tell"
        ) from error
    if note.get("kind") != "merged":
        return
    earlier = note.get("source_sha256")
    digests = set(map(str, earlier.values())) if isinstance(earlier, dict) else set()
    here = {sha256(c.file.path) for c in traj.checkpoints if isinstance(c, AdapterCheckpoint)}
    if digests & here:
        raise InputError(
            f"{base}: holds a leap of this run already ({NOTE} there says so); give --base the model that the run was "
            "trained on"
        )


def _refuse_other_base(settings: AdapterConfig) -> None:
    """Refuse an adapter whose base is not the model's stored weights."""
    init = settings.raw.get("init_lora_weights", True)
    if isinstance(init, str) and not starts_at_zero(init):
        raise InputError(
            f"{settings.path}: init_lora_weights={init!r} took B_0 A_0 out of the base when training began, so the "
            "stored base is not what the adapter adds to: use --as adapter"
        )
    for option, why in UNMERGEABLE.items():
        if settings.raw.get(option):
            raise InputError(f"{settings.path}: {option} is set ({why}): use --as adapter")


def _moved(
    key: str, file: TensorFile, changes: Mapping[str, LowRank], replaced: Mapping[str, Callable[[], Tensor]]
) -> Tensor:
    """One tensor of the merged model."""
    old = file.get(key)
    if key in replaced:  # modules_to_save, an embedding that PEFT saved beside its factors, or not followed
        own = replaced[key]()
        if own.shape != old.shape:
            raise InputError(
                f"{file.path}: {key} is {list(old.shape)}, the run's own copy {list(own.shape)}: resize the base and "
                "its config.json first, or use --as adapter"
            )
        if own.is_floating_point() != old.is_floating_point():
            raise InputError(
                f"{file.path}: {key} is {old.dtype}, the run's own copy {own.dtype}: codes and weights do not take "
                "each other's place; use --as adapter"
            )
        old = own.to(old.dtype)
    wide = torch.promote_types(old.dtype, torch.float32)
    if f"+{key}" in replaced:
        return (old.to(wide) + replaced[f"+{key}"]().to(wide)).to(old.dtype)
    if key not in changes:
        return old
    delta = LowRank(changes[key].left.to(wide), changes[key].right.to(wide)).dense()
    # Kernels of convolutions have more dimensions than their factors' product; a flat matrix is no weight of a model's.
    if delta.shape != old.shape and (old.dim() <= 2 or delta.numel() != old.numel()):
        raise InputError(f"{file.path}: {key} is {list(old.shape)}, the adapter's {list(delta.shape)}")
    new = (old.to(wide) + delta.reshape(old.shape)).to(old.dtype)
    if not finite(new):
        raise InputError(
            f"{file.path}: {key} would have NaN or Inf with the leap in it: choose a smaller alpha, or use --as adapter"
        )
    return new
