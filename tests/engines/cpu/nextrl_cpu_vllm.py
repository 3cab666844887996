"""vLLM on a CPU, as it is on a GPU: weights that are loaded a second time are the ones that it computes with.

vLLM 0.31 packs the weight of each linear layer for the CPU's kernels once the model is loaded, and drops the original
(`model_executor/layers/utils.py`, `dispatch_cpu_unquantized_gemm`). What a trainer sends afterwards then either does
not fit or is never looked at. Here the weight stays where it is, and torch's own linear reads it at every call.

vLLM calls `install` in each of its processes, by the entry point `vllm.general_plugins`.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Keep weights unpacked, and give vLLM's mapper of names the name that verl 0.9.1 knows it by."""
    from vllm.model_executor.layers import utils
    from vllm.model_executor.models.utils import WeightsMapper

    utils.dispatch_cpu_unquantized_gemm = _leave_unpacked
    # verl/utils/vllm/utils.py was written for vLLM 0.24, which called it so; TRL's tests do not need it.
    if not hasattr(WeightsMapper, "get_unstacked_mapper"):
        WeightsMapper.get_unstacked_mapper = WeightsMapper.get_rename_mapper


def _leave_unpacked(layer: Any, remove_weight: bool) -> None:
    """Stands in for `dispatch_cpu_unquantized_gemm`: the layer is called as cpu_linear(x, weight, bias)."""
    import torch

    layer.cpu_linear = torch.nn.functional.linear
