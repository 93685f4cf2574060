"""How long kernels take on a card: bytes against the bandwidth, products against the matrix units, and launches.

A kernel takes (memory^o + arithmetic^o)^(1/o), between the larger of the two and their sum, with an exponent o
of 4; passes beside it and the launch come on top. Imports no torch.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache

import numpy as np

from vitbench.cards import Card
from vitbench.predict.table import KINDS, Column, Table


@dataclass(frozen=True)
class Parameters:
    """What a data sheet does not say. Shares are of its peaks, lengths in elements.

    Attributes:
        matrix: share of the matrix peak that large products and convolutions reach.
        half: sums and columns of this length let them reach half of it, each.
        group_half: the same for the groups of a grouped convolution.
        unaligned: what is left where operands cannot be loaded 16 bytes at a time.
        attention: what fused attention, and products of many small matrices, reach of that.
        biased: the same with a bias or a mask, which is another kernel.
        depthwise: share of the fp32 peak in depthwise convolutions.
        depthwise_last, depthwise_large: the same of channels-last maps, and with windows larger than 5 x 5.
        bandwidth: share of the bandwidth in elementwise kernels.
        operands: what matrix kernels reach of that.
        norms: what normalisations reach of it, which read twice.
        rows: what softmax and reductions reach of it.
        scattered: what copies between layouts, gathers and pooling reach of it.
        normed: what batch norms reach of it, which have less to compute than the average elementwise kernel.
        cached: by how much small tensors are faster, as they are in the L2 cache.
        resize_ns: that a thread of bilinear resizing takes for an element; it has a pixel, of every map in turn.
        launch_us: from one kernel's end to the next one's work.
        tflops_per_watt: matrix products that a watt of the power limit sustains, whatever the peak.
        gb_per_watt: bytes a second, in 10^9, from GDDR memory that it sustains; from HBM twice as many.
    """

    matrix: float = 0.8
    half: float = 30.0
    group_half: float = 16.0
    unaligned: float = 0.5
    attention: float = 0.6
    biased: float = 0.4
    depthwise: float = 0.25
    depthwise_last: float = 0.15
    depthwise_large: float = 0.15
    bandwidth: float = 0.85
    operands: float = 0.8
    norms: float = 0.7
    rows: float = 0.8
    scattered: float = 0.5
    normed: float = 1.0
    cached: float = 0.5
    resize_ns: float = 50.0
    launch_us: float = 3.0
    tflops_per_watt: float = 2.0
    gb_per_watt: float = 7.0


#: Architectures whose cards have HBM.
HBM = (80, 90, 100, 103)
NAMES = tuple(field.name for field in fields(Parameters))
#: How far the logarithm of each may plausibly be from its default.
PLAUSIBLE = {"resize_ns": 1.5, "matrix": 0.3, "bandwidth": 0.15, "operands": 0.3, "rows": 0.3}
_ELSE = 0.6


def plausible() -> Column:
    return np.array([PLAUSIBLE.get(name, _ELSE) for name in NAMES])


@dataclass(frozen=True)
class Device:
    """A card's peaks: bytes and multiply-accumulates a second, bytes of L2 cache, multiprocessors, watts."""

    bandwidth: float
    matrix: float
    fp32: float
    l2: float
    multiprocessors: int
    power: float
    hbm: bool

    @classmethod
    def of(cls, card: Card) -> Device:
        fp32 = card.multiprocessors * card.limits.fp32_lanes * card.boost_ghz * 1e9
        matrix = card.fp16_tflops * 1e12 / 2
        l2 = card.l2_mib * 2**20
        return cls(card.memory_gb_s * 1e9, matrix, fp32, l2, card.multiprocessors, card.power_w, card.arch in HBM)

    def sustained(self, matrix: float, bandwidth: float) -> Device:
        """With factors of what it reaches beside other cards: of arithmetic, and of bandwidth."""
        return replace(
            self,
            matrix=self.matrix * matrix,
            fp32=self.fp32 * matrix,
            power=self.power * matrix,
            bandwidth=self.bandwidth * bandwidth,
        )

    def matrix_rate(self, parameters: Parameters) -> float:
        """Multiply-accumulates a second of the matrix units within the power limit."""
        return _least(self.matrix * parameters.matrix, self.power * parameters.tflops_per_watt * 1e12 / 2)

    def byte_rate(self, parameters: Parameters) -> float:
        """Bytes a second of an elementwise kernel within the power limit."""
        powered = self.power * parameters.gb_per_watt * 1e9 * (2 if self.hbm else 1)
        return _least(self.bandwidth * parameters.bandwidth, powered)


def _least(peak: float, powered: float) -> float:
    """A smooth minimum."""
    return float((peak**-_SHARP + powered**-_SHARP) ** (-1 / _SHARP))


#: Elements of the largest window for which there are special kernels.
_LARGE = 25
#: Threads of a multiprocessor.
_THREADS = 2048
#: Exponent of memory and arithmetic, which overlap.
_OVERLAP = 4.0
#: How sharply the power limit takes over from the peak.
_SHARP = 6.0
_NUMBER = {kind: position for position, kind in enumerate(KINDS)}
_MATRIX = ("product", "batched product", "convolution", "first convolution", "grouped convolution", "attention",
           "attention with bias")  # fmt: skip
_IS_MATRIX = np.array([name in _MATRIX for name in KINDS])
_SHARE_OF_BANDWIDTH = {
    **dict.fromkeys(KINDS[:10], "operands"),
    "batch norm": "normed",
    "normalisation": "norms",
    **dict.fromkeys(("softmax", "reduction"), "rows"),
    **dict.fromkeys(("strided copy", "gather", "pooling", "resize", "other"), "scattered"),
}
_SHARE_OF_PRODUCTS = {
    **dict.fromkeys(("batched product", "attention"), "attention"),
    "attention with bias": "biased",
}
_HALF = {
    **dict.fromkeys(("product", "batched product", "convolution", "first convolution"), "half"),
    "grouped convolution": "group_half",
}
#: A head of attention narrower than this leaves matrix units idle.
_HEAD = 16.0
#: Channels of the first convolution's images are padded to this many.
_PADDED = 8


def _by_kind(names: dict[str, str], parameters: Parameters, default: float) -> Column:
    return np.array([getattr(parameters, names[kind]) if kind in names else default for kind in KINDS])


@lru_cache(maxsize=4)
def _of_kinds(parameters: Parameters) -> tuple[Column, Column, Column]:
    """Shares of the bandwidth and of products, and lengths, by the kind's number."""
    shares = _by_kind(_SHARE_OF_BANDWIDTH, parameters, 1.0), _by_kind(_SHARE_OF_PRODUCTS, parameters, 1.0)
    return *shares, _by_kind(_HALF, parameters, 0.0)


def seconds(table: Table, parameters: Parameters, device: Device, batch: Column) -> Column:
    """Of one launch of each kernel, for a batch of each model."""
    images = batch[table.owner]
    moved = table.moved * images + table.fixed
    bandwidth = device.byte_rate(parameters)
    share = _of_kinds(parameters)[0][table.kind]
    memory = moved / (bandwidth * share * (1 + parameters.cached * device.l2 / (device.l2 + moved)))
    arithmetic = table.macs * images / arithmetic_rate(table, parameters, device)
    both = np.maximum(memory, arithmetic) + 1e-15
    together = both * ((memory / both) ** _OVERLAP + (arithmetic / both) ** _OVERLAP) ** (1 / _OVERLAP)
    beside = table.beside * images / bandwidth
    return together + beside + parameters.launch_us * 1e-6


def arithmetic_rate(table: Table, parameters: Parameters, device: Device) -> Column:
    """Multiply-accumulates a second that each kernel could reach if memory took no time; infinite for copies."""
    kind = table.kind
    rate = np.full(len(kind), np.inf)
    _, share_of_kind, half_of_kind = _of_kinds(parameters)
    share, half = share_of_kind[kind], half_of_kind[kind]
    filled = table.depth / (table.depth + half) * table.width / (table.width + half)
    attention = (kind == _NUMBER["attention"]) | (kind == _NUMBER["attention with bias"])
    filled = np.where(attention, table.depth / (table.depth + _HEAD), filled)
    filled = np.where(kind == _NUMBER["first convolution"], filled * 3 / _PADDED, filled)
    aligned = np.where((table.aligned > 0) | (kind == _NUMBER["first convolution"]), 1.0, parameters.unaligned)
    matrix = _IS_MATRIX[kind]
    rate[matrix] = (device.matrix_rate(parameters) * share * filled * aligned)[matrix]
    large = np.where(table.depth > _LARGE, parameters.depthwise_large, parameters.depthwise)
    rate = np.where(kind == _NUMBER["depthwise convolution"], device.fp32 * large, rate)
    rate[kind == _NUMBER["depthwise channels-last"]] = device.fp32 * parameters.depthwise_last
    rate[kind == _NUMBER["fp32 product"]] = device.fp32 * min(1.0, parameters.matrix)
    threads = np.minimum(table.depth, device.multiprocessors * _THREADS)
    return np.where(kind == _NUMBER["resize"], threads * 1e9 / parameters.resize_ns, rate)


def from_vector(logarithms: Column) -> Parameters:
    return Parameters(*np.exp(logarithms))


def to_vector(parameters: Parameters) -> Column:
    return np.log(np.array(astuple(parameters)))


__all__ = ["HBM", "NAMES", "Device", "Parameters", "arithmetic_rate", "from_vector", "plausible", "seconds",
           "to_vector"]  # fmt: skip
