"""How far other weights would move a policy, measured on rollouts that the trainer holds anyway.

The latest training batch was sampled a step ago, so its tokens are samples of the current policy; two forward passes
over a few of its completions give the divergence of any candidate weights from the current ones. No completion is
generated for it. One pass is enough where the log-probabilities that the last training step computed anyway stand for
the current policy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nextrl.evaluate import inference


class RolloutDivergence:
    """Kullback-Leibler divergence a token, current policy from candidate, on the trainer's latest rollouts.

    Args:
        trainer: TRL's GRPOTrainer or RLOOTrainer.
        sequences: completions looked at, at most.
    """

    def __init__(self, trainer: Any, sequences: int) -> None:
        self._trainer, self._sequences = trainer, sequences
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None
        self._current: Tensor | None = None

    def anchor(self) -> bool:
        """Take the present weights as the current policy; False where the trainer holds no rollouts."""
        self._batch = self._latest()
        self._current = None if self._batch is None else self._log_probabilities()
        return self._current is not None

    def now(self) -> float:
        """Divergence of the weights the model now has from the anchored ones, in nats a token; NaN without an anchor.

        Mean over tokens of `log(p_candidate / p_current)^2 / 2`, an estimate of KL(current || candidate) that is
        exact to second order (Schulman, "Approximating KL Divergence", 2020, estimator k2). The unbiased k3 of the
        same note has tails that one rare token in a few hundred fills: a window once read 59 nats where it had
        hardly moved.
        """
        if self._batch is None or self._current is None:
            return math.nan
        mask = self._batch[2]
        tokens = (self._log_probabilities() - self._current).square() / 2 * mask
        mean = tokens.sum() / mask.sum().clamp_min(1.0)
        return float(self._trainer.accelerator.gather(mean).mean())

    def _latest(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(ids (n, prompt + completion), attention mask alike, completion mask (n, completion)) of some rollouts."""
        buffered = getattr(self._trainer, "_buffered_inputs", None)
        if not buffered:
            return None
        prompt, completion, prompt_mask, mask = (
            torch.cat([batch[part] for batch in buffered])[: self._sequences]
            for part in ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
        )
        return torch.cat([prompt, completion], 1), torch.cat([prompt_mask, mask], 1), mask

    def _log_probabilities(self) -> Tensor:
        """(n, completion) float32: log-probability of each completion token under the present weights."""
        assert self._batch is not None
        ids, attention, mask = self._batch
        trainer = self._trainer
        with inference(trainer.model):
            found = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, attention, mask.size(1), trainer.args.per_device_train_batch_size
            )
        log_probabilities: Tensor = found[0]
        return log_probabilities.float()


class LastStepDivergence(RolloutDivergence):
    """The same from the policy of the last training step, whose log-probabilities training computed itself.

    It differs from the current policy by that one step: good enough to see whether a window of many went far. The
    trainer's own method is listened to between `listen` and `stop`; what it returns is not changed. There is nothing
    to measure on where it was not called (a fused loss, SFT), where it was given more than tokens (images), and where
    dropout made its figures random.

    Args:
        trainer: TRL's GRPOTrainer or RLOOTrainer.
        sequences: completions looked at, at most.
    """

    _METHOD = "_get_per_token_logps_and_entropies"
    # Arguments beside the first four that do not change what is computed.
    _HARMLESS = frozenset({"batch_size", "compute_entropy", "compute_aux_loss"})

    def __init__(self, trainer: Any, sequences: int) -> None:
        super().__init__(trainer, sequences)
        self._heard: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._listening, self._before = False, None

    def listen(self) -> None:
        """Keep what the coming step's forward passes find."""
        computed = getattr(self._trainer, self._METHOD, None)
        random = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self._trainer.model.modules())
        if computed is None or random:
            return
        self._heard, self._listening = [], True
        self._before = vars(self._trainer).get(self._METHOD)

        def heard(*arguments: Any, **options: Any) -> Any:
            found = computed(*arguments, **options)
            if torch.is_grad_enabled():
                self._keep(found[0], arguments, options)
            return found

        setattr(self._trainer, self._METHOD, heard)

    def stop(self) -> None:
        """The step is over: the trainer's method is its own again."""
        if not self._listening:
            return
        self._listening = False
        if self._before is None:
            delattr(self._trainer, self._METHOD)
        else:
            setattr(self._trainer, self._METHOD, self._before)

    def anchor(self) -> bool:
        """Take the policy of the last training step as the current one; False where its figures were not heard."""
        found, self._heard = self._heard, []
        shapes = {(ids.shape[1], mask.shape[1]) for ids, _, mask, _ in found}
        if len(shapes) != 1:  # none, or micro-batches padded each to a length of its own
            found = found[:1]
        if not found:
            return False
        ids, attention, mask, current = (
            torch.cat(part)[: self._sequences] for part in zip(*found, strict=True)
        )
        self._batch, self._current = (ids, attention, mask), current.float()
        return True

    def _keep(self, found: Tensor, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        more = [name for name, value in options.items() if value is not None and name not in self._HARMLESS]
        if len(arguments) != 4 or more or sum(len(part[0]) for part in self._heard) >= self._sequences:
            return
        _, ids, attention, length = arguments
        self._heard.append((ids, attention, attention[:, -length:], found.detach()))
