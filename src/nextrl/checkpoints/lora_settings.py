"""What `adapter_config.json` says about `W = W_base + s B A`: the scaling of each module, and where it starts.

Read from peft 0.21.2 (`tuners/lora/config.py`, `layer.py`, `utils/other.py:get_pattern_key`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextrl.checkpoints import patterns
from nextrl.errors import InputError, shown
from nextrl.files import MAX_CONFIG, NoSuchFile, is_number, read_object

MIN_ALPHA, MAX_ALPHA = 1e-12, 1e12
"""Of lora_alpha and of ranks: outside of it scalings and their squares leave the range of float32."""

MAX_PATTERNS = 10_000
"""Names in `alpha_pattern`, `rank_pattern` (each is compiled) or `target_parameters`; the largest models have some
thousand modules."""

# Initialisations whose product B A is zero at the start, so that W_0 is the base model. The others ("pissa",
# "olora", "corda", "loftq", "lora_ga", False) start from B_0 A_0 != 0, most of them with a changed base.
_ZERO_START = {"gaussian", "eva", "orthogonal", "mica"}


def starts_at_zero(init: object) -> bool:
    """Whether B A is zero at the start under this value of `init_lora_weights`, in any spelling that PEFT takes."""
    return init is True or (isinstance(init, str) and init.lower() in _ZERO_START | {"true"})


# Every option of PEFT's LoraConfig (read from peft 0.21.2) is in one of the three tables below; a test compares them
# with the installed PEFT. Configurations of another `peft_type` are refused as a whole.

# Options under which the weight is no longer W_base + s B A with the stored B and A.
NONLINEAR = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Options that change what the adapter adds and that are followed exactly: the scaling, the shapes, what is carried
# along or merged, and where the adapter starts.
FOLLOWED = {
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "init_lora_weights",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
}
# Options that do not: who is adapted (the file's tensors say so), how training initialised or sped it up, notes.
INERT = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
}
# Options under which the base model that the adapter belongs to is not the one that `base_model_name_or_path` names, or
# has tensors of its own: what a merge cannot add to.
UNMERGEABLE = {
    "layer_replication": "the model has copies of the base's layers",
    "trainable_token_indices": "single rows of the embeddings were trained beside the adapter",
    "alora_invocation_tokens": "activated LoRA acts on the tokens after its invocation only",
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
            raw = read_object(path, MAX_CONFIG)
        except NoSuchFile as error:
            raise InputError(f"{path}: missing; the scaling of the adapter is unknown without it") from error
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
        for option in sorted(set(raw) - FOLLOWED - INERT - set(NONLINEAR)):
            # PEFT turns a method on by True or by an object of its options; numbers and names come with one.
            if raw[option] is True or (isinstance(raw[option], dict) and raw[option]):
                raise InputError(
                    f"{path}: {shown(option)} is set, which PEFT's LoRA did not have when this version of nextrl was "
                    "written, so its weights may not be W_base + s B A; if they are, remove it from the file"
                )
        for option in ("use_rslora", "fan_in_fan_out"):
            if not isinstance(raw.get(option), bool | None):
                raise InputError(f"{path}: {option} is {shown(raw[option])}; set it to true or false")
        rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
        if not _positive(rank) or not isinstance(rank, int):
            raise InputError(f"{path}: r is {shown(rank)}; set it to the adapter's rank, a whole number >= 1")
        if not _positive(alpha):
            raise InputError(
                f"{path}: lora_alpha is {shown(alpha)} (verl's model merger wrote 0 in some versions); "
                "set it to the lora_alpha of the training configuration"
            )
        parameters = raw.get("target_parameters")
        if isinstance(parameters, list | set):
            _refuse_many(parameters, "target_parameters", path)
        alphas, ranks = (_pattern(raw.get(key) or {}, key, path) for key in ("alpha_pattern", "rank_pattern"))
        if any(not isinstance(rank, int) for rank in ranks.values()):
            raise InputError(f"{path}: rank_pattern must map module names to whole numbers >= 1")
        return cls(raw, path, alphas, ranks)

    def check_patterns(self, modules: Iterable[str]) -> None:
        """Whether the patterns can be matched against these modules; `scaling` and `rank` do so.

        Raises:
            InputError: that would take too long, or what they give a stack of experts cannot be told.
        """
        names = [self._names(module) for module in modules]
        every = tuple(name for several in names for name in several)
        for key in ("alpha_pattern", "rank_pattern"):
            patterns.refuse_slow(getattr(self, key), every, f"{self.path}: {key}")
        for several in names:
            if len(several) > 1:
                self._refuse_unequal(several, "alpha_pattern", self._alphas, self.raw.get("lora_alpha", 8))
                self._refuse_unequal(several, "rank_pattern", self._ranks, self.raw.get("r", 8))

    def _refuse_unequal(
        self, names: Sequence[str], key: str, table: Sequence[tuple[re.Pattern[str], Any]], usual: float
    ) -> None:
        """Refuse a pattern by which the value of a tensor depends on which of these parameters it belongs to."""
        found = {name: matched(table, name, usual) for name in names}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{value:g} for {shown(name)}" for name, value in found.items())
            raise InputError(
                f"{self.path}: {key} gives parameters of one module different values ({told}), and the adapter's file "
                "does not say which of them a tensor belongs to, so that it cannot be read; train it with one value "
                "for all target_parameters of a module"
            )

    @functools.cached_property
    def _names(self) -> PatternNames:
        return PatternNames(self.raw)

    @functools.cached_property
    def _alphas(self) -> list[tuple[re.Pattern[str], float]]:
        return [(patterns.suffix(key), value) for key, value in self.alpha_pattern.items()]

    @functools.cached_property
    def _ranks(self) -> list[tuple[re.Pattern[str], int]]:
        return [(patterns.suffix(key), value) for key, value in self.rank_pattern.items()]

    def scaling(self, module: str) -> float:
        """s of one module (PEFT prefix stripped): alpha / r, or alpha / sqrt(r) with rsLoRA."""
        name = self._names(module)[0]  # `check_patterns` has seen that all are given the same
        alpha = float(matched(self._alphas, name, self.raw.get("lora_alpha", 8)))
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.raw.get("use_rslora") else rank)

    def rank(self, module: str) -> int:
        """The rank that the configuration gives the module."""
        return int(matched(self._ranks, self._names(module)[0], self.raw.get("r", 8)))

    @property
    def starts_at_zero(self) -> bool:
        """True where B_0 A_0 = 0 by construction, so that W_0 is known without a checkpoint of it."""
        return starts_at_zero(self.raw.get("init_lora_weights", True))

    @property
    def transposed(self) -> bool:
        """True for GPT-2's Conv1D, whose weight is stored (in, out): the stored weight moves by s (B A)^T."""
        return bool(self.raw.get("fan_in_fan_out"))


class PatternNames:
    """A module of the file -> the names, one or more, by which PEFT matches the patterns of a configuration for it.

    The patterns are `alpha_pattern` and `rank_pattern`. A module's own name; but for a parameter that
    `target_parameters` names, the parameter's. The adapters of several parameters of one module are wrapped around each
    other (`experts`, `experts.base_layer`) in the order in which the model declares them, which no file of the adapter
    tells, so that each of them may be any of these parameters.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        targets, modules = raw.get("target_parameters"), raw.get("target_modules")
        self._plain = not isinstance(targets, list | set)
        self._by_expression = isinstance(modules, str)
        self._modules = frozenset(map(str, modules)) if isinstance(modules, list | set) else frozenset()
        self._parameters: dict[str, set[str]] = {}  # the end of a module's name -> what of it is named
        self._known: dict[str, tuple[str, ...]] = {}
        for target in targets if isinstance(targets, list | set) else ():
            if isinstance(target, str):
                end, _, parameter = target.rpartition(".")
                self._parameters.setdefault(end, set()).add(parameter)

    def __call__(self, module: str) -> tuple[str, ...]:
        if module not in self._known:
            self._known[module] = self._of(module)
        return self._known[module]

    def _of(self, module: str) -> tuple[str, ...]:
        bare = ".".join(part for part in module.split(".") if part != "base_layer")
        ends = _ends(bare)
        if self._plain or (bare == module and not self._modules.isdisjoint(ends)):
            return (module,)
        named = {f"{bare}.{name}" for end in ("", *ends) for name in self._parameters.get(end, ())}
        # An expression of target_modules may mean the module itself. It is a stranger's, and not matched to find out.
        unknown = self._by_expression and bare == module
        return (*sorted(named), module) if unknown or not named else tuple(sorted(named))


def _ends(name: str) -> list[str]:
    """A name's ends, part by part, by which PEFT matches target names; the whole name is one."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _pattern(value: object, key: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} must map module names to numbers, not be {shown(value)}; restore it")
    _refuse_many(value, key, path)
    for name, number in value.items():
        if not _positive(number):
            raise InputError(
                f"{path}: {key} gives {shown(name)} {shown(number)}, which must be a positive number (mergekit gives "
                "0 to matrices that did not move: take them out of the adapter, or extract it without --sv-epsilon)"
            )
        patterns.check(name, f"{path}: {key}")
    return value


def _refuse_many(names: Sized, key: str, path: Path) -> None:
    if len(names) > MAX_PATTERNS:
        raise InputError(f"{path}: {key} has {len(names):,} names, {MAX_PATTERNS:,} at most; restore it")


def _positive(number: object) -> bool:
    return is_number(number) and MIN_ALPHA <= number <= MAX_ALPHA


def matched(table: Sequence[tuple[re.Pattern[str], Any]], module: str, default: Any) -> Any:
    """The first entry whose key matches the end of the module's name, as PEFT's get_pattern_key does."""
    return next((value for pattern, value in table if pattern.match(module)), default)
