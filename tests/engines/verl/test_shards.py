"""What is trained, in shards: elementwise on what FSDP2 and FSDP1 cut, to the bit, in several processes as in one."""

import math
import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from nextrl.engines.sharded import local
from nextrl.engines.verl.shards import Shards, trained
from nextrl.errors import InputError


class Plain(nn.Module):
    """Two layers without an adapter, of 30 and 9 numbers, so that two processes hold uneven parts of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 5), nn.Linear(5, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Layer(nn.Module):
    """A frozen layer with an adapter of rank 3, so that two processes hold uneven parts of A."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(5, 5, bias=False)
        self.lora_A, self.lora_B = nn.Linear(5, 3, bias=False), nn.Linear(3, 5, bias=False)
        self.base_layer.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer())


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Plain(), Plain())


def training(module: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.arange(10.0).reshape(2, 5) / 10
    optimizer.zero_grad()
    module(x).square().mean().backward()
    optimizer.step()


def whole(module: nn.Module, mesh: DeviceMesh | None) -> dict[str, torch.Tensor]:
    """The adapter's tensors as one process would have them; of all weights this process's part."""
    found = {n: t.detach().clone() for n, t in trained(module).items()}
    if not any("lora_" in name for name, _ in module.named_parameters()):
        return {n: local(t).clone() for n, t in found.items()}
    if not isinstance(module, FullyShardedDataParallel):
        return {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in found.items()}
    plain = {n.replace(".weight", ""): p for n, p in model().named_parameters()}
    joined = {}
    for name, piece in found.items():
        pieces = [torch.empty_like(piece) for _ in range(mesh.size(-1))]
        torch.distributed.all_gather(pieces, piece, mesh.get_group(-1))
        own = name.replace("_fsdp_wrapped_module.", "").replace("._flat_param", "")
        joined[f"{own}.weight"] = torch.cat(pieces)[: plain[own].numel()].reshape(plain[own].shape)
    return joined


def leap(module: nn.Module, folder: str, mesh: DeviceMesh | None = None) -> dict[str, torch.Tensor]:
    """Two steps, a leap of 1.5 from the start, a step more, everything taken back and saved; what was seen."""
    optimizer, scheduler = training(module)
    shards = Shards(module, optimizer, scheduler, mesh=mesh)
    shards.keep(0)
    shards.keep_moments(1)
    seen = {f"start/{n}": t for n, t in whole(module, mesh).items()}
    step(module, optimizer)
    step(module, optimizer)
    with torch.no_grad():  # as verl computes log-probabilities; FSDP goes on showing what it gathered for it
        module(torch.ones(1, 5))
    shards.keep(2)
    shards.keep_moments(3)
    seen |= {f"stop/{n}": t for n, t in whole(module, mesh).items()}
    shards.keep_along(4, 0, 2, 1.5)
    assert all(torch.equal(seen[f"stop/{n}"], t) for n, t in whole(module, mesh).items())  # made, not written
    shards.put(4)
    seen |= {f"leapt/{n}": t for n, t in whole(module, mesh).items()}
    # What a forward pass gathered before the change must not be used after it.
    seen["output"] = module(torch.ones(1, 5)).detach()
    shards.multiply_rate(0.5)
    assert shards.rates() == (0.05, 1.0)  # the rate, and its share of the height
    step(module, optimizer)
    shards.put(2)
    shards.put_moments(3)
    shards.keep_moments(5)
    assert same(shards._moments[3], shards._moments[5])
    seen |= {f"back/{n}": t for n, t in whole(module, mesh).items()}
    products = [shards.product(0, 2, 0, 2), shards.product(0, 2, 2, 4), shards.product(2, 4, 2, 4)]
    products += shards.shrinking_parts(0, 2)
    seen["products"] = torch.tensor(products, dtype=torch.float64)
    shards.save(f"{folder}/rank.safetensors", {"start": 0}, {"moments": 3, "none": 1})
    shards.load(f"{folder}/rank.safetensors", {"start": 7}, {"moments": 8, "none": 9})
    assert all(torch.equal(t, shards._copies[7][n]) for n, t in shards._copies[0].items())
    assert same(shards._moments[3], shards._moments[8])
    assert same(shards._moments[1], shards._moments[9])
    shards.put_moments(9)  # before the first step there were none
    assert not any(optimizer.state[p] for p in trained(module).values())
    shards.drop([7, 8])
    assert 7 not in shards._copies
    assert 8 not in shards._moments
    return seen


def same(ours: list[dict], theirs: list[dict]) -> bool:
    def flat(moments: list[dict]) -> dict[str, torch.Tensor]:
        return {
            f"{i}/{name}": torch.as_tensor(v) for i, state in enumerate(moments) for name, v in state.items()
        }

    mine, others = flat(ours), flat(theirs)
    return mine.keys() == others.keys() and all(torch.equal(t, others[name]) for name, t in mine.items())


def fsdp2(module: nn.Module, mesh: object) -> nn.Module:
    """Gathered weights are kept after a forward pass: the case that a change could go unseen in."""
    for layer in module:
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    return fully_shard(module, mesh=mesh, reshard_after_forward=False)


def fsdp1(module: nn.Module, mesh: object, strategy: str) -> nn.Module:
    """Each matrix of an adapter in a unit of its own, as verl's wrap policy has it under LoRA; else each layer."""

    layers = any(isinstance(part, Plain) for part in module.modules())

    def alone(inner: nn.Module) -> bool:
        if layers:
            return isinstance(inner, Plain)
        weight = getattr(inner, "weight", None)
        return not list(inner.children()) and weight is not None and weight.requires_grad

    policy = partial(lambda_auto_wrap_policy, lambda_fn=alone)
    how = ShardingStrategy[strategy]
    return FullyShardedDataParallel(
        module,
        auto_wrap_policy=policy,
        device_mesh=mesh,
        sharding_strategy=how,
        device_id=torch.device("cpu"),
    )


WRAPPED = {
    "fsdp2": (fsdp2, (2,)),
    "hsdp": (fsdp2, (2, 1)),
    "fsdp1": (partial(fsdp1, strategy="FULL_SHARD"), (2,)),
    "fsdp1-zero2": (partial(fsdp1, strategy="SHARD_GRAD_OP"), (2,)),
    "fsdp1-hybrid": (partial(fsdp1, strategy="HYBRID_SHARD"), (2, 2)),
}
"""How the model is wrapped, and the mesh of the processes: replicas, if any, times shards."""


def one_of_several(rank: int, store: str, folder: str, how: str, make: Callable[[], nn.Module]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    wrap, shape = WRAPPED[how]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=math.prod(shape)
    )
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("ddp", "fsdp")[-len(shape) :])
    module = wrap(make(), mesh)
    os.makedirs(f"{folder}/{rank}")
    seen = leap(module, f"{folder}/{rank}", mesh)
    torch.save(seen, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return leap(model(), str(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module", params=sorted(WRAPPED))
def several(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    return run_several(root, request.param, model)


def run_several(root: Path, how: str, make: Callable[[], nn.Module]) -> list[dict[str, torch.Tensor]]:
    processes = math.prod(WRAPPED[how][1])
    mp.spawn(one_of_several, (str(root / "store"), str(root), how, make), nprocs=processes)
    return [torch.load(root / f"{rank}.pt") for rank in range(processes)]


def check(seen: dict[str, torch.Tensor], parts: int = 4) -> None:
    names = [n.removeprefix("start/") for n in seen if n.startswith("start/")]
    assert len(names) == parts
    for name in names:
        start, stop = seen[f"start/{name}"], seen[f"stop/{name}"]
        assert not torch.equal(start, stop)
        assert torch.equal(seen[f"leapt/{name}"], torch.lerp(start, stop, 2.5))
        assert torch.equal(seen[f"back/{name}"], stop)


def test_a_leap_and_its_return_are_exact_to_the_bit(alone):
    check(alone)


def test_so_they_are_in_shards_with_nothing_gathered(several, alone):
    for seen in several:
        check(seen)
        for name, tensor in alone.items():
            if name != "products":
                assert torch.allclose(seen[name], tensor, atol=1e-6), name


def test_sums_over_processes_count_each_part_once(several, alone):
    """Replicas (HSDP) hold the same parts, and would make a length the square root of two times as long."""
    products = torch.stack([seen["products"] for seen in several]).sum(0)
    assert torch.allclose(products, alone["products"], rtol=1e-4)
    # From the start to where two steps led, and from there by a leap of 1.5 times that way.
    shares = alone["products"] / alone["products"][0]
    assert torch.allclose(shares[:3], torch.tensor([1.0, 1.5, 2.25]).double(), rtol=1e-4)


@pytest.mark.parametrize(("how", "parts"), [("fsdp2", 6), ("fsdp1", 2)])
def test_all_weights_move_and_return_to_the_bit(how, parts, tmp_path):
    """Without an adapter, FSDP1 holds a whole layer as one flat tensor."""
    one = leap(plain_model(), str(tmp_path))
    several = run_several(tmp_path, how, plain_model)
    for seen in several:
        check(seen, parts)
        assert torch.allclose(seen["output"], one["output"], atol=1e-6)
    products = torch.stack([seen["products"] for seen in several]).sum(0)
    assert torch.allclose(products, one["products"], rtol=1e-4)


def test_finite_looks_at_every_part():
    module = plain_model()
    shards = Shards(module, *training(module))
    assert shards.finite()
    for broken in (math.nan, math.inf, -math.inf):
        with torch.no_grad():
            module[1].down.weight[-1, -1] = broken
        assert not shards.finite()


def test_a_forward_pass_after_a_change_sees_it(several):
    leapt = model()
    with torch.no_grad():
        for name, p in trained(leapt).items():
            p.copy_(several[0][f"leapt/{name}"])
    assert torch.allclose(several[0]["output"], leapt(torch.ones(1, 5)), atol=1e-6)


def test_what_is_trained_beside_an_adapter_is_refused():
    module = model()
    optimizer, scheduler = training(module)
    module[0].base_layer.requires_grad_(True)
    with pytest.raises(
        InputError, match=r"this actor trains 0.base_layer.weight beside an adapter: train the one"
    ):
        Shards(module, optimizer, scheduler)
    with pytest.raises(InputError, match="this actor trains nothing"):
        trained(nn.Linear(2, 2).requires_grad_(False))


class Nested(torch.optim.SGD):
    """Keeps a list of tensors for each parameter, and counts its steps in its groups."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in (p for p in group["params"] if p.grad is not None):
                for tensor in self.state[p].setdefault("sides", [torch.zeros(2), torch.zeros(3)]):
                    tensor += 1
        return super().step(closure)


def test_optimizers_with_other_kinds_of_state_are_taken_back_and_saved(tmp_path):
    module = model()
    optimizer = Nested(module.parameters(), lr=0.1)
    shards = Shards(module, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    step(module, optimizer)
    shards.keep_moments(0)
    shards.save(str(tmp_path / "a.safetensors"), {}, {"start_moments": 0})
    p = next(iter(trained(module).values()))
    held = optimizer.state[p]["sides"][1]
    for key in (0, 1):
        step(module, optimizer)
        step(module, optimizer)
        assert (optimizer.param_groups[0]["k"], held.tolist()) == (3, [3.0] * 3)
        shards.put_moments(key)
        assert (optimizer.param_groups[0]["k"], held.tolist()) == (1, [1.0] * 3)
        assert optimizer.state[p]["sides"][1] is held
        shards.load(str(tmp_path / "a.safetensors"), {}, {"start_moments": 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_a_gradient_shows_in_the_state_and_a_decay_is_none(kind, options, dtype):
    module = model().to(dtype)
    optimizer = kind(trained(module).values(), lr=1e-12, **options)
    shards = Shards(module, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))

    def took(size: float) -> bool:
        shards.keep_moments(0)
        for index, p in enumerate(trained(module).values()):
            generator = torch.Generator().manual_seed(index)
            p.grad = (size * torch.randn(p.shape, generator=generator)).to(dtype)
        optimizer.step()
        return shards.took_gradient(0)

    assert [took(size) for size in (0.0, 0.0, 1.0, 0.0, 0.0, 0.5)] == [False, False, True, False, False, True]


def test_shards_of_another_adapter_are_not_loaded(tmp_path):
    module = model()
    shards = Shards(module, *training(module))
    shards.keep(0)
    shards.save(str(tmp_path / "a.safetensors"), {"start": 0}, {})
    other = deepcopy(module[:1])
    with pytest.raises(InputError, match="holds the state of another adapter"):
        Shards(other, *training(other)).load(str(tmp_path / "a.safetensors"), {"start": 0}, {})
    with pytest.raises(InputError, match=r"a\.safetensors is damaged: use another checkpoint"):
        # It was saved without.
        shards.load(str(tmp_path / "a.safetensors"), {"start": 0}, {"start_moments": 1})
    with pytest.raises(InputError, match="is missing: resume from another checkpoint"):
        shards.load(str(tmp_path / "b.safetensors"), {"start": 0}, {})
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"c.safetensors: truncated or not a safetensors file"):
        shards.load(str(tmp_path / "c.safetensors"), {"start": 0}, {})


def test_the_local_part_shares_memory():
    p = nn.Parameter(torch.zeros(2))
    local(p).fill_(1.0)
    assert p.tolist() == [1.0, 1.0]
