"""The sections `leap` and `eval` of a run's config."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from nextrl.engines.settings import MAX_PROMPTS, MAX_STEPS
from nextrl.extrapolators.alphas import PAPER_ALPHA, PAPER_AT
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.regime import DEFAULT_WINDOW
from nextrl.leaps.leap import DEFAULT_HORIZON


def _controller_section() -> type[BaseModel]:
    """A section with a key for each dial of the controller but the one that `leap.every` sets."""
    types = get_type_hints(ControllerConfig)
    dials: dict[str, Any] = {
        dial.name: (
            types[dial.name] | None,
            Field(None, description=f"dial of `auto` (docs/auto.md); null: {dial.default}"),
        )
        for dial in fields(ControllerConfig)
        if dial.name != "every"
    }
    return create_model(
        "ControllerSection", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **dials
    )


ControllerSection = _controller_section()


class LeapSection(BaseModel):
    """When and how to leap."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str = Field("auto", description="`auto`, `none`, or a method of docs/extrapolators.md")
    at: tuple[int, ...] | None = Field(
        None,
        description="a named method's steps, multiples of train.save_every; null: those of `leap.every`, else what the "
        f"method is made for, `next-paper` {PAPER_AT}, others are refused",
    )
    every: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description=f"the same as a period; for `auto` the length of its windows ({DEFAULT_WINDOW})",
    )
    horizon: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        description=f"steps ahead; null: half the way between two leaps, {DEFAULT_HORIZON} at most",
    )
    params: dict[str, bool | int | float | str | None] | None = Field(
        None, description="a named method's own parameters, `{rank: 2}`; null: its defaults"
    )
    alpha: float | Literal["auto"] | None = Field(
        None,
        description="`auto`: searched on validation prompts; a number: taken without asking; null: what the method "
        f"is made for, `next-paper` {PAPER_ALPHA}, others `auto`",
    )
    prompts: int | None = Field(
        None,
        ge=2,
        le=MAX_PROMPTS,
        description="most validation prompts per candidate of a named method; null: 128",
    )

    controller: ControllerSection = ControllerSection()  # type: ignore[valid-type]  # made from the dataclass

    def dials(self) -> dict[str, Any]:
        """What `ControllerConfig` is built with, beside its defaults."""
        named: dict[str, Any] = {} if self.every is None else {"every": self.every}
        given: dict[str, Any] = self.controller.model_dump()  # type: ignore[attr-defined]
        return {**named, **{name: value for name, value in given.items() if value is not None}}

    @field_validator("controller", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("at", mode="before")
    @classmethod
    def _one_step(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class EvalSection(BaseModel):
    """When to measure, on held-out prompts that are used for nothing else."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    every: int = Field(
        10, ge=1, le=MAX_STEPS, description="steps between two evaluations; the start and the end always are"
    )
    prompts: int = Field(
        1000,
        ge=2,
        le=MAX_PROMPTS,
        description="held-out test prompts, one sampled and one greedy answer each",
    )
