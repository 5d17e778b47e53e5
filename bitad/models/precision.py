"""What networks compute in: single precision, or a half one where that does no harm."""

from __future__ import annotations

import torch

from bitad.config_types import Precision

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within, matrix products and convolutions of this thread are done in a precision; weights are left as they are."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
