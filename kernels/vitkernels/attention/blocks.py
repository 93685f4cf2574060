"""How attention is split into programs and tiles: block sizes, what the last tile holds, images of a program."""

from __future__ import annotations

from functools import lru_cache

import triton
from torch import Tensor

from vitkernels.runtime.call import cdiv
from vitkernels.runtime.constants import PADDED
from vitkernels.runtime.device import reads_operands_from_registers

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


def rest_block(size: int, block: int) -> int:
    """Size of the masked tile that takes what whole tiles leave: 16 where that is enough, 0 where nothing is left."""
    rest = size % block
    return 0 if not rest else min(16, block) if rest <= 16 else block


def images_per_program(batch: int, programs_per_image: int) -> int:
    """How many images one program walks through with its bias tile held: as many as leave enough programs."""
    groups = min(batch, max(1, cdiv(PROGRAMS_WANTED, programs_per_image)))
    return cdiv(batch, groups)


@lru_cache(maxsize=4096)
def images_in_waves(batch: int, programs_per_image: int, multiprocessors: int, resident: int) -> int:
    """How many images one program walks through so that the busiest multiprocessor is done first.

    It runs up to `resident` programs at once; fewer than three wait for memory as long as three do. To begin a program
    counts as much as one image.
    """

    def cost(images: int) -> tuple[int, int]:
        programs = cdiv(cdiv(batch, images) * programs_per_image, multiprocessors)
        rounds, rest = divmod(programs, resident)
        return (rounds * max(resident, 3) + (max(rest, 3) if rest else 0)) * (images + 1), -images

    return min(range(1, batch + 1), key=cost)


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


def backward_stages(tensor: Tensor, arch: int) -> int:
    """Stages of the loops of backward kernels: three, so that copies run ahead of products, where they do not spill.

    On Hopper, in half precision, where they take 15 to 50 % less time; not with heads that are loaded in narrow pieces,
    whose addresses take registers, nor with larger ones.
    """
    D = tensor.shape[3]
    return 3 if tensor.element_size() == 2 and arch // 10 == 9 and D <= 64 and D % 16 == 0 else 1


def row_stages(tensor: Tensor) -> int:
    """The same of the pass over queries, whose tiles are small enough for three stages on every architecture."""
    D = tensor.shape[3]
    return 3 if tensor.element_size() == 2 and D <= 64 and D % 16 == 0 else 1


def register_limit(head_dim: int, bias: Tensor, expanded: int, arch: int) -> dict[str, int]:
    """Compile options of the backward pass over keys with a padded bias.

    For heads of more than 32 channels and a bias of 16 bits the assembler for sm_80 spills 8 bytes to have more
    programs at once; told how many registers three programs leave it, it does not.
    """
    spills = arch == 80 and head_dim > 32 and expanded == PADDED.value and bias.element_size() == 2
    return {"maxnreg": 160} if spills else {}
