"""What the precision of a model's passes hides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nextrl.engines.precision import of_model, resolution

HALF, SINGLE = resolution(torch.float16), resolution(torch.float32)


def model(dtype: torch.dtype, cuda: bool = False) -> Any:
    weight = SimpleNamespace(dtype=dtype, is_cuda=cuda)
    return SimpleNamespace(parameters=lambda: iter([weight, SimpleNamespace(dtype=torch.int8, is_cuda=cuda)]))


@pytest.mark.parametrize(
    ("dtype", "mixed", "wanted"),
    [
        (torch.float32, None, SINGLE),
        (torch.float32, "no", SINGLE),
        (torch.float32, "bf16", resolution(torch.bfloat16)),
        (torch.float32, "fp16", HALF),
        (torch.bfloat16, "no", resolution(torch.bfloat16)),
    ],
)
def test_the_coarsest_of_weights_and_autocast_counts(
    dtype: torch.dtype, mixed: str | None, wanted: float
) -> None:
    assert of_model(model(dtype), mixed) == wanted


@pytest.mark.parametrize("name", ["allow_tf32", "fp32_precision"])
def test_tf32_on_a_gpu_has_as_many_digits_as_half_precision(name: str) -> None:
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, name):
        pytest.skip("torch before 2.9")
    before = getattr(matmul, name)
    on, off = (True, False) if name == "allow_tf32" else ("tf32", "ieee")
    try:
        setattr(matmul, name, on)
        assert of_model(model(torch.float32, cuda=True)) == HALF
        assert of_model(model(torch.float32)) == SINGLE
        setattr(matmul, name, off)
        assert of_model(model(torch.float32, cuda=True)) == SINGLE
    finally:
        setattr(matmul, name, before)
