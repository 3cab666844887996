"""Score candidate adapters between two segments of verl, where verl itself offers no way to.

verl validates the model it trains, not a candidate beside it, so candidates are scored outside: while verl is not
running its GPUs are free. `Scorer` is the whole interface; a vLLM server that takes adapters by request is a scorer of
ten lines (docs/verl.md). The default generates with transformers in this process, on one GPU where there is one:
simple and slow (docs/scale.md says how slow).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nextrl import models
from nextrl.checkpoints.adapter import WEIGHTS
from nextrl.errors import InputError
from nextrl.evaluate import complete, grade
from nextrl.tasks.base import Example, Task


class Scorer(Protocol):
    """Rewards of adapters on held-out prompts."""

    def score(self, model: str, adapter: Path, examples: Sequence[Example], seed: int) -> Tensor:
        """Rewards (n,) float64 of one completion an example.

        Args:
            model: folder of the base model.
            adapter: PEFT adapter on it.
            examples: the prompts; the same ones for each candidate of a search.
            seed: the same for each candidate of a search, so that their random numbers are shared.
        """
        ...

    def close(self) -> None:
        """The search is over: give the memory back, verl is about to start."""
        ...


class TransformersScorer:
    """Hugging Face `generate` with the adapter on the base model.

    Args:
        task: grades the completions.
        max_completion_length: tokens.
        temperature: the training's, so that what is scored is what is trained.
        device: where to generate; by default the first GPU (in bf16), else the CPU (in float32).
    """

    def __init__(
        self, task: Task, max_completion_length: int, temperature: float = 1.0, device: str | None = None
    ) -> None:
        self._task, self._length, self._temperature = task, max_completion_length, temperature
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: tuple[str, Any, Any] | None = None

    def score(self, model: str, adapter: Path, examples: Sequence[Example], seed: int) -> Tensor:
        """As in `Scorer`; the base model is loaded once a search."""
        from peft import load_peft_weights, set_peft_model_state_dict

        policy, tokenizer = self._policy(model, adapter)
        outcome = set_peft_model_state_dict(policy, load_peft_weights(str(adapter), device="cpu"))
        if outcome.unexpected_keys:
            raise InputError(
                f"{adapter / WEIGHTS}: {outcome.unexpected_keys[0]} does not belong to model {model}"
            )
        texts = complete(
            policy,
            tokenizer,
            [example.prompt for example in examples],
            max_new_tokens=self._length,
            temperature=self._temperature,
            seed=seed,
        )
        return grade(self._task, examples, texts)

    def close(self) -> None:
        """Drop the model."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _policy(self, model: str, adapter: Path) -> tuple[Any, Any]:
        from peft import PeftModel

        if self._loaded is None or self._loaded[0] != model:
            base, tokenizer = models.load(model, self._task.name)
            base = base.to(self._device, torch.bfloat16 if self._device.startswith("cuda") else torch.float32)
            self._loaded = (model, PeftModel.from_pretrained(base, str(adapter)), tokenizer)
        return self._loaded[1], self._loaded[2]
