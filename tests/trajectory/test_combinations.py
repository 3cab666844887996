"""What a run that holds a NaN is taken for: never for one that stands still."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextrl.checkpoints.adapter import finite
from nextrl.errors import InputError
from nextrl.testing import straight_line, synthetic_run
from nextrl.trajectory.combinations import distinct_steps, moves, nearest_step
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.trajectory import Trajectory


class Unchecked(MemoryCheckpoint):
    """A checkpoint of a kind that lets everything through."""

    def factors(self, module: str, *, check: bool = True) -> tuple[Tensor, Tensor]:
        return self.tensors[module]


def spoiled(value: float, kind: type[MemoryCheckpoint] = MemoryCheckpoint) -> Trajectory:
    """Two modules that stand still, but for one number of the second one at step 20."""
    still = (torch.ones(2, 6), torch.ones(5, 2))
    broken = (still[0], still[1].clone())
    broken[1][3, 1] = value
    return Trajectory(
        (kind(10, {"a": still, "b": still}, 2.0), kind(20, {"a": still, "b": broken}, 2.0)), None, {}
    )


def test_a_run_moves_where_a_number_changes_and_where_it_is_no_number_any_more() -> None:
    assert not moves(spoiled(1.0, Unchecked))
    assert moves(spoiled(1.1, Unchecked))
    assert moves(spoiled(math.nan, Unchecked))


@pytest.mark.parametrize(
    ("value", "words"),
    [(math.nan, "NaN or Inf"), (-math.inf, "NaN or Inf"), (1e20, r"a weight beyond 1e\+15")],
)
def test_a_broken_checkpoint_in_memory_is_refused_as_one_on_disk_is(value: float, words: str) -> None:
    traj = spoiled(value)
    for read in (moves, lambda traj: traj.gram("b"), lambda traj: traj.weight(20, "b")):
        with pytest.raises(InputError, match=f"{words} in b at step 20 .*: look at what training did there"):
            read(traj)
    assert traj.gram("a").isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_dtype_hides_what_is_no_number(dtype: torch.dtype) -> None:
    assert finite(torch.tensor([1.0, -60000.0], dtype=dtype))
    for value in (math.nan, math.inf, -math.inf):
        assert not finite(torch.tensor([1.0, value], dtype=dtype))


GAPPED = synthetic_run(straight_line, (10, 20, 30, 40, 50, 100, 110, 120))


@pytest.mark.parametrize(
    ("last", "targets", "found"),
    [
        (120, (110, 100), (110, 100)),
        (120, (100, 80), (100, 50)),  # 100 is the nearest to both
        (100, (90, 80), (50, 40)),  # 50 is
        (100, (90, 80, 70, 60, 50, 40), (50, 40, 30, 20, 10, 0)),  # there are just enough
        (30, (-100, -200), (10, 0)),  # the last one is left for the second
        (50, (25,), (30,)),  # a tie goes to the later one, as in `nearest_step`
        (50, (), ()),
    ],
)
def test_no_two_targets_share_a_checkpoint(
    last: int, targets: tuple[int, ...], found: tuple[int, ...]
) -> None:
    traj = GAPPED.upto(last)
    assert distinct_steps(traj, targets) == found
    if len(targets) == 1:
        assert nearest_step(traj, targets[0]) == found[0]


def test_more_targets_than_checkpoints_are_refused() -> None:
    with pytest.raises(InputError, match="3 checkpoints before step 20 are needed, and there are 2: 0, 10"):
        distinct_steps(GAPPED.upto(20), (10, 0, -10))
