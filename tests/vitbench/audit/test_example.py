"""The example of a user's own kernel is right, and the audit takes it as it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from vitkernels import gated_attention_reference

from vitbench.audit.run import audit
from vitbench.audit.show import show

EXAMPLES = Path(__file__).parents[3] / "examples" / "kernels"
EXAMPLE = EXAMPLES / "softmax.py"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return _load(EXAMPLE)


@pytest.mark.parametrize("columns", [1, 100, 128])
def test_softmax_is_right(example: ModuleType, columns: int, device: str) -> None:
    x = 4 * torch.randn(3, columns + 5, device=device)[:, :columns]
    torch.testing.assert_close(example.softmax(x), x.double().softmax(1).float(), rtol=1e-5, atol=1e-6)


def test_bad_strides_are_named(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="contiguous rows"):
        example.softmax(torch.randn(4, 4).t())


@pytest.mark.smoke
def test_example_is_audited(tmp_path: Path) -> None:
    masked, even = audit([str(EXAMPLE)], archs=[90], processes=1, cache=tmp_path)
    assert [masked.row.status, even.row.status] == ["ok", "ok"], (masked.row.reason, even.row.reason)
    assert masked.row.exact
    # The reciprocal of each row's sum comes on top of one exp2 per element.
    assert 1.0 < even.row.sfu_per_element < 1.1
    assert even.row.narrowest_hot_load_bytes == 16
    assert even.row.bytes_ratio == pytest.approx(1.0)
    assert even.row.bound_by == "bytes"
    # Rows come from memory: whatever uses the loads waits for them.
    assert even.simulated is not None
    assert next(iter(even.simulated.shares)) == "long scoreboard"
    text = show(even)
    assert "cycles of warps: long scoreboard" in text
    assert "% of warp cycles wait for loads" in text


def test_design_that_was_not_chosen_is_right_and_slower(tmp_path: Path, device: str) -> None:
    """gated_attention's docstring compares its time with that of a mixed P and one product."""
    path = EXAMPLES / "gated_one_product.py"
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 196, 1, 48, device=device).half() for _ in range(3))
    positional, gate = torch.randn(1, 196, 196, device=device), torch.randn(1, device=device)
    weights = torch.nn.functional.pad(gate.sigmoid() * positional.softmax(-1), (0, 12)).half()
    got = _load(path).gated_one_product(q, k, v, weights, gate, 48**-0.5)
    heads = [x.transpose(1, 2).double() for x in (q, k, v)]
    want = gated_attention_reference(*heads, positional.double(), gate.double())
    torch.testing.assert_close(got.transpose(1, 2).double(), want, atol=2e-3, rtol=2e-3)
    (chosen,) = audit(pattern="gated_attention/convit_small-224/fwd/*", archs=[90], processes=1, cache=tmp_path)
    (other,) = audit([str(path)], archs=[90], processes=1, cache=tmp_path)
    assert chosen.row.modelled_us < 0.65 * other.row.modelled_us
    assert chosen.row.modelled_high_us < other.row.modelled_low_us


def test_layer_norm_is_right(device: str) -> None:
    layer_norm = _load(EXAMPLES / "layer_norm.py")
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((5, 40), (33,), (33,)))
    # The interpreter does not time configurations: one is chosen.
    layer_norm._layer_norm_kernel.configs = layer_norm._layer_norm_kernel.configs[:1]
    want = torch.nn.functional.layer_norm(x[:, :33], (33,), weight, bias, 1e-6)
    torch.testing.assert_close(layer_norm.layer_norm(x[:, :33], weight, bias), want, atol=1e-5, rtol=1e-5)


def test_a_launcher_on_meta_tensors_is_audited(tmp_path: Path) -> None:
    """The example of `launches_of`: a launch for each configuration, all held back by memory."""
    one, two, four, eight = audit([str(EXAMPLES / "layer_norm.py")], archs=[90], processes=1, cache=tmp_path)
    assert [item.row.num_warps for item in (one, two, four, eight)] == [1, 2, 4, 8]
    assert {item.row.status for item in (one, two, four, eight)} == {"ok"}
    assert four.launch.args["x_stride"] == four.launch.args["columns"] == 768
    assert four.launch.args["BLOCK"] == 1024
    assert four.row.floor_us < four.row.modelled_us < eight.row.modelled_us


def test_matmul_is_right(device: str) -> None:
    matmul = _load(EXAMPLES / "matmul.py")
    a, b = torch.randn(70, 40, device=device), torch.randn(40, 50, device=device)
    torch.testing.assert_close(matmul.matmul(a, b, matmul.Tiles(32, 32, 16, 1, 1)), a @ b, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="contiguous rows"):
        matmul.matmul(a, b.t())


@pytest.mark.parametrize("causal", [False, True])
def test_streaming_attention_is_right(causal: bool, device: str) -> None:
    streaming = _load(EXAMPLES / "streaming_attention.py")
    q, k, v, do = (torch.randn(1, 2, 256, 16, device=device) for _ in range(4))
    double = [x.double().requires_grad_() for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*double, is_causal=causal)
    got, lse = streaming.attention(q, k, v, causal, streaming.Blocks(64, 32, 1, 1))
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    gradients = streaming.attention_backward(q, k, v, got, lse, do, causal)
    for gradient, expected in zip(gradients, torch.autograd.grad(want, double, do.double()), strict=True):
        torch.testing.assert_close(gradient.double(), expected, atol=2e-5, rtol=2e-5)


def test_streaming_attention_masks_what_is_no_whole_block(device: str) -> None:
    streaming = _load(EXAMPLES / "streaming_attention.py")
    q, k, v = (torch.randn(1, 45, 2, 16, device=device).transpose(1, 2) for _ in range(3))
    got, _ = streaming.attention(q, k, v, False, streaming.Blocks(32, 32, 1, 1))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="multiples of 128"):
        streaming.attention_backward(q, k, v, got, got, got, False)
