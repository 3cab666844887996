"""The fresh-batch estimates against policies whose gain is known in closed form: bias, errors, sums, odd input.

Policies are tables: every completion (an outcome) that a prompt can get is listed, with its tokens' log-probabilities
and its reward, so that the true gain of a candidate is a sum. Where a batch is small, all batches are enumerated and an
expectation is exact; elsewhere it is a mean over batches drawn with fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextrl.judge.fresh_batch import (
    LEAST_SHARE,
    BatchGain,
    BatchSums,
    Estimate,
    batch_gain,
    batch_sums,
    likelihood_gain,
    merge,
)

Baseline = Callable[[Tensor], Tensor]
"""Rewards (G, m) of G prompts with m completions each -> advantages (G, m)."""


def leave_one_out(rewards: Tensor) -> Tensor:
    """RLOO: less the mean of the prompt's other completions."""
    return group_mean(rewards) * rewards.shape[1] / (rewards.shape[1] - 1)


def group_mean(rewards: Tensor) -> Tensor:
    """Dr. GRPO: less the mean of the prompt's completions, the completion itself included."""
    return rewards - rewards.mean(1, keepdim=True)


def normalised(rewards: Tensor) -> Tensor:
    """GRPO: the group mean, over the group's deviation (n - 1); 0 where all rewards are the same."""
    deviation = rewards.std(1, keepdim=True)
    return torch.where(deviation > 0, group_mean(rewards) / deviation.clamp_min(1e-12), 0.0)


@dataclass(frozen=True)
class Policies:
    """The present policy and a candidate, over the same outcomes.

    Attributes:
        now, candidate: (P, S, L) log-probabilities of the tokens of outcome s on prompt p; 0 beyond its end.
        rewards: (P, S).
        mask: (S, L) bool, tokens of an outcome.
    """

    now: Tensor
    candidate: Tensor
    rewards: Tensor
    mask: Tensor

    @property
    def probabilities(self) -> Tensor:
        return self.now.sum(-1).exp()

    @property
    def log_ratios(self) -> Tensor:
        return self.candidate - self.now

    def gain(self) -> float:
        """What the candidate truly earns, prompts being drawn evenly."""
        change = self.candidate.sum(-1).exp() - self.probabilities
        return float((change * self.rewards).sum(1).mean())

    def draw(self, random: torch.Generator, prompts: int, each: int) -> tuple[Tensor, Tensor]:
        """Prompts (G,) and outcomes (G, m) of a batch sampled from the present policy."""
        chosen = torch.randint(len(self.rewards), (prompts,), generator=random)
        return chosen, torch.multinomial(self.probabilities[chosen], each, replacement=True, generator=random)

    def sums(self, batch: tuple[Tensor, Tensor], baseline: Baseline, clustered: bool = True) -> BatchSums:
        """What the module under test makes of a batch."""
        prompts, outcomes = batch
        prompt = prompts[:, None].expand_as(outcomes)
        advantages = baseline(self.rewards[prompt, outcomes])
        groups = torch.arange(len(prompts)).repeat_interleave(outcomes.shape[1]) if clustered else None
        ratios, mask = self.log_ratios[prompt, outcomes].flatten(0, 1), self.mask[outcomes].flatten(0, 1)
        return batch_sums(ratios, advantages.flatten(), groups, mask)


def bandit(logits: Tensor, direction: Tensor, rewards: Tensor) -> Policies:
    """One token for an answer: all arguments (P, K)."""
    now, candidate = (t.double().log_softmax(-1)[..., None] for t in (logits, logits + direction))
    return Policies(now, candidate, rewards.double(), torch.ones(logits.shape[1], 1, dtype=torch.bool))


def sequences(seed: int, prompts: int = 12, size: float = 0.25) -> Policies:
    """Up to three tokens of three kinds, of which 0 ends the completion; its own logits after each beginning."""
    random = torch.Generator().manual_seed(seed)
    beginnings = [(), *product((1, 2)), *product((1, 2), (1, 2))]
    shape = (prompts, len(beginnings), 3)
    logits = torch.randn(shape, generator=random, dtype=torch.float64)
    moved = logits + size * torch.randn(shape, generator=random, dtype=torch.float64)
    moved[..., 2] += size  # the kind that is rewarded, so that there is something to gain
    outcomes = [s for s in product(range(3), repeat=3) if 0 not in s[:2]]
    outcomes += [(a, 0, -1) for a in (1, 2)] + [(0, -1, -1)]
    tokens = torch.tensor(outcomes)
    mask = tokens >= 0
    after = torch.tensor([[beginnings.index(s[:t]) if s[t] >= 0 else 0 for t in range(3)] for s in outcomes])
    now, candidate = (
        torch.where(mask, t.log_softmax(-1)[:, after, tokens.clamp_min(0)], 0.0) for t in (logits, moved)
    )
    rewards = torch.rand((prompts, len(outcomes)), generator=random, dtype=torch.float64) + (tokens == 2).sum(
        1
    )
    return Policies(now, candidate, rewards, mask)


def fresh_batches(
    policies: Policies,
    baseline: Baseline,
    count: int,
    prompts: int = 8,
    each: int = 4,
    clustered: bool = True,
) -> Iterator[BatchGain]:
    for seed in range(count):
        batch = policies.draw(torch.Generator().manual_seed(seed), prompts, each)
        yield batch_gain(policies.sums(batch, baseline, clustered))


def deviation(values: list[float], truth: float) -> float:
    """Mean of values less the truth, in standard errors of that mean."""
    found = torch.tensor(values, dtype=torch.float64)
    return float((found.mean() - truth) / (found.std() / math.sqrt(len(values))))


# Bias


def expected(policies: Policies, baseline: Baseline, each: int, statistic: str) -> float:
    """Exact expectation of a figure over all batches of one prompt with `each` completions."""
    outcomes = policies.rewards.shape[1]
    total = 0.0
    for batch in product(range(outcomes), repeat=each):
        chosen = torch.tensor([batch])
        chance = float(policies.probabilities[0][chosen].prod())
        found = batch_gain(policies.sums((torch.zeros(1, dtype=torch.long), chosen), baseline))
        total += chance * getattr(found, statistic).value
    return total


three = st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=3, max_size=3).map(
    lambda v: torch.tensor([v])
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(three, three, three, st.floats(-3, 3))
def test_the_plain_gain_is_unbiased_to_the_last_digit(
    logits: Tensor, direction: Tensor, rewards: Tensor, fixed: float
) -> None:
    policies = bandit(logits, direction, rewards)
    truth = pytest.approx(policies.gain(), abs=1e-9)
    assert expected(policies, lambda r: r - fixed, 3, "plain") == truth
    assert expected(policies, leave_one_out, 3, "plain") == truth
    # The completion's own reward in the baseline takes away one m-th, never more.
    assert 3 / 2 * expected(policies, group_mean, 3, "plain") == truth
    # Of one token, the first order is all there is.
    assert expected(policies, leave_one_out, 3, "slope") == truth
    # Centred on the batch's own mean, the slope loses one n-th under a fixed baseline.
    assert 3 / 2 * expected(policies, lambda r: r - fixed, 3, "slope") == truth


def test_going_back_is_judged_by_the_same_function() -> None:
    logits, rewards = torch.tensor([[0.3, -0.2, 0.1]]), torch.tensor([[1.0, 0.0, 0.5]])
    window = torch.tensor([[-0.8, 0.5, 0.0]])
    harm = bandit(logits + window, -window, rewards)
    assert harm.gain() > 0.1
    assert expected(harm, leave_one_out, 4, "plain") == pytest.approx(harm.gain(), abs=1e-9)


def two_actions(right: float, moved: float, each: int, baseline: Baseline, statistic: str) -> float:
    """Exact expectation for a reward of 0 or 1, with so large groups as one likes: only the number right counts."""
    pair = torch.tensor([[right, 1 - right], [moved, 1 - moved]], dtype=torch.float64).log()
    policies = bandit(pair[:1], pair[1:] - pair[:1], torch.tensor([[1.0, 0.0]]))
    total = 0.0
    for wrong in range(each + 1):
        outcomes = (torch.arange(each) < wrong).long()[None]
        chance = math.comb(each, wrong) * right ** (each - wrong) * (1 - right) ** wrong
        found = batch_gain(policies.sums((torch.zeros(1, dtype=torch.long), outcomes), baseline))
        total += chance * getattr(found, statistic).value
    return total


@pytest.mark.parametrize("n", [16, 64, 256])
def test_the_bias_of_self_normalised_weights_is_one_over_n(n: int) -> None:
    right, moved = 0.3, 0.45
    gain = moved - right
    # -E[w^2 (A - gain)] / n with A the reward less its expectation: 7 % of the gain at n = 16, .5 % at 256.
    predicted = (
        -(moved**2 / right * (1 - right - gain) + (1 - moved) ** 2 / (1 - right) * (-right - gain)) / n
    )
    found = two_actions(right, moved, n, lambda r: r - right, "gain") - gain
    assert found == pytest.approx(predicted, rel=2 / n)
    assert -found / gain == pytest.approx(0.074 * 16 / n, rel=0.02)
    assert two_actions(right, moved, n, lambda r: r - right, "plain") == pytest.approx(gain, abs=1e-12)


@pytest.mark.parametrize("each", [4, 8, 32])
@pytest.mark.parametrize(("right", "moved"), [(0.5, 0.55), (0.97, 0.94), (0.02, 0.05)])
def test_group_normalisation_weighs_prompts_anew(right: float, moved: float, each: int) -> None:
    share = torch.arange(each + 1, dtype=torch.float64) / each
    chances = [math.comb(each, c) * right**c * (1 - right) ** (each - c) for c in range(each + 1)]
    mean = float((torch.tensor(chances, dtype=torch.float64) * (share * (1 - share)).sqrt()).sum())
    factor = math.sqrt((each - 1) / each) * mean / (right * (1 - right))
    found = two_actions(right, moved, each, normalised, "plain")
    assert found == pytest.approx(factor * (moved - right), abs=1e-12)
    # As the group grows, this is the gain over the reward's deviation.
    if each == 32 and right == 0.5:
        assert factor == pytest.approx(1 / math.sqrt(right * (1 - right)), rel=0.04)


def test_group_normalisation_may_turn_the_sign_over_prompts() -> None:
    hard, easy = (0.5, 0.55), (0.97, 0.94)
    assert (hard[1] - hard[0]) + (easy[1] - easy[0]) > 0
    assert sum(two_actions(*prompt, 32, normalised, "plain") for prompt in (hard, easy)) < 0
    assert sum(two_actions(*prompt, 32, leave_one_out, "plain") for prompt in (hard, easy)) > 0


@pytest.mark.parametrize(
    ("baseline", "share"), [(lambda r: r - 1.2, 1.0), (leave_one_out, 1.0), (group_mean, 3 / 4)]
)
def test_gains_of_sequences_are_right_on_average(baseline: Baseline, share: float) -> None:
    policies = sequences(seed=1)
    found = list(fresh_batches(policies, baseline, 700))
    assert abs(policies.gain()) > 0.02
    assert abs(deviation([f.plain.value for f in found], share * policies.gain())) < 3
    assert abs(deviation([f.gain.value for f in found], share * policies.gain())) < 3
    assert abs(deviation([f.mean_weight for f in found], 1.0)) < 3


def trained_and_fresh(seed: int) -> tuple[float, float]:
    """Errors of the gain of one more window, judged by the batch that the window was trained on, and by a fresh one."""
    random = torch.Generator().manual_seed(seed)
    prompts, each, actions = 8, 8, 4
    start = torch.zeros(prompts, actions, dtype=torch.float64)
    rewards = torch.arange(actions, dtype=torch.float64).expand(prompts, -1) / 10

    def sample(logits: Tensor) -> tuple[Tensor, Tensor]:
        taken = torch.multinomial(logits.softmax(-1), each, replacement=True, generator=random)
        noise = torch.randn(taken.shape, generator=random, dtype=torch.float64)
        return taken, leave_one_out(rewards.gather(1, taken) + noise)

    taken, advantages = sample(start)
    score = torch.nn.functional.one_hot(taken, actions) - start.softmax(-1)[:, None]
    step = 0.5 * (advantages[..., None] * score).mean(1)  # the policy gradient of this very batch
    end = start + step
    truth = float((((end + step).softmax(-1) - end.softmax(-1)) * rewards).sum(1).mean())
    ratios = (end + step).log_softmax(-1) - end.log_softmax(-1)
    groups = torch.arange(prompts).repeat_interleave(each)

    def error(taken: Tensor, advantages: Tensor) -> float:
        sums = batch_sums(ratios.gather(1, taken).flatten(), advantages.flatten(), groups)
        return batch_gain(sums).plain.value - truth

    return error(taken, advantages), error(*sample(end))


def test_the_batch_that_trained_a_window_speaks_for_it_and_a_fresh_one_does_not() -> None:
    on_training, on_fresh = zip(*(trained_and_fresh(seed) for seed in range(600)), strict=True)
    assert abs(deviation(list(on_fresh), 0.0)) < 3
    assert deviation(list(on_training), 0.0) > 30


# Errors


def covered(found: list[BatchGain], truth: float, statistic: str) -> float:
    """Share of batches whose figure lies within two standard errors of the truth."""
    estimates: list[Estimate] = [getattr(f, statistic) for f in found]
    return sum(abs(e.value - truth) <= 2 * e.error for e in estimates) / len(estimates)


def uneven(prompts: int = 200) -> Policies:
    """A bandit whose candidate helps some prompts and harms others, and whose prompts differ in what they earn."""
    random = torch.Generator().manual_seed(3)
    shape = (prompts, 4)
    rewards = torch.rand(shape, generator=random) + 2 * torch.randn(prompts, 1, generator=random)
    helps = 0.4 * torch.randn(prompts, 1, generator=random) + 0.1
    direction = helps * (rewards - rewards.mean(1, keepdim=True)) * 4
    return bandit(torch.randn(shape, generator=random) / 2, direction, rewards)


@pytest.mark.parametrize("baseline", [leave_one_out, lambda r: r - 0.5], ids=["leave one out", "fixed"])
def test_two_standard_errors_cover_the_truth(baseline: Baseline) -> None:
    policies = uneven()
    found = list(fresh_batches(policies, baseline, 400, prompts=32, each=8))
    for statistic in ("gain", "plain"):
        assert 0.90 <= covered(found, policies.gain(), statistic) <= 0.98
    if baseline is leave_one_out:
        assert 0.90 <= covered(found, policies.gain(), "slope") <= 0.98
    assert not any(f.degenerate for f in found)


def test_an_error_that_takes_completions_of_a_prompt_for_independent_is_wrong() -> None:
    policies = uneven()
    found = list(fresh_batches(policies, leave_one_out, 400, prompts=32, each=8, clustered=False))
    assert covered(found, policies.gain(), "gain") < 0.85
    assert covered(found, policies.gain(), "slope") < 0.85


def test_completions_of_different_prompts_are_independent() -> None:
    policies = uneven()
    mean = float((policies.probabilities * policies.rewards).sum(1).mean())
    found = list(fresh_batches(policies, lambda r: r - mean, 400, prompts=128, each=1, clustered=False))
    assert 0.90 <= covered(found, policies.gain(), "gain") <= 0.98
    assert 0.90 <= covered(found, policies.gain(), "plain") <= 0.98


def long_completions(length: float, prompts: int = 32) -> tuple[list[BatchGain], float]:
    """Batches of completions of 30 tokens, each token for itself, and the true gain of a candidate `length` away."""
    random = torch.Generator().manual_seed(0)
    now, worth, other = torch.randn(3, 64, 30, 5, generator=random, dtype=torch.float64)
    before, after = now.log_softmax(-1), (now + length * (0.7 * worth + other)).log_softmax(-1)
    truth = float(((after.exp() - before.exp()) * worth).sum((1, 2)).mean())
    found = []
    groups, own = torch.arange(prompts).repeat_interleave(8), torch.ones(8 * prompts, 30)
    for _ in range(250):
        chosen = torch.randint(64, (prompts,), generator=random)
        tokens = torch.multinomial(before[chosen].exp().view(-1, 5), 8, replacement=True, generator=random)
        tokens = tokens.view(prompts, 30, 8)
        ratios, worths = ((t[chosen].gather(2, tokens)).transpose(1, 2) for t in (after - before, worth))
        advantages = leave_one_out(worths.sum(2)).flatten()
        found.append(batch_gain(batch_sums(ratios.reshape(own.shape), advantages, groups, own)))
    return found, truth


def test_errors_hold_up_to_where_weights_are_called_degenerate() -> None:
    sound, truth = long_completions(0.15)
    assert sum(f.degenerate != "" for f in sound) <= 2
    assert covered(sound, truth, "gain") >= 0.9
    far, truth = long_completions(0.4)
    assert all(f.degenerate for f in far)
    assert covered(far, truth, "gain") < 0.8
    # Here rewards are sums over tokens, and the gain is nearly a straight line.
    assert covered(far, truth, "slope") > 0.9


def without_gain(batches: int, alpha: float) -> Iterator[BatchGain]:
    """64 x 8 completions of 100 to 200 tokens whose reward the candidate leaves alone: right answers are half as long.

    Each token is drawn from a categorical policy of its place, and the candidate has another one, both for right and
    wrong answers: it earns what the present policy earns, and its log-ratios are the longer the further below 0.
    """
    random = torch.Generator().manual_seed(0)
    now, other = torch.randn(2, 200, 4, generator=random, dtype=torch.float64)
    before, after = now.log_softmax(-1), (now + 0.2 * alpha * other).log_softmax(-1)
    groups = torch.arange(64).repeat_interleave(8)
    for _ in range(batches):
        right = torch.rand(64, 8, generator=random) < 0.5
        own = torch.arange(200) < torch.where(right, 100, 200).view(-1, 1)
        tokens = torch.multinomial(before.exp(), 512, replacement=True, generator=random)
        ratios = (after - before).gather(1, tokens).T
        yield batch_gain(batch_sums(ratios, normalised(right.double()).flatten(), groups, own))


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_a_candidate_without_gain_is_no_better_where_wrong_answers_are_longer(alpha: float) -> None:
    found = list(without_gain(40, alpha))
    assert all(f.degenerate for f in found)
    assert abs(deviation([f.slope.value for f in found], 0.0)) < 3
    assert not any(abs(f.evidence) > 3.3 for f in found)


# What follows by algebra


def some_batch(seed: int, size: float, prompts: int = 12, each: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Log-ratios, rewards and prompts of a batch of no particular policy; (n,) each."""
    random = torch.Generator().manual_seed(seed)
    ratios = size * torch.randn(prompts * each, generator=random, dtype=torch.float64)
    rewards = torch.randn(prompts * each, generator=random, dtype=torch.float64)
    return ratios, rewards, torch.arange(prompts).repeat_interleave(each)


def test_for_short_steps_gain_and_slope_say_the_same() -> None:
    ratios, advantages, groups = some_batch(0, 1e-4)
    found = batch_gain(batch_sums(ratios, leave_one_out(advantages.view(12, 4)).flatten(), groups))
    assert abs(found.slope.z) > 0.1
    assert found.gain.z == pytest.approx(found.slope.z, rel=2e-3)
    assert found.plain.z == pytest.approx(found.slope.z, rel=2e-3)
    assert found.gain.value == pytest.approx(found.slope.value, rel=2e-3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-1000, 1000), st.floats(0.01, 3))
def test_the_unit_and_the_zero_of_rewards_do_not_matter(
    seed: int, scale: float, constant: float, size: float
) -> None:
    ratios, rewards, groups = some_batch(seed, size)

    def judged(rewards: Tensor, baseline: Baseline = leave_one_out) -> BatchGain:
        return batch_gain(batch_sums(ratios, baseline(rewards.view(12, 4)).flatten(), groups))

    found, scaled, moved = judged(rewards), judged(scale * rewards), judged(rewards + constant)
    raw, raw_moved = judged(rewards, lambda r: r), judged(rewards + constant, lambda r: r)
    for name in ("gain", "plain", "slope"):
        one, two, three = (getattr(f, name) for f in (found, scaled, moved))
        assert two.value == pytest.approx(scale * one.value, rel=1e-6, abs=1e-9 * scale)
        assert two.error == pytest.approx(scale * one.error, rel=1e-6)
        assert two.z == pytest.approx(one.z, rel=1e-6, abs=1e-9)
        assert (three.value, three.error) == pytest.approx((one.value, one.error), rel=1e-6, abs=1e-9)
    # Even without a baseline, gain and slope see no constant.
    for name in ("gain", "slope"):
        one, two = (getattr(f, name) for f in (raw, raw_moved))
        assert (two.value, two.error) == pytest.approx((one.value, one.error), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30])
def test_advantages_of_any_size_are_judged_alike(scale: float) -> None:
    ratios, advantages, groups = some_batch(11, 0.3)
    one, other = (batch_gain(batch_sums(ratios, a, groups)) for a in (advantages, scale * advantages))
    for name in ("gain", "plain", "slope"):
        assert getattr(other, name).z == pytest.approx(getattr(one, name).z, rel=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0.01, 2))
def test_few_informative_prompts_are_judged_by_a_t_test_on_them_alone(
    seed: int, informative: int, size: float
) -> None:
    ratios, rewards, groups = some_batch(seed, size)
    advantages = leave_one_out(rewards.view(12, 4)).flatten() * (groups < informative)
    found = batch_gain(batch_sums(ratios, advantages, groups))
    assert (found.informative_groups, found.informative) == (informative, 4 * informative)
    for ratio, estimate in ((ratios.expm1(), found.plain), (ratios, found.slope)):
        prompts = (advantages * ratio).view(12, 4).sum(1)[:informative]
        t = float(prompts.mean() / (prompts.std() / math.sqrt(informative)))
        assert estimate.value == pytest.approx(float(prompts.sum()) / 48, rel=1e-6, abs=1e-12)
        assert estimate.z == pytest.approx(t, rel=1e-6)


def few_prompts(
    seed: int, prompts: int, informative: int, right: int, size: float, harm: float = 0.0
) -> BatchGain:
    """A batch of 8 completions a prompt, of which some prompts have `right` right ones and the others all.

    Log-ratios have the deviation `size`, and those of wrong answers are `harm` lower than those of right ones.
    """
    random = torch.Generator().manual_seed(seed)
    ratios = size * torch.randn(prompts, 8, generator=random, dtype=torch.float64) - size**2 / 2
    rewards = torch.ones(prompts, 8, dtype=torch.float64)
    rewards[:informative, right:] = 0.0
    ratios -= harm * (1 - rewards)
    groups = torch.arange(prompts).repeat_interleave(8)
    return batch_gain(batch_sums(ratios.flatten(), normalised(rewards).flatten(), groups))


@pytest.mark.parametrize(("informative", "right"), [(8, 4), (16, 7), (32, 7)])
def test_harm_that_is_clear_is_seen_where_few_prompts_are_informative(informative: int, right: int) -> None:
    found = [few_prompts(seed, 64, informative, right, 0.1, 0.2) for seed in range(20)]
    assert sum(f.evidence > 3.3 for f in found) >= 15
    assert sum(f.lower(3.0) > 0.0 for f in found) >= 15


@pytest.mark.parametrize(
    ("prompts", "informative"), [(64, 2), (64, 4), (64, 8), (64, 16), (16, 12), (16, 16)]
)
@pytest.mark.parametrize(("right", "size"), [(7, 1.0), (7, 0.5), (4, 0.1)])
def test_skewed_weights_of_rare_failures_are_no_harm(
    prompts: int, informative: int, right: int, size: float
) -> None:
    found = [few_prompts(seed, prompts, informative, right, size) for seed in range(300)]
    assert sum(abs(f.evidence) > 3.0 for f in found) <= 1
    assert sum(f.lower(3.0) > 0.0 for f in found) <= 1


def test_two_prompts_that_agree_to_the_last_digit_are_not_sure() -> None:
    ratios = torch.tensor([0.1, -0.1, 0.1, -0.1], dtype=torch.float64)
    found = batch_gain(batch_sums(ratios, torch.sign(ratios), torch.tensor([0, 0, 1, 1])))
    assert found.gain.z > 1e6
    assert found.evidence < 2.1


# Nats and sizes


def test_nats_per_token_are_those_of_the_policies() -> None:
    policies = sequences(seed=2, prompts=1, size=0.05)
    ratios, chances = policies.log_ratios[0], policies.probabilities[0]
    divergence = -float((chances * ratios.sum(1)).sum())
    k2 = k3 = 0.0
    for outcome, chance in enumerate(chances.tolist()):
        mask = policies.mask[outcome : outcome + 1]
        found = batch_gain(batch_sums(ratios[outcome : outcome + 1], torch.ones(1), mask=mask))
        k2 += chance * found.nats_k2 * int(mask.sum())
        k3 += chance * found.nats_k3 * int(mask.sum())
    assert k3 == pytest.approx(divergence, rel=1e-9)
    assert k2 == pytest.approx(divergence, rel=0.05)


def test_nats_are_means_over_tokens_and_unknown_without_them() -> None:
    ratios = torch.tensor([[0.2, -0.4], [0.1, math.nan]])
    mask = torch.tensor([[1, 1], [1, 0]])
    found = batch_gain(batch_sums(ratios, torch.tensor([1.0, -1.0]), mask=mask))
    assert found.left_out == 0  # what stands in the padding is not read
    assert found.nats_k2 == pytest.approx((0.04 + 0.16 + 0.01) / 6)
    k3 = [math.expm1(ratio) - ratio for ratio in (0.2, -0.4, 0.1)]
    assert found.nats_k3 == pytest.approx(sum(k3) / 3)
    whole = batch_gain(batch_sums(torch.tensor([-0.2, 0.1]), torch.tensor([1.0, -1.0])))
    assert math.isnan(whole.nats_k2)
    assert math.isnan(whole.nats_k3)
    assert whole.gain.value == pytest.approx(found.gain.value)


def test_a_completion_without_tokens_informs_nobody() -> None:
    ratios, mask = torch.zeros(3, 2), torch.tensor([[1, 1], [1, 0], [0, 0]])
    found = batch_gain(batch_sums(ratios, torch.tensor([1.0, -1.0, 1.0]), mask=mask))
    assert (found.completions, found.informative) == (3, 2)


def test_the_effective_sample_size_counts_equal_weights() -> None:
    ratios = torch.tensor([0.0, 0.0, 0.0, -1e4])
    found = batch_gain(batch_sums(ratios, torch.tensor([1.0, 0.0, -1.0, 2.0])))
    assert found.ess == pytest.approx(3)
    assert found.mean_weight == pytest.approx(0.75)


# Where the weights cannot be used


def test_degenerate_weights_are_said_to_be_so_and_the_slope_holds() -> None:
    random = torch.Generator().manual_seed(0)
    tokens = 0.2 * torch.randn(128, 200, generator=random, dtype=torch.float64) - 0.02
    advantages = (tokens.sum(1) > tokens.sum(1).median()).double() - 0.5
    found = batch_gain(batch_sums(tokens, advantages, mask=torch.ones(128, 200)))
    assert found.ess < LEAST_SHARE * 128
    assert f"128 completions count as {found.ess:.1f}" in found.degenerate
    assert found.slope.z > 10
    assert found.nats_k2 == pytest.approx(0.02, rel=0.1)


def test_a_candidate_that_left_the_batch_is_said_to_have_done_so() -> None:
    # All weights are alike, so that the effective sample size alone sees nothing.
    ratios, advantages, groups = some_batch(5, 0.01)
    found = batch_gain(batch_sums(ratios - 50, advantages, groups))
    assert found.ess > 0.9 * len(ratios)
    assert "does not cover" in found.degenerate
    assert batch_gain(batch_sums(ratios, advantages, groups)).degenerate == ""


@pytest.mark.parametrize("far", [800.0, -800.0, 1e6, -1e6])
def test_extreme_ratios_overflow_nowhere(far: float) -> None:
    ratios, advantages, groups = some_batch(6, 0.5)
    near = batch_gain(batch_sums(ratios, advantages, groups))
    moved = batch_gain(batch_sums(ratios + far, advantages, groups))
    # A common factor of all weights is nothing to self-normalised ones, or to the slope.
    for name in ("gain", "slope"):
        one, two = getattr(near, name), getattr(moved, name)
        assert (two.value, two.error) == pytest.approx((one.value, one.error), rel=1e-6, abs=1e-9)
    assert moved.ess == pytest.approx(near.ess, rel=1e-6)
    mixed = ratios.clone()
    mixed[::3] += far
    tokens = torch.stack([mixed, torch.zeros_like(mixed)], 1)
    assert moved.degenerate
    for found in (moved, batch_gain(batch_sums(tokens, advantages, groups, torch.ones(48, 2)))):
        figures = [f.value for f in (found.gain, found.plain, found.slope)]
        figures += [f.error for f in (found.gain, found.plain, found.slope)]
        assert all(math.isfinite(figure) for figure in [*figures, found.mean_weight, found.ess])
    assert math.isfinite(found.nats_k3)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    ratios, advantages, groups = some_batch(7, 0.3)
    known = batch_gain(batch_sums(ratios, advantages, groups))
    bad = torch.tensor([math.nan, math.inf, -math.inf, 0.0], dtype=torch.float64)
    more = torch.cat([ratios, bad]), torch.cat([advantages, torch.tensor([1.0, 1.0, 1.0, math.nan])])
    found = batch_gain(batch_sums(*more, torch.cat([groups, torch.tensor([0, 1, 2, 99])])))
    assert found.left_out == 3  # an advantage that is not finite is no fault of the candidate's
    expected = replace(known, left_out=3, nats_k2=found.nats_k2, nats_k3=found.nats_k3)
    assert astuple(found) == astuple(expected)  # of tuples, since NaN is equal to itself in them
    tokens = torch.tensor([[0.2, -math.inf], [0.2, -0.4]])
    token = batch_gain(batch_sums(tokens, torch.ones(2), mask=torch.ones(2, 2)))
    assert (token.left_out, token.completions) == (1, 1)
    assert token.nats_k2 == pytest.approx((0.04 + 0.16) / 4)  # nor do its finite tokens count


@pytest.mark.parametrize("groups", [None, torch.zeros(0, dtype=torch.long)])
@pytest.mark.parametrize("tokens", [False, True])
def test_an_empty_batch_knows_nothing(groups: Tensor | None, tokens: bool) -> None:
    shape = (0, 5) if tokens else (0,)
    found = batch_gain(
        batch_sums(torch.zeros(shape), torch.zeros(0), groups, torch.ones(shape) if tokens else None)
    )
    assert (found.completions, found.groups, found.ess, found.degenerate) == (0, 0, 0.0, "")
    for estimate in (found.gain, found.plain, found.slope):
        assert estimate == Estimate(0.0, math.inf)
        assert estimate.z == 0.0
    assert math.isnan(found.nats_k2)


def test_without_informative_completions_nothing_is_certain() -> None:
    ratios, _, groups = some_batch(8, 0.3)
    found = batch_gain(batch_sums(ratios, torch.zeros(48), groups))
    assert found.informative == 0
    assert found.gain == Estimate(
        0.0, math.inf
    )  # not 0 +- 0: a candidate that ruins the policy would look safe
    assert found.gain.z == 0.0


def test_one_prompt_has_no_error() -> None:
    ratios, advantages, _ = some_batch(9, 0.3)
    found = batch_gain(batch_sums(ratios, advantages, torch.zeros(48, dtype=torch.long)))
    assert found.gain.value != 0.0
    assert found.gain.error == math.inf
    assert found.gain.z == 0.0


def test_staying_put_gains_nothing_for_certain() -> None:
    _, advantages, groups = some_batch(10, 0.3)
    found = batch_gain(batch_sums(torch.zeros(48), advantages, groups))
    assert found.gain == found.plain == found.slope == Estimate(0.0, 0.0)
    assert found.gain.z == 0.0
    assert found.ess == 48
    assert Estimate(-1.0, 0.0).z == -math.inf


def test_half_precision_is_widened_before_anything_is_summed() -> None:
    tokens = torch.full((4, 300), 0.01, dtype=torch.bfloat16)
    found = batch_gain(batch_sums(tokens, torch.tensor([1.0, -1.0, 1.0, 1.0]), mask=torch.ones(4, 300)))
    assert math.log(found.mean_weight) == pytest.approx(300 * float(tokens[0, 0]))


@pytest.mark.parametrize(
    "shapes",
    [
        ((3,), (4,), None, None),
        ((3,), (3, 1), None, None),
        ((3,), (3,), (2,), None),
        ((3,), (3,), None, (3,)),
        ((3, 2), (3,), None, None),
        ((3, 2), (3,), None, (3, 1)),
        ((3, 2), (3,), None, (2, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...] | None, ...]) -> None:
    with pytest.raises(ValueError, match="need advantages"):
        batch_sums(*(None if shape is None else torch.zeros(shape) for shape in shapes))  # type: ignore[arg-type]


# Several processes


def flat(found: BatchGain) -> list[float]:
    """All numbers of a result."""
    estimates = [x for e in (found.gain, found.plain, found.slope) for x in (e.value, e.error)]
    counts = [found.completions, found.groups, found.left_out, found.informative, found.informative_groups]
    return [
        *estimates,
        *counts,
        found.ess,
        found.mean_weight,
        found.nats_k2,
        found.nats_k3,
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 1000), st.sampled_from([0.1, 2.0, 300.0]), st.integers(1, 5), st.booleans(), st.booleans()
)
def test_a_batch_may_be_split_in_any_way(
    seed: int, size: float, processes: int, grouped: bool, damaged: bool
) -> None:
    ratios, advantages, groups = some_batch(seed, size)
    random = torch.Generator().manual_seed(seed)
    tokens = ratios[:, None] * torch.randn(48, 3, generator=random)
    mask = torch.rand(48, 3, generator=random) < 0.7
    if damaged:
        tokens[::5] = math.nan
        advantages[1] = math.inf
    owner = torch.randint(
        processes, (48,), generator=random
    )  # prompts are cut through, some parts may be empty

    def part(rows: Tensor) -> BatchSums:
        return batch_sums(tokens[rows], advantages[rows], groups[rows] if grouped else None, mask[rows])

    whole = part(torch.arange(48))
    parts = [part((owner == process).nonzero().flatten()) for process in range(processes)]
    for merged in (merge(parts), merge([merge(parts[:2]), *parts[2:]])):
        assert flat(batch_gain(merged)) == pytest.approx(
            flat(batch_gain(whole)), rel=1e-9, abs=1e-9, nan_ok=True
        )


def test_parts_must_agree_on_whether_prompts_have_names() -> None:
    ratios, advantages, groups = some_batch(0, 0.1)
    with pytest.raises(ValueError, match="all parts"):
        merge([batch_sums(ratios, advantages, groups), batch_sums(ratios, advantages)])
    empty = batch_sums(torch.zeros(0), torch.zeros(0))
    named = batch_sums(ratios, advantages, groups)
    assert batch_gain(merge([empty, named])).gain == batch_gain(named).gain


def test_an_error_that_is_not_known_makes_nothing_certain() -> None:
    assert Estimate(1.0, 0.0).z == math.inf
    assert Estimate(0.0, 0.0).z == 0.0
    assert Estimate(1.0, math.inf).z == 0.0
    assert math.isnan(Estimate(1.0, math.nan).z)
    assert math.isnan(Estimate(math.nan, 0.5).z)
    assert math.isnan(Estimate(math.nan, 0.0).z)


def test_texts_that_are_left_out_or_have_no_tokens_take_no_part_in_the_likelihood() -> None:
    mask, ratios = torch.ones(5, 10), torch.full((5, 10), 0.1)
    three = likelihood_gain(ratios[:3], mask[:3])
    assert three.nats_k2 == pytest.approx(0.1**2 / 2)
    ratios[3], mask[4] = -math.inf, 0.0
    found = likelihood_gain(ratios, mask)
    assert (found.completions, found.left_out) == (3, 1)
    for name in ("gain", "nats_k2", "nats_k3"):
        assert getattr(found, name) == getattr(three, name)
    nothing = likelihood_gain(ratios, torch.zeros(5, 10))
    assert (nothing.completions, nothing.left_out, nothing.gain.error) == (0, 0, math.inf)
