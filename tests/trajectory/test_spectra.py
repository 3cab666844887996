"""All deltas at once against the same deltas one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextrl.errors import InputError
from nextrl.trajectory import blocks
from nextrl.trajectory.spectra import iter_spectra, map_modules
from nextrl.trajectory.trajectory import Trajectory


def run(steps, seed=0, scale=0.1, r=3, m=12, n=9, **options):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(r, n, generator=g), torch.zeros(m, r)
    factors = []
    for _ in steps:
        a, b = a + scale * torch.randn(r, n, generator=g), b + scale * torch.randn(m, r, generator=g)
        factors.append({"w": (a, b), "x": (a[:2] * 2, b[:, :2])})
    return Trajectory.from_factors(steps, factors, scaling=1.5, **options)


def check(traj, horizon, tolerance=1e-6):
    for module, kinds in iter_spectra(traj, horizon, workers=1):
        for kind, found in kinds.items():
            for p, t in enumerate(found.steps):
                before = traj.steps[traj.steps.index(t) - 1] if t != traj.steps[0] else 0
                ends = {"global": (0, t), "local": (before, t), "target": (t, t + horizon)}[kind]
                delta = traj.delta(module, *ends)
                exact = delta.top(2)
                assert float(found.sigma[p, 0]) == pytest.approx(float(exact.sigma[0]), rel=tolerance)
                assert float(found.sigma[p].norm()) == pytest.approx(float(delta.norm()), rel=tolerance)
                if exact.sigma.numel() == 1 or exact.sigma[1] < 0.99 * exact.sigma[0]:
                    assert abs(float(found.u[p].double() @ exact.u[:, 0])) >= 1 - 1e-6
                    assert abs(float(found.v[p].double() @ exact.v[:, 0])) >= 1 - 1e-6


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12).map(lambda k: 10 * k), min_size=1, max_size=7, unique=True).map(sorted),
    st.sampled_from([1e-3, 0.1, 1.0]),
    st.integers(0, 2**31),
)
def test_every_kind_at_every_step_matches(steps, scale, seed):
    check(run(steps, seed, scale), 20)


def test_step_zero_on_disk_and_unknown_start():
    options = {"adapter_config": {"init_lora_weights": "olora"}}
    check(run((0, 10, 20, 30), **options), 10)
    with pytest.raises(InputError, match="checkpoint-0"):
        list(iter_spectra(run((10, 20), **options), 10, workers=1))


def test_updates_so_small_that_gram_matrices_cancel_go_by_qr():
    traj = run((10, 20, 30), scale=1e-6, seed=3)
    double = [
        {
            m: tuple(f.double() + (1e-3 if i == 1 else 0) for i, f in enumerate(traj.factors(s, m)))
            for m in traj.modules
        }
        for s in traj.steps
    ]
    check(Trajectory.from_factors(traj.steps, double, scaling=1.5), 10)


def test_chunks_and_threads_change_nothing(monkeypatch):
    traj = run((10, 20, 30, 40), m=200, n=150)
    whole = dict(iter_spectra(traj, 20, workers=1))
    monkeypatch.setattr(blocks, "PIECE", 1)
    parts = dict(iter_spectra(traj, 20, workers=3))
    assert list(parts) == list(whole)
    for module in whole:
        for kind in whole[module]:
            torch.testing.assert_close(
                parts[module][kind].sigma, whole[module][kind].sigma, rtol=1e-9, atol=1e-12
            )


def test_share_of_a_zero_delta_is_nan_and_failures_come_through():
    a, b = torch.ones(2, 4), torch.zeros(3, 2)
    still = Trajectory.from_factors([10, 20], [{"w": (a, b)}, {"w": (a, b)}])
    assert dict(iter_spectra(still, 10))["w"]["global"].share().isnan().all()

    def fail(module):
        raise KeyError(module)

    with pytest.raises(KeyError):
        list(map_modules(still, fail, workers=2))


def test_bf16_checkpoints_against_dense_float64():
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(8, 130, generator=g) * 0.1, torch.zeros(90, 8)
    factors = []
    for _ in range(7):
        a, b = a + 1e-3 * torch.randn(8, 130, generator=g), b + 1e-3 * torch.randn(90, 8, generator=g)
        factors.append({"w": (a.bfloat16(), b.bfloat16())})
    traj = Trajectory.from_factors([10 * n for n in range(1, 8)], factors, scaling=2.0)
    dense = {10 * (n + 1): 2.0 * f["w"][1].double() @ f["w"][0].double() for n, f in enumerate(factors)}
    dense[0] = torch.zeros(90, 130, dtype=torch.float64)
    for kind, found in dict(iter_spectra(traj, 20))["w"].items():
        for p, t in enumerate(found.steps):
            first, last = {"global": (0, t), "local": (t - 10, t), "target": (t, t + 20)}[kind]
            u, sigma, vt = torch.linalg.svd(dense[last] - dense[first])
            assert abs(float(found.sigma[p, 0] / sigma[0]) - 1) <= 1e-8
            assert abs(float(found.u[p].double() @ u[:, 0])) >= 1 - 1e-6 or sigma[1] > 0.99 * sigma[0]
            assert abs(float(found.v[p].double() @ vt[0])) >= 1 - 1e-6 or sigma[1] > 0.99 * sigma[0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_value_in_memory_names_module_and_step(broken):
    whole = run((10, 20, 30))
    factors = [{module: whole.factors(step, module) for module in whole.modules} for step in whole.steps]
    factors[1]["w"][0][1, 2] = broken
    traj = Trajectory.from_factors(whole.steps, factors, scaling=1.5)
    with pytest.raises(InputError, match="w at step 20"):
        list(iter_spectra(traj, 10, workers=1))


@pytest.mark.parametrize(
    ("times_a", "times_b"),
    [(1, 1e-7), (1, 1e-20), (1, 1e-36), (1e7, 1e7), (1e14, 1e14), (1e-4, 1e-4), (1e12, 1e-12)],
)
def test_leading_vectors_do_not_depend_on_the_scale(times_a, times_b):
    traj = run((10, 20, 30, 40), m=60, n=50)
    factors = [
        {
            m: (traj.factors(s, m)[0].double() * times_a, traj.factors(s, m)[1].double() * times_b)
            for m in traj.modules
        }
        for s in traj.steps
    ]
    scaled = Trajectory.from_factors(traj.steps, factors)
    plain = dict(iter_spectra(traj, 20, workers=1))
    for module, kinds in iter_spectra(scaled, 20, workers=1):
        for kind, found in kinds.items():
            for mine, other in ((found.u, plain[module][kind].u), (found.v, plain[module][kind].v)):
                torch.testing.assert_close((mine * other).sum(1).abs(), torch.ones(len(mine)))


def test_a_system_that_does_not_tell_its_cores_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.sched_getaffinity` is Linux's alone; the other helpers here run on macOS, too."""
    monkeypatch.delattr("os.sched_getaffinity")
    traj = run((10, 20, 30))
    assert [name for name, _ in map_modules(traj, lambda name: name)] == list(traj.modules)
