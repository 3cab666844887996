"""Persistence read off the Gram matrix against the factors themselves, and Adam's zero point of it."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextrl.trajectory import persistence
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.persistence import adam_carry, adam_persistence, excess, measured_persistence
from nextrl.trajectory.trajectory import Trajectory

WINDOWS = (10, 20, 50)
SHAPES = {"q_proj": (24, 20, 4), "up_proj": (40, 20, 2)}


def adapter_run(dtype, *, drift, noise, start=0.0, rest=(), count=24, seed=0):
    """A run whose A and B both move; `start` > 0 begins at a stored B_0 A_0 of that size, `rest`: it stands there."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    factors = [{} for _ in range(count)]
    for module, (m, n, r) in SHAPES.items():
        a, b, da, db = draw(r, n), start * draw(m, r), 1e-2 * draw(r, n), 1e-2 * draw(m, r)
        for i, at in enumerate(factors):
            if i not in rest and (i or not start):
                a = a + drift * da + noise * 1e-2 * draw(r, n)
                b = b + drift * db + noise * 1e-2 * draw(m, r)
            at[module] = (a.to(dtype), b.to(dtype))
    steps = [10 * i + (0 if start else 10) for i in range(count)]
    config = {"init_lora_weights": False} if start else {}
    return Trajectory.from_factors(steps, factors, scaling=2.0, adapter_config=config)


def largest_difference(traj):
    """Over all windows and steps; NaN has to meet NaN."""
    worst = 0.0
    for window, row in measured_persistence(traj, WINDOWS).items():
        for step, cosine in row.items():
            expected = traj.persistence(window, at=step)
            assert math.isnan(cosine) == math.isnan(expected)
            worst = max(worst, 0.0 if math.isnan(expected) else abs(cosine - expected))
    return worst


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    drift=st.sampled_from([0.0, 1e-5, 1e-3, 1.0]),
    noise=st.sampled_from([0.0, 1e-5, 1e-3, 1.0]),
    start=st.sampled_from([0.0, 1.0, 100.0]),
    rest=st.sets(st.integers(1, 23)),
    seed=st.integers(0, 99),
)
def test_the_gram_matrix_gives_the_same_persistence(dtype, drift, noise, start, rest, seed):
    traj = adapter_run(dtype, drift=drift, noise=noise, start=start, rest=rest, seed=seed)
    assert largest_difference(traj) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_the_factors_a_short_window_would_lose_its_digits(dtype, monkeypatch):
    traj = adapter_run(dtype, drift=1e-4, noise=1e-4, start=100.0)
    assert largest_difference(traj) < 1e-9
    monkeypatch.setattr(persistence, "GRAM_SHARE", 0.0)
    assert largest_difference(traj) > 1e-8


def test_the_steps_are_those_of_which_both_windows_exist():
    assert [
        list(row)
        for row in measured_persistence(adapter_run(torch.float32, drift=1, noise=1), (20, 90, 95)).values()
    ] == [
        list(range(40, 250, 10)),
        list(range(180, 250, 10)),
        [],
    ]


def test_an_unknown_start_takes_part_in_no_window():
    traj = adapter_run(torch.float32, drift=1.0, noise=1.0, start=1.0)
    later = Trajectory(traj.checkpoints[1:], None, traj.adapter_config)
    assert list(measured_persistence(later, (10,))[10]) == list(range(30, 240, 10))
    assert measured_persistence(later, (10,))[10][50] == pytest.approx(traj.persistence(10, at=50), abs=1e-12)


def test_each_checkpoint_is_read_once():
    reads = Counter()

    class Counted(MemoryCheckpoint):
        def factors(self, module, *, check=True):
            reads[self.step, module] += 1
            return super().factors(module)

    traj = adapter_run(torch.float32, drift=1.0, noise=1.0)
    counted = Trajectory(tuple(Counted(c.step, c.tensors, c.scalings) for c in traj.checkpoints))
    measured_persistence(counted, WINDOWS)
    assert set(reads.values()) == {1}
    assert len(reads) == len(traj.steps) * len(SHAPES)


@pytest.mark.parametrize(
    ("beta1", "window", "c0"), [(0.0, 10, 0.0), (0.9, 10, 0.525), (0.9, 20, 0.31), (0.95, 10, 0.72)]
)
def test_published_values(beta1, window, c0):
    assert adam_persistence(window, beta1) == pytest.approx(c0, abs=0.005)


def test_against_simulated_momentum():
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(260, 4000, generator=g)
    momentum, updates = torch.zeros(4000), []
    for row in noise:
        momentum = 0.8 * momentum + 0.2 * row
        updates.append(momentum.clone())
    windows = torch.stack(updates[20:]).view(-1, 12, 4000).sum(1)
    cosines = torch.nn.functional.cosine_similarity(windows[1:], windows[:-1], dim=1)
    assert float(cosines.mean()) == pytest.approx(adam_persistence(12, 0.8), abs=0.01)


@pytest.mark.parametrize(("window", "before"), [(5, 12), (15, 10), (1, 30)])
def test_windows_of_two_lengths_against_simulated_momentum(window, before):
    g = torch.Generator().manual_seed(1)
    momentum, updates = torch.zeros(4000), []
    for row in torch.randn(40 * (window + before), 4000, generator=g):
        momentum = 0.8 * momentum + 0.2 * row
        updates.append(momentum.clone())
    rows = torch.stack(updates[window + before :]).view(-1, window + before, 4000)
    early, late = rows[:, :before].sum(1), rows[:, before:].sum(1)
    cosines = torch.nn.functional.cosine_similarity(early, late, dim=1)
    assert float(cosines.mean()) == pytest.approx(adam_persistence(window, 0.8, before), abs=0.01)
    share = (early * late).sum() / early.square().sum()
    assert float(share) == pytest.approx(adam_carry(window, 0.8, before), abs=0.01)
    assert adam_carry(window, 0.8, window) == pytest.approx(adam_persistence(window, 0.8))


def test_excess_and_bad_arguments():
    assert excess(1.0, 0.5) == 1.0
    assert excess(0.5, 0.5) == 0.0
    for bad in (lambda: adam_persistence(0), lambda: adam_persistence(5, 1.0), lambda: excess(0.5, 1.0)):
        with pytest.raises(ValueError, match="needs"):
            bad()
