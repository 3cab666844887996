"""The analysis as a whole: JSON keys, figures, warnings."""

import json

import pytest
import torch

from lora_runs import lora, write_run
from nextrl.cli.analysis_text import sentences
from nextrl.errors import InputError
from nextrl.judge.analysis import analyze
from nextrl.judge.analysis_figures import analysis_figures
from nextrl.trajectory.persistence import adam_persistence
from nextrl.trajectory.trajectory import Trajectory


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    write_run(root, lora(target_modules=["q_proj", "down_proj"]), steps=range(10, 130, 10))
    return analyze(Trajectory.load(root), horizon=20)


def test_json_has_the_contracts_keys_and_no_nan(result):
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert {"steps", "energy_share", "linear_r2", "cos_previous", "persistence", "predictability"} <= set(
        value
    )
    assert value["steps"] == list(range(10, 130, 10))
    assert set(value["energy_share"]) == {"global", "local", "target"}
    assert set(value["energy_share"]["target"]["1"]) == {str(s) for s in range(10, 110, 10)}
    assert set(value["persistence"]) == {"10", "20", "50"}
    assert value["storage_noise"] == {}


def test_numbers_agree_with_the_trajectory(result):
    assert all(
        0 < share <= 1 for row in result.energy_share.values() for k in row.values() for share in k.values()
    )
    assert result.energy_share["global"][4][120] == pytest.approx(1.0)  # rank 4 from B_0 = 0
    assert result.line.r2 > 0.9
    assert {m.layer for m in result.modules} == {0, 1}
    assert {m.kind for m in result.modules} == {"q_proj", "down_proj"}


def test_every_figure_draws(result, tmp_path):
    figures = analysis_figures(result)
    assert set(figures) == {"dominance", "directions", "persistence", "path", "modules"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").stat().st_size > 5000


def test_bf16_runs_with_tiny_steps_are_warned_about():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 30, generator=g), torch.randn(20, 4, generator=g)
    steps = [10, 20, 30]
    factors = [
        {"w": (a.bfloat16(), (b + 1e-3 * n * torch.randn(20, 4, generator=g)).bfloat16())} for n in range(3)
    ]
    found = analyze(Trajectory.from_factors(steps, factors))
    assert found.noisy["w"] > 0.1


def test_one_checkpoint_is_no_trajectory():
    with pytest.raises(InputError, match="at least two"):
        analyze(Trajectory.from_factors([10], [{"w": (torch.ones(1, 2), torch.ones(3, 1))}]))


def test_the_zero_point_follows_the_run_s_own_beta1(tmp_path):
    write_run(tmp_path, steps=range(10, 60, 10))
    assert analyze(Trajectory.load(tmp_path)).beta1 == 0.9
    for folder in tmp_path.glob("checkpoint-*"):
        torch.save({"param_groups": [{"betas": (0.5, 0.999)}]}, folder / "optimizer.pt")
    found = analyze(Trajectory.load(tmp_path), updates_per_step=1)
    assert (found.beta1, found.zero[10]) == (0.5, pytest.approx(adam_persistence(10, 0.5)))
    left = analysis_figures(found)["persistence"].axes[0]
    dashed = [line.get_ydata()[0] for line in left.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([adam_persistence(w, 0.5) for w in found.persistence])
    assert analyze(Trajectory.load(tmp_path), beta1=0.8, updates_per_step=1).zero[10] == adam_persistence(
        10, 0.8
    )


def test_lines_are_judged_on_checkpoints_after_the_fit(tmp_path):
    write_run(tmp_path, lora(target_modules=["q_proj", "down_proj"]), steps=range(10, 160, 10))
    found = analyze(Trajectory.load(tmp_path))
    value = found.to_json()
    assert set(value["linear_ahead"]) == {"u", "v", "sigma", "rank1"}
    assert value["modules"][0]["linear_ahead"]["rank1"] <= 1.0
    assert value["linear_ahead"]["u"]["median"] <= value["linear_r2"]
    sigma = value["modules"][0]["sigma"]["global"]["150"]
    share = found.modules[0].nuclear_share["global"][150]
    assert share == pytest.approx(sigma[0] / sum(sigma), rel=1e-6)
    assert share < found.modules[0].share["global"][150]  # E1 is of sigma, the energy of its squares
    assert set(value["nuclear_share"]) == {"global", "local", "target"}


def test_a_short_run_has_no_linearity_ahead(result):
    assert result.to_json()["linear_ahead"] == {}


def _half_still(moves):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 9, generator=g), torch.randn(7, 2, generator=g)
    zero = torch.zeros(7, 2)
    return analyze(
        Trajectory.from_factors(
            [10, 20, 30], [{"w": (a, b * n * moves), "still": (a, zero)} for n in (1.0, 2.0, 3.0)]
        )
    )


def test_modules_that_never_move_have_no_part_in_the_mean_directions():
    found = _half_still(1.0)
    assert found.mean_cosine("global", 0) == pytest.approx({20: 1.0, 30: 1.0}, abs=1e-6)
    assert found.mean_cosine("global", 3) == pytest.approx({10: 1.0, 20: 1.0, 30: 1.0}, abs=1e-6)
    assert found.still == 1
    assert "1 of 2 modules never move" in " ".join(sentences(found))


def test_a_run_that_never_moves_has_no_directions():
    found = _half_still(0.0)
    assert [found.mean_cosine("global", which) for which in range(4)] == [{}] * 4
    assert found.still == 2
    analysis_figures(found)
