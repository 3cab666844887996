"""verl 0.9.1 on CPUs: a platform of that name (`VERL_PLATFORM=cpu`), over gloo.

verl imports this module in each of its processes, by the entry point `verl.plugins`. Ray is told that there is a GPU
(`ray.init(num_gpus=1)`), and hands it out; tensors stay on the CPU. Without `VERL_PLATFORM=cpu` only the name is
registered.

Where TRL is installed beside it, verl looks for a class that TRL 1.x no longer has, and dies
(`models/transformers/monkey_patch.py`, `apply_monkey_patch`). Here it is told that there is no TRL, so that one
environment serves the tests of both.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

NAME = "cpu"


class _Device(str):
    """The CPU as `.to(get_device_id())` wants it; 0 where a number of a device is written (`f"{name}:{id}"`)."""

    def __format__(self, spec: str) -> str:
        return "0"

    def __int__(self) -> int:
        return 0


def _torch_namespace() -> types.ModuleType:
    """What verl asks of `torch.<device>`: nothing to wait for, nothing to free, no memory to count."""
    module = types.ModuleType("torch_cpu_as_a_device")
    answers: dict[str, Any] = {
        "synchronize": None,
        "empty_cache": None,
        "ipc_collect": None,
        "set_device": None,
        "manual_seed": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "mem_get_info": (0, 0),
        "current_device": 0,
        "device_count": 1,
        "is_available": False,
        "get_device_name": NAME,
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *arguments, _answer=answer, **options: _answer)
    # A checkpoint of verl's holds the device's random state; a resume puts it back.
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state  # type: ignore[attr-defined]
    return module


@PlatformRegistry.register(platform=NAME)
class CPUPlatform(PlatformBase):
    """One CPU that Ray takes for a GPU."""

    device_name = vendor_name = NAME
    device_module = _torch_namespace()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return _asked_for()

    def current_device(self) -> Any:
        return _Device(NAME)

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def empty_cache(self) -> None: ...

    def set_allocator_settings(self, settings: str) -> None: ...

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield


def _asked_for() -> bool:
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == NAME


def _one_backend() -> None:
    """verl asks torch for "cpu:gloo,<device>:<backend>" (`utils/distributed.py`), which names the CPU twice here."""
    import torch.distributed as dist

    plain = dist.init_process_group

    def init_process_group(backend: str | None = None, *arguments: Any, **options: Any) -> Any:
        return plain("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *arguments, **options)

    dist.init_process_group = init_process_group


def _no_trl() -> None:
    import verl.utils.import_utils as installed

    installed.is_trl_available = lambda: False


def _flat_shards_too() -> None:
    """FSDP1 sends one process's weights to the others (`sync_module_states`), which gloo does on CPUs as well: torch
    only checks that they lie on a GPU."""
    import torch.distributed.fsdp._init_utils as fsdp

    fsdp._check_module_states_for_sync_module_states = lambda states: None


if _asked_for():
    # verl's engines are registered for cuda and npu; the name chooses the engine, not where tensors lie.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    _one_backend()
    _no_trl()
    _flat_shards_too()
