"""What other weights would earn, judged on the batch that was sampled after a window: no completion is spent.

The batch sampled at theta_T, the weights at the end of a window, played no part in the window's displacement d. So
importance weights on it tell without bias what the candidate theta_T + alpha d earns; for alpha = -1, whether the start
was better. (The batch that d was trained on always speaks for d.) One forward pass for each candidate gives its
log-ratios. `docs/fresh-batch.md` says what is estimated and where it is biased.

Notation: completion i of n has the log-ratio lw_i = log pi_candidate - log pi_T (nats, summed over its own tokens), the
weight w_i = exp(lw_i) and the advantage A_i, as the trainer computed it (its unit is the unit of every gain here).
Completions of one prompt are not independent, so errors are clustered by prompt (Liang & Zeger 1986; second-hand), and
how many prompts say anything is taken as given: with e_g what prompt g adds to n times the figure, n_g its completions
and r = sum e_g / sum n_g over the m informative prompts, error = sqrt(m / (m - 1) sum (e_g - r n_g)^2 + the other
prompts' sum e_g^2) / n. Value over error is the t of the informative prompts alone where those are equally large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextrl.judge.few_samples import normal_of_t, t_of_normal

Statistic = Literal["gain", "plain", "slope"]
Vector = NDArray[Any]  # float64

LEAST_SHARE = 1 / 3
"""Effective sample size over n below which the weights have degenerated: docs/fresh-batch.md has the measurement."""
MEAN_WEIGHTS = (0.5, 2.0)
"""Mean weights beyond which they have, too: it is 1 in expectation, whatever the candidate is."""
_LARGEST = 300.0  # nats; exp of it, squared, is still a float64
_LARGEST_TOKEN = 60.0  # nats; a token's ratio counts as exp of this at most, but in the weights
_POWERS = {"w": 1, "wa": 1, "w2": 2}
"""Columns of `BatchSums` that hold a power of the weights, and which."""


@dataclass(frozen=True)
class BatchSums:
    """Sums over the completions of each prompt, from which everything follows; those of several processes add up.

    Attributes:
        shift: the largest lw, which every weight is divided by (weights beyond float64 stay exact); -inf if n is 0.
        groups: (G,) prompt ids, ascending; empty where every completion stands for itself.
        columns: name -> (G,).
    """

    shift: float
    groups: NDArray[Any]
    columns: Mapping[str, Vector]

    def total(self, column: str) -> float:
        """Sum of a column over all prompts."""
        return float(self.columns[column].sum())


@dataclass(frozen=True)
class Estimate:
    """A figure in units of the advantages and its standard error: infinite where the batch cannot tell.

    Attributes:
        value, error: see above.
        chance: what the error would be if the ratios of a prompt's completions were what they are and had nothing to do
            with the advantages. Weights are skewed: where one of eight answers is wrong, most of these have weights
            below 1, and few prompts seem to agree that they do. 0 where it is not known.
    """

    value: float
    error: float
    chance: float = 0.0

    @property
    def z(self) -> float:
        """Value over error; 0 where both are 0, NaN where either is."""
        if self.error != 0.0 or math.isnan(self.value):
            return self.value / (self.error or 1.0)
        return math.copysign(math.inf, self.value) if self.value else 0.0


@dataclass(frozen=True, kw_only=True)
class BatchGain:
    """What a batch says of one candidate.

    Attributes:
        gain: sum w_i A_i / sum w_i - mean A: self-normalised weights, error by the delta method (Owen, "Monte Carlo
            theory, methods and examples", 2013, 9.2; second-hand). A constant added to all A changes nothing; the
            bias is about -E[w^2 (A - gain)] / n for independent completions with E[A] = 0.
        plain: mean((w_i - 1) A_i) (Owen, 9.1): unbiased where A_i holds no baseline that depends on completion i.
        slope: mean((A_i - mean A) m_i), m_i the sum over the completion's tokens of ratio - 1: the gain to first order
            in each token (Kakade & Langford 2002, the surrogate of TRPO; second-hand). Given the tokens before, a
            ratio is 1 in expectation, so that m_i is 0, however long the completion, and the slope is unbiased where
            the weights degenerate. How good the first order is, is not known: it tells the direction, not how far.
            Where log-ratios came without tokens, m_i is lw_i, which is biased by -Cov(A, KL of a completion): where
            wrong answers are longer, it always speaks for going back. Do not judge long completions by it.
        completions, groups: n and G, those that entered.
        left_out: completions not counted, for a log-ratio that is not finite. A candidate that rules a sampled
            completion out (lw = -inf) shows here only, so any at all speak against it. Nor are those counted whose
            advantage is not finite, which is no candidate's fault.
        informative, informative_groups: completions with A != 0 (and tokens, where a mask was given); their prompts.
        ess: effective sample size (sum w)^2 / sum w^2 (Kong 1992, second-hand through Elvira, Martino & Robert,
            "Rethinking the effective sample size", 2022).
        mean_weight: mean w_i, 1 in expectation; far from it, the batch does not cover what the candidate would sample.
        nats_k2, nats_k3: KL(pi_T || candidate) per token, the means over tokens of l^2 / 2 and of exp(l) - 1 - l with l
            a token's log-ratio (Schulman, "Approximating KL divergence", 2020, second-hand): the first exact to second
            order, the second unbiased with a heavy tail. NaN where log-ratios came without tokens.
        degenerate: why gain and plain must not be used, only slope and nats; empty where they may.
    """

    gain: Estimate
    plain: Estimate
    slope: Estimate
    completions: int
    groups: int
    left_out: int
    informative: int
    informative_groups: int
    ess: float
    mean_weight: float
    nats_k2: float
    nats_k3: float
    degenerate: str

    @property
    def evidence(self) -> float:
        """How sure the candidate's gain is, on the scale of a standard normal: of the slope where weights degenerated.

        The error is itself estimated from few prompts, so that z is a t: 3 of 4 informative prompts is no 3 of 40. Nor
        can it be surer than `Estimate.chance` allows.
        """
        estimate = self.slope if self.degenerate else self.gain
        sure = normal_of_t(estimate.z, self.informative_groups - 1)
        most = abs(estimate.value) / estimate.chance if estimate.chance else math.inf
        return math.copysign(min(abs(sure), most), sure)

    def lower(self, errors: float) -> float:
        """A bound that the gain lies above with as much certainty as a normal's mean less so many standard errors."""
        estimate = self.slope if self.degenerate else self.gain
        by_prompt = t_of_normal(errors, self.informative_groups - 1) * estimate.error
        return estimate.value - max(by_prompt, errors * estimate.chance)


def batch_sums(
    log_ratios: Tensor, advantages: Tensor, groups: Tensor | None = None, mask: Tensor | None = None
) -> BatchSums:
    """What one process knows of one candidate.

    Args:
        log_ratios: (n, L) of tokens, or (n,) of whole completions, whose `BatchGain.slope` is biased; nats, any float
            type and device.
        advantages: (n,).
        groups: (n,) integers, the same for completions of one prompt, in every process.
        mask: (n, L), non-zero at a completion's own tokens; what stands elsewhere is not read.

    Raises:
        ValueError: the shapes do not fit.
    """
    n = (len(advantages),)
    shapes = [log_ratios.shape, advantages.shape, n if groups is None else groups.shape]
    if shapes != [n if mask is None else (*n, mask.shape[-1]), n, n] or (
        mask is not None and len(mask) != n[0]
    ):
        raise ValueError(
            "log-ratios (n,), or (n, L) with a mask (n, L), need advantages (n,) and groups (n,)"
        )
    lw, a = (t.detach().to("cpu", torch.float64) for t in (log_ratios, advantages))
    own = torch.zeros(*n, 0) if mask is None else mask.detach().cpu() != 0
    tokens = own.double() if mask is None else torch.where(own, lw, 0.0)
    lw = lw if mask is None else tokens.sum(1)
    keep = lw.isfinite() & a.isfinite()
    ruled_out = ~lw.isfinite()
    lw, a = torch.where(keep, lw, 0.0), torch.where(keep, a, 0.0)
    shift = float(lw[keep].max()) if keep.any() else -math.inf
    w = torch.where(keep, (lw - shift).exp(), 0.0)
    informs = keep & (a != 0) & (keep if mask is None else own.any(1))
    above = tokens.clamp_max(_LARGEST_TOKEN).expm1()
    m = lw if mask is None else torch.where(keep, above.sum(1), 0.0)
    rows = {"n": keep, "left out": ruled_out, "a": a, "a2": a * a, "m": m, "am": a * m, "m2": m * m}
    rows |= {"w": w, "wa": w * a, "w2": w * w, "informative": informs}
    for name, part in {"tokens": own, "k2": tokens.square() / 2, "k3": above - tokens}.items():
        rows[name] = torch.where(keep, part.sum(1), 0)
    named = np.empty(0) if groups is None else groups.detach().cpu().numpy()
    return _by_group(shift, named, {name: row.double().numpy() for name, row in rows.items()})


def merge(parts: Sequence[BatchSums]) -> BatchSums:
    """The sums of a batch from those of its parts, however it was split. ValueError where only some name prompts."""
    shift = max(part.shift for part in parts)
    scales = [math.exp(part.shift - shift) if part.shift > -math.inf else 0.0 for part in parts]
    scaled = {
        name: [p.columns[name] * s ** _POWERS.get(name, 0) for p, s in zip(parts, scales, strict=True)]
        for name in parts[0].columns
    }
    rows = {name: np.concatenate(several) for name, several in scaled.items()}
    groups = np.concatenate([part.groups for part in parts])
    if len(groups) not in (0, len(rows["n"])):
        raise ValueError("either all parts of a batch come with the ids of their prompts, or none does")
    return _by_group(shift, groups, rows)


def batch_gain(sums: BatchSums) -> BatchGain:
    """What the batch says of the candidate."""
    n, w, informs = sums.total("n"), sums.total("w"), sums.columns["informative"]
    ess, nats = w * w / (sums.total("w2") or 1.0), sums.total("tokens") or math.nan
    mean_weight = math.exp(min(sums.shift, _LARGEST)) * w / (n or 1.0)
    degenerate = ""
    if ess < LEAST_SHARE * n:
        degenerate = f"the weights have degenerated: {n:.0f} completions count as {ess:.1f}"
    elif n and not MEAN_WEIGHTS[0] <= mean_weight <= MEAN_WEIGHTS[1]:
        degenerate = f"the batch does not cover the candidate: its mean weight is {mean_weight:.2g}, not 1"
    return BatchGain(
        gain=_estimate(sums, "gain"),
        plain=_estimate(sums, "plain"),
        slope=_estimate(sums, "slope"),
        completions=round(n),
        groups=int((sums.columns["n"] > 0).sum()),
        left_out=round(sums.total("left out")),
        informative=round(float(informs.sum())),
        informative_groups=int((informs > 0).sum()),
        ess=ess,
        mean_weight=mean_weight,
        nats_k2=sums.total("k2") / nats,
        nats_k3=sums.total("k3") / nats,
        degenerate=degenerate,
    )


def likelihood_gain(log_ratios: Tensor, mask: Tensor) -> BatchGain:
    """What held-out texts say of a candidate: how much more likely it makes them, in nats per text (for SFT).

    Args:
        log_ratios: (n, L), log p_candidate - log p_T of tokens.
        mask: (n, L), non-zero at the tokens that count.
    """
    own = mask != 0
    tokens = torch.where(own, log_ratios.double(), 0.0)
    # A row without tokens is no text: neither a gain of 0 nor one that the candidate rules out.
    lw, texts = tokens.sum(1), own.any(1)
    keep = lw.isfinite() & texts
    n, left_out, count = int(keep.sum()), int((texts & ~keep).sum()), float(own[keep].sum()) or math.nan
    lw = lw[keep]
    error = float(lw.std() / math.sqrt(n)) if n > 1 else math.inf
    gain = Estimate(float(lw.mean()) if n else 0.0, error)
    k2, k3 = (
        float(x[keep].sum()) / count
        for x in (tokens.square() / 2, tokens.clamp_max(_LARGEST_TOKEN).expm1() - tokens)
    )
    return BatchGain(
        gain=gain,
        plain=gain,
        slope=gain,
        completions=n,
        groups=n,
        left_out=left_out,
        informative=n,
        informative_groups=n,
        ess=float(n),
        mean_weight=1.0,
        nats_k2=k2,
        nats_k3=k3,
        degenerate="",
    )


def _estimate(sums: BatchSums, statistic: Statistic) -> Estimate:
    """A figure with its error."""
    c, n = sums.columns, sums.total("n")
    if n == 0:
        return Estimate(0.0, math.inf)
    # What each prompt adds to n times the figure, and its completions' sum of (w - 1)^2, of m^2 for the slope.
    a, m, w = sums.total("a") / n, sums.total("m") / n, sums.total("w") / n
    if statistic == "gain":
        weighted = sums.total("wa") / n / w
        terms = (c["wa"] - weighted * c["w"]) / w - (c["a"] - weighted * c["n"])
        value, squares = weighted - a, c["w2"] / w**2 - 2 * c["w"] / w + c["n"]
    elif statistic == "plain":
        scale = math.exp(min(sums.shift, _LARGEST))
        terms, squares = scale * c["wa"] - c["a"], scale**2 * c["w2"] - 2 * scale * c["w"] + c["n"]
        value = float(terms.sum()) / n
    else:
        terms = c["am"] - a * c["m"] - m * (c["a"] - a * c["n"])
        value, squares = float(terms.sum()) / n, c["m2"] - 2 * m * c["m"] + m**2 * c["n"]
    informs = c["informative"] > 0
    prompts = int(informs.sum())
    if prompts < 2:
        return Estimate(value, math.inf)
    mean = terms[informs].sum() / c["n"][informs].sum()
    off = np.where(informs, math.sqrt(prompts / (prompts - 1)) * (terms - mean * c["n"]), terms)
    centred = c["a2"] - 2 * a * c["a"] + a**2 * c["n"]
    chance = float((centred * squares.clip(0.0) / c["n"].clip(1.0)).sum())
    return Estimate(value, _length(off) / n, math.sqrt(max(chance, 0.0)) / n)


def _length(vector: Vector) -> float:
    """Its Euclidean norm, also of numbers whose squares float64 cannot hold."""
    most = float(np.abs(vector).max()) or 1.0
    return most * float(np.linalg.norm(vector / most))


def _by_group(shift: float, groups: NDArray[Any], rows: Mapping[str, Vector]) -> BatchSums:
    """Rows of one prompt added up."""
    if not len(groups):
        return BatchSums(shift, groups, rows)
    ids, index = np.unique(groups, return_inverse=True)
    return BatchSums(shift, ids, {name: np.bincount(index, row, len(ids)) for name, row in rows.items()})
