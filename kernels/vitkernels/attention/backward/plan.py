"""Gradients of bias_attention, bit for bit the same from run to run: no atomics, no sum whose order can change.

With P = softmax(S + bias), dP = dO V^T, delta = rowsum(dO * O):  dS = P * (dP - delta),  dV = P^T dO,
dQ = scale dS K,  dK = scale dS^T Q,  dBias = sum over images of dS.

The passes, each of which recomputes P and dS so that every sum stays inside one program, by shape:

- where one tile holds all scores (Swin): scores_held.py makes all of them together;
- where one program holds all queries (CoAtNet up to 256 tokens): queries_held.py makes dQ, dK and dV;
- else by_query.py makes dQ (with dBias where one tile holds all keys, as in CMT) and
  by_key.py dK and dV;
- where dBias is not made on the way, by_bias.py makes it; of wide heads with few keys dS itself is written, in the
  dtype of q, which takes less time than to make it once more.

The partial dBias (one for each slice of the images, or dS of each image) and dK, dV (one for each span of queries) are
summed in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitkernels.attention.backward.by_bias import bias_calls, bias_tile
from vitkernels.attention.backward.by_key import key_calls
from vitkernels.attention.backward.by_query import query_calls, rows_calls
from vitkernels.attention.backward.queries_held import fits_whole, whole_calls
from vitkernels.attention.backward.scores_held import fits_short, short_calls
from vitkernels.attention.blocks import images_in_waves, images_per_program, padded_head_dim, stride_alignment
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import DENSE, LOG2E
from vitkernels.runtime.device import multiprocessors_of, reads_operands_from_registers


def key_block(head_dim: int, itemsize: int, arch: int) -> int:
    """Keys of a tile in the passes over queries and over the bias: what the registers hold."""
    block = 64 if itemsize == 2 and head_dim <= 64 else 32
    return block // 2 if reads_operands_from_registers(arch) else block


def query_block(head_dim: int, itemsize: int, align: int, arch: int) -> int:
    """Queries of a tile in these passes, fewer where registers would spill: fp32, and wide heads in narrow pieces.

    Wide heads also where a program has fewer registers to itself than on sm_80 and no products from shared memory.
    """
    if itemsize == 4:
        return 32 if head_dim <= 32 else 16
    narrow = align == 1 or (reads_operands_from_registers(arch) and arch != 80)
    return 32 if head_dim > 64 and narrow else 64


def bias_parts(q: Tensor, n_keys: int, arch: int, *, expanded: int = DENSE.value, gated: bool = False) -> Tensor:
    """Room for the partial bias gradients: [slices, H, N, M] fp32, or [B, H, N, M padded to 16] of dS in q.dtype."""
    B, H, N, _ = q.shape
    if not gated and _writes_scores(q, n_keys, expanded, arch):
        return q.new_empty((B, H, N, cdiv(n_keys, 16) * 16))
    return q.new_empty((cdiv(B, _images(q, n_keys, arch, gated)), H, N, n_keys), dtype=torch.float32)


def _writes_scores(q: Tensor, n_keys: int, expanded: int, arch: int) -> bool:
    """Whether dS is written for dBias: where heads are so wide that to make it again takes longer.

    It takes at most five times the bytes of q. Where one tile holds all keys, dBias is made on the way.
    """
    D = q.shape[3]
    wide = D > 32 and q.element_size() == 2
    return wide and 64 < n_keys <= 5 * D and not (expanded and fits_whole(q, arch))


def _images(q: Tensor, n_keys: int, arch: int, gated: bool) -> int:
    B, H, N, D = q.shape
    if D > 32 and not gated and fits_short(N, n_keys, D, q.element_size(), arch):
        return 1  # sums of several would take the registers of another program
    if n_keys <= 64:
        return images_per_program(B, cdiv(N, 64) * H)
    rows, *keys = bias_tile(q, 64, key_block(D, q.element_size(), arch), n_keys, arch)
    # What registers leave room for: 128 queries take eight warps.
    resident = 1 if rows == 128 else 4 if D <= 32 else 2
    return images_in_waves(B, cdiv(N, rows) * cdiv(n_keys, sum(keys)) * H, multiprocessors_of(q, arch), resident)


def backward_calls(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias_parts: Tensor | None,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    scale: float,
    arch: int,
    *,
    expanded: int = DENSE.value,
    gated: bool = False,
) -> list[Call]:
    """The launches that fill dq, dk, dv (token-major), delta and, where given, dbias_parts.

    Args:
        dbias_parts: as `bias_parts` makes it.
        delta: [B, H, N] fp32.
        arch: 90 for sm_90.
        expanded: one of `DENSE`, `TABLE`, `PADDED`: how bias is given.
        gated: the gated attention of gated.py: bias holds weights that are added to the softmax (whose lse is
            scaled), dbias_parts receives dP, and delta is given.
    """
    B, H, N, D = q.shape
    M = k.shape[2]
    itemsize = q.element_size()
    align = stride_alignment(q, k, v, do, out, dq, dk, bias=bias)
    block_n = query_block(D, itemsize, align, arch)
    narrowed = block_n == 16 or (block_n == 32 and itemsize == 2)
    block_m = 16 if narrowed else key_block(D, itemsize, arch)
    images = _images(q, M, arch, gated)
    shared = {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": bias, "do_ptr": do, "lse_ptr": lse, "delta_ptr": delta,
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_m": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_m": v.stride(2),
        "do_stride_b": do.stride(0), "do_stride_h": do.stride(1), "do_stride_n": do.stride(2),
        "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "B": B, "H": H, "N": N, "M": M,
        "score_scale": scale * LOG2E.value if expanded else scale, "EXPANDED": expanded, "D": D,
        "BLOCK_D": padded_head_dim(D), "ALIGN": align,
    }  # fmt: skip
    of_tokens = shared | {"scale": scale}
    of_queries = of_tokens | {
        "out_ptr": out, "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
    }  # fmt: skip
    if not gated and fits_short(N, M, D, itemsize, arch):
        calls, bias_is_made = short_calls(dq, dk, dv, dbias_parts, of_queries, images, arch), True
    elif not gated and expanded and fits_whole(q, arch):
        calls, bias_is_made = whole_calls(dq, dk, dv, of_queries), False
    elif not gated and block_m >= M and D % 16 == 0:
        calls, bias_is_made = query_calls(dq, dbias_parts, of_queries, images, block_n, block_m), True
        calls += key_calls(dk, dv, of_tokens | {"GATED": False}, block_n, block_m, arch)
    else:
        bias_is_made = not gated and _writes_scores(q, M, expanded, arch)
        ds = dbias_parts if bias_is_made else None
        calls = rows_calls(dq, ds, of_queries | {"GATED": gated}, block_n, min(block_m, 32))
        calls += key_calls(dk, dv, of_tokens | {"GATED": gated}, block_n, block_m, arch)
    if dbias_parts is not None and not bias_is_made:
        calls += bias_calls(dbias_parts, shared | {"GATED": gated}, images, block_n, block_m, arch)
    return calls
