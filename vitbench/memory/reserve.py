"""What a process takes on a GPU beside torch's allocator: CUDA's context, with the code of kernels. Imports no torch.

Torch prints, when memory runs out, what the process holds on the device and what of that is its allocator's; the rest
is the context. The median of public reports is what predictions reserve.
"""

from __future__ import annotations

from statistics import median

#: (card, GiB of the process, GiB allocated, MiB reserved and not allocated, report on GitHub)
REPORTS = (
    ("A100 80GB", 16.54, 15.94, 205.65, "HiDream-ai/VAREdit#6"),
    ("A100 40GB", 14.25, 12.87, 912.01, "TianheWu/CoSeR#10"),
    ("A10", 21.91, 21.69, 1.55, "zai-org/CogVLM#236"),
    ("RTX 3090", 20.50, 20.02, 187.61, "bytedance/X-Portrait#7"),
    ("RTX 4090", 14.56, 13.86, 213.20, "3DTopia/Phidias-Diffusion#8"),
    ("RTX 4090", 22.69, 21.72, 520.54, "pinokiofactory/flux-webui#11"),
    ("RTX 4090", 21.61, 21.16, 11.05, "Soul-AILab/SoulX-FlashTalk#5"),
    ("L40", 11.13, 10.25, 394.50, "NVlabs/Eagle#68"),
    ("L40S", 44.29, 43.88, 0.57, "stepfun-ai/Step-Video-T2V#8"),
    ("RTX 6000 Ada", 44.40, 43.94, 41.95, "DINGYANB/MTVCrafter#21"),
    ("RTX 5090", 26.89, 25.95, 343.86, "TrajectoryCrafter/TrajectoryCrafter#20"),
    ("RTX 5090", 31.34, 30.74, 19.41, "Wan-Video/Wan2.1#465"),
)


def contexts_mib() -> list[float]:
    """MiB of the context in each report."""
    return [1024 * (process - allocated) - cached for _, process, allocated, cached, _ in REPORTS]


CONTEXT_MIB = round(median(contexts_mib()))

SOURCE = (
    f"context {CONTEXT_MIB} MiB: median of {len(REPORTS)} public out-of-memory reports "
    f"({min(contexts_mib()):.0f} to {max(contexts_mib()):.0f}); cache: the caching allocator, replayed"
)

__all__ = ["CONTEXT_MIB", "REPORTS", "SOURCE", "contexts_mib"]
