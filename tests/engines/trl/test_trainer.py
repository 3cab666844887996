"""The trainer that `build_trainer` makes: settings on purpose, none of TRL's defaults for large models on GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import TrainingArguments

from nextrl.engines import named_optimizers
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import as_dataset, build_trainer, reward_function, with_adapter
from nextrl.tasks import base
from nextrl.tasks.bases import tiny

TASK = base.get("chain")


def test_steps_are_on_fresh_rollouts_of_the_size_asked_for() -> None:
    assert TrainSettings(prompts_per_step=3, completions_per_prompt=5).completions_per_step == 15


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"learning_rate": 0}, {"completions_per_prompt": 1}, {"optimizer": "sgd"}, {"stepz": 3}],
)
def test_settings_out_of_range_or_unknown_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainSettings(**bad)  # type: ignore[arg-type]


def test_a_fresh_adapter_is_seeded_and_changes_nothing() -> None:
    base_model, encode = tiny.load("chain")
    ids = encode(["3+4*5-2="], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = base_model(input_ids=ids).logits
    one = with_adapter(base_model, LoraSettings(), 1)
    with torch.no_grad():
        assert torch.equal(one(input_ids=ids).logits, expected)
    first = {n: p.clone() for n, p in one.named_parameters() if "lora_A" in n}
    again = dict(with_adapter(tiny.load("chain")[0], LoraSettings(), 1).named_parameters())
    other = dict(with_adapter(tiny.load("chain")[0], LoraSettings(), 2).named_parameters())
    assert first
    assert all(torch.equal(p, again[n]) for n, p in first.items())
    assert not any(torch.equal(p, other[n]) for n, p in first.items())


def test_rewards_in_trl_s_form() -> None:
    reward = reward_function(TASK)
    assert reward(completions=["005=5", "005=4"], answer=["5", "5"], prompts=["", ""]) == [1.0, 0.0]
    rows = as_dataset(TASK.examples("test")[:3])
    assert rows.column_names == ["prompt", "answer"]
    assert rows[0]["prompt"] == TASK.examples("test")[0].prompt


def test_several_gpus_without_a_launcher_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL refuses two GPUs in one process, for which `Trainer` would wrap the model in DataParallel."""

    def found(self: TrainingArguments, n: int) -> None:
        self.__dict__["gpus"] = n or 2  # on this CPU it finds none

    monkeypatch.setattr(
        TrainingArguments, "_n_gpu", property(lambda self: self.__dict__["gpus"], found), raising=False
    )
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self._n_gpu))
    settings = TrainSettings(steps=1, prompts_per_step=4, completions_per_prompt=4)
    model, encode = tiny.load("chain")
    trainer = build_trainer(with_adapter(model, LoraSettings(), 0), encode, TASK, settings, tmp_path)
    assert trainer.args.n_gpu == 1


def test_a_short_run_writes_trl_s_own_checkpoints_and_is_the_same_twice(tmp_path: Path) -> None:
    settings = TrainSettings(
        steps=2, save_every=1, prompts_per_step=4, completions_per_prompt=4, learning_rate=1e-3
    )
    ends = []
    for name in ("one", "two"):
        base_model, encode = tiny.load("chain")
        trainer = build_trainer(
            with_adapter(base_model, LoraSettings(), 0), encode, TASK, settings, tmp_path / name
        )
        assert not trainer.args.bf16 or torch.cuda.is_available()
        assert (trainer.args.gradient_checkpointing, trainer.args.weight_decay) == (False, 0.0)
        trainer.train()
        assert [g["lr"] for g in trainer.optimizer.param_groups] == [1e-3] * len(
            trainer.optimizer.param_groups
        )
        assert trainer.optimizer.param_groups[0]["betas"][0] == 0.9
        ends.append({n: p.detach().cpu().clone() for n, p in trainer.model.named_parameters()})
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])
    for step in (1, 2):
        folder = tmp_path / "one" / f"checkpoint-{step}"
        assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= {
            p.name for p in folder.iterdir()
        }
        assert not (folder / "README.md").exists()  # writing it would take longer than all the rest
    loaded = PeftModel.from_pretrained(tiny.load("chain")[0], str(tmp_path / "one" / "checkpoint-2"))
    lora = {n: p.cpu() for n, p in loaded.named_parameters() if "lora_" in n}
    assert all(torch.equal(p, ends[0][n]) for n, p in lora.items())


def adapter(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="holds float32 sums against another; GPUs train in bfloat16"
)
@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "rloo"])
def test_shared_prefixes_change_nothing_but_the_cost(tmp_path: Path, algorithm: str) -> None:
    rewards, moves, tokens = [], [], []
    for shares in (False, True):
        settings = TrainSettings(
            steps=4, prompts_per_step=4, completions_per_prompt=8, learning_rate=1e-3,
            algorithm=algorithm, share_prefixes=shares,
        )  # fmt: skip
        base_model, encode = tiny.load("chain")
        model = with_adapter(base_model, LoraSettings(), 0)
        start = {n: p.detach().clone() for n, p in adapter(model).items()}
        seen: list[int] = []
        layer = base_model.get_decoder().layers[0]
        layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][..., 0].numel()))
        trainer = build_trainer(model, encode, TASK, settings, tmp_path, save=False)
        trainer.train()
        rewards.append([h["reward"] for h in trainer.state.log_history if "reward" in h])
        moves.append(torch.cat([(p.detach() - start[n]).flatten() for n, p in adapter(model).items()]))
        tokens.append(sum(seen))
    assert rewards[0] == rewards[1]
    # float32 sums in another order, through Adam's first steps: near 0 they turn a sign, a rate's worth at most.
    assert (moves[0] - moves[1]).norm() < 0.01 * moves[0].norm()
    assert tokens[1] < 0.75 * tokens[0]


@pytest.mark.parametrize(
    ("name", "module"), [(optimizer.name, optimizer.module) for optimizer in named_optimizers.rate_free()]
)
def test_the_rate_free_controls_train(tmp_path: Path, name: str, module: str) -> None:
    pytest.importorskip(module)
    settings = TrainSettings(steps=2, prompts_per_step=4, completions_per_prompt=4, optimizer=name)
    base_model, encode = tiny.load("chain")
    model = with_adapter(base_model, LoraSettings(), 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = build_trainer(model, encode, TASK, settings, tmp_path, save=False)
    trainer.train()
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert name[:7] in type(inner).__name__.lower()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert moved
    assert all("lora_" in n for n in moved)
    assert not list(tmp_path.glob("checkpoint-*"))
