"""What a training run is told: the adapter, the batch, the rate. Plain data that no trainer is needed to read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nextrl.engines import algorithms, named_optimizers
from nextrl.errors import needs
from nextrl.registry import either

_TAKE_A_RATE = [n for n in named_optimizers.names() if not named_optimizers.get(n).rate_free]

# What no run of this kind comes near. A number beyond them is a slip, and lists and memory are as long as it is.
MAX_STEPS = 10**6
MAX_PROMPTS = 10**7
MIN_TEMPERATURE = 0.01
"""Logits are divided by it; far below it they overflow, and near it sampling is greedy."""


class LoraSettings(BaseModel):
    """The adapter. By default rank 8, alpha 16, on all linear layers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    r: int = Field(8, ge=1, le=2**16, description="rank of the adapter")
    alpha: int = Field(
        16, ge=1, le=10**6, description="scaling numerator: a module's delta is alpha / r times B A"
    )
    target_modules: str | list[str] = Field("all-linear", description="module names as PEFT takes them")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead")

    def for_peft(self) -> Any:
        """PEFT's own configuration of it.

        Raises:
            MissingExtra: PEFT is not installed.
        """
        with needs("trl", "a LoRA adapter"):
            from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            target_modules=self.target_modules,
            use_rslora=self.use_rslora,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )

    @field_validator("target_modules")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not value or (isinstance(value, list) and not all(value)):
            raise ValueError("names no module: give all-linear, or module names as PEFT takes them")
        return value


class TrainSettings(BaseModel):
    """One RLVR run. `learning_rate` is constant; a step is one optimizer step on rollouts that no other step uses.

    Attributes:
        algorithm: a name of `algorithms.names()`.
        optimizer: a name of `named_optimizers.names()`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    algorithm: str = "grpo"
    steps: int = Field(400, ge=1, le=MAX_STEPS, description="optimizer steps in all")
    save_every: int = Field(
        10, ge=1, le=MAX_STEPS, description="steps between two checkpoints of the trajectory"
    )
    learning_rate: float = Field(
        5e-5,
        gt=0,
        le=1e3,
        description=f"of {either(f'`{name}`' for name in _TAKE_A_RATE)}; constant, until `auto` changes it; "
        "`rule`: by the model's width, as below",
    )
    prompts_per_step: int = Field(16, ge=1, le=MAX_PROMPTS, description="prompts per step")
    completions_per_prompt: int = Field(
        8, ge=2, le=10**5, description="completions sampled for each prompt (the group)"
    )
    max_completion_length: int | None = Field(
        None,
        ge=1,
        le=10**7,
        description="most tokens per completion, in training and when accuracy is measured; null: the task's own",
    )
    temperature: float = Field(1.0, ge=MIN_TEMPERATURE, le=1e3, description="of the rollouts")
    share_prefixes: bool = Field(
        False, description="compute prompts that completions share once; for long prompts without vLLM"
    )
    optimizer: str = Field(
        named_optimizers.DEFAULT,
        description=either(f"`{name}`" for name in named_optimizers.names()),
        json_schema_extra={"enum": [*named_optimizers.names()]},
    )
    seed: int = 0

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        return algorithms.get(name).name

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        return named_optimizers.get(name).name

    @property
    def completions_per_step(self) -> int:
        """Completions sampled in one step."""
        return self.prompts_per_step * self.completions_per_prompt
