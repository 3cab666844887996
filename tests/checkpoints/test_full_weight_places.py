"""Where trainers leave full weights: each place is read, and who asks for an adapter there is told the way out."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from lora_runs import PLACES, model, write_run
from nextrl.checkpoints import open_run
from nextrl.cli import build
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory import trainer_log
from nextrl.trajectory.trajectory import Trajectory

WAY_OUT = "nextrl analyze RUN --base MODEL reads full weights"
VERL = "global_step_{}/actor/huggingface"
OTHERS = (
    "checkpoint-{}",
    "global_step_{}",
    "global_step{}_hf",
    VERL,
    "global_step_{}/merged",
    "step_{}",
    "step-{}_hf",
    "iter_{:07d}",
    "{}",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of a base and of its two checkpoints."""
    root, trained = tmp_path_factory.mktemp("saved"), model()
    trained.save_pretrained(root / "base")
    torch.manual_seed(0)
    for step in (10, 20):
        for parameter in trained.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        trained.save_pretrained(root / str(step))
    return root


@pytest.fixture
def placed(saved, tmp_path):
    """Puts the checkpoints where a pattern says, and returns the run's folder."""

    def place(pattern):
        for step in (10, 20):
            shutil.copytree(saved / str(step), tmp_path / "run" / pattern.format(step))
        return tmp_path / "run"

    return place


def said(run, *words):
    """What a verb says of a run that it refuses, on one line."""
    result = CliRunner().invoke(build([words[0]]), [words[0], str(run), *words[1:]])
    assert isinstance(result.exception, InputError) or result.exit_code == 2
    return " ".join(f"{result.stderr} {result.exception}".split())


@pytest.mark.parametrize("pattern", OTHERS)
def test_full_weights_are_read_wherever_they_lie(saved, placed, pattern):
    traj = Trajectory.from_full_weights(placed(pattern), saved / "base", rank=4)
    assert traj.steps == (10, 20)
    assert "model.layers.0.self_attn.q_proj" in traj.modules


@pytest.mark.parametrize("verb", ["inspect", "advise", "backtest"])
@pytest.mark.parametrize("pattern", OTHERS)
def test_who_asks_for_adapters_is_told_what_reads_full_weights(placed, pattern, verb):
    shown = said(placed(pattern), verb)
    assert WAY_OUT in shown
    assert "remove or restore" not in shown


def test_beside_verls_shards_a_whole_model_is_seen_and_a_critics_is_not(saved, placed):
    run = placed(VERL)
    for step in (10, 20):
        actor = run / f"global_step_{step}" / "actor"
        (actor / "model_world_size_1_rank_0.pt").write_bytes(b"x")
        shutil.copytree(saved / "base", actor.parent / "critic" / "huggingface")
        shutil.copytree(saved / "base", actor.parent / "critic_merged")
    for problem in open_run(run).problems:
        assert "actor/huggingface" in str(problem)
        assert WAY_OUT in str(problem)
        assert "verl.model_merger" not in str(problem)
    assert Trajectory.from_full_weights(run, saved / "base", rank=4).steps == (10, 20)


@pytest.mark.parametrize("pattern", [VERL, "global_step{}_hf", "step_{}"])
def test_steps_that_nobody_counts_in_updates_are_not_taken_for_them(saved, placed, pattern):
    traj = Trajectory.from_full_weights(placed(pattern), saved / "base", rank=4)
    assert trainer_log.updates_per_step(traj) is None


def test_what_is_wrong_with_an_adapter_is_not_hidden_by_a_merged_model_beside_it(saved, tmp_path):
    write_run(tmp_path, layout="verl", steps=(10, 20))
    shutil.copytree(saved / "10", tmp_path / "global_step_10" / "merged")
    (tmp_path / PLACES["verl"].format(20) / "adapter_model.safetensors").unlink()
    shown = said(tmp_path, "leap", "--method", "secant", "--out", str(tmp_path / "out"))
    assert "full" not in shown
    assert "adapter_model.safetensors" in shown
    with pytest.raises(InputError, match="no full-weight checkpoints"):
        Trajectory.from_full_weights(tmp_path, saved / "base")


def test_a_number_beside_a_trainers_own_names_is_no_checkpoint_of_it(saved, placed):
    run = placed("checkpoint-{}")
    shutil.copytree(saved / "base", run / "2024")
    assert Trajectory.from_full_weights(run, saved / "base", rank=4).steps == (10, 20)


def test_full_weights_under_two_kinds_of_names_are_refused(saved, placed):
    placed("checkpoint-{}")
    with pytest.raises(InputError, match=r"two kinds of names, .*checkpoint-10 and .*step_10"):
        Trajectory.from_full_weights(placed("step_{}"), saved / "base")


def test_a_step_that_is_not_there_is_named_with_those_that_are(saved, placed):
    with pytest.raises(InputError, match="no checkpoint at step 15; there are 10, 20"):
        Trajectory.from_full_weights(placed("step_{}"), saved / "base", steps=[10, 15])


def test_a_list_of_folders_is_read_as_full_weights(saved, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"10": str(saved / "10"), "20": str(saved / "20")}))
    for run in (path, {10: saved / "10", 20: saved / "20"}):
        assert Trajectory.from_full_weights(run, saved / "base", rank=4).steps == (10, 20)
    assert WAY_OUT in said(path, "inspect")
    shown = CliRunner().invoke(build(["analyze"]), ["analyze", str(path), "--base", str(saved / "base")])
    assert shown.exit_code == 0


def test_a_listed_folder_without_a_model_is_no_checkpoint_to_pass_over(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds neither model\.safetensors nor"):
        Trajectory.from_full_weights({10: saved / "10", 20: tmp_path / "empty"}, saved / "base")


def test_no_leap_takes_the_place_of_the_full_weights_that_it_is_made_from(saved, tmp_path):
    root = tmp_path / "elsewhere"
    places = {step: shutil.copytree(saved / str(step), root / "in" / str(step)) for step in (10, 20)}
    made = leap(Trajectory.from_full_weights(places, saved / "base", rank=4), "secant", horizon=10)
    with pytest.raises(InputError, match="which the leap is made from"):
        made.save_merged(root, saved / "base")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("verb", ["inspect", "analyze"])
def test_a_whole_model_in_a_pickle_is_named_as_one(saved, tmp_path, name, verb):
    for step in (10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / name).write_bytes(b"x")
    shown = said(tmp_path, verb, *(("--base", str(saved / "base")) if verb == "analyze" else ()))
    assert f"{name}: a whole model as a pickle, which is not read: save it as model.safetensors" in shown
    assert "adapter_config.json" not in shown


def away(folder):
    shutil.rmtree(folder)
    return folder


SINGLE = "model.safetensors"
BROKEN = {
    "dead link": (lambda f: ((f / SINGLE).unlink(), (f / SINGLE).symlink_to("gone")), "points nowhere"),
    "pickle": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "a whole model as a pickle"),
    "empty": (lambda f: away(f).mkdir(), "holds neither"),
    "no index": (lambda f: (f / SINGLE).rename(f / "model-00001-of-00002.safetensors"), "shards without"),
    "folder a dead link": (lambda f: away(f).symlink_to("gone"), "points nowhere"),
    "twice": (
        lambda f: shutil.copytree(f, f.with_name("checkpoint-020")),
        "step 20 is checkpoint-020 already",
    ),
    "adapter": (lambda f: ((f / "ref").mkdir(), (f / "ref" / "adapter_config.json").touch()), "an adapter"),
    "state alone": (lambda f: (away(f).mkdir(), (f / "trainer_state.json").touch()), "holds neither"),
    "linked": (lambda f: away(f).symlink_to("checkpoint-10"), "same file under steps 10 and 20"),
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_a_broken_checkpoint_is_refused_or_left_out_by_name(saved, placed, how):
    run, (change, says) = placed("checkpoint-{}"), BROKEN[how]
    shutil.copytree(saved / "20", run / "checkpoint-30")
    change(run / "checkpoint-20")
    with pytest.raises(InputError, match=says):
        Trajectory.from_full_weights(run, saved / "base", rank=4)
    words = ["analyze", str(run), "--base", str(saved / "base")]
    assert says in said(run, *words[:1], *words[2:])
    shown = CliRunner().invoke(build(words[:1]), [*words, "--skip-bad-checkpoints", "--json"])
    assert shown.exit_code == 0 or how == "linked"
    assert says in " ".join(shown.stderr.split()) or how == "linked"
    rest = (30,) if how == "linked" else (10, 30)
    traj = Trajectory.from_full_weights(run, saved / "base", rank=4, skip_bad_checkpoints=True)
    assert traj.steps == rest
    assert says in traj.skipped[0]
    assert Trajectory.from_full_weights(run, saved / "base", rank=4, steps=[30]).steps == (30,)
