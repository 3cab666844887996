"""Trajectories: deltas, Gram matrices, persistence and views against dense algebra."""

import pytest
import torch

from lora_runs import lora, write_run
from nextrl.errors import InputError
from nextrl.trajectory.trajectory import Trajectory


def memory(steps=(10, 20, 30, 40), seed=0, r=3, **options):
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (9, 7), "b": (5, 11)}
    state = {n: (torch.randn(r, k, generator=g), torch.zeros(m, r)) for n, (m, k) in shapes.items()}
    factors = []
    for _ in steps:
        state = {
            n: (a + 0.1 * torch.randn(a.shape, generator=g), b + 0.1 * torch.randn(b.shape, generator=g))
            for n, (a, b) in state.items()
        }
        factors.append(state)
    return Trajectory.from_factors(steps, factors, scaling={"a": 2.0, "b": 0.5}, **options), factors


def dense(factors, module, scaling):
    return [scaling * b.double() @ a.double() for a, b in (f[module] for f in factors)]


@pytest.mark.parametrize(("module", "scaling"), [("a", 2.0), ("b", 0.5)])
def test_weights_deltas_and_gram_match_dense(module, scaling):
    traj, factors = memory()
    w = [torch.zeros_like(dense(factors, module, scaling)[0]), *dense(factors, module, scaling)]
    times = (0, 10, 20, 30, 40)
    for i, s in enumerate(times):
        torch.testing.assert_close(traj.weight(s, module).dense(), w[i])
        for j, t in enumerate(times):
            torch.testing.assert_close(traj.delta(module, s, t).dense(), w[j] - w[i], rtol=1e-12, atol=1e-14)
    flat = torch.stack([x.flatten() for x in w[1:]])
    torch.testing.assert_close(traj.gram(module), flat @ flat.mT)


def test_persistence_is_the_cosine_over_all_modules():
    traj, factors = memory()
    flat = [
        torch.cat([dense(factors, m, s)[i].flatten() for m, s in (("a", 2.0), ("b", 0.5))]) for i in range(4)
    ]
    first, second = flat[1] - flat[0], flat[2] - flat[1]
    assert traj.persistence(10, at=30) == pytest.approx(
        float(first @ second / (first.norm() * second.norm())), abs=1e-12
    )
    assert traj.persistence(20) == pytest.approx(
        float(torch.cosine_similarity(flat[1], flat[3] - flat[1], dim=0))
    )
    with pytest.raises(InputError, match="needs step -20"):
        traj.persistence(30)


def test_views_share_products_and_never_touch_later_checkpoints():
    traj, _ = memory()
    full = traj.gram("a")
    view = traj.upto(20)
    assert view.steps == (10, 20)
    torch.testing.assert_close(view.gram("a"), full[:2, :2])
    assert traj.at([40, 10]).steps == (10, 40)
    with pytest.raises(InputError, match="no checkpoint at step 30"):
        view.factors(30, "a")


def test_spacing_and_groups():
    assert memory((10, 20, 30, 60))[0].spacing == 10
    assert memory((5,))[0].spacing == 5
    assert memory()[0].groups() == {(9, 7, 3): ["a"], (5, 11, 3): ["b"]}


def test_step_zero_on_disk_is_used_and_unknown_starts_are_refused():
    options = {"adapter_config": {"init_lora_weights": "pissa"}}
    traj, factors = memory((0, 10, 20), **options)
    w = dense(factors, "a", 2.0)
    torch.testing.assert_close(traj.delta("a", 0, 20).dense(), w[2] - w[0])
    flat = torch.stack([(x - w[0]).flatten() for x in w])
    torch.testing.assert_close(traj.gram("a"), flat @ flat.mT)
    late, _ = memory((10, 20, 30), **options)
    with pytest.raises(InputError, match="checkpoint-0"):
        late.gram("a")
    with pytest.raises(InputError, match="pissa"):
        late.delta("a", 0, 20)


@pytest.mark.parametrize("init", ["Gaussian", "mica", "true", True])
def test_a_start_at_zero_is_known_in_memory_as_it_is_on_disk(init):
    late, factors = memory((10, 20), adapter_config={"init_lora_weights": init})
    torch.testing.assert_close(late.delta("a", 0, 20).dense(), dense(factors, "a", 2.0)[1])


def test_from_factors_checks_steps_and_load_checks_presence(tmp_path):
    with pytest.raises(InputError, match="ascending"):
        Trajectory.from_factors([20, 10], [{}, {}])
    with pytest.raises(InputError, match="no such directory"):
        Trajectory.load(tmp_path / "nothing")


def test_loading_a_subset_and_a_mapping(tmp_path):
    write_run(tmp_path, lora())
    assert Trajectory.load(tmp_path, steps=[20, 40]).steps == (20, 40)
    mapping = {7: tmp_path / "checkpoint-10", 14: tmp_path / "checkpoint-30"}
    assert Trajectory.load(mapping).steps == (7, 14)
    with pytest.raises(InputError, match="no checkpoint at step 25; there are 10, 20, 30, 40"):
        Trajectory.load(tmp_path, steps=[25])


def test_what_a_view_says_does_not_depend_on_what_was_asked_before() -> None:
    """Its W_0 is the base model where the checkpoint of step 0 is not in it."""
    g = torch.Generator().manual_seed(0)
    factors = [{"w": (torch.randn(2, 5, generator=g), torch.randn(6, 2, generator=g))} for _ in range(4)]
    steps, later = (0, 10, 20, 30), (10, 20, 30)
    alone = Trajectory.from_factors(later, factors[1:]).gram("w")
    first, after = Trajectory.from_factors(steps, factors), Trajectory.from_factors(steps, factors)
    whole = after.gram("w")
    for traj in (first, after):
        torch.testing.assert_close(traj.at(later).gram("w"), alone)
        torch.testing.assert_close(traj.at(later).upto(20).gram("w"), alone[:2, :2])
        torch.testing.assert_close(traj.gram("w"), whole)
        torch.testing.assert_close(traj.at((0, 20)).gram("w"), whole[::2, ::2])
