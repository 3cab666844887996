"""A copy of an optimizer's state: everything comes back, to the bit and in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextrl.engines.moments import VALUE, read_moments, write_moments
from nextrl.errors import InputError


def test_moments_come_back_to_the_bit_and_in_place() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:]}])

    def step() -> None:
        for w in weights:
            w.grad = torch.randn(3)
        optimizer.step()

    step()
    kept = read_moments(optimizer)
    held = optimizer.state[weights[0]]["exp_avg"]
    step()
    assert not torch.equal(held, kept[0]["exp_avg"])
    write_moments(optimizer, kept)
    assert optimizer.state[weights[0]]["exp_avg"] is held
    for now, then in zip(read_moments(optimizer), kept, strict=True):
        assert now.keys() == then.keys() == {"step", "exp_avg", "exp_avg_sq", "nextrl_group/eps"}
        assert all(torch.equal(now[k], then[k]) for k in ("step", "exp_avg", "exp_avg_sq"))


class Preconditioned(torch.optim.Optimizer):
    """Keeps lists, tuples and dicts of tensors, as Shampoo and SOAP do, and how far it has come in its groups."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "d": 1.0, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["d"], group["k"] = group["d"] * 2.0, group["k"] + 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["GG"] = [torch.zeros(d, d) for d in p.shape]
                    state["pair"] = (torch.zeros_like(p), [torch.zeros(()), None, "text"])
                    state["by_side"] = {0: torch.zeros_like(p), "rank": 2}
                for tensor in (*state["GG"], state["pair"][0], state["pair"][1][0], state["by_side"][0]):
                    tensor.add_(1.0)
                state["by_side"]["rank"] += 1
                if group["k"] == 2:
                    state["Q"] = [torch.ones(d, d) for d in p.shape]
                    state["by_side"][1] = torch.ones(1)


def test_state_of_any_shape_comes_back_to_the_bit_and_in_place() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = Preconditioned([weight])
    optimizer.step()
    kept = read_moments(optimizer)
    state = optimizer.state[weight]
    held = state["GG"], state["GG"][1], state["pair"][0], state["by_side"]
    optimizer.step()
    write_moments(optimizer, kept)
    assert state.keys() == {"GG", "pair", "by_side"}
    assert state is optimizer.state[weight]
    assert all(
        a is b
        for a, b in zip(held, (state["GG"], state["GG"][1], state["pair"][0], state["by_side"]), strict=True)
    )
    assert [t.unique().tolist() for t in state["GG"]] == [[1.0], [1.0]]
    assert state["pair"][0].unique().tolist() == [1.0]
    assert state["pair"][1] == [torch.ones(()), None, "text"]
    assert isinstance(state["pair"], tuple)
    assert state["by_side"].keys() == {0, "rank"}
    assert (state["by_side"][0].unique().tolist(), state["by_side"]["rank"]) == ([1.0], 3)
    optimizer.step()  # and the copy is none of the live tensors
    assert kept[0]["GG"][0].unique().tolist() == [1.0]


def test_numbers_in_groups_come_back_but_for_those_that_others_set() -> None:
    weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    optimizer = Preconditioned([{"params": weights[:2]}, {"params": weights[2:], "d": torch.tensor(4.0)}])
    optimizer.step()
    kept, held = read_moments(optimizer), optimizer.param_groups[1]["d"]
    others = {"lr": 0.3, "initial_lr": 0.4, "max_momentum": 0.5, "momentum": 0.6, "weight_decay": 0.7}
    for group in optimizer.param_groups:
        group.update(others)
        group["d"] *= 8.0
        group["k"] += 5
    write_moments(optimizer, kept)
    first, second = optimizer.param_groups
    assert (first["d"], first["k"], float(second["d"]), second["k"]) == (2.0, 1, 8.0, 1)
    assert all(group[name] == value for group in (first, second) for name, value in others.items())
    assert isinstance(held, torch.Tensor)


def test_the_values_of_what_is_not_trained_are_not_kept() -> None:
    adapter, beside, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = torch.optim.AdamW([adapter, frozen, beside])
    kept = read_moments(optimizer, [adapter])
    assert [VALUE in moments for moments in kept] == [False, False, True]
    with torch.no_grad():
        for p in (adapter, beside, frozen):
            p.fill_(5.0)
    write_moments(optimizer, kept)
    assert [p[0].item() for p in (adapter, beside, frozen)] == [5.0, 1.0, 5.0]
    assert not optimizer.state  # none of them has taken a step


def test_state_that_cannot_be_copied_is_one_line() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    optimizer.state[weight]["projector"] = [object()]
    with pytest.raises(
        InputError, match=r"^AdamW keeps a object in its state \(projector\), which can neither"
    ):
        read_moments(optimizer)


def test_moments_that_are_missing_come_back_where_the_parameter_lies() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    write_moments(optimizer, [{"exp_avg": torch.ones(2), "step": torch.tensor(3.0)}])
    found = optimizer.state[parameter]
    assert (found["exp_avg"].device.type, found["step"].device.type) == ("meta", "cpu")


def test_an_optimizer_that_has_not_stepped_gets_its_state_from_the_snapshot() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    write_moments(torch.optim.AdamW([weight]), [{}])
    fresh = torch.optim.AdamW([weight])
    write_moments(fresh, [{"exp_avg": torch.ones(2), "step": 3}])
    assert fresh.state[weight]["step"] == 3
    assert torch.equal(fresh.state[weight]["exp_avg"], torch.ones(2))
