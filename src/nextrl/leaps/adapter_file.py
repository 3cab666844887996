"""From a leap to an adapter on disk, as PEFT loads it: of the run's own rank, wider and exact, or of any rank.

`rank.py` computes what rank r can hold of a leap; `merged_model.py` writes a model with the leap folded in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints import patterns
from nextrl.checkpoints.adapter import CONFIG, WEIGHTS, AdapterCheckpoint, finite
from nextrl.checkpoints.atomic import write_json, write_tensors
from nextrl.checkpoints.lora_settings import AdapterConfig, PatternNames, matched, starts_at_zero
from nextrl.checkpoints.naming import PEFT_PREFIX, carried_key, natural, saved_key
from nextrl.errors import InputError, shown
from nextrl.files import usable_path
from nextrl.leaps.base_layers import BaseLayers
from nextrl.leaps.model_card import write_card
from nextrl.leaps.provenance import leap_folder, own_card, write_provenance
from nextrl.leaps.rank import fit_to_rank
from nextrl.trajectory.full_weights import FullCheckpoint
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


def write_adapter(
    traj: Trajectory,
    step: int,
    tensors: Mapping[str, tuple[Tensor, Tensor]] | Mapping[str, LowRank],
    out: str | Path,
    rank: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> Path:
    """Write a PEFT adapter that loads with `PeftModel.from_pretrained` as it is, and `nextrl.json` beside it.

    Everything else of the adapter at `step` (modules_to_save, biases) is carried along unchanged, and so is
    every module that `tensors` does not name.

    Args:
        traj, step: the run and T; give keys, configuration and the old factors.
        tensors: module -> (A (r', n), B (m, r')) as they are to be stored, or -> LowRank (m, n), the new
            W - W_base with scaling.
        out: the folder to write.
        rank: recompress every module to this rank; None keeps (A, B) as given and a LowRank exact, so a leap
            of rank 1 beside an adapter of rank r makes rank r + 1. The scaling of each module stays the same.
        provenance: more entries for `nextrl.json`; without method and alpha it says that no leap was made.
        task: what the run was trained on, for the model card.

    Raises:
        InputError: a module that the run does not have, rank < 1, or a folder that holds another adapter.
    """
    out = usable_path(out)
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank}: must be at least 1")
    if unknown := [module for module in tensors if module not in traj.modules]:
        raise InputError(f"{unknown[0]}: no such module in the run")
    _refuse_unknown_layers(traj)
    ranks = {m: _new_rank(traj, step, m, tensors.get(m), rank) for m in traj.modules}
    _refuse_new_rank(traj, ranks)
    config = _config(traj, _per_stored_module(traj, ranks))
    settings = AdapterConfig.of(config, out / CONFIG)
    written: dict[str, tuple[Tensor, Tensor]] = {}
    lost: dict[str, float] = {}
    for module in traj.modules:
        a, b, discarded = _fit(traj, step, module, tensors.get(module), ranks[module], settings)
        if not (finite(a) and finite(b)):
            raise InputError(
                f"{module}: the leap has NaN or Inf there: choose a smaller alpha or another method"
            )
        written[module] = (a, b)
        lost[module] = _with_beyond(traj, step, module, (a, b), discarded)
    details = {
        "kind": "adapter",
        "discarded_energy": max(lost.values(), default=0.0),
        "method": "none",
        "alpha": 0.0,
    }
    details |= provenance or {}
    with leap_folder(out, traj) as folder:
        write_tensors(folder / WEIGHTS, _state(traj, step, written, clean=True))
        write_json(folder / CONFIG, config)
        _check_written(folder, traj, step, ranks)
        if not own_card(out):
            write_card(folder, traj, step, details, out=out, task=task)
        write_provenance(traj, step, folder, details)
    return out


def _with_beyond(
    traj: Trajectory, step: int, module: str, written: tuple[Tensor, Tensor], lost: float
) -> float:
    """The share that is lost of a module's squared norm, with what was left out of full weights at `step`.

    Args:
        written: A and B as they are written.
        lost: the share that recompressing lost of the factors.
    """
    beyond = traj.beyond(step, module)
    if beyond == 0.0:
        return lost
    a, b = (tensor.double() for tensor in written)
    kept = float(LowRank(b * traj.scaling(module), a.mT).square)
    return 1.0 - kept / (kept / (1.0 - lost) + beyond) if kept > 0.0 else 1.0


_WHOLE = "write the whole model, by save_merged(out, base)"


def _refuse_unknown_layers(traj: Trajectory) -> None:
    """Refuse matrices of full weights that are no weight of a linear layer, which is all that s B A is written for.

    Norms and biases are small and stay as the base has them; experts in one tensor of three dimensions are refused.
    PEFT names and turns the factors of an embedding and of a Conv1D otherwise, and has none for a router of experts.
    Files of weights do not say what a matrix belongs to, so the base's config.json is asked.
    """
    last = traj.checkpoints[-1]
    if not isinstance(last, FullCheckpoint):
        return
    left, base = (*last.left_out.squares, *last.left_out.resized, *last.left_out.unknown), last.base
    for key in left:
        if len(last.model.shape(key)) > 1:
            raise InputError(f"{key}: was trained too: this leap cannot be written as an adapter; {_WHOLE}")
    layers = BaseLayers(base, _WHOLE)
    for module in traj.modules:
        if not layers.linear(module):
            raise InputError(
                f"{module}: was trained too, and is no linear layer in the model that {base.folder / 'config.json'} "
                f"describes: this leap cannot be written as an adapter; {_WHOLE}"
            )


def _check_written(folder: Path, traj: Trajectory, step: int, ranks: Mapping[str, int]) -> None:
    """Read the adapter back before it gets its name: every module, its shape, rank and scaling, under PEFT's names.

    Raises:
        InputError: PEFT would not load from it what was to be written.
    """
    back = AdapterCheckpoint.open(step, folder)
    if set(back.modules) != set(traj.modules):
        odd = sorted(set(back.modules) ^ set(traj.modules))[0]
        raise InputError(
            f"the leap was not written: {shown(odd)} would not be the same module when it is loaded"
        )
    _refuse_passed_over(back, traj)
    _refuse_whole_names(back)
    for module in traj.modules:
        m, n, _ = traj.shape(module)
        slot = back.slots[module]
        wanted = saved_key(slot.keys.name, "A", slot.keys.embedding)
        same = math.isclose(back.scaling(module), traj.scaling(module), rel_tol=1e-6)
        if back.shape(module) != (m, n, ranks[module]) or not same or slot.keys.a != wanted:
            raise InputError(
                f"the leap was not written: {shown(module)} would be loaded as {back.shape(module)} with scaling "
                f"{back.scaling(module):g}, not as {(m, n, ranks[module])} with {traj.scaling(module):g}"
            )


def _refuse_whole_names(back: AdapterCheckpoint) -> None:
    """Refuse patterns that would say something else of a module whose outermost part got another name on loading.

    Where two modules differ in nothing but that part, only it can tell them apart.
    """
    stems = {slot.keys.name for slot in back.slots.values()}
    said = {stem: (back.settings.rank(stem), back.settings.scaling(stem)) for stem in stems}
    shared: dict[str, set[tuple[int, float]]] = {}
    for stem, value in said.items():
        for end in _ends(stem):
            shared.setdefault(end, set()).add(value)
    for stem, value in said.items():
        end = _without_its_root(stem)
        if len(shared[end]) == 1 and (back.settings.rank(end), back.settings.scaling(end)) != value:
            raise InputError(
                f"the leap was not written: rank_pattern and alpha_pattern would miss {shown(stem)} where it is called "
                "otherwise when it is loaded"
            )


def _refuse_passed_over(back: AdapterCheckpoint, traj: Trajectory) -> None:
    """Refuse modules that `target_modules`, where it is a list, does not name: PEFT would load nothing for them.

    A run on disk has the list by which PEFT made its modules; that of a run in memory came from anywhere.
    """
    named = back.settings.raw.get("target_modules")
    if not isinstance(named, list) or isinstance(traj.checkpoints[-1], AdapterCheckpoint):
        return
    for stem in _for_target_modules(back.settings.raw, {slot.keys.name for slot in back.slots.values()}):
        if not any(f".{stem}".endswith(f".{end}") for end in named):
            raise InputError(
                f"the leap was not written: target_modules ({shown(named)}) does not name {shown(stem)}, so that PEFT "
                "would pass it over; add it to adapter_config"
            )


def adapter_state(
    traj: Trajectory, step: int, tensors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """PEFT state-dict names -> tensors, as `write_adapter` would store them, for loading in place."""
    filled = {m: tensors[m] if m in tensors else traj.factors(step, m) for m in traj.modules}
    return _state(traj, step, filled)


def _new_rank(
    traj: Trajectory, step: int, module: str, value: tuple[Tensor, Tensor] | LowRank | None, rank: int | None
) -> int:
    if rank is not None:
        return rank
    if value is None:
        return traj.shape(module)[2]
    return value.left.shape[1] if isinstance(value, LowRank) else value[0].shape[0]


def _refuse_new_rank(traj: Trajectory, ranks: Mapping[str, int]) -> None:
    """PiSSA and its kind take B_0 A_0, computed anew from the rank, out of the base whenever they are loaded."""
    init = traj.adapter_config.get("init_lora_weights", True)
    if not isinstance(init, str) or starts_at_zero(init):
        return
    for module, rank in ranks.items():
        if rank != traj.shape(module)[2]:
            raise InputError(
                f"{module}: rank {traj.shape(module)[2]} cannot become {rank} with init_lora_weights={init!r}, "
                "which ties the base model to the rank; keep the rank (a method inside the factors, or --rank)"
            )


def _per_stored_module(traj: Trajectory, ranks: dict[str, int]) -> dict[str, int]:
    """Ranks by the adapter's own modules: the experts of one stack share a tensor and so must share a rank.

    Stacks of one module share it too: a rank can be given only to a parameter, and which of them a stack is is unknown.
    """
    shared: dict[tuple[str, ...], int] = {}
    stems = {module: _stem(traj, module) for module in ranks}
    names_of = PatternNames(traj.adapter_config)
    names = {stem: names_of(stem) for stem in stems.values()}
    for module, rank in ranks.items():
        group = names[stems[module]]
        shared[group] = max(shared.get(group, 0), rank)
    for module in ranks:
        ranks[module] = shared[names[stems[module]]]
    return {stem: shared[group] for stem, group in names.items()}


def _stem(traj: Trajectory, module: str) -> str:
    last = traj.checkpoints[-1]
    return last.slots[module].keys.name if isinstance(last, AdapterCheckpoint) else module


def _config(traj: Trajectory, ranks: dict[str, int]) -> dict[str, Any]:
    """The run's `adapter_config.json` with ranks and alphas set so that every scaling stays what it was."""
    config: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, **traj.adapter_config}
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and starts_at_zero(init):
        # The weights are given, so how they once began does not matter; "orthogonal" would refuse a new rank.
        config["init_lora_weights"] = True
    scalings = {_stem(traj, module): traj.scaling(module) for module in traj.modules}
    root = bool(config.get("use_rslora"))
    alphas = {m: _tidy(scalings[m] * (math.sqrt(r) if root else r)) for m, r in ranks.items()}
    config["r"], config["lora_alpha"] = Counter(ranks.values()).most_common(1)[0][0], _usual(alphas)
    names_of = PatternNames(config)
    for key, usual, values in (("rank_pattern", "r", ranks), ("alpha_pattern", "lora_alpha", alphas)):
        named = {name: value for m, value in values.items() for name in names_of(m)}
        config[key] = _pattern(named, config[usual], config.get(key) or {})
    if not config.get("target_modules"):
        # Without them PEFT takes its own for this kind of model, and passes over the tensors of all others. Whole
        # names: the model may have other modules that end in the same part.
        config["target_modules"] = sorted(_for_target_modules(config, ranks), key=natural)
    return config


def _pattern(values: Mapping[str, float], usual: float, own: Iterable[str]) -> dict[str, float]:
    """Keys of `rank_pattern` or `alpha_pattern` that give each name its value, in the order in which PEFT tries them.

    PEFT and transformers give some models' modules other names than the file's as they load it, another beginning most
    of all ("language_model.model.layers.0" is "model.language_model.layers.0"). So the run's own keys are kept where
    they still say it, since its checkpoints load by them; others are the ends of names, as short as they can be.

    Args:
        values: name -> its value, of all that PEFT asks for.
        usual: the value of names that no key matches.
        own: the run's keys.
    """
    odd = {name: value for name, value in values.items() if value != usual}
    if not odd:
        return {}
    if kept := _kept(values, usual, own):
        return kept
    ends: dict[str, set[float]] = {}
    for name, value in values.items():
        for end in _ends(name):
            ends.setdefault(end, set()).add(value)
    return {next((end for end in _ends(name) if len(ends[end]) == 1), name): odd[name] for name in odd}


def _kept(values: Mapping[str, float], usual: float, own: Iterable[str]) -> dict[str, float]:
    """The run's own keys with the values that they have to give now; none where they cannot give them."""
    table, short = [(patterns.suffix(key), key) for key in own], [*map(_without_its_root, values)]
    patterns.refuse_slow(own, short, CONFIG)
    kept = {"": usual}
    for (name, value), end in zip(values.items(), short, strict=True):
        key = matched(table, name, "")
        if key != matched(table, end, "") or kept.setdefault(key, value) != value:
            return {}
    return {key: kept[key] for key in own if key in kept}


def _ends(name: str) -> list[str]:
    """The ends of a module's name, part by part, the shortest first and the name itself last."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _without_its_root(name: str) -> str:
    """A name without its outermost part; one of fewer than three parts as it is, which has no layers inside a model."""
    return name.partition(".")[2] if name.count(".") > 1 else name


def _for_target_modules(config: Mapping[str, Any], stems: Iterable[str]) -> list[str]:
    """Those of the adapter's own modules that `target_modules` has to name, since no `target_parameters` does."""
    names_of = PatternNames(config)
    return [stem for stem in stems if stem in names_of(stem)]


def _tidy(alpha: float) -> float:
    """A whole number as an int, since PEFT writes lora_alpha so."""
    near = round(alpha)
    return near if near > 0 and abs(alpha - near) <= 1e-9 * near else alpha


def _usual(alphas: dict[str, float]) -> float:
    return Counter(alphas.values()).most_common(1)[0][0]


def _fit(
    traj: Trajectory,
    step: int,
    module: str,
    value: tuple[Tensor, Tensor] | LowRank | None,
    rank: int,
    config: AdapterConfig,
) -> tuple[Tensor, Tensor, float]:
    """(A, B) of the wanted rank for the scaling that the written configuration will give, and lost energy."""
    scaling = config.scaling(_stem(traj, module))
    if value is None:
        value = traj.factors(step, module)
    if isinstance(value, tuple):
        a, b = value
        if a.shape[0] == rank and scaling == traj.scaling(module):
            return a, b, 0.0
        value = LowRank(b.double() * traj.scaling(module), a.double().mT)
    a_old, b_old = traj.factors(step, module)
    if rank == a_old.shape[0]:
        fit = fit_to_rank(value, a_old, b_old, scaling)
        return fit.a, fit.b, fit.lost
    dtype = torch.promote_types(a_old.dtype, torch.float32)
    lost = 0.0
    if value.left.shape[1] > rank:
        value, discarded = value.recompress(rank)
        lost = float(discarded)
    spare = rank - value.left.shape[1]
    a = torch.cat([value.right.mT, value.right.new_zeros(spare, value.right.shape[0])])
    b = torch.cat([value.left / scaling, value.left.new_zeros(value.left.shape[0], spare)], 1)
    return a.to(dtype), b.to(dtype), lost


def _state(
    traj: Trajectory, step: int, tensors: Mapping[str, tuple[Tensor, Tensor]], *, clean: bool = False
) -> dict[str, Tensor]:
    """Factors in the file's own shapes, with what is carried along.

    Args:
        clean: under the keys from which PEFT loads, whatever a wrapper (FSDP, torch.compile) made of them; else under
            the file's own, which are those of the model that is being trained.
    """
    stored = next(c for c in traj.checkpoints if c.step == step)
    if not isinstance(stored, AdapterCheckpoint):
        plain: dict[str, Tensor] = {}
        for module, (a, b) in tensors.items():
            plain[f"{PEFT_PREFIX}{module}.lora_A.weight"] = a.clone()
            plain[f"{PEFT_PREFIX}{module}.lora_B.weight"] = b.clone()
        return plain
    state = {carried_key(key) if clean else key: stored.carried_tensor(key) for key in stored.carried}
    by_stem: dict[str, list[str]] = {}
    for module in stored.modules:
        by_stem.setdefault(stored.slots[module].keys.name, []).append(module)
    for modules in by_stem.values():
        keys = stored.slots[modules[0]].keys
        names = (keys.a, keys.b)
        if clean:
            names = (saved_key(keys.name, "A", keys.embedding), saved_key(keys.name, "B", keys.embedding))
        state |= zip(names, stored.join(modules, tensors), strict=True)
    return {key: state[key] for key in sorted(state, key=natural)}
