"""What a base model's layers are, where its tensors alone do not tell: which are linear, tied, or stored turned.

A merge moves stored tensors. One that is the weight of two layers moves both, and that of a Conv1D (GPT-2) lies
(in, out). Headers decide where they can; only where they cannot is transformers asked what the config describes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from nextrl.checkpoints.dense import FullModel
from nextrl.errors import InputError
from nextrl.tasks.bases.folder import bare_model


@dataclass(frozen=True)
class BaseLayers:
    """Questions to one base model; it is built, without weights, when the first of them needs it.

    Attributes:
        model: its files.
        otherwise: what else a user can do where it cannot be built, as the end of a sentence.
    """

    model: FullModel
    otherwise: str = "use --as adapter"

    def linear(self, module: str) -> bool:
        """Whether a module is a linear layer, as transformers builds the model, and under the name it has there."""
        return module in self._linear

    def stored(self, key: str) -> str:
        """The name under which the base's files have the weight that the model has as `key`.

        Files of a model without its head ("h.0.attn" for "transformer.h.0.attn", as those of gpt2 on the Hub) lack what
        transformers calls the prefix of the model, and it puts that before their names when it loads them.
        """
        above, _, short = key.partition(".")
        if key in self.model.places or short not in self.model.places:
            return key
        return short if self._bare.base_model_prefix == above else key

    def tied(self, key: str) -> str | None:
        """Another name of the tensor that is stored as `key`, where it is the weight of two layers; else None."""
        if any(part.isdecimal() for part in key.split(".")):
            return None  # within the numbered layers; only embeddings and what is around these are ever tied
        for names in self._tied:
            for name in names:
                # By the layer's own name too: files of earlier versions have other names above it.
                if name == key or _layer(name) == _layer(key):
                    return next(other for other in names if other != name)
        return None

    def turned(self, key: str, shape: tuple[int, ...], flag: bool) -> bool:
        """Whether a weight W, (m, n) as in s B A, is stored as (n, m); not asked of embeddings.

        PEFT takes this from the layer's class, whatever `fan_in_fan_out` says in the file: one flag for the whole
        adapter, and it is that of the layer which came last.

        Args:
            shape: (m, n).
            flag: `fan_in_fan_out` of the adapter.
        """
        if shape[0] != shape[1]:
            # Without the flag a file of another shape than the layer's is as likely damaged: the class decides.
            return self._shape(key) == shape[::-1] and (flag or key in self._conv1d)
        if not flag and not self._has_turned:
            return False
        if key not in self._conv1d and key not in self._parameters:
            raise InputError(
                f"{self.model.folder}: {key} is square, and its config.json describes no weight of this name, so "
                "whether it is stored turned is unknown: use --as adapter"
            )
        return key in self._conv1d

    def _shape(self, key: str) -> tuple[int, ...]:
        name = self.stored(key)
        file = self.model.places.get(name)
        return () if file is None else file.entries[name][0]

    @cached_property
    def _has_turned(self) -> bool:
        """Whether a bias has the second extent of its weight, and not the first, as in a Conv1D."""
        weights = [key for key in self.model.places if key.endswith(".weight") and len(self._shape(key)) == 2]
        for key in weights:
            rows, columns = self._shape(key)
            if rows != columns and self._shape(f"{key.removesuffix('weight')}bias") == (columns,):
                return True
        return False

    @cached_property
    def _bare(self) -> Any:
        if not (self.model.folder / "config.json").is_file():
            raise InputError(
                f"{self.model.folder}: has no config.json, so what its layers are is unknown; restore it, or "
                f"{self.otherwise}"
            )
        return bare_model(self.model.folder, self.otherwise)

    @cached_property
    def _parameters(self) -> dict[str, list[str]]:
        """Name of each weight -> all names of the same one."""
        by_weight: dict[int, list[str]] = {}
        for name, weight in self._bare.named_parameters(remove_duplicate=False):
            by_weight.setdefault(id(weight), []).append(name)
        return {name: names for names in by_weight.values() for name in names}

    @cached_property
    def _tied(self) -> list[list[str]]:
        return [names for name, names in self._parameters.items() if len(names) > 1 and name == names[0]]

    @cached_property
    def _linear(self) -> set[str]:
        return {name for name, layer in self._bare.named_modules() if isinstance(layer, torch.nn.Linear)}

    @cached_property
    def _conv1d(self) -> set[str]:
        return {
            f"{name}.weight"
            for name, layer in self._bare.named_modules()
            if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")
        }


def _layer(key: str) -> str:
    """The last part of a layer's name: "lm_head" of "model.lm_head.weight"."""
    return key.removesuffix(".weight").rsplit(".", 1)[-1]
