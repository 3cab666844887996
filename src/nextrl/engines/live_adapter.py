"""The LoRA adapter inside a live model: read it, write it, step along it, measure how far it moved.

Everything here acts on the active adapter's A and B only. Optimizer state, base weights and a frozen reference
adapter are never touched, and the parameters keep their identity, so Adam's moments stay attached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nextrl.engines import sharded
from nextrl.errors import InputError
from nextrl.trajectory.lowrank import LowRank

State = dict[str, Tensor]
"""PEFT state-dict name (as saved, without the adapter's name) -> tensor."""


class LiveAdapter:
    """Handle on the trainable LoRA factors of a PEFT model.

    Attributes:
        parameters: saved name -> the live parameter, in the model's order.
        pairs: module name -> (saved name of A, saved name of B, scaling).
    """

    def __init__(self, model: Any) -> None:
        """Find the active adapter.

        Raises:
            InputError: the model has no active LoRA adapter, or more than one.
        """
        # A plain transformers model has these attributes too, as methods that raise where no adapter is loaded.
        active = getattr(model, "active_adapters", None) if hasattr(model, "peft_config") else None
        names = [active] if isinstance(active, str) else [] if callable(active) else list(active or [])
        if len(names) != 1:
            raise InputError(
                f"leaps need a PEFT model with one active LoRA adapter; this model has {names or 'none'}"
            )
        sharded.refuse_flat(model)
        self._name = names[0]
        self.parameters: dict[str, nn.Parameter] = {}
        self.pairs: dict[str, tuple[str, str, float]] = {}
        for module_name, module in model.named_modules():
            self._collect(module_name, module)
        if not self.pairs:
            raise InputError(
                f"adapter '{self._name}' holds no LoRA factors: leaps work on LoRA adapters only"
            )

    def _collect(self, module_name: str, module: Any) -> None:
        for kind in ("lora_A", "lora_embedding_A"):
            holders = getattr(module, kind, None)
            if holders is None or self._name not in holders:
                continue
            other = kind.replace("_A", "_B")
            a, b = holders[self._name], getattr(module, other)[self._name]
            suffix = "" if isinstance(a, nn.Parameter) else ".weight"
            key_a, key_b = f"{module_name}.{kind}{suffix}", f"{module_name}.{other}{suffix}"
            self.parameters[key_a] = a if isinstance(a, nn.Parameter) else a.weight
            self.parameters[key_b] = b if isinstance(b, nn.Parameter) else b.weight
            self.pairs[module_name] = (key_a, key_b, float(module.scaling[self._name]))

    def read(self) -> State:
        """Copies of all factors, detached and whole, on their device and in their dtype (`sharded.read`)."""
        return sharded.read(self.parameters)

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Copy factors into the live parameters, in place; with several processes, the same ones on each.

        Raises:
            InputError: a name or shape differs; nothing was written then.
        """
        for name, p in self.parameters.items():
            if name not in state:
                raise InputError(f"the leap has no tensor for {name}: it was made from another adapter")
            if state[name].shape != (expected := sharded.shape(p)):
                raise InputError(
                    f"{name} is {tuple(expected)} in the model, {tuple(state[name].shape)} in the leap"
                )
        sharded.write(self.parameters, state)

    def displacement(self, start: State, stop: State) -> list[LowRank]:
        """`W_stop - W_start` of each adapted module, (m, n) each, from the factors alone (docs/design.md)."""
        deltas = []
        for key_a, key_b, scale in self.pairs.values():
            a0, a1, b0, b1 = (t.float() for t in (start[key_a], stop[key_a], start[key_b], stop[key_b]))
            # s (B1 A1 - B0 A0), written without the cancellation of two nearly equal products.
            left = torch.cat([(b1 - b0) * scale, b0 * scale], -1)
            # Contiguous, as a file gives it back: another layout would round the cosine otherwise after a resume.
            deltas.append(LowRank(left.contiguous(), torch.cat([a1, a1 - a0], 0).mT.contiguous()))
        return deltas


def along(start: State, stop: State, alpha: float) -> State:
    """`stop + alpha (stop - start)` of every factor: the leap inside A and B (Fast Forward, 2409.04206)."""
    return {name: torch.lerp(start[name], stop[name], 1.0 + alpha) for name in stop}


def cosine(first: Iterable[LowRank], second: Iterable[LowRank]) -> float:
    """Cosine between two displacements over all modules together; 0.0 where either did not move."""
    inner = early = late = 0.0
    for before, after in zip(first, second, strict=True):
        inner += float(before.inner(after))
        early += float(before.square)
        late += float(after.square)
    product = early * late
    return inner / product**0.5 if product > 0.0 else 0.0
