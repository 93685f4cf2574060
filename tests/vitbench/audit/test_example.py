"""The example of a user's own kernel is right, and the audit takes it as it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vitbench.audit.run import audit

EXAMPLE = Path(__file__).parents[3] / "examples" / "kernels" / "softmax.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_softmax", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("columns", [1, 100, 128])
def test_softmax_is_right(example: ModuleType, columns: int, device: str) -> None:
    x = 4 * torch.randn(3, columns + 5, device=device)[:, :columns]
    torch.testing.assert_close(example.softmax(x), x.double().softmax(1).float(), rtol=1e-5, atol=1e-6)


def test_bad_strides_are_named(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="contiguous rows"):
        example.softmax(torch.randn(4, 4).t())


def test_example_is_audited(tmp_path: Path) -> None:
    masked, even = audit([str(EXAMPLE)], archs=[90], processes=1, cache=tmp_path)
    assert [masked.row.status, even.row.status] == ["ok", "ok"], (masked.row.reason, even.row.reason)
    assert masked.row.exact
    # The reciprocal of each row's sum comes on top of one exp2 per element.
    assert 1.0 < even.row.sfu_per_element < 1.1
    assert even.row.narrowest_hot_load_bytes == 16
    assert even.row.bytes_ratio == pytest.approx(1.0)
    assert even.row.bound_by == "bytes"
