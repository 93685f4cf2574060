"""A step recorded once as a CUDA graph and replayed: all of its kernels by one launch.

Where a model is bound by launching (small batches, small maps), the difference to the plain step is what launches cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from vitbench.measure.step import Step
from vitbench.models.outputs import Output

Result = TypeVar("Result")

#: Calls on the recording stream before the recording, so that libraries have made their workspaces.
WARMUP_CALLS = 3


def record(step: Step) -> Callable[[], Output]:
    """A callable that replays `step`; its result is in the same memory every time.

    The step's optimizer, if it has one, must be capturable.

    Raises: RuntimeError when something in the step cannot be recorded, such as waiting for the GPU.
    """
    return record_call(step, step.x.device)


def record_call(step: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """`record` for any call whose inputs stay where they are.

    Raises: RuntimeError when something in it cannot be recorded.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_CALLS):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


__all__ = ["record", "record_call"]
