"""Adapters in pieces: FSDP2 on a real (gloo, CPU) mesh of one, DeepSpeed behind stand-ins that behave as documented.

Two processes with a mesh of two are in `engines/test_ranks.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextrl.engines import sharded
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import along
from nextrl.errors import InputError
from trl_runs import fresh_model


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_fsdp2_is_read_whole_and_written_in_pieces(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = fresh_model()
    plain = LiveAdapter(model).read()
    fully_shard(model, mesh=mesh)
    live = LiveAdapter(model)
    assert all(isinstance(p, DTensor) for p in live.parameters.values())
    start = live.read()
    assert not any(isinstance(t, DTensor) for t in start.values())
    assert all(torch.equal(start[n], plain[n]) for n in plain)
    optimizer = torch.optim.AdamW(live.parameters.values(), lr=1e-2)
    ids = torch.arange(2, 12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    leap = along(start, live.read(), 2.0)
    live.write(leap)
    assert all(torch.equal(live.read()[n], leap[n]) for n in leap)
    # The optimizer goes on from the leap: it steps on the same pieces.
    optimizer.step()
    moved = live.read()
    assert any(not torch.equal(moved[n], leap[n]) for n in leap)
    # Adam at 1e-2 moves an entry by 1e-2 at most, from wherever the leap left it.
    assert all((moved[n] - leap[n]).abs().max() < 2e-2 for n in leap)


def test_a_layer_that_fsdp2_keeps_whole_is_gathered_anew_after_a_leap(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    model = fresh_model()
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    live, ids = LiveAdapter(model), torch.arange(2, 12)[None]

    @torch.no_grad()
    def logits() -> Tensor:
        return model(input_ids=ids).logits.clone()

    before = logits()
    with live.holding({n: t + 0.05 for n, t in live.read().items()}):
        assert not torch.allclose(logits(), before, atol=1e-2)
    assert torch.equal(logits(), before)


class Zero3:
    """A ZeRO-3 run as deepspeed.readthedocs.io documents it: empty parameters, float32 masters that win."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.masters = {id(p): p.detach().float().clone() for p in parameters.values()}
        self.lows = {i: m.clone() for i, m in self.masters.items()}
        self.gathered = 0
        for number, p in enumerate(parameters.values()):
            p.ds_id, p.ds_shape = number, p.shape
            p.data = torch.empty(0)

    def modules(self) -> dict[str, ModuleType]:
        outer = self

        class GatheredParameters:
            def __init__(self, params: list[Any], modifier_rank: int | None = None) -> None:
                self._params, self._rank = params, modifier_rank

            def __enter__(self) -> None:
                for p in self._params:
                    outer.gathered += p.ds_shape.numel()
                    p.data = outer.lows[id(p)].clone()

            def __exit__(self, *_: object) -> None:
                for p in self._params:
                    if self._rank is not None:  # without it what was written is thrown away
                        outer.lows[id(p)] = p.data.clone()
                    p.data = torch.empty(0)

        utils, top = ModuleType("deepspeed.utils"), ModuleType("deepspeed")
        # DeepSpeed's own `__init__` does `from .runtime import zero`: an attribute, no module `deepspeed.zero`.
        zero = ModuleType("deepspeed.runtime.zero")
        zero.GatheredParameters = GatheredParameters  # type: ignore[attr-defined]
        top.zero = zero  # type: ignore[attr-defined]
        utils.safe_get_full_fp32_param = lambda p: self.masters[id(p)]  # type: ignore[attr-defined]

        def put(p: Any, value: Tensor) -> None:
            assert value.dtype == torch.float32
            self.masters[id(p)] = value.clone()

        utils.safe_set_full_fp32_param = put  # type: ignore[attr-defined]
        return {"deepspeed": top, "deepspeed.utils": utils}

    def step(self) -> None:
        """What DeepSpeed's optimizer does: the parameter becomes its master's image."""
        self.lows = {i: m.to(torch.bfloat16).float() for i, m in self.masters.items()}


def test_zero3_gathers_the_adapter_alone_and_a_leap_survives_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = fresh_model()
    adapter = LiveAdapter(model)
    whole = adapter.read()
    zero = Zero3(adapter.parameters)
    for name, stub in zero.modules().items():
        monkeypatch.setitem(sys.modules, name, stub)
    live = LiveAdapter(model)
    assert all(torch.equal(live.read()[n], whole[n]) for n in whole)
    leap = {n: t + 0.5 for n, t in whole.items()}
    live.write(leap)
    # Nothing but the adapter was ever gathered.
    assert zero.gathered == sum(t.numel() for t in whole.values())
    assert all(torch.equal(zero.lows[id(p)], leap[n]) for n, p in live.parameters.items())
    zero.step()
    for n, p in live.parameters.items():
        assert torch.allclose(zero.lows[id(p)], leap[n], atol=1e-2)
    assert all(torch.equal(live.read()[n], leap[n]) for n in leap)
    with pytest.raises(InputError, match="in the model"):
        live.write({n: t[:1] for n, t in leap.items()})


def test_zero2_s_master_is_written_with_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    p: Any = nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    p._hp_mapping = object()
    zero = Zero3({})
    zero.masters[id(p)] = torch.full((2, 3), 1.001)
    for name, stub in zero.modules().items():
        monkeypatch.setitem(sys.modules, name, stub)
    read = sharded.read({"p": p})["p"]
    assert read.dtype == torch.float32  # 1.001 is 1 in bf16: the path is read where it is exact
    assert torch.equal(read, torch.full((2, 3), 1.001))
    sharded.write({"p": p}, {"p": read + 1})
    assert torch.equal(zero.masters[id(p)], torch.full((2, 3), 2.001))
    assert p.dtype == torch.bfloat16
    assert torch.equal(p, torch.full((2, 3), 2.001).bfloat16())


def test_fsdp1_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module): ...

    model = fresh_model()
    model.wrapped = FullyShardedDataParallel()
    with pytest.raises(InputError, match="fsdp_version to 2"):
        LiveAdapter(model)
