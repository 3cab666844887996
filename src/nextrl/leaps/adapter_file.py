"""From a leap to an adapter on disk: rank r in the old gauge, wider and exact, or any rank on request.

Merged models are in `merged.py`; `write_merged` is re-exported here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG, WEIGHTS, AdapterCheckpoint
from nextrl.checkpoints.atomic import write_json, write_tensors
from nextrl.checkpoints.lora_settings import starts_at_zero
from nextrl.checkpoints.naming import PEFT_PREFIX, natural
from nextrl.errors import InputError
from nextrl.leaps.merged_model import write_merged
from nextrl.leaps.provenance import claim, write_provenance
from nextrl.trajectory.lowrank import LowRank, Triples
from nextrl.trajectory.trajectory import Trajectory

__all__ = ["fit_to_rank", "write_adapter", "write_merged"]

CONDITION_LIMIT = 1e4  # beyond this, B = U S (A_old V)^-1 would be large numbers that cancel
SIGMA_FLOOR = 1e-12  # sigma below this times sigma_1 is rounding: the target does not have that direction


def fit_to_rank(
    target: LowRank, a_old: Tensor, b_old: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (A, B) of rank r whose s B A is the best rank-r approximation of `target`, near the old ones.

    The product is Eckart-Young's U S V^T whatever the gauge; the gauge is chosen so that each row of A
    (column of B) keeps the meaning that Adam's moments have for it: A = A_old V V^T (the old rows, projected
    on the new row space) and B = U S (A_old V)^-1 / s. Where A_old V is ill-conditioned, balanced factors
    sqrt(S) are rotated onto the old ones instead (orthogonal Procrustes).

    Args:
        target: (m, n) the new W - W_base (scaling included).
        a_old: (r, n) the adapter's A at T.
        b_old: (m, r) its B.
        scaling: s.

    Returns:
        A (r, n), B (m, r) in a_old's dtype (float32 for half-precision adapters, so that the leap is not
        rounded away) and the share of the target's squared norm that rank r cannot hold, a float64 scalar.
    """
    rank = a_old.shape[0]
    dtype = torch.promote_types(a_old.dtype, torch.float32)
    a_old, b_old = a_old.double(), b_old.double()
    best, discarded = target.recompress(min(rank, target.rank))
    u, sigma, v = _nonzero(best)
    if sigma.numel() == 0:
        return a_old.to(dtype), torch.zeros_like(b_old).to(dtype), discarded
    missing = min(rank, a_old.shape[1]) - sigma.numel()
    if missing > 0:  # complete the row space with what the old A spans beside it; B is zero there
        u = torch.cat([u, u.new_zeros(u.shape[0], missing)], 1)
        sigma = torch.cat([sigma, sigma.new_zeros(missing)])
        v = torch.cat([v, _rest_of_row_space(a_old, v, missing)], 1)
    mixing = a_old @ v
    square = mixing.shape[0] == mixing.shape[1]
    if square and bool(torch.linalg.cond(mixing) < CONDITION_LIMIT):
        a, b = mixing @ v.mT, torch.linalg.solve(mixing, u * sigma, left=False) / scaling
    else:
        root = sigma.sqrt()
        p, _, q = torch.linalg.svd((a_old @ v) * root + b_old.mT @ (u * root) / scaling, full_matrices=False)
        rotation = p @ q
        a, b = rotation @ (v * root).mT, (u * root) @ rotation.mT / scaling
    return a.to(dtype), b.to(dtype), discarded


def write_adapter(
    traj: Trajectory,
    step: int,
    tensors: Mapping[str, tuple[Tensor, Tensor]] | Mapping[str, LowRank],
    out: str | Path,
    rank: int | None = None,
    provenance: Mapping[str, Any] | None = None,
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
        provenance: more entries for `nextrl.json`.

    Raises:
        InputError: a module that the run does not have, rank < 1, or a folder that holds another adapter.
    """
    out = Path(out)
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank}: must be at least 1")
    if unknown := [module for module in tensors if module not in traj.modules]:
        raise InputError(f"{unknown[0]}: no such module in the run")
    claim(out)
    ranks = {m: _new_rank(traj, step, m, tensors.get(m), rank) for m in traj.modules}
    _refuse_new_rank(traj, ranks)
    config = _config(traj, _per_stored_module(traj, ranks))
    written: dict[str, tuple[Tensor, Tensor]] = {}
    lost: dict[str, float] = {}
    for module in traj.modules:
        a, b, discarded = _fit(traj, step, module, tensors.get(module), ranks[module], config)
        written[module] = (a, b)
        if discarded > 0:
            lost[module] = discarded
    write_tensors(out / WEIGHTS, _state(traj, step, written))
    write_json(out / CONFIG, config)
    details = {"kind": "adapter", "discarded_energy": max(lost.values(), default=0.0), **(provenance or {})}
    write_provenance(traj, step, out, details)
    return out


def adapter_state(
    traj: Trajectory, step: int, tensors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """PEFT state-dict names -> tensors, as `write_adapter` would store them, for loading in place."""
    filled = {m: tensors[m] if m in tensors else traj.factors(step, m) for m in traj.modules}
    return _state(traj, step, filled)


def _new_rank(
    traj: Trajectory,
    step: int,
    module: str,
    value: tuple[Tensor, Tensor] | LowRank | None,
    rank: int | None,
) -> int:
    if rank is not None:
        return rank
    if value is None:
        return traj.shape(module)[2]
    return value.left.shape[1] if isinstance(value, LowRank) else value[0].shape[0]


def _refuse_new_rank(traj: Trajectory, ranks: Mapping[str, int]) -> None:
    """PiSSA and its kind take the initial B_0 A_0 out of the base at load time, computed anew from the
    rank."""
    init = traj.adapter_config.get("init_lora_weights", True)
    if not isinstance(init, str) or starts_at_zero(init):
        return
    for module, rank in ranks.items():
        if rank != traj.shape(module)[2]:
            raise InputError(
                f"{module}: rank {traj.shape(module)[2]} cannot become {rank} with "
                f"init_lora_weights={init!r}, "
                "which ties the base model to the rank; keep the rank (a method inside the factors, or "
                "--rank)"
            )


def _per_stored_module(traj: Trajectory, ranks: dict[str, int]) -> dict[str, int]:
    """Ranks by the adapter's own modules: the experts of one stack share a tensor and so must share a
    rank."""
    stored: dict[str, int] = {}
    for module, rank in ranks.items():
        name = _stem(traj, module)
        stored[name] = max(stored.get(name, 0), rank)
    for module in ranks:
        ranks[module] = stored[_stem(traj, module)]
    return stored


def _stem(traj: Trajectory, module: str) -> str:
    last = traj.checkpoints[-1]
    return last.slots[module].keys.name if isinstance(last, AdapterCheckpoint) else module


def _config(traj: Trajectory, ranks: dict[str, int]) -> dict[str, Any]:
    """The run's `adapter_config.json` with ranks and alphas set so that every scaling stays what it was."""
    config: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, **traj.adapter_config}
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and starts_at_zero(init):
        # Weights are given, so how they once began does not matter; some ways refuse a new rank
        # ("orthogonal").
        config["init_lora_weights"] = True
    scalings = {_stem(traj, module): traj.scaling(module) for module in traj.modules}
    root = bool(config.get("use_rslora"))
    alphas = {m: _tidy(scalings[m] * (math.sqrt(r) if root else r)) for m, r in ranks.items()}
    config["r"], config["lora_alpha"] = Counter(ranks.values()).most_common(1)[0][0], _usual(alphas)
    config["rank_pattern"] = {m: r for m, r in ranks.items() if r != config["r"]}
    config["alpha_pattern"] = {m: a for m, a in alphas.items() if a != config["lora_alpha"]}
    if traj.layout == "memory" and not config.get("target_modules"):
        config["target_modules"] = sorted({m.rsplit(".", 1)[-1] for m in ranks})
    return config


def _tidy(alpha: float) -> float:
    """An int where it is one: PEFT writes lora_alpha so."""
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
    config: Mapping[str, Any],
) -> tuple[Tensor, Tensor, float]:
    """(A, B) of the wanted rank for the scaling that the written configuration will give, and lost energy."""
    a_old, b_old = traj.factors(step, module)
    scaling = _written_scaling(config, _stem(traj, module), rank)
    if value is None:
        value = (a_old, b_old)
    if isinstance(value, tuple):
        a, b = value
        if a.shape[0] == rank and scaling == traj.scaling(module):
            return a, b, 0.0
        value = LowRank(b.double() * traj.scaling(module), a.double().mT)
    if rank == a_old.shape[0]:
        a, b, discarded = fit_to_rank(value, a_old, b_old, scaling)
        return a, b, float(discarded)
    dtype = torch.promote_types(a_old.dtype, torch.float32)
    lost = 0.0
    if value.left.shape[1] > rank:
        value, discarded = value.recompress(rank)
        lost = float(discarded)
    spare = rank - value.left.shape[1]
    a = torch.cat([value.right.mT, value.right.new_zeros(spare, value.right.shape[0])])
    b = torch.cat([value.left / scaling, value.left.new_zeros(value.left.shape[0], spare)], 1)
    return a.to(dtype), b.to(dtype), lost


def _written_scaling(config: Mapping[str, Any], stem: str, rank: int) -> float:
    alpha = float(config["alpha_pattern"].get(stem, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _state(traj: Trajectory, step: int, tensors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Factors under the file's own keys and in its own shapes, with what is carried along."""
    stored = next(c for c in traj.checkpoints if c.step == step)
    if not isinstance(stored, AdapterCheckpoint):
        plain: dict[str, Tensor] = {}
        for module, (a, b) in tensors.items():
            plain[f"{PEFT_PREFIX}{module}.lora_A.weight"] = a.clone()
            plain[f"{PEFT_PREFIX}{module}.lora_B.weight"] = b.clone()
        return plain
    state = {key: stored.file.get(key) for key in stored.carried}
    by_stem: dict[str, list[str]] = {}
    for module in stored.modules:
        by_stem.setdefault(stored.slots[module].keys.name, []).append(module)
    for modules in by_stem.values():
        keys = stored.slots[modules[0]].keys
        state[keys.a], state[keys.b] = stored.join(modules, tensors)
    return {key: state[key] for key in sorted(state, key=natural)}


def _nonzero(best: LowRank) -> Triples:
    """The triples of a recompressed matrix whose sigma is not rounding."""
    roots = best.left.norm(dim=0)
    keep = (roots.square() > SIGMA_FLOOR * roots.max().square()) & (roots > 0)
    left, right = best.left[:, keep], best.right[:, keep]
    return Triples(left / roots[keep], roots[keep].square(), right / right.norm(dim=0))


def _rest_of_row_space(a_old: Tensor, v: Tensor, count: int) -> Tensor:
    """(n, count) orthonormal directions that A_old's rows span most, orthogonal to v."""
    outside = a_old - (a_old @ v) @ v.mT
    rows: Tensor = torch.linalg.svd(outside, full_matrices=False)[2][:count]
    return rows.mT
