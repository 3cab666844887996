"""EffOPD in real TRL runs, its validation scripted: where it looks, how far it goes, what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nextrl.engines.live_weights import along
from nextrl.engines.policies.effopd import EffOpd
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.rollouts import TrainerRollouts
from trl_runs import VALIDATION, same, watched


def scripted(monkeypatch: pytest.MonkeyPatch, *means: float) -> list[int]:
    """Validation rewards, one mean for each candidate that is asked about, staying put first; the rows asked for."""
    rest, asked = list(means), []

    def rewards(self: TrainerRollouts, rows: Any, seed: int) -> torch.Tensor:
        asked.append(len(rows))
        self.completions += len(rows)
        return torch.full((len(rows),), rest.pop(0) if rest else 0.0, dtype=torch.float64)

    monkeypatch.setattr(TrainerRollouts, "rewards", rewards)
    return asked


def run(
    out: Path, steps: int
) -> tuple[LeapCallback, list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    callback = LeapCallback(policy=EffOpd(prompts=8), validation=VALIDATION)
    before, after, _ = watched(out, callback, learning_rate=1e-4, max_steps=steps)
    return callback, before.states, after.states


def test_it_goes_on_while_validation_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(monkeypatch, 0.1, 0.2, 0.3, 0.25)
    callback, before, after = run(tmp_path, 1)
    assert callback.decisions[0].alpha == 4.0
    assert asked == [8, 8, 8, 8]
    assert callback.costs.search_completions == 32
    wanted = along(before[0], before[1], 4.0)  # five times the displacement
    assert all(torch.allclose(after[0][n], wanted[n], atol=1e-7) for n in wanted)


def test_a_first_try_that_gains_nothing_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.2, 0.2)
    callback, before, after = run(tmp_path, 1)
    assert callback.decisions[0].alpha == 0.0
    assert same(after[0], before[1])


def test_it_looks_at_powers_of_two_along_the_way_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.1, 0.2, 0.1, *(0.1, 0.1), *(0.1, 0.3, 0.2))
    callback, before, after = run(tmp_path, 5)
    assert [(d.step, d.alpha) for d in callback.decisions] == [(1, 2.0), (2, 0.0), (4, 2.0)]
    wanted = along(before[2], before[4], 2.0)  # since the look at step 2, not since the leap at step 1
    assert all(torch.allclose(after[3][n], wanted[n], atol=1e-7) for n in wanted)
    assert callback.decisions[-1].rolled_back is None
