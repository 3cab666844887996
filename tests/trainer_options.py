"""Options of TRL's trainers as one table: what is set, and whether `LeapCallback` works under it or refuses it.

`test_options.py` runs every row; docs/options.md has the table that `table()` makes of it, which a test compares.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Adafactor, MixtralConfig, MixtralForCausalLM
from transformers.optimization import AdafactorSchedule
from trl import RLOOTrainer

from chat_base import ChatTokens, chat_model
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import as_dataset
from nextrl.tasks.bases import tiny
from trl_runs import TASK, VALIDATION, fresh_model, trainer

WORKS = "works"
HERE = "trl/test_options.py"


@dataclass(frozen=True)
class Option:
    """One row.

    Attributes:
        what: how a user sets it, as docs/options.md says it.
        settings: of TRL's configuration.
        verdict: `WORKS`, or a part of the refusal.
        steps: of each run.
        make: further arguments of `trl_runs.trainer`, built anew for each run (models, optimizers, tools).
        after: called with the trainer that was built.
        needs: a package that the option takes; without it the row is skipped.
        test: the file that holds the row, in tests/engines.
    """

    what: str
    settings: dict[str, Any] = field(default_factory=dict)
    verdict: str = WORKS
    steps: int = 3
    make: Callable[[], dict[str, Any]] = dict
    after: Callable[[Any], None] = lambda run: None
    needs: str | None = None
    test: str = HERE


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Something that differs from completion to completion, whatever these are."""
    return [float(sum(map(ord, str(c))) % 7) for c in completions]


def ends(completions: list[Any], **_: Any) -> list[float | None]:
    return [None if i % 4 == 3 else float(len(str(c)) % 3) for i, c in enumerate(completions)]


# Models.


def adapted(base: Any, name: str = "default", **lora: Any) -> Any:
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(**{**settings, **lora}), adapter_name=name)


def lora(**options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"model": adapted(tiny.load("chain")[0], **options)}


def dropping() -> dict[str, Any]:
    model = tiny.load("chain")[0]
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1  # a number of the layer's, no module of its own
    return {"model": adapted(model)}


def experts() -> dict[str, Any]:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        vocab_size=len(tiny.tokenizer()),
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    targets = {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    return {"model": adapted(MixtralForCausalLM(config), **targets)}


@functools.cache
def _saved() -> str:
    """An adapter of a run before, on disk."""
    model = fresh_model()
    for number, p in enumerate(p for p in model.parameters() if p.requires_grad):
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return folder


def loaded() -> dict[str, Any]:
    return {"model": PeftModel.from_pretrained(tiny.load("chain")[0], _saved(), is_trainable=True)}


def by_trainer() -> dict[str, Any]:
    """The trainer makes the adapter, and its reference is the model without it."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    return {"model": tiny.load("chain")[0], "extras": {"peft_config": config}}


# Optimizers and schedules.


class Lion(torch.optim.Optimizer):
    """Chen et al., 2302.06675: the sign of a moving average; as `lion-pytorch` has it, without weight decay."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            one, two = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                average = state.setdefault("exp_avg", torch.zeros_like(p))
                p.add_((average * one + p.grad * (1 - one)).sign(), alpha=-group["lr"])
                average.mul_(two).add_(p.grad, alpha=1 - two)


class Preconditioned(torch.optim.Optimizer):
    """Keeps lists of matrices for each parameter, as Shampoo (1802.09568) and SOAP (2409.11321) do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                sides = self.state[p].setdefault("GG", [torch.eye(n) * 1e-8 for n in p.shape])
                sides[0].add_(p.grad @ p.grad.T)
                sides[1].add_(p.grad.T @ p.grad)
                p.add_((p.grad / sides[0].trace().sqrt()), alpha=-group["lr"])


class Prodigy(torch.optim.Optimizer):
    """Keeps the size of its steps and their number in its groups (Mishchenko and Defazio, 2306.06101)."""

    def __init__(self, params: Any, lr: float = 1.0, d0: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr, "d": d0, "d0": d0, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            taken = [p for p in group["params"] if p.grad is not None]
            number = total = 0.0
            for p in taken:
                state = self.state[p]
                if not state:
                    state.update(p0=p.clone(), s=torch.zeros_like(p), v=torch.zeros_like(p))
                number += group["d"] * float((p.grad * (state["p0"] - p)).sum())
                state["s"].add_(p.grad, alpha=group["d"])
                state["v"].lerp_(p.grad.square(), 0.1)
                total += float(state["s"].abs().sum())
            group["d"] = max(1.5 * group["d"], number / total if total else 0.0)
            for p in taken:
                p.addcdiv_(p.grad, self.state[p]["v"].sqrt() + 1e-8, value=-group["d"] * group["lr"])


class AdamWScheduleFree(torch.optim.AdamW):
    """Called as the real one."""


class Lookahead(torch.optim.AdamW):
    """Called as the real ones."""


class Combined(torch.optim.Optimizer):
    """One for a part of the weights and one for the rest, as scripts put Muon beside AdamW."""

    def __init__(self, params: Any, lr: float) -> None:
        every = list(params)
        self.parts = [torch.optim.AdamW(part, lr=lr) for part in (every[::2], every[1::2])]
        super().__init__(every, {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()


def optimizer(kind: Any, schedule: Any = None, **options: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        model = fresh_model()
        made = kind([p for p in model.parameters() if p.requires_grad], **options)
        return {"model": model, "optimizers": (made, schedule(made) if schedule else None)}

    return make


def wide() -> dict[str, Any]:
    """So many numbers a tensor that 8-bit optimizers keep 8 bits."""
    return {"model": fresh_model(LoraSettings(r=64, alpha=64, target_modules=["q_proj"]))}


def adafactor(params: Any) -> Any:
    return Adafactor(params, lr=None, relative_step=True, warmup_init=True)


def one_cycle(made: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(made, max_lr=2e-3, total_steps=6, pct_start=0.5)


def floored(made: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=4, eta_min=3e-4)


PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    # Never better than the first time: the rate is halved after every evaluation but that one, down to 3e-4.
    "lr_scheduler_kwargs": {
        "mode": "max",
        "factor": 0.5,
        "patience": 0,
        "threshold": 1e6,
        "threshold_mode": "abs",
        "min_lr": 3e-4,
    },
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 4,
    "metric_for_best_model": "eval_reward",
}


def evaluated() -> dict[str, Any]:
    return {"eval_dataset": VALIDATION.select(range(1))}


def two_evaluated() -> dict[str, Any]:
    other = VALIDATION.select(range(1, 2)).add_column("level", ["hard"])
    return {"eval_dataset": {"a": VALIDATION.select(range(1)), "b": other}}


# What samples.


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.

    Returns:
        Their sum.
    """
    return a + b


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'
TOKENS = functools.cache(ChatTokens)


def with_tools() -> dict[str, Any]:
    rows = [{"prompt": [{"role": "user", "content": f"{i}+3?"}]} for i in range(16)]
    return {
        "model": chat_model(TOKENS()),
        "rows": Dataset.from_list(rows),
        "processing_class": TOKENS().tokenizer,
        "extras": {"tools": [add]},
    }


def call_tools(run: Any) -> None:
    """The model calls a tool in its first turn; what it says in its second differs from row to row."""
    tokens = TOKENS()

    def turn(prompts: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        second = ["tool_response" in tokens.tokenizer.decode(ids) for ids in prompts]
        said = [f"{'abcd'[i % 4]}<|im_end|>" for i in range(len(prompts))]
        return [tokens.ids(said[i] if again else CALL) for i, again in enumerate(second)], None

    run._generate_single_turn = turn


def rollout(prompts: list[Any], run: Any) -> dict[str, list[Any]]:
    n = len(prompts)
    return {
        "prompt_ids": [[2, 3]] * n,
        "completion_ids": [[3 + i % 4, 1] for i in range(n)],
        "logprobs": [[0.0, 0.0]] * n,
        "env_reward": [float(i % 3) for i in range(n)],
    }


def env_reward(completions: list[Any], env_reward: list[float], **_: Any) -> list[float]:
    return env_reward


def stream() -> dict[str, Any]:
    return {"rows": as_dataset(TASK.examples("train")[:64]).to_iterable_dataset()}


OPTIONS: dict[str, Option] = {
    # Schedules.
    "linear": Option('`lr_scheduler_type="linear"` (TRL\'s default)', {"lr_scheduler_type": "linear"}),
    "warm-up": Option("`warmup_steps`", {"lr_scheduler_type": "linear", "warmup_steps": 2}, steps=5),
    "cosine": Option('`"cosine"`, to zero', {"lr_scheduler_type": "cosine"}),
    "constant_with_warmup": Option(
        '`"constant_with_warmup"`', {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}, steps=4
    ),
    "cosine_with_min_lr": Option(
        '`"cosine_with_min_lr"`',
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 3e-4}},
    ),
    "eta_min": Option(
        "torch's `CosineAnnealingLR` with `eta_min`", make=optimizer(torch.optim.AdamW, floored, lr=1e-3)
    ),
    "OneCycleLR": Option(
        "torch's `OneCycleLR`", steps=5, make=optimizer(torch.optim.AdamW, one_cycle, lr=1e-3)
    ),
    "ReduceLROnPlateau": Option('`"reduce_lr_on_plateau"`', PLATEAU, steps=4, make=evaluated),
    # Batches.
    "num_iterations": Option("`num_iterations=2`", {"num_iterations": 2}, steps=4),
    "steps_per_generation": Option("`steps_per_generation=4`", {"steps_per_generation": 4}, steps=6),
    "accumulation": Option("`gradient_accumulation_steps=2`", {"gradient_accumulation_steps": 2}),
    "max_grad_norm": Option("`max_grad_norm=0`", {"max_grad_norm": 0.0}),
    "weight_decay": Option("`weight_decay`", {"weight_decay": 0.1}),
    # Optimizers.
    "fused": Option('`optim="adamw_torch_fused"`', {"optim": "adamw_torch_fused"}),
    "sgd": Option('`"sgd"`', {"optim": "sgd", "learning_rate": 1.0}),
    "adafactor": Option('`"adafactor"`', {"optim": "adafactor"}),
    "rmsprop": Option('`"rmsprop"`', {"optim": "rmsprop"}),
    "lion": Option("Lion (any that steps by its groups' rate)", make=optimizer(Lion, lr=1e-3)),
    "lists": Option(
        "an optimizer whose state holds lists of tensors (Shampoo, SOAP)",
        make=optimizer(Preconditioned, lr=1e-3),
    ),
    "groups": Option("one whose groups hold numbers of its own (Prodigy)", make=optimizer(Prodigy)),
    "8-bit": Option(
        '`"adamw_8bit"` (needs bitsandbytes)', {"optim": "adamw_8bit"}, make=wide, needs="bitsandbytes"
    ),
    "schedule-free": Option(
        "schedule-free optimizers",
        verdict="AdamWScheduleFree keeps weights of its own",
        make=optimizer(AdamWScheduleFree, lr=1e-3),
    ),
    "lookahead": Option(
        "Lookahead", verdict="Lookahead keeps weights of its own", make=optimizer(Lookahead, lr=1e-3)
    ),
    "combined": Option(
        "an optimizer made of others (Muon beside AdamW, SAM)",
        verdict="Combined steps through optimizers inside it",
        make=optimizer(Combined, lr=1e-3),
    ),
    "relative_step": Option(
        "Adafactor with `relative_step=True`",
        verdict="Adafactor makes its own learning rate",
        make=optimizer(adafactor, AdafactorSchedule),
    ),
    # The model.
    "bf16": Option("`bf16=True`", {"bf16": True}),
    "checkpointing": Option("`gradient_checkpointing=True`", {"gradient_checkpointing": True}),
    "compile": Option("`torch_compile=True`", {"torch_compile": True, "torch_compile_backend": "eager"}),
    "dropout": Option("dropout in the adapter (`lora_dropout`)", make=lora(lora_dropout=0.3)),
    "attention dropout": Option("dropout in attention (`attention_dropout` of the model)", make=dropping),
    "neftune": Option("`neftune_noise_alpha=5`", {"neftune_noise_alpha": 5.0}),
    "name": Option("an adapter of another name than `default`", make=lora(name="policy")),
    "modules_to_save": Option("`modules_to_save`", make=lora(modules_to_save=["lm_head"])),
    "target_parameters": Option("`target_parameters` (experts of a mixture)", make=experts),
    "disabled reference": Option(
        "`beta` above 0, with `peft_config=` (reference: the adapter switched off)",
        {"beta": 0.1},
        make=by_trainer,
    ),
    "loaded reference": Option(
        "`beta` above 0, with a loaded adapter (reference: a copy of it)", {"beta": 0.1}, make=loaded
    ),
    "use_bias_correction_kl": Option(
        "`use_bias_correction_kl=True`", {"beta": 0.1, "use_bias_correction_kl": True}, make=loaded
    ),
    # Losses.
    **{
        f"loss {name}": Option(f'`loss_type="{name}"`', {"loss_type": name})
        for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")
    },
    "sequence": Option(
        '`importance_sampling_level="sequence"`, `loss_type="grpo"`',
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    ),
    "luspo": Option('`loss_type="luspo"`', {"importance_sampling_level": "sequence", "loss_type": "luspo"}),
    "delta": Option("`delta`, `epsilon_high`", {"delta": 2.0, "epsilon_high": 0.28}),
    "top_entropy_quantile": Option("`top_entropy_quantile`", {"top_entropy_quantile": 0.5}),
    "entropy_coef": Option("`entropy_coef`", {"entropy_coef": 0.01}),
    "mask_truncated": Option("`mask_truncated_completions=True`", {"mask_truncated_completions": True}),
    **{
        f"scale {how}": Option(f"`scale_rewards={how!r}`".replace("'", '"'), {"scale_rewards": how})
        for how in ("group", "batch", "none")
    },
    "rewards": Option(
        "several reward functions with `reward_weights`, some of them `None`",
        {"reward_weights": [0.5, 2.0]},
        make=lambda: {"rewards": [reward, ends]},
    ),
    "normalised rewards": Option(
        '`multi_objective_aggregation="normalize_then_sum"`',
        {"multi_objective_aggregation": "normalize_then_sum"},
        make=lambda: {"rewards": [reward, ends]},
    ),
    # What samples, and data.
    "tools": Option("`tools=`", {"max_completion_length": 300}, make=with_tools, after=call_tools),
    "rollout_func": Option(
        "`rollout_func=`", make=lambda: {"rewards": env_reward, "extras": {"rollout_func": rollout}}
    ),
    "unused columns": Option("`remove_unused_columns=True`", {"remove_unused_columns": True}),
    "eval dict": Option(
        "a dict of eval datasets, evaluated on the way",
        {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4},
        make=two_evaluated,
    ),
    "stream": Option("an iterable training dataset", make=stream),
    "vllm": Option("`use_vllm=True` (there a stand-in engine)", test="trl/test_callback.py"),
    # Trainers.
    "rloo": Option("`RLOOTrainer`", make=lambda: {"kind": RLOOTrainer}),
    "rloo penalty": Option(
        "`RLOOTrainer` with `beta` above 0", {"beta": 0.1}, make=lambda: {"kind": RLOOTrainer, **loaded()}
    ),
    "sft": Option("`SFTTrainer` (a control)", test="trl/test_likelihood.py"),
    "other trainers": Option(
        "other trainers (DPO ...)", verdict="generates no completions to score", test="trl/test_callback.py"
    ),
    # The rest of a run.
    "resume": Option("`resume_from_checkpoint`", test="test_memory.py"),
    "ignored rate": Option(
        "an optimizer whose steps ignore the rate in its groups",
        verdict="noticed by the length of the next step; one line, and the rate is left alone",
        test="test_schedules.py",
    ),
    "own schedule": Option(
        "a schedule that makes rates from numbers of its own, beside `base_lrs`",
        verdict="noticed before the first step; one line, and the rate is left alone",
        test="trl/test_rates.py",
    ),
    "peft variants": Option(
        "DoRA, VeRA and others that are no `W + s B A`",
        verdict="the command line's words, before the first step",
        test="test_live_refusals.py",
    ),
}


def build(option: Option, out: Path, callbacks: Any = (), **settings: Any) -> Any:
    """The trainer of a row."""
    common: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": option.steps,
        "rewards": reward,
        "rows": None,
    }
    run = trainer(out, callbacks, **{**common, **option.settings, **option.make(), **settings})
    option.after(run)
    return run


def table() -> list[str]:
    """The lines of the table in docs/options.md."""
    rows = [
        f"| {option.what} | {'works' if option.verdict == WORKS else said(option.verdict)} | "
        f"[{Path(option.test).name}](../tests/engines/{option.test}) |"
        for option in OPTIONS.values()
    ]
    return ["| option | works, or refused | test |", "|---|---|---|", *rows]


def said(verdict: str) -> str:
    """A refusal as the table has it."""
    return verdict if "one line" in verdict or "command line" in verdict else f'refused: "{verdict}"'


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")
