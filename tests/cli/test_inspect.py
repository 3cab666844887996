"""`nextrl inspect` on good runs and on everything that can be wrong with one."""

import json
import math
import os
import shutil

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_runs import lora, write_run
from nextrl.cli.inspect import inspect
from nextrl.errors import InputError
from nextrl.trajectory.trajectory import Trajectory

APP = typer.Typer()
APP.command()(inspect)


def facts(root, *options):
    result = CliRunner().invoke(APP, [str(root), "--json", *options])
    return json.loads(result.stdout)


def weights(root, step=20):
    return root / f"checkpoint-{step}" / "adapter_model.safetensors"


def edit_config(root, step=20, **changes):
    path = root / f"checkpoint-{step}" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(root, change, step=20):
    state = load_file(weights(root, step))
    save_file(change(state), weights(root, step))


def read_step_20(root):
    traj = Trajectory.load(root)
    return [traj.factors(20, module) for module in traj.modules]


def truncate(root):
    data = weights(root).read_bytes()
    weights(root).write_bytes(data[: len(data) // 2])


def pickle_only(root):
    torch.save(load_file(weights(root)), root / "checkpoint-20" / "adapter_model.bin")
    weights(root).unlink()


def poison(state):
    key = next(iter(state))
    state[key].view(-1)[3] = float("nan")
    return state


def other_rank(root):
    shutil.rmtree(root / "checkpoint-20")
    write_run(root / "x", lora(r=2), steps=(20,))
    (root / "x" / "checkpoint-20").rename(root / "checkpoint-20")


def loop(root):
    shutil.rmtree(root / "checkpoint-20")
    (root / "checkpoint-20").symlink_to(root / "checkpoint-20")


def dangling(root):
    shutil.rmtree(root / "checkpoint-20")
    (root / "checkpoint-20").symlink_to(root / "gone")


BROKEN = {
    "missing weights": (lambda r: weights(r).unlink(), "adapter_model.safetensors: no such file"),
    "missing config": (
        lambda r: (r / "checkpoint-20" / "adapter_config.json").unlink(),
        "adapter_config.json: missing",
    ),
    "config not json": (
        lambda r: (r / "checkpoint-20" / "adapter_config.json").write_text("{"),
        "not readable as JSON",
    ),
    "truncated": (truncate, "truncated or not a safetensors file"),
    "pickle": (pickle_only, "pass --allow-pickle"),
    "nan": (lambda r: edit_tensors(r, poison), "NaN or Inf in model.layers.0"),
    "wrong dtype": (
        lambda r: edit_tensors(r, lambda s: {k: t.to(torch.int8) for k, t in s.items()}),
        "is I8; float16",
    ),
    "missing module": (
        lambda r: edit_tensors(
            r, lambda s: {k: t for k, t in s.items() if "layers.1.self_attn.q_proj" not in k}
        ),
        "1 modules of step 10 are missing (model.layers.1.self_attn.q_proj",
    ),
    "half a module": (
        lambda r: edit_tensors(
            r, lambda s: {k: t for k, t in s.items() if "layers.1.self_attn.q_proj.lora_A" not in k}
        ),
        "has only one of lora_A and lora_B",
    ),
    "rank": (other_rank, "of rank 2, at step 10 it is"),
    "rank in config": (lambda r: edit_config(r, r=16), "has rank 4, adapter_config.json says 16"),
    "scaling": (lambda r: edit_config(r, lora_alpha=64), "scaling of model.layers.0"),
    "alpha zero": (lambda r: edit_config(r, lora_alpha=0), "lora_alpha is 0"),
    "not lora": (lambda r: edit_config(r, peft_type="IA3"), "peft_type IA3"),
    "no factors": (lambda r: edit_tensors(r, lambda s: {"x": torch.ones(1)}), "holds no lora_A and lora_B"),
    "loop": (loop, "leads back to itself"),
    "dangling": (dangling, "points nowhere"),
}


def test_a_good_run(tmp_path):
    write_run(tmp_path, lora(modules_to_save=["lm_head"]))
    found = facts(tmp_path)
    assert found["layout"] == "trl"
    assert found["steps"] == [10, 20, 30, 40]
    assert found["rank"] == 4
    assert found["dtype"] == "float32"
    assert found["bytes"] == sum(weights(tmp_path, s).stat().st_size for s in (10, 20, 30, 40))
    assert found["problems"] == []
    assert len(found["modules"]) == 6
    assert found["carried"] == ["base_model.model.lm_head.weight"]
    text = CliRunner().invoke(APP, [str(tmp_path)])
    assert text.exit_code == 0
    assert "no problems" in text.stdout
    assert "4 checkpoints, every 10" in text.stdout


@pytest.mark.parametrize("name", list(BROKEN))
def test_each_problem_is_listed_with_its_file_refused_by_load_and_can_be_skipped(tmp_path, name):
    spoil, message = BROKEN[name]
    write_run(tmp_path)
    spoil(tmp_path)
    found = facts(tmp_path)
    assert len(found["problems"]) == 1 + (20 not in found["steps"]), found["problems"]  # the gap is named too
    text = next(p for p in found["problems"] if message in p)
    assert str(tmp_path / "checkpoint-20") in text
    assert found["usable_steps"] == [10, 30, 40]
    with pytest.raises(InputError) as caught:
        read_step_20(tmp_path)
    assert message in str(caught.value)
    kept = Trajectory.load(tmp_path, skip_bad_checkpoints=True)
    assert kept.steps == (10, 30, 40)
    assert any(message in line for line in kept.skipped)


def test_skipping_shows_the_run_as_the_other_verbs_would_read_it(tmp_path):
    write_run(tmp_path)
    edit_tensors(tmp_path, poison)
    weights(tmp_path, 30).unlink()
    result = CliRunner().invoke(APP, [str(tmp_path), "--json", "--skip-bad-checkpoints"])
    found = json.loads(result.stdout)
    kept = Trajectory.load(tmp_path, skip_bad_checkpoints=True)
    assert found["steps"] == found["usable_steps"] == list(kept.steps) == [10, 40]
    assert sorted(found["skipped"]) == sorted(kept.skipped)
    assert found["bytes"] == sum(weights(tmp_path, s).stat().st_size for s in (10, 40))
    assert result.stderr.count("left out: ") == 2
    assert all("follows step" in problem for problem in found["problems"])
    shown = facts(tmp_path)  # without it, both are problems and what can be opened is listed
    assert (shown["steps"], shown["skipped"], len(shown["problems"])) == ([10, 20, 40], [], 3)


def test_a_run_of_which_nothing_is_left_is_an_error(tmp_path):
    write_run(tmp_path, steps=(20,))
    edit_tensors(tmp_path, poison)
    result = CliRunner().invoke(APP, [str(tmp_path), "--skip-bad-checkpoints"])
    assert isinstance(result.exception, InputError)
    assert "no checkpoint can be used" in str(result.exception)


def test_gaps_and_mixed_dtypes_are_named_but_not_fatal(tmp_path):
    write_run(tmp_path, steps=(10, 20, 30, 60))
    edit_tensors(tmp_path, lambda s: {k: t.bfloat16() for k, t in s.items()}, step=30)
    problems = facts(tmp_path)["problems"]
    assert len(problems) == 2
    assert any("follows step 30 after 30 steps, not 10" in p for p in problems)
    assert any("stored as bfloat16, step 10 as float32" in p for p in problems)
    assert Trajectory.load(tmp_path).steps == (10, 20, 30, 60)


def test_several_problems_are_all_listed_and_a_hopeless_run_is_an_error(tmp_path):
    write_run(tmp_path, steps=(10, 20))
    weights(tmp_path, 10).unlink()
    truncate(tmp_path)
    result = CliRunner().invoke(APP, [str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "2 problems" in result.stderr


def test_a_nonzero_start_without_step_zero_is_a_problem(tmp_path):
    write_run(tmp_path, lora(init_lora_weights="olora"), steps=(10, 20))
    assert any("save the initial adapter as checkpoint-0" in p for p in facts(tmp_path)["problems"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder(tmp_path):
    write_run(tmp_path, steps=(10,))
    tmp_path.chmod(0)
    with pytest.raises(InputError, match="cannot be listed"):
        Trajectory.load(tmp_path)


@pytest.mark.parametrize(("before", "asked"), [(0.0, False), (0.02, False), (1.0, True)])
def test_a_run_that_began_from_an_adapter_is_asked_about_it(tmp_path, before, asked):
    """GRPO on top of an SFT adapter: its configuration says that the run began at zero."""
    write_run(tmp_path, steps=(10, 20, 30))
    for step in (10, 20, 30):
        edit_tensors(
            tmp_path, lambda state: {key: t + before * (".lora_B." in key) for key, t in state.items()}, step
        )
    lines = [text for text in facts(tmp_path)["problems"] if "was the run begun from an adapter?" in text]
    assert len(lines) == asked
    assert all("checkpoint-10: lies" in text for text in lines)
    assert Trajectory.load(tmp_path).steps == (10, 20, 30)


def linear(step):
    return 1 - step / 1000


def cosine(step):
    return 0.5 * (1 + math.cos(math.pi * step / 1000))


def cooldown(step):
    """As `auto` ends a run."""
    return min(1.0, (1000 - step) / 200)


def scheduled_run(root, saved, rate, *, noise=0.0, start=0.0, logged=True):
    """A run whose steps are as long as its rate says, in one direction and, of `noise`, in any."""
    torch.manual_seed(0)
    a, drift, b = torch.randn(4, 32) / 6, torch.randn(32, 4), start * torch.randn(32, 4)
    for step in range(1, max(saved) + 1):
        b = b + 1e-4 * rate(step - 1) * (drift + noise * torch.randn(32, 4))
        if step in saved:
            folder = root / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            names = {"A": a.clone(), "B": b.clone()}
            save_file(
                {f"base_model.model.q_proj.lora_{k}.weight": t for k, t in names.items()},
                folder / "adapter_model.safetensors",
            )
            settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
            (folder / "adapter_config.json").write_text(json.dumps({**settings, "init_lora_weights": True}))
            log = [{"step": t, "loss": 0.1, "learning_rate": 1e-5 * rate(t)} for t in range(10, step + 1, 10)]
            if logged:
                state = {"global_step": step, "log_history": log}
                (folder / "trainer_state.json").write_text(json.dumps(state))


def asked_about_an_adapter(root):
    return [text for text in facts(root)["problems"] if "was the run begun from an adapter?" in text]


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("noise", [0.0, 10.0])
@pytest.mark.parametrize("kept", [2, 3, 5])
@pytest.mark.parametrize("rate", [linear, cosine, cooldown])
def test_a_rate_that_falls_is_no_adapter_that_a_run_began_from(tmp_path, rate, kept, noise, logged):
    """Where old checkpoints are deleted, the end of a decay is all that is left to look at."""
    scheduled_run(tmp_path, [1000 - 50 * i for i in range(kept)], rate, noise=noise, logged=logged)
    assert asked_about_an_adapter(tmp_path) == []


@pytest.mark.parametrize("spacing", [250, 330])
@pytest.mark.parametrize("rate", [linear, cosine])
def test_nor_is_it_where_the_whole_run_has_three_or_four_checkpoints(tmp_path, rate, spacing):
    last = 1000 // spacing * spacing
    scheduled_run(tmp_path, [last - spacing, last], rate)
    assert asked_about_an_adapter(tmp_path) == []


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("rate", [linear, cosine, cooldown])
def test_an_adapter_is_asked_about_under_a_schedule_too(tmp_path, rate, logged):
    scheduled_run(tmp_path, [50, 100, 150], rate, noise=1.0, start=0.1, logged=logged)
    assert len(asked_about_an_adapter(tmp_path)) == 1


def test_an_adapter_is_asked_about_where_the_first_checkpoints_were_deleted(tmp_path):
    scheduled_run(tmp_path, [150, 200], linear, start=0.5)
    assert len(asked_about_an_adapter(tmp_path)) == 1
