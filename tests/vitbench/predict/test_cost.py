"""The cost model against what can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitbench import cards
from vitbench.predict.cost import NAMES, Device, Parameters, from_vector, plausible, seconds, to_vector
from vitbench.predict.fit import Measured, fit, predict
from vitbench.predict.table import KINDS, Kernel, Table

#: 1 TB/s, 50 * 10^12 multiply-accumulates a second, and so much power that it limits nothing.
DEVICE = Device(1e12, 50e12, 20e12, 1.0, 100, 1e5, False)
DEPTHS = (16, 64, 512)
EXACT = Parameters(matrix=1, bandwidth=1, operands=1, half=1e-9, launch_us=0, cached=1e-9, rows=0.5)


def one(kernel: Kernel, batch: float = 1.0, parameters: Parameters = EXACT, device: Device = DEVICE) -> float:
    return float(seconds(Table.of([[(kernel, 1)]]), parameters, device, np.array([batch]))[0])


def test_bytes_take_what_the_bandwidth_says() -> None:
    assert one(Kernel("elementwise", 1e9)) == pytest.approx(1e-3)
    assert one(Kernel("elementwise", 1e9), batch=8) == pytest.approx(8e-3)
    assert one(Kernel("copy", 0.0, fixed=1e9), batch=8) == pytest.approx(1e-3), "weights do not grow"
    assert one(Kernel("softmax", 1e9)) == pytest.approx(2e-3)


def test_products_take_what_the_matrix_units_say_and_short_sums_less() -> None:
    long = Kernel("product", 1.0, macs=50e9, depth=4096, width=4096)
    assert one(long) == pytest.approx(1e-3)
    half = replace(EXACT, half=4096.0)
    assert one(long, parameters=half) == pytest.approx(4e-3), "half by the sums, half by the columns"
    unaligned = replace(EXACT, unaligned=0.25)
    assert one(long._replace(aligned=False), parameters=unaligned) == pytest.approx(4e-3)


def test_memory_and_arithmetic_overlap_and_launches_do_not() -> None:
    both = Kernel("product", 1e9, macs=50e9, depth=4096, width=4096)
    assert one(both) == pytest.approx(1e-3 * 2 ** (1 / 4), rel=1e-6)
    assert one(both._replace(moved=1e8)) == pytest.approx(1e-3, rel=1e-3), "the smaller one hides"
    assert one(Kernel("copy", 0.0), parameters=replace(EXACT, launch_us=3.0)) == pytest.approx(3e-6)
    assert one(Kernel("convolution", 0.0, beside=1e9)) == pytest.approx(1e-3, rel=1e-3)


def test_the_power_limit_takes_over_from_the_peak() -> None:
    long = Kernel("product", 1.0, macs=50e9, depth=4096, width=4096)
    capped = replace(DEVICE, power=10.0)  # 10 W times 1 TFLOP/W are 5e12 multiply-accumulates a second
    assert one(long, parameters=replace(EXACT, tflops_per_watt=1.0), device=capped) == pytest.approx(1e-2, rel=1e-3)


def test_every_kind_of_kernel_takes_time_and_larger_batches_more() -> None:
    for kind in KINDS:
        kernel = Kernel(kind, 1e6, 1e3, 1e6, 64, 64)
        small, large = (one(kernel, batch, Parameters()) for batch in (1.0, 64.0))
        assert 0 < small < large < 64 * small


def test_a_data_sheet_becomes_a_device() -> None:
    device = Device.of(cards.find("RTX 3090"))
    assert device.fp32 == pytest.approx(35.6e12 / 2, rel=0.01)
    assert device.matrix == pytest.approx(71e12 / 2)
    assert not device.hbm
    assert Device.of(cards.find("H100 SXM")).hbm


def test_parameters_are_at_most_twenty_and_a_vector() -> None:
    assert len(NAMES) <= 20
    assert len(plausible()) == len(NAMES)
    assert from_vector(to_vector(Parameters(half=12.0))).half == pytest.approx(12.0)


def test_the_fit_explains_figures_that_other_parameters_made() -> None:
    """60 models of random kernels, the common kinds, timed by other parameters than the plausible ones."""
    random = np.random.default_rng(0)
    models = [
        [
            (Kernel(str(kind), *random.uniform((1e5, 1e3, 1e6), (1e7, 1e5, 3e8)), int(random.choice(DEPTHS)), 128), 5)
            for kind in random.choice(KINDS[:18], 12)
        ]
        for _ in range(60)
    ]  # fmt: skip
    table = Table.of(models)
    true = replace(Parameters(), matrix=0.6, rows=0.5, scattered=0.8, attention=0.9)
    batch = np.full(60, 128.0)
    measured = []
    for name in ("RTX 3090", "RTX 4090"):
        times = table.sums(seconds(table, true, Device.of(cards.find(name)), batch))
        measured.append(Measured(name, batch / times, batch))
    found = fit(table, measured, np.ones(60, bool))
    plausible_rate = batch / table.sums(seconds(table, Parameters(), Device.of(cards.find("RTX 4090")), batch))
    assert np.median(np.abs(np.log(plausible_rate / measured[1].rate))) > 0.05
    assert predict(table, found, "RTX 4090", batch) == pytest.approx(measured[1].rate, rel=0.06)
