"""The whole loop of `engine: verl` driven by a stub trainer: segments, decisions, leaps, restarts, failures, resume."""

import json
import math
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.verl import process
from nextrl.engines.verl.config import VerlSettings
from nextrl.engines.verl.scoring import TransformersScorer
from nextrl.engines.verl.segment_config import SegmentConfig
from nextrl.engines.verl.segments import VerlRun
from nextrl.errors import InputError
from nextrl.tasks import base
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.persistence import adam_persistence
from nextrl.trajectory.trajectory import Trajectory

STUB = (sys.executable, str(Path(__file__).parent / "verl_stub.py"))
BASE = str(resources.files("nextrl.tasks") / "bases" / "chain")
RATE = 1e-3


def settings(steps=6, **changes):
    values = {
        "model": BASE,
        "task": "chain",
        "train": TrainSettings(
            steps=steps, learning_rate=RATE, prompts_per_step=16, completions_per_prompt=8
        ),
        "lora": LoraSettings(r=4, alpha=8, target_modules=["q_proj", "down_proj"]),
    }
    return VerlSettings(**{**values, **changes})


class FakeScorer:
    """The further along the stub's straight line, the better; divergence is the squared distance, scaled."""

    def __init__(self, sign=1.0, moved=1e-4):
        self.sign, self.moved, self.calls, self.closed = sign, moved, [], 0
        self._unit = None

    def score(self, model, adapter, examples, seed):
        self.calls.append((model, adapter.name, len(examples), seed))
        place = self._place(adapter)
        noise = torch.rand(len(examples), generator=torch.Generator().manual_seed(seed)).double() * 1e-3
        return noise + self.sign * place

    def divergence(self, model, adapter, candidate, rollouts):
        assert rollouts == [("3+4*5-2=", "005=5")] * 4
        step = self._place(candidate) - self._place(adapter)
        self._unit = self._unit or abs(step)  # the first asked for is alpha = -1
        return self.moved * (step / self._unit) ** 2

    def close(self):
        self.closed += 1

    @staticmethod
    def _place(adapter):
        torch.manual_seed(0)
        total = 0.0
        for _, tensor in sorted(load_file(adapter / "adapter_model.safetensors").items()):
            total += float((tensor * torch.randn(tensor.shape)).sum())
        return total


def run(out, scorer=None, every=2, **changes):
    return VerlRun(
        settings(**changes),
        out,
        controller=SegmentConfig(every=every, stages=(4, 8)),
        scorer=scorer or FakeScorer(),
        command=STUB,
    )


def calls(out):
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


KEY = "actor_rollout_ref.model.lora_adapter_path"
LR = "actor_rollout_ref.actor.optim.lr"
TOTAL = "trainer.total_training_steps"


@pytest.fixture(scope="module")
def leapt(tmp_path_factory):
    out = tmp_path_factory.mktemp("verl") / "run"
    scorer = FakeScorer()
    return out, run(out, scorer).run(), scorer


def test_a_run_leaps_and_restarts_from_the_leap_at_the_new_rate(leapt):
    out, state, _ = leapt
    first, second = calls(out)[:2]
    assert state.step == 6
    assert state.decisions[0].alpha > 0
    assert second[KEY] == str(out / "leg-001" / "adapters" / "checkpoint-2")
    assert second["data.seed"] != first["data.seed"]  # or the restart would see its first prompts again
    assert second[TOTAL] == 2  # verl counts from 0 again
    assert float(second[LR]) == pytest.approx(state.decisions[0].learning_rate)


def test_the_leap_is_alpha_windows_further_on_inside_the_factors(leapt):
    out, state, _ = leapt
    places = [out / "leg-000" / "adapters" / "checkpoint-0", out / "leg-000" / "adapters" / "checkpoint-2"]
    start, stop = (load_file(p / "adapter_model.safetensors") for p in places)
    leap = load_file(out / "leg-001" / "adapters" / "checkpoint-2" / "adapter_model.safetensors")
    alpha = state.decisions[0].alpha
    for name in leap:
        torch.testing.assert_close(
            leap[name], stop[name] + alpha * (stop[name] - start[name]), rtol=1e-4, atol=1e-5
        )


def test_adapters_of_a_leg_are_a_run_that_nextrl_reads(leapt):
    out, _, _ = leapt
    traj = Trajectory.load(out / "leg-000" / "adapters")
    assert traj.steps == (0, 2)
    assert traj.scaling(traj.modules[0]) == 2.0
    assert traj.start == 0


def test_a_leg_after_a_leap_is_a_run_that_begins_there(leapt):
    out, _, _ = leapt
    traj = Trajectory.load(out / "leg-001" / "adapters")
    assert traj.steps[0] == traj.start == known_steps(traj)[0] == 2


def test_costs_are_counted_and_the_scorer_is_closed_before_verl_starts(leapt):
    out, state, scorer = leapt
    assert state.spent == sum(n for _, _, n, _ in scorer.calls) > 0
    assert scorer.closed == 3
    assert not (out / "candidates").exists()
    lines = (out / "decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


def test_the_same_prompts_have_the_same_seed_for_every_candidate_of_a_search(leapt):
    first = [(n, seed) for _, _, n, seed in leapt[2].calls[:2]]
    assert first[0] == first[1]


def test_without_a_decision_verl_resumes_its_own_checkpoint(tmp_path):
    out = tmp_path / "run"
    # Moves the policy as far as it should: nothing to search. (A third window of the stub's straight line would be.)
    state = run(out, FakeScorer(moved=0.015), steps=4).run()
    assert [d.alpha for d in state.decisions] == [0.0, 0.0]
    assert [c[TOTAL] for c in calls(out)] == [2, 4]
    assert {c["trainer.default_local_dir"] for c in calls(out)} == {str(out / "leg-000")}
    assert {c["trainer.resume_mode"] for c in calls(out)} == {"auto"}
    # Adam's moments were kept, so the excess is measured from what they carry over, and lies below the cosine.
    second = state.decisions[1]
    zero = adam_persistence(2, 0.9)
    assert second.persistence > 0.99  # the stub's path is straight
    assert second.excess == pytest.approx((second.persistence - zero) / (1.0 - zero), abs=1e-9)


def test_after_a_restart_the_zero_point_of_persistence_is_zero(tmp_path):
    """Fresh moments remember nothing of the window before, so the measured cosine is the excess itself."""
    state = run(tmp_path / "run", FakeScorer(moved=0.4), steps=4).run()  # too far: a lower rate, no leap
    assert state.decisions[0].alpha == 0.0
    assert state.decisions[0].learning_rate < RATE
    after = state.decisions[1]
    assert after.excess == pytest.approx(after.persistence, abs=1e-9)
    adapter = tmp_path / "run" / "leg-001" / "adapters" / "checkpoint-2"
    same = tmp_path / "run" / "leg-000" / "adapters" / "checkpoint-2"
    found, wanted = (load_file(p / "adapter_model.safetensors") for p in (adapter, same))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_last_window_cut_short_decides_nothing(tmp_path):
    state = run(tmp_path / "run", FakeScorer(moved=0.015), steps=3).run()
    assert [d.step for d in state.decisions] == [2]
    assert state.final == "leg-000/adapters/checkpoint-3"


def test_a_killed_verl_is_one_line_and_a_second_call_resumes_to_the_same_run(leapt, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("STUB_EXIT", "2:-9")
    with pytest.raises(InputError, match=r"killed by SIGKILL \(out of memory\?\) .*to step 2") as error:
        run(out, steps=4).run()
    assert "\n" not in str(error.value)
    monkeypatch.delenv("STUB_EXIT")
    resumed = run(out, steps=4).run()
    assert resumed.decisions == leapt[1].decisions[:2]
    weights = f"{resumed.final}/adapter_model.safetensors"
    reference, again = load_file(leapt[0] / weights), load_file(out / weights)
    assert all(torch.equal(reference[name], again[name]) for name in reference)


def test_verl_killed_within_a_leg_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("STUB_EXIT", "4:-9")
    with pytest.raises(InputError, match=r"killed by SIGKILL .*to step 4"):
        run(out, FakeScorer(moved=0.015), steps=4).run()
    monkeypatch.delenv("STUB_EXIT")
    state = run(out, FakeScorer(moved=0.015), steps=4).run()
    assert [d.step for d in state.decisions] == [2, 4]
    assert state.decisions[1].reward == pytest.approx(0.1035)  # of steps 3 and 4, each counted once


def test_an_exit_code_is_one_line_with_verls_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_EXIT", "1:3")
    with pytest.raises(
        InputError, match=r"exit code 3 on the way to step 2 .*CUDA out of memory \(stub\); see .*log"
    ):
        run(tmp_path / "run").run()


def test_a_finished_run_goes_on_when_the_last_step_is_moved(tmp_path):
    out = tmp_path / "run"
    scorer = FakeScorer(moved=0.015)
    assert run(out, scorer, steps=2).run().step == 2
    assert run(out, scorer, steps=4).run().step == 4
    assert len(calls(out)) == 2


def test_other_settings_do_not_resume(tmp_path):
    run(tmp_path / "run", FakeScorer(moved=0.015), steps=2).run()
    with pytest.raises(InputError, match="holds a run with other settings"):
        run(tmp_path / "run", every=1, steps=2).run()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        run(tmp_path).run()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_restart_can_merge(tmp_path):
    out = tmp_path / "run"
    state = run(out, steps=4, restart="merged").run()
    second = calls(out)[1]
    assert second["actor_rollout_ref.model.path"] == str(out / "leg-001" / "base")
    fresh = load_file(Path(second[KEY]) / "adapter_model.safetensors")
    assert all(not bool(t.any()) for name, t in fresh.items() if "lora_B" in name)
    assert state.decisions[0].alpha > 0
    moved = load_file(out / "leg-001" / "base" / "model.safetensors")[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    original = load_file(Path(BASE) / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(moved, original)
    assert Trajectory.load(out / "leg-001" / "adapters").start == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "/nowhere"}, "is not a folder with a config.json"),
        ({"lora": LoraSettings(use_rslora=True)}, "use_rslora"),
        ({"train": TrainSettings(optimizer="mechanic")}, "trains with adamw"),
        ({"train": TrainSettings(algorithm="rloo")}, "train.algorithm another"),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        run(tmp_path / "run", **change).run()
    assert not (tmp_path / "run").exists()


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot start /no/such/python"):
        process.run(["/no/such/python"], tmp_path / "log", "to step 1")


def test_the_plan_shows_the_command_and_writes_nothing(tmp_path):
    plan = VerlRun(settings(), tmp_path / "run", controller=SegmentConfig(every=2)).plan()
    assert "-m verl.trainer.main_ppo" in plan
    assert "algorithm.adv_estimator=grpo" in plan
    assert not (tmp_path / "run").exists()


def test_rewards_survive_a_torn_line_and_a_repeated_step(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"step": 1, "data": {"critic/score/mean": 0.1}}\n{"step": 2, "data": {"critic/sc')
    second.write_text(
        '{"step": 1, "data": {"critic/score/mean": 0.5}}\n{"step": 3, "data": {"critic/score/mean": NaN}}\n'
    )
    assert process.read_rewards([first, second]) == {1: 0.5}


def test_verl_loads_the_reward_function_from_its_file(tmp_path):
    """Loaded by path, as verl's load_extern_object does."""
    import importlib.util

    from nextrl.engines.verl.data import write_data

    write_data(base.get("chain"), tmp_path)
    spec = importlib.util.spec_from_file_location("reward_of_a_run", tmp_path / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    row = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    truth = row["reward_model"]["ground_truth"]
    assert (
        module.compute_score(row["data_source"], f"000={truth}", truth, extra_info=row["extra_info"]) == 1.0
    )
    assert module.compute_score(row["data_source"], "no", truth) == 0.0


def test_the_plain_template_gives_the_ids_of_plain_text():
    from nextrl.engines.verl.data import plain_template, tokenizer

    tokens = tokenizer(BASE)
    tokens.chat_template = plain_template(tokens)
    messages = [{"role": "user", "content": "3+4*5-2="}]
    built = tokens.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokens(built, add_special_tokens=False).input_ids
    assert ids == tokens("3+4*5-2=").input_ids
    assert ids[0] == tokens.bos_token_id


def test_transformers_scorer_on_the_tiny_base(tmp_path):
    """Real generation and real log-probabilities: the start is no divergence from itself, a moved adapter is some."""
    out = tmp_path / "run"
    task = base.get("chain")
    scorer = TransformersScorer(task, task.max_completion_length)
    state = run(out, scorer, steps=2).run()
    assert state.decisions[0].divergence > 0
    here, there = (out / "leg-000" / "adapters" / f"checkpoint-{step}" for step in (2, 0))
    examples = task.examples("validation")[:8]
    first = scorer.score(BASE, here, examples, 3)
    assert torch.equal(first, scorer.score(BASE, here, examples, 3))
    rollouts = [("3+4*5-2=", "005=5"), ("1+1+1+1=", "")]
    assert scorer.divergence(BASE, here, here, rollouts) == 0.0
    assert scorer.divergence(BASE, here, there, rollouts) > 0.0
    assert math.isnan(scorer.divergence(BASE, here, there, [("1+1+1+1=", "")]))
