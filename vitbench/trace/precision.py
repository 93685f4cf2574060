"""What the names of dtypes mean: that of the weights, and that of autocast where there is one."""

from __future__ import annotations

import torch

#: Of parameters and input.
TORCH_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "amp": torch.float32,
    "amp-fp16": torch.float32,
}
AUTOCAST = {"amp": torch.bfloat16, "amp-fp16": torch.float16}

__all__ = ["AUTOCAST", "TORCH_DTYPES"]
