"""Launches of Liger's kernels (linkedin/Liger-Kernel), as its launchers make them. Needs the extra `truth`."""

from __future__ import annotations

from collections.abc import Mapping

import triton
from vitkernels import Launch

from vitbench.audit.truth.points import Point

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def launch(point: Point) -> Launch:
    """The launch of a point whose kernel is Liger's.

    Raises: ImportError without liger-kernel; KeyError for a kernel that is not described here.
    """
    return _LAUNCHES[point.kernel](point)


def _settings(columns: int) -> tuple[int, int]:
    """Block size and warps by the row's length, as `liger_kernel.ops.utils.calculate_settings` gives them."""
    from liger_kernel.ops.utils import calculate_settings

    block, warps = calculate_settings(columns)
    return int(block), int(warps)


def _rows(point: Point) -> tuple[int, int, str, int, int, int]:
    """rows, columns, dtype, bytes of one matrix, block, warps."""
    rows, columns, dtype = point.size("rows"), point.size("columns"), point.sizes["dtype"]
    return rows, columns, dtype, rows * columns * _BYTES[dtype], *_settings(columns)


def _launch(point: Point, kernel: object, args: Mapping[str, object], rows: int, warps: int, moved: int) -> Launch:
    elements = rows * (point.size("columns") if "columns" in point.sizes else point.size("hidden"))
    return Launch(
        kernel=kernel, op=point.kernel.replace(" ", "_"), case=point.shape.replace(" ", "-"), pass_name="fwd",
        dtype=point.sizes["dtype"], args=args, grid=(rows,), num_warps=warps, elements=elements, bytes=moved,
    )  # fmt: skip


def _layer_norm(point: Point) -> Launch:
    from liger_kernel.ops.layer_norm import _layer_norm_forward_kernel

    rows, columns, dtype, matrix, block, warps = _rows(point)
    pointers = {f"{name}_ptr": f"*{dtype}" for name in ("Y", "X", "W", "B")} | {
        "Mean_ptr": "*fp32",
        "RSTD_ptr": "*fp32",
    }
    strides = {"Y_row_stride": columns, "X_row_stride": columns} | {
        f"{name}_row_stride": 1 for name in ("W", "B", "Mean", "RSTD")
    }
    args = {**pointers, **strides, "n_cols": columns, "eps": 1e-6, "BLOCK_SIZE": block}
    return _launch(point, _layer_norm_forward_kernel, args, rows, warps, 2 * matrix + 8 * rows)


def _rms_norm(point: Point) -> Launch:
    from liger_kernel.ops.rms_norm import _rms_norm_forward_kernel

    rows, columns, dtype, matrix, block, warps = _rows(point)
    args = {
        "Y_ptr": f"*{dtype}", "Y_row_stride": columns, "X_ptr": f"*{dtype}", "X_row_stride": columns,
        "W_ptr": f"*{dtype}", "W_row_stride": 1, "RSTD_ptr": "*fp32", "RSTD_row_stride": 1, "n_cols": columns,
        "eps": 1e-6, "offset": 0.0, "casting_mode": 0, "elementwise_affine": True, "BLOCK_SIZE": block,
    }  # fmt: skip
    return _launch(point, _rms_norm_forward_kernel, args, rows, warps, 2 * matrix + 4 * rows)


def _rope(point: Point) -> Launch:
    """32 query and 8 key heads, rotated in place; cosines and sines of a token are shared by its heads."""
    from liger_kernel.ops.rope import _triton_rope

    tokens, hidden, heads, key_heads = point.size("tokens"), point.size("hidden"), 32, 8
    dim = hidden // heads
    args = {
        "q_ptr": "*bf16", "q_row_stride": heads * dim, "k_ptr": "*bf16", "k_row_stride": key_heads * dim,
        "cos": "*bf16", "cos_row_stride": dim, "sin": "*bf16", "sin_row_stride": dim, "sl": tokens, "bs": 1,
        "cos_bs": 1, "n_qh": heads, "n_kh": key_heads, "hd": dim, "pad_n_qh": heads, "pad_n_kh": key_heads,
        "pad_hd": triton.next_power_of_2(dim), "pad_rd": triton.next_power_of_2(dim), "rd": dim, "BLOCK_SIZE": heads,
        "BACKWARD_PASS": False,
    }  # fmt: skip
    moved = 2 * 2 * tokens * (heads + key_heads) * dim + 2 * tokens * dim * 2 // 2
    return _launch(point, _triton_rope, args, tokens, 4, moved)


def _relu_squared(point: Point) -> Launch:
    from liger_kernel.ops.relu_squared import _relu_squared_forward_kernel

    rows, columns, dtype, matrix, block, warps = _rows(point)
    args = {
        "Y_ptr": f"*{dtype}", "Y_stride": columns, "X_ptr": f"*{dtype}", "X_stride": columns, "n_cols": columns,
        "BLOCK_SIZE": block,
    }  # fmt: skip
    return _launch(point, _relu_squared_forward_kernel, args, rows, warps, 2 * matrix)


def _relu_squared_backward(point: Point) -> Launch:
    from liger_kernel.ops.relu_squared import _relu_squared_backward_kernel

    rows, columns, dtype, matrix, block, warps = _rows(point)
    names = ("dX", "dY", "X")
    pointers, strides = {f"{n}_ptr": f"*{dtype}" for n in names}, {f"{n}_stride": columns for n in names}
    args = {**pointers, **strides, "n_cols": columns, "BLOCK_SIZE": block}
    return _launch(point, _relu_squared_backward_kernel, args, rows, warps, 3 * matrix)


def _tvd(point: Point) -> Launch:
    """Total variation distance, averaged over the batch, with its gradient."""
    from liger_kernel.ops.tvd import MAX_FUSED_SIZE, _tv_distance_kernel, get_num_warps

    rows, columns, dtype, matrix, _, _ = _rows(point)
    block = min(MAX_FUSED_SIZE, triton.next_power_of_2(columns))
    args = {
        "p_ptr": f"*{dtype}", "p_stride": columns, "q_ptr": f"*{dtype}", "q_stride": columns, "loss_ptr": "*fp32",
        "loss_stride": 1, "grads_ptr": f"*{dtype}", "grads_stride": columns, "label_ptr": "*fp32",
        "ignore_index": -100, "n_cols": columns, "scale": 1 / rows, "BLOCK_SIZE": block, "HAS_LABEL": False,
        "reduction": 3,
    }  # fmt: skip
    return _launch(point, _tv_distance_kernel, args, rows, get_num_warps(block), 3 * matrix)


def _swiglu(point: Point) -> Launch:
    """silu(gate) * up of one tensor that holds both, as Megatron has them."""
    from liger_kernel.ops.swiglu import _swiglu_fused_gate_up_forward_kernel

    rows, columns, dtype, matrix, block, warps = _rows(point)
    args = {
        "y_ptr": f"*{dtype}", "c_ptr": f"*{dtype}", "in_stride": 2 * columns, "out_stride": columns,
        "ffn_size": columns, "BLOCK_SIZE": block,
    }  # fmt: skip
    return _launch(point, _swiglu_fused_gate_up_forward_kernel, args, rows, warps, 3 * matrix)


def _softmax(point: Point) -> Launch:
    from liger_kernel.ops.softmax import _softmax_single_block_forward_kernel

    rows, columns, dtype, matrix, block, warps = _rows(point)
    args = {
        "Y_ptr": f"*{dtype}", "Y_row_stride": columns, "X_ptr": f"*{dtype}", "X_row_stride": columns,
        "n_cols": columns, "BLOCK_SIZE": block,
    }  # fmt: skip
    return _launch(point, _softmax_single_block_forward_kernel, args, rows, warps, 2 * matrix)


_LAUNCHES = {
    "liger layer_norm": _layer_norm, "liger rms_norm": _rms_norm, "liger rope": _rope,
    "liger relu_squared": _relu_squared, "liger relu_squared backward": _relu_squared_backward, "liger tvd": _tvd,
    "liger swiglu": _swiglu, "liger softmax": _softmax,
}  # fmt: skip
