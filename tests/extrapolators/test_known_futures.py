"""Methods on runs whose future is known in closed form: who is exact where, and who must not be fooled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import synthetic_runs as synthetic
from nextrl.errors import InputError
from nextrl.extrapolators import get, names, next_paper
from nextrl.extrapolators.networks import seeded
from nextrl.extrapolators.next_paper import Inputs, PaperNet
from nextrl.extrapolators.triples import Features
from nextrl.trajectory.combinations import even_grid, even_points
from nextrl.trajectory.trajectory import Trajectory
from synthetic_runs import error

AT, HORIZON = 100, 40


def relative_error(traj: Trajectory, name: str, alpha: float = 1.0, **params: object) -> float:
    prediction = get(name, **params).fit(traj.upto(AT), HORIZON)
    return error(traj, prediction, AT, AT + round(alpha * HORIZON), alpha)


@pytest.mark.parametrize(
    "name",
    ["factors", "secant", "linear", "first-update", "relex", "relex-pinned", "ols", "dmd", "quadratic"],
)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_straight_line_is_exact(name: str, alpha: float) -> None:
    assert relative_error(synthetic.run(synthetic.line), name, alpha) < 1e-6


@pytest.mark.parametrize("name", ["window", "rank1-linear"])
def test_rank_one_line_is_exact_for_rank_one_methods(name: str) -> None:
    assert relative_error(synthetic.run(synthetic.rank_one_line), name) < 1e-6


@pytest.mark.parametrize("name", ["next", "nowcast"])
def test_networks_learn_the_line(name: str) -> None:
    assert relative_error(synthetic.run(synthetic.rank_one_line), name) < 0.1


def test_alpharl_follows_an_accuracy_that_rises_with_the_weights() -> None:
    traj = synthetic.run(synthetic.rank_one_line)
    accuracy = {t: 0.1 + t / 1000 for t in traj.steps}
    assert relative_error(traj, "alpharl", accuracy=accuracy) < 1e-5


@pytest.mark.parametrize("name", ["factors", "secant", "linear", "relex-pinned", "ols", "dmd", "quadratic"])
def test_uneven_spacing_goes_by_steps(name: str) -> None:
    traj = synthetic.run(synthetic.line, (10, 15, 30, 40, 70, 80, 90, 100, 140))
    assert relative_error(traj, name) < 1e-6


def test_parabola_is_exact_for_quadratic_only() -> None:
    traj = synthetic.run(synthetic.parabola)
    assert relative_error(traj, "quadratic") < 1e-6
    assert relative_error(traj, "secant") > 0.1


@pytest.mark.parametrize(
    ("path", "delays"),
    [(synthetic.saturating(60.0), 1), (synthetic.rotation, 1), (synthetic.oscillation, 2)],
)
def test_dmd_is_exact_on_linear_dynamics(path: synthetic.Path, delays: int) -> None:
    traj = synthetic.run(path)
    assert relative_error(traj, "dmd", energy=1.0, delays=delays) < 1e-4
    assert relative_error(traj, "secant") > 0.2


GAPS = {
    "what a trainer keeps in memory": (10, *range(170, 301, 10)),
    "some missing": (*range(10, 151, 10), *range(230, 301, 10)),
    "a last one at max_steps": (*range(10, 291, 10), 295),
}


@pytest.mark.parametrize("steps", GAPS.values(), ids=GAPS)
def test_dmd_is_exact_across_a_gap(steps: tuple[int, ...]) -> None:
    whole = synthetic.run(synthetic.rotation, (*steps, steps[-1] + 40))
    kept = whole.upto(steps[-1])
    prediction = get("dmd", energy=1.0).fit(kept, 40)
    assert error(whole, prediction, steps[-1], steps[-1] + 40) < 1e-4
    assert prediction.delta(kept.modules[0], 0.0).norm() == 0.0


@pytest.mark.parametrize("name", ["dmd", "rna"])
def test_what_lies_before_a_gap_does_not_change_the_answer(name: str) -> None:
    steps = (10, *range(170, 301, 10))
    whole = synthetic.run(synthetic.saturating(150.0), steps)
    params = {"energy": 1.0} if name == "dmd" else {}
    both = (get(name, **params).fit(traj, 40) for traj in (whole, whole.at(steps[1:])))
    here, there = (prediction.delta(whole.modules[0]) for prediction in both)
    assert float((here - there).norm()) < 1e-6 * float(here.norm())


def test_points_are_interpolated_only_where_no_stretch_is_long_enough() -> None:
    traj = synthetic.run(synthetic.line, (10, 15, 30, 40, 70, 80, 90, 100, 140))
    points, beyond = even_points(traj, 4)
    assert (points.argmax(1).tolist(), points.sum(1).tolist(), beyond) == ([4, 5, 6, 7], [1.0] * 4, 40)
    assert even_points(traj, 5)[0].equal(even_grid(traj))


def test_dmd_keeps_two_time_scales_apart() -> None:
    first, second = synthetic.MODULES
    traj = synthetic.run({first: synthetic.saturating(15.0), second: synthetic.saturating(150.0)})
    assert relative_error(traj, "dmd", energy=1.0) < 1e-4
    assert relative_error(traj, "linear") > 0.3


def test_averages_come_closer_to_the_centre_of_noise() -> None:
    traj = synthetic.run(synthetic.offset_noise)
    for name in ("lawa", "ema"):
        assert relative_error(traj, name) < 0.95  # staying put has 1


def test_rna_finds_the_limit_of_a_saturating_run() -> None:
    traj = synthetic.run({m: synthetic.saturating(30.0 + 40 * i) for i, m in enumerate(synthetic.MODULES)})
    far = synthetic.run(
        {m: synthetic.saturating(30.0 + 40 * i) for i, m in enumerate(synthetic.MODULES)}, (10, 100, 3000)
    )
    prediction = get("rna", penalty=1e-10).fit(traj.upto(AT), HORIZON)
    assert error(far, prediction, AT, 3000) < 0.02


@pytest.mark.parametrize("name", ["secant", "linear", "relex", "relex-pinned", "ols", "quadratic", "factors"])
def test_forward_methods_lose_on_noise(name: str) -> None:
    traj = synthetic.run(synthetic.walk(drift=0.0))
    assert relative_error(traj, name) > 1.0


def test_relex_leaves_out_what_is_not_rank_one_and_pinned_keeps_it() -> None:
    traj = synthetic.run(synthetic.rotation)
    module = traj.modules[0]
    at_rest = get("relex").fit(traj.upto(AT), HORIZON).delta(module, 1e-12)
    pinned = get("relex-pinned").fit(traj.upto(AT), HORIZON).delta(module, 1e-12)
    assert float(at_rest.norm()) > 0.05 * float(traj.weight(AT, module).norm())
    assert float(pinned.norm()) == pytest.approx(0.0, abs=1e-9)


def test_next_keeps_sizes_apart_where_the_paper_form_does_not() -> None:
    first, second = synthetic.MODULES

    def small(
        t: float, p: synthetic.Tensor, q: synthetic.Tensor, noise: synthetic.Tensor
    ) -> synthetic.Tensor:
        return 0.02 * synthetic.rank_one_line(t, p, q, noise)

    traj = synthetic.run({first: synthetic.rank_one_line, second: small})
    prediction = get("next").fit(traj.upto(AT), HORIZON)
    for module in traj.modules:
        real = float(traj.delta(module, AT, AT + HORIZON).norm())
        assert float(prediction.delta(module).norm()) == pytest.approx(real, rel=0.1)


def test_the_published_network_for_sizes_may_say_the_same_of_every_matrix() -> None:
    """For some initialisations, since its ReLUs of width 1 are dead then, and not for all."""
    sizes = torch.linspace(0.05, 2.0, 40)
    x, flat = torch.stack([3 * sizes, sizes], 1)[:, :, None], []
    for seed in range(20):
        with torch.no_grad():
            flat.append(float(PaperNet(1, seeded(seed))(x).std()) < 1e-6)
    assert 0 < sum(flat) < 20


def test_paper_form_exposes_its_alphas_and_sizes() -> None:
    method = get("next-paper")
    assert method.tags.alphas == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert (method.width, method.epochs, method.learning_rate) == (256, 1000, 2e-5)


def moves(method: str, **params: Any) -> dict[str, Tensor]:
    traj = synthetic.run(synthetic.parabola).upto(AT)
    prediction = get(method, **params).fit(traj, HORIZON)
    return {m: prediction.delta(m).dense() for m in traj.modules}


def test_the_paper_s_ablations_are_switches_that_do_something() -> None:
    both, far, local = (moves("next-paper", epochs=20, inputs=i) for i in ("both", "global", "local"))
    for module in both:
        assert not torch.allclose(both[module], far[module])
        assert not torch.allclose(far[module], local[module])
    with pytest.raises(InputError, match="inputs must be both or global or local"):
        moves("next-paper", inputs="none")


@pytest.mark.parametrize(("inputs", "blind"), [("global", 1), ("local", 0)])
def test_a_network_that_sees_one_input_does_not_see_the_other(inputs: Inputs, blind: int) -> None:
    torch.manual_seed(0)
    net, x = PaperNet(6, seeded(0), 8, inputs), torch.randn(4, 2, 6)
    other = x.clone()
    other[:, blind] = torch.randn(4, 6)
    assert torch.equal(net(x), net(other))
    other[:, 1 - blind] += 1.0
    assert not torch.equal(net(x), net(other))


def test_a_second_triple_is_added_to_the_first_and_not_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    traj, asked = synthetic.run(synthetic.line).upto(AT), []
    really = next_paper.collect

    def collect(traj: Trajectory, horizon: int, name: str, part: int = 0) -> Features:
        asked.append(part)
        return really(traj, horizon, name, part)

    one = get("next-paper", epochs=20).fit(traj, HORIZON)
    monkeypatch.setattr(next_paper, "collect", collect)
    both = get("next-paper", epochs=20, rank=2).fit(traj, HORIZON)
    assert asked == [0, 1]
    for module in traj.modules:
        more = both.delta(module).dense() - one.delta(module).dense()
        assert torch.linalg.matrix_rank(more, rtol=1e-6) == 1


FAST = {"next-paper": {"epochs": 5}, "next": {"updates": 20}, "nowcast": {"updates": 20}}


# `nowcast` forecasts A and B for themselves, and A_0 is known from a checkpoint alone.
@pytest.mark.parametrize("name", [name for name in names() if name != "nowcast"])
@pytest.mark.parametrize("horizon", [40, 70])
def test_a_method_does_not_care_whether_step_0_lies_on_disk(name: str, horizon: int) -> None:
    """W_0 is known either way: in a trainer's memory it is there, in its folder of checkpoints it is not."""
    steps = range(10, 161, 10)
    without = synthetic.run(synthetic.saturating(60.0), steps)
    factors = [{m: without.factors(s, m) for m in without.modules} for s in steps]
    zero = {m: (a, torch.zeros_like(b)) for m, (a, b) in factors[0].items()}
    scaling = {m: without.scaling(m) for m in without.modules}
    with_it = Trajectory.from_factors((0, *steps), [zero, *factors], scaling=scaling)
    params: dict[str, Any] = dict(FAST.get(name, {}))
    if name == "alpharl":
        params["accuracy"] = {s: 0.2 + s / 400 for s in steps}
    module = without.modules[0]
    here, there = (
        get(name, **params).fit(traj, horizon).delta(module).dense() for traj in (without, with_it)
    )
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)
