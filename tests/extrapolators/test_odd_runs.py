"""Every registered method on runs that move oddly: finite predictions or one clear line, never a NaN."""

from __future__ import annotations

import math

import pytest
import torch

import synthetic_runs as synthetic
from nextrl import testing
from nextrl.errors import InputError
from nextrl.extrapolators import Prediction, get, names
from nextrl.extrapolators.triples import collect
from nextrl.leaps.leap import Leap

FAST = {"next-paper": {"epochs": 5}, "next": {"updates": 10}, "nowcast": {"updates": 10}}
FIRST, SECOND = synthetic.MODULES
STEPS = synthetic.STEPS[:12]
UNEVEN = (10, 12, 30, 35, 36, 60, 70, 95, 96, 110, 113, 120)
HORIZON = 20


def since(step: int) -> synthetic.Path:
    """At the start until then, straight on from there."""
    return lambda t, p, q, noise: p * max(0.0, (t - step) / 100)


def until(step: int) -> synthetic.Path:
    """Straight on until then, still from there."""
    return lambda t, p, q, noise: p * (min(t, step) / 100)


def elsewhere(t: float, p: torch.Tensor, q: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Away from the start at once, then still, but for the last checkpoint."""
    return p + q if t >= STEPS[-1] else p


def rests_at(step: int) -> synthetic.Path:
    """A walk that stands still in the one window that ends at a step."""
    walk, places = synthetic.walk(2.0), {}

    def path(t: float, p: torch.Tensor, q: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        places[p.shape] = places[p.shape] if t == step else walk(t, p, q, noise).clone()
        return places[p.shape]

    return path


def broken(step: int) -> synthetic.Path:
    """A walk with one NaN at a step."""
    walk = synthetic.walk(2.0)

    def path(t: float, p: torch.Tensor, q: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        b = walk(t, p, q, noise)
        b[0, 0] = math.nan if t == step else b[0, 0]
        return b

    return path


def only(module: str, path: synthetic.Path, other: synthetic.Path) -> dict[str, synthetic.Path]:
    """One path for a module, another one for the rest."""
    return {m: path if m == module else other for m in synthetic.MODULES}


RUNS = {
    "still until its last checkpoint": synthetic.run(since(110), STEPS),
    "still until then, step 0 on disk": synthetic.run(since(110), (0, *STEPS)),
    "still elsewhere until then": synthetic.run(elsewhere, STEPS),
    "moves at first only": synthetic.run(until(30), STEPS),
    "one module moves": synthetic.run(only(FIRST, synthetic.walk(2.0), since(999)), STEPS),
    "one module moves at the last": synthetic.run(only(SECOND, since(110), synthetic.line), STEPS),
    "one module moves at first": synthetic.run(only(SECOND, until(30), synthetic.line), STEPS),
    "rank 1": synthetic.run(synthetic.rank_one_line, STEPS),
    "rank 1 in one module": synthetic.run(only(FIRST, synthetic.rank_one_line, synthetic.line), STEPS),
    "a gap": synthetic.run(synthetic.walk(2.0), testing.GAPPED_STEPS),
    "two equal checkpoints": synthetic.run(rests_at(60), STEPS),
    "uneven steps": synthetic.run(synthetic.walk(2.0), UNEVEN),
    "NaN at the last checkpoint": synthetic.run(broken(120), STEPS),
    "NaN at an early checkpoint": synthetic.run(broken(20), STEPS),
}
LEARNERS = {"next", "next-paper"}
ALL = set(names()) - {"none"}
LATE = {"factors", "secant", "window", "linear", "first-update", "ols", "lawa", "quadratic"}
"""Methods that look neither at step 20 nor at the inner products of all checkpoints."""

REFUSE: dict[str, set[str]] = {
    "still until its last checkpoint": {*LEARNERS, "dmd", "nowcast"},
    "still until then, step 0 on disk": {*LEARNERS, "dmd", "nowcast"},
    "still elsewhere until then": {*LEARNERS, "nowcast"},
    "moves at first only": ALL,
    "NaN at the last checkpoint": {*ALL, "none"},
    "NaN at an early checkpoint": ALL - LATE,
}


def fitted(name: str, run: str) -> Prediction:
    return testing.maker(name, **FAST.get(name, {}))().fit(RUNS[run], HORIZON)


def tensors(name: str, run: str) -> list[torch.Tensor]:
    """What a prediction says of each module at several alphas, and the leap's own factors."""
    traj, prediction = RUNS[run], fitted(name, run)
    deltas = [prediction.delta(m, a).dense() for m in traj.modules for a in (-1.0, 0.0, 1.0, 4.0)]
    made = Leap(
        traj=traj,
        prediction=prediction,
        method=name,
        from_step=traj.steps[-1],
        horizon=HORIZON,
        alpha=1.0,
        seconds=0.0,
    )
    return [*deltas, *made.leap_state().values()]


@pytest.mark.parametrize("run", list(RUNS))
@pytest.mark.parametrize("name", names())
def test_a_prediction_is_finite_or_refused_in_one_line(name: str, run: str) -> None:
    line, made = "", []
    try:
        made = tensors(name, run)
    except InputError as error:
        line = str(error)
    assert bool(line) == (name in REFUSE.get(run, ())), line
    assert "\n" not in line
    assert all(bool(tensor.isfinite().all()) for tensor in made)


@pytest.mark.parametrize(
    "steps",
    [(10,), (0, 10), (10, 20), (10, 40), (10, 20, 30), (10, 15, 40), (7, 10, 50, 53), (10, 20, 30, 200)],
)
@pytest.mark.parametrize("name", names())
def test_a_handful_of_checkpoints_is_enough_or_too_few_in_one_line(name: str, steps: tuple[int, ...]) -> None:
    traj = synthetic.run(synthetic.walk(2.0), steps)
    for horizon in (1, 10, 20):
        try:
            made = testing.maker(name, **FAST.get(name, {}))().fit(traj, horizon)
        except InputError:  # one line, as every message of it
            continue
        assert all(bool(made.delta(m, a).dense().isfinite().all()) for m in traj.modules for a in (-1, 1, 4))


@pytest.mark.parametrize("run", [run for run in REFUSE if not run.startswith("NaN")])
def test_what_cannot_be_learned_from_says_so(run: str) -> None:
    for name in sorted(REFUSE[run]):
        with pytest.raises(InputError, match=r"does not move|moved too late or too little|no scalar"):
            fitted(name, run)


def test_the_line_names_the_method_and_the_way_out() -> None:
    late = collect(RUNS["still until its last checkpoint"], HORIZON, "next")
    words = r"^next: the run moved too late .* up to 120 did .* next 20 steps both move; train on, or"
    with pytest.raises(InputError, match=words):
        late.sizes(HORIZON)


def test_a_module_that_moves_at_the_last_keeps_no_other_from_its_leap() -> None:
    """`next` goes on along its last displacement, as its networks say before they learn; `next-paper` lets it be."""
    run = "one module moves at the last"
    ours, paper = fitted("next", run), fitted("next-paper", run)
    u, _, v = torch.linalg.svd(RUNS[run].delta(SECOND, 110, 120).dense())
    along = float(u[:, 0] @ ours.delta(SECOND).dense() @ v[0])
    assert along == pytest.approx(float(ours.delta(SECOND).norm()), rel=1e-3)
    assert float(paper.delta(SECOND).norm()) == 0.0
    assert min(float(found.delta(FIRST).norm()) for found in (ours, paper)) > 0.0


@pytest.mark.parametrize("run", ["rank 1", "rank 1 in one module"])
def test_triples_beyond_the_true_rank_of_a_run_are_left_out(run: str) -> None:
    traj = RUNS[run]
    one, most = (get("next-paper", epochs=5, rank=k).fit(traj, HORIZON) for k in (1, 4))
    torch.testing.assert_close(most.delta(FIRST).dense(), one.delta(FIRST).dense(), rtol=1e-9, atol=1e-12)
    wider = torch.linalg.matrix_rank(most.delta(SECOND).dense(), rtol=1e-6)
    assert int(wider) == (1 if run == "rank 1" else testing.RANK)


def test_a_later_triple_that_comes_with_the_last_checkpoint_is_not_learned() -> None:
    """At T the differences have a second triple, and no span to train on has one."""

    def widens(t: float, p: torch.Tensor, q: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        b = synthetic.rank_one_line(t, p, q, noise)
        return b + 0.1 * torch.outer(p[:, 1], q[1]) if t == STEPS[-1] else b

    traj = synthetic.run(widens, (*STEPS[:-1], 115, STEPS[-1]))
    one, two = (get("next-paper", epochs=5, rank=k).fit(traj, 10) for k in (1, 2))
    assert collect(traj, 10, "next-paper", part=1).modules == []
    assert torch.equal(one.delta(FIRST).dense(), two.delta(FIRST).dense())
