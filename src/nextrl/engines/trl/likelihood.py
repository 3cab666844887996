"""Supervised fine-tuning under the same callback, as a control: held-out likelihood in the place of held-out rewards.

A candidate's score on a row is the mean log-probability of the row's trained tokens. A window's reward is the mean
token accuracy, which TRL's SFTTrainer measures anyway. Nothing is generated, so there is nothing for a guard to look
at: no lengths, no endings, no samples of the candidate's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.candidate_scores import Row
from nextrl.engines.live_weights import LiveWeights, State
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.seam import Seam
from nextrl.errors import InputError, shown
from nextrl.judge.fresh_batch import BatchGain, likelihood_gain
from nextrl.tasks.evaluate import inference


class HeldOutLikelihood:
    """Scores rows as `TrainerRollouts` does, by their likelihood.

    Attributes:
        completions: rows scored so far, over all processes.
        mean_length, truncated: NaN, for nothing is generated.
        group: 1, for the same reason.
    """

    mean_length = truncated = math.nan
    group = 1

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._ranks = Ranks(trainer.accelerator)
        self.completions = 0

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Mean log-probability of each row's trained tokens, nats: (n,) float64; 0 for a row without any.

        Every process must call this with the same rows, and gets the scores of all of them. `seed` changes nothing.
        """
        scored = log_probabilities(self._trainer, self._ranks.share(rows))
        means = torch.stack([logps.sum() / mask.sum().clamp_min(1) for logps, mask in scored])
        scores: Tensor = self._trainer.accelerator.gather(means).double().cpu()
        self.completions += len(scores)
        return scores[: len(rows)]

    def log_probabilities(self) -> None:
        """None: there are no completions of the candidate's own."""
        return

    def divergence(self, candidate: Tensor | None, current: Tensor | None) -> float:
        """NaN: not measured, so that the guard has nothing to object to."""
        return math.nan

    def mark_weights_changed(self) -> None:
        """Nothing holds a copy of the weights."""

    def drop_buffered(self) -> None:
        """Nothing is sampled before a leap."""


class FreshTexts:
    """Judges other weights on held-out texts, as `FreshRollouts` does on rollouts.

    Args:
        trainer: TRL's SFTTrainer.
        adapter: what candidates are written into; it is left as it was.
        rows: held-out rows. Every process measures all of them.
    """

    repeatable: bool | None = None  # asked of training passes, of which none is used here

    def __init__(self, trainer: Any, adapter: LiveWeights, rows: Sequence[Row]) -> None:
        self._trainer, self._adapter, self._texts = trainer, adapter, rows

    def listen(self, moments: Any = None) -> None:
        """Nothing: texts are the same at every step."""

    def stop(self) -> None:
        """Nothing."""

    def moved(self, anchor: State, most: int = 0) -> float:
        """Divergence between the anchor and the present weights, nats per token (`log(p_now / p_anchor)^2 / 2`)."""
        pairs = list(zip(self._read(None), self._read(anchor), strict=True))
        nats = sum(float((now - before).square().sum()) / 2 for (now, _), (before, _) in pairs)
        return nats / max(1, sum(int(mask.sum()) for (_, mask), _ in pairs))

    def gain(self, anchor: State, candidate: State) -> BatchGain:
        """How much more likely the candidate makes the texts than the anchor does, in nats per text."""
        pairs = list(zip(self._read(candidate), self._read(anchor), strict=True))
        length = max(len(mask) for (_, mask), _ in pairs)
        ratios, masks = (torch.zeros(len(pairs), length) for _ in range(2))
        for row, ((now, mask), (before, _)) in enumerate(pairs):
            ratios[row, : len(mask)], masks[row, : len(mask)] = (now - before).cpu(), mask.cpu()
        return likelihood_gain(ratios, masks)

    def _read(self, state: State | None) -> list[tuple[Tensor, Tensor]]:
        """(log-probabilities, mask) of each text, under other weights or the present ones."""
        if state is None:
            return list(log_probabilities(self._trainer, self._texts))
        with self._adapter.holding(state):
            return list(log_probabilities(self._trainer, self._texts))


def log_probabilities(trainer: Any, rows: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor]]:
    """(log-probabilities (length,) float32, 0 where not trained; mask of the trained tokens) of each row, in order.

    Raises:
        InputError: the trainer's collator makes no such batch of them as is scored (`collated`).
    """
    seam = Seam(trainer)
    batch = 1 if seam.packs_rows else trainer.args.per_device_train_batch_size
    for first in range(0, len(rows), batch):
        inputs = collated(seam, [rows[i] for i in range(first, min(first + batch, len(rows)))])
        labels = inputs.pop("labels")[:, 1:]
        with inference(trainer.model):
            logits = trainer.model(**inputs, use_cache=False).logits[:, :-1].float()
        mask = labels != -100
        logps = torch.gather(logits.log_softmax(-1), -1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) * mask
        yield from zip(logps, mask, strict=True)


def collated(seam: Seam, rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as the trainer's collator makes a batch of them, with `labels`, on the model's device.

    Raises:
        InputError: it makes a batch without labels, or one that is not as long as the rows are many.
    """
    inputs = seam.prepared(list(rows))
    if inputs.get("labels") is None:
        raise InputError(
            "the trainer's data_collator makes batches without labels, by which an SFTTrainer's rows are scored: "
            "have it add them, -100 where nothing is trained"
        )
    if not seam.packs_rows and len(inputs["labels"]) != len(rows):
        raise InputError(
            f"the trainer's data_collator makes {len(inputs['labels'])} rows of {len(rows)}, which cannot be scored "
            "one by one: have it pad them"
        )
    return inputs


def check_row(trainer: Any, row: Row, given: bool) -> None:
    """See that the trainer's collator makes a batch of such rows, whether they are tokenised or it does that itself.

    Args:
        given: whether the row is one of `validation=`.

    Raises:
        InputError: it does not.
    """
    seam = Seam(trainer)
    try:
        with torch.random.fork_rng(), seam.untouched():  # a collator may draw random numbers
            collated(seam, [row] if seam.packs_rows else [row, row])
    except InputError:
        raise
    except Exception as error:  # whatever a collator of the user's raises
        mend = (
            "they must be as its own are after it has tokenised them: give them to the trainer as eval_dataset and "
            "leave validation= out"
            if given
            else "it has to take the rows of the dataset as they are"
        )
        raise InputError(
            f"the trainer's data_collator makes no batch of the rows to validate on ({type(error).__name__}: "
            f"{shown(str(error))}); {mend}"
        ) from error
