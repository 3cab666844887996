"""Leaps: defaults, gauge, files, and that nothing later than the origin is read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import synthetic_runs as synthetic
from lora_runs import write_run
from nextrl.errors import InputError
from nextrl.leaps import leap as leap_module
from nextrl.leaps.leap import leap
from nextrl.trajectory.memory_checkpoint import MemoryCheckpoint
from nextrl.trajectory.trajectory import Trajectory


def test_leap_at_reads_nothing_later() -> None:
    traj = synthetic.seal_after(synthetic.run(synthetic.walk(2.0)), 100)
    made = leap(traj, "secant", horizon=30, at=100)
    assert made.from_step == 100
    made.leap_state()


def test_default_horizon_is_what_a_short_run_has() -> None:
    traj = synthetic.run(synthetic.line)
    assert leap(traj).horizon == 50
    assert leap(traj, "secant", at=20).horizon == 20


def test_factors_leap_is_the_callbacks_formula() -> None:
    traj = synthetic.run(synthetic.walk(2.0))
    made = leap(traj, "factors", horizon=10, alpha=2.0)
    module = traj.modules[0]
    for new, now, then in zip(
        made.factors(module), traj.factors(160, module), traj.factors(150, module), strict=True
    ):
        assert torch.allclose(new, now + 2.0 * (now - then))
    assert made.discarded == 0.0


def test_without_an_alpha_a_method_takes_its_own_and_a_given_one_is_obeyed() -> None:
    traj = synthetic.run(synthetic.walk(2.0))
    assert leap(traj, "secant", horizon=10).alpha == 1.0
    published = leap(traj, "next-paper", horizon=10, epochs=2)
    assert published.alpha == published.provenance()["alpha"] == 1.5
    assert leap(traj, "next-paper", horizon=10, alpha=1.0, epochs=2).alpha == 1.0
    assert leap(traj, "next-paper", horizon=10, alpha=0.0, epochs=2).alpha == 0.0


def test_alpha_zero_gives_the_adapter_back_in_its_own_gauge() -> None:
    traj = synthetic.run(synthetic.walk(2.0))
    for method in ("secant", "factors"):
        made = leap(traj, method, horizon=10, alpha=0.0)
        for module in traj.modules:
            for new, old in zip(made.factors(module), traj.factors(160, module), strict=True):
                assert torch.allclose(new.double(), old, atol=1e-6 * float(old.abs().max()))


def test_state_has_the_names_of_a_file_or_of_a_live_model() -> None:
    made = leap(synthetic.run(synthetic.walk(2.0)), "secant", horizon=10)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    assert f"{name}.weight" in made.leap_state()
    live = made.leap_state("default")
    assert f"{name}.default.weight" in live
    assert all(t.dtype == torch.float64 for t in live.values())


@pytest.mark.parametrize("rank", [None, 2, 6])
def test_ten_checkpoints_at_the_rank_asked_for(tmp_path, rank: int | None) -> None:
    traj = synthetic.run(synthetic.walk(0.0), adapter_config={"target_modules": ["q_proj", "up_proj"]})
    made = leap(traj, "lawa", horizon=90)
    made.save_adapter(tmp_path / "out", rank)
    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    want = rank or synthetic.RANK
    for module, (m, n) in synthetic.MODULES.items():
        assert state[f"base_model.model.{module}.lora_A.weight"].shape == (want, n)
        assert state[f"base_model.model.{module}.lora_B.weight"].shape == (m, want)
    notes = json.loads((tmp_path / "out" / "nextrl.json").read_text())
    assert (notes["discarded_energy"] > 0.01) == (rank == 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at": 15}, "no checkpoint at step 15"),
        ({"alpha": 500}, "alpha must be"),
        ({"horizon": 0}, "horizon must be"),
        ({"method": "secant", "horizon": 900}, "a horizon of 160 steps would work"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        leap(synthetic.run(synthetic.line), **arguments)
    assert "\n" not in str(caught.value)


def test_rank_below_one() -> None:
    with pytest.raises(InputError, match="at least 1"):
        leap(synthetic.run(synthetic.line), "secant", 10).save_adapter("nowhere", rank=0)


@pytest.mark.parametrize(("method", "fits", "reads"), [("factors", 0, 1), ("window", 1, 1), ("secant", 1, 2)])
def test_each_module_is_fitted_once_and_its_factors_read_once(
    tmp_path, monkeypatch: pytest.MonkeyPatch, method: str, fits: int, reads: int
) -> None:
    read, fitted = Counter(), []

    class Counted(MemoryCheckpoint):
        def factors(self, module: str, *, check: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
            read[self.step, module] += 1
            return super().factors(module)

    real = leap_module.fit_to_rank
    monkeypatch.setattr(leap_module, "fit_to_rank", lambda *a: fitted.append(1) or real(*a))
    traj = synthetic.run(synthetic.walk(2.0), adapter_config={"target_modules": ["q_proj", "up_proj"]})
    counted = [Counted(c.step, c.tensors, c.scalings) for c in traj.checkpoints]
    made = leap(Trajectory(tuple(counted), None, traj.adapter_config), method, horizon=10)
    read.clear()
    made.leap_state()
    assert 0.0 <= made.discarded < 1.0
    made.save_adapter(tmp_path / "out")
    assert len(fitted) == fits * len(traj.modules)
    # `secant` reads T once more: its prediction is a combination of the checkpoints themselves.
    assert {read[160, module] for module in traj.modules} == {reads}
    assert replace(made, alpha=0.5).factors(traj.modules[0])[1] is not made.factors(traj.modules[0])[1]


@pytest.mark.parametrize("method", ["secant", "factors"])
def test_what_is_done_to_tensors_that_were_handed_out_is_not_written(tmp_path, method: str) -> None:
    """PEFT takes a state's tensors for its parameters (`assign=True`), and then they are trained."""
    write_run(tmp_path / "run")
    for traj in (Trajectory.load(tmp_path / "run"), synthetic.run(synthetic.walk(2.0))):
        made, again = leap(traj, method, horizon=10), leap(traj, method, horizon=10)
        handed = [*made.leap_state().values(), *made.leap_state("default").values()]
        handed += [tensor for module in traj.modules for tensor in made.factors(module)]
        handed += [tensor for module in traj.modules for tensor in traj.factors(traj.steps[-1], module)]
        for tensor in handed:
            tensor.zero_()
        places = [tmp_path / name for name in ("made", "again")]
        for one, place in zip((made, again), places, strict=True):
            one.save_adapter(place)
        written = [load_file(place / "adapter_model.safetensors") for place in places]
        assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items())
        assert all(bool(tensor.any()) for tensor in written[0].values())


@pytest.mark.parametrize("method", ["secant", "lawa"])
def test_what_is_discarded_is_what_the_written_factors_lack(method: str) -> None:
    made = leap(synthetic.run(synthetic.walk(0.5)), method, horizon=90)
    missing = total = 0.0
    for module in made.traj.modules:
        (a, b), target = made.factors(module), made.target(module).dense()
        missing += float((target - made.traj.scaling(module) * (b @ a)).square().sum())
        total += float(target.square().sum())
    assert made.discarded == pytest.approx(missing / total, rel=1e-9)
