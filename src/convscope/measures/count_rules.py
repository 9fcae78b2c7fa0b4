"""What one tensor operation computes: a rule a family of operators, each from the shapes that really ran.

One multiply-accumulate (MAC) is one of a convolution, transposed convolution, linear layer, matrix product or
attention; a bias is what the accumulation starts from. Everything else that computes is counted as element
operations, a column of its own:

    arithmetic, comparison, activation, whatever the function    1 an output element
    batch normalization with stored statistics                   2 an element: scale, shift
    normalization by statistics of its own                       5 an element, 7 with weights; RMS: 2 and 3
    softmax                                                      5 an element
    attention beside its products                                5 a score, 6 with a mask; 1 of query and key to scale
    pooling                                                      1 for each element of each window
    sum, mean, maximum, ...                                      1 an input element; norm 2, variance and logsumexp 3
    resampling                                                   1 for each old element that a new one is made of
    Fourier transform of n points                                5 n log2 n; half of it between real and complex

Copies, views, padding, gathering and filling are 0. An operator without a rule is never guessed at: it is listed as
uncounted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from convscope.graph.structure import Op, Shape, Value


@dataclass(frozen=True, slots=True)
class Product:
    """A bilinear part of an operation: each operand's gradient costs as much as the product itself.

    Attributes:
        macs: of the product.
        left, right: numbers of the values that each operand comes from.
    """

    macs: int
    left: tuple[int, ...]
    right: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation computes: `products` are its multiply-accumulates."""

    products: tuple[Product, ...] = ()
    element_ops: int = 0

    @property
    def macs(self) -> int:
        return sum(product.macs for product in self.products)


@dataclass(frozen=True, slots=True)
class Work:
    """One operation about to be counted: its attributes, and the shapes of its tensors by argument name."""

    op: Op
    values: Sequence[Value]

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.op.attributes.get(name)
        return default if value is None else value

    def index(self, name: str) -> int:
        found = self.op.tensors[name]
        assert isinstance(found, int), f"{self.op.name} has no single tensor {name}"
        return found

    def has(self, name: str) -> bool:
        return self.op.tensors.get(name) is not None

    def shape(self, name: str = "self") -> Shape:
        return self.values[self.index(name)].shape

    def size(self, name: str = "self") -> int:
        return math.prod(self.shape(name))

    @property
    def out(self) -> Shape:
        return self.values[self.op.outputs[0]].shape

    @property
    def out_size(self) -> int:
        return math.prod(self.out)

    def product(self, macs: int, left: str, right: str) -> Cost:
        return Cost((Product(macs, (self.index(left),), (self.index(right),)),))


Rule: TypeAlias = Callable[[Work], Cost]
RULES: dict[str, Rule] = {}
FREE: frozenset[str]  # at the end of the file: operators that compute nothing


def count(op: Op, values: Sequence[Value]) -> Cost | None:
    """What the operation computes; None where its operator has no rule.

    Example:
        >>> import torch
        >>> from convscope.graph import record
        >>> graph = record(torch.nn.Linear(8, 4), example=torch.zeros(5, 8))
        >>> [(op.name, count(op, graph.values).macs) for op in graph.ops]
        [('aten.t', 0), ('aten.addmm', 160)]
    """
    name = short_name(op)
    if name in FREE:
        return Cost()
    rule = RULES.get(name)
    if rule is None:
        return pointwise(Work(op, values)) if op.pointwise else None
    return rule(Work(op, values))


def short_name(op: Op) -> str:
    """The operator's name without namespace and the underscore of in-place forms."""
    name = op.name.rpartition(".")[2]
    return name if name.startswith("_") and name.endswith("_") else name.removesuffix("_")


def rule(names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators named without namespace and overload."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


# -- multiply-accumulates ------------------------------------------------------------------------------------


@rule(
    "convolution _convolution convolution_overrideable mkldnn_convolution cudnn_convolution "
    "conv_depthwise3d _conv_depthwise2d thnn_conv2d slow_conv3d _slow_conv2d_forward"
)
def convolution(work: Work) -> Cost:
    """Every output element is a sum over kernel and channels of its group; of a transposed convolution every
    input element is spread over them.
    """
    main = "input" if work.has("input") else "self"
    taps = work.size("weight") // work.shape("weight")[0]
    positions = work.size(main) if work.attr("transposed", False) else work.out_size
    return work.product(positions * taps, main, "weight")


@rule("locally_connected")
def locally_connected(work: Work) -> Cost:
    """Every weight is read once an image: a position has a kernel of its own."""
    return work.product(work.out[0] * work.size("weight"), "x", "weight")


@rule("deform_conv2d")
def deformable(work: Work) -> Cost:
    """A convolution whose every tap is first interpolated between four elements, and scaled by a mask."""
    weight = work.shape("weight")
    sampled = work.out_size // weight[0] * work.shape("input")[1] * math.prod(weight[2:])
    each = 5 if work.attr("use_mask", False) else 4
    products = work.product(work.out_size * math.prod(weight[1:]), "input", "weight").products
    return Cost(products, each * sampled)


def _matrix(left: str, right: str) -> Rule:
    """Every output element is a sum over the last axis of the left operand."""

    def product(work: Work) -> Cost:
        return work.product(work.out_size * work.shape(left)[-1], left, right)

    return product


for _names, _left, _right in (
    ("mm bmm _int_mm _scaled_mm", "self", "mat2"),
    ("matmul", "self", "other"),
    ("addmm _addmm_activation", "mat1", "mat2"),
    ("mv", "self", "vec"),
    ("addmv", "mat", "vec"),
    ("dot", "self", "tensor"),
    ("linear mkldnn_linear", "input", "weight"),
):
    rule(_names)(_matrix(_left, _right))


@rule("baddbmm addbmm")
def batched_product(work: Work) -> Cost:
    return work.product(work.size("batch1") * work.shape("batch2")[-1], "batch1", "batch2")


@rule(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math "
    "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps"
)
def attention(work: Work) -> Cost:
    """Query times key, softmax, times value: the whole square, also where a mask or causality hides half of it."""
    query, key, value = work.shape("query"), work.shape("key"), work.shape("value")
    scores = math.prod(query[:-1]) * key[-2]
    q, k, v = (work.index(name) for name in ("query", "key", "value"))
    is_masked = work.attr("is_causal", False) or work.has("attn_mask") or work.has("attn_bias")
    products = Product(scores * query[-1], (q,), (k,)), Product(scores * value[-1], (q, k), (v,))
    return Cost(products, scores * (6 if is_masked else 5) + work.size("query") + work.size("key"))


@rule("mkldnn_rnn_layer")
def recurrent_layer(work: Work) -> Cost:
    """One layer in one direction: both matrices at every step."""
    mode, hidden = work.attr("mode"), work.attr("hidden_size")
    steps = math.prod(work.shape("input")[:-1])
    x, h = work.index("input"), work.index("hx_")
    products = tuple(
        Product(steps * work.size(name), sources, (work.index(name),))
        for name, sources in (("weight0", (x,)), ("weight1", (h, x, work.index("weight0"))))
    )
    return Cost(products, steps * hidden * _GATES[mode])


_GATES = {0: 1, 1: 1, 2: 9, 3: 8}  # element operations a hidden unit: RNN by relu or tanh, LSTM, GRU


@rule("_thnn_fused_lstm_cell")
def lstm_cell(work: Work) -> Cost:
    return Cost(element_ops=_GATES[2] * work.size("cx"))


@rule("_thnn_fused_gru_cell")
def gru_cell(work: Work) -> Cost:
    return Cost(element_ops=_GATES[3] * work.size("hx"))


@rule("_cudnn_rnn")
def recurrent_network(work: Work) -> Cost:
    """All layers and directions at once."""
    weights = work.op.tensors["weight"]
    assert isinstance(weights, tuple)
    steps = math.prod(work.shape("input")[:-1])
    matrices = [index for index in weights if index is not None and len(work.values[index].shape) == 2]
    x = work.index("input")
    products = tuple(
        Product(steps * math.prod(work.values[index].shape), (x, *matrices[:place]), (index,))
        for place, index in enumerate(matrices)
    )
    units = work.attr("hidden_size") * len(matrices) // 2  # two matrices a layer and direction
    return Cost(products, steps * units * _GATES[work.attr("mode")])


# -- element operations --------------------------------------------------------------------------------------


@rule(
    "hardswish rsub _prelu_kernel prelu log_sigmoid_forward native_dropout dropout rrelu_with_noise hardtanh relu6 "
    "threshold fake_quantize_per_tensor_affine cumsum cumprod cummax cummin glu masked_fill where "
    "_foreach_add _foreach_mul polar complex ger addr cross linalg_cross tril triu"
)
def pointwise(work: Work) -> Cost:
    return Cost(element_ops=work.out_size)


def _each_of(argument: str, times: int) -> Rule:
    return lambda work: Cost(element_ops=times * work.size(argument))


for _names, _argument, _times in (
    (
        "mean sum amax amin prod all any argmax argmin median nanmean nansum count_nonzero aminmax mode",
        "self",
        1,
    ),
    ("norm linalg_vector_norm", "self", 2),
    ("var std var_mean std_mean logsumexp", "self", 3),
    ("_softmax softmax _log_softmax log_softmax _safe_softmax", "self", 5),
    ("_weight_norm_interface", "v", 3),
    ("col2im", "self", 1),
    ("scatter_add scatter_reduce", "src", 1),
    ("index_add", "source", 1),
):
    rule(_names)(_each_of(_argument, _times))


@rule("max min")
def extreme(work: Work) -> Cost:
    """The reduction, or of two tensors element by element."""
    return pointwise(work) if work.has("other") else Cost(element_ops=work.size())


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "batch_norm miopen_batch_norm _batch_norm_with_update _batch_norm_no_update"
)
def batch_norm(work: Work) -> Cost:
    own = work.attr("training", False) or work.attr("use_input_stats", False)
    main = "input" if work.has("input") else "self"
    each = 2 if not own else 7 if work.has("weight") else 5
    return Cost(element_ops=each * work.size(main))


@rule("native_layer_norm layer_norm native_group_norm group_norm")
def own_norm(work: Work) -> Cost:
    return Cost(element_ops=(7 if work.has("weight") else 5) * work.size("input"))


@rule("rms_norm _fused_rms_norm")
def rms_norm(work: Work) -> Cost:
    return Cost(element_ops=(3 if work.has("weight") else 2) * work.size("input"))


@rule(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "avg_pool1d avg_pool2d avg_pool3d mkldnn_max_pool2d mkldnn_max_pool3d"
)
def pool(work: Work) -> Cost:
    rank = int(short_name(work.op).partition("pool")[2][0])
    return Cost(element_ops=work.out_size * math.prod(each(work.attr("kernel_size"), rank)))


def each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number an axis, where one may stand for all."""
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)


@rule(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
)
def adaptive_pool(work: Work) -> Cost:
    """Windows may overlap by one where the sizes do not divide."""
    rank = int(short_name(work.op).partition("pool")[2][0])
    have, want = work.shape()[-rank:], work.out[-rank:]
    read = 1
    for h, w in zip(have, want, strict=True):
        read *= sum(-(-(q + 1) * h // w) - q * h // w for q in range(w))
    return Cost(element_ops=math.prod(work.out[:-rank]) * read)


@rule(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa"
)
def resample(work: Work) -> Cost:
    """Antialiasing widens the support by the scale, when it shrinks."""
    name = short_name(work.op)
    rank = int(name.removesuffix("_aa").removesuffix("d")[-1])
    taps = 1 if "nearest" in name else 4 if "bicubic" in name else 2
    read = 1
    for h, w in zip(work.shape()[-rank:], work.out[-rank:], strict=True):
        read *= taps * math.ceil(h / w) if name.endswith("_aa") else taps
    return Cost(element_ops=work.out_size * read)


@rule("grid_sampler_2d grid_sampler_3d cudnn_grid_sampler")
def grid_sample(work: Work) -> Cost:
    rank = work.shape("grid")[-1]
    taps = {0: 2, 1: 1, 2: 4}[work.attr("interpolation_mode", 0)]
    return Cost(element_ops=work.out_size * taps**rank)


@rule("_fft_c2c _fft_r2c _fft_c2r")
def fourier(work: Work) -> Cost:
    name = short_name(work.op)
    real = work.out if name == "_fft_c2r" else work.shape()
    points = math.prod(real[axis] for axis in work.attr("dim"))
    total = 5 * math.prod(real) * math.log2(max(points, 1))
    return Cost(element_ops=round(total if name == "_fft_c2c" else total / 2))


@rule("_cdist_forward")
def distances(work: Work) -> Cost:
    """Difference, power, sum."""
    return Cost(element_ops=3 * work.out_size * work.shape("x1")[-1])


def uncounted(ops: Iterable[Op], values: Sequence[Value]) -> Mapping[str, int]:
    """Operators without a rule, and how often each ran."""
    found: dict[str, int] = {}
    for op in ops:
        if count(op, values) is None:
            found[op.name] = found.get(op.name, 0) + 1
    return found


def _named(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _named(
    "view _unsafe_view reshape _reshape_alias flatten unflatten permute transpose t unsqueeze squeeze expand "
    "broadcast_to as_strided slice narrow select split split_with_sizes chunk unsafe_split unsafe_split_with_sizes "
    "unsafe_chunk tensor_split unbind unfold detach alias lift_fresh lift view_as_real view_as_complex real imag "
    "swapaxes movedim diagonal _conj _neg_view resolve_conj view_as expand_as sym_size _local_scalar_dense item "
    "_shape_as_tensor write"
)
FREE = VIEWS | _named(
    "clone contiguous copy _to_copy to lift_fresh_copy copy_from _copy_from cat concat concatenate stack repeat roll "
    "flip rot90 index index_select gather take take_along_dim embedding im2col pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d max_unpool2d max_unpool3d masked_select scatter index_put "
    "_index_put_impl index_copy index_fill slice_scatter select_scatter diag_embed repeat_interleave meshgrid block_diag "
    "zeros ones empty full eye arange linspace logspace scalar_tensor tensor zeros_like ones_like empty_like full_like "
    "rand_like randn_like new_zeros new_ones new_empty new_full empty_strided new_empty_strided empty_permuted zero "
    "fill rand randn randint randperm uniform exponential normal bernoulli random resize resize_as set "
    "_assert_async _assert_scalar _functional_assert_async is_nonzero tril_indices triu_indices hann_window "
    "to_mkldnn to_dense _mkldnn_reshape _mkldnn_transpose"
)
