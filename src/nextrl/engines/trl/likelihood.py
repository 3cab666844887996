"""Supervised fine-tuning under the same callback, as a control: held-out likelihood in the place of held-out rewards.

A candidate's score on a row is the mean log-probability of the row's trained tokens. A window's reward is the mean
token accuracy, which TRL's SFTTrainer measures anyway. Nothing is generated, so there is nothing for a guard to look
at: no lengths, no endings, no samples of the candidate's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from nextrl.engines.candidate_scores import Row
from nextrl.engines.live_weights import LiveWeights, State
from nextrl.engines.policies.base import MOST
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.fresh_rollouts import AT_LEAST, enough
from nextrl.engines.trl.seam import Seam
from nextrl.errors import InputError, shown
from nextrl.judge.fresh_batch import BatchGain, likelihood_gain
from nextrl.tasks.evaluate import inference, seeded


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


Reading = tuple[Tensor, Tensor]
"""Log-probabilities of a text's tokens (length,), 0 where not trained, and the mask of the trained ones (length,)."""


class FreshTexts:
    """Judges other weights on held-out texts, as `FreshRollouts` does on rollouts.

    A look, from the end of one step to that of the next, reads the anchor once, whatever it is asked. How far a step
    moved the policy is read on few texts, a window's gain on all of them.

    Args:
        trainer: TRL's SFTTrainer.
        adapter: what candidates are written into; it is left as it was.
        rows: held-out rows. Every process measures the same ones.
    """

    repeatable: bool | None = None  # asked of training passes, of which none is used here

    def __init__(self, trainer: Any, adapter: LiveWeights, rows: Sequence[Row]) -> None:
        self._trainer, self._adapter, self._texts = trainer, adapter, rows
        self._anchored = _Anchored()
        # Every look goes through the same batches, so that half precision rounds a text alike under all weights, and
        # no batch is longer than the few texts of a step: what it does not need is not read.
        self._batch = min(AT_LEAST, _batch(trainer))

    def listen(self, moments: Any = None) -> None:
        """Nothing is heard, since texts are the same at every step; what the last look read is forgotten."""
        self._anchored = _Anchored()

    def stop(self) -> None:
        """The step is over: what was read before it is forgotten, since weights beside the adapter may have changed."""
        self._anchored = _Anchored()

    def moved(self, anchor: State, most: int = MOST) -> float:
        """Divergence between the anchor and the present weights, nats per token (`log(p_now / p_anchor)^2 / 2`).

        Mean over the tokens of `most` texts, of fewer where these are long or a step is trained on fewer (`_few`).
        """
        texts = self._few(most)
        pairs = list(zip(self._read(0, texts), self._read_anchor(anchor, texts), strict=True))
        nats = sum(float((now - before).square().sum()) / 2 for (now, _), (before, _) in pairs)
        return nats / max(1, sum(int(mask.sum()) for (_, mask), _ in pairs))

    def gain(self, anchor: State, candidate: State) -> BatchGain:
        """How much more likely the candidate makes the texts than the anchor does, in nats per text.

        All texts are read, however small the batches of training are: the certainty of a gain grows with their number,
        and what is decided by it (a window taken back, a higher rate) lasts.
        """
        texts = len(self._texts)
        with self._adapter.holding(candidate):
            found = self._read(0, texts)
        pairs = list(zip(found, self._read_anchor(anchor, texts), strict=True))
        length = max(len(mask) for (_, mask), _ in pairs)
        ratios, masks = (torch.zeros(len(pairs), length) for _ in range(2))
        for row, ((now, mask), (before, _)) in enumerate(pairs):
            ratios[row, : len(mask)], masks[row, : len(mask)] = (now - before).cpu(), mask.cpu()
        return likelihood_gain(ratios, masks)

    def _few(self, most: int) -> int:
        """How many texts a step's movement is read on, in whole batches.

        As many as hold `TOKENS` tokens, as of rollouts; and no more than a step is trained on, since a look at it would
        else take more passes than the step. `AT_LEAST` of them all the same, however small the step: nats per token of
        one text say little of others.
        """
        args = self._trainer.args
        trained = int(args.per_device_train_batch_size) * int(args.gradient_accumulation_steps)
        few = enough(self._tokens, min(most, max(AT_LEAST, trained)))
        return min(len(self._texts), -(-few // self._batch) * self._batch)

    @cached_property
    def _tokens(self) -> Tensor:
        """(n,) trained tokens of each text; no pass is taken for it."""
        found = _batches(self._trainer, self._texts, self._batch)
        return torch.cat([(labels != -100).sum(1).cpu() for _, labels in found])

    def _read_anchor(self, anchor: State, texts: int) -> list[Reading]:
        """The first texts under the anchor; those are not read again that were under this one."""
        if not self._anchored.is_of(anchor):
            self._anchored = _Anchored(anchor)
        known = self._anchored.readings
        if len(known) < texts:
            with self._adapter.holding(anchor):
                known += self._read(len(known), texts)
        return known[:texts]

    def _read(self, first: int, stop: int) -> list[Reading]:
        """Some of the texts under the weights that the model now has."""
        rows = [self._texts[i] for i in range(first, stop)]
        return list(log_probabilities(self._trainer, rows, self._batch))


class _Anchored:
    """What texts were found to be under one anchor, as long as its tensors are the same and hold the same values.

    They are known by weak references: a copy of all weights must not live on for what was read under it.

    Attributes:
        readings: of the first texts.
    """

    def __init__(self, anchor: State | None = None) -> None:
        self.readings: list[Reading] = []
        self._of = None if anchor is None else {n: (ref(t), t._version) for n, t in anchor.items()}

    def is_of(self, anchor: State) -> bool:
        """Whether this is the anchor, unchanged."""
        known = self._of
        return (
            known is not None
            and known.keys() == anchor.keys()
            and all(known[n][0]() is t and known[n][1] == t._version for n, t in anchor.items())
        )


def log_probabilities(trainer: Any, rows: Sequence[Row], batch: int | None = None) -> Iterator[Reading]:
    """(log-probabilities (length,) float32, 0 where not trained; mask of the trained tokens) of each row, in order.

    Args:
        batch: rows of one pass; None for as many as the trainer's own have.

    Raises:
        InputError: the trainer's collator makes no such batch of them as is scored (`collated`).
    """
    for inputs, labels in _batches(trainer, rows, batch or _batch(trainer)):
        with inference(trainer.model):
            logits = trainer.model(**inputs, use_cache=False).logits[:, :-1].float()
        mask = labels != -100
        logps = torch.gather(logits.log_softmax(-1), -1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) * mask
        yield from zip(logps, mask, strict=True)


def _batch(trainer: Any) -> int:
    """Rows that one pass takes."""
    return 1 if Seam(trainer).packs_rows else int(trainer.args.per_device_train_batch_size)


def _batches(trainer: Any, rows: Sequence[Row], batch: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """(what the model is given, labels of the tokens that it predicts) of so many rows at a time."""
    seam = Seam(trainer)
    for first in range(0, len(rows), batch):
        inputs = collated(seam, [rows[i] for i in range(first, min(first + batch, len(rows)))])
        yield inputs, inputs.pop("labels")[:, 1:]


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
        with seeded(0), seam.untouched():  # a collator may draw random numbers
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
