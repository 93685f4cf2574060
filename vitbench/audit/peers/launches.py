"""Launches of the peers at the cases of vitkernels, forward, in bf16."""

from __future__ import annotations

import torch
import triton
from vitkernels import BIAS_ATTENTION_CASES, DEPTHWISE_CONV2D_CASES, BiasAttentionCase, DepthwiseCase, Launch

from vitbench.audit.peers import kernels

#: Queries, keys, stages, warps: the fastest of them counts.
TEXTBOOK = (
    (128, 64, 3, 4), (128, 32, 3, 4), (64, 64, 3, 4), (64, 32, 3, 4), (64, 16, 3, 4), (128, 64, 2, 8), (128, 128, 2, 8),
    (128, 64, 2, 4), (64, 64, 2, 4), (64, 32, 2, 4), (64, 128, 2, 4), (64, 64, 1, 4),
)  # fmt: skip
#: Pixels, channels, warps.
DIRECT = (
    (16, 64, 2), (32, 32, 2), (16, 128, 4), (32, 64, 4), (64, 32, 4), (64, 64, 4), (128, 32, 4), (128, 16, 4),
    (32, 128, 8), (64, 128, 8), (128, 64, 8), (256, 32, 8),
)  # fmt: skip
_SPARSE = 1 << 30  # keys of a block of the mask that FlexAttention makes where none is given


def flex_tiles(arch: int, head_dim: int) -> list[tuple[int, int, int, int]]:
    """What the installed torch chooses in bf16 without tuning, and what it tries with max-autotune; from its tables.

    With a captured bias the first may ask for more shared memory than there is: torch then fails, or tunes.
    """
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic, FlexConfig

    known = CUDAConfigHeuristic()
    tables = {
        80: known.a100_default_flex_config, 90: known.h100_default_flex_config, 100: known.sm_100_default_flex_config,
        110: known.sm_120_default_flex_config,
    }  # fmt: skip
    table = next(table for least, table in reversed(tables.items()) if arch >= least)
    chosen = table.get((torch.bfloat16, head_dim), FlexConfig(64, 64, 3, 4))
    tried = [chosen, *known.flex_attn_fwd_autotune_configs]
    return list(dict.fromkeys((x.block_m, x.block_n, x.num_stages, x.num_warps) for x in tried))


def attention(case: BiasAttentionCase, arch: int) -> list[Launch]:
    """The textbook kernel with each of TEXTBOOK, and FlexAttention's with its tiles."""
    textbook = [_textbook(case, *tiles) for tiles in TEXTBOOK]
    return textbook + [_flex(case, *tiles) for tiles in flex_tiles(arch, case.D)]


def _textbook(case: BiasAttentionCase, rows: int, keys: int, stages: int, warps: int) -> Launch:
    sizes = {"heads": case.H, "n": case.N, "m": case.M, "d": case.D, "scale": case.D**-0.5}
    blocks = {"BLOCK_M": rows, "BLOCK_N": keys, "BLOCK_D": max(16, triton.next_power_of_2(case.D))}
    grid = (-(-case.N // rows), case.B * case.H)
    return _attention("textbook", kernels.textbook_attention, case, sizes | blocks, grid, stages, warps)


def _flex(case: BiasAttentionCase, rows: int, keys: int, stages: int, warps: int) -> Launch:
    sizes = {"heads": case.H, "n": case.N, "m": case.M, "d": case.D, "scale": case.D**-0.5, "SPARSE": _SPARSE}
    blocks = {"BLOCK_M": rows, "BLOCK_N": keys, "BLOCK_D": max(16, triton.next_power_of_2(case.D))}
    known = {"blocks_ptr": "*i32", "indices_ptr": "*i32"}
    grid = (-(-case.N // rows), case.B, case.H)
    return _attention("flex", kernels.flex_attention, case, sizes | blocks | known, grid, stages, warps)


def _attention(
    op: str, kernel: object, case: BiasAttentionCase, args: dict[str, object], grid: tuple[int, ...], stages: int,
    warps: int,
) -> Launch:  # fmt: skip
    scores = case.B * case.H * case.N * case.M
    pointers = dict.fromkeys(("o_ptr", "q_ptr", "k_ptr", "v_ptr"), "*bf16") | {"bias_ptr": "*fp32"}
    moved = 4 * case.B * case.H * (case.N + case.M) * case.D + 4 * case.H * case.N * case.M
    return Launch(
        kernel=kernel, op=op, case=f"{case.name}+{args['BLOCK_M']}x{args['BLOCK_N']}+s{stages}+w{warps}",
        pass_name="fwd", dtype="bf16", args=pointers | args, grid=grid, num_stages=stages, num_warps=warps,
        elements=scores, bytes=moved, matrix_flops=4 * scores * case.D, special=scores,
        values={"blocks_ptr": [1], "indices_ptr": [0, 0]} if "blocks_ptr" in args else {},
    )  # fmt: skip


def depthwise(case: DepthwiseCase) -> list[Launch]:
    """The direct kernel with each of DIRECT."""
    out_h, out_w = ((size + 2 * case.padding - case.k) // case.stride + 1 for size in (case.H, case.W))
    inputs, outputs = case.B * case.H * case.W * case.C, case.B * out_h * out_w * case.C
    args = {
        "y_ptr": "*bf16", "x_ptr": "*bf16", "w_ptr": "*bf16", "bias_ptr": "*fp32", "height": case.H, "width": case.W,
        "channels": case.C, "out_height": out_h, "out_width": out_w, "K": case.k, "STRIDE": case.stride,
        "PADDING": case.padding,
    }  # fmt: skip
    name = f"{case.name}-b{case.B}-nhwc"
    return [
        Launch(
            kernel=kernels.direct_depthwise, op="direct", case=f"{name}+{pixels}x{channels}+w{warps}",
            pass_name="fwd", dtype="bf16", args=args | {"BLOCK_P": pixels, "BLOCK_C": channels},
            grid=(-(-out_h * out_w // pixels), -(-case.C // channels), case.B), num_warps=warps, elements=outputs,
            bytes=2 * (inputs + outputs), fma=case.k**2 * outputs,
        )
        for pixels, channels, warps in DIRECT
    ]  # fmt: skip


def peers(arch: int) -> dict[str, list[Launch]]:
    """By "operation/case" of vitkernels."""
    found = {f"bias_attention/{case.name}": attention(case, arch) for case in BIAS_ATTENTION_CASES}
    return found | {f"depthwise_conv2d/{case.name}-b{case.B}-nhwc": depthwise(case) for case in DEPTHWISE_CONV2D_CASES}
