"""`bema` against TRL's own callback, driven by hand along the same weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nextrl.extrapolators import get
from nextrl.trajectory.trajectory import Trajectory

trl = pytest.importorskip("trl")

MODULE = "model.layers.0.mlp.up_proj"


class OneMatrix(nn.Module):
    """What `BEMACallback` asks of a model."""

    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.config, self.weight = config, nn.Parameter(torch.zeros(6, 4))


def run(step: int) -> Tensor:
    """(6, 4) float32 weights of a curved run after `step` steps, zero at 0."""
    p, q = (torch.randn(6, 4, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    return p * (step / 100) + q * (step / 100) ** 2


def by_trl(every: int, until: int, **options: float) -> Tensor:
    """The weights that the callback holds after `until` steps."""
    model, callback = OneMatrix(), trl.BEMACallback(update_freq=every, **options)
    callback.on_train_begin(None, None, None, model)
    for step in range(1, until + 1):
        model.weight.data = run(step)
        callback.thetat_params = [model.weight]
        callback.on_step_end(None, SimpleNamespace(global_step=step), None, model)
    return callback.running_model.weight.detach()


def trajectory(steps: range) -> Trajectory:
    """The same run's checkpoints; A is the identity."""
    return Trajectory.from_factors(list(steps), [{MODULE: (torch.eye(4), run(s))} for s in steps])


@pytest.mark.parametrize("on_disk", [range(10, 101, 10), range(0, 101, 10)])
def test_bema_is_what_trls_callback_holds(on_disk: range) -> None:
    traj = trajectory(on_disk)
    moved = get("bema").fit(traj, 10).delta(MODULE).dense().float()
    torch.testing.assert_close(run(100) + moved, by_trl(10, 100), rtol=1e-5, atol=1e-6)


def test_the_parameters_are_trls() -> None:
    moved = get("bema", rho=3.0, gamma=0.5, kappa=0.7, eta=0.4).fit(trajectory(range(20, 121, 20)), 20)
    expected = by_trl(20, 120, lag=3, multiplier=0.5, ema_power=0.7, bias_power=0.4)
    torch.testing.assert_close(run(120) + moved.delta(MODULE).dense().float(), expected, rtol=1e-5, atol=1e-6)


def test_a_vector_from_trl_1_16() -> None:
    """The first row that the callback holds after the run above, written down in case TRL changes."""
    traj = trajectory(range(10, 101, 10))
    moved = get("bema").fit(traj, 10).delta(MODULE).dense().float()
    torch.testing.assert_close((run(100) + moved)[0], torch.tensor(VECTOR), rtol=1e-5, atol=1e-5)


VECTOR = [-2.049996852874756, -1.5134819746017456, -0.6829157471656799, -1.5263869762420654]
