"""Every way known to step ahead along a training trajectory, one file a method.

The imports below are the registry: their order is the order of `names()`. Write your own:
docs/extrapolators.md.
"""

from nextrl.extrapolators import (  # noqa: F401  isort: skip  (imported to be registered)
    none,
    factors,
    secant,
    window,
    linear,
    next,
    next_paper,
    relex,
    relex_pinned,
    rank1_linear,
    ols,
    lawa,
    ema,
    bema,
    rna,
    dmd,
    quadratic,
    alpharl,
    nowcast,
)
from nextrl.extrapolators.base import Extrapolator, Tags, get, names, register, require, resolve, tags_of
from nextrl.extrapolators.predictions import (
    CombinationOfCheckpoints,
    InsideFactors,
    NewDirection,
    Prediction,
    check_alpha,
)

__all__ = [
    "CombinationOfCheckpoints",
    "Extrapolator",
    "InsideFactors",
    "NewDirection",
    "Prediction",
    "Tags",
    "check_alpha",
    "get",
    "names",
    "register",
    "require",
    "resolve",
    "tags_of",
]
