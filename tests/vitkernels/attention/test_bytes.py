"""Bytes that kernels move, every program's loads and stores followed: what is promised over the unavoidable ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vitkernels import Launch

from vitbench.audit import registry
from vitbench.audit.job import job_of
from vitbench.audit.traffic import Traffic
from vitbench.audit.workers.process import Worker

L2_BYTES = 50 << 20  # of an H100 or H200
L1_BYTES = 128 << 10  # what shared memory leaves of it, at least
WINDOWED = "depthwise_conv2d/cmt_s-?-lpu-*nhwc/fwd/*,depthwise_conv2d/cmt_s-d-irffn-*nhwc/fwd/*"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker("vitbench.audit.workers.follow", [str(L2_BYTES)], interprets=True)
    yield found
    found.close()


def follow(worker: Worker, launch: Launch, bypasses: bool) -> tuple[float, float]:
    """Bytes from memory and from the L2 cache, as multiples of the unavoidable ones; asynchronous copies pass L1 by."""
    found = worker.ask(job_of(launch, 90))
    assert isinstance(found, Traffic), found
    assert found.memory is not None
    assert found.programs == launch.programs
    return found.memory / launch.bytes, (found.loaded(bypasses, L1_BYTES) + found.stored) / launch.bytes


@pytest.mark.parametrize("launch", registry.launches(["vitkernels"], 90, WINDOWED), ids=lambda launch: launch.case)
def test_3x3_in_channels_last_moves_little_twice(worker: Worker, launch: Launch) -> None:
    """A program's eight channels are half of each sector, which its neighbour finds, and completes, in L2."""
    memory, l2 = follow(worker, launch, bypasses=False)
    assert 1.0 <= memory <= 1.01
    assert 2.0 <= l2 <= 2.2


def test_few_keys_are_read_again_from_l2_only(worker: Worker) -> None:
    """A program of CMT's first stage has 64 queries, and reads keys of an image that its neighbours have read.

    Taller tiles read them less often, and take longer: fewer programs run at once.
    """
    (launch,) = registry.launches(["vitkernels"], 90, "bias_attention/cmt_s-a-224/fwd/*")
    memory, l2 = follow(worker, launch, bypasses=True)
    assert 1.0 <= memory <= 1.01
    assert memory <= l2 <= 2.1
