"""How attention is split into programs and tiles: block sizes, what the last tile holds, images of a program."""

from __future__ import annotations

from functools import lru_cache

import triton
from torch import Tensor

from vitkernels.runtime.call import cdiv
from vitkernels.runtime.device import MULTIPROCESSORS, reads_operands_from_registers

PROGRAMS_WANTED = 384  # three for each of 132 multiprocessors: few stand idle while the last ones run


def last_tile(size: int, block: int) -> int:
    """Rows of the last of several tiles of a block: the least of 16, 64, 128 that is enough, else the whole block."""
    rest = size % block
    if size <= block or not rest:
        return block
    return next((rows for rows in (16, 64, 128) if rest <= rows < block), block)


def has_tail(size: int, block: int) -> bool:
    """Whether a last tile of 16 saves padding: several larger ones, and at most 16 beside them."""
    return block > 16 and last_tile(size, block) == 16


def tall_tile(q: Tensor, arch: int) -> bool:
    """Whether tiles of 128 queries for eight warps pay: keys and values are read half as often.

    Not up to 64 queries, where half of such a tile would be padding, and not where too few programs would be left.
    """
    B, H, N, _ = q.shape
    fits = q.element_size() == 2 and not reads_operands_from_registers(arch)
    return fits and N > 64 and cdiv(N, 128) * H * B >= PROGRAMS_WANTED


def tallest_tile(q: Tensor, keys: int) -> bool:
    """Whether tall tiles may have 256 queries: up to 64 keys leave registers for them, and little is padding."""
    B, H, N, D = q.shape
    padded = cdiv(N, 256) * 256
    return keys <= 64 and D <= 64 and padded <= 1.07 * N and cdiv(N, 256) * H * B >= PROGRAMS_WANTED


def rest_block(size: int, block: int) -> int:
    """Size of the masked tile that takes what whole tiles leave: 16 where that is enough, 0 where nothing is left."""
    rest = size % block
    return 0 if not rest else min(16, block) if rest <= 16 else block


def images_per_program(batch: int, programs_per_image: int) -> int:
    """How many images one program walks through with its bias tile held: as many as leave enough programs."""
    groups = min(batch, max(1, cdiv(PROGRAMS_WANTED, programs_per_image)))
    return cdiv(batch, groups)


@lru_cache(maxsize=4096)
def images_in_one_wave(batch: int, programs_per_image: int) -> int:
    """The same where one program fills a multiprocessor: the number at which the busiest one has least to do."""

    def cost(images: int) -> tuple[int, int]:
        return cdiv(cdiv(batch, images) * programs_per_image, MULTIPROCESSORS) * images, -images

    return min(range(1, batch + 1), key=cost)


def pieces(n: int, count: int, most: int) -> tuple[int, ...]:
    """`count` sizes, powers of two from 16 to `most`, that sum to n or little more: 196 -> 128, 64, 16. 0: unused."""
    rest, sizes = cdiv(n, 16) * 16, []
    for left in range(count, 0, -1):
        fitting = 1 << (rest.bit_length() - 1) if rest else 0
        sizes.append(min(most, triton.next_power_of_2(rest) if left == 1 and rest else fitting))
        rest = max(0, rest - sizes[-1])
    if rest:
        raise ValueError(f"{n} does not fit in {count} pieces of at most {most}")
    return tuple(sizes)


def padded_head_dim(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def stride_alignment(*tensors: Tensor, bias: Tensor | None = None) -> int:
    """ALIGN of a launch: a power of two up to 8 that divides every stride but the last of these [B, H, rows, D].

    0 if a tile's row offsets, those of the bias [H, rows, M] too, need 64 bits; the offsets of images and heads always
    have them.
    """
    align = 8
    if bias is not None and bias.shape[1] * bias.stride(1) >= 2**31:
        return 0
    for tensor in tensors:
        if tensor.shape[2] * tensor.stride(2) >= 2**31:
            return 0
        for stride in tensor.stride()[:-1]:
            while stride % align:
                align //= 2
    return align
