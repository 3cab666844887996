"""What a run of all weights moved and nextrl does not follow: it is named, and is as it is at T in what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from lora_runs import SMALL, model
from nextrl.cli import build
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
NORM = "model.norm.weight"


def mixture() -> PreTrainedModel:
    """A tiny model whose experts are tensors of three dimensions, and whose names do not end in `.weight`."""
    torch.manual_seed(0)
    options = {"head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 8}
    return GptOssForCausalLM(GptOssConfig(**SMALL, **options))


def write(folder: Path, trained: PreTrainedModel, only: str = "") -> tuple[Path, Path]:
    """The folders of a run that moves all weights (those with `only` in their names), and of its base."""
    trained.save_pretrained(folder / "base")
    torch.manual_seed(2)
    for step in (10, 20, 30):
        for name, parameter in trained.named_parameters():
            if only in name:
                parameter.data += 0.01 * torch.randn_like(parameter)
        trained.save_pretrained(folder / "run" / f"checkpoint-{step}")
    return folder / "run", folder / "base"


@pytest.fixture(scope="module")
def oss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("oss"), mixture())


@pytest.mark.parametrize("at", [20, 30])
def test_what_is_not_followed_stays_as_it_is_at_t_in_a_merged_model(
    oss: tuple[Path, Path], tmp_path: Path, at: int
) -> None:
    run, base = oss
    made = leap(Trajectory.from_full_weights(run, base, rank=16), "secant", horizon=10, at=at)
    made.save_merged(tmp_path / "out", base)
    written, last, first = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", run / f"checkpoint-{at}", base)
    )
    left = set(written) - {f"{module}.weight" for module in made.traj.modules}
    assert {EXPERTS, f"{EXPERTS}_bias", NORM} <= left
    for key in left:
        assert torch.equal(written[key], last[key]), key
        assert not torch.equal(written[key], first[key]), key
    note = json.loads((tmp_path / "out" / "nextrl.json").read_text())
    assert "mlp.experts.gate_up_proj" in note["left_out"]
    assert "left out" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_not_followed_is_named_with_its_share_of_the_movement(oss: tuple[Path, Path]) -> None:
    run, base = oss
    [line] = Trajectory.from_full_weights(run, base, rank=16).skipped
    first, last = (load_file(f / "model.safetensors") for f in (base, run / "checkpoint-30"))
    squares = {key: float((last[key].double() - first[key].double()).square().sum()) for key in first}
    left = {key: s for key, s in squares.items() if last[key].dim() != 2 or not key.endswith(".weight")}
    share = sum(left.values()) / sum(squares.values())
    assert share > 0.5
    assert f"{len(left)} tensors" in line
    assert f"{100 * share:.3g}%" in line
    assert "model.layers.*.mlp.experts.gate_up_proj" in line
    shown = CliRunner().invoke(build(["analyze"]), ["analyze", str(run), "--base", str(base), "--json"])
    assert "left out: " in shown.stderr
    assert "mlp.experts.gate_up_proj" in shown.stderr


def test_experts_that_moved_are_not_dropped_from_an_adapter_in_silence(tmp_path: Path) -> None:
    made = leap(
        Trajectory.from_full_weights(*write(tmp_path, mixture(), "layers"), rank=4), "secant", horizon=10
    )
    with pytest.raises(InputError, match=r"experts\.\w+: was trained too.*save_merged"):
        made.save_adapter(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_run_that_moves_followed_matrices_alone_leaves_nothing_out(tmp_path: Path) -> None:
    traj = Trajectory.from_full_weights(*write(tmp_path, model(), "q_proj.weight"), rank=4)
    assert traj.skipped == ()
    assert "left_out" not in leap(traj, "secant", horizon=10).provenance()


def test_nan_in_what_is_not_followed_is_refused(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    file = run / "checkpoint-30" / "model.safetensors"
    state = load_file(file)
    state[NORM][0] = torch.nan
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"checkpoint-30.*NaN or Inf in model\.norm\.weight"):
        Trajectory.from_full_weights(run, base, rank=4)


def test_integers_beside_the_weights_stay_as_the_base_has_them(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    for file in (base / "model.safetensors", *run.glob("*/model.safetensors")):
        save_file({**load_file(file), "model.positions": torch.arange(4)}, file, metadata={"format": "pt"})
    leap(Trajectory.from_full_weights(run, base, rank=4), "secant", horizon=10).save_merged(
        tmp_path / "out", base
    )
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["model.positions"], torch.arange(4))


def edit(file: Path, **changed: torch.Tensor | None) -> None:
    """Write a model's file again with tensors of these layers (`__` for a point) set, or left out where None."""
    named = {f"{name.replace('__', '.')}.weight": tensor for name, tensor in changed.items()}
    state = {**load_file(file), **named}
    save_file({k: v for k, v in state.items() if v is not None}, file, metadata={"format": "pt"})


def test_a_tied_base_that_stores_both_names_is_read_and_both_are_moved(tmp_path: Path) -> None:
    run, base = write(tmp_path, model(tied=True))
    file = base / "model.safetensors"
    edit(file, lm_head=load_file(file)["model.embed_tokens.weight"].clone())
    traj = Trajectory.from_full_weights(run, base, rank=16)
    assert "model.embed_tokens" in traj.modules
    assert "lm_head" not in traj.modules
    leap(traj, "secant", horizon=10).save_merged(tmp_path / "out", base)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert not torch.equal(written["lm_head.weight"], load_file(file)["lm_head.weight"])


def test_a_matrix_that_no_checkpoint_has_under_any_name_is_still_refused(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    for file in run.glob("*/model.safetensors"):
        edit(file, lm_head=None)
    with pytest.raises(InputError, match=r"has no weight lm_head\.weight"):
        Trajectory.from_full_weights(run, base, rank=4)


def test_a_trained_matrix_that_the_base_lacks_is_not_lost_in_a_merge(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    edit(base / "model.safetensors", lm_head=None)
    made = leap(Trajectory.from_full_weights(run, base, rank=4), "secant", horizon=10)
    with pytest.raises(InputError, match=r"base: has no lm_head\.weight, which the run trained"):
        made.save_merged(tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_a_trained_matrix_that_the_base_lacks_is_named_and_not_lost_in_an_adapter(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    edit(base / "model.safetensors", lm_head=None)
    traj = Trajectory.from_full_weights(run, base, rank=4)
    assert (
        "1 tensors that the base lacks, so that their movement is unknown: lm_head.weight" in traj.skipped[-1]
    )
    made = leap(traj, "secant", horizon=10)
    with pytest.raises(InputError, match=r"lm_head\.weight: was trained too.*save_merged"):
        made.save_adapter(tmp_path / "out")


def test_a_base_that_lacks_most_of_the_model_is_refused(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    file, key = base / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    save_file({key: load_file(file)[key]}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"base: lacks \d+ of the \d+ matrices of .*checkpoint-30"):
        Trajectory.from_full_weights(run, base, rank=4)


def test_a_copy_of_a_tied_matrix_that_checkpoints_alone_store_is_not_named(tmp_path: Path) -> None:
    run, base = write(tmp_path, model(tied=True))
    for file in run.glob("*/model.safetensors"):
        edit(file, lm_head=load_file(file)["model.embed_tokens.weight"].clone())
    assert not any(
        "the base lacks" in line for line in Trajectory.from_full_weights(run, base, rank=4).skipped
    )


def test_a_resized_vocabulary_is_left_out_and_named(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    for file in run.glob("*/model.safetensors"):
        state = load_file(file)
        wider = {
            n: torch.cat([state[f"{n}.weight"], torch.zeros(2, 16)])
            for n in ("lm_head", "model.embed_tokens")
        }
        edit(file, **wider)
    traj = Trajectory.from_full_weights(run, base, rank=4)
    assert "model.layers.0.mlp.down_proj" in traj.modules
    assert not {"lm_head", "model.embed_tokens"} & set(traj.modules)
    moved, resized = traj.skipped
    assert "model.embed_tokens.weight" in moved
    assert "lm_head.weight" in resized
    assert "resized its vocabulary" in resized
    with pytest.raises(InputError, match=r"resize the base and its config\.json first"):
        leap(traj, "secant", horizon=10).save_merged(tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_another_model_is_no_resized_vocabulary(tmp_path: Path) -> None:
    run, base = write(tmp_path, model())
    for file in run.glob("*/model.safetensors"):
        edit(file, model__layers__0__mlp__down_proj=torch.zeros(20, 24))
    with pytest.raises(InputError, match=r"down_proj.weight is \[20, 24\], in the base model \[16, 24\]"):
        Trajectory.from_full_weights(run, base, rank=4)
