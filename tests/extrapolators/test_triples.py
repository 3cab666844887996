"""What the networks see: one sign for each singular pair that does not jump along a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextrl.extrapolators import get
from nextrl.extrapolators.triples import Spans, collect, span_triples
from nextrl.trajectory.trajectory import Trajectory

MODULE = "model.layers.0.mlp.up_proj"


def turning(degrees: float, steps: range = range(10, 161, 10), noise: float = 0.0) -> Trajectory:
    """A run whose every step is u v^T, u and v both turning in a plane, by `degrees` in 100 steps."""
    draws = torch.Generator().manual_seed(3)
    rows = torch.linalg.qr(torch.randn(40, 2, generator=draws, dtype=torch.float64)).Q
    columns = torch.linalg.qr(torch.randn(20, 2, generator=draws, dtype=torch.float64)).Q
    total, at, factors = torch.zeros(2, 2, dtype=torch.float64), 0, []
    for step in steps:
        while at < step:
            at += 1
            turned = math.radians(degrees) * at / 100
            plane = torch.tensor([math.cos(turned), math.sin(turned)], dtype=torch.float64)
            total = total + torch.outer(plane, plane)
        jitter = noise * torch.randn(40, 2, generator=draws, dtype=torch.float64)
        factors.append({MODULE: (columns.mT.clone(), rows @ total + jitter)})
    return Trajectory.from_factors(list(steps), factors)


def agreement(spans: Spans) -> Tensor:
    """(P - 1,) u_i . u_(i+1) + v_i . v_(i+1) of successive pairs."""
    return (spans.u[1:] * spans.u[:-1]).sum(1) + (spans.v[1:] * spans.v[:-1]).sum(1)


@pytest.mark.parametrize("degrees", [20, 80, 250])
def test_signs_never_jump_along_a_run_that_turns_however_far(degrees: float) -> None:
    features = collect(turning(degrees), 20, "next")
    for spans in (features.far[MODULE], features.local[MODULE], features.ahead[MODULE]):
        assert (agreement(spans) > 0.0).all()


@pytest.mark.parametrize("degrees", [20, 80])
def test_signs_agree_with_the_global_pair_at_the_end(degrees: float) -> None:
    features = collect(turning(degrees), 20, "next")
    far, local, ahead = (s[MODULE] for s in (features.far, features.local, features.ahead))
    for spans in (far, local, ahead):
        assert float(spans.u[-1] @ far.u[-1] + spans.v[-1] @ far.v[-1]) > 0.5


@pytest.mark.parametrize("seed", range(12))
def test_signs_do_not_depend_on_which_entry_of_u_is_largest(seed: int) -> None:
    """Outputs of a module negated one by one (D W, D diagonal): all pairs of the run change alike, (D u, v)."""
    traj = turning(40)
    flips = torch.where(torch.rand(40, generator=torch.Generator().manual_seed(seed)) < 0.5, -1.0, 1.0)
    factors = [traj.factors(step, MODULE) for step in traj.steps]
    other = Trajectory.from_factors(
        traj.steps, [{MODULE: (a, b * flips.double()[:, None])} for a, b in factors]
    )
    here, there = collect(traj, 20, "next"), collect(other, 20, "next")
    found = []
    for kind in ("far", "local", "ahead"):
        one, negated = getattr(here, kind)[MODULE], getattr(there, kind)[MODULE]
        found += (one.u * flips * negated.u).sum(1).sign().tolist()
        found += (one.v * negated.v).sum(1).sign().tolist()
    assert len(set(found)) == 1


def test_next_follows_a_run_that_turns() -> None:
    traj = turning(100)
    at, horizon = 100, 20
    predicted = get("next").fit(traj.upto(at), horizon).delta(MODULE)
    actual = traj.delta(MODULE, at, at + horizon)
    assert float(predicted.inner(actual)) / float(predicted.norm() * actual.norm()) > 0.98


def test_later_triples_are_those_of_the_dense_difference() -> None:
    traj = turning(80)
    spans = [(20, 60), (60, 160)]
    for part in (0, 1):
        found = span_triples(traj, MODULE, spans, part)
        for i, (start, stop) in enumerate(spans):
            u, sigma, vh = torch.linalg.svd(traj.delta(MODULE, start, stop).dense())
            assert float(found.sigma[i]) == pytest.approx(float(sigma[part]), rel=1e-6)
            pair = torch.outer(found.u[i], found.v[i]).double()
            torch.testing.assert_close(pair, torch.outer(u[:, part], vh[part]), rtol=0, atol=1e-5)
    beyond = span_triples(traj, MODULE, spans, 7)
    assert float(beyond.sigma.abs().max()) < 1e-6
