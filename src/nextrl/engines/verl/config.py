"""verl's own hydra config, composed from ours: a flat table of overrides, checked against verl's real config tree.

Each key was read in verl 0.9.1 (`trainer/config/ppo_trainer.yaml` and the files it pulls in; where the yaml has no
entry, the dataclass named beside it). verl has some 700 keys; this file sets those that a user of nextrl decides and
those that leaps depend on, and leaves every other at verl's default. It works on text alone, without Ray or a GPU.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.errors import InputError, needs

VERSION = "0.9.1"
"""The verl whose keys are written below."""

DEFAULT_WINDOW = 20
"""Steps per window of `auto`, twice what it takes inside TRL: every window pays for a start of verl."""

Algorithm = Literal[
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "opo",
]

_ADVANTAGE = "algorithm.adv_estimator"  # names: trainer/ppo/core_algos.py:AdvantageEstimator
_BY_STD = "algorithm.norm_adv_by_std_in_grpo"
_ACTOR = "actor_rollout_ref.actor"
_LOSS = f"{_ACTOR}.policy_loss.loss_mode"  # names: core_algos.py:register_policy_loss
_AGGREGATE = f"{_ACTOR}.loss_agg_mode"  # names: workers/config/actor.py:valid_loss_agg_modes
_MODEL = "actor_rollout_ref.model"
_ROLLOUT = "actor_rollout_ref.rollout"


def _clip(low: float, high: float) -> dict[str, float]:
    return {f"{_ACTOR}.clip_ratio_low": low, f"{_ACTOR}.clip_ratio_high": high}


# Each is the paper's form as far as verl offers it; clip ranges are the papers' (DAPO 2503.14476 section 4.1, GSPO
# 2507.18071 section 5.1, both second-hand).
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {_ADVANTAGE: "grpo", _LOSS: "vanilla", _AGGREGATE: "seq-mean-token-mean"},
    "dr_grpo": {
        _ADVANTAGE: "grpo",
        _BY_STD: False,
        _LOSS: "vanilla",
        _AGGREGATE: "seq-mean-token-sum-norm",
    },
    "dapo": {
        _ADVANTAGE: "grpo",
        _LOSS: "vanilla",
        _AGGREGATE: "token-mean",
        "algorithm.filter_groups.enable": True,
        **_clip(0.2, 0.28),
    },
    "gspo": {_ADVANTAGE: "grpo", _LOSS: "gspo", _AGGREGATE: "seq-mean-token-mean", **_clip(3e-4, 4e-4)},
    "cispo": {_ADVANTAGE: "grpo", _LOSS: "cispo", _AGGREGATE: "token-mean", **_clip(10.0, 0.2)},
    "sapo": {_ADVANTAGE: "grpo", _LOSS: "sapo", _AGGREGATE: "seq-mean-token-mean"},
    "rloo": {_ADVANTAGE: "rloo", _LOSS: "vanilla", _AGGREGATE: "seq-mean-token-mean"},
    "reinforce_plus_plus": {_ADVANTAGE: "reinforce_plus_plus", _LOSS: "vanilla", _AGGREGATE: "token-mean"},
    "reinforce_plus_plus_baseline": {
        _ADVANTAGE: "reinforce_plus_plus_baseline",
        _LOSS: "vanilla",
        _AGGREGATE: "token-mean",
    },
    "opo": {_ADVANTAGE: "opo", _LOSS: "vanilla", _AGGREGATE: "token-mean"},
}

# A user's override of one of these would break what the loop relies on (where checkpoints lie, what a step is).
_OURS = (
    "trainer.default_local_dir",
    "trainer.resume_mode",
    "trainer.resume_from_path",
    "trainer.total_training_steps",
    "trainer.save_freq",
    "trainer.logger",
    "trainer.rollout_data_dir",
    f"{_MODEL}.path",
    f"{_MODEL}.lora_adapter_path",
    f"{_MODEL}.lora_rank",
    f"{_MODEL}.lora_alpha",
    f"{_ACTOR}.optim.lr",
    f"{_ACTOR}.ppo_mini_batch_size",
    "data.train_files",
    "data.train_batch_size",
)


class VerlSection(BaseModel):
    """What only verl is told."""

    model_config = ConfigDict(extra="forbid")

    gpus_per_node: int = Field(8, ge=1, description="GPUs of each node")
    nodes: int = Field(1, ge=1, description="nodes of the Ray cluster")
    strategy: Literal["fsdp", "fsdp2"] = Field("fsdp2", description="how verl shards the policy")
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one vLLM engine")
    gpu_memory: float = Field(0.5, gt=0, lt=1, description="share of a GPU's memory that vLLM takes")
    max_prompt_length: int = Field(512, ge=1, description="tokens, for verl's padding")
    chat_template: str | None = Field(
        None, description="Jinja template of a prompt; null: the task's text goes in as it is"
    )
    adapters: Literal["shards", "merger"] = Field(
        "shards",
        description="read adapters from FSDP shards as they are, or through verl's merger (rounded to bf16)",
    )
    restart: Literal["adapter", "merged"] = Field(
        "adapter", description="what a leap hands back: an adapter, or a merged model and a fresh adapter"
    )
    overrides: list[str] = Field([], description="further hydra overrides of verl's config, `key=value`")

    @field_validator("overrides")
    @classmethod
    def _leave_ours(cls, value: list[str]) -> list[str]:
        for text in value:
            key = text.split("=", 1)[0].lstrip("+~")
            if "=" not in text and not text.startswith("~"):
                raise InputError(f"verl override '{text}': write key=value")
            if key in _OURS:
                raise InputError(f"verl override '{key}': nextrl sets this key; use its own setting instead")
        return value


class VerlSettings(VerlSection):
    """One verl run with leaps.

    Attributes:
        model: folder of the base model (Hugging Face layout); every node must see it under this path.
        task: a `nextrl.tasks` name; its training prompts become verl's data file, its reward verl's reward function.
        train: steps, rate, batch and seed. `save_every` is not used: a checkpoint is taken at each window's end.
        lora: the adapter.
    """

    model: str
    task: str
    algorithm: Algorithm = "grpo"
    train: TrainSettings = TrainSettings()
    lora: LoraSettings = LoraSettings()


@dataclass(frozen=True)
class Segment:
    """One process of verl: from where it starts to where it stops.

    Attributes:
        folder: verl's `default_local_dir`; its own step numbers begin at 0 in each.
        stop: step in that numbering at which it ends and saves.
        save_every: steps between checkpoints.
        learning_rate: constant rate.
        model: folder of the base model.
        adapter: adapter to start from.
        seed: of prompts and rollouts; differs from restart to restart, or each would see the same prompts again.
        data: folder with train.jsonl, validation.jsonl and reward.py.
        metrics: where verl's file logger writes.
        rollouts: folder where verl writes the text of its rollouts, one file per step.
        chat_template: as verl is to use it.
        max_completion_length: tokens.
        passes: most passes over the training prompts.
    """

    folder: Path
    stop: int
    save_every: int
    learning_rate: float
    model: str
    adapter: Path
    seed: int
    data: Path
    metrics: Path
    rollouts: Path
    chat_template: str
    max_completion_length: int
    passes: int


def compose(settings: VerlSettings, segment: Segment) -> dict[str, Any]:
    """verl's overrides for one segment, in the order they are passed: key -> value.

    A leading "+" adds a key that verl's yaml does not list (but its code reads).
    """
    table = {**ALGORITHMS[settings.algorithm], **_data(settings, segment), **_model(settings, segment)}
    return {**table, **_optimisation(settings, segment), **_trainer(settings, segment)}


def _data(settings: VerlSettings, segment: Segment) -> dict[str, Any]:
    """trainer/config/data/legacy_data.yaml and reward/reward.yaml."""
    return {
        "data.train_files": str(segment.data / "train.jsonl"),
        "data.val_files": str(segment.data / "validation.jsonl"),
        "data.train_batch_size": settings.train.prompts_per_step,
        "data.max_prompt_length": settings.max_prompt_length,
        "data.max_response_length": segment.max_completion_length,
        "data.seed": segment.seed,
        "reward.custom_reward_function.path": str(segment.data / "reward.py"),
        "reward.custom_reward_function.name": "compute_score",
    }


def _model(settings: VerlSettings, segment: Segment) -> dict[str, Any]:
    """trainer/config/model/hf_model.yaml; workers/engine/fsdp/transformer_impl.py:_build_lora_module."""
    lora = settings.lora
    return {
        f"{_MODEL}.path": segment.model,
        f"{_MODEL}.custom_chat_template": segment.chat_template,
        # With an adapter path rank and alpha come from its own config; verl still asks lora_rank whether to use LoRA.
        f"{_MODEL}.lora_rank": lora.r,
        f"{_MODEL}.lora_alpha": lora.alpha,
        f"{_MODEL}.target_modules": lora.target_modules,
        f"{_MODEL}.lora_adapter_path": str(segment.adapter),
    }


def _optimisation(settings: VerlSettings, segment: Segment) -> dict[str, Any]:
    """trainer/config/actor/actor.yaml, dp_actor.yaml, optim/fsdp.yaml and rollout/rollout.yaml."""
    train = settings.train
    tokens = settings.max_prompt_length + segment.max_completion_length
    table: dict[str, Any] = {
        f"{_ACTOR}.strategy": settings.strategy,
        f"{_ACTOR}.optim.lr": segment.learning_rate,
        f"{_ACTOR}.optim.lr_scheduler_type": "constant",
        f"{_ACTOR}.optim.betas": [0.9, 0.999],
        f"{_ACTOR}.optim.weight_decay": 0.0,
        # One optimizer step an iteration, so that verl's global_step counts optimizer steps.
        f"{_ACTOR}.ppo_mini_batch_size": train.prompts_per_step,
        f"{_ACTOR}.ppo_epochs": 1,
        f"{_ACTOR}.use_dynamic_bsz": True,
        f"{_ACTOR}.ppo_max_token_len_per_gpu": max(16384, tokens),
        f"{_ACTOR}.use_kl_loss": False,
        f"{_ACTOR}.data_loader_seed": segment.seed,
        f"{_ROLLOUT}.name": "vllm",
        f"{_ROLLOUT}.n": train.completions_per_prompt,
        f"{_ROLLOUT}.temperature": train.temperature,
        f"{_ROLLOUT}.seed": segment.seed,
        f"{_ROLLOUT}.tensor_model_parallel_size": settings.tensor_parallel,
        f"{_ROLLOUT}.gpu_memory_utilization": settings.gpu_memory,
        # vLLM reads the base itself; only the adapter is sent at each step (engine_workers.py:base_sync_done).
        f"{_ROLLOUT}.load_format": "safetensors",
        "algorithm.use_kl_in_reward": False,
    }
    if settings.adapters == "shards":
        # trainer/config/config.py:CheckpointConfig has it, the yaml does not.
        table[f"+{_ACTOR}.checkpoint.save_lora_only"] = True
    return table


def _trainer(settings: VerlSettings, segment: Segment) -> dict[str, Any]:
    """trainer/config/ppo_trainer.yaml; the file logger is utils/tracking.py:FileLogger."""
    return {
        "trainer.n_gpus_per_node": settings.gpus_per_node,
        "trainer.nnodes": settings.nodes,
        "trainer.default_local_dir": str(segment.folder),
        "trainer.resume_mode": "auto",
        "trainer.total_training_steps": segment.stop,
        "trainer.total_epochs": segment.passes,
        "trainer.save_freq": segment.save_every,
        "trainer.max_actor_ckpt_to_keep": 1,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.rollout_data_dir": str(segment.rollouts),
        "trainer.logger": ["console", "file"],
        "trainer.project_name": "nextrl",
        "trainer.experiment_name": segment.folder.name,
        # The logger runs in a Ray worker, which may have been started long before us: its environment is set by Ray.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": str(segment.metrics),
    }


def arguments(table: Mapping[str, Any], further: Sequence[str] = ()) -> list[str]:
    """The table as hydra's command-line overrides, a user's own last."""
    return [f"{key}={_literal(value)}" for key, value in table.items()] + list(further)


def _literal(value: Any) -> str:
    """A value in hydra's override grammar (hydra.cc, "Basic override syntax": quoted values, lists)."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_literal(item) for item in value)}]"
    text = str(value)
    if re.fullmatch(r"[A-Za-z_/.][A-Za-z0-9_/.\-]*", text) and text.lower() not in _WORDS:
        return text
    # Backslashes escape only before a quote (or at the end, where a quote follows).
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


_WORDS = frozenset({"null", "true", "false", "inf", "nan"})


def config_tree() -> Path | None:
    """Folder of verl's yaml files, or None where verl is not installed; verl itself is not imported."""
    found = importlib.util.find_spec("verl")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "trainer" / "config"


def check(overrides: Sequence[str]) -> Any:
    """Compose verl's real config with these overrides, in struct mode, as `main_ppo` will: an omegaconf DictConfig.

    Raises:
        InputError: verl is not installed, or its config tree does not have a key or take a value.
    """
    tree = config_tree()
    if tree is None or not tree.is_dir():
        raise InputError(f"engine verl: verl is not installed here; pip install 'verl[vllm]=={VERSION}'")
    with needs("verl", "engine verl"):
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.errors import HydraException

    try:
        with initialize_config_dir(version_base=None, config_dir=str(tree)):
            return hydra_compose("ppo_trainer", overrides=list(overrides))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"engine verl: {first} (nextrl composes for verl {VERSION}; {tree} says otherwise)"
        ) from None
