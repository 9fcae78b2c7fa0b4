"""Switches find their way from a pool to its unpooling, or are refused: never somebody else's."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from convscope.errors import BadInput, ConvscopeError, RequestError, UnpairedSwitches
from convscope.nn.unpooling import MaxUnpool2d, SwitchedMaxPool2d, SwitchMemory


def _pair(*arguments: int, **options: int) -> tuple[SwitchedMaxPool2d, MaxUnpool2d]:
    pool = SwitchedMaxPool2d(*arguments, **options)  # type: ignore[arg-type]
    return pool, MaxUnpool2d(pool)


def _restored(x: Tensor, size: int = 2) -> Tensor:
    """The maxima of blocks at their places, by hand."""
    y = torch.zeros_like(x)
    for image, row, column in product(
        range(len(x)), range(0, x.shape[-2], size), range(0, x.shape[-1], size)
    ):
        for channel in range(x.shape[1]):
            block = x[image, channel, row : row + size, column : column + size]
            place = divmod(int(block.argmax()), block.shape[1])
            y[image, channel, row + place[0], column + place[1]] = block.max()
    return y


# ---------------------------------------------------------------- what they compute


AXIS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2))


@given(AXIS, AXIS, st.booleans(), st.integers(5, 9), st.integers(5, 9))
def test_maxima_return_to_their_places(
    rows: tuple[int, int, int, int], columns: tuple[int, int, int, int], ceil: bool, height: int, width: int
) -> None:
    kernel, stride, padding, dilation = zip(rows, columns, strict=True)
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    pool = SwitchedMaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    x = torch.rand(2, 3, height, width) + 0.5
    y = pool(x)
    assert torch.equal(y, functional.max_pool2d(x, kernel, stride, padding, dilation, ceil))
    assert pool.output_size((height, width)) == y.shape[2:]
    restored = MaxUnpool2d(pool)(y)
    assert restored.shape == x.shape
    assert ((restored == 0) | (restored == x)).all()  # each is a maximum where it was, or nothing
    assert set(restored[restored > 0].tolist()) == set(y.flatten().tolist())


def test_blocks_by_hand() -> None:
    x = torch.rand(2, 3, 5, 7)
    pool, unpool = _pair(2, ceil_mode=True)
    assert torch.equal(unpool(pool(x)), _restored(x))


def test_overlap_the_last_wins_and_only_it_learns() -> None:
    x = torch.tensor([[[0.0, 9.0, 1.0]]])  # both windows of two find the 9
    pool, unpool = _pair((1, 2), 1)  # type: ignore[arg-type]
    pool(x)
    values = torch.tensor([[[3.0, 5.0]]], requires_grad=True)
    y = unpool(values)
    assert y.tolist() == [[[0, 5, 0]]]
    y.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[[0, 1]]]


def test_ties_and_not_a_number() -> None:
    pool, unpool = _pair(2)
    x = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
    assert unpool(pool(x)).tolist() == [[[1, 0], [0, 0]]]
    x[0, 1, 0] = torch.nan
    assert unpool(pool(x)).isnan().tolist() == [[[False, False], [True, False]]]


def test_empty_batch() -> None:
    pool, unpool = _pair(2)
    assert unpool(pool(torch.zeros(0, 3, 4, 6))).shape == (0, 3, 4, 6)


# ---------------------------------------------------------------- who is whose


def test_nested_encoders_and_decoders() -> None:
    pools = [SwitchedMaxPool2d(2) for _ in range(3)]
    shared = SwitchedMaxPool2d(2)
    for encoder in (pools, [shared] * 3):  # each level its own, or one for all
        x = torch.rand(2, 4, 8, 8)
        sizes = [x]
        for pool in encoder:
            sizes.append(pool(sizes[-1]))
        y = sizes[-1]
        for pool in reversed(encoder):
            y = MaxUnpool2d(pool)(y)
        assert torch.equal(y, _restored(x, 8))  # the maximum of all, where it was
        assert not any(pool.pair.default.forward.waiting for pool in encoder)


def test_one_pool_feeds_several_that_keep() -> None:
    pool = SwitchedMaxPool2d(2)
    first, last = MaxUnpool2d(pool, keep=True), MaxUnpool2d(pool)
    x = torch.rand(1, 2, 4, 4)
    y = pool(x)
    assert torch.equal(first(y), last(y))
    with pytest.raises(UnpairedSwitches, match="were taken already; run the pool before each unpooling"):
        first(y)


def test_unpaired() -> None:
    pool, unpool = _pair(2)
    with pytest.raises(UnpairedSwitches, match="which has not pooled in this thread") as caught:
        unpool(torch.zeros(1, 2, 2, 2))
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, ConvscopeError)
    assert repr(pool) in str(caught.value)
    pool(torch.zeros(1, 2, 4, 4))
    with pytest.raises(UnpairedSwitches, match=r"of shape \(1, 3, 2, 2\), but .* pooled to \(1, 2, 2, 2\)"):
        unpool(torch.zeros(1, 3, 2, 2))
    unpool(torch.zeros(1, 2, 2, 2))  # still there
    with pytest.raises(UnpairedSwitches, match="taken already"):
        unpool(torch.zeros(1, 2, 2, 2))
    with pytest.raises(UnpairedSwitches, match="needs the switches as a second argument"):
        MaxUnpool2d(2)(torch.zeros(1, 2, 2, 2))


def test_it_never_guesses_between_batches() -> None:
    pool, unpool = _pair(2)
    a, b = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)
    pool(a)
    y = pool(b)
    with pytest.raises(UnpairedSwitches, match=r"pooled 2 batches to \(1, 2, 2, 2\) before"):
        unpool(y)
    assert torch.equal(unpool(pool(a)), _restored(a))  # the error cleared the way
    pool(a)
    pool.forget()
    assert torch.equal(unpool(pool(b)), _restored(b))


def test_batches_of_different_shapes_find_their_own() -> None:
    pool, unpool = _pair(2)
    images = [torch.rand(n, 2, 4, 6) for n in (1, 2, 3)]
    pooled = [pool(x) for x in images]
    for at in (1, 0, 2):
        assert torch.equal(unpool(pooled[at]), _restored(images[at]))


def test_batches_in_flight_by_memory_and_by_hand() -> None:
    pool, unpool = _pair(2)
    images = [torch.rand(1, 2, 4, 4) for _ in range(3)]
    memories = [SwitchMemory() for _ in images]
    pooled = []
    for x, memory in zip(images, memories, strict=True):
        with memory:
            pooled.append(pool(x))
    for at in (1, 2, 0):
        with memories[at]:
            assert torch.equal(unpool(pooled[at]), _restored(images[at]))
    with pytest.raises(UnpairedSwitches, match="has not pooled in this thread"):
        unpool(pooled[0])  # outside, nothing ever waited
    handed = [pool.pool(x) for x in images]
    for x, (y, switches) in zip(images, handed, strict=True):
        assert torch.equal(unpool(y, switches), _restored(x))
    assert pool.pair.default.forward.waiting == []


def test_memories_nest_and_survive_errors() -> None:
    pool, unpool = _pair(2)
    outer, inner = SwitchMemory(), SwitchMemory()
    a, b = torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2)
    with outer:
        y = pool(a)
        with pytest.raises(BadInput), inner:
            pool(b[0, 0, :0])  # refused inside
        with inner:
            pool(b)
        assert torch.equal(unpool(y), _restored(a))
    with pytest.raises(UnpairedSwitches), outer:
        unpool(y)


def test_threads_do_not_meet() -> None:
    pool = SwitchedMaxPool2d(2)
    net = nn.Sequential(pool, MaxUnpool2d(pool))
    images = torch.rand(8, 25, 1, 2, 6, 6)
    together = threading.Barrier(4)

    def work(job: int) -> bool:
        right = True
        for x in images[job]:
            y = pool(x)
            if job < 4:
                together.wait(20)  # all have pooled before any unpools
            right &= torch.equal(net[1](y), _restored(x))
        return right

    with ThreadPoolExecutor(4) as pool_of_threads:
        assert all(pool_of_threads.map(work, range(8)))
    assert pool.pair.default.forward.waiting == []


def test_a_memory_goes_from_thread_to_thread() -> None:
    pool, unpool = _pair(2)
    memory, x = SwitchMemory(), torch.rand(1, 2, 4, 4)

    def encode() -> Tensor:
        with memory:
            return pool(x)

    with ThreadPoolExecutor(1) as other:
        y = other.submit(encode).result()
    with memory:
        assert torch.equal(unpool(y), _restored(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_pair_among_themselves(copied: Callable[[nn.Module], nn.Sequential]) -> None:
    pool = SwitchedMaxPool2d(2)
    net = nn.Sequential(pool, MaxUnpool2d(pool), MaxUnpool2d(2))
    x = torch.rand(1, 2, 4, 4)
    y = pool(x)
    twin = copied(net)
    with pytest.raises(UnpairedSwitches, match="has not pooled"):
        twin[1](y)
    assert torch.equal(twin[1](twin[0](x)), _restored(x))
    assert torch.equal(net[1](y), _restored(x))  # the original's still wait
    assert repr(twin) == repr(net)


def test_replicas_share_the_pair() -> None:
    pool = SwitchedMaxPool2d(2)
    net = nn.Sequential(pool, MaxUnpool2d(pool))
    x = torch.rand(1, 2, 4, 4)
    replicas = [module._replicate_for_data_parallel() for module in net]
    assert torch.equal(replicas[1](replicas[0](x)), _restored(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_leaves_nothing_behind(reentrant: bool) -> None:
    pool = SwitchedMaxPool2d(2)
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), pool, nn.Tanh(), MaxUnpool2d(pool))
    x = torch.rand(1, 2, 4, 4, requires_grad=True)
    wanted = torch.autograd.grad(net(x).square().sum(), net[0].weight)[0]
    for _ in range(3):  # the pool alone is recomputed in each backward pass, then all of it
        net.zero_grad()
        net[2:](checkpoint(net[:2], x, use_reentrant=reentrant)).square().sum().backward()
        torch.testing.assert_close(net[0].weight.grad, wanted)
        net.zero_grad()
        checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(net[0].weight.grad, wanted)
    assert pool.pair.default.forward.waiting == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_in_one_graph_and_in_pieces() -> None:
    pool = SwitchedMaxPool2d(2)
    net = nn.Sequential(pool, nn.ReLU(), MaxUnpool2d(pool))
    images = [torch.rand(2, 3, size, size) for size in (6, 7, 9)]
    torch._dynamo.reset()
    try:
        whole = torch.compile(net, backend="eager", fullgraph=True)
        front, back = (torch.compile(net[part], backend="eager") for part in (slice(0, 2), slice(2, 3)))
        for x in images:
            wanted = _restored(x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2])
            wanted = functional.pad(wanted, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
            for run in (
                whole,
                lambda x: back(front(x)),
                lambda x: net[2](front(x)),
                lambda x: back(net[:2](x)),
            ):
                assert torch.equal(run(x), wanted)
        assert pool.pair.default.forward.waiting == []
    finally:
        torch._dynamo.reset()


def test_waiting_is_bounded() -> None:
    pool = SwitchedMaxPool2d(2)
    for _ in range(100):
        pool(torch.rand(1, 1, 4, 4))
    assert len(pool.pair.default.forward.waiting) == 1


# ---------------------------------------------------------------- as torch's own


def test_with_indices_it_is_torchs() -> None:
    x = torch.rand(2, 3, 7, 9)
    for kernel, stride, padding in ((2, None, 0), (3, 3, 1), ((2, 3), (2, 3), (0, 1))):
        y, indices = functional.max_pool2d(x, kernel, stride, padding, return_indices=True)
        ours, torchs = MaxUnpool2d(kernel, stride, padding), nn.MaxUnpool2d(kernel, stride, padding)
        for size in ((7, 9), x.shape, [7, 9]):
            assert torch.equal(ours(y, indices, size), torchs(y, indices, list(size)))
        assert repr(ours).startswith("MaxUnpool2d(kernel_size=")
        small = ours.output_size(y.shape[-2:])
        assert (
            functional.max_pool2d(torch.rand(1, *small), kernel, stride, padding).shape[-2:] == y.shape[-2:]
        )


def test_output_size_of_a_pair_is_the_smallest() -> None:
    for kernel, stride, dilation in product((1, 2, 3), (1, 2, 3), (1, 2)):
        pool, unpool = _pair(kernel, stride, 0, dilation)
        for n in (1, 2, 4):
            smallest = unpool.output_size(n)
            assert pool.output_size(smallest) == (n, n)
            if min(smallest) > dilation * (kernel - 1) + 1:
                assert pool.output_size([m - 1 for m in smallest]) != (n, n)


def test_wrong_shapes() -> None:
    pool, unpool = _pair(2)
    y, switches = pool.pool(torch.rand(1, 2, 5, 5))
    with pytest.raises(BadInput, match=r"input of shape \(1, 2, 2, 1\) and switches of shape \(1, 2, 2, 2\)"):
        unpool(y[..., :1], switches)
    with pytest.raises(BadInput, match="must be left out: the switches know it"):
        unpool(y, switches, (5, 5))
    for wrong in ((6, 5), (5, 2), (5,), (1, 5, 5), (9, 9, 9, 5, 5)):
        with pytest.raises(BadInput, match="each less than the stride"):
            unpool(y, switches.indices, wrong)
    with pytest.raises(RuntimeError, match="out of bounds"):
        unpool(y, switches.indices + 100)
    for layer in (pool, unpool):
        with pytest.raises(BadInput, match="was given an input of shape"):
            layer(torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SwitchedMaxPool2d(0), "kernel_size=0 must be"),
        (lambda: SwitchedMaxPool2d(2, 0), "stride=0 must be"),
        (lambda: SwitchedMaxPool2d(2, padding=2), "padding=2 must be at most half of kernel_size=2"),
        (lambda: SwitchedMaxPool2d(2, dilation=0), "dilation=0 must be"),
        (lambda: MaxUnpool2d(SwitchedMaxPool2d(2), 2), "stride=2 and padding=0 are those of the pool"),
        (lambda: MaxUnpool2d(2, keep=True), "keep=True is for a MaxUnpool2d made from a SwitchedMaxPool2d"),
        (lambda: MaxUnpool2d((1, 2, 3)), "kernel_size=(1, 2, 3) must be"),
        (lambda: SwitchedMaxPool2d(5).output_size(3), "smaller than the kernel"),
    ],
)
def test_wrong_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make()
    assert message in str(caught.value)


def test_ceil_mode_sizes_are_torchs() -> None:
    for kernel, stride, padding, size in product((1, 2, 3, 4), (1, 2, 3, 5), (0, 1), range(4, 12)):
        if 2 * padding <= kernel:
            pool = SwitchedMaxPool2d(kernel, stride, padding, ceil_mode=True)
            assert pool.output_size(size) == pool.pool(torch.zeros(1, size, size))[0].shape[-2:]
    sizes = [SwitchedMaxPool2d(2, ceil_mode=True).output_size(n)[0] for n in range(2, 8)]
    assert all(b - a in (0, 1) for a, b in pairwise(sizes))
