"""Kernels beside eager PyTorch, SDPA, FlexAttention, torch.compile and cuDNN: `make kernels-bench`."""

from vitbench.kernel_bench.run import Finished, run

__all__ = ["Finished", "run"]
