"""verl's worker with copies of what it trains: what the driver asks of each process that holds a part of the actor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.device import get_torch_device
from verl.workers.engine_workers import ActorRolloutRefWorker

from nextrl.engines.verl.shards import Shards


class LeapWorker(ActorRolloutRefWorker):
    """An actor whose weights can be moved where they lie."""

    @cached_property
    def _shards(self) -> Shards:
        engine = self.actor.engine
        # workers/engine/fsdp/transformer_impl.py: bfloat16 unless mixed_precision says otherwise
        dtype = engine._autocast_dtype
        return Shards(engine.module, engine.optimizer, engine.lr_scheduler, dtype, engine.device_mesh)

    def _nextrl(self, forgotten: Sequence[int], call: str, *arguments: Any) -> Any:
        """Do something with this process's shards.

        Args:
            forgotten: copies that the driver needs no longer.
            call: method of `Shards`.
            arguments: the method's; `{world}` and `{rank}` in a text become this process's.
        """
        _wait_for_device()
        self._shards.drop(forgotten)
        world, rank = os.environ["WORLD_SIZE"], os.environ["RANK"]
        # No `format`: a folder of the user's may have braces in its name.
        own = [
            a.replace("{world}", world).replace("{rank}", rank) if isinstance(a, str) else a
            for a in arguments
        ]
        return getattr(self._shards, call)(*own)

    nextrl: Any = register(dispatch_mode=Dispatch.ONE_TO_ALL)(_nextrl)


def _wait_for_device() -> None:
    """Let what is under way on the device come to its end.

    With `param_offload` and `optimizer_offload` verl copies to the host without waiting (utils/fsdp_utils.py), and
    nothing else orders a read from the host after it.
    """
    device: Any = get_torch_device()
    if hasattr(device, "synchronize") and device.is_available():
        device.synchronize()
