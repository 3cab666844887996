"""Tests on real engines (vLLM, DeepSpeed, verl with Ray), on CPUs; skipped where `make engines` did not put them."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NEEDED = {"vllm": "0.31.0+cpu", "deepspeed": "0.19.8", "ray": "2.58.0", "verl": "0.9.1", "trl": "1.16.0"}
"""What must be installed; a vLLM of that name is ours (tests/engines/cpu), whose weights can be written on a CPU."""

ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads stay where the tests beside them leave room
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def missing() -> str:
    """Why nothing here can run; empty where it can."""
    for name, wanted in NEEDED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
        if found != wanted:
            return f"{name} {found} is installed, not {wanted}"
    return ""


if not missing():
    # Before any of them is imported, and for the processes that tests start.
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lies here where an engine is missing; the ordinary suite has none of them."""
    why = missing()
    for item in items:
        if why and HERE in item.path.parents:
            item.add_marker(
                pytest.mark.skip(
                    reason=f"real engines: {why}; `make test-engines` runs these (docs/engines.md)"
                )
            )
