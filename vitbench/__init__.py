"""Benchmarks for vision transformers and convolution/attention hybrids."""

__version__ = "0.1.0"
