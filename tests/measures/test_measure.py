"""`measure` on networks of every make, and what it says when it cannot."""

from __future__ import annotations

import re
import time
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convscope import InputSpec, Net, load, measure
from convscope._torchvision import torchvision
from convscope.errors import BadInput, ModelError, RequestError
from convscope.graph.rules import follow
from convscope.measures.receptive_field import receptive_field


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("given", ["3x8x8", (3, 8, 8), InputSpec((3, 8, 8)), torch.rand(1, 3, 8, 8)])
def test_every_way_to_say_the_input(given: object) -> None:
    p = measure(small(), input=given)  # type: ignore[arg-type]
    assert p.inputs == ((1, 3, 8, 8),)
    assert p.totals.macs == 64 * 3 * 4 * 9


def test_a_net_brings_its_input(tiny: Net) -> None:
    p = measure(tiny)
    assert (p.name, p.source, p.inputs, p.batch) == ("tiny", "module", ((1, 3, 32, 32),), 1)
    assert p.totals.params == tiny.parameters_count
    assert measure(tiny, input="3x16x16").inputs == ((1, 3, 16, 16),)
    assert measure(tiny, input=torch.rand(2, 3, 16, 16)).name == "tiny"


def test_batch() -> None:
    assert (
        measure(small(), input="3x8x8", batch=3).totals.macs
        == 3 * measure(small(), input="3x8x8").totals.macs
    )
    with pytest.raises(
        RequestError, match="batch=0 must be a positive number of images; leave it out for one"
    ):
        measure(small(), input="3x8x8", batch=0)
    with pytest.raises(
        RequestError, match="batch=2 has no meaning beside an example tensor; give one of that batch"
    ):
        measure(small(), input=torch.rand(1, 3, 8, 8), batch=2)


def test_text_and_other_sequences() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(100, 8), nn.Conv1d(8, 6, 3)
            self.head = nn.Linear(6, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(F.relu(self.conv(self.embed(tokens).transpose(1, 2))).amax(2))

    p = measure(Text(), input=torch.randint(0, 100, (1, 20)))
    assert p.totals.macs == 18 * 8 * 6 * 3 + 12
    assert p.dtype == "int64"
    field = p.layer("conv").receptive_field
    assert field is not None
    assert (field.size, field.stride, field.padding) == ((3,), (1,), (0,))
    assert p.layer("head").receptive_field is not None


def test_several_inputs_and_containers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

        def forward(self, image: Tensor, facts: Tensor) -> dict[str, object]:
            both = self.left(image) + self.right(facts)[:, :, None, None]
            return {"out": both, "parts": (both.mean(), [both.amax()])}

    p = measure(Net(), input=(torch.rand(1, 3, 6, 6), torch.rand(1, 5)))
    assert p.inputs == ((1, 3, 6, 6), (1, 5))
    assert p.layer("right").no_field == "it does not depend on the input"
    assert p.layer("").out_shapes == ((1, 4, 4, 4), (), ())
    assert p.totals.element_ops == 3 * 64


# ---------------------------------------------------------------- networks


def test_rows_are_calls_in_order_and_sum_to_the_totals() -> None:
    p = measure(torchvision().models.get_model("resnet18"), input="3x32x32", backward=True)
    names = [row.name for row in p.layers]
    assert names[:5] == ["conv1", "bn1", "relu", "maxpool", "layer1.0.conv1"]
    assert names.index("layer1.0") == names.index("layer1.0.relu#1") + 1  # the addition: the block's own row
    assert p.layer("layer1.0").ops == {"aten.add_": 1}
    assert p.layer("layer1.0").functional
    for figure in (
        "macs",
        "params",
        "element_ops",
        "training_bytes",
        "moved_bytes",
        "backward_macs",
        "weight_bytes",
    ):
        assert sum(getattr(row, figure) for row in p.layers) == getattr(p.totals, figure) - 8 * 20 * (
            figure == "weight_bytes"
        )  # the counters of the 20 batch norms are not read
    assert max(row.peak_bytes for row in p.layers) == p.totals.activation_bytes
    assert p.graph is not None
    for row in p.layers:
        assert row.receptive_field == receptive_field(nn.Module(), row.name, graph=p.graph)


def test_control_flow_that_depends_on_data() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else self.b(x)

    assert measure(Net(), input=torch.ones(1, 4)).totals.macs == 16
    there = measure(Net(), input=-torch.ones(1, 4))
    assert (there.totals.macs, there.totals.unused_params) == (36, 20)
    assert "20 parameters were not used in this pass" in str(there)
    with pytest.raises(
        ModelError,
        match=r"failed in layer '\(root\)' on .*; it needs values, which the meta device has not, so give it weights",
    ):
        measure(Net().to("meta"), input=torch.ones(1, 4, device="meta"))


def test_the_mode_of_the_caller_is_kept_and_eval_is_measured() -> None:
    net = small().train()
    before = [buffer.clone() for buffer in net.buffers()]
    p = measure(net, input="3x8x8")
    assert all(part.training for part in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert p.layer("1").element_ops == 2 * 256  # by the stored statistics
    assert p.layer("3").ops == {}


def test_half_precision() -> None:
    p = measure(small().half(), input="3x8x8")
    assert (p.dtype, p.totals.macs) == ("float16", 64 * 3 * 4 * 9)
    assert p.totals.weight_bytes == 2 * (4 * 27 + 4 + 4 * 4) + 8  # the last: the norm's counter


def test_ten_billion_parameters_without_weights() -> None:
    began = time.perf_counter()
    with torch.device("meta"):
        block = lambda: nn.Sequential(nn.Linear(8192, 32768), nn.GELU(), nn.Linear(32768, 8192))  # noqa: E731
        net = nn.Sequential(*(block() for _ in range(20)))
        x = torch.rand(1, 16, 8192)
    p = measure(net, input=x)
    assert p.totals.params > 10e9
    assert p.totals.macs == 16 * 20 * 2 * 8192 * 32768
    assert p.totals.training_bytes == 4 * 16 * (20 * (8192 + 2 * 32768))
    assert time.perf_counter() - began < 5


def test_a_network_that_fails_on_one_image_is_measured_on_two() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) < 2:
                raise ValueError("needs pairs")
            return self.conv(x)

    p = measure(Pairs(), input="3x4x4")
    assert (p.batch, p.totals.macs) == (2, 2 * 16 * 12)
    assert p.notes == ("the network fails on a batch of 1, so that all numbers are for a batch of 2",)
    with pytest.raises(ModelError, match="ValueError: needs pairs"):
        measure(Pairs(), input="3x4x4", batch=1)


def test_an_input_that_is_too_small_names_the_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 9))
    with pytest.raises(
        ModelError,
        match=re.escape("the network failed in layer '1' on an example input of shape [1, 3, 8, 8]"),
    ):
        measure(net, input="3x8x8")


def test_a_module_without_input_and_what_is_no_network() -> None:
    with pytest.raises(BadInput, match="Sequential says nothing about its input; give input="):
        measure(small())
    with pytest.raises(RequestError, match="must be a Net or an nn.Module"):
        measure("resnet18", input=torch.rand(1, 3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="parameter 'weight' has no shape yet"):
        measure(nn.LazyConv2d(4, 3), input=torch.rand(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_opaque_modules_are_refused_in_one_sentence() -> None:
    quantized = nn.Sequential(nn.ReLU(), torch.ao.nn.quantized.dynamic.Linear(4, 4))
    with pytest.raises(ModelError, match=r"module '\(root\)' is compiled by torch.compile"):
        measure(torch.compile(small()), input=torch.rand(1, 3, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="module '0' is TorchScript"):
        measure(nn.Sequential(torch.jit.script(nn.ReLU())), input=torch.rand(1, 3, 8, 8))
    with pytest.raises(
        ModelError,
        match=r"module '1' \(Linear\) is quantized, whose weights and operations are packed out of sight; "
        "give the float model it was converted from",
    ):
        measure(quantized, input=torch.rand(1, 4))


def test_quantizable_but_float_is_fine() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: Tensor) -> Tensor:
            return self.add.add(x, x)

    assert measure(Add(), input=torch.rand(1, 5)).totals.element_ops == 5


def test_weights_made_on_the_way() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    p = measure(net, input="3x8x8")
    assert p.totals.macs == 36 * 3 * 4 * 9
    assert sum(row.params for row in p.layers) == p.totals.params == 4 * 27 + 4 + 4
    assert not p.uncounted


def test_a_network_without_parameters_or_layers() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    p = measure(Double(), input="3x8x8")
    assert [(row.name, row.element_ops) for row in p.layers] == [("", 192)]
    assert p.totals.to_dict()["params"] == 0


def test_fields_only_where_asked() -> None:
    p = measure(small(), input="3x8x8", fields=False, training=False)
    assert p.layers[0].receptive_field is None
    assert p.layers[0].no_field == "not asked for"
    assert "traces" not in p.graph._cache  # type: ignore[union-attr]
    assert p.totals.training_bytes is None
    assert "field" not in str(p)


def test_a_given_graph_saves_the_pass() -> None:
    first = measure(small(), input="3x8x8")
    again = measure(small(), input="3x8x8", graph=first.graph)
    assert again.graph is first.graph
    assert again.to_dict() == first.to_dict()
    assert follow(again.graph) is follow(first.graph)  # type: ignore[arg-type]


# ---------------------------------------------------------------- optional measures


def test_optional_measures_join_the_rows(tiny: Net) -> None:
    p = measure(tiny, latency=True, health=True, border=True)
    conv = p.to_dict()["layers"][0]
    assert conv["seconds"] > 0
    assert conv["bound"] in ("compute", "memory", "overhead")
    assert conv["dead"] == len(p.health.layers["conv1"].dead)
    assert 0 < conv["border_share"] < 1
    assert p.consistency is None
    assert p.memory is None
    samples = p.latency.total.samples  # far apart where the machine has other work
    assert min(samples) / 3 < sum(row.seconds for row in p.latency.layers.values()) < 3 * max(samples)
    lines = str(p).splitlines()
    assert {"time", "bound", "touches padding", "dead"} <= set(re.split(r" {2,}| *┃ *", lines[2]))


def test_all_of_them_or_the_reason(tiny: Net) -> None:
    text = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).to("meta")
    p = measure(text, input=torch.zeros(1, 7, dtype=torch.long, device="meta"), all=True)
    assert p.latency is p.memory is None
    assert any(note.startswith("latency is left out: ") for note in p.notes)
    with pytest.raises(ModelError, match="meta"):
        measure(text, input=torch.zeros(1, 7, dtype=torch.long, device="meta"), latency=True)


# ---------------------------------------------------------------- published figures

FIGURES = {  # measured with torchvision's metadata
    "alexnet": 714_188_480,
    "vgg16": 15_470_264_320,
    "resnet18": 1_814_073_344,
    "resnet50": 4_089_184_256,
    "mobilenet_v2": 300_774_272,
}
FAMILIES = (
    *(
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "maxvit_t",
        "mnasnet0_5",
    ),
    *("mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vit_b_32"),
)


@pytest.mark.parametrize("name", FIGURES)
def test_macs_to_the_last_unit(name: str) -> None:
    with torch.device("meta"):
        net = torchvision().models.get_model(name)
    assert measure(net, input="3x224x224", fields=False, training=False).totals.macs == FIGURES[name]


def test_load_and_measure() -> None:
    p = measure(load("torchvision:mobilenet_v2"))
    assert (p.name, p.source) == ("mobilenet_v2", "torchvision:mobilenet_v2")
    assert p.totals.params == 3_504_872
    field = p.layer("features.18.2").receptive_field
    assert field is not None
    assert (field.size, field.stride, field.padding) == ((491, 491), (32, 32), (245, 245))


def test_names_that_a_model_chose() -> None:
    odd = "a|b<i>\x1b[31m"
    p = measure(nn.Sequential(OrderedDict({odd: nn.ReLU()})), input="1x2x2")
    assert "\x1b" not in str(p) + p.to_markdown() + p._repr_html_() + str(p.tree())
    assert "<i>" not in p._repr_html_()
    assert "a\\|b\\<i\\>" in p.to_markdown()
