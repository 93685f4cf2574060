"""Launches of the peers at the cases of vitkernels, in bf16: forward and backward, the convolution's at some cases."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import torch
import triton
from vitkernels import BIAS_ATTENTION_CASES, DEPTHWISE_CONV2D_CASES, BiasAttentionCase, DepthwiseCase, Launch

from vitbench.audit.peers import kernels

#: Queries, keys, stages, warps: the fastest of them counts.
TEXTBOOK = (
    (128, 64, 3, 4), (128, 32, 3, 4), (64, 64, 3, 4), (64, 32, 3, 4), (64, 16, 3, 4), (128, 64, 2, 8), (128, 128, 2, 8),
    (128, 64, 2, 4), (64, 64, 2, 4), (64, 32, 2, 4), (64, 128, 2, 4), (64, 64, 1, 4),
)  # fmt: skip
#: Queries and keys that stream by and are held for dk and dv, then for dq, stages, warps: the fastest of them counts.
TEXTBOOK_BACKWARD = (
    (32, 128, 128, 32, 3, 4), (64, 64, 64, 64, 2, 4), (32, 64, 64, 32, 3, 4), (64, 64, 64, 64, 1, 4),
)  # fmt: skip
#: One case of each kind of depthwise convolution: kernel size, stride, large and small images.
DIRECT_CASES = (
    "cmt_s-a-lpu", "cmt_s-a-irffn", "cmt_s-c-irffn", "cmt_s-a-reduce", "coatnet_0-s1", "convmixer_768_32",
    "convmixer_1024_20", "efficientnet_b0-s3", "efficientnet_b0-s5", "convnext_t-s1", "convnext_t-s4",
)  # fmt: skip
#: Pixels, channels, warps: the fastest of them counts.
DIRECT = ((32, 16, 1), (64, 8, 1), (32, 32, 2), (64, 16, 2), (32, 64, 4), (64, 32, 4))
#: Pixels, channels, slices, warps: the fastest of them counts.
DIRECT_DW = ((32, 64, 32, 4), (64, 32, 32, 4), (64, 64, 16, 4), (64, 64, 64, 8))
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


def flex_backward_tiles(arch: int, head_dim: int) -> list[tuple[int, int, int, int, int, int]]:
    """The same for the backward pass, as in TEXTBOOK_BACKWARD; of what max-autotune tries, small tiles unpipelined."""
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

    known = CUDAConfigHeuristic()
    choose = known.get_flex_attn_bwd_configs
    given: dict[str, Any] = {"head_dim": head_dim, "seq_len": 128, "dtype": torch.bfloat16}  # torch 2.14 asks for all
    with mock.patch.object(torch.cuda, "get_device_capability", return_value=divmod(arch, 10)):
        chosen = choose(**{name: given[name] for name in inspect.signature(choose).parameters})
    tried = [*chosen, *(x for x in known.flex_attn_bwd_autotune_configs if x.num_stages == 1 and x.block_n1 <= 64)]
    return list(
        dict.fromkeys((x.block_m1, x.block_n1, x.block_m2, x.block_n2, x.num_stages, x.num_warps) for x in tried)
    )


@dataclass(frozen=True)
class Peer:
    """One way to do the same: who does it so, with which tiles, and what is launched."""

    name: str
    tiles: str
    launches: list[Launch]


def attention(case: BiasAttentionCase, arch: int) -> list[Peer]:
    """The textbook kernel with each of TEXTBOOK, and FlexAttention's with its tiles."""
    made = [_textbook(case, *tiles) for tiles in TEXTBOOK] + [_flex(case, *tiles) for tiles in flex_tiles(arch, case.D)]
    return [Peer(x.op, x.case.partition("+")[2], [x]) for x in made]


def attention_backward(case: BiasAttentionCase, arch: int) -> list[Peer]:
    """The textbook's two kernels and FlexAttention's one, both after the sums of o * do in a launch of its own."""
    peers = [Peer("textbook", _told(x), _textbook_backward(case, *x)) for x in TEXTBOOK_BACKWARD]
    return peers + [Peer("flex", _told(x), _flex_backward(case, *x)) for x in flex_backward_tiles(arch, case.D)]


def _told(tiles: tuple[int, int, int, int, int, int]) -> str:
    m1, n1, m2, n2, stages, warps = tiles
    return f"{m1}x{n1}+{m2}x{n2}+s{stages}+w{warps}"


def _textbook_backward(case: BiasAttentionCase, *tiles: int) -> list[Launch]:
    m1, n1, m2, n2, stages, warps = tiles
    by_keys = _gradient(case, kernels.attention_keys, "textbook", "bwd_key", f"{m1}x{n1}", -(-case.M // n1), stages,
                        warps, {"BLOCK_M": m1, "BLOCK_N": n1}, 8)  # fmt: skip
    by_queries = _gradient(case, kernels.attention_queries, "textbook", "bwd_query", f"{m2}x{n2}", -(-case.N // m2),
                           stages, warps, {"BLOCK_M": m2, "BLOCK_N": n2, "first": 0}, 6)  # fmt: skip
    return [_delta(case, "textbook"), by_keys, by_queries]


def _flex_backward(case: BiasAttentionCase, *tiles: int) -> list[Launch]:
    m1, n1, m2, n2, stages, warps = tiles
    keys, queries = -(-case.M // n1), -(-case.N // m2)
    blocks = {"M1": m1, "N1": n1, "M2": m2, "N2": n2, "key_blocks": keys}
    both = _gradient(case, kernels.flex_backward, "flex", "bwd", f"{m1}x{n1}+{m2}x{n2}", keys + queries, stages, warps,
                     blocks, 14)  # fmt: skip
    return [_delta(case, "flex"), both]


def _delta(case: BiasAttentionCase, op: str) -> Launch:
    elements = case.B * case.H * case.N * case.D
    return Launch(
        kernel=kernels.attention_delta, op=op, case=case.name, pass_name="bwd_delta", dtype="bf16",
        args={
            "delta_ptr": "*fp32", "o_ptr": "*bf16", "do_ptr": "*bf16", "heads": case.H, "n": case.N, "d": case.D,
            "BLOCK_M": 64, "BLOCK_D": _channels(case),
        },
        grid=(-(-case.N // 64), case.B * case.H), elements=elements,
        bytes=4 * elements + 4 * case.B * case.H * case.N,
    )  # fmt: skip


def _gradient(
    case: BiasAttentionCase, kernel: Any, op: str, name: str, tiles: str, blocks: int, stages: int, warps: int,
    args: dict[str, int], flops: int,
) -> Launch:  # fmt: skip
    """`flops` for each score and channel; dbias is added to by every image."""
    scores = case.B * case.H * case.N * case.M
    pointers = dict.fromkeys(("dq_ptr", "dk_ptr", "dv_ptr", "q_ptr", "k_ptr", "v_ptr", "do_ptr"), "*bf16")
    pointers |= dict.fromkeys(("bias_ptr", "dbias_ptr", "lse_ptr", "delta_ptr"), "*fp32")
    sizes = {"heads": case.H, "n": case.N, "m": case.M, "d": case.D, "scale": case.D**-0.5, "BLOCK_D": _channels(case)}
    taken = {k: v for k, v in (pointers | sizes | args).items() if k in kernel.arg_names}
    moved = 2 * case.B * case.H * case.D * (3 * case.N + 4 * case.M) + 8 * case.H * case.N * case.M
    return Launch(
        kernel=kernel, op=op, case=f"{case.name}+{tiles}+s{stages}+w{warps}", pass_name=name, dtype="bf16", args=taken,
        grid=(blocks, case.B * case.H), num_stages=stages, num_warps=warps, elements=scores, bytes=moved,
        matrix_flops=flops * scores * case.D, special=scores,
    )  # fmt: skip


def _channels(case: BiasAttentionCase) -> int:
    return max(16, triton.next_power_of_2(case.D))


def _textbook(case: BiasAttentionCase, rows: int, keys: int, stages: int, warps: int) -> Launch:
    sizes = {"heads": case.H, "n": case.N, "m": case.M, "d": case.D, "scale": case.D**-0.5}
    blocks = {"BLOCK_M": rows, "BLOCK_N": keys, "BLOCK_D": _channels(case)}
    grid = (-(-case.N // rows), case.B * case.H)
    args = sizes | blocks | {"bias_ptr": "*bf16"}
    return _attention("textbook", kernels.textbook_attention, case, args, grid, stages, warps)


def _flex(case: BiasAttentionCase, rows: int, keys: int, stages: int, warps: int) -> Launch:
    sizes = {"heads": case.H, "n": case.N, "m": case.M, "d": case.D, "scale": case.D**-0.5, "SPARSE": _SPARSE}
    blocks = {"BLOCK_M": rows, "BLOCK_N": keys, "BLOCK_D": _channels(case)}
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


def depthwise(case: DepthwiseCase) -> list[Peer]:
    """The direct kernel with each of DIRECT."""
    made = [_direct(case, "fwd", *tiles) for tiles in DIRECT]
    return [Peer(x.op, x.case.partition("+")[2], [x]) for x in made]


def depthwise_backward(case: DepthwiseCase) -> list[Peer]:
    """The same with the weight turned around, then a kernel for the weight's gradient: each pair of their tiles."""
    dx, dw = [_direct(case, "bwd_dx", *tiles) for tiles in DIRECT], [_direct_dw(case, *tiles) for tiles in DIRECT_DW]
    return [Peer("direct", "+".join(x.case.partition("+")[2] for x in pair), list(pair)) for pair in product(dx, dw)]


def _direct(case: DepthwiseCase, name: str, pixels: int, channels: int, warps: int) -> Launch:
    """Forward, or backward of a case of stride 1."""
    height, width = (case.H, case.W) if name == "fwd" else _out(case)
    out_h, out_w = _out(case) if name == "fwd" else (case.H, case.W)
    args = {
        "y_ptr": "*bf16", "x_ptr": "*bf16", "w_ptr": "*bf16",
        "bias_ptr": "*fp32" if case.bias and name == "fwd" else None, "height": height, "width": width,
        "channels": case.C, "out_height": out_h, "out_width": out_w, "K": case.k, "STRIDE": case.stride,
        "PADDING": case.padding if name == "fwd" else case.k - 1 - case.padding,
    }  # fmt: skip
    outputs = case.B * out_h * out_w * case.C
    return Launch(
        kernel=kernels.direct_depthwise, op="direct", case=f"{_named(case)}+{pixels}x{channels}+w{warps}",
        pass_name=name, dtype="bf16", args=args | {"BLOCK_P": pixels, "BLOCK_C": channels},
        grid=(-(-out_h * out_w // pixels), -(-case.C // channels), case.B), num_warps=warps, elements=outputs,
        bytes=2 * (case.B * height * width * case.C + outputs), fma=case.k**2 * outputs,
    )  # fmt: skip


def _direct_dw(case: DepthwiseCase, pixels: int, channels: int, slices: int, warps: int) -> Launch:
    out_h, out_w = _out(case)
    outputs = case.B * out_h * out_w * case.C
    return Launch(
        kernel=kernels.direct_depthwise_dw, op="direct",
        case=f"{_named(case)}+{pixels}x{channels}+{slices}+w{warps}", pass_name="bwd_dw", dtype="bf16",
        args={
            "part_ptr": "*fp32", "x_ptr": "*bf16", "dy_ptr": "*bf16", "batch": case.B, "height": case.H,
            "width": case.W, "channels": case.C, "out_height": out_h, "out_width": out_w, "K": case.k,
            "STRIDE": case.stride, "PADDING": case.padding, "BLOCK_P": pixels, "BLOCK_C": channels,
        },
        grid=(case.k**2, -(-case.C // channels), slices), num_warps=warps, elements=outputs,
        bytes=2 * (case.B * case.H * case.W * case.C + outputs), fma=case.k**2 * outputs,
    )  # fmt: skip


def _out(case: DepthwiseCase) -> tuple[int, int]:
    """Height and width of y."""
    height, width = ((size + 2 * case.padding - case.k) // case.stride + 1 for size in (case.H, case.W))
    return height, width


def _named(case: DepthwiseCase) -> str:
    return f"{case.name}-b{case.B}-nhwc"


def peers(arch: int) -> dict[str, list[Peer]]:
    """By "operation/case/pass" of vitkernels."""
    found = {f"bias_attention/{case.name}/fwd": attention(case, arch) for case in BIAS_ATTENTION_CASES}
    found |= {f"bias_attention/{case.name}/bwd": attention_backward(case, arch) for case in BIAS_ATTENTION_CASES}
    chosen = [case for case in DEPTHWISE_CONV2D_CASES if case.name in DIRECT_CASES]
    found |= {f"depthwise_conv2d/{_named(case)}/fwd": depthwise(case) for case in chosen}
    flipped = [case for case in chosen if case.stride == 1]
    return found | {f"depthwise_conv2d/{_named(case)}/bwd": depthwise_backward(case) for case in flipped}
