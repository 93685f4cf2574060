"""Torch's compiler stays out of what is traced, until somebody wants it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vitbench.process import python_environment

_TRACES = """
import sys
import torch
from torch import nn
from vitbench.trace.tracer import Tracer

with Tracer() as tracer, tracer.recording({}):
    layer = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.empty(5, 3)).sum((0, 1)).backward()
    optimizer.step()
assert "torch._dynamo" not in sys.modules
"""
_WANTS = """
with Tracer() as tracer, tracer.recording({}):
    x = torch.empty(5)
    assert not torch._dynamo.is_compiling()
    alive = tracer.now
    del x
    assert (alive, tracer.now) == (20, 0)  # no frame of the import holds it
assert sys.modules["torch._dynamo"].__path__
"""


_IMPORTS = """
from vitbench.trace import compiler

def traced():
    with Tracer() as tracer, tracer.recording({}):
        x = torch.empty(5)
        from torch._dynamo.config import verbose
        return tracer.now

assert compiler.retried(traced) == 20
assert sys.modules["torch._dynamo"].__path__
"""


@pytest.mark.parametrize("code", [_TRACES + _WANTS, _TRACES + _IMPORTS])
def test_a_step_is_traced_without_the_compiler_and_who_wants_it_gets_it(code: str) -> None:
    ran = subprocess.run([sys.executable, "-c", code], env=python_environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
