"""What `adapter_config.json` says about `W = W_base + s B A`: the scaling of each module, and where it starts.

Read from peft 0.21.2 (`tuners/lora/config.py`, `layer.py`, `utils/other.py:get_pattern_key`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextrl.errors import InputError

# Initialisations whose product B A is zero at the start, so that W_0 is the base model. The others ("pissa",
# "olora", "corda", "loftq", "lora_ga", False) start from B_0 A_0 != 0, most of them with a changed base.
_ZERO_START = {"gaussian", "eva", "orthogonal", "mica"}


def starts_at_zero(init: object) -> bool:
    """Whether B A is zero at the start under this value of `init_lora_weights`, in any spelling that PEFT takes."""
    return init is True or (isinstance(init, str) and init.lower() in _ZERO_START | {"true"})


# Options under which the weight is no longer W_base + s B A with the stored B and A.
NONLINEAR = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}


@dataclass(frozen=True)
class AdapterConfig:
    """The parsed `adapter_config.json` of one adapter folder.

    Attributes:
        raw: the JSON as it is.
        path: the file, for messages.
        alpha_pattern: pattern of module names -> their `lora_alpha`, where it differs from the adapter's.
        rank_pattern: the same for the rank.
    """

    raw: dict[str, Any]
    path: Path
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> AdapterConfig:
        """Parse and check the file, `overrides` taking the place of its fields.

        Raises:
            InputError: it is missing, not JSON, not a LoRA adapter's, nonlinear, or says lora_alpha 0.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing; the scaling of the adapter is unknown without it") from error
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{path}: not readable as JSON ({error}); restore it") from error
        if not isinstance(raw, dict):
            raise InputError(f"{path}: holds no JSON object; restore it")
        return cls.of({**raw, **(overrides or {})}, path)

    @classmethod
    def of(cls, raw: dict[str, Any], path: Path) -> AdapterConfig:
        """Check a parsed configuration (`path` is for messages only). Raises as `read`."""
        kind = str(raw.get("peft_type", "LORA")).rsplit(".", 1)[-1].upper()
        if kind != "LORA":
            raise InputError(f"{path}: peft_type {kind}; only LoRA adapters (W = W_base + s B A) can be read")
        for option, name in NONLINEAR.items():
            if raw.get(option):
                raise InputError(
                    f"{path}: {option} is set ({name}); its weights are not W_base + s B A: not supported"
                )
        rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
        if not _positive(rank) or not isinstance(rank, int):
            raise InputError(f"{path}: r is {rank!r}; set it to the adapter's rank, a whole number >= 1")
        if not _positive(alpha):
            raise InputError(
                f"{path}: lora_alpha is {alpha!r} (verl's model merger wrote 0 in some versions); "
                "set it to the lora_alpha of the training configuration"
            )
        patterns = {key: _pattern(raw.get(key) or {}, key, path) for key in ("alpha_pattern", "rank_pattern")}
        if any(not isinstance(rank, int) for rank in patterns["rank_pattern"].values()):
            raise InputError(f"{path}: rank_pattern must map module names to whole numbers >= 1")
        return cls(raw, path, patterns["alpha_pattern"], patterns["rank_pattern"])

    def scaling(self, module: str) -> float:
        """s of one module (PEFT prefix stripped): alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha = float(_matched(self.alpha_pattern, module, self.raw.get("lora_alpha", 8)))
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.raw.get("use_rslora") else rank)

    def rank(self, module: str) -> int:
        """The rank that the configuration gives the module."""
        return int(_matched(self.rank_pattern, module, self.raw.get("r", 8)))

    @property
    def starts_at_zero(self) -> bool:
        """True where B_0 A_0 = 0 by construction, so that W_0 is known without a checkpoint of it."""
        return starts_at_zero(self.raw.get("init_lora_weights", True))

    @property
    def transposed(self) -> bool:
        """True for GPT-2's Conv1D, whose weight is stored (in, out): the stored weight moves by s (B A)^T."""
        return bool(self.raw.get("fan_in_fan_out"))


def _pattern(value: object, key: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(_positive(number) for number in value.values()):
        raise InputError(f"{path}: {key} must map module names to positive numbers")
    for name in value:
        try:
            re.compile(name)
        except re.error as error:
            raise InputError(
                f"{path}: {key} has the name {name!r}, no regular expression ({error})"
            ) from error
    return value


def _positive(number: object) -> bool:
    return (
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and math.isfinite(number)
        and number > 0
    )


def _matched(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first entry whose key matches the end of the module's name, as PEFT's get_pattern_key does."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
