"""Kernels of many models as columns, and as a file. Imports no torch."""

from __future__ import annotations

import csv
import io
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

KINDS = (
    "product", "batched product", "fp32 product", "convolution", "first convolution", "grouped convolution",
    "depthwise convolution", "depthwise channels-last", "attention", "attention with bias", "elementwise", "broadcast",
    "strided copy", "copy", "normalisation", "batch norm", "softmax", "reduction", "pooling", "gather", "resize",
    "other",
)  # fmt: skip
#: Kernels whose time the published figures say little about: few models have them, and each in its own way.
RARE = ("fp32 product", "grouped convolution", "attention with bias", "gather", "resize", "pooling", "other")


class Kernel(NamedTuple):
    """One launch, for each image of the batch, where `fixed` is not.

    Attributes:
        kind: one of KINDS.
        moved: bytes read and written that grow with the batch.
        fixed: bytes that do not, such as those of weights.
        macs: multiply-accumulates; of pooling and resizing elements that are read.
        depth, width: length of a product's sums, columns of its result; of attention the head's width and the keys; of
            resizing the depth is the pixels of a map.
        aligned: whether the matrix units can load 16 bytes at a time.
        beside: bytes of passes before and after: a bias that is added, a copy to another layout.
    """

    kind: str
    moved: float
    fixed: float = 0.0
    macs: float = 0.0
    depth: int = 1
    width: int = 1
    aligned: bool = True
    beside: float = 0.0


class Known(NamedTuple):
    """A model at a size in a layout, with merged branches or as it is: what runs how often, and its parameters."""

    model: str
    family: str
    resolution: int
    layout: str
    reparam: bool
    parameters: int
    kernels: tuple[tuple[Kernel, int], ...]

    @property
    def macs(self) -> float:
        return macs_of(self.kernels)


def macs_of(kernels: Iterable[tuple[Kernel, int]]) -> float:
    """Multiply-accumulates of one image in convolutions, products and attention."""
    return sum(count * kernel.macs for kernel, count in kernels if kernel.kind not in ("pooling", "resize"))


def packed(kernels: Iterable[tuple[Kernel, int]]) -> list[tuple[float, ...]]:
    """As JSON keeps them: the kind by its number, how often, then the rest."""
    return [(KINDS.index(kernel.kind), count, *kernel[1:]) for kernel, count in kernels]


def unpacked(rows: Iterable[Sequence[Any]]) -> tuple[tuple[Kernel, int], ...]:
    """What `packed` made."""
    return tuple((Kernel(KINDS[kind], *rest), count) for kind, count, *rest in rows)


Column = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Columns of kernels, those of a model beside each other; `owner` is the number of a kernel's model."""

    models: int
    owner: NDArray[np.intp]
    kind: NDArray[np.intp]
    count: Column
    moved: Column
    fixed: Column
    macs: Column
    depth: Column
    width: Column
    aligned: Column
    beside: Column

    @classmethod
    def of(cls, models: Iterable[Sequence[tuple[Kernel, int]]]) -> Table:
        number = {kind: position for position, kind in enumerate(KINDS)}
        rows: list[tuple[float, ...]] = []
        total = 0
        for owner, kernels in enumerate(models):
            total = owner + 1
            rows += [(owner, number[k.kind], count, *k[1:]) for k, count in kernels]
        columns: list[Column] = list(np.array(rows, float).reshape(-1, 10).T)
        return cls(total, columns[0].astype(np.intp), columns[1].astype(np.intp), *columns[2:])

    def only(self, rows: NDArray[np.bool_]) -> Table:
        """The kernels of a mask; the models keep their numbers."""
        return Table(self.models, *(getattr(self, name)[rows] for name in _COLUMNS))

    def sums(self, of_kernels: Column) -> Column:
        """For each model the sum over its kernels, each as often as it runs."""
        return np.bincount(self.owner, of_kernels * self.count, self.models).astype(float)

    @cached_property
    def rare(self) -> NDArray[np.bool_]:
        return np.isin(self.kind, [KINDS.index(kind) for kind in RARE])


_COLUMNS = ("owner", "kind", "count", "moved", "fixed", "macs", "depth", "width", "aligned", "beside")
_HEADER = ("model", "family", "resolution", "layout", "reparam", "parameters")
#: Digits of bytes that are kept: what is left out changes no time by a thousandth.
_DIGITS = 4


def compact(kernels: Mapping[Kernel, int]) -> tuple[tuple[Kernel, int], ...]:
    """Fewer kernels that take as long: those of one kind, alike in all but their bytes, and these within a quarter."""
    groups: dict[tuple[object, ...], list[tuple[Kernel, int]]] = {}
    for kernel, count in kernels.items():
        size = round(np.log(1 + kernel.moved) / np.log(1.25))
        alike = (kernel.kind, size, kernel.moved == 0, *kernel[3:7], kernel.beside > 0)
        groups.setdefault(alike, []).append((kernel, count))
    merged = []
    for members in groups.values():
        total = sum(count for _, count in members)
        mean = {
            name: sum(count * getattr(kernel, name) for kernel, count in members) / total
            for name in ("moved", "fixed", "beside")
        }
        merged.append((members[0][0]._replace(**mean), total))
    return tuple(merged)


def write(path: Path, models: Iterable[Known]) -> None:
    """Packs models as a compressed CSV: a line of a model, with those of its kernels after it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_HEADER, "kernels"))
    for known in models:
        writer.writerow((*known[:4], int(known.reparam), known.parameters, len(known.kernels)))
        writer.writerows(
            (KINDS.index(k.kind), count, _short(k.moved), _short(k.fixed), round(k.macs), k.depth, k.width,
             int(k.aligned), _short(k.beside))
            for k, count in known.kernels
        )  # fmt: skip
    path.write_bytes(lzma.compress(out.getvalue().encode(), preset=9))


def read(path: Path) -> list[Known]:
    """The models that `write` packed."""
    lines = csv.reader(io.StringIO(lzma.decompress(path.read_bytes()).decode()))
    next(lines)
    found = []
    for model, family, resolution, layout, reparam, parameters, count in lines:
        kernels = tuple(_unpacked(next(lines)) for _ in range(int(count)))
        found.append(Known(model, family, int(resolution), layout, reparam == "1", int(parameters), kernels))
    return found


def _short(value: float) -> str:
    return f"{value:.{_DIGITS}g}"


def _unpacked(cells: Sequence[str]) -> tuple[Kernel, int]:
    kind, count, moved, fixed, macs, depth, width, aligned, beside = cells
    kernel = Kernel(
        KINDS[int(kind)], float(moved), float(fixed), float(macs), int(depth), int(width), aligned == "1", float(beside)
    )
    return kernel, int(count)


__all__ = ["KINDS", "RARE", "Kernel", "Known", "Table", "compact", "macs_of", "read", "write"]
