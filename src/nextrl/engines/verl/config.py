"""verl's own hydra config, composed from ours: a flat table of overrides, checked against verl's real config tree.

Each key was read in verl 0.9.1 (`trainer/config/ppo_trainer.yaml` and the files it pulls in; where the yaml has no
entry, the dataclass named beside it). verl has some 700 keys; this file sets those that a user of nextrl decides and
those that leaps depend on, and leaves every other at verl's default. It works on text alone, without Ray or a GPU.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nextrl.checkpoints.layouts.verl import METRICS
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.errors import InputError, first_line, needs
from nextrl.tasks import base

VERSION = "0.9.1"
"""The verl whose keys are written below."""

START = "global_step_0/actor/lora_adapter"
"""In a run's folder: the adapter that it starts from."""

_ADVANTAGE = "algorithm.adv_estimator"  # names: trainer/ppo/core_algos.py:AdvantageEstimator
_BY_STD = "algorithm.norm_adv_by_std_in_grpo"
_FILTERED = "algorithm.filter_groups.enable"
_ACTOR = "actor_rollout_ref.actor"
_LOSS = f"{_ACTOR}.policy_loss.loss_mode"  # names: core_algos.py:register_policy_loss
_AGGREGATE = f"{_ACTOR}.loss_agg_mode"  # names: workers/config/actor.py:valid_loss_agg_modes
_MODEL = "actor_rollout_ref.model"
_ROLLOUT = "actor_rollout_ref.rollout"


def _algorithm(advantage: str, loss: str, aggregate: str, **clip: float) -> dict[str, Any]:
    bounds = {f"{_ACTOR}.clip_ratio_{side}": value for side, value in clip.items()}
    return {_ADVANTAGE: advantage, _LOSS: loss, _AGGREGATE: aggregate, **bounds}


# Each is the paper's form as far as verl offers it; clip ranges are the papers' (DAPO 2503.14476 section 4.1, GSPO
# 2507.18071 section 5.1, both second-hand).
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": _algorithm("grpo", "vanilla", "seq-mean-token-mean"),
    "dr_grpo": _algorithm("grpo", "vanilla", "seq-mean-token-sum-norm") | {_BY_STD: False},
    "dapo": _algorithm("grpo", "vanilla", "token-mean", low=0.2, high=0.28) | {_FILTERED: True},
    "gspo": _algorithm("grpo", "gspo", "seq-mean-token-mean", low=3e-4, high=4e-4),
    "cispo": _algorithm("grpo", "cispo", "token-mean", low=10.0, high=0.2),
    "rloo": _algorithm("rloo", "vanilla", "seq-mean-token-mean"),
    "reinforce_plus_plus": _algorithm("reinforce_plus_plus", "vanilla", "token-mean"),
}
"""By their names in `engines.algorithms`."""

# A user's override of one of these would contradict the config it is composed from.
_OURS = (
    "trainer.default_local_dir",
    "trainer.resume_mode",
    "trainer.resume_from_path",
    "trainer.total_training_steps",
    "trainer.save_freq",
    "trainer.logger",
    "trainer.use_v1",
    "trainer.v1.trainer_mode",
    f"{_MODEL}.path",
    f"{_MODEL}.lora_adapter_path",
    f"{_MODEL}.lora_rank",
    f"{_MODEL}.lora_alpha",
    f"{_MODEL}.target_modules",
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
    overrides: list[str] = Field([], description="further hydra overrides of verl's config, `key=value`")

    @field_validator("overrides")
    @classmethod
    def _leave_ours(cls, value: list[str]) -> list[str]:
        for text in value:
            key = text.split("=", 1)[0].strip().lstrip("+~").strip()
            if "=" not in text and not text.startswith("~"):
                raise InputError(f"verl override '{text}': write key=value")
            if key in _OURS:
                raise InputError(f"verl override '{key}': nextrl sets this key; use its own setting instead")
            inside = next((ours for ours in _OURS if ours.startswith(f"{key}.")), None)
            if inside is not None:
                raise InputError(
                    f"verl override '{key}': nextrl sets {inside} in it; name the keys that you mean"
                )
        return value


class VerlSettings(VerlSection):
    """One verl run.

    Attributes:
        model: folder of the base model (Hugging Face layout); every node must see it under this path.
        task: a `nextrl.tasks` name; its training prompts become verl's data file, its reward verl's reward function.
        algorithm: a name in `ALGORITHMS`.
        train: steps, rate, batch and seed.
        lora: the adapter.
        dials: of `auto`, by their names in `ControllerConfig`; None for a plain run.
        loggers: of verl's, beside the console and the file.
    """

    model: str
    task: str
    algorithm: str = "grpo"
    train: TrainSettings = TrainSettings()
    lora: LoraSettings = LoraSettings()
    dials: dict[str, int | float] | None = None
    loggers: tuple[str, ...] = ()


def compose(settings: VerlSettings, out: Path, chat_template: str) -> dict[str, Any]:
    """verl's overrides, in the order they are passed: key -> value.

    A leading "+" adds a key that verl's yaml does not list (but its code, or nextrl's plugin, reads).

    Args:
        out: the run's folder. verl's checkpoints lie in it, `data/` and `metrics.jsonl` beside them.
        chat_template: as verl is to use it.

    Raises:
        InputError: the task or the algorithm is unknown, or a step wants more prompts than the task has.
    """
    if settings.algorithm not in ALGORITHMS:
        raise InputError(f"algorithm '{settings.algorithm}': engine verl has {', '.join(ALGORITHMS)}")
    task, train = base.get(settings.task), settings.train
    completion = train.max_completion_length or task.max_completion_length
    rows = len(task.examples("train"))
    if rows < train.prompts_per_step:
        raise InputError(
            f"train.prompts_per_step: verl takes the prompts of a step from one pass over the task, and '{task.name}' "
            f"has {rows} training examples: give at most that many"
        )
    # One more than it takes: verl may leave out prompts that are too long.
    passes = 1 + math.ceil(train.steps / steps_per_pass(rows, train.prompts_per_step))
    table = {**ALGORITHMS[settings.algorithm], **_data(settings, out, completion)}
    table |= {**_model(settings, out, chat_template), **_optimisation(settings, completion)}
    return {**table, **_trainer(settings, out, passes), **_leaps(settings)}


def steps_per_pass(rows: int, batch: int) -> int:
    """Steps in one pass over the data: the rest of it that fills no batch is dropped (trainer_base.py)."""
    return rows // batch


def _leaps(settings: VerlSettings) -> dict[str, Any]:
    """What nextrl's plugin adds (`engines.verl.options`)."""
    if settings.dials is None:
        return {}
    dials = {f"+trainer.v1.nextrl.{name}": value for name, value in settings.dials.items()}
    return {"trainer.v1.trainer_mode": "nextrl", **dials}


def _data(settings: VerlSettings, out: Path, completion: int) -> dict[str, Any]:
    """trainer/config/data/legacy_data.yaml and reward/reward.yaml."""
    return {
        "data.train_files": str(out / "data" / "train.jsonl"),
        "data.val_files": str(out / "data" / "validation.jsonl"),
        "data.train_batch_size": settings.train.prompts_per_step,
        "data.max_prompt_length": settings.max_prompt_length,
        "data.max_response_length": completion,
        "data.seed": settings.train.seed,
        "reward.custom_reward_function.path": str(out / "data" / "reward.py"),
        "reward.custom_reward_function.name": "compute_score",
    }


def _model(settings: VerlSettings, out: Path, chat_template: str) -> dict[str, Any]:
    """trainer/config/model/hf_model.yaml; workers/engine/fsdp/transformer_impl.py:_build_lora_module."""
    lora = settings.lora
    return {
        f"{_MODEL}.path": settings.model,
        f"{_MODEL}.custom_chat_template": chat_template,
        # With an adapter path rank and alpha come from its own config; verl still asks lora_rank whether to use LoRA.
        f"{_MODEL}.lora_rank": lora.r,
        f"{_MODEL}.lora_alpha": lora.alpha,
        f"{_MODEL}.target_modules": lora.target_modules,
        f"{_MODEL}.lora_adapter_path": str(out / START),
    }


def _optimisation(settings: VerlSettings, completion: int) -> dict[str, Any]:
    """trainer/config/actor/actor.yaml, dp_actor.yaml, optim/fsdp.yaml and rollout/rollout.yaml."""
    train = settings.train
    tokens = settings.max_prompt_length + completion
    table: dict[str, Any] = {
        f"{_ACTOR}.strategy": settings.strategy,
        f"{_ACTOR}.optim.lr": train.learning_rate,
        f"{_ACTOR}.optim.lr_scheduler_type": "constant",
        f"{_ACTOR}.optim.betas": [0.9, 0.999],
        f"{_ACTOR}.optim.weight_decay": 0.0,
        # One optimizer step an iteration, so that verl's global_step counts optimizer steps.
        f"{_ACTOR}.ppo_mini_batch_size": train.prompts_per_step,
        f"{_ACTOR}.ppo_epochs": 1,
        f"{_ACTOR}.use_dynamic_bsz": True,
        f"{_ACTOR}.ppo_max_token_len_per_gpu": max(16384, tokens),
        f"{_ACTOR}.use_kl_loss": False,
        f"{_ACTOR}.data_loader_seed": settings.train.seed,
        f"{_ROLLOUT}.name": "vllm",
        f"{_ROLLOUT}.n": train.completions_per_prompt,
        f"{_ROLLOUT}.temperature": train.temperature,
        f"{_ROLLOUT}.seed": settings.train.seed,
        f"{_ROLLOUT}.tensor_model_parallel_size": settings.tensor_parallel,
        f"{_ROLLOUT}.gpu_memory_utilization": settings.gpu_memory,
        # vLLM reads the base itself; only the adapter is sent at each step (engine_workers.py:base_sync_done).
        f"{_ROLLOUT}.load_format": "safetensors",
        "algorithm.use_kl_in_reward": False,
    }
    # trainer/config/config.py:CheckpointConfig has it, the yaml does not.
    table[f"+{_ACTOR}.checkpoint.save_lora_only"] = True
    return table


def _trainer(settings: VerlSettings, out: Path, passes: int) -> dict[str, Any]:
    """trainer/config/ppo_trainer.yaml; the file logger is utils/tracking.py:FileLogger."""
    return {
        "hydra.run.dir": str(out / "hydra"),  # not `outputs/` where the command was typed
        "trainer.n_gpus_per_node": settings.gpus_per_node,
        "trainer.nnodes": settings.nodes,
        "trainer.default_local_dir": str(out),
        "trainer.resume_mode": "auto",
        "trainer.total_training_steps": settings.train.steps,
        "trainer.total_epochs": passes,
        "trainer.save_freq": settings.train.save_every,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.logger": ["console", "file", *settings.loggers],
        "trainer.project_name": "nextrl",
        "trainer.experiment_name": out.name,
        # The logger runs in a Ray worker, which may have been started long before us: its environment is set by Ray.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": str(out / METRICS),
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


def installed() -> str:
    """verl's version.

    Raises:
        InputError: it is not installed.
    """
    try:
        return metadata.version("verl")
    except metadata.PackageNotFoundError:
        raise _missing() from None


def config_tree() -> Path:
    """Folder of verl's yaml files; verl itself is not imported.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec("verl")
    for folder in (found and found.submodule_search_locations) or ():
        return Path(folder) / "trainer" / "config"
    raise _missing()


def _missing() -> InputError:
    return InputError(f"engine verl: verl is not installed here; pip install 'verl[vllm]=={VERSION}'")


def check(overrides: Sequence[str]) -> Any:
    """Compose verl's real config with these overrides, in struct mode, as `main_ppo` will: an omegaconf DictConfig.

    Raises:
        InputError: verl is not installed, or its config tree does not have a key or take a value.
    """
    tree = config_tree()
    with needs("verl", "engine verl"):
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.errors import HydraException

    try:
        with initialize_config_dir(version_base=None, config_dir=str(tree)):
            return hydra_compose("ppo_trainer", overrides=list(overrides))
    except HydraException as error:
        raise InputError(
            f"engine verl: {first_line(error)} (nextrl composes for verl {VERSION}; {tree} says otherwise)"
        ) from None
