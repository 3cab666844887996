"""One suite over every adapter layout: same run, same numbers, same leap to the bit."""

import json
import os
import re
import shlex
import shutil
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from lora_runs import PLACES, STEPS, lora, model, write_run
from nextrl.checkpoints import READERS, detect, open_run, verl_adapter
from nextrl.checkpoints.layouts.listing import trainer_checkpoints
from nextrl.checkpoints.tensorfile import read_pickle
from nextrl.errors import InputError
from nextrl.leaps.adapter_file import write_adapter
from nextrl.leaps.rank import fit_to_rank
from nextrl.trajectory.trajectory import Trajectory


@pytest.mark.parametrize("layout", list(PLACES))
def test_every_layout_is_found_and_matches_peft(tmp_path, layout):
    _, deltas = write_run(tmp_path, layout=layout)
    traj = Trajectory.load(tmp_path)
    assert traj.layout == layout
    assert traj.steps == STEPS
    assert set(traj.modules) == set(deltas[-1])
    for step, expected in zip(STEPS, deltas, strict=True):
        for module, delta in expected.items():
            torch.testing.assert_close(traj.weight(step, module).dense().float(), delta, rtol=1e-5, atol=1e-7)


def test_every_reader_is_in_this_suite():
    differ = set(READERS) ^ set(PLACES)
    assert not differ, (
        f"PLACES (tests/lora_runs.py) wants the names of READERS; they differ in {', '.join(differ)}"
    )


def test_the_same_run_in_every_layout_gives_the_same_leap_to_the_bit(tmp_path):
    write_run(tmp_path / "trl")
    leaps = []
    for layout in PLACES:
        for step in STEPS:
            target = tmp_path / layout / PLACES[layout].format(step)
            if layout != "trl":
                shutil.copytree(tmp_path / "trl" / f"checkpoint-{step}", target)
        traj = Trajectory.load(tmp_path / layout)
        new = {}
        for module in traj.modules:
            a, b = traj.factors(40, module)
            target_matrix = traj.weight(40, module) + traj.delta(module, 20, 40) * 1.5
            new[module] = fit_to_rank(target_matrix, a, b, traj.scaling(module))[:2]
        out = write_adapter(traj, 40, new, tmp_path / "out" / layout)
        leaps.append((out / "adapter_model.safetensors").read_bytes())
    assert len(set(leaps)) == 1


def test_the_line_on_bare_verl_shards_is_a_command_that_works(tmp_path):
    """Shards of an adapter alone (`save_lora_only`), of which verl's merger makes nothing; a path with a space."""
    run = tmp_path / "my runs"
    model, deltas = write_run(tmp_path, steps=(10,))
    actor = run / "global_step_10" / "actor"
    actor.mkdir(parents=True)
    (actor / "lora_train_meta.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"})
    )
    torch.save(
        {n: p for n, p in model.state_dict().items() if "lora_" in n}, actor / "model_world_size_1_rank_0.pt"
    )
    # A critic that was merged beside it is no policy.
    shutil.copytree(tmp_path / "checkpoint-10", run / "global_step_10" / "critic_merged" / "lora_adapter")
    [problem] = open_run(run).problems
    command = shlex.split(str(problem).split("run: ")[1])
    assert command == ["python", "-m", "nextrl.checkpoints.verl_adapter", str(run)]
    assert verl_adapter.main(command[3:]) == 0
    traj = Trajectory.load(run)
    for module, delta in deltas[0].items():
        assert torch.allclose(traj.weight(10, module).dense().float(), delta, atol=1e-6)


def test_shards_of_all_weights_are_not_sent_to_the_merger_for_ever(tmp_path):
    actor = tmp_path / "a run" / "global_step_10" / "actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"x")
    [problem] = open_run(tmp_path / "a run").problems
    words = shlex.split(str(problem).split("run: ")[1])
    assert words[:4] == ["python", "-m", "verl.model_merger", "merge"]
    assert str(actor) in words
    merged = actor.parent / "merged"
    merged.mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, merged / "model.safetensors")
    [problem] = open_run(tmp_path / "a run").problems
    assert "a whole model, and no adapter" in str(problem)
    assert "verl.model_merger" not in str(problem)


def test_verl_shards_name_a_command_and_their_metadata_mend_lora_alpha(tmp_path):
    actor = tmp_path / "global_step_10" / "actor"
    actor.mkdir(parents=True)
    (actor / "model_world_size_2_rank_0.pt").write_bytes(b"x")
    (actor / "lora_train_meta.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"})
    )
    problems = open_run(tmp_path).problems
    assert len(problems) == 1
    assert f"python -m nextrl.checkpoints.verl_adapter {tmp_path}" in str(problems[0])

    write_run(tmp_path / "trl", steps=(10,))
    merged = tmp_path / "global_step_10" / "merged" / "lora_adapter"  # where verl's merger puts it
    shutil.copytree(tmp_path / "trl" / "checkpoint-10", merged)
    shutil.rmtree(tmp_path / "trl")
    config = json.loads((merged / "adapter_config.json").read_text())
    config["lora_alpha"] = 0
    (merged / "adapter_config.json").write_text(json.dumps(config))
    assert Trajectory.load(tmp_path).scaling("model.layers.0.self_attn.q_proj") == 2.0

    (actor / "lora_train_meta.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config.json: lora_alpha is 0 .* set it"):
        Trajectory.load(tmp_path)


def test_openrlhf_zero3_writes_a_pickle_and_bare_deepspeed_state_is_explained(tmp_path):
    write_run(tmp_path, layout="openrlhf", steps=(10, 20))
    for step in (10, 20):
        folder = tmp_path / f"global_step{step}_hf"
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_model.bin: a pickle.*--allow-pickle"):
        Trajectory.load(tmp_path)
    assert Trajectory.load(tmp_path, allow_pickle=True).steps == (10, 20)

    bare = tmp_path / "bare"
    (bare / "_actor" / "global_step10").mkdir(parents=True)
    assert "--ckpt.save_hf" in str(open_run(bare).problems[0])


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    write_run(tmp_path, steps=(10,))
    folder = tmp_path / "checkpoint-10"
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"a": Bomb()}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="plain dictionary of tensors"):
        Trajectory.load(tmp_path, allow_pickle=True)
    assert not (tmp_path / "exploded").exists()


def pickled(path, body: bytes) -> None:
    """A file of torch.save's form, whose pickle is handwritten."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", body), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)


BYTES = (256 * 2**20).to_bytes(8, "little")


@pytest.mark.parametrize("module", [b"builtins", b"__builtin__"])
def test_an_optimizer_of_some_hundred_bytes_takes_no_memory(tmp_path, module):
    """`weights_only` calls bytearray, which makes any number of bytes, all of them written."""
    path = tmp_path / "optimizer.pt"
    pickled(
        path, b"\x80\x02}X\x05\x00\x00\x00statec" + module + b"\nbytearray\n\x8a\x08" + BYTES + b"\x85Rs."
    )
    with pytest.raises(ValueError, match=r"bytearray, which torch.save writes of no tensor"):
        read_pickle(path)


def test_a_pickled_tensor_that_the_file_does_not_hold_is_refused(tmp_path):
    write_run(tmp_path, steps=(10, 20))
    folder = tmp_path / "checkpoint-20"
    (folder / "adapter_model.safetensors").unlink()
    pickled(
        folder / "adapter_model.bin",
        b"\x80\x02}X\x01\x00\x00\x00xctorch\nFloatTensor\n\x8a\x08" + BYTES + b"\x85Rs.",
    )
    with pytest.raises(InputError, match="'x' is larger than what is stored for it"):
        Trajectory.load(tmp_path, allow_pickle=True)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"amsgrad": True}])
def test_what_torch_saves_of_an_optimizer_is_read(tmp_path, options):
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, **options)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    more = {
        "step": OrderedDict(a=torch.Size([2])),
        "kinds": {torch.bfloat16},
        "count": Counter("aab"),
    }
    torch.save(
        {**optimizer.state_dict(), "more": more | {"codes": torch.ones(3, dtype=torch.uint8)}},
        tmp_path / "o.pt",
    )
    for mmap in (False, True):
        read = read_pickle(tmp_path / "o.pt", mmap=mmap)
        assert read["param_groups"] == optimizer.state_dict()["param_groups"]
        assert torch.equal(read["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_json_list_of_folders(tmp_path):
    write_run(tmp_path / "runs", steps=(10, 20))
    listing = tmp_path / "list.json"
    listing.write_text(json.dumps({"5": "runs/checkpoint-10", "10": "runs/checkpoint-20"}))
    assert Trajectory.load(listing).steps == (5, 10)
    listing.write_text("[1, 2]")
    with pytest.raises(InputError, match="must map steps"):
        Trajectory.load(listing)


def test_two_layouts_in_one_folder_must_be_told_apart(tmp_path):
    write_run(tmp_path, steps=(10,))
    write_run(tmp_path, steps=(20,), layout="verl")
    with pytest.raises(InputError, match=r"two layouts.*trl.*verl.*--layout"):
        Trajectory.load(tmp_path)
    assert Trajectory.load(tmp_path, layout="verl").steps == (20,)
    with pytest.raises(InputError, match="unknown layout 'mars'; known: trl, verl, openrlhf, folders"):
        detect(tmp_path, "mars")


def test_the_trainers_folders_are_listed_by_step_and_others_passed_over(tmp_path):
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-foo", "checkpoint-3-old", "global_step_5"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert trainer_checkpoints(tmp_path) == [
        (20, tmp_path / "checkpoint-20"),
        (100, tmp_path / "checkpoint-100"),
    ]
    assert trainer_checkpoints(tmp_path / "not there yet") == []


def test_what_is_no_run_says_what_it_is(tmp_path):
    with pytest.raises(InputError, match="no LoRA checkpoints found"):
        detect(tmp_path)
    write_run(tmp_path, steps=(10,))
    with pytest.raises(InputError, match="is one adapter, not a run"):
        detect(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("inside", ["trajectory", "arms/plain"])
def test_a_run_further_down_is_named(tmp_path, inside):
    (tmp_path / "logs").mkdir()
    write_run(tmp_path / inside, steps=(10,))
    with pytest.raises(InputError) as error:
        detect(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no LoRA checkpoints here, but in {tmp_path / inside}: give that folder"
    )


def test_where_an_adapter_lies_that_is_not_read_is_said(tmp_path):
    write_run(tmp_path / "run", steps=(10, 20))
    named = tmp_path / "run" / "checkpoint-10" / "policy"
    named.mkdir()
    for file in list(named.parent.glob("adapter_*")):
        file.rename(named / file.name)
    with pytest.raises(
        InputError, match=r"checkpoint-10: holds no adapter itself, but in policy .* JSON file"
    ):
        Trajectory.load(tmp_path / "run")
    folders = {10: named, 20: tmp_path / "run" / "checkpoint-20"}
    assert Trajectory.load(folders).steps == (10, 20)
    weights = folders[20] / "adapter_model.safetensors"
    weights.rename(folders[20] / "adapter_model-00001-of-00001.safetensors")
    (folders[20] / "adapter_model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="its adapter is in shards"):
        Trajectory.load(folders)


def test_a_pickled_tensor_is_a_fresh_copy_too(tmp_path):
    write_run(tmp_path, steps=(10,))
    folder = tmp_path / "checkpoint-10"
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    traj = Trajectory.load(tmp_path, allow_pickle=True)
    before = traj.weight(10, traj.modules[0]).norm()
    for factor in traj.factors(10, traj.modules[0]):
        factor *= 2
    assert torch.equal(traj.weight(10, traj.modules[0]).norm(), before)


def _in_place(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, path)


def _with_another_header(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, path, metadata={"written": "again, with a header of another length"})


def _by_another_file(path: Path, state: dict[str, torch.Tensor]) -> None:
    """As a rename does, the old one's time kept, as a copy does that keeps times."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    save_file(state, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"), ns=times)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("rewrite", [_in_place, _with_another_header, _by_another_file])
def test_a_file_that_was_written_anew_is_not_read_at_the_old_places(tmp_path, rewrite) -> None:
    write_run(tmp_path)
    traj = Trajectory.load(tmp_path)
    module, path = traj.modules[0], tmp_path / "checkpoint-20" / "adapter_model.safetensors"
    os.utime(path, ns=(10**18, 10**18))  # long ago: a test is faster than a file system's clock may be
    traj = Trajectory.load(tmp_path)
    traj.factors(20, module)
    rewrite(path, {name: 3 * tensor for name, tensor in load_file(path).items()})
    with pytest.raises(
        InputError, match=r"checkpoint-20.*was written anew since it was opened.*load the run"
    ):
        traj.factors(20, module)
    with pytest.raises(InputError, match="was written anew"):
        traj.gram(module)
    traj.factors(30, module)
    Trajectory.load(tmp_path).factors(20, module)


def tracked_run(run: Path, named: str) -> Path:
    """A verl run whose tracker was written after everything else, with the step that it names."""
    write_run(run, layout="verl")
    for path in run.rglob("*"):
        os.utime(path, (1000, 1000))
    (run / "latest_checkpointed_iteration.txt").write_text(named)
    return run


def test_what_verl_left_behind_above_its_tracker_is_named_and_left_out(tmp_path):
    run = tracked_run(tmp_path, "20")
    problems = [p for p in open_run(run).problems if p.fatal]
    assert [p.step for p in problems] == [30, 40]
    assert "latest_checkpointed_iteration.txt names step 20" in str(problems[0])
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == (10, 20)
    assert Trajectory.load(run, steps=(10, 20)).steps == (10, 20)
    # What a merger has written since is no save of verl's.
    (run / "global_step_30" / "data.pt").write_bytes(b"")
    os.utime(run / "global_step_30" / "data.pt", (1000, 1000))
    os.utime(run / "global_step_30" / "actor" / "lora_adapter" / "adapter_model.safetensors")
    assert [p.step for p in open_run(run).problems if p.fatal] == [30, 40]


@pytest.mark.parametrize(
    "named", ["20.0", "20 30", "", "9" * 5000, "1_0", "-3", "later", "\N{FULLWIDTH DIGIT TWO}0"]
)
def test_a_tracker_that_names_no_step_is_a_problem(tmp_path, named):
    run = tracked_run(tmp_path, named)
    [problem] = open_run(run).problems
    assert "latest_checkpointed_iteration.txt: holds " in str(problem)
    with pytest.raises(InputError, match=r"and no step.*write the last whole checkpoint's number into it"):
        Trajectory.load(run)
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == STEPS


@pytest.mark.parametrize("named", ["40", "40\n", "100", None])
def test_a_tracker_that_names_no_older_step_is_no_alarm(tmp_path, named):
    run = tracked_run(tmp_path, named or "")
    if named is None:
        (run / "latest_checkpointed_iteration.txt").unlink()
    assert not open_run(run).problems


def test_a_checkpoint_that_verl_writes_just_now_is_not_left_behind(tmp_path):
    run = tracked_run(tmp_path, "30")
    newest = run / "global_step_40" / "actor" / "model_world_size_1_rank_0.pt"
    newest.write_bytes(b"half")
    later = (run / "latest_checkpointed_iteration.txt").stat().st_mtime + 5
    os.utime(newest, (later, later))
    assert not open_run(run).problems


@pytest.mark.parametrize(
    "place",
    [
        "epoch_{}",
        "step_{}/policy/weights/model",
        "weights/step_{}/lora_adapters",
        "iter_00000{}",
        "checkpoint_{}",
        "epoch_0_step_{}",
    ],
)
def test_adapters_in_another_tools_folders_are_told_of_the_list_that_reads_them(tmp_path, place):
    peft_model = get_peft_model(model(), lora())
    for step in STEPS:
        peft_model.save_pretrained(str(tmp_path / place.format(step)))
    with pytest.raises(
        InputError, match=r"holds adapters in folders that no layout names \(4 of them\)"
    ) as told:
        Trajectory.load(tmp_path)
    said = re.search(r"\{.*\}", str(told.value))[0]
    assert json.loads(said.replace(", ...", "")) == {str(STEPS[0]): place.format(STEPS[0])}
    listed = {str(step): place.format(step) for step in STEPS}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert Trajectory.load(tmp_path / "list.json").steps == STEPS


def linked(run: Path) -> Path:
    shutil.rmtree(run / "checkpoint-40")
    (run / "checkpoint-40").symlink_to("checkpoint-30")
    return run


def hard_linked(run: Path) -> Path:
    weights = run / "checkpoint-40" / "adapter_model.safetensors"
    weights.unlink()
    os.link(run / "checkpoint-30" / "adapter_model.safetensors", weights)
    return run


def listed_twice(run: Path) -> dict[int, Path]:
    return {step: run / f"checkpoint-{min(step, 30)}" for step in STEPS}


@pytest.mark.parametrize("make", [linked, hard_linked, listed_twice])
def test_one_checkpoint_under_two_steps_is_a_problem_of_both(tmp_path, make):
    write_run(tmp_path)
    run = make(tmp_path)
    problems = [p for p in open_run(run).problems if p.fatal]
    assert [p.step for p in problems] == [30, 40]
    assert all("the same file under steps 30 and 40" in str(p) for p in problems)
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == (10, 20)


def test_equal_values_in_two_files_and_a_link_beside_the_steps_are_no_problem(tmp_path):
    write_run(tmp_path)
    shutil.copy(*(tmp_path / f"checkpoint-{n}" / "adapter_model.safetensors" for n in (30, 40)))
    (tmp_path / "latest").symlink_to("checkpoint-40")
    assert not open_run(tmp_path).problems


@pytest.mark.parametrize("layout", ["trl", "openrlhf"])
def test_a_whole_model_among_adapters_is_not_passed_over(tmp_path, layout):
    """A leap from the last adapter would start before the steps that the model holds."""
    write_run(tmp_path, layout=layout)
    last = tmp_path / PLACES[layout].format(STEPS[-1])
    for file in last.iterdir():
        file.unlink()
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, last / "model.safetensors")
    [problem] = open_run(tmp_path).problems
    assert problem.fatal
    with pytest.raises(InputError, match=f"{last.name}: a whole model among adapters"):
        Trajectory.load(tmp_path)
