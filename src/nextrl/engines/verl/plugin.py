"""verl's plugin (entry point `verl.plugins`): `trainer.v1.trainer_mode=nextrl` names a trainer.

verl loads its plugins at every `import verl`, in each of its processes, before most of verl can be imported. So nothing
is imported here: the trainer's name is registered as soon as verl's own trainers are there, and what stands behind it
is imported where a run asks for it. A run that does not ask is a plain run of verl.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nextrl.errors import needs

TRAINERS = "verl.trainer.ppo.v1"
"""The package whose trainers are chosen from by `trainer.v1.trainer_mode` (read in verl 0.9.1)."""

MODE = "nextrl"


class _Registration(importlib.abc.MetaPathFinder):
    """Waits for verl's trainers to be imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TRAINERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        loader.exec_module = execute_and_register
        return spec


def register(trainers: Any) -> None:
    """Register the mode with verl's trainers.

    Args:
        trainers: the module `verl.trainer.ppo.v1`.
    """

    class NextrlTrainer(trainers.PPOTrainerSync):
        """Stands for `nextrl.engines.verl.trainer.LeapTrainer`, which is imported when a run begins."""

        def __new__(cls, config: Any) -> Any:
            with needs("verl", "trainer.v1.trainer_mode=nextrl"):
                from nextrl.engines.verl.trainer import LeapTrainer

            return LeapTrainer(config)

    trainers.register_trainer(MODE)(NextrlTrainer)


def install() -> None:
    """Register now where verl's trainers are imported already, otherwise as soon as they are."""
    if TRAINERS in sys.modules:
        register(sys.modules[TRAINERS])
    else:
        sys.meta_path.insert(0, _Registration())


install()
