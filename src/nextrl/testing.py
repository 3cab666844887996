"""Does an extrapolator keep its promises? Checks for your own method, and small runs to try it on.

    import nextrl.testing

    nextrl.testing.check_extrapolator("my-method")        # a registered name, or the class itself

Every check is a function of `CHECKS` that takes a maker of the method and raises AssertionError with one
line: the method's name, what it did, and what it should do. Nothing here needs a test runner.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nextrl.errors import InputError, first_line
from nextrl.extrapolators import Extrapolator, InsideFactors, Prediction, Tags, get, tags_of
from nextrl.leaps.leap import Leap
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.trajectory import Trajectory

MODULES = {"model.layers.0.self_attn.q_proj": (24, 20), "model.layers.0.mlp.up_proj": (40, 20)}
"""Name -> (m, n) of the matrices that a synthetic run adapts."""
RANK = 4
STEPS = tuple(range(10, 161, 10))
GAPPED_STEPS = (10, 20, 30, 40, 50, 100, 110, 120)
UNEVEN_STEPS = (10, 20, 30, 35, 50, 60, 70, 80, 90, 110, 120, 130, 140, 150)
HORIZON, AT = 20, 120  # the checks leap 20 steps ahead from step 120
FAR = 1000  # a horizon for which no synthetic run is long enough

# ------------------------------------------------------------------------------------------- synthetic runs

Path = Callable[[float, Tensor, Tensor, Tensor], Tensor]
"""(t, P, Q, noise that is fresh for each t) -> B_t, all of them (m, r)."""


def synthetic_run(
    path: Path | Mapping[str, Path],
    steps: Sequence[int] = STEPS,
    *,
    seed: int = 0,
    adapter_config: dict[str, Any] | None = None,
) -> Trajectory:
    """A run in memory whose A (4, n) is fixed, so that W_t is linear in a B_t that is written down.

    Args:
        path: gives B_t; one rule for all modules of `MODULES`, or one for each.
        steps: steps of the checkpoints, ascending.
        seed: of A, P, Q and the noise.
        adapter_config: as in `adapter_config.json`.
    """
    # Noise has its own generator: the directions must not depend on how many steps are asked for.
    draws, noises = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    factors: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in steps]
    for module, (m, n) in MODULES.items():
        a = torch.randn(RANK, n, generator=draws, dtype=torch.float64)
        p, q = (torch.randn(m, RANK, generator=draws, dtype=torch.float64) for _ in range(2))
        rule = path[module] if isinstance(path, Mapping) else path
        for at, step in zip(factors, steps, strict=True):
            noise = torch.randn(m, RANK, generator=noises, dtype=torch.float64)
            at[module] = (a, rule(step, p, q, noise))
    return Trajectory.from_factors(steps, factors, scaling=2.0, adapter_config=adapter_config)


def straight_line(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Straight from zero."""
    return p * (t / 100)


def standstill(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """At one point, which is not the start."""
    return p


def at_the_start(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """At zero, where it began."""
    return 0 * p


def drifting_walk(drift: float) -> Path:
    """A random walk plus a drift; a path for one run only, its steps ascending."""
    total: dict[tuple[int, ...], Tensor] = {}

    def path(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
        total[noise.shape] = total.get(noise.shape, torch.zeros_like(noise)) + noise
        return total[noise.shape] + drift * p * (t / 10)

    return path


class SealedCheckpoint(MemoryCheckpoint):
    """A checkpoint that must not be read."""

    def factors(self, module: str, *, check: bool = True) -> tuple[Tensor, Tensor]:
        """Fails."""
        raise AssertionError(f"step {self.step} was read")


def seal_after(traj: Trajectory, step: int) -> Trajectory:
    """The same run in memory; reading a checkpoint later than `step` raises AssertionError."""
    kept: list[MemoryCheckpoint] = []
    for checkpoint in traj.checkpoints:
        if not isinstance(checkpoint, MemoryCheckpoint):
            raise TypeError(f"seal_after needs a run in memory, not a {type(checkpoint).__name__}")
        sealed = SealedCheckpoint(checkpoint.step, checkpoint.tensors, checkpoint.scalings)
        kept.append(checkpoint if checkpoint.step <= step else sealed)
    return Trajectory(tuple(kept), None, traj.adapter_config)


# --------------------------------------------------------------------------------------------------- checks

Maker = Callable[[], Extrapolator]
"""Builds the method afresh, so that no check sees what another left behind."""


def check_extrapolator(method: str | type[Any], **params: Any) -> None:
    """Run every check on a method.

    Args:
        method: a registered name, or a class that need not be registered.
        params: the method's own parameters; give a method that trains few updates, for speed. `accuracy` is
            filled in for a method whose tags say that it needs it.

    Raises:
        AssertionError: the method breaks a promise; one line with its name and which.
    """
    make = maker(method, **params)
    for check in CHECKS.values():
        check(make)


def maker(method: str | type[Any], **params: Any) -> Maker:
    """A maker of `method` for a single check of `CHECKS`; arguments as `check_extrapolator`."""

    def make() -> Extrapolator:
        given = {"accuracy": {t: 0.2 + t / 400 for t in STEPS}, **params} if needs_accuracy else params
        built: Extrapolator = get(method, **given) if isinstance(method, str) else method(**given)
        return built

    tags = tags_of(get(method) if isinstance(method, str) else method)
    needs_accuracy = isinstance(tags, Tags) and tags.needs_accuracy
    return make


def says_what_it_is(make: Maker) -> None:
    """A name that the command line can take, a summary, a source, tags, and how many checkpoints it needs."""
    method = make()
    name = getattr(method, "name", "")
    _expect(
        bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)),
        method,
        f"its name must be small letters, digits and hyphens, not {name!r}",
    )
    for attribute in ("summary", "reference"):
        text = getattr(method, attribute, "")
        _expect(bool(text) and "\n" not in text, method, f"its {attribute} must be one line, not {text!r}")
    tags = tags_of(method)
    _expect(isinstance(tags, Tags), method, f"its tags must be nextrl.extrapolators.Tags, not {tags!r}")
    near, far = method.min_checkpoints(10, 10), method.min_checkpoints(50, 10)
    _expect(
        far >= near >= 1,
        method,
        f"min_checkpoints must be at least 1 and not fall with the horizon; it is {near} for 10 steps, {far} for 50",
    )


def moves_each_module_by_a_finite_matrix(make: Maker) -> None:
    """`delta(module, alpha)` is a finite matrix of the module's shape, for alphas on both sides of zero."""
    method, traj = make(), _drifting().upto(AT)
    prediction = _fitted(method, traj, HORIZON)
    for module in traj.modules:
        for alpha in (-1.0, 0.0, 0.5, 3.0):
            delta = prediction.delta(module, alpha)
            shape, wanted = tuple(delta.shape), traj.shape(module)[:2]
            _expect(shape == wanted, method, f"delta is {shape} for a module of shape {wanted}")
            finite = bool(torch.isfinite(delta.dense()).all())
            _expect(finite, method, f"delta at alpha {alpha:g} has a NaN or an Inf on an ordinary run")


def repeats_itself_for_one_seed(make: Maker) -> None:
    """The same seed gives the same prediction, and torch's global random state is left as it was."""
    traj, state = _drifting().upto(AT), torch.random.get_rng_state()
    method = make()
    first, second = (_fitted(m, traj, HORIZON, seed=3) for m in (method, make()))
    _expect(
        torch.equal(state, torch.random.get_rng_state()),
        method,
        "fit changes torch's global random state; draw from a torch.Generator of its own",
    )
    for module in traj.modules:
        same = torch.equal(first.delta(module).dense(), second.delta(module).dense())
        _expect(same, method, f"two fits with the same seed differ in {module}")


def reads_nothing_later(make: Maker) -> None:
    """A fit on `traj.upto(T)`, and what it predicts, read no checkpoint after T."""
    method, sealed = make(), seal_after(_drifting(), AT)
    try:
        prediction = _fitted(method, sealed.upto(AT), HORIZON)
        for module in sealed.modules:
            prediction.delta(module, 1.0)
    except AssertionError as error:
        raise AssertionError(f"{method.name}: reads past the trajectory that it is given: {error}") from error


def says_how_many_checkpoints_it_needs(make: Maker) -> None:
    """Too few checkpoints are one clear line, and a horizon that is offered instead works."""
    method, traj = make(), _drifting()
    if method.min_checkpoints(FAR, traj.spacing) > len(STEPS) + 1:
        words = rf"{re.escape(method.name)} needs \d+ checkpoints.*horizon of \d+ steps would work"
        line = _refused(method, functools.partial(method.fit, traj, FAR), words, f"a horizon of {FAR} steps")
        offered = int(line.split("a horizon of ")[-1].split()[0])
        _fitted(make(), traj, offered)
    few = method.min_checkpoints(10, 10)
    if few > 2:
        short = traj.at(STEPS[: few - 2])
        _refused(
            method, functools.partial(method.fit, short, 10), "needs ", f"a run of {few - 2} checkpoints"
        )


def refuses_a_horizon_below_one(make: Maker) -> None:
    """A horizon of 0 or less is refused."""
    method = make()
    for horizon in (0, -10):
        fit = functools.partial(method.fit, _drifting(), horizon)
        _refused(method, fit, "horizon must be at least 1", f"a horizon of {horizon}")


def refuses_a_run_that_does_not_move(make: Maker) -> None:
    """A run that stands still is refused, unless the method's tags say that it stays put."""
    method = make()
    for path in (standstill, at_the_start):
        still = synthetic_run(path)
        if tags_of(method).stays:
            _fitted(method, still, HORIZON)
        else:
            fit = functools.partial(method.fit, still, HORIZON)
            _refused(method, fit, "does not move", "a run that does not move")


def leaves_a_module_that_never_moved(make: Maker) -> None:
    """Where one of two modules never moves, it is predicted to stay and the other is predicted as usual."""
    method = make()
    moving, still = MODULES
    prediction = _fitted(method, synthetic_run({moving: straight_line, still: at_the_start}), HORIZON)
    distance = float(prediction.delta(still, 1.0).dense().norm())
    _expect(distance <= 1e-9, method, f"moves a module that never moved, by {distance:g}")
    finite = bool(torch.isfinite(prediction.delta(moving, 1.0).dense()).all())
    _expect(finite, method, "a module that never moved spoils the prediction of another one")


def refuses_alpha_out_of_range(make: Maker) -> None:
    """NaN, Inf and a typing mistake are refused as alpha."""
    method, traj = make(), _drifting()
    prediction = _fitted(method, traj, HORIZON)
    for alpha in (float("nan"), float("inf"), 1e3, -50.0):
        leap = functools.partial(prediction.delta, traj.modules[0], alpha)
        remedy = "nextrl.extrapolators.check_alpha(alpha) in delta"
        _refused(method, leap, "alpha must be", f"alpha {alpha:g}", remedy)


def stays_where_alpha_is_zero(make: Maker) -> None:
    """alpha = 0 changes nothing: a leap of that length counts as none, and its adapter as the run's own."""
    method, traj = make(), _drifting().upto(AT)
    prediction = _fitted(method, traj, HORIZON)
    distance = max(float(prediction.delta(module, 0.0).dense().norm()) for module in traj.modules)
    _expect(distance <= 1e-9, method, f"moves by {distance:g} at alpha 0, which is to stay")


def takes_uneven_spacing(make: Maker) -> None:
    """Checkpoints need not be evenly spaced."""
    method, traj = make(), synthetic_run(straight_line, UNEVEN_STEPS)
    prediction = _fitted(method, traj, HORIZON)
    finite = bool(torch.isfinite(prediction.delta(traj.modules[0], 1.0).dense()).all())
    _expect(finite, method, "delta has a NaN or an Inf on a run of uneven spacing")


def takes_a_gap(make: Maker) -> None:
    """Where checkpoints are missing, so that two targets may have one nearest, a prediction is finite, or refused."""
    method, gapped = make(), synthetic_run(straight_line, GAPPED_STEPS)
    remedy = "take nextrl.extrapolators.distinct_steps(traj, targets)"
    # T - h and T - 2h have one nearest checkpoint: before the gap for T = 100, and behind it for T = 120.
    for last, horizon in ((100, 10), (120, 20)):
        traj = gapped.upto(last)
        what = f"on a run with a gap (steps {', '.join(map(str, traj.steps))}; horizon {horizon}); {remedy}"
        try:
            with _no_other_exception(method, what):
                prediction = method.fit(traj, horizon)
                deltas = [prediction.delta(module, 1.0).dense() for module in traj.modules]
        except InputError:  # a method may need the checkpoints that are missing
            continue
        finite = all(bool(torch.isfinite(delta).all()) for delta in deltas)
        _expect(finite, method, f"delta has a NaN or an Inf {what}")


def comes_out_at_the_adapters_rank(make: Maker) -> None:
    """The leap fits into an adapter of the run's own rank, as well as any matrix of that rank can."""
    method, traj = make(), _drifting().upto(AT)
    leap = Leap(
        traj=traj,
        prediction=_fitted(method, traj, HORIZON),
        method=method.name,
        from_step=AT,
        horizon=HORIZON,
        alpha=1.0,
        seconds=0.0,
    )
    count = len(leap.leap_state())
    _expect(count == 2 * len(traj.modules), method, f"the leap has {count} tensors, not A and B per module")
    for module in traj.modules:
        a, b = leap.factors(module)
        shapes = tuple(a.shape), tuple(b.shape)
        wanted = tuple(tuple(old.shape) for old in traj.factors(AT, module))
        _expect(shapes == wanted, method, f"the leap's A and B are {shapes}, the adapter's {wanted}")
        if not isinstance(leap.prediction, InsideFactors):
            target = leap.target(module)
            made, best = traj.scaling(module) * (b.double() @ a.double()), target.recompress(RANK)[0].dense()
            error = float((made - best).norm()) / max(float(target.norm()), 1e-30)
            _expect(error <= 1e-5, method, f"the adapter misses the best one of its rank by {error:g}")
    _expect(0.0 <= leap.discarded < 1.0, method, f"rank {RANK} loses a share of {leap.discarded:g}")


CHECKS: dict[str, Callable[[Maker], None]] = {
    check.__name__: check
    for check in (
        says_what_it_is,
        moves_each_module_by_a_finite_matrix,
        repeats_itself_for_one_seed,
        reads_nothing_later,
        says_how_many_checkpoints_it_needs,
        refuses_a_horizon_below_one,
        refuses_a_run_that_does_not_move,
        leaves_a_module_that_never_moved,
        refuses_alpha_out_of_range,
        stays_where_alpha_is_zero,
        takes_uneven_spacing,
        takes_a_gap,
        comes_out_at_the_adapters_rank,
    )
}
"""Name -> check."""


def _drifting() -> Trajectory:
    return synthetic_run(drifting_walk(2.0))


def _fitted(method: Extrapolator, traj: Trajectory, horizon: int, seed: int = 0) -> Prediction:
    steps = f"steps {traj.steps[0]} to {traj.steps[-1]}"
    try:
        with _no_other_exception(method, f"for a horizon of {horizon} steps on a sound run ({steps})"):
            return method.fit(traj, horizon, seed=seed)
    except InputError as error:
        raise AssertionError(
            f"{method.name}: refuses a horizon of {horizon} steps on a sound run ({steps}): {error}"
        ) from error


@contextmanager
def _no_other_exception(method: Extrapolator, what: str) -> Iterator[None]:
    """Turns whatever a method raises into one line with its name; a refusal and what a check found pass.

    Raises:
        AssertionError: it raised something else.
    """
    try:
        yield
    except (InputError, AssertionError):
        raise
    except Exception as error:
        raise AssertionError(
            f"{method.name}: raises {type(error).__name__}: {first_line(error)} {what}"
        ) from error


def _expect(kept: bool, method: Extrapolator, otherwise: str) -> None:
    if not kept:
        raise AssertionError(f"{getattr(method, 'name', type(method).__name__)}: {otherwise}")


def _refused(
    method: Extrapolator,
    action: Callable[[], object],
    words: str,
    what: str,
    remedy: str = "nextrl.extrapolators.require(self, traj, horizon) first in fit",
) -> str:
    """The message with which `action` raises InputError; it must be one line that has `words` (a pattern)."""
    try:
        action()
    except InputError as error:
        line = str(error)
        known = bool(re.search(words, line)) and "\n" not in line
        _expect(known, method, f"says {line!r} to {what}, not one line like {words!r}; call {remedy}")
        return line
    raise AssertionError(f"{method.name}: accepts {what} and should raise InputError; call {remedy}")
