"""What the kernels ask about the device they run on."""

from __future__ import annotations

import subprocess
import sys

import torch
from vitkernels.runtime import device


def test_importing_the_kernels_leaves_torch_compile_alone() -> None:
    program = "import sys, vitkernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_architecture_is_a_constant_to_torch_compile() -> None:
    """The mark that is set by hand is the one that torch's own decorator sets."""

    def decorated() -> None:
        pass

    torch.compiler.assume_constant_result(decorated)
    assert vars(decorated) == vars(device._arch_of_gpu)
