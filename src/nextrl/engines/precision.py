"""What the precision of a model's passes hides of a small change of its policy."""

from __future__ import annotations

import torch


def resolution(*dtypes: torch.dtype) -> float:
    """Nats per token below which a divergence does not show, in passes of the least precise of these.

    The square of a log-probability's last digit, halved: 3e-5 in bfloat16, 7e-15 in float32.
    """
    return max(float(torch.finfo(dtype).eps) ** 2 / 2 for dtype in dtypes)


def of_model(model: torch.nn.Module, mixed: str | None = None) -> float:
    """The resolution of a model's passes.

    Args:
        mixed: the precision that they are autocast to, as accelerate names it ("bf16", "fp16", "no").
    """
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    if cast := {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed or "no"):
        dtypes.add(cast)
    if any(p.is_cuda for p in model.parameters()) and _tf32():
        dtypes.add(torch.float16)  # which has as many digits
    return resolution(*dtypes)


def _tf32() -> bool:
    """Whether CUDA multiplies float32 matrices in TF32."""
    matmul = torch.backends.cuda.matmul
    # Since torch 2.9 the older name raises where the newer one was set.
    newer = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32 if newer is None else newer == "tf32")
