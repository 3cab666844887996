"""What verl leaves beside its checkpoints: rewards, rates, and how many updates one of its steps holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from nextrl.checkpoints.layouts.verl import EARLIER_METRICS, METRICS, SETTINGS
from nextrl.cli import build
from nextrl.errors import InputError
from nextrl.judge.advice import Advice
from nextrl.judge.advise import advise
from nextrl.judge.analysis import analyze
from nextrl.judge.backtest import backtest
from nextrl.trajectory import trainer_log
from nextrl.trajectory.persistence import adam_carry, adam_persistence
from nextrl.trajectory.trajectory import Trajectory

UPDATES = 8
PLACE = "global_step_{}/merged/lora_adapter"


def trained(steps: int, drift: float = 0.0, every: int = 5) -> Iterator[tuple[int, dict[str, Tensor], dict]]:
    """Gradients of white noise and a drift under Adam: (step, adapter, optimizer's state) at each save."""
    generator = torch.Generator().manual_seed(0)
    names = [f"base_model.model.model.layers.{n}.self_attn.q_proj" for n in range(2)]
    factors = {
        f"{name}.lora_{side}.weight": torch.nn.Parameter(torch.rand(shape, generator=generator) * 0.1)
        for name in names
        for side, shape in (("A", (8, 32)), ("B", (32, 8)))
    }
    for name, factor in factors.items():
        if "lora_B" in name:
            factor.data.zero_()
    optimizer = torch.optim.AdamW(factors.values(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    along = [torch.randn(factor.shape, generator=generator) for factor in factors.values()]
    for step in range(1, steps + 1):
        for _ in range(UPDATES):
            for factor, way in zip(factors.values(), along, strict=True):
                factor.grad = torch.randn(factor.shape, generator=generator) + drift * way
            optimizer.step()
        if step % every == 0:
            yield step, {n: f.detach().clone() for n, f in factors.items()}, optimizer.state_dict()


def write(run: Path, drift: float = 0.0, place: str = PLACE, optimizer: bool = False) -> Path:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    for step, factors, state in trained(60, drift):
        folder = run / place.format(step)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(factors, folder / "adapter_model.safetensors")
        if optimizer:
            actor = run / f"global_step_{step}" / "actor"
            actor.mkdir(exist_ok=True)
            torch.save(state, actor / "optim_world_size_1_rank_0.pt")
    return run


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return write(tmp_path, optimizer=True)


def log(run: Path, figures: dict[int, dict[str, float]], name: str = METRICS) -> None:
    lines = [json.dumps({"step": step, "data": data}) + "\n" for step, data in figures.items()]
    (run / name).write_text("".join(lines))


def said(*arguments: str | Path) -> str:
    result = CliRunner().invoke(build(), [str(a) for a in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize(("window", "before"), [(5, 5), (5, 10)])
def test_momentum_counts_updates(window: int, before: int) -> None:
    assert adam_persistence(window, 0.9, before, updates=8) == adam_persistence(8 * window, 0.9, 8 * before)
    assert adam_carry(window, 0.9, before, updates=8) == adam_carry(8 * window, 0.9, 8 * before)


def test_the_optimizer_says_how_many_updates_a_step_holds(known: Path) -> None:
    traj = Trajectory.load(known)
    assert trainer_log.updates_per_step(traj) == UPDATES
    assert trainer_log.adam_beta1(traj) == 0.9
    advice = advise(traj)
    assert not advice.withheld
    assert advice.advice != "lower_lr"
    assert advice.features.excess == pytest.approx(0.0, abs=0.1)
    assert f"and {UPDATES} updates in each step" in advice.reasons[0]
    found = analyze(traj, windows=[5])
    assert found.zero[5] == adam_persistence(5 * UPDATES)
    assert found.updates == UPDATES


def test_steps_that_were_taken_back_and_a_new_optimizer_hide_no_updates(known: Path) -> None:
    def count(step: int, updates: int) -> None:
        path = known / f"global_step_{step}" / "actor" / "optim_world_size_1_rank_0.pt"
        state = torch.load(path)
        for entry in state["state"].values():
            entry["step"] = torch.tensor(float(updates))
        torch.save(state, path)

    count(50, 49 * UPDATES)  # one step of 46 to 50 was taken back
    count(55, 5 * UPDATES)  # the optimizer began anew
    count(60, 9 * UPDATES)
    assert trainer_log.updates_per_step(Trajectory.load(known)) == UPDATES


@pytest.mark.parametrize("damage", [b"", b"no pickle", None])
def test_where_nothing_says_the_number_the_rate_is_not_judged(known: Path, damage: bytes | None) -> None:
    for shard in known.glob("global_step_*/actor/optim_*.pt"):
        torch.save({"state": {0: {"step": "x"}}}, shard) if damage is None else shard.write_bytes(damage)
    traj = Trajectory.load(known)
    assert trainer_log.updates_per_step(traj) is None
    advice = advise(traj)
    assert advice.withheld
    assert advice.factor is None
    assert advice.recommended == "none"
    assert "no word on the learning rate" in advice.answer
    assert "--updates-per-step N" in advice.answer
    told = said("advise", known)
    assert "Regime: unknown" in told
    assert f"nextrl advise {known} --updates-per-step N" in told
    assert "No regime" in said("analyze", known)
    assert "excess" not in said("analyze", known)
    assert analyze(traj).excess == {} == analyze(traj).zero


def test_the_number_can_be_given(bare: Path) -> None:
    advice = advise(bare, updates_per_step=UPDATES)
    assert not advice.withheld
    assert advice.features.excess == pytest.approx(0.0, abs=0.1)
    assert "oscillates" in advise(bare, updates_per_step=1).answer
    assert "excess -0.0" in said("advise", bare, "--updates-per-step", "8")
    assert "Noise: " in said("analyze", bare, "--updates-per-step", "8")
    for wrong in (0, 10**9):
        with pytest.raises(InputError, match="updates_per_step must be a whole number"):
            advise(bare, updates_per_step=wrong)


def test_an_answer_that_holds_for_any_number_stands(tmp_path: Path) -> None:
    advice = advise(write(tmp_path, drift=1.0))
    assert advice.advice in ("leap", "raise_lr")
    assert not advice.withheld
    assert advice.confidence == "low"
    assert "this holds for any number" in advice.answer


def test_a_run_of_ours_takes_one_update_a_step_unless_told_otherwise(bare: Path, tmp_path: Path) -> None:
    run = write(tmp_path)
    (run / SETTINGS).write_text(json.dumps({"overrides": ["actor_rollout_ref.rollout.top_p=.9"]}))
    assert trainer_log.updates_per_step(Trajectory.load(run)) == 1
    (run / SETTINGS).write_text(json.dumps({"overrides": ["actor_rollout_ref.actor.ppo_epochs=4"]}))
    assert trainer_log.updates_per_step(Trajectory.load(run)) is None


@pytest.mark.parametrize("place", ["checkpoint-{}", "step_{}", "global_step{}_hf"])
def test_the_name_of_a_folder_does_not_say_how_many_updates_a_step_holds(place: str, tmp_path: Path) -> None:
    """White noise under Adam, eight updates a step: taken for one, it had been said to oscillate, confidence high."""
    run = write(tmp_path / "run", place=place)
    log(run, {}, "trainer_state.json")  # some tools leave one for the whole run, whose steps are as unknown
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({str(s): f"run/{place.format(s)}" for s in range(5, 61, 5)}))
    for source in (run, listed):
        advice = advise(source)
        assert advice.withheld
        assert "oscillates" not in advice.answer
        assert "give --updates-per-step N (1 where every step is an optimizer's" in advice.answer
        assert f"nextrl advise {source} --updates-per-step N" in said("advise", source)
        assert "No regime" in said("analyze", source)
        assert "oscillates" not in said("advise", source, "--updates-per-step", str(UPDATES))


def test_every_verb_that_judges_takes_the_number(bare: Path, tmp_path: Path) -> None:
    told = advise(bare, updates_per_step=UPDATES).answer
    assert "no word on the learning rate" in said("backtest", bare, "--methods", "secant")
    assert told in said("backtest", bare, "--methods", "secant", "--updates-per-step", str(UPDATES))
    out = ["leap", str(bare), "--out", str(tmp_path / "leap")]
    assert "no word on the learning rate" in str(CliRunner().invoke(build(), out).exception)
    told_eight = CliRunner().invoke(build(), [*out, "--updates-per-step", str(UPDATES)])
    assert told in str(told_eight.exception)
    assert backtest(bare, updates_per_step=UPDATES).horizons.keys() == backtest(bare).horizons.keys()
    with pytest.raises(InputError, match="updates_per_step must be a whole number"):
        backtest(bare, updates_per_step=0)


@pytest.mark.parametrize(
    ("counted", "updates"),
    [
        (lambda step: step, 1),
        (lambda step: 50 * step, 50),  # checkpoints of epochs, numbered by these
        (lambda step: step + 700, 1),  # the second part of a run, numbered anew
        (
            lambda step: step if step <= 30 else step - 30,
            1,
        ),  # joined from two parts that count their own steps
        (lambda step: step if step <= 10 else step - 10, 1),
        (lambda step: step if step != 60 else 5000, 1),  # one that contradicts the others
        (lambda step: step if step != 35 else 5000, 1),
        (lambda step: 50 * step if step != 60 else 50 * 58, 50),  # the last epoch was cut short
        (lambda step: step**2, None),
        (lambda step: 7, None),
        (lambda step: "x", None),
    ],
)
def test_transformers_counts_updates(
    counted: Callable[[int], object], updates: int | None, tmp_path: Path
) -> None:
    for place in ("checkpoint-{}", "{}"):
        run = write(tmp_path / f"run of {len(place)}", place=place)
        for folder in run.iterdir():
            state = {"global_step": counted(int(folder.name.rpartition("-")[2])), "log_history": []}
            (folder / "trainer_state.json").write_text(json.dumps(state))
        assert trainer_log.updates_per_step(Trajectory.load(run)) == updates


def test_one_state_that_contradicts_its_folder_changes_no_answer(tmp_path: Path) -> None:
    run = write(tmp_path, drift=1.0, place="checkpoint-{}")
    for folder in run.iterdir():
        step = int(folder.name.rpartition("-")[2])
        entries = [{"step": s, "reward": s / 100, "learning_rate": 1e-3} for s in range(1, step + 1)]
        state = {"global_step": step, "log_history": entries}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    before = advise(run)
    wrong = run / "checkpoint-55" / "trainer_state.json"
    wrong.write_text(json.dumps(json.loads(wrong.read_text()) | {"global_step": 5000}))
    assert advise(run).answer == before.answer
    assert advise(run).features == before.features


@pytest.mark.parametrize("counted", [5000, 30])
def test_a_log_that_counts_other_steps_than_the_run_gives_no_rewards(
    counted: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write(tmp_path, place="checkpoint-{}")
    path = run / "checkpoint-60" / "trainer_state.json"
    entries = [{"step": s, "reward": 0.5, "learning_rate": 1e-3} for s in range(1, 31)]
    path.write_text(json.dumps({"global_step": 60, "log_history": entries}))
    assert len(trainer_log.rewards(Trajectory.load(run))) == 30
    path.write_text(json.dumps({"global_step": counted, "log_history": entries}))
    traj = Trajectory.load(run)
    assert trainer_log.rewards(traj) == {} == trainer_log.learning_rates(traj)
    assert caplog.text.count(f"{path}: counts {counted} optimizer steps where the run has 60") == 1


def test_steps_of_factors_in_memory_are_an_optimizers() -> None:
    moved = [{"w": (torch.eye(4), t * torch.eye(4))} for t in range(4)]
    assert trainer_log.updates_per_step(Trajectory.from_factors(range(4), moved)) == 1


def collapsed(run: Path) -> Advice:
    figures = {s: {"critic/score/mean": 0.6 if s < 30 else 0.0, "actor/lr": 3e-4} for s in range(1, 61)}
    log(run, figures | {61: {"critic/score/mean": 0.9}})
    return advise(run)


def test_a_collapsed_run_is_told_to_start_over_by_verls_own_log(known: Path) -> None:
    advice = collapsed(known)
    assert advice.advice == "lower_lr"
    assert "all but gone" in advice.answer
    assert advice.features.rate == 3e-4
    assert advice.features.reward == 0.0
    told = said("advise", known)
    assert "actor_rollout_ref.actor.optim.lr to 3e-5 or less" in told
    assert "trainer.v1.trainer_mode=nextrl +trainer.v1.nextrl.every=10" in told
    assert "nextrl.attach" not in told


def test_rewards_of_all_parts_of_the_log_count_and_the_later_ones_stand(known: Path) -> None:
    log(known, {s: {"critic/rewards/mean": 0.25} for s in range(1, 21)}, EARLIER_METRICS)
    log(known, {s: {"critic/rewards/mean": 0.5} for s in range(16, 61)})
    with (known / METRICS).open("a") as file:
        file.write('[1]\n{"step": 60, "data": {"val-core/chain/acc/mean@1": 1.0}}\n{"step": 60, "da')
    rewards = trainer_log.rewards(Trajectory.load(known))
    assert rewards == {s: 0.25 if s < 16 else 0.5 for s in range(1, 61)}


def rewarded(run: Path) -> int:
    return len(trainer_log.rewards(Trajectory.load(run)))


DAMAGE = {
    "a byte that is no text": b'{"step": 61, "data": {"a": "\xff',
    "NULs after a power cut": b"\0" * 4096 + b"\n",
    "a line of 65 MiB": b" " * (65 << 20),
    "no line end": b'{"step": 61, "data": {}}',
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_one_bad_line_of_verls_log_costs_that_line_alone(
    bare: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log(bare, {s: {"critic/score/mean": 0.5} for s in range(1, 61)})
    with (bare / METRICS).open("ab") as file:
        file.write(damage)
    assert rewarded(bare) == 60
    (bare / METRICS).write_bytes(damage[:1000] + b"\n" + (bare / METRICS).read_bytes())
    assert rewarded(bare) == 60
    assert not caplog.text


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _utf16(path: Path) -> None:
    path.write_bytes(path.read_text().encode("utf-16"))


def _of_one_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))


def _sparse(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("damaged", [_pipe, _utf16, _of_one_line, _sparse])
def test_a_verl_log_that_is_not_used_is_named(
    tmp_path: Path, damaged: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = write(tmp_path)
    log(run, {s: {"critic/score/mean": 0.5} for s in range(1, 61)})
    damaged(run / METRICS)
    assert rewarded(run) == 0
    advise(run)
    assert caplog.text.count(f"nextrl: {run / METRICS}: ") == 1
    assert "so rewards and learning rates are not known from it" in caplog.text


def test_a_verl_run_without_a_log_is_no_fault(bare: Path, caplog: pytest.LogCaptureFixture) -> None:
    (bare / METRICS).write_text("")
    assert rewarded(bare) == 0
    (bare / METRICS).unlink()
    assert rewarded(bare) == 0
    assert not caplog.text


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _of_another_kind(path: Path) -> None:
    path.write_text('{"log_history": {}}')


@pytest.mark.parametrize("damaged", [_pipe, _utf16, _truncated, _of_another_kind])
def test_a_trainers_log_that_cannot_be_read_is_named(
    tmp_path: Path, damaged: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = write(tmp_path, place="checkpoint-{}")
    path = run / "checkpoint-60" / "trainer_state.json"
    entries = [{"step": s, "reward": 0.5} for s in range(1, 61)]
    path.write_text(json.dumps({"global_step": 60, "log_history": entries}))
    damaged(path)
    assert rewarded(run) == 0
    advise(run)
    assert caplog.text.count(f"nextrl: {path}: ") == 1
    assert "so rewards and learning rates are not known from it" in caplog.text
