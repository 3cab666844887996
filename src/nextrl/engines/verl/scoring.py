"""Score candidate adapters between two segments of verl, where verl itself offers no way to.

verl validates the model it trains, not a candidate beside it, so candidates are scored outside: while verl is not
running its GPUs are free. `Scorer` is the whole interface; a vLLM server that takes adapters by request is a scorer of
ten lines (docs/verl.md). The default generates with transformers in this process, on one GPU where there is one:
simple and slow (docs/scale.md says how slow).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import WEIGHTS
from nextrl.errors import InputError, needs
from nextrl.tasks import bases
from nextrl.tasks.base import Example, Task
from nextrl.tasks.evaluate import complete, grade, inference


class Scorer(Protocol):
    """Rewards of adapters on held-out prompts."""

    def score(self, model: str, adapter: Path, examples: Sequence[Example], seed: int) -> Tensor:
        """Rewards (n,) float64 of one completion per example.

        Args:
            model: folder of the base model.
            adapter: PEFT adapter on it.
            examples: the prompts; the same ones for each candidate of a search.
            seed: the same for each candidate of a search, so that their random numbers are shared.
        """
        ...

    def divergence(
        self, model: str, adapter: Path, candidate: Path, rollouts: Sequence[tuple[str, str]]
    ) -> float:
        """Kullback-Leibler divergence of `candidate` from `adapter`, nats per token, on (prompt, completion) pairs.

        The completions were sampled by (nearly) the policy of `adapter`.
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
        self._worn: Path | None = None
        self._current: tuple[tuple[Path, tuple[tuple[str, str], ...]], Tensor] | None = None

    def score(self, model: str, adapter: Path, examples: Sequence[Example], seed: int) -> Tensor:
        """As in `Scorer`; the base model is loaded once per search."""
        policy, tokenizer = self._policy(model, adapter)
        texts = complete(
            policy,
            tokenizer,
            [example.prompt for example in examples],
            max_new_tokens=self._length,
            temperature=self._temperature,
            seed=seed,
        )
        return grade(self._task, examples, texts)

    def divergence(
        self, model: str, adapter: Path, candidate: Path, rollouts: Sequence[tuple[str, str]]
    ) -> float:
        """As in `Scorer`: mean over completion tokens of `log(p_candidate / p_current)^2 / 2`.

        Schulman, "Approximating KL Divergence" (2020), estimator k2: exact to second order, no heavy tails.
        """
        anchor = (adapter, tuple(rollouts))
        if self._current is None or self._current[0] != anchor:
            self._current = (anchor, self._log_probabilities(model, adapter, rollouts))
        moved = self._log_probabilities(model, candidate, rollouts) - self._current[1]
        return float(moved.square().mean()) / 2.0 if len(moved) else math.nan

    def close(self) -> None:
        """Drop the model."""
        self._loaded = self._worn = self._current = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _log_probabilities(self, model: str, adapter: Path, rollouts: Sequence[tuple[str, str]]) -> Tensor:
        """(tokens of all completions,) float32: log-probability of each."""
        policy, tokenizer = self._policy(model, adapter)
        found = [torch.zeros(0)]
        for prompt, completion in rollouts:
            start = tokenizer(prompt, return_tensors="pt").input_ids
            ids = tokenizer(completion, return_tensors="pt", add_special_tokens=False).input_ids
            if not ids.numel():
                continue
            tokens = torch.cat([start, ids.to(start.dtype)], 1).to(self._device)
            with inference(policy):
                logits = policy(input_ids=tokens).logits[:, start.shape[1] - 1 : -1].float()
            chosen = logits.log_softmax(-1).gather(-1, ids.to(self._device).unsqueeze(-1))
            found.append(chosen[0, :, 0].cpu())
        return torch.cat(found)

    def _policy(self, model: str, adapter: Path) -> tuple[Any, Any]:
        """The base with this adapter's weights, and its tokenizer; the base is loaded once per search."""
        with needs("verl", "engine verl"):
            from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

        if self._loaded is None or self._loaded[0] != model:
            base, tokenizer = bases.load(model, self._task.name)
            base = base.to(self._device, torch.bfloat16 if self._device.startswith("cuda") else torch.float32)
            self._loaded = (model, PeftModel.from_pretrained(base, str(adapter)), tokenizer)
            self._worn = adapter
        _, policy, tokenizer = self._loaded
        if adapter != self._worn:
            outcome = set_peft_model_state_dict(policy, load_peft_weights(str(adapter), device="cpu"))
            if outcome.unexpected_keys:
                raise InputError(
                    f"{adapter / WEIGHTS}: {outcome.unexpected_keys[0]} does not belong to model {model}"
                )
            self._worn = adapter
        return policy, tokenizer
