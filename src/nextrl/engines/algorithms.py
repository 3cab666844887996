"""RLVR algorithms by name, each through TRL's own trainer: what is set, where it comes from, what the paper has more.

An algorithm is a trainer class, its config class and the few options that make it that algorithm; everything else
(batch, rate, LoRA, seed) is `TrainSettings`. TRL is imported when a class is asked for: names and options are known
without it. Two kinds:

- on-policy (one optimizer step per rollout batch): every importance ratio is 1 and no clip ever acts, so what differs
  is how advantages and lengths are normalised: grpo, dr_grpo, rloo, reinforce_plus_plus;
- those whose point is the ratio or its clip (dapo, gspo, cispo): two optimizer steps per rollout batch, which is then
  twice as large (`steps_per_generation=2`), so that completions per step stay the same and every second step is
  off-policy. The papers take 4 to 16 steps; with 2, a leap at an even step never throws rollouts away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from nextrl.errors import needs
from nextrl.registry import Registry


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
        name: as written in `TrainSettings.algorithm`.
        trainer_class: the trainer, by its name in TRL or as a class.
        config_class: that trainer's config, likewise.
        options: keyword arguments of `config` that make it this algorithm.
        reference: the paper.
        differs: what the paper has and this does not; empty where nothing is known to be missing.
    """

    name: str
    trainer_class: str | type[Any]
    config_class: str | type[Any]
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""

    @property
    def trainer(self) -> type[Any]:
        """The trainer's class.

        Raises:
            MissingExtra: TRL is not installed.
        """
        return _resolved(self.trainer_class)

    @property
    def config(self) -> type[Any]:
        """The class of the trainer's config.

        Raises:
            MissingExtra: TRL is not installed.
        """
        return _resolved(self.config_class)

    @property
    def steps_per_generation(self) -> int:
        """Optimizer steps that one rollout batch serves."""
        return int(self.options.get("steps_per_generation", 1))


def _resolved(named: str | type[Any]) -> type[Any]:
    if isinstance(named, type):
        return named
    with needs("trl", "training through TRL"):
        import trl

        found: type[Any] = getattr(trl, named)  # TRL loads it only now
    return found


_ALGORITHMS: Registry[Algorithm] = Registry("algorithm")
names, get = _ALGORITHMS.names, _ALGORITHMS.get


def register(algorithm: Algorithm) -> None:
    """Make an algorithm known under its name."""
    _ALGORITHMS.add(algorithm.name, algorithm)


def _trl(family: str, name: str, reference: str, differs: str = "", **options: Any) -> None:
    settings = MappingProxyType({"beta": 0.0, **options})
    register(Algorithm(name, f"{family}Trainer", f"{family}Config", reference, settings, differs))


_grpo, _rloo = partial(_trl, "GRPO"), partial(_trl, "RLOO")
_grpo("grpo", "2402.03300", "no KL term (beta 0)", loss_type="grpo")
_grpo("dr_grpo", "2503.20783", loss_type="dr_grpo", scale_rewards="none")
_grpo(
    "dapo",
    "2503.14476",
    "no dynamic sampling; truncated completions are masked, not punished by length; 2 steps per rollout batch, not 16",
    loss_type="dapo",
    epsilon=0.2,
    epsilon_high=0.28,
    mask_truncated_completions=True,
    steps_per_generation=2,
)
# The paper's clip (section 5.1 of its second version, second-hand): a sequence's ratio is a geometric mean, so the
# clip is narrow.
_grpo(
    "gspo",
    "2507.18071",
    "2 steps per rollout batch, not 4",
    loss_type="grpo",
    importance_sampling_level="sequence",
    epsilon=3e-4,
    epsilon_high=4e-4,
    steps_per_generation=2,
)
# MiniMax-M1 gives no number for its upper bound; 5 is ScaleRL's (2510.13786). TRL clamps the ratio itself at it.
_grpo(
    "cispo",
    "2506.13585",
    "the bound on the ratio is ScaleRL's 5; 2 steps per rollout batch, not 16",
    loss_type="cispo",
    epsilon_high=5.0,
    steps_per_generation=2,
)
_rloo("rloo", "2402.14740", "no KL term (beta 0)")
# Leave-one-out is k/(k - 1) times "minus the group's mean", and dividing by the batch's deviation removes that factor:
# these are REINFORCE++-baseline's advantages exactly, from TRL's own RLOO trainer.
_rloo(
    "reinforce_plus_plus",
    "2501.03262",
    "the paper's variant with a group baseline; log-probabilities summed over a completion, not averaged over the "
    "batch's tokens; no KL term",
    normalize_advantages=True,
)
