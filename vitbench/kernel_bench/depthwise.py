"""Problems of depthwise_conv2d: beside it torch's and cuDNN's convolution in both layouts, with the same epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from vitkernels import DepthwiseCase, depthwise_conv2d, depthwise_conv2d_reference, depthwise_conv2d_work

from vitbench.errors import Unsupported
from vitbench.kernel_bench.peers import compiled, refusing
from vitbench.kernel_bench.problem import DTYPES, NEEDS_GPU, Call, Impl, Problem

_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
}


def small_depthwise(case: DepthwiseCase) -> DepthwiseCase:
    side = max(8, case.k, 2 * case.stride)
    return replace(case, B=2, C=min(case.C, 16), H=min(case.H, side), W=min(case.W, side))


def depthwise_problem(case: DepthwiseCase, dtype_name: str, device: str, train: bool) -> Problem:
    """Everything is channels_last but what is called nchw. Scale and shift are parameters, as an evaluated norm's."""
    dtype = DTYPES[dtype_name]
    shape = (case.B, case.C, case.H, case.W)
    inputs = [
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last),
        (torch.randn(case.C, 1, case.k, case.k, device=device) / case.k).to(dtype),
        *(torch.randn(case.C, device=device) for _ in range(case.bias + 2 * case.affine)),
    ]

    def named(vectors: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
        bias, *affine = vectors if case.bias else (None, *vectors)
        scale, shift = affine or (None, None)
        return {"bias": bias, "scale": scale, "shift": shift}

    options = {"activation": case.activation, "residual": case.residual}

    def ours(x: Tensor, weight: Tensor, *vectors: Tensor) -> Tensor:
        bias, scale, shift = named(vectors).values()
        return depthwise_conv2d(x, weight, bias, case.stride, case.padding, scale=scale, shift=shift, **options)

    def reference(x: Tensor, weight: Tensor, *vectors: Tensor) -> Tensor:
        bias, scale, shift = named(vectors).values()
        return depthwise_conv2d_reference(
            x, weight, bias, case.stride, case.padding, scale=scale, shift=shift, **options
        )

    def separate(convolve: Call) -> Call:
        def layers(x: Tensor, weight: Tensor, *vectors: Tensor) -> Tensor:
            bias, scale, shift = named(vectors).values()
            y = convolve(x, weight, bias)
            y = _ACTIVATE[case.activation](x + y if case.residual == "pre" else y)
            if scale is not None and shift is not None:
                y = torch.addcmul(shift[:, None, None], y, scale[:, None, None])
            return x + y if case.residual == "post" else y

        return layers

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, case.stride, case.padding, groups=case.C)

    def cudnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """cuDNN's own convolution, its fastest algorithm for the shape: conv2d may choose torch's kernel instead."""
        if not x.is_cuda:
            raise Unsupported("cuDNN needs a GPU")
        pad, step = [case.padding] * 2, [case.stride] * 2
        with refusing("CUDNN_STATUS_NOT_SUPPORTED", "unable to find an engine"):
            y = torch.cudnn_convolution(x, weight, pad, step, [1, 1], case.C, True, False, False)
        return y if bias is None else y + bias[:, None, None]

    def nhwc(tensors: list[Tensor]) -> list[Tensor]:
        x, weight, *vectors = (t.to(dtype) for t in tensors)
        return [x, weight.contiguous(memory_format=torch.channels_last), *vectors]

    def nchw(tensors: list[Tensor]) -> list[Tensor]:
        x, *rest = (t.to(dtype) for t in tensors)
        return [x.contiguous(), *rest]

    no_gpu = NEEDS_GPU if device == "cpu" else ""
    impls = (
        Impl("fused", ours, unsupported=no_gpu, launches="fwd+bwd*" if train else "fwd"),
        Impl("fused-nchw", ours, lambda t: [t[0].contiguous(), *t[1:]], no_gpu),
        Impl("eager", separate(conv2d), nhwc),
        Impl("eager-nchw", separate(conv2d), nchw),
        Impl("cudnn-nhwc", separate(cudnn), nhwc),
        Impl("cudnn-nchw", separate(cudnn), nchw),
        Impl("compile", compiled(separate(conv2d)), nhwc),
    )
    work = [
        depthwise_conv2d_work(shape, case.k, case.stride, case.padding, itemsize=dtype.itemsize, backward=b)
        for b in (False, True)[: 1 + train]
    ]
    grad = None
    if train:
        with torch.no_grad():
            grad = torch.randn_like(conv2d(inputs[0], inputs[1], None))
    return Problem(inputs, grad, reference, impls, tuple(work), 1, case.C * case.H * case.W)
