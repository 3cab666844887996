"""All weights that a model trains, where there is no adapter, as `auto` needs them: copied, and put back.

Copies lie in the host's memory, since a GPU that trains all of a model has no room for them: up to three together with
the optimizer's state, and two more of the weights alone (docs/auto.md). No method leaps here: methods fit factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextrl.engines import sharded
from nextrl.engines.fingerprint import Fingerprint, belongs, fingerprint
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import LiveWeights, State, all_finite
from nextrl.engines.moments import unsharded
from nextrl.errors import InputError


class AllWeights(LiveWeights):
    """Handle on all parameters of a model that are trained, whole on this process.

    Args:
        model: the model.

    Raises:
        InputError: none is trained, or they lie in pieces on several processes.
    """

    def __init__(self, model: Any) -> None:
        found = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not found:
            raise InputError(
                "no parameter of this model is trained (requires_grad): there is no rate to find"
            )
        if sharded.is_flat(model) or not unsharded(found):
            raise InputError(
                "auto on all weights needs them whole on each process, and here they lie in pieces on several (FSDP, "
                "DeepSpeed ZeRO): train an adapter, or on one GPU or by DDP; in verl, pieces are no hindrance"
            )
        super().__init__(model, found)

    def read(self) -> State:
        """Copies of all of them, in the host's memory and in their dtype."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    def fingerprint(self) -> Fingerprint:
        """What tells these weights from others; summed up where they lie, and not copied."""
        return fingerprint(self.parameters)

    def belongs(self, known: Mapping[str, Any] | None) -> bool:
        """Whether a fingerprint is of these weights; looked at where they lie."""
        return belongs(known, self.parameters)

    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf in any of them; looked at where they lie, since it is at every step."""
        return all_finite(self.parameters.values())


def trained_in(model: Any) -> LiveWeights:
    """What a model trains: its adapter, or all weights where it has none.

    Raises:
        InputError: see `LiveAdapter` and `AllWeights`.
    """
    # A plain model of transformers has this attribute once an adapter is loaded into it.
    return LiveAdapter(model) if hasattr(model, "peft_config") else AllWeights(model)
