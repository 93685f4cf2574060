"""Launches on tensors whose rows lie so far apart that their offsets need 64 bits, for test_compiled.py."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor
from vitkernels import Launch
from vitkernels.attention.blocks import PROGRAMS_WANTED
from vitkernels.attention.forward.plan import forward_calls
from vitkernels.runtime.call import Call

# The package's attributes of these names are functions.
bias = importlib.import_module("vitkernels.attention.bias")
relative = importlib.import_module("vitkernels.attention.relative")


def _far(batch: int, rows: int, row: int) -> Tensor:
    """[batch, 1, rows, 32] fp16 with so many elements from row to row."""
    return torch.empty_strided((batch, 1, rows, 32), (rows * row, 32, row, 1), dtype=torch.float16, device="meta")


def _bias_calls(keys: int, arch: int) -> list[Call]:
    q, k = _far(2, 16384, 1 << 17), _far(2, keys, 1 << 17)
    dense, lse = torch.empty((1, 16384, keys), device="meta"), torch.empty((2, 1, 16384), device="meta")
    return [
        *forward_calls(q, lse, q, k, k, dense, 0.2, arch, False),
        *bias.bias_backward_calls(q, k, k, dense, q, k, k, dense, q, lse, q, 0.2, arch),
    ]


def _relative_calls(arch: int) -> list[Call]:
    q = _far(PROGRAMS_WANTED, 196, 1 << 24)
    table, lse = torch.empty((27 * 27, 1), device="meta"), torch.empty((PROGRAMS_WANTED, 1, 196), device="meta")
    expanded = torch.empty((1, 196, 208), dtype=torch.float16, device="meta")
    return relative.relative_backward_calls(
        q, q, q, table, q, q, q, expanded, q, lse, q, 0.2, (14, 14), arch
    )  # fmt: skip


def audit_launches(arch: int) -> list[Launch]:
    problems = {"64-keys": _bias_calls(64, arch), "keys": _bias_calls(16384, arch), "relative": _relative_calls(arch)}
    return [
        call.audit("far", name, 32, 1) for name, calls in problems.items() for call in calls if "q_ptr" in call.args
    ]
