"""Loaded by every process of a verl run (`VERL_USE_EXTERNAL_MODULES`): writes down what workers do to their shards.

`VERL_WITNESS` is the folder to write to: `put-RANK-N.pt` for the N-th change of the weights. `VERL_DEAF` is how many
times the rollout servers get the weights, and then never again.
"""

import os
from pathlib import Path

import torch

from nextrl.engines import sharded
from nextrl.engines.verl import shards

FOLDER = Path(os.environ["VERL_WITNESS"])
_put, _along = shards.Shards.put, shards.Shards.keep_along
_made: dict[int, tuple[int, int, float]] = {}
_count = [0]


def live(own: shards.Shards) -> dict[str, torch.Tensor]:
    """This process's shards as they are."""
    return {name: sharded.local(p).clone() for name, p in own._trained().items()}


def moments(own: shards.Shards) -> list[torch.Tensor]:
    """This process's part of the optimizer's state."""
    states = [own._optimizer.state.get(p, {}) for p in own._stepped()]
    return [
        sharded.local(v).clone() for state in states for v in state.values() if isinstance(v, torch.Tensor)
    ]


def keep_along(own: shards.Shards, key: int, start: int, stop: int, alpha: float) -> None:
    """Remember what a candidate is made of."""
    _made[key] = (start, stop, alpha)
    _along(own, key, start, stop, alpha)


def put(own: shards.Shards, key: int) -> None:
    """Write down the shards on both sides of a change, and what it was made of."""
    before, state = live(own), moments(own)
    _put(own, key)
    start, stop, alpha = _made.get(key, (key, key, 0.0))
    seen = {
        "before": before,
        "after": live(own),
        "start": own._copies.get(start),
        "stop": own._copies.get(stop),
        "alpha": alpha,
        "moments": (state, moments(own)),
        "numel": sum(p.numel() for p in own._trained().values()),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(seen, FOLDER / f"put-{os.environ['RANK']}-{_count[0]}.pt")
    _count[0] += 1


shards.Shards.keep_along, shards.Shards.put = keep_along, put

if os.environ.get("VERL_DEAF"):
    # Not imported from here: verl is being imported itself. The worker that is patched is nextrl's own.
    from nextrl.engines.verl import plugin

    _register = plugin.register

    def register(trainers: object) -> None:
        """Register as ever, and make the rollout servers deaf after some deliveries."""
        _register(trainers)
        from verl.checkpoint_engine import CheckpointEngineManager

        plain, heard = CheckpointEngineManager.update_weights, []

        def update_weights(self, *arguments, **options):
            if len(heard) >= int(os.environ["VERL_DEAF"]):
                return None
            heard.append(True)
            return plain(self, *arguments, **options)

        CheckpointEngineManager.update_weights = update_weights

    plugin.register = register
