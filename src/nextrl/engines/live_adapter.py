"""The LoRA adapter inside a live model: which parameters are its factors, and what matrices they make.

Everything here acts on the active adapter's A and B only: base weights and a frozen reference adapter are never
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextrl.checkpoints.adapter import Slot, arrange, matrices, stored
from nextrl.checkpoints.lora_settings import AdapterConfig
from nextrl.checkpoints.tensorfile import DTYPES
from nextrl.engines import sharded
from nextrl.engines.live_weights import LiveWeights, State
from nextrl.errors import InputError, needs
from nextrl.leaps.leap import Leap
from nextrl.trajectory.trajectory import MEMORY


@dataclass(frozen=True)
class _Header:
    """Names, shapes and dtypes of a live adapter's parameters, as the header of its saved file would give them."""

    path: Path
    entries: Mapping[str, tuple[tuple[int, ...], torch.dtype | str]]


class LiveAdapter(LiveWeights):
    """Handle on the trainable LoRA factors of a PEFT model.

    What it refuses is what the reader of saved adapters refuses (`checkpoints.adapter.arrange`), so that a run that can
    leap while it trains can also be read from its checkpoints, and the other way round.

    Attributes:
        model: the model.
        parameters: saved name -> the live parameter, in the model's order.
        pairs: module name -> (saved name of A, saved name of B, scaling), in the model's order.
    """

    def __init__(self, model: Any) -> None:
        """Find the active adapter.

        Raises:
            InputError: the model has no active LoRA adapter or more than one, or its weights are not W_base + s B A.
        """
        self._name = _active_adapter(model)
        sharded.refuse_flat(model)
        with needs("trl", "a live adapter"):
            from peft.tuners.lora import LoraLayer
        source = Path(f"adapter '{self._name}'")
        settings = AdapterConfig.of(model.peft_config[self._name].to_dict(), source)
        layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
        found = {key: p for name, layer in layers.items() for key, p in self._saved(name, layer)}
        slots = arrange(_Header(source, {key: _entry(p) for key, p in found.items()}), settings)[1].values()
        self._slots: dict[str, list[Slot]] = {}
        for slot in slots:
            self._slots.setdefault(slot.keys.a, []).append(slot)
        parameters: dict[str, nn.Parameter] = {}
        self.pairs: dict[str, tuple[str, str, float]] = {}
        for key_a in [key for key in found if key in self._slots]:
            key_b, module = self._slots[key_a][0].keys.b, key_a.rsplit(".lora_", 1)[0]
            parameters |= {key_a: found[key_a], key_b: found[key_b]}
            self.pairs[module] = (key_a, key_b, float(layers[module].scaling[self._name]))
        super().__init__(model, parameters)

    def _saved(self, module: str, layer: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in the saved file, parameter) of everything that the adapter has in one layer."""
        for kind in layer.adapter_layer_names:
            holders = getattr(layer, kind, {})
            if self._name not in holders:
                continue
            held = holders[self._name]
            if isinstance(held, nn.Parameter):
                yield f"{module}.{kind}", held
            else:
                yield from ((f"{module}.{kind}.{name}", p) for name, p in held.named_parameters())

    def matrices(self, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, n) and B (m, r) of each adapted matrix, by module; `module[i]` where a module is a stack of experts."""
        return {
            _label(module, slot): matrices(slot, state[key_a], state[key_b])
            for module, (key_a, key_b, _) in self.pairs.items()
            for slot in self._slots[key_a]
        }

    def scalings(self) -> dict[str, float]:
        """The LoRA scaling of each adapted matrix, by the same names."""
        return {_label(m, slot): s for m, (a, _, s) in self.pairs.items() for slot in self._slots[a]}

    def frozen(self) -> dict[str, str]:
        """Which factors of each matrix are not trained, "A", "B" or "AB"; without those of which both are."""
        found: dict[str, str] = {}
        for module, (key_a, key_b, _) in self.pairs.items():
            held = "".join(s for s, k in (("A", key_a), ("B", key_b)) if not self.parameters[k].requires_grad)
            found |= {_label(module, slot): held for slot in self._slots[key_a] if held}
        return found

    def state(self, factors: Callable[[str], tuple[Tensor, Tensor]]) -> State:
        """The reverse of `matrices`, on each parameter's device and in its dtype.

        Args:
            factors: name of a matrix -> A (r, n), B (m, r).
        """
        state: State = {}
        for module, (key_a, key_b, _) in self.pairs.items():
            live = (self.parameters[key_a], self.parameters[key_b])
            parts = [factors(_label(module, slot)) for slot in self._slots[key_a]]
            a, b = stored(parts, *(sharded.shape(p) for p in live))
            state[key_a], state[key_b] = a.to(live[0]), b.to(live[1])
        return state


def _label(module: str, slot: Slot) -> str:
    return module if slot.experts == 1 else f"{module}[{slot.expert}]"


def _active_adapter(model: Any) -> str:
    """Name of the only active adapter.

    Raises:
        InputError: none is active, or several are, whose sum no single leap describes.
    """
    # A plain transformers model has these attributes too, as methods that raise where no adapter is loaded.
    active = getattr(model, "active_adapters", None) if hasattr(model, "peft_config") else None
    names = [active] if isinstance(active, str) else [] if callable(active) else list(active or [])
    if len(names) != 1:
        raise InputError(
            f"leaps need a PEFT model with one active LoRA adapter; this model has {names or 'none'}"
            + ("" if names else " (all weights: auto alone finds their rate)")
        )
    return str(names[0])


def _entry(parameter: nn.Parameter) -> tuple[tuple[int, ...], torch.dtype | str]:
    """(whole shape, dtype; its name where we do not compute with it), as a file's header gives them."""
    dtype = parameter.dtype
    return tuple(sharded.shape(parameter)), dtype if dtype in DTYPES.values() else str(dtype)


def leap_into(adapter: LiveAdapter, fitted: Leap, alpha: float) -> State:
    """The adapter after a leap of `alpha`, at its own rank, in the gauge that Adam's moments belong to."""
    chosen = replace(fitted, alpha=alpha)
    # Modules are named as in files where the trajectory was read from some, as in the model otherwise.
    if fitted.traj.layout == MEMORY:
        return adapter.state(chosen.factors)
    live = adapter.parameters
    # What several processes share has to lie where the model does: NCCL takes nothing else.
    return {name: t.to(live[name].device) if name in live else t for name, t in chosen.leap_state().items()}
