"""What a run that holds a NaN is taken for: never for one that stands still."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nextrl.checkpoints.adapter import finite
from nextrl.errors import InputError
from nextrl.trajectory.combinations import moves
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
