"""Every way known to step ahead along a training trajectory, one file per method.

Importing a method registers it, and the order of the imports below is the order of `names()`. How to write your own:
docs/extrapolators.md; how to check it: `nextrl.testing`.
"""

from nextrl.extrapolators import (  # noqa: F401  isort: skip  (imported to be registered)
    none,
    factors,
    secant,
    window,
    linear,
    first_update,
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
from nextrl.extrapolators.base import (
    Extrapolator,
    Tags,
    get,
    names,
    register,
    require,
    resolve,
    spacings_in,
    tags_of,
)
from nextrl.extrapolators.predictions import (
    CombinationOfCheckpoints,
    InsideFactors,
    NewDirection,
    Prediction,
    check_alpha,
)
from nextrl.trajectory.combinations import distinct_steps, nearest_step
from nextrl.trajectory.lowrank import LowRank

__all__ = [
    "CombinationOfCheckpoints",
    "Extrapolator",
    "InsideFactors",
    "LowRank",
    "NewDirection",
    "Prediction",
    "Tags",
    "check_alpha",
    "distinct_steps",
    "get",
    "names",
    "nearest_step",
    "register",
    "require",
    "resolve",
    "spacings_in",
    "tags_of",
]
