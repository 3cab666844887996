"""Real TRL trainers on the tiny base, small enough that a step takes a tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, SFTConfig, SFTTrainer

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.live_weights import along
from nextrl.engines.policies.base import agreed
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import as_dataset, reward_function, with_adapter
from nextrl.judge.acceptance import Acceptance, stages_up_to
from nextrl.judge.decision import Decision
from nextrl.tasks import base, chain
from nextrl.tasks.bases import tiny

TASK = base.get("chain")
LORA = LoraSettings(r=4, alpha=8, target_modules=["q_proj", "down_proj"])
VALIDATION = as_dataset(TASK.examples("validation")[:64])

COMMON: dict[str, Any] = {
    "max_steps": 4,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 32,
    "num_generations": 4,
    "max_completion_length": 6,
    "beta": 0.0,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
    "dataloader_pin_memory": False,
}


RLVR_ONLY = ("num_generations", "max_completion_length", "beta")


def fresh_model(lora: LoraSettings = LORA) -> Any:
    return with_adapter(tiny.load("chain")[0], lora, seed=0)


def trainer(
    out: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    model: Any = None,
    rows: Any = None,
    kind: type = GRPOTrainer,
    rewards: Any = None,
    optimizers: Any = (None, None),
    eval_dataset: Any = None,
    processing_class: Any = None,
    extras: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Any:
    """A trainer with TRL's own settings, `options` over `COMMON`; `extras` are further arguments of the trainer."""
    config = (GRPOConfig if kind is GRPOTrainer else RLOOConfig)(output_dir=str(out), **{**COMMON, **options})
    built = kind(
        model=model if model is not None else fresh_model(),
        reward_funcs=rewards or reward_function(TASK),
        args=config,
        train_dataset=rows if rows is not None else as_dataset(TASK.examples("train")[:400]),
        eval_dataset=eval_dataset,
        processing_class=processing_class or tiny.tokenizer(),
        optimizers=optimizers,
        callbacks=list(callbacks),
        **extras,
    )
    built.remove_callback(PrinterCallback)
    return built


def demonstrations(start: int, stop: int) -> Dataset:
    """Prompts of the task with completions that solve them."""
    rows = TASK.examples("train")[start:stop]
    return Dataset.from_list([{"prompt": e.prompt, "completion": chain.solve(e.prompt)} for e in rows])


def sft_trainer(
    out: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    model: Any = None,
    held_out: bool = True,
    **options: Any,
) -> SFTTrainer:
    """A trainer on demonstrations, with an eval_dataset of others where `held_out`."""
    common = {name: value for name, value in COMMON.items() if name not in RLVR_ONLY}
    built = SFTTrainer(
        model=model if model is not None else fresh_model(),
        args=SFTConfig(output_dir=str(out), **{**common, "per_device_train_batch_size": 8, **options}),
        train_dataset=demonstrations(0, 300),
        processing_class=tiny.tokenizer(),
        callbacks=list(callbacks),
        **({"eval_dataset": demonstrations(300, 364)} if held_out else {}),
    )
    built.remove_callback(PrinterCallback)
    return built


class Breaks(TrainerCallback):
    """Makes the gradients of some steps NaN, as one overflow in a loss does; `only` those of parameters so named."""

    def __init__(self, *steps: int, only: str = "") -> None:
        self.steps, self.only = steps, only

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 in self.steps:
            for name, p in kwargs["model"].named_parameters():
                if p.grad is not None and self.only in name:
                    p.grad.fill_(math.nan)


class Watch(TrainerCallback):
    """What is trained, the first moments and the rate: where a step begins, as the optimizer leaves it, at its end."""

    def __init__(self) -> None:
        self.begins: dict[int, Any] = {}
        self.stepped: dict[int, Any] = {}
        self.ends: dict[int, Any] = {}

    def _seen(self, kwargs: Any) -> Any:
        state = kwargs["optimizer"].state
        moments = [state[p]["exp_avg"].clone() for p in state if "exp_avg" in state[p]]
        return trainable(kwargs["model"]), moments, kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begins[state.global_step + 1] = self._seen(kwargs)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stepped[state.global_step + 1] = self._seen(kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends[state.global_step] = self._seen(kwargs)


class States(TrainerCallback):
    """The adapter at the end of every step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(LiveAdapter(kwargs["model"]).read())


class Before(TrainerCallback):
    """The adapter as the optimizer leaves it in every step, before any leap."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(LiveAdapter(kwargs["model"]).read())


def watched(out: Path, callback: TrainerCallback, **options: Any) -> tuple[Before, States, Any]:
    """A run under a callback: what it found at each step (first where the run began), what it left, and the trainer."""
    before, after = Before(), States()
    model = fresh_model()
    before.states.append(LiveAdapter(model).read())
    built = trainer(out, [before, callback, after], model=model, **{"learning_rate": 1e-3, **options})
    built.train()
    return before, after, built


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


class Scripted:
    """A policy that scores what it is told to and answers by a list, one (alpha, rate factor) a window."""

    method, searches, keeps_history, undoes = "scripted", True, False, False
    fall_errors = 2.5

    def __init__(
        self,
        answers: Sequence[tuple[float, float]] = (),
        search: Sequence[float] = (),
        every: int = 2,
        prompts: int = 16,
    ) -> None:
        self.answers, self.search = list(answers), tuple(search)
        self.every, self.acceptance = every, Acceptance(stages_up_to(prompts))
        self.windows: list[Any] = []
        self.scores: list[dict[float, torch.Tensor]] = []

    @property
    def steps_of_one(self) -> int:
        return self.every

    def begin(self, rows: int) -> None: ...

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None: ...

    def announced(self, steps: int, per_step: int, group: int) -> None: ...

    def never_searches(self, steps: int, per_step: int, group: int) -> bool:
        return False

    def checks(self, step: int) -> bool:
        return False

    def decide_step(self, view: Any, step: int, share: float) -> None: ...

    def ends_window(self, window: Any, began: int, fresh: bool) -> bool:
        return window.step % self.every == 0

    def cooled(self, step: int, steps: int) -> float:
        return 1.0

    def waits_for_checkpoint(self, step: int) -> bool:
        return False

    def decide(self, view: Any) -> tuple[Decision, Any]:
        candidate = partial(along, view.start, view.end)
        return agreed(view.ranks, self, partial(self.choose, view.window), view.score(candidate)), candidate

    def choose(self, window: Any, score: Any) -> Decision:
        self.windows.append(window)
        self.scores.append({a: score(a, 0, 16) for a in self.search})
        alpha, factor = (
            self.answers[len(self.windows) - 1] if len(self.windows) <= len(self.answers) else (0.0, 1.0)
        )
        spent = sum(len(s) for s in self.scores[-1].values())
        return Decision(alpha=alpha, rate_factor=factor, reason="scripted", scores={}, completions=spent)

    def moved(self, step: int, alpha: float) -> None: ...

    def state(self) -> dict[str, Any]:
        return {"windows": len(self.windows)}

    def restore(self, state: dict[str, Any]) -> None: ...


def scripted_policy(policy: Scripted, every: int = 2, prompts: int = 16) -> Scripted:
    """The policy with windows of this length and searches on so many prompts."""
    policy.every, policy.acceptance = every, Acceptance(stages_up_to(prompts))
    return policy
