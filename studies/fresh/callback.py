"""A controller of the learning rate that never searches: the batch sampled after a window judges the window.

A prototype to measure with, not what `auto` does. It is one callback on TRL's GRPOTrainer, for one process and one
optimizer step per generation. Three rules, all of them on rollouts that training samples anyway:

1. *Step check* (after steps 1, 2, 4, 8, ..., counted from the start and from each raise): a step that moves the policy
   by more than `STEP_FAR` nats per token is taken back, and the rate is cut.
2. *Window*: every `WINDOW` steps, at theta_T with displacement d since the window's start. The batch that the next
   step trains on was sampled at theta_T. One forward pass on it for each alpha gives log-ratios of theta_T + alpha d,
   and `judge.fresh_batch` what they gain. A leap needs the more standard errors the more nats it risks.
3. *Rate*: it follows a leap by sqrt(1 + alpha). Until a window has first moved the policy about as far as it should,
   the rate rises where doing the window again does no harm; later only with a leap, since a run that has learned
   everything moves little at any rate. It falls where the window's start was better (the window is undone then), where
   further is clearly worse and back is better, where the reward fell within a window that went too far, and where
   `PATIENCE` windows in a row moved the policy further than they should and together earned nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.engines.live_adapter import LiveAdapter, State, along
from nextrl.engines.trl.rollback import Moments, read_moments, write_moments
from nextrl.engines.trl.rollouts import set_rate_factor
from nextrl.engines.trl.seam import Seam
from nextrl.judge.fresh_batch import BatchGain, batch_gain, batch_sums
from nextrl.tasks.evaluate import inference

PATIENCE = 4


@dataclass(frozen=True)
class Dials:
    """The dials, each in the unit of what it is compared with.

    Attributes:
        window: optimizer steps.
        alphas: leaps that are looked at.
        step_far: nats per token beyond which a single step is taken back; `step_goal` is what the rate is cut to.
        target: nats per token by which a window should move the policy.
        far: nats per token beyond which a window may have gone too far, and a leap is not taken.
        sure: standard errors that a leap must gain when it risks no more than `target`; each doubling of the nats
            asks for `sure_more` in addition.
        undo: standard errors by which a window's start must be better for the window to be undone.
        informative: prompts with unequal rewards that a batch must have to be listened to.
    """

    window: int = 5
    alphas: tuple[float, ...] = (1.0, 3.0, 7.0, 15.0, 31.0)
    step_far: float = 0.15
    step_goal: float = 0.015
    target: float = 0.02
    far: float = 0.16
    sure: float = 2.5
    sure_more: float = 0.75
    undo: float = 2.5
    informative: int = 4


@dataclass
class Account:
    """What was done: one entry per decision, and the forward passes that it took (in completions read)."""

    decisions: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0


class FreshBatch(TrainerCallback):
    """The callback; `trainer` is set after the trainer was built."""

    def __init__(self, dials: Dials | None = None) -> None:
        self.dials, self.account, self.trainer = dials or Dials(), Account(), None
        self._since_raise, self._next_check = 0, 1
        self._rewards: list[float] = []
        self._pending, self._found = False, False
        self._earned: list[tuple[float, float, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the adapter."""
        self._seam, self._adapter = Seam(self.trainer), LiveAdapter(kwargs["model"])
        self._start = self._adapter.read()
        self._start_moments: Moments = read_moments(kwargs["optimizer"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where the step begins, and listen to what its forward passes find."""
        self._before = self._adapter.read()
        self._before_moments = read_moments(kwargs["optimizer"])
        self._passes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

        def heard(found: Tensor, ids: Tensor, attention: Tensor, length: int) -> None:
            self._passes.append((found, ids, attention, attention[:, -length:]))

        self._stop = self._seam.listen_to_logps(heard)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the step where a check is due, and judge the window that ended before it."""
        self._stop()
        self._optimizer, self._scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        rewards = self._seam.training_metric("reward")
        self._rewards.append(float(rewards[-1]) if rewards else math.nan)
        self._since_raise += 1
        if self._since_raise == self._next_check:
            self._next_check *= 2
            if self._check_step(state.global_step):
                return
        if self._pending:
            self._pending = False
            self._judge(state.global_step)
        if state.global_step % self.dials.window == 0:
            self._pending = True

    # ------------------------------------------------------------------------------------------ measuring

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(log-probabilities at the step's start, ids, attention, mask of completions) of the batch just trained on."""
        found, ids, attention, mask = (torch.cat(part) for part in zip(*self._passes, strict=True))
        return found.float(), ids, attention, mask

    def _read(self, weights: State, rows: int | None = None) -> Tensor:
        """Log-probabilities of the batch under other weights; the adapter is as before, afterwards."""
        _, ids, attention, mask = self._batch()
        now = self._adapter.read()
        self._adapter.write(weights)
        try:
            with inference(self.trainer.model):
                found = self._seam.per_token_logps(ids[:rows], attention[:rows], mask.size(1))
        finally:
            self._adapter.write(now)
        self.account.read += len(found)
        return found

    def _gain(self, alpha: float) -> BatchGain:
        """What the fresh batch says of theta_T + alpha d."""
        current, _, _, mask = self._batch()
        advantages = torch.cat([part["advantages"] for part in self._seam.buffered_rollouts()]).flatten()
        groups = torch.arange(len(advantages)) // self.trainer.num_generations
        ratios = self._read(along(self._start, self._before, alpha)) - current
        return batch_gain(batch_sums(ratios, advantages[: len(ratios)], groups[: len(ratios)], mask))

    # ------------------------------------------------------------------------------------------- deciding

    def _check_step(self, step: int) -> bool:
        """Take a step back that went too far."""
        current, _, _, mask = self._batch()
        rows = min(24, len(mask))
        moved = (self._read(self._adapter.read(), rows) - current[:rows]).square() / 2 * mask[:rows]
        nats = float(moved.sum() / mask[:rows].sum())
        if nats <= self.dials.step_far:
            return False
        self._adapter.write(self._before)
        write_moments(self._optimizer, self._before_moments)
        self._seam.drop_buffered_rollouts()
        factor = min(0.5, math.sqrt(self.dials.step_goal / nats)) if math.isfinite(nats) else 0.1
        self._rate(factor)
        self._found = True
        self._begin_window()
        self._note(step, 0.0, factor, f"the step moved the policy {nats:.2g} nats per token: taken back", {})
        return True

    def _judge(self, step: int) -> None:
        dials, window = self.dials, self._rewards[: self.dials.window]
        back = self._gain(-1.0)
        nats = back.nats_k2
        self._found = self._found or nats > dials.target / 2
        seen = {-1.0: back}
        heard = back.informative_groups >= dials.informative
        if heard and back.gain.z > dials.undo and not back.degenerate:
            # The start was better: the whole window goes, with the moments it had.
            self._adapter.write(self._start)
            write_moments(self._optimizer, self._start_moments)
            self._rate(1 / 3)
            self._finish(step, -1.0, 1 / 3, "the window's start was better", seen)
            return
        if nats > dials.far and _fell(window):
            self._rate(0.5)
            self._finish(step, 0.0, 0.5, f"{nats:.2g} nats per token and the reward fell", seen)
            return
        alpha, best = 0.0, 0.0
        for candidate in dials.alphas if heard else dials.alphas[:1]:
            found = seen[candidate] = self._gain(candidate)
            if found.left_out or found.degenerate or found.nats_k2 > dials.far:
                break
            needed = dials.sure + dials.sure_more * max(0.0, math.log2(found.nats_k2 / dials.target))
            lower = found.gain.value - needed * found.gain.error
            if heard and lower > best:
                alpha, best = candidate, lower
        if alpha:
            shift = {n: self._before[n] - self._start[n] for n in self._before}
            now = self._adapter.read()
            self._adapter.write({n: now[n] + alpha * shift[n] for n in now})
            self._seam.drop_buffered_rollouts()
            factor = math.sqrt(1.0 + alpha)
            self._rate(factor)
            self._finish(step, alpha, factor, f"gains {best:.3g} at least", seen)
            return
        again = seen[1.0].gain.z
        if self._stalled(back):
            self._rate(0.6)
            self._finish(step, 0.0, 0.6, "the last windows went far and earned nothing", seen)
            return
        if heard and again < -dials.undo and back.gain.z > 1.0:
            self._rate(0.7)
            self._finish(step, 0.0, 0.7, "further is worse, and back is better", seen)
            return
        if not self._found and nats < dials.target / 2 and again > -1.0:
            factor = min(3.0, math.sqrt(dials.target / 2 / max(nats, 1e-12)))
            self._rate(factor)
            self._finish(
                step, 0.0, factor, f"a window moves the policy {nats:.2g} nats per token: raised", seen
            )
            return
        self._finish(step, 0.0, 1.0, "", seen)

    def _stalled(self, back: BatchGain) -> bool:
        """Whether the last windows, this one included, moved the policy far and show no sign of having paid."""
        self._earned.append((-back.gain.value, back.gain.error, back.nats_k2))
        last = self._earned[-PATIENCE:]
        total, error = sum(g for g, _, _ in last), math.sqrt(sum(e * e for _, e, _ in last))
        far = sum(n for _, _, n in last) / len(last) > self.dials.target
        return len(last) == PATIENCE and far and total < error

    def _rate(self, factor: float) -> None:
        self._earned = []
        set_rate_factor(self._optimizer, self._scheduler, factor)
        if factor > 1.0:
            self._since_raise, self._next_check = 0, 1

    def _finish(
        self, step: int, alpha: float, factor: float, reason: str, seen: dict[float, BatchGain]
    ) -> None:
        self._begin_window()
        self._note(step, alpha, factor, reason, seen)

    def _begin_window(self) -> None:
        self._start, self._rewards, self._pending = self._adapter.read(), [], False
        self._start_moments = read_moments(self._optimizer)

    def _note(
        self, step: int, alpha: float, factor: float, reason: str, seen: dict[float, BatchGain]
    ) -> None:
        rate = float(self._optimizer.param_groups[0]["lr"])
        figures = {f"{a:g}": [round(g.gain.z, 2), round(g.nats_k2, 5)] for a, g in seen.items()}
        self.account.decisions.append(
            {
                "step": step,
                "alpha": alpha,
                "factor": factor,
                "rate": rate,
                "reason": reason,
                "z and nats": figures,
            }
        )


def _fell(rewards: list[float]) -> bool:
    part = max(1, len(rewards) // 3)
    return len(rewards) > 1 and sum(rewards[-part:]) < sum(rewards[:part])
