"""verl's plugin (entry point `verl.plugins`): `trainer.v1.trainer_mode=nextrl` names a trainer.

verl loads its plugins at every `import verl`, in each of its processes, before most of verl can be imported. So nothing
is imported here: a few of verl's modules are completed as soon as they are there, and what stands behind the trainer's
name is imported where a run asks for it. A run that does not ask is a plain run of verl.

The name has to be refused where nothing reads it, and what cannot work before Ray is started. All of verl's trainers
are begun through `run_ppo`, in the process that was started. Where its module is the program itself, nothing can be put
around it; but it asks another module for Ray's environment, right before it starts Ray.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from nextrl.errors import InputError, needs

TRAINERS = "verl.trainer.ppo.v1"
"""The package whose trainers are chosen from by `trainer.v1.trainer_mode` (read in verl 0.9.1)."""

BEGINS = {"verl.trainer.main_ppo": "run_ppo", "verl.trainer.constants_ppo": "get_ppo_ray_runtime_env"}
"""Module of verl -> its function that is called with the run's config before Ray is started."""

MODE = "nextrl"


class _Watch(importlib.abc.MetaPathFinder):
    """Waits for one of verl's modules to be imported, once.

    Args:
        name: the module.
        complete: what is to be done with it.
    """

    def __init__(self, name: str, complete: Callable[[Any], None]) -> None:
        self._name, self._complete = name, complete

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_complete(module: ModuleType) -> None:
            execute(module)
            self._complete(module)

        loader.exec_module = execute_and_complete
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


def check_first(module: Any) -> None:
    """Have what cannot work refused in one line before a function of verl's.

    Args:
        module: one of `BEGINS`.
    """
    name = BEGINS[module.__name__]
    begin = getattr(module, name)

    def checked(config: Any = None, *arguments: Any, **named: Any) -> Any:
        refuse(config)
        return begin(config, *arguments, **named)

    setattr(module, name, checked)


def refuse(config: Any) -> None:
    """End this process with one line where a run asks for nextrl and cannot have it.

    Args:
        config: verl's.

    Raises:
        SystemExit: see `options.check`. Hydra would put pages around any other exception.
    """
    trainer = getattr(config, "trainer", None)
    if getattr(getattr(trainer, "v1", None), "trainer_mode", None) != MODE:
        return
    import verl

    from nextrl.engines.verl.options import check
    from nextrl.engines.verl.process import REFUSED

    try:
        check(config, verl.__version__)
    except InputError as error:
        sys.exit(f"{REFUSED}{error}")


def install() -> None:
    """Complete verl's modules: now those that are imported already, the others as soon as they are."""
    # By name, when the module is there: what stands in for one of these functions is taken then.
    later: dict[str, Callable[[Any], None]] = {
        TRAINERS: lambda module: register(module),
        **dict.fromkeys(BEGINS, lambda module: check_first(module)),
    }
    for name, complete in later.items():
        if name in sys.modules:
            complete(sys.modules[name])
        else:
            sys.meta_path.insert(0, _Watch(name, complete))


install()
