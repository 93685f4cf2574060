"""Which forward kernel a shape gets, with which blocks and warps.

For bias_attention, relative_attention and whoever else brings a dense bias. num_stages is 1 everywhere: to load the
next tile early takes registers for its addresses, and they spill.
"""

from __future__ import annotations

from torch import Tensor

from vitkernels.attention.blocks import (
    has_tail,
    images_in_one_wave,
    images_per_program,
    last_tile,
    padded_head_dim,
    pieces,
    rest_block,
    stride_alignment,
    tall_tile,
    tallest_tile,
)
from vitkernels.attention.forward.bias_held import bias_held_kernel, short_limit
from vitkernels.attention.forward.keys_held import few_keys, few_keys_calls
from vitkernels.attention.forward.streamed import long_images, streamed_kernel
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E
from vitkernels.runtime.device import reads_operands_from_registers, reads_results_from_tensor_memory


def forward_calls(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, arch: int,
    expanded: bool,
) -> list[Call]:  # fmt: skip
    """The launch that fills out and, where given, lse fp32, as `store_lse` fills it.

    An expanded bias is [H, N, M padded to 16], in units of log2.
    """
    B, H, N, D = q.shape
    M = k.shape[2]
    if few_keys(q, M, arch):
        return few_keys_calls(out, lse, q, k, v, bias, scale, expanded)
    short = cdiv(M, 16) * 16 <= short_limit(D, q.element_size(), arch)
    block_n = 64 if q.element_size() == 2 else 32
    tail = short and D <= 32 and has_tail(N, block_n) and images_per_program(B, cdiv(N, block_n) * H) >= 4
    warps = 8 if short and D > 64 else 4
    if tall_tile(q, arch) and not tail and warps == 4 and not (short and reads_results_from_tensor_memory(arch)):
        block_n, warps = 256 if short and tallest_tile(q, M) else 128, 8
    tiles = cdiv(N, block_n)
    args = {
        "out_ptr": out, "lse_ptr": lse, "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": bias,
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_m": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_m": v.stride(2),
        "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "B": B, "H": H, "N": N, "M": M,
        "score_scale": scale * LOG2E.value if expanded else scale, "EXPANDED": expanded,
        "ALIGN": stride_alignment(q, k, v, out, bias=bias), "D": D, "BLOCK_D": padded_head_dim(D), "BLOCK_N": block_n,
    }  # fmt: skip
    if short:
        images = images_per_program(B, cdiv(N, 64 if block_n == 128 else block_n) * H)
        if block_n == 256:  # its registers leave room for one program on an SM
            images = images_in_one_wave(B, tiles * H)
        keys = pieces(M, 3, 128)
        args |= {"IMAGES": images, "KEYS_0": keys[0], "KEYS_1": keys[1], "KEYS_2": keys[2], "TAIL": tail}
        kernel = bias_held_kernel
    else:
        images = min(max(1, B), long_images(D, q.element_size(), arch))
        last = last_tile(N, block_n)
        if last < block_n and not expanded and reads_operands_from_registers(arch):
            images = 1  # two at a time spill with Triton 3.6.0, and take longer as simulated on sm_80
        block_m = 64 if q.element_size() == 2 and not reads_operands_from_registers(arch) else 32
        rest = rest_block(M, block_m)
        if rest and not expanded and reads_operands_from_registers(arch):  # pointers to blocks of a second size spill
            rest = block_m
        args |= {"IMAGES": images, "SHORT": B % images, "LAST": last, "BLOCK_M": block_m, "REST": rest}
        kernel = streamed_kernel
    return [Call(kernel=kernel, args=args, grid=tiles * H * cdiv(B, images), pass_name="fwd", products=2,
                 scores=B * H * N * M, num_warps=warps, num_stages=1)]  # fmt: skip
