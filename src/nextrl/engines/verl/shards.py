"""What an actor trains as it lies on one of verl's workers: elementwise work on the shards that this process holds.

That is a LoRA adapter, or all weights.

A leap inside the factors, taking one back, and the candidates between are elementwise, so that each process does its
own part by itself, on its own shards: nothing is gathered. Copies lie in the host's memory; on the GPU nothing is
added. What a copy is called is the driver's affair (`remote.Held`): here it is a number.

FSDP2 and HSDP hold each parameter as a DTensor, whose local part is read and written here. After a forward pass
alone, either may go on showing and using what it gathered (`reshard_after_forward`), so it is made to drop that
first, and after each change. FSDP1 holds flat tensors, padded; verl wraps each LoRA matrix by itself
(`utils/fsdp_utils.py:get_fsdp_wrap_policy`), so that a flat tensor is a piece of one of them, and whole layers where
all weights are trained. Where several processes hold the same part (HSDP), each moves its own, and one of them is
counted in sums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextrl.checkpoints.atomic import write_tensors
from nextrl.checkpoints.tensorfile import read_tensors
from nextrl.engines import sharded
from nextrl.engines.fingerprint import Fingerprint, fingerprint
from nextrl.engines.live_weights import all_finite, shrinking_parts
from nextrl.engines.optimizer_state import copied, joined, put_back, split, took_gradient
from nextrl.engines.optimizers import check_optimizer
from nextrl.engines.precision import resolution
from nextrl.engines.rehearsal import falls, follows, rises
from nextrl.engines.schedules import base_rate, rate_of, set_base_rate, set_rate_factor, share_of
from nextrl.errors import InputError
from nextrl.files import NoSuchFile, parse_json

Copy = dict[str, Tensor]
"""Parameter's name -> its local shard, on the CPU."""

MomentsCopy = list[dict[str, Any]]
"""For each parameter of the optimizer that is trained: its state, tensors as local shards (`optimizer_state`)."""

_NUMBERS = "numbers"  # in a saved file: what of the optimizer's state is no tensor, as JSON


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name: an adapter's, or all weights of a model without one.

    Raises:
        InputError: something is trained beside an adapter, or nothing is trained.
    """
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    # FSDP1 joins several into a flat one, which remembers their names.
    parts = {name: [f"{name}.{part}" for part in getattr(p, "_fqns", [""])] for name, p in found.items()}
    others = [name for name in found if not all(".lora_" in part for part in parts[name])]
    adapted = any(".lora_" in name for name, _ in module.named_parameters())
    if not found:
        raise InputError("this actor trains nothing: leave trainer.v1.trainer_mode=nextrl out")
    if adapted and others:
        raise InputError(
            f"nextrl in verl moves a LoRA adapter or all weights, and this actor trains {others[0]} beside an adapter: "
            "train the one or the other, or leave trainer.v1.trainer_mode=nextrl out"
        )
    return found


class Shards:
    """This process's part of what is trained, of the optimizer's state and of the schedule.

    Args:
        module: the FSDP module.
        optimizer, scheduler: verl's.
        dtype: what forward passes compute in.
        mesh: of the processes that hold the actor; None where there is one. All of its dimensions but the last are of
            replicas, as verl makes it (`workers/engine/fsdp/utils.py:create_device_mesh`).

    Raises:
        InputError: see `trained`, or the optimizer keeps weights of its own (`check_optimizer`).
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Any,
        scheduler: Any,
        dtype: torch.dtype = torch.float32,
        mesh: Any = None,
    ) -> None:
        check_optimizer(optimizer)
        trained(module)
        self._module, self._optimizer, self._scheduler = module, optimizer, scheduler
        self._dtype = dtype
        self._counted = mesh is None or not any(mesh.get_coordinate()[:-1])
        self._copies: dict[int, Copy] = {}
        self._moments: dict[int, MomentsCopy] = {}

    def _trained(self) -> dict[str, nn.Parameter]:
        """What is trained, as it is sharded."""
        self._reshard()
        return trained(self._module)

    def _reshard(self) -> None:
        sharded.forget_gathered(self._module)
        for module in self._module.modules():
            # Of FSDP1, as verl does on leaving its eval mode; before the first forward pass there is nothing to drop.
            handle = getattr(module, "_handle", None)
            if handle and handle.uses_sharded_strategy and hasattr(handle.flat_param, "_local_shard"):
                handle.reshard(True)

    def drop(self, keys: Sequence[int]) -> None:
        """Forget copies."""
        for key in keys:
            self._copies.pop(key, None)
            self._moments.pop(key, None)

    def keep(self, key: int) -> None:
        """Copy the values as they are."""
        self._copies[key] = {
            name: sharded.local(p).to("cpu", copy=True) for name, p in self._trained().items()
        }

    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf in this process's part."""
        return all_finite(sharded.local(p) for p in self._trained().values())

    def keep_along(self, key: int, start: int, stop: int, alpha: float) -> None:
        """Make the values `stop + alpha (stop - start)`, without writing them."""
        begun, ended = self._copies[start], self._copies[stop]
        self._copies[key] = {name: torch.lerp(begun[name], ended[name], 1.0 + alpha) for name in ended}

    def put(self, key: int) -> None:
        """Write a copy into the live parameters, bit for bit."""
        copy = self._copies[key]
        with torch.no_grad():
            for name, p in self._trained().items():
                sharded.local(p).copy_(copy[name])
        self._reshard()

    def keep_moments(self, key: int) -> None:
        """Copy the optimizer's state.

        Raises:
            InputError: see `optimizer_state.copied`.
        """
        self._moments[key] = copied(self._optimizer, self._stepped())

    def _stepped(self) -> list[nn.Parameter]:
        """The optimizer's parameters that are trained, in the order of its groups."""
        return [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]

    def put_moments(self, key: int) -> None:
        """Write a copy of the optimizer's state back, in place; what had taken no step has no state again."""
        put_back(self._optimizer, self._stepped(), self._moments[key])

    def took_gradient(self, key: int) -> bool:
        """Whether a gradient has come into this process's part of the optimizer's state since a copy of it."""
        return took_gradient(self._optimizer, self._stepped(), self._moments[key])

    def multiply_rate(self, factor: float) -> None:
        """Multiply the learning rate of optimizer and schedule."""
        set_rate_factor(self._optimizer, self._scheduler, factor)

    def base_rate(self) -> float:
        """The rate that the schedule makes others from."""
        base = base_rate(self._optimizer)
        return rate_of(self._optimizer) if base is None else base

    def set_base_rate(self, base: float) -> None:
        """Bring that rate to this one, in optimizer and schedule."""
        set_base_rate(self._optimizer, self._scheduler, base)

    def rates(self) -> tuple[float, float]:
        """The present learning rate, and that as a share of the schedule's height."""
        return rate_of(self._optimizer), share_of(self._optimizer, self._scheduler)

    def falls_by_itself(self, begin: int, end: int) -> bool:
        """Whether the schedule lowers the rate between two steps."""
        return falls(self._optimizer, self._scheduler, begin, end)

    def rises(self, steps: int) -> bool | None:
        """Whether the rate's next change, within so many steps, is a rise; None where nobody knows."""
        return rises(self._optimizer, self._scheduler, steps)

    def follows(self, steps: int) -> bool | None:
        """Whether a factor reaches every rate that the schedule sets; None where nobody knows."""
        return follows(self._optimizer, self._scheduler, steps)

    def optimizer_name(self) -> str:
        """The optimizer's class."""
        return type(self._optimizer).__name__

    def resolution(self) -> float:
        """Nats per token that the precision of the model's passes and weights hides."""
        return resolution(self._dtype, *(p.dtype for p in self._trained().values()))

    def rounds_weights(self) -> bool:
        """Whether anything that is trained is kept in half precision."""
        return any(p.dtype.itemsize < 4 for p in self._trained().values())

    def shrinking_parts(self, start: int, stop: int) -> tuple[float, float, float]:
        """This process's part of `live_weights.shrinking_parts` between two copies."""
        if not self._counted:
            return 0.0, 0.0, 0.0
        return shrinking_parts(self._copies[start], self._copies[stop])

    def product(self, start: int, stop: int, other_start: int, other_stop: int) -> float:
        """This process's part of the inner product of two ways between copies, over all that is trained."""
        if not self._counted:
            return 0.0
        one, two, three, four = (self._copies[key] for key in (start, stop, other_start, other_stop))
        ways = ((two[n].double() - one[n].double(), four[n].double() - three[n].double()) for n in one)
        return sum(float((way * other).sum()) for way, other in ways)

    def fingerprint(self) -> Fingerprint:
        """What tells this process's part of the weights, as it is now, from other weights of the same names."""
        return fingerprint({name: sharded.local(p) for name, p in self._trained().items()})

    def save(self, path: str, copies: Mapping[str, int], moments: Mapping[str, int]) -> None:
        """Write copies into one file.

        Args:
            path: the file, this process's own.
            copies, moments: name in the file -> the copy's key.
        """
        tensors = {f"{name}/{n}": t for name, key in copies.items() for n, t in self._copies[key].items()}
        numbers: dict[str, Any] = {}
        for name, key in moments.items():
            values, own = split(self._moments[key], name)
            tensors |= own
            numbers |= {f"{name}/{index}": value for index, value in enumerate(values)}
        tensors[_NUMBERS] = torch.tensor(list(json.dumps(numbers).encode()), dtype=torch.uint8)
        write_tensors(Path(path), tensors)

    def load(self, path: str, copies: Mapping[str, int], moments: Mapping[str, int]) -> None:
        """Read what `save` wrote.

        Raises:
            InputError: there is no such file, it is damaged, or it holds other shards than this process's.
        """
        try:
            found = read_tensors(Path(path))
        except NoSuchFile:
            raise InputError(
                f"{path} is missing: resume from another checkpoint, or on as many GPUs as before"
            ) from None
        live = {name: sharded.local(p).shape for name, p in self._trained().items()}
        for name, key in copies.items():
            self._copies[key] = _below(found, name)
            if {n: t.shape for n, t in self._copies[key].items()} != live:
                raise InputError(f"{path} holds the state of another adapter or model, or of other shards")
        try:
            numbers = parse_json(bytes(found[_NUMBERS].tolist()), path) if moments else {}
            for name, key in moments.items():
                values = [numbers[f"{name}/{index}"] for index in range(len(self._stepped()))]
                self._moments[key] = joined(values, found, name)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path} is damaged: use another checkpoint") from None


def _below(tensors: Mapping[str, Tensor], name: str) -> Copy:
    """What is saved under a name, without that name."""
    return {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}
