"""How far the figures of a fresh batch can be believed, on made-up completions: docs/fresh-batch.md has what it prints.

python -m studies.auto.coverage

First, how often two standard errors cover the true gain: completions of 30 tokens, their reward a sum over tokens, by
how far the candidate is away. Then what is said of candidates that gain nothing (the reward does not depend on what
they change), where wrong answers are twice as long as right ones. Each token is drawn from a categorical policy of its
own place, so that every truth is a sum. Last, how well informative prompts must agree to be sure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nextrl.judge.few_samples import t_of_normal
from nextrl.judge.fresh_batch import BatchGain, Statistic, batch_gain, batch_sums

BATCHES, EACH = 250, 8
AWAY = (0.1, 0.15, 0.2, 0.3, 0.4)
PROMPTS = (32, 16, 8)
LENGTHS = (10, 20, 40, 80, 160)


def leave_one_out(rewards: Tensor) -> Tensor:
    """(G, m) -> (G m,): each reward less the mean of the prompt's others."""
    return ((rewards - rewards.mean(1, keepdim=True)) * EACH / (EACH - 1)).flatten()


def with_gain(away: float, prompts: int) -> tuple[list[BatchGain], float]:
    """Batches of a candidate that is `away`, and its true gain."""
    random = torch.Generator().manual_seed(0)
    now, worth, other = torch.randn(3, 64, 30, 5, generator=random, dtype=torch.float64)
    before, after = now.log_softmax(-1), (now + away * (0.7 * worth + other)).log_softmax(-1)
    truth = float(((after.exp() - before.exp()) * worth).sum((1, 2)).mean())
    groups, own = torch.arange(prompts).repeat_interleave(EACH), torch.ones(EACH * prompts, 30)
    found = []
    for _ in range(BATCHES):
        chosen = torch.randint(64, (prompts,), generator=random)
        tokens = torch.multinomial(before[chosen].exp().view(-1, 5), EACH, replacement=True, generator=random)
        tokens = tokens.view(prompts, 30, EACH)
        ratios, worths = ((t[chosen].gather(2, tokens)).transpose(1, 2) for t in (after - before, worth))
        found.append(
            batch_gain(batch_sums(ratios.reshape(own.shape), leave_one_out(worths.sum(2)), groups, own))
        )
    return found, truth


def without_gain(length: int, prompts: int) -> tuple[list[BatchGain], list[BatchGain]]:
    """Batches of a candidate that gains nothing; wrong answers have `length` tokens, right ones half as many.

    The second of each is what is found where log-ratios come without tokens.
    """
    random = torch.Generator().manual_seed(0)
    now, other = torch.randn(2, length, 4, generator=random, dtype=torch.float64)
    before, after = now.log_softmax(-1), (now + 0.2 * other).log_softmax(-1)
    groups = torch.arange(prompts).repeat_interleave(EACH)
    found, blind = [], []
    for _ in range(BATCHES):
        right = torch.rand(prompts, EACH, generator=random) < 0.5
        own = torch.arange(length) < torch.where(right, length // 2, length).view(-1, 1)
        tokens = torch.multinomial(before.exp(), prompts * EACH, replacement=True, generator=random)
        ratios = (after - before).gather(1, tokens).T
        advantages = leave_one_out(right.double())
        found.append(batch_gain(batch_sums(ratios, advantages, groups, own)))
        blind.append(batch_gain(batch_sums((ratios * own).sum(1), advantages, groups)))
    return found, blind


def covered(found: list[BatchGain], truth: float, statistic: Statistic) -> float:
    """Share of batches whose figure lies within two standard errors of the truth."""
    estimates = [getattr(f, statistic) for f in found]
    return sum(abs(e.value - truth) <= 2 * e.error for e in estimates) / len(estimates)


def share(found: list[BatchGain]) -> float:
    """Effective sample size over n, mean."""
    return sum(f.ess / f.completions for f in found) / len(found)


def scores(found: list[BatchGain], statistic: Statistic) -> str:
    """Mean and deviation of z."""
    z = torch.tensor([getattr(f, statistic).z for f in found])
    return f"{float(z.mean()):+.2f} ± {float(z.std()):.2f}"


def row(name: str, cells: list[str]) -> None:
    """A line of a table."""
    print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Print the tables."""
    batches = {(away, prompts): with_gain(away, prompts) for away in AWAY for prompts in PROMPTS}
    row("covered, at an effective share of", [f"{share(batches[away, 32][0]):.2f}" for away in AWAY])
    row("---", ["---"] * len(AWAY))
    for statistic in ("gain", "slope"):
        for prompts in PROMPTS:
            cells = [f"{covered(*batches[away, prompts], statistic):.2f}" for away in AWAY]
            row(f"`{statistic}`, {prompts} prompts", cells)
    print()
    row("nothing gained, wrong answers of", [f"{length} tokens" for length in LENGTHS])
    row("---", ["---"] * len(LENGTHS))
    for prompts in (64, 16):
        found, blind = zip(*(without_gain(length, prompts) for length in LENGTHS), strict=True)
        row(f"effective share, {prompts} prompts", [f"{share(f):.2f}" for f in found])
        row("z of `gain`", [scores(f, "gain") for f in found])
        row("z of `slope`", [scores(f, "slope") for f in found])
        row("z of `slope` without tokens", [scores(f, "slope") for f in blind])
    print()
    few = (2, 3, 4, 6, 8, 12, 16, 32, 64)
    row("informative prompts", [str(m) for m in few])
    row("---", ["---"] * len(few))
    row("mean over deviation", [f"{t_of_normal(3.3, m - 1) / math.sqrt(m):.2f}" for m in few])


if __name__ == "__main__":
    main()
