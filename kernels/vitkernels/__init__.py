"""Fused Triton kernels for vision transformers, each with an eager PyTorch reference."""

__all__: list[str] = []
