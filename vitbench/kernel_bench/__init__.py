"""Kernels beside eager PyTorch, SDPA, FlexAttention, torch.compile and cuDNN: `make kernels-bench`."""

from vitbench.kernel_bench.sweep import Finished, run

__all__ = ["Finished", "run"]
