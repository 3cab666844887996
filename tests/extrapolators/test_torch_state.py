"""Torch's global state, which is the user's: no method draws from it, and none answers otherwise for it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import synthetic_runs as synthetic
from nextrl.extrapolators import get, names
from nextrl.extrapolators.networks import linear, seeded
from nextrl.judge.advise import advise
from nextrl.judge.analysis import analyze
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import leap
from nextrl.testing import maker
from nextrl.trajectory.trajectory import Trajectory

FAST = {"next-paper": {"epochs": 2}, "next": {"updates": 3}, "nowcast": {"updates": 3}}
# Long enough for several to be under way at once.
BRIEF = {"next-paper": {"epochs": 5}, "next": {"updates": 20}, "nowcast": {"updates": 20}}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "float16": partial(default_dtype, torch.float16),
    "float64": partial(default_dtype, torch.float64),
    "meta device": partial(torch.device, "meta"),
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("run"), synthetic.walk(2.0), lambda t: 0.2 + t / 400)


@functools.cache
def plainly(run: Path, name: str) -> dict[str, torch.Tensor]:
    """`predicted` outside of all states."""
    return predicted(run, name)


def predicted(run: Path, name: str) -> dict[str, torch.Tensor]:
    """What a method says of the run on disk, and of the same run in memory."""
    loaded = Trajectory.load(run)
    factors = [{m: loaded.factors(s, m) for m in loaded.modules} for s in loaded.steps]
    scalings = {m: loaded.scaling(m) for m in loaded.modules}
    given = Trajectory.from_factors(loaded.steps, factors, scaling=scalings)
    found = {}
    for kind, traj in (("disk", loaded), ("memory", given)):
        moved = maker(name, **FAST.get(name, {}))().fit(traj, 20, seed=1)
        found |= {f"{kind} {m}": moved.delta(m, 1.5).dense() for m in traj.modules}
    return found


def rounded(text: str) -> str:
    """Its numbers to ten digits: where in memory a matrix lies may change the last bits of a product in float64."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number.group()):.10g}", text)


def judged(run: Path, out: Path) -> list[object]:
    """What the other public functions say of it."""
    leap(run, "secant", horizon=20).save_adapter(out)
    traj = Trajectory.load(run)
    state = leap(traj, "secant", horizon=20).leap_state()
    return [
        backtest(run, 20, "factors,secant,linear,ols,dmd").as_dict(),
        advise(run).as_dict(),
        rounded(repr(analyze(traj))),
        (out / "adapter_model.safetensors").read_bytes(),
        {name: tensor.sum().item() for name, tensor in state.items()},
    ]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", names())
def test_no_state_of_torch_changes_what_a_method_says(run: Path, name: str, state: str) -> None:
    plain = plainly(run, name)
    with STATES[state]():
        there = predicted(run, name)
    assert plain.keys() == there.keys()
    for key, matrix in plain.items():
        assert there[key].dtype == matrix.dtype
        assert torch.equal(there[key], matrix), key


@pytest.mark.parametrize("state", [state for state in STATES if state != "autocast"])
def test_no_state_of_torch_changes_what_is_judged_and_written(run: Path, state: str, tmp_path: Path) -> None:
    plain = judged(run, tmp_path / "plain")
    with STATES[state]():
        there = judged(run, tmp_path / "there")
    for one, other in zip(plain, there, strict=True):
        assert str(one) == str(other)


def test_a_layer_begins_with_the_numbers_that_torch_would_draw() -> None:
    """Published records rest on them."""
    draws = seeded(3)
    own = [linear(5, 7, draws), linear(7, 1, draws)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        usual = [nn.Linear(5, 7), nn.Linear(7, 1)]
    for one, other in zip(own, usual, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("name", FAST)
def test_a_network_leaves_the_global_generator_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for the time of a fit: another thread may draw from it, and `manual_seed` is of all devices."""
    traj = synthetic.run(synthetic.walk(2.0))

    def untouchable(*_: object, **__: object) -> None:
        raise AssertionError("the global generator was touched")

    for touches in ("torch.manual_seed", "torch.random.manual_seed", "torch.random.fork_rng"):
        monkeypatch.setattr(touches, untouchable)
    get(name, **FAST[name]).fit(traj, 20)


@pytest.mark.parametrize("name", FAST)
def test_fits_in_threads_say_what_they_say_one_by_one(name: str) -> None:
    traj, state = synthetic.run(synthetic.walk(2.0)), torch.random.get_rng_state()

    def fitted(seed: int) -> torch.Tensor:
        return get(name, **BRIEF[name]).fit(traj, 20, seed=seed).delta(traj.modules[0]).dense()

    seeds = [seed % 4 for seed in range(16)]
    alone = [fitted(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for seed, matrix in zip(seeds, threads.map(fitted, seeds), strict=True):
            assert torch.equal(matrix, alone[seed])
    assert torch.equal(state, torch.random.get_rng_state())
