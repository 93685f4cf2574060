"""Kernels written out by hand, with their control words."""

from __future__ import annotations

from vitbench.audit.sass import listing
from vitbench.audit.sass.graph import Graph, build_graph


def line(text: str, stall: int = 1, write: int = 7, read: int = 7, wait: int = 0) -> tuple[str, int]:
    """An instruction and its second word: stall count, barriers it holds (7 for none), mask of those it waits for."""
    return text, stall << 41 | 1 << 45 | write << 46 | read << 49 | wait << 52


def kernel(*lines: tuple[str, int]) -> Graph:
    """A kernel that ends with EXIT."""
    text = ['\t.section\t.text.kernel,"ax",@progbits', "kernel:"]
    for position, (instruction, word) in enumerate((*lines, line("EXIT", stall=5))):
        text.append(f"        /*{16 * position:04x}*/                   {instruction} ;   /* 0x0000000000000000 */")
        text.append(f"                                                          /* 0x{word:016x} */")
    return build_graph(listing.parse("\n".join(text)))
