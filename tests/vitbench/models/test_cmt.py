"""CMT against facts about the authors' network: names, shapes, order of operations, counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.vitbench.models.numberless import count, numberless, published
from vitbench.catalog import CatalogEntry, catalog
from vitbench.models import cmt
from vitbench.models.drop_path import DropPath
from vitbench.ops.bundle import EAGER, SDPA, Ops

ENTRIES = [entry for entry in catalog().values() if entry.family == "cmt"]
TINY = cmt.CMTConfig(4, (8, 16, 16, 16), (1, 2, 1, 1), mlp_ratio=2, dropout=0.5, drop_path=0.9)

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def build(config: cmt.CMTConfig = TINY, side: int = 64, ops: Ops = EAGER, classes: int = 10) -> cmt.CMT:
    torch.manual_seed(0)
    return cmt.CMT(config, ops, (side, side), classes)


def randomise(model: torch.nn.Module) -> None:
    """Statistics and affine values other than 0 and 1, so that a misplaced norm shows."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dtype.is_floating_point and tensor.ndim == 1:
            tensor.add_(0.3 * torch.randn_like(tensor))


def test_every_catalog_row_is_built() -> None:
    assert list(cmt.MODELS) == [entry.model for entry in ENTRIES]
    assert [spec.resolution for spec in cmt.MODELS.values()] == [entry.resolution for entry in ENTRIES]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.model)
def test_parameters_and_macs_are_the_catalogs(entry: CatalogEntry) -> None:
    found, shapes = count(entry.model)
    assert shapes == [(1, 1000)]
    assert round(found.params_m, 6) == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, rel=5e-3)


def test_state_dict_has_the_official_names() -> None:
    affine = ("weight", "bias")
    names: set[str] = set()

    def add(module: str, leaves: tuple[str, ...] = affine) -> None:
        names.update(f"{module}.{leaf}" for leaf in leaves)

    for i in (1, 2, 3):
        add(f"stem_conv{i}")
        add(f"stem_norm{i}", NORM)
    for stage, depth, reduces in (("a", 3, True), ("b", 3, True), ("c", 16, True), ("d", 3, False)):
        names.add(f"relative_pos_{stage}")
        add(f"patch_embed_{stage}.proj")
        add(f"patch_embed_{stage}.norm")
        for block in (f"blocks_{stage}.{i}" for i in range(depth)):
            for part in ("norm1", "norm2", "proj", "attn.q", "attn.k", "attn.v", "attn.proj"):
                add(f"{block}.{part}")
            for part in ("mlp.conv1.0", "mlp.proj", "mlp.conv2.0", *(["attn.sr.0"] if reduces else [])):
                add(f"{block}.{part}")
            for part in ("mlp.conv1.2", "mlp.proj_bn", "mlp.conv2.1", *(["attn.sr.1"] if reduces else [])):
                add(f"{block}.{part}", NORM)
    for module, leaves in (("_fc", affine), ("_bn", NORM), ("head", affine)):
        add(module, leaves)
    state = published("cmt_s").state_dict()
    assert set(state) == names
    tables = {stage: list(state[f"relative_pos_{stage}"].shape) for stage in "abcd"}
    assert tables == {"a": [1, 3136, 49], "b": [2, 784, 49], "c": [4, 196, 49], "d": [8, 49, 49]}
    assert list(state["blocks_a.0.attn.sr.0.weight"].shape) == [64, 1, 8, 8]
    assert list(state["blocks_a.0.mlp.proj.weight"].shape) == [256, 1, 3, 3]


@pytest.mark.parametrize(("config", "hidden"), [(cmt.TI, [165, 331, 662, 1324]), (cmt.XS, [196, 392, 784, 1568])])
def test_feed_forward_width_is_truncated(config: cmt.CMTConfig, hidden: list[int]) -> None:
    with numberless():
        state = cmt.CMT(config, EAGER, (32, 32)).state_dict()
    assert [state[f"blocks_{stage}.0.mlp.proj.weight"].shape[0] for stage in "abcd"] == hidden


def test_norm_epsilons() -> None:
    eps = {name: m.eps for name, m in build().named_modules() if hasattr(m, "eps")}
    inner = {name for name in eps if ".norm1" in name or ".norm2" in name}
    assert {eps[name] for name in inner} == {1e-6}
    assert {eps[name] for name in eps.keys() - inner} == {1e-5}


def test_blocks_of_a_stage_share_its_bias_and_heads_are_scaled_by_their_own_width() -> None:
    seen: list[tuple[Tensor, Tensor, float | None]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
        assert bias is not None
        seen.append((q, bias, scale))
        return EAGER.attention(q, k, v, bias, scale)

    model = build(ops=dataclasses.replace(EAGER, attention=spy)).eval()
    model(torch.randn(2, 3, 64, 64))
    stages = ["a", "b", "b", "c", "d"]
    assert all(bias is model.get_parameter(f"relative_pos_{s}") for s, (_, bias, _) in zip(stages, seen, strict=True))
    assert [tuple(q.shape) for q, _, _ in seen] == [
        (2, 1, 256, 8), (2, 2, 64, 8), (2, 2, 64, 8), (2, 4, 16, 4), (2, 8, 4, 2)
    ]  # fmt: skip
    assert all(scale in (None, q.shape[-1] ** -0.5) for q, _, scale in seen)


def test_attention_follows_its_formula() -> None:
    torch.manual_seed(0)
    attention = cmt.Attention(EAGER, width=6, heads=2, reduction=2).eval()
    randomise(attention)
    x, bias = torch.randn(1, 16, 6), torch.randn(2, 16, 4)
    p = attention.state_dict()
    image = x.transpose(1, 2).reshape(1, 6, 4, 4)
    reduced = torch.zeros(1, 6, 2, 2)
    for c, i, j in ((c, i, j) for c in range(6) for i in range(2) for j in range(2)):
        window = image[0, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        y = (window * p["sr.0.weight"][c, 0]).sum() + p["sr.0.bias"][c]
        y = (y - p["sr.1.running_mean"][c]) / (p["sr.1.running_var"][c] + 1e-5).sqrt()
        reduced[0, c, i, j] = y * p["sr.1.weight"][c] + p["sr.1.bias"][c]
    keys = reduced.flatten(2).transpose(1, 2)
    q, k, v = (F.linear(t, p[f"{n}.weight"], p[f"{n}.bias"]) for n, t in (("q", x), ("k", keys), ("v", keys)))
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        scores = q[0, :, part] @ k[0, :, part].T / 3**0.5 + bias[h]
        heads.append(scores.softmax(-1) @ v[0, :, part])
    expected = F.linear(torch.cat(heads, 1), p["proj.weight"], p["proj.bias"])
    torch.testing.assert_close(attention(x, (4, 4), bias)[0], expected)


def test_inner_shortcut_comes_before_activation_and_norm() -> None:
    torch.manual_seed(0)
    irffn = cmt.IRFFN(EAGER, width=3, hidden=5).eval()
    randomise(irffn)
    x = torch.randn(2, 3, 6, 6)
    p = irffn.state_dict()

    def norm(t: Tensor, name: str) -> Tensor:
        leaves = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (p[f"{name}.{leaf}"][:, None, None] for leaf in leaves)
        return (t - mean) / (var + 1e-5).sqrt() * weight + bias

    def pointwise(t: Tensor, name: str) -> Tensor:
        return torch.einsum("bchw,oc->bohw", t, p[f"{name}.weight"][:, :, 0, 0]) + p[f"{name}.bias"][:, None, None]

    h = norm(F.gelu(pointwise(x, "conv1.0")), "conv1.2")
    h = F.gelu(h + F.conv2d(h, p["proj.weight"], p["proj.bias"], padding=1, groups=5))
    h = pointwise(norm(h, "proj_bn"), "conv2.0")
    torch.testing.assert_close(irffn(x), norm(h, "conv2.1"))


def test_local_perception_comes_first_with_a_plain_shortcut() -> None:
    torch.manual_seed(0)
    block = cmt.Block(EAGER, width=4, heads=1, reduction=2, hidden=8, drop_path=0.0).eval()
    torch.nn.init.zeros_(block.attn.proj.weight)
    torch.nn.init.zeros_(block.attn.proj.bias)
    block.mlp.conv2[1].weight.data.zero_()
    x = torch.randn(1, 4, 4, 4)
    expected = x + F.conv2d(x, block.proj.weight, block.proj.bias, padding=1, groups=4)
    torch.testing.assert_close(block(x, torch.zeros(1, 16, 4)), expected)


def test_order_of_modules_in_stem_and_head() -> None:
    model = build().eval()
    order: list[str] = []
    for name in (
        "stem_conv1",
        "stem_norm1",
        "stem_conv3",
        "stem_norm3",
        "patch_embed_a",
        "_fc",
        "_bn",
        "_drop",
        "head",
    ):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
    captured: dict[str, Tensor] = {}
    model.stem_conv1.register_forward_hook(lambda m, i, o: captured.update(conv=o))
    model.stem_norm1.register_forward_hook(lambda m, i, o: captured.update(norm_in=i[0]))
    model._bn.register_forward_hook(lambda m, i, o: captured.update(bn=o.clone()))
    model._drop.register_forward_hook(lambda m, i, o: captured.update(pooled=i[0]))
    model(torch.randn(1, 3, 64, 64))
    assert order == [
        "stem_conv1",
        "stem_norm1",
        "stem_conv3",
        "stem_norm3",
        "patch_embed_a",
        "_fc",
        "_bn",
        "_drop",
        "head",
    ]
    torch.testing.assert_close(captured["norm_in"], F.gelu(captured["conv"]))
    torch.testing.assert_close(captured["pooled"], F.silu(captured["bn"]).mean((2, 3)))


def test_sdpa_and_channels_last_give_the_same_logits() -> None:
    eager, sdpa = build().eval(), build(ops=SDPA).eval()
    randomise(eager)
    sdpa.load_state_dict(eager.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(sdpa(x), eager(x), rtol=1e-4, atol=1e-5)
    nhwc = eager(x)
    torch.testing.assert_close(
        eager.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), nhwc, rtol=1e-4, atol=1e-5
    )


def test_rates_rise_linearly_and_dropout_is_before_the_classifier() -> None:
    model = build()
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0, 0.225, 0.45, 0.675, 0.9])
    assert model._drop.p == 0.5
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    assert torch.equal(model(x), model(x))


def test_non_square_resolution_with_its_own_gradient() -> None:
    torch.manual_seed(0)
    model = cmt.CMT(TINY, EAGER, (32, 96), 10)
    assert [tuple(model.get_parameter(f"relative_pos_{s}").shape) for s in "abcd"] == [
        (1, 192, 3), (2, 48, 3), (4, 12, 3), (8, 3, 3)
    ]  # fmt: skip
    model(torch.randn(2, 3, 32, 96)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("resolution", [(200, 224), (224, 100), (0, 32)])
def test_a_size_that_does_not_fit_is_named(resolution: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{resolution[0]}x{resolution[1]}.*multiples of 32"):
        cmt.CMT(TINY, EAGER, resolution)


def test_an_image_of_another_size_is_refused_by_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"input is 96.*built for 64"):
        build()(torch.randn(1, 3, 96, 96))


def test_tables_are_resampled_over_both_grids() -> None:
    source, target = build(side=96), cmt.CMT(TINY, EAGER, (128, 64), 10)
    state = source.state_dict()
    # A bias that is linear in the query's and the key's position must stay so away from the edges.
    for name, stride in zip("abcd", cmt.STRIDES, strict=True):
        qy, qx, ky, kx = (torch.arange(96 // s) * s + s / 2 for s in (stride, stride, 32, 32))
        ramp = qy[:, None, None, None] + 2 * qx[:, None, None] + 4 * ky[:, None] + 8 * kx
        key = f"relative_pos_{name}"
        state[key] = ramp.flatten(2).flatten(0, 1).expand(state[key].shape[0], -1, -1)
    resized = target.resize_state_dict(state)
    target.load_state_dict(resized)
    table = resized["relative_pos_a"].unflatten(2, (4, 2)).unflatten(1, (32, 16))[0]
    inner = table[8:24, 4:12]
    steps = inner.diff(dim=0), inner.diff(dim=1)
    torch.testing.assert_close(steps[0], torch.full_like(steps[0], 3.0), rtol=0.05, atol=0)  # 4 px * 96 / 128
    torch.testing.assert_close(steps[1], torch.full_like(steps[1], 12.0), rtol=0.05, atol=0)  # 2 * 4 px * 96 / 64
    assert bool((table.diff(dim=2) > 0).all())
    assert bool((table.diff(dim=3) > table.diff(dim=2).max()).all())


def test_tables_that_fit_are_kept_and_a_named_source_wins() -> None:
    wide = cmt.CMT(TINY, EAGER, (32, 128), 10)
    state = build(side=64).state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in wide.resize_state_dict(state).items())
    turned = wide.resize_state_dict(state, source=(64, 64))
    assert not torch.equal(turned["relative_pos_a"], state["relative_pos_a"])
    assert turned["relative_pos_a"].shape == state["relative_pos_a"].shape


def test_tables_of_an_unknown_grid_are_refused() -> None:
    wide = cmt.CMT(TINY, EAGER, (32, 96), 10).state_dict()
    with pytest.raises(ValueError, match=r"relative_pos_a is \[1, 192, 3\].*name the resolution"):
        build().resize_state_dict(wide)
    resized = build().resize_state_dict(wide, source=(32, 96))
    build().load_state_dict(resized)
