"""Hollow tensors, and what is known of operators, against torch's own tensors without data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitbench.trace import hollow, known
from vitbench.trace.skeleton import Unwritten, replace_tensors
from vitbench.trace.tracer import Tracer

aten = torch.ops.aten
BF16 = torch.bfloat16


def one_image(x: Tensor) -> Tensor:
    """One of the images of a batch, whose channels come last, and whose own stride is that of a row."""
    _, channels, height, width = x.shape
    return x.new_empty(channels * height * width).as_strided(
        (1, channels, height, width), (channels, 1, channels * width, channels)
    )


def calls() -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    for dtype in (torch.float32, BF16):
        for x in (torch.empty(5, 3, 8, 4, dtype=dtype), torch.empty(5, 8, 4, 3, dtype=dtype).permute(0, 3, 1, 2)):
            yield aten.add.Tensor, (x, x), {"alpha": 2}
            yield aten.mul.Tensor, (x, 0.5), {}
            for op in (aten.gelu, aten.relu, aten.silu, aten.sigmoid, aten.tanh):
                yield op.default, (x,), {}
            yield aten.native_dropout.default, (x, 0.1, True), {}
            for op in (aten.empty_like, aten.zeros_like):
                yield op.default, (x,), {"pin_memory": False, "memory_format": torch.preserve_format}
                yield op.default, (x,), {"dtype": torch.float64}
            for op in (aten.gelu_backward, aten.silu_backward, aten.sigmoid_backward, aten.tanh_backward):
                yield op.default, (x, x), {}
            yield aten.threshold_backward.default, (x, x, 0), {}
            for op in (aten._softmax, aten._log_softmax):
                yield op.default, (x, -1, False), {}
            for op in (aten._softmax_backward_data, aten._log_softmax_backward_data):
                yield op.default, (x, x, -1, dtype), {}
            yield aten.clone.default, (x,), {}
            yield aten.clone.default, (x,), {"memory_format": torch.contiguous_format}
            yield aten.clone.default, (x,), {"memory_format": torch.channels_last}
            yield aten._to_copy.default, (x,), {"dtype": torch.float16}
            yield aten._to_copy.default, (x,), {"layout": torch.strided, "device": torch.device("cpu")}
            for y in (
                x[:1],
                x[:, :1],
                x[..., :1],
                x[:, 1:],
                x[..., 1:],
                x[:, 1:, 2:],
                x[:, :1, 2:],
                x[::2],
                x.mT,
                x[:0],
            ):
                yield aten.clone.default, (y,), {}
                yield aten.empty_like.default, (y,), {"dtype": torch.float64}
                yield aten.zeros_like.default, (y,), {}
                options = {"layout": torch.strided, "device": torch.device("cpu")}
                for more in ({}, options):
                    yield aten._to_copy.default, (y,), {"dtype": torch.float16, **more}
            for op in (aten.new_empty, aten.new_zeros):
                yield op.default, (x, [2, 1, 3]), {"dtype": torch.float16, "device": torch.device("cpu")}
                yield op.default, (x, [2, 0]), {}
            for shape, stride in (([2, 3], [3, 1]), ([2, 3], [1, 2]), ([], []), ([2, 1], [1, 1])):
                yield aten.new_empty_strided.default, (x, shape, stride), {"device": torch.device("cpu")}
            yield aten.roll.default, (x, [1, 2], [2, 3]), {}
            for dims in ([0], [0, 1], [1], [0, 1, 2, 3]):
                yield aten.sum.dim_IntList, (x, dims), {}
                yield aten.sum.dim_IntList, (x, dims, True), {}
            w = torch.empty(4, dtype=dtype)
            yield aten.native_layer_norm.default, (x, [4], w, w, 1e-5), {}
            one = torch.empty(5, 3, 8, 1)
            yield aten.native_layer_norm_backward.default, (x, x, [4], one, one, w, w, [True, False, True]), {}
            w = torch.empty(3)
            for train in (True, False):
                grad = (x, x, w, w, w, w, w, train, 1e-5, [True, True, True])
                yield aten.native_batch_norm_backward.default, grad, {}
        x = torch.empty(5, 3, 8, 4, dtype=dtype)
        for size in ((3, 8, 4), (8, 1), (1, 1, 1, 4), (5, 1, 1, 1), (2, 5, 3, 8, 4), (1, 3, 8, 4)):
            for other in (torch.empty(size, dtype=dtype), torch.empty(size, dtype=torch.float16)):
                for op in (aten.add, aten.mul):
                    yield op.Tensor, (x, other), {}
                    yield op.Tensor, (other, x), {}
        yield aten.mul.Tensor, (x, torch.empty((), dtype=torch.float64)), {}
        yield aten.div.Tensor, (x, 3), {}
        for dim in (0, 1, -1):
            yield aten.cat.default, ([x, x],), {"dim": dim}
            yield aten.cat.default, ([x, x.transpose(0, 1).contiguous().transpose(0, 1)], dim), {}
        for dims in ([2, 3], [-1], [1], [0, 1, 2, 3]):
            for keepdim in (True, False):
                yield aten.mean.dim, (x, dims, keepdim), {}
        x = torch.empty(5, 8, 4, 6, dtype=dtype).permute(0, 3, 1, 2)
        for y in (x, x[:1], x[:, :, :1], x[..., :1], one_image(x)):
            for w in (torch.empty(12, 6, 1, 1, dtype=dtype), torch.empty(1, 6, 1, 1, dtype=dtype)):
                yield aten.convolution.default, (y, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1), {}
            w = torch.empty(6, 1, 3, 3, dtype=dtype)
            yield aten.convolution.default, (y, w, None, [2, 1], [1, 1], [1, 1], False, [0, 0], 6), {}
        a, b = torch.empty(6, 7, dtype=dtype), torch.empty(9, 7, dtype=dtype).t()
        yield aten.mm.default, (a, b), {}
        yield aten.addmm.default, (torch.empty(9, dtype=dtype), a, b), {}
        yield aten.addmm.default, (torch.empty(6, 9, dtype=dtype), a, b), {}
        yield aten.bmm.default, (a.expand(4, 6, 7), b.expand(4, 7, 9)), {}
        for size in ((5, 6, 8, 7), (1, 6, 8, 7), (5, 6, 1, 1)):
            x = torch.empty(size, dtype=dtype)
            for groups, kernel, step, dilation in ((1, 3, 1, 1), (1, 1, 1, 1), (2, 3, 2, 2), (6, 2, 2, 1)):
                w = torch.empty(12, 6 // groups, kernel, kernel, dtype=dtype)
                rest = ([step] * 2, [2, 2], [dilation] * 2, False, [0, 0], groups)
                yield aten.convolution.default, (x, w, None, *rest), {}
                grad = torch.empty(look(aten.convolution.default(x, w, None, *rest))[0][0], dtype=dtype)
                for mask in ([True, True, True], [False, True, False]):
                    for out in (grad, grad.to(memory_format=torch.channels_last), grad[:1].expand(grad.shape)):
                        for y in (x, x.to(memory_format=torch.channels_last), one_image(x)):
                            if len(out) == len(y):
                                yield aten.convolution_backward.default, (out, y, w, [12], *rest, mask), {}
    w = torch.empty(4)
    for x in (torch.empty(5, 4, 3, 8).permute(0, 2, 3, 1), torch.empty(5, 3, 8, 8)[..., :4], torch.empty(3, 4).t()[:0]):
        yield aten.native_layer_norm.default, (x, list(x.shape[-1:]), w[: x.shape[-1]], w[: x.shape[-1]], 1e-5), {}
    x, w = torch.empty(5, 3, 8, 4), torch.empty(3)
    for y in (x, x[:1], x[:1].to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)[:1]):
        yield aten.native_batch_norm.default, (y, w, w, w, w, True, 0.1, 1e-5), {}
        yield aten.native_batch_norm.default, (y, w, w, w, w, False, 0.1, 1e-5), {}


def look(tensors: Any) -> list[Any]:
    listed = tensors if isinstance(tensors, (tuple, list)) else [tensors]
    return [(tuple(t.shape), t.stride(), t.dtype) if isinstance(t, Tensor) else t for t in listed]


def faked(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return list(map(faked, value)) if isinstance(value, list) else value


def test_what_is_known_is_what_torch_says() -> None:
    told = 0
    for op, args, kwargs in calls():
        found = known.results(op, args, kwargs)
        if found is None:
            continue
        told += 1
        with FakeTensorMode():
            assert found == look(op(*map(faked, args), **kwargs)), (op, look(args))
    assert told > 50


def more_calls() -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Of operators that are asked on the meta device, with tensors that lie in any way."""
    for dtype in (torch.float32, BF16):
        x = torch.empty(5, 3, 8, 4, dtype=dtype)
        last = torch.empty(5, 8, 4, 3, dtype=dtype).permute(0, 3, 1, 2)
        for y in (x, last, x[:1], last[:1], x[..., :2], x[:, :1].expand(5, 3, 8, 4), x.transpose(0, 2)):
            for op in (aten.gelu, aten.neg, aten.rsqrt, aten.zeros_like, aten.empty_like, aten.ones_like, aten.clone):
                yield op.default, (y,), {}
            for op in (aten.add, aten.sub, aten.mul, aten.div):
                yield op.Tensor, (y, y.float()), {}
                yield op.Tensor, (y, y.contiguous()), {}
                yield op.Tensor, (y, y[:1, :, :1]), {}
                yield op.Tensor, (y, 2.0), {}
            for op in (aten.div, aten.mul):
                yield op.Scalar, (y, 3), {}
            yield aten.pow.Tensor_Scalar, (y, 2), {}
            yield aten._to_copy.default, (y,), {"dtype": torch.float16}
            yield aten.sum.dim_IntList, (y, [1, 2]), {"dtype": torch.float32}
            yield aten.mean.dim, (y, [-1, -2], True), {}
            yield aten.cat.default, ([y, y], 1), {}
            yield aten.stack.default, ([y, y], 1), {}
            yield aten.constant_pad_nd.default, (y, [0, 3], 0.0), {}
            yield aten.clamp_min.default, (y, 0.0), {}
            for z in (y, y.as_strided((4, 3, 3), (1, 5, 4))):
                yield aten.flip.default, (z, [0, 2]), {}
            yield aten.unfold_backward.default, (y, [y.shape[0] + 7, *y.shape[1:3]], 0, y.shape[3], 1), {}
            yield aten.ge.Scalar, (y, 0.0), {}
            yield aten.where.self, (y > 0, y, torch.empty((), dtype=dtype)), {}
            for op in (aten.gelu_backward, aten.silu_backward):
                yield op.default, (y.contiguous(), y), {}
            yield aten.threshold_backward.default, (y.contiguous(), y, 0), {}
            yield aten._softmax.default, (y, 1, False), {}
            yield aten._softmax_backward_data.default, (y, y.contiguous(), 1, dtype), {}
            yield aten.native_dropout_backward.default, (y, y > 0, 2.0), {}
            yield aten.slice_backward.default, (y, [*y.shape[:-1], 9], 3, 0, y.shape[3], 1), {}
            yield aten.select_backward.default, (y, [*y.shape, 9], 4, 0), {}
            w, one = torch.empty(y.shape[-1]), torch.empty(*y.shape[:-1], 1)
            grad = (y.contiguous(), y, [y.shape[-1]], one, one, w, w, [True, True, True])
            yield aten.native_layer_norm_backward.default, grad, {}
            w = torch.empty(y.shape[1])
            for other in (y, y.contiguous()):
                grad = (other, y, w, None, None, w, w, True, 1e-5, [True, True, True])
                yield aten.native_batch_norm_backward.default, grad, {}
        q = torch.empty(2, 7, 3, 5, 16, dtype=dtype).permute(2, 0, 3, 1, 4)
        mask = torch.empty(2, 5, 7, 8, dtype=dtype)[..., :7]
        attend = aten._scaled_dot_product_efficient_attention.default
        for bias, grad in ((mask, True), (None, False)):
            yield attend, (*q, bias, grad), {"scale": 0.25}
            rest = (q[0], torch.empty(2, 5, 32), torch.empty(2), torch.empty(()), 0.0, [True] * 3 + [grad])
            backward = aten._scaled_dot_product_efficient_attention_backward.default
            yield backward, (q[0], *q, bias, *rest), {"scale": 0.25}
        if dtype is BF16:
            for way in (q, q.contiguous()):
                yield aten._scaled_dot_product_flash_attention.default, (*way,), {"scale": 0.25}
                rest = (torch.empty(2, 5, 7), None, None, 7, 7, 0.0, False, torch.empty(2), torch.empty(()))
                backward = aten._scaled_dot_product_flash_attention_backward.default
                yield backward, (q[0], *way, q[0], *rest), {"scale": 0.25}
        pool = ([3, 3], [2, 2], [1, 1])
        for y in (x, last):
            yield aten.max_pool2d_with_indices.default, (y, *pool), {}
            small = torch.empty(5, 3, 4, 2, dtype=dtype)
            back = (small, y, *pool, [1, 1], False, small.long())
            yield aten.max_pool2d_with_indices_backward.default, back, {}
        scores, labels = torch.empty(5, 9, dtype=dtype), torch.empty(5, dtype=torch.long)
        yield aten.nll_loss_forward.default, (scores, labels, None, 1, -100), {}
        one = torch.empty((), dtype=dtype)
        yield aten.nll_loss_backward.default, (one, scores, labels, None, 1, -100, one), {}
        for options in ({}, {"dtype": dtype, "device": torch.device("cpu")}):
            yield aten.zeros.default, ([3, 4],), options
            yield aten.empty.memory_format, ([3, 4, 5, 6],), {**options, "memory_format": torch.channels_last}
            yield aten.scalar_tensor.default, (2.0,), options


def test_the_meta_device_says_what_torchs_tensors_without_data_do() -> None:
    asked = set()
    for op, args, kwargs in more_calls():
        assert op in known.ON_META
        asked.add(op)
        found, device = hollow._asked(op, args, kwargs, set())
        assert device.type == "meta"
        with FakeTensorMode():
            right = op(*map(faked, args), **kwargs)
        assert look(found) == look(right), (op, look([one for one in args if isinstance(one, Tensor)]))
        assert sizes(found) == sizes(right), op
    assert asked == known.ON_META


def sizes(tensors: Any) -> list[Any]:
    """Bytes of each one's storage, and where in it the tensor begins."""
    listed = [one for one in tensors if one is not None] if isinstance(tensors, (tuple, list)) else [tensors]
    return [(one.untyped_storage().nbytes(), one.storage_offset()) for one in listed if isinstance(one, Tensor)]


def test_statistics_of_half_precision_are_kept_in_the_precision_of_the_weights() -> None:
    x, w = torch.ones(5, 3, 8, 4, dtype=BF16), torch.ones(3)
    args = (x, w, w, w, w, True, 0.1, 1e-5)  # as the kernel does, and torch's description of it does not
    assert known.results(aten.native_batch_norm.default, args, {}) == look(aten.native_batch_norm.default(*args))


def test_hollow_tensors_share_storages_as_others_do_and_take_no_memory() -> None:
    with Tracer() as tracer, tracer.recording({}):
        x = torch.empty(2**20, 2**20)
        y = x.t()[5:].unflatten(1, (2, -1))
        assert hollow.is_hollow(y)
        assert y.untyped_storage()._cdata == x.untyped_storage()._cdata
        z = torch.chunk(x + 1, 3)
        assert tracer.sizes == [2**42, 2**42]
        del x, y, z
        assert tracer.now == 0
    assert not hollow.is_hollow(torch.ones(3))


def test_wrappers_without_a_storage_are_not_hollow() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(hollow.is_hollow(x))
        return x

    torch.vmap(look)(torch.ones(3))
    assert seen == [False]


def test_results_that_depend_on_data_are_refused_and_constants_have_theirs() -> None:
    with Tracer():
        assert (torch.tensor([1.0, 2.0]) + 1).sum().item() == 5
        for ask in (Tensor.item, torch.nonzero):
            with pytest.raises(Exception, match=r"aten|data"):
                ask(torch.empty(1))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: np.from_dlpack(x),
        lambda x: torch.utils.dlpack.to_dlpack(x),
        lambda x: x.data_ptr(),
        lambda x: torch.tensor([x[0], 1.0]),
        lambda x: torch.as_tensor([x[0], x[1]]),
        lambda x: x.new_tensor([x[0]]),
        lambda x: copy.deepcopy(x),
        lambda x: torch.tensor([1.0, 2.0]).copy_(x),
        lambda x: torch.tensor([1.0, 2.0]).__setitem__(0, x[0]),
    ],
)
def test_nothing_reads_what_is_not_there(read: Callable[[Tensor], Any]) -> None:
    with Tracer(), pytest.raises(RuntimeError, match=r"aten|Cannot access data"):
        read(torch.empty(2))


def test_copies_are_hollow_and_torch_is_left_as_it_was() -> None:
    with Tracer() as tracer, tracer:
        half = torch.tensor(torch.empty(2), dtype=torch.half)
        assert hollow.is_hollow(half)
        assert half.dtype is torch.half
        assert torch.tensor([[1, 2]]).tolist() == [[1, 2]]
    assert "tolist" not in vars(Tensor)
    assert (half + 1).tolist() == [1, 1]  # outside it is a tensor of zeros


def test_gradients_arrive() -> None:
    layer = nn.Linear(3, 4)
    with Tracer():
        layer(torch.empty(1000, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == (4, 3)


def test_parameters_are_made_and_not_written() -> None:
    with torch.device("meta"), Unwritten():
        assert nn.Linear(3, 4).weight.is_meta
    before = torch.get_rng_state()
    with Unwritten():
        layer = nn.Linear(3, 4)
        assert torch.equal(torch.ones(3).mul_(2), torch.full((3,), 2.0))
    assert layer.weight.shape == (4, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_draws_until_numbers_are_in_range_ends_on_what_memory_held_before() -> None:
    weight = nn.Parameter(torch.full((5,), 1e3))
    with Unwritten():
        nn.init.trunc_normal_(weight)
    assert weight.tolist() == [1e3] * 5


def test_what_initialises_through_data_writes_nothing_and_buffers_are_written() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5))
            self.register_buffer("table", torch.arange(5.0))
            self.weight.data.add_(7)
            self.weight[1:3].data.fill_(9)
            self.table.data.add_(7)

    with Unwritten():
        layer = Layer()
    assert layer.weight.tolist() == [0] * 5
    assert layer.table.tolist() == [7, 8, 9, 10, 11]
    again = Layer()  # outside everything is written
    assert again.weight.tolist() == [7, 9, 9, 7, 7]


def test_models_are_copied_as_deepcopy_does() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 3))
            self.again, self.listed, self.run = self.inner[0], [self.inner[1]], self.inner[0].forward
            self.weight, self.constant = self.again.weight, torch.ones(2)

    model = Odd()
    made = replace_tensors(model, lambda t: torch.empty_like(t, device="meta"))
    assert repr(made) == repr(model)
    assert all(one.is_meta for one in (*made.parameters(), made.constant))
    assert (made.again, made.listed[0], made.run.__self__) == (made.inner[0], made.inner[1], made.inner[0])
    assert made.weight is made.again.weight
    assert not any(one.is_meta for one in (*model.parameters(), model.constant))
