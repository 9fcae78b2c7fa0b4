"""The reference networks: their counts by hand and by the papers, their geometry, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convscope import measure
from convscope.errors import ModelError, RequestError, UnknownName
from convscope.models import InputSpec, Net
from convscope.nn.upsampling import UPSAMPLINGS
from convscope.studies.network import network
from convscope.studies.networks import all_cnn, build, mobilenet, small_cnn, text_cnn
from convscope.studies.networks.small import CONVOLUTIONS, HEADS, POOLINGS
from convscope.studies.networks.text import EMBEDDINGS, MaxNormLinear, RowConvs
from convscope.studies.plan import RunConfig

NAME = "convscope.studies.networks:"


def params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    return measure(Net(module.eval(), InputSpec(shape))).totals.macs


# ---------------------------------------------------------------- papers


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # 3x3 to 96, 96; to 192, 192; 192; 1x1 to 192, to 10
        ("C", 2_688 + 83_040 + 166_080 + 331_968 + 331_968 + 37_056 + 1_930),
        ("strided-C", 954_730),
        # a third 3x3 in both stages; the paper says 1.3 and 1.4 million
        ("convpool-C", 954_730 + 83_040 + 331_968),
        ("all-C", 1_369_738),
    ],
)
def test_all_cnn_has_the_papers_parameters_and_its_6x6_map(variant: str, expected: int) -> None:
    net = all_cnn(variant).eval()
    assert params(net) == expected
    assert net[:-1](torch.zeros(1, 3, 32, 32)).shape == (1, 192, 8, 8)
    assert net.head[:-1](torch.zeros(1, 192, 8, 8)).shape == (1, 10, 6, 6)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_mobilenet_has_the_papers_parameters_and_macs() -> None:
    # table 4: 4.2 and 29.3 million parameters, 569 and 4866 million multiply-adds
    with torch.device("meta"):
        separable, full = mobilenet(), mobilenet(separable=False)
    assert [params(net) for net in (separable, full)] == [4_231_976, 29_294_088]
    assert [macs(net, (3, 224, 224)) / 1e6 for net in (separable, full)] == pytest.approx(
        [569, 4866], rel=1e-3
    )


def test_mobilenet_on_small_images_and_at_half_width() -> None:
    net = mobilenet(classes=10, width=0.25, strides=3).eval()
    assert net[:-2](torch.zeros(1, 3, 32, 32)).shape == (1, 256, 4, 4)
    assert [net.stem.conv.stride, net.block2.depthwise.stride, net.block4.depthwise.stride] == [
        (1, 1),
        (1, 1),
        (2, 2),
    ]


@pytest.mark.parametrize("layout", ["channels", "rows"])
@pytest.mark.parametrize(
    ("embedding", "tables", "inputs"),
    [("one-hot", 0, 40), ("random", 1, 8), ("static", 1, 8), ("non-static", 1, 8), ("two-channel", 2, 16)],
)
def test_text_cnn_counts(embedding: str, tables: int, inputs: int, layout: str) -> None:
    net = text_cnn(
        vocabulary=40,
        classes=3,
        embedding=embedding,
        dim=8,
        filters=5,
        layout=layout,
        vectors=torch.randn(40, 8),
    )
    expected = tables * 40 * 8 + 5 * (inputs * (3 + 4 + 5) + 3) + 15 * 3 + 3
    assert params(net) == expected
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    assert frozen == {"static": 320, "two-channel": 320}.get(embedding, 0)


# ---------------------------------------------------------------- text


def _texts(**choices: Any) -> nn.Module:
    torch.manual_seed(1)
    net = text_cnn(vocabulary=40, classes=3, dim=8, filters=5, dropout=0.0, **choices)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return net


WORDS = torch.tensor([[3, 7, 9, 11, 2], [5, 0, 0, 0, 0]])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_both_layouts_compute_the_same(embedding: str) -> None:
    vectors = torch.randn(40, 8)
    channels, rows = (
        _texts(embedding=embedding, layout=layout, vectors=vectors) for layout in ("channels", "rows")
    )
    state = channels.state_dict()
    tables = 2 if embedding == "two-channel" else 1
    for name, value in state.items():
        if (
            name.startswith("convs") and value.ndim == 3
        ):  # [filters, tables x dim, k] to [filters, tables, k, dim]
            state[name] = value.unflatten(1, (tables, -1)).transpose(2, 3)
    rows.load_state_dict(state)
    torch.testing.assert_close(rows(WORDS), channels(WORDS), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["channels", "rows"])
def test_words_are_seen_by_the_windows_that_touch_them_and_padding_by_none(layout: str) -> None:
    net = _texts(layout=layout)
    longer = torch.cat([WORDS, torch.zeros(2, 6, dtype=torch.int64)], 1)
    torch.testing.assert_close(net(longer), net(WORDS), rtol=1e-5, atol=1e-4)
    # brute force: the sentence with width - 1 zeros on either side
    vectors = net.words.tables[0].weight
    for row, words in enumerate(([3, 7, 9, 11, 2], [5])):
        found = []
        for conv in net.convs.convs:
            weight = (
                conv.weight if layout == "channels" else conv.weight[:, 0].transpose(1, 2)
            )  # [filters, dim, k]
            width = weight.shape[-1]
            line = torch.zeros(len(words) + 2 * width - 2, 8)
            line[width - 1 : width - 1 + len(words)] = vectors[words]
            answers = torch.stack(
                [(weight * line[k : k + width].T).sum((1, 2)) for k in range(len(line) - width + 1)]
            )
            found.append((answers.amax(0) + conv.bias).relu())
        torch.testing.assert_close(net.classifier(torch.cat(found)), net(WORDS)[row], rtol=1e-5, atol=1e-4)


def test_one_hot_words_are_vectors_of_an_identity() -> None:
    one_hot = _texts(embedding="one-hot")
    vectors = torch.eye(40)
    vectors[0] = 0
    same = text_cnn(
        vocabulary=40, classes=3, embedding="static", dim=40, filters=5, dropout=0.0, vectors=vectors
    )
    same.load_state_dict(one_hot.state_dict(), strict=False)
    torch.testing.assert_close(same(WORDS), one_hot(WORDS), rtol=1e-5, atol=1e-4)


def test_an_empty_batch_of_words_has_an_answer() -> None:
    assert _texts()(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 3)


def test_constrain_shortens_long_weights_alone() -> None:
    layer = MaxNormLinear(2, 2, 3.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[6.0, 8.0], [0.6, 0.8]]))
    layer.constrain()
    torch.testing.assert_close(layer.weight.data, torch.tensor([[1.8, 2.4], [0.6, 0.8]]))
    free = MaxNormLinear(2, 2, None)
    before = free.weight.clone()
    free.constrain()
    assert torch.equal(free.weight, before)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"embedding": "statik"}, "embedding='statik' must be one of one-hot, .*; did you mean 'static'"),
        ({"layout": "columns"}, "layout='columns' must be one of channels, rows"),
        (
            {"embedding": "static"},
            r"embedding='static' needs vectors=, a tensor \[40, 300\]; Data.word_vectors",
        ),
        (
            {"embedding": "static", "vectors": torch.zeros(3, 4)},
            r"vectors of shape \[3, 4\] must be .* \[40, 300\]",
        ),
        ({"max_norm": 0.0}, "max_norm=0.0 must be positive"),
    ],
)
def test_text_cnn_refuses(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text_cnn(vocabulary=40, **choices)


def test_rows_without_lengths_are_all_seen() -> None:
    layer = RowConvs(1, 4, 2, (2,))
    x = torch.randn(1, 1, 3, 4)
    torch.testing.assert_close(layer(x), layer(x, torch.tensor([3])))


def test_a_study_leaves_given_vectors_frozen() -> None:
    arguments = {"embedding": "two-channel", "dim": 4, "vocabulary": 9, "vectors": torch.randn(9, 4)}
    module, spec = network(RunConfig(NAME + "text_cnn", arguments, (), {}, 0, {}, {}), None)
    assert spec is None
    assert [table.weight.requires_grad for table in module.words.tables] == [False, True]


# ---------------------------------------------------------------- small


def test_small_cnn_counts_by_hand() -> None:
    # 3x3 from 1 to 16 and to 32, batch norms, 32 x 10 and 10
    assert params(small_cnn()) == 144 + 32 + 4_608 + 64 + 330
    # biases where there is no norm; 7 x 7 x 32 inputs where all positions are kept
    assert params(small_cnn(norm=False, head="flatten")) == 144 + 16 + 4_608 + 32 + 15_680 + 10
    assert macs(small_cnn(), (1, 28, 28)) == 28 * 28 * 144 + 14 * 14 * 4_608 + 320


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_every_kind_of_convolution_has_the_same_geometry(convolution: str, padding: str) -> None:
    net = small_cnn(convolution=convolution, padding=padding, size=(12, 16), width=4, in_channels=2)
    side = (6, 8) if padding == "same" else (5, 7)
    assert net.stage1(torch.zeros(2, 2, 12, 16)).shape == (2, 4, *side)
    assert net(torch.zeros(2, 2, 12, 16)).shape == (2, 10)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_halves_the_map_but_none(pooling: str, head: str) -> None:
    net = small_cnn(pooling=pooling, size=12, width=2, head=head, depth=2, dropout=0.5)
    assert net.stage1(torch.zeros(2, 1, 12, 12)).shape[-1] == (12 if pooling == "none" else 6)
    assert net(torch.zeros(2, 1, 12, 12)).shape == (2, 10)


def test_without_activation_and_pools_it_is_linear() -> None:
    net = small_cnn(activation=False, norm=False, pooling="average", padding="same", width=4, size=8).double()
    a, b = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64)
    zero = net(torch.zeros_like(a))
    torch.testing.assert_close(net(a + b), net(a) + net(b) - zero)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_decoders_give_every_pixel_its_classes(upsampling: str) -> None:
    net = small_cnn(upsampling=upsampling, size=(8, 12), width=2, classes=5, depth=2)
    assert net(torch.zeros(2, 1, 8, 12)).shape == (2, 5, 8, 12)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"convolution": "seperable"}, "convolution='seperable' must be one of .*; did you mean 'separable'"),
        ({"pooling": "avg"}, "pooling='avg' must be one of max, average"),
        ({"head": "mean"}, "head='mean' must be one of average, max, flatten"),
        ({"depth": 0}, "depth=0 must be a whole number, positive"),
        ({"padding": "valid", "kernel_size": 11, "size": 12}, "kernel"),
        ({"upsampling": "nearest", "padding": "valid"}, "padding='valid' changes the size of the map"),
        (
            {"upsampling": "nearest", "size": 30},
            r"size=\(30, 30\) must be divisible by pool_size to the stages, 4",
        ),
        ({"upsampling": "nearest", "pooling": "none"}, "pooling='none' leaves nothing"),
        ({"upsampling": "max_unpool", "pooling": "average"}, "pooling='average' leaves nothing"),
        ({"upsampling": "bicubic"}, "there is no upsampling 'bicubic'"),
    ],
)
def test_small_cnn_refuses(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        small_cnn(**choices)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: all_cnn("all"), "variant='all' must be one of C, strided-C, convpool-C, all-C"),
        (lambda: mobilenet(width=0), "width=0 must be above 0"),
        (lambda: mobilenet(strides=6), "strides=6 must be a whole number from 0 to 5"),
    ],
)
def test_the_others_refuse(call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()


# ---------------------------------------------------------------- build


def test_build_is_one_network_a_seed_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again, other = (build(NAME + "small_cnn", {"width": 2}, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights: list[Tensor] = [net.stage1.conv1.weight for net in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_build_offers_only_what_a_factory_takes() -> None:
    net = build(lambda classes: nn.Linear(2, classes), offered={"classes": 5, "in_channels": 3})
    assert net.out_features == 5
    assert build(nn.Linear, {"in_features": 2, "out_features": 3}).weight.shape == (3, 2)


@pytest.mark.parametrize(
    ("factory", "arguments", "error", "message"),
    [
        (
            NAME + "small_cnn",
            {"kernel": 3},
            UnknownName,
            "small_cnn has no argument 'kernel'; did you mean 'kernel_size'",
        ),
        (NAME + "smal_cnn", {}, UnknownName, "has no 'smal_cnn'; did you mean 'small_cnn'"),
        ("no_such_package:net", {}, UnknownName, "cannot import 'no_such_package'"),
        ("small_cnn", {}, RequestError, "factory='small_cnn' must be 'package.module:factory'"),
        ("convscope.studies.networks.small:HEADS", {}, RequestError, "must be a function or class"),
        (lambda: 3, {}, ModelError, "returned int; it must return an nn.Module"),
        (lambda: 1 / 0, {}, ModelError, r"failed \(ZeroDivisionError: .*\)"),
    ],
)
def test_build_refuses(factory: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(factory, arguments)
