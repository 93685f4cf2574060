"""Layers as functions of torch's own modules, for models that keep their modules and replace what runs.

y = act(norm(conv(x))) and y = norm(act(conv(x) [+ x])) [+ x] over maps [B, C, h, w], packed linear layers, and CMT's
attention sub-block. In evaluation batch norms fold into weights or epilogues; what is folded is computed at every call,
or once where the model is frozen (`derived.py`), and is no part of any state_dict. In training batch norms use the
statistics of the batch and update the running ones as torch does; the map between norm and activation is computed again
in the backward pass instead of being kept, and a depthwise convolution hands the norm its sums.

Batch norm: Ioffe and Szegedy, arXiv:1502.03167; keeping one map instead of two: Rota Bulo et al., arXiv:1712.02616.
"""

from vitkernels.layers.block import reduced_block, reduced_block_serves
from vitkernels.layers.convolution import EPILOGUES, conv_act_norm, conv_act_norm_conv, conv_norm_act, is_depthwise
from vitkernels.layers.derived import derived, is_frozen, wants_grad
from vitkernels.layers.folding import compute_dtype, evaluated_norm, folded_conv
from vitkernels.layers.linear import packed_linear

__all__ = [
    "EPILOGUES",
    "compute_dtype",
    "conv_act_norm",
    "conv_act_norm_conv",
    "conv_norm_act",
    "derived",
    "evaluated_norm",
    "folded_conv",
    "is_depthwise",
    "is_frozen",
    "packed_linear",
    "reduced_block",
    "reduced_block_serves",
    "wants_grad",
]
