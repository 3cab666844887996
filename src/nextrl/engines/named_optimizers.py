"""The optimizers that a config can name, in one table: what each is called, what it needs, what builds it.

Whatever else knows an optimizer by its name asks here: the config's check and its description, the demo's controls, the
report, a run that is taken up again. A package is imported when an optimizer is built, so names are known without it.
What a trainer's optimizer must be for a leap to stay under it is another question (`optimizers.py`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextrl.errors import EXTRAS, needs, require
from nextrl.registry import Registry

if TYPE_CHECKING:
    import torch

Builder = Callable[[Any, list[Any], float], "torch.optim.Optimizer"]
"""(the imported `module`, the trainable parameters, the learning rate) -> the optimizer over them."""

DEFAULT = "adamw"


@dataclass(frozen=True)
class Optimizer:
    """One optimizer.

    Attributes:
        name: as written in `TrainSettings.optimizer`; the demo's arm is called the same.
        label: what a reader sees.
        builder: what makes it; None leaves that to the trainer, whose own is AdamW.
        rate_free: it finds its own learning rate: the config's is not read, and nothing else may move the rate.
        module: what is imported before it is built.
        extra: the extra that brings `module`, a key of `EXTRAS`; None for what the base install has.
        cannot_resume: why a run cannot be gone on with; empty where it can.
    """

    name: str
    label: str
    builder: Builder | None = None
    rate_free: bool = False
    module: str = "torch"
    extra: str | None = None
    cannot_resume: str = ""

    def check_installed(self) -> None:
        """Refuse before anything is written or trained.

        Raises:
            MissingExtra: its package is not installed.
        """
        if self.extra is not None:
            require(self.module, self.extra, self._feature)

    def build(self, model: Any, learning_rate: float) -> torch.optim.Optimizer | None:
        """The optimizer over what a model trains; None leaves it to the trainer.

        Args:
            model: its parameters with `requires_grad` are optimized.
            learning_rate: the config's, which a rate-free optimizer does not read.

        Raises:
            MissingExtra: its package is not installed.
        """
        if self.builder is None:
            return None
        parameters = [p for p in model.parameters() if p.requires_grad]
        if self.extra is None:
            return self.builder(importlib.import_module(self.module), parameters, learning_rate)
        with needs(self.extra, self._feature):
            package = importlib.import_module(self.module)
        return self.builder(package, parameters, learning_rate)

    @property
    def _feature(self) -> str:
        return f"optimizer '{self.name}'"


_OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
names, get = _OPTIMIZERS.names, _OPTIMIZERS.get


def register(optimizer: Optimizer) -> None:
    """Make an optimizer known under its name.

    Raises:
        ValueError: its extra does not bring its module, so that nobody could be told what to install.
    """
    if optimizer.extra is not None and optimizer.module not in EXTRAS.get(optimizer.extra, {}):
        raise ValueError(
            f"optimizer {optimizer.name}: EXTRAS in nextrl.errors has no module {optimizer.module} under "
            f"{optimizer.extra}: add it there, and its package to pyproject.toml"
        )
    _OPTIMIZERS.add(optimizer.name, optimizer)


def rate_free() -> list[Optimizer]:
    """Those that find their own learning rate, in the order they were registered."""
    return [found for found in map(get, names()) if found.rate_free]


def modules() -> set[str]:
    """Every module that an optimizer comes from."""
    return {get(name).module for name in names()}


def _prodigy(prodigyplus: Any, parameters: list[Any], learning_rate: float) -> torch.optim.Optimizer:
    del learning_rate
    # It prints what it made of its own defaults; on stdout, where `--json` promises one object.
    with contextlib.redirect_stdout(io.StringIO()):
        made: torch.optim.Optimizer = prodigyplus.ProdigyPlusScheduleFree(parameters)
    return made


def _mechanic(mechanic: Any, parameters: list[Any], learning_rate: float) -> torch.optim.Optimizer:
    import torch

    del learning_rate  # 1: Mechanic scales the steps of the optimizer inside it
    made: torch.optim.Optimizer = mechanic.mechanize(torch.optim.AdamW)(parameters, lr=1.0, weight_decay=0.0)
    return made


# The rate-free ones are the demo's controls, in this order (docs/design.md, what was tried).
register(Optimizer(DEFAULT, "AdamW"))
register(
    Optimizer(
        "prodigy-schedulefree",
        "Prodigy + schedule-free",
        _prodigy,
        rate_free=True,
        module="prodigyplus",
        extra="rivals",
    )
)
register(
    Optimizer(
        "mechanic",
        "Mechanic around AdamW",
        _mechanic,
        rate_free=True,
        module="mechanic_pytorch",
        extra="rivals",
        cannot_resume="mechanic-pytorch loses its state when it is saved",
    )
)
