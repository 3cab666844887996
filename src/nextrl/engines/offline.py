"""`--alpha auto` for a run on disk: the rule by which leaps are accepted in a trainer, without a trainer.

A base model gets the adapter of the checkpoint that is leapt from; candidates are written into it one after the other
and answer held-out prompts of a task. `Acceptance` decides, within the bounds of `Guard`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.candidate_scores import CandidateScores, Row, divergence_sums, mean_divergence
from nextrl.engines.live_adapter import LiveAdapter, leap_into
from nextrl.errors import InputError, first_line, needs
from nextrl.judge.acceptance import Acceptance, stages_up_to
from nextrl.judge.decision import searched
from nextrl.judge.guard import Guard
from nextrl.judge.paired_search import Scores
from nextrl.leaps.leap import Leap
from nextrl.tasks.base import Task
from nextrl.tasks.evaluate import Completions, grade, inference, sample, seeded

CANDIDATES = (-0.5, 0.5, 1.0, 2.0, 4.0)
_BATCH, _LOGITS = 64, 2**28  # sequences, and logits (1 GB), of a forward pass when log-probabilities are read


@dataclass(frozen=True)
class AlphaChoice:
    """What the search found.

    Attributes:
        alpha: 0.0 where no leap is worth it.
        reason: one sentence with the figures.
        means: alpha -> mean reward.
        completions: what it cost.
    """

    alpha: float
    reason: str
    means: dict[float, float]
    completions: int


def choose_alpha(
    leap: Leap,
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    prompts: int = 64,
    level: float | None = None,
    guard: Guard | None = None,
    seed: int = 0,
) -> AlphaChoice:
    """The alpha at which the leap beats its own starting point on the task, or 0.

    Candidates are scored as the run's adapter can hold them, at its own rank.

    Args:
        leap: the method's leap, at any alpha; its fit serves all candidates.
        model: the base model in memory, without an adapter; it is given one.
        tokenizer: its tokenizer.
        prompts: held-out prompts that a candidate is scored on at most; a quarter of them at first.
        level: standard errors of the paired difference that a gain must exceed; None for as many as keep chance at a
            tenth of searches (`Acceptance.bar`).
        guard: what a leap forward must not do; the bounds of `LeapCallback` by default.

    Raises:
        InputError: fewer than 2 prompts, a negative level, too few examples, an adapter of another model.
    """
    examples = task.examples("validation")
    if prompts < 2:
        raise InputError(f"--prompts must be at least 2, not {prompts}")
    accepting = Acceptance(stages_up_to(prompts), level)
    if prompts < (fewest := accepting.fewest(len(CANDIDATES))):
        raise InputError(
            f"--prompts {prompts}: on so few no gain can be told from chance: give {fewest} or more"
        )
    if len(examples) < prompts:
        raise InputError(
            f"task '{task.name}' has {len(examples)} validation prompts, fewer than {prompts}: use --prompts "
            f"{len(examples)}"
        )
    adapter = LiveAdapter(_with_adapter(leap, model))
    _refuse_other_names(leap, adapter)
    rows: list[Row] = [{"prompt": e.prompt, "example": e} for e in examples[:prompts]]
    rollouts = ModelRollouts(adapter.model, tokenizer, task)
    scorer = CandidateScores(adapter, rollouts, guard or Guard()).scorer(
        partial(leap_into, adapter, leap), adapter.read(), lambda start, stop: rows[start:stop], seed
    )
    alpha, scores = accepting.choose(scorer, CANDIDATES)
    decision = searched(leap.method, alpha, scores)
    figures = _figures(scores, alpha or max((a for a in scores.rewards if a), key=scores.gain, default=0.0))
    return AlphaChoice(alpha, f"{decision.reason}{figures}", scores.means(), scores.completions())


class ModelRollouts:
    """Scores a task's examples with the weights that a model now has (`candidate_scores.Rollouts`).

    Args:
        model: a PEFT model.
        tokenizer: pads on the left.
        task: grades; its `max_completion_length` bounds completions.
    """

    group = 1

    def __init__(self, model: Any, tokenizer: Any, task: Task) -> None:
        self._model, self._tokenizer, self._task = model, tokenizer, task
        self.completions = 0
        self.mean_length = self.truncated = math.nan
        self._latest: Completions | None = None

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Rewards (n,) float64; `example` of a row is the task's example."""
        with seeded(seed):
            found = sample(
                self._model,
                self._tokenizer,
                [row["prompt"] for row in rows],
                max_new_tokens=self._task.max_completion_length,
            )
        self._latest, self.completions = found, self.completions + len(rows)
        self.mean_length = float(found.mask.sum(1).double().mean())
        self.truncated = 1.0 - float(found.ended.double().mean())
        return grade(self._task, [row["example"] for row in rows], found.texts)

    def log_probabilities(self) -> Tensor | None:
        """Log-probability of each token of the latest completions, (n, length) float32, 0 where there is none."""
        if self._latest is None:
            return None
        found, length = self._latest, self._latest.mask.shape[1]
        parts = []
        vocabulary = self._model.config.get_text_config().vocab_size
        rows = max(1, min(_BATCH, _LOGITS // (found.ids.shape[1] * vocabulary)))
        with inference(self._model):
            for start in range(0, len(found.ids), rows):
                ids, attention = (part[start : start + rows] for part in (found.ids, found.attention))
                places = (attention.cumsum(1) - 1).clamp_min(0)
                logits = self._model(input_ids=ids, attention_mask=attention, position_ids=places).logits
                logits = logits[:, -length - 1 : -1].float()
                parts.append(logits.log_softmax(-1).gather(-1, ids[:, -length:, None])[..., 0])
        return torch.cat(parts) * found.mask

    def divergence(self, candidate: Tensor | None, current: Tensor | None) -> float:
        """KL(candidate || current), nats per token (`divergence_sums`); NaN where either is None."""
        if candidate is None or current is None or self._latest is None:
            return math.nan
        return mean_divergence(divergence_sums(candidate, current, self._latest.mask))


def _with_adapter(leap: Leap, model: Any) -> Any:
    """The model with the adapter of the checkpoint that is leapt from, whatever layout it lies in."""
    with needs("trl", "searching alpha"):
        from peft import PeftModel
    with tempfile.TemporaryDirectory() as folder:
        dataclasses.replace(leap, alpha=0.0).save_adapter(folder)
        try:
            # Trainable, because that is how a live adapter is found; nothing is trained here.
            return PeftModel.from_pretrained(model, folder, is_trainable=True, torch_device="cpu")
        except (ValueError, RuntimeError) as error:
            raise _unfitting(first_line(error)) from error


def _refuse_other_names(leap: Leap, adapter: LiveAdapter) -> None:
    """PEFT leaves out what a model has no place for, and begins anew what a file lacks, with a warning at most."""
    own = {name for name in leap.leap_state() if not name.endswith(".bias")}
    if other := sorted(own ^ set(adapter.parameters)):
        raise _unfitting(f"{other[0]} is not in both")


def _unfitting(why: str) -> InputError:
    return InputError(
        f"the run's adapter does not fit the base model ({why}); name the model it was trained on with --base"
    )


def _figures(scores: Scores, alpha: float) -> str:
    if not alpha:
        return ""
    return (
        f"; {alpha:g} gains {scores.gain(alpha):+.3f} ± {scores.error(alpha):.3f} over staying put "
        f"({scores.prompts(alpha)} prompts; the best of {len(scores) - 1}, chosen on them, so the gain is too high)"
    )
