"""Record one forward pass: a torch dispatch mode sees every operation, module hooks only name where it ran.

What is told apart by identity is told apart through weak references, so that activations are freed as in a
plain forward pass and a reused address is never mistaken for an old tensor.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from convscope.errors import ModelError
from convscope.graph.structure import Call, Graph, Memory, Op, Shape, Source, Value
from convscope.models import InputSpec, Net, as_net, set_eval


def record(net: Net | nn.Module, *, spec: InputSpec | None = None, example: Any = None) -> Graph:
    """Runs the network once on its example input and records what really happened.

    The pass runs on a private copy in eval mode, without gradients and with fused fast paths off; the copy
    shares the parameters, unless the network writes to them. The caller's module and the global random state
    stay as they are. A network on the meta device is recorded there.

    Args:
        net: a Net, or a module with `spec` or `example`.
        spec: what to feed it, instead of the Net's own specification.
        example: the input itself, instead of one drawn from the specification: a tensor, or a tuple of
            arguments.

    Returns:
        The graph; it holds names and shapes, no tensor.

    Raises:
        ModelError: the network is scripted, compiled, cannot be copied, or fails on its example input.

    Example:
        >>> graph = record(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), spec=InputSpec((3, 9, 9)))
        >>> [(call.name, call.out_shapes) for call in graph.calls]
        [('0', ((1, 8, 7, 7),)), ('1', ((1, 8, 7, 7),)), ('', ((1, 8, 7, 7),))]
        >>> [op.name for op in graph.ops]
        ['aten.convolution', 'aten.relu']
    """
    module = net if isinstance(net, nn.Module) and example is not None else as_net(net, spec).module
    _refuse_opaque(module)
    if example is None:
        wanted = spec or as_net(net, spec).input
        example = wanted.example(batch=1, device=_device(module))
    arguments = example if isinstance(example, tuple) else (example,)
    try:
        return _Recorder(_shadow(net, module), arguments, guard_parameters=True).run()
    except _WritesParameters:  # rare: weight clipping and the like; pay for a full copy
        private = copy.deepcopy(module)
        set_eval(private)
        return _Recorder(private, arguments, guard_parameters=False).run()


def _refuse_opaque(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"module {name or '(root)'!r} is TorchScript, whose operations run out of sight of Python; "
                f"give the "
                "original nn.Module"
            )
        if hasattr(part, "_orig_mod") and hasattr(part, "dynamo_ctx"):
            raise ModelError(
                f"module {name or '(root)'!r} is compiled by torch.compile, which hides its layers; give "
                f"the original "
                "module (its `_orig_mod`)"
            )
        if type(part).__module__.startswith(_QUANTIZED) and not type(part).__name__.endswith(
            "FloatFunctional"
        ):
            raise ModelError(
                f"module {name or '(root)'!r} ({type(part).__name__}) is quantized, whose weights and operations "
                "are packed out of sight; give the float model it was converted from"
            )


_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def _device(module: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), None)


def _shadow(net: Net | nn.Module, module: nn.Module) -> nn.Module:
    """A copy of the module's structure and buffers that shares its parameters, in eval mode."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    try:
        private = copy.deepcopy(module, memo)
    except (
        Exception
    ):  # whatever a foreign __deepcopy__ raises: Net.copy copes with more, and words the refusal
        private = (Net(module, InputSpec()) if isinstance(net, nn.Module) else net).copy()
    set_eval(private)
    return private


class _WritesParameters(Exception):
    """The forward pass is about to change a parameter that the caller owns."""


@contextmanager
def _plain_execution() -> Iterator[None]:
    """No gradients, no fused encoder or attention fast path, the global random state kept."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(
        devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


class _Memory:
    """The tensors that share one piece of memory, held weakly; its end is that of the last of them."""

    __slots__ = ("__weakref__", "_log", "index", "members", "owned")

    def __init__(self, owned: bool, log: _MemoryLog, source: Source) -> None:
        self.members = WeakTensorKeyDictionary()
        self.owned = owned  # by the caller: a parameter
        self.index = log.begin(source)
        self._log = log

    def __del__(self) -> None:  # only tensors hold it: it goes when Python lets go of the last one
        self._log.end(self.index)


class _MemoryLog:
    """When each piece of memory came and went, counted in operations."""

    def __init__(self, ops: list[Op]) -> None:
        self._ops = ops
        self._begun: list[tuple[Source, int]] = []
        self._ended: dict[int, int] = {}
        self._sizes: list[int] = []

    def begin(self, source: Source) -> int:
        self._begun.append((source, len(self._ops) if source == "op" else -1))
        self._sizes.append(0)
        return len(self._begun) - 1

    def end(self, index: int) -> None:
        self._ended[index] = len(self._ops)

    def holds(self, index: int, size: int) -> None:
        self._sizes[index] = max(self._sizes[index], size)

    def told(self) -> tuple[Memory, ...]:
        last = len(self._ops)
        return tuple(
            Memory(size, source, born, self._ended.get(index, last))
            for index, ((source, born), size) in enumerate(zip(self._begun, self._sizes, strict=True))
        )


@dataclasses.dataclass(slots=True)
class _Known:
    """What is known of a live tensor: its present value, its memory."""

    value: int
    memory: _Memory


@dataclasses.dataclass(slots=True)
class _Frame:
    """A module call under way."""

    serial: int
    name: str
    kind: str
    index: int
    is_leaf: bool
    inputs: tuple[int, ...]
    handled: BaseException | None  # the exception whose handler the call was made from


class _Recorder(TorchDispatchMode):
    """One use: `run()` gives the graph."""

    def __init__(self, module: nn.Module, arguments: tuple[Any, ...], guard_parameters: bool) -> None:
        super().__init__()
        self._module = module
        self._arguments = arguments
        self._guard = guard_parameters
        self._known = WeakTensorKeyDictionary()
        self._memories: WeakValueDictionary[int, _Memory] = WeakValueDictionary()  # by address of the storage
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._log = _MemoryLog(self._ops)
        self._calls: list[tuple[_Frame, int | None, tuple[int, ...]]] = []
        self._stack: list[_Frame] = []
        self._counts: dict[str, int] = {}
        self._serial = 0
        self._failed: tuple[BaseException, str] | None = None  # the last exception and the layer it came from

    # -- the run ---------------------------------------------------------------------------------------------

    def run(self) -> Graph:
        module = self._module
        for name, parameter in module.named_parameters():
            self._adopt(parameter, "parameter", name)
        for name, buffer in module.named_buffers():
            self._adopt(buffer, "buffer", name)
        inputs = tuple(self._adopt(tensor, "input") for tensor in flatten(self._arguments))
        names = {id(part): name for name, part in module.named_modules()}
        with ExitStack() as hooks:
            for name, part in module.named_modules():
                before, after = self._hooks(name, part)
                hooks.callback(part.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
                hooks.callback(part.register_forward_hook(after, with_kwargs=True, always_call=True).remove)
            with _plain_execution():
                self._forward()
        every = list(module.named_modules(remove_duplicate=False))
        aliases = {name: names[id(part)] for name, part in every if names[id(part)] != name}
        layers = tuple(name for name in names.values() if name)
        return self._graph(inputs, layers, aliases)

    def _forward(self) -> None:
        try:
            with self:
                self._module(*self._arguments)
        except (_WritesParameters, ModelError):
            raise
        except Exception as error:  # the network's own code: anything may come
            where = self._failed[1] if self._failed is not None and self._failed[0] is error else ""
            shapes = ", ".join(str(list(tensor.shape)) for tensor in flatten(self._arguments))
            reason = " ".join(str(error).split())[:300]
            advice = "give the input it expects"
            if "meta" in reason and any(tensor.device.type == "meta" for tensor in flatten(self._arguments)):
                advice = "it needs values, which the meta device has not, so give it weights"
            raise ModelError(
                f"the network failed in layer {where or '(root)'!r} on an example input of shape {shapes} "
                f"({type(error).__name__}: {reason}); {advice}"
            ) from error

    def _graph(self, inputs: tuple[int, ...], layers: tuple[str, ...], aliases: dict[str, str]) -> Graph:
        order = {frame.serial: position for position, (frame, _, _) in enumerate(self._calls)}
        shape = [value.shape for value in self._values]
        calls = tuple(
            Call(
                name=frame.name,
                kind=frame.kind,
                index=frame.index,
                depth=len(frame.name.split(".")) if frame.name else 0,
                is_leaf=frame.is_leaf,
                in_shapes=tuple(shape[value] for value in frame.inputs),
                out_shapes=tuple(shape[value] for value in outputs),
                inputs=frame.inputs,
                outputs=outputs,
                order=position,
                parent=None if parent is None else order.get(parent),
            )
            for position, (frame, parent, outputs) in enumerate(self._calls)
        )
        ops = tuple(
            dataclasses.replace(op, call=None if op.call is None else order.get(op.call)) for op in self._ops
        )
        return Graph(calls, ops, tuple(self._values), inputs, layers, aliases, self._log.told())

    # -- module calls ----------------------------------------------------------------------------------------

    def _hooks(self, name: str, part: nn.Module) -> tuple[Any, Any]:
        kind, is_leaf = type(part).__name__, next(part.children(), None) is None

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            index = self._counts.get(name, 0)
            self._counts[name] = index + 1
            inputs = tuple(self._value(tensor) for tensor in flatten((args, kwargs)))
            self._stack.append(_Frame(self._serial, name, kind, index, is_leaf, inputs, sys.exception()))
            self._serial += 1

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            frame = self._stack.pop()
            error = sys.exception()
            if error is not frame.handled:  # the call ends in an exception, which the network may yet catch
                if error is not None and (self._failed is None or self._failed[0] is not error):
                    self._failed = (error, name)
                return
            parent = self._stack[-1].serial if self._stack else None
            self._calls.append((frame, parent, tuple(self._value(tensor) for tensor in flatten(output))))

        return before, after

    # -- operations ------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose() and _is_composite(func):  # whole only inside torch.inference_mode
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        schema = func._schema
        bound = _bind(schema, args, kwargs)
        written = [
            tensor
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in flatten(bound.get(argument.name))
        ]
        if self._guard and any(self._entry(tensor).memory.owned for tensor in written):
            raise _WritesParameters
        tensors, attributes = self._split(bound)
        before = _geometry(bound["self"]) if func in _RESTRIDES else None
        result = func(*args, **kwargs)
        outputs = self._results(result, written)
        if func in _RESTRIDES:  # whether the elements stay in their order can only be told from them
            attributes["before"] = before
        namespace, _, name = func.name().partition("::")
        self._append(
            f"{namespace}.{name.partition('.')[0]}",
            func._overloadname,
            tensors,
            attributes,
            outputs,
            torch.Tag.pointwise in func.tags,
        )
        for tensor in written:
            self._write_through(tensor)
        return result

    def _append(
        self,
        name: str,
        overload: str,
        tensors: Mapping[str, int | tuple[int | None, ...] | None],
        attributes: Mapping[str, Any],
        outputs: tuple[int, ...],
        pointwise: bool = False,
    ) -> None:
        frame = self._stack[-1] if self._stack else None
        module, call = ("", None) if frame is None else (frame.name, frame.serial)
        self._ops.append(Op(name, overload, module, call, tensors, attributes, outputs, pointwise))

    def _split(
        self, bound: Mapping[str, Any]
    ) -> tuple[dict[str, int | tuple[int | None, ...] | None], dict[str, Any]]:
        """Arguments told apart: tensors as value numbers, the rest as plain values."""
        tensors: dict[str, int | tuple[int | None, ...] | None] = {}
        attributes: dict[str, Any] = {}
        for name, value in bound.items():
            if isinstance(value, Tensor):
                tensors[name] = self._value(value)
            elif isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
                tensors[name] = tuple(
                    self._value(item) if isinstance(item, Tensor) else None for item in value
                )
            else:
                attributes[name] = tuple(value) if isinstance(value, list) else value
        return tensors, attributes

    def _results(self, result: Any, written: list[Tensor]) -> tuple[int, ...]:
        """New values for what an operation returned, and for what it wrote to without returning it."""
        outputs: list[int] = []
        fresh: list[Tensor] = []
        for tensor in [*flatten(result), *written]:
            if any(tensor is other for other in fresh):
                continue
            fresh.append(tensor)
            outputs.append(self._place(tensor, "op", ""))
        return tuple(outputs)

    def _write_through(self, written: Tensor) -> None:
        """An in-place operation also changed the other live tensors on the same memory: give them new
        values.
        """
        entry = self._entry(written)
        for other in list(entry.memory.members.keys()):
            if other is written or other.numel() == 0:
                continue
            before = self._entry(other).value
            after = self._place(other, "op", "")
            attributes = {"base": _geometry(other), "part": _geometry(written)}
            self._append("convscope.write", "", {"base": before, "part": entry.value}, attributes, (after,))

    # -- values ----------------------------------------------------------------------------------------------

    def _value(self, tensor: Tensor) -> int:
        return self._entry(tensor).value

    def _entry(self, tensor: Tensor) -> _Known:
        entry = self._known.get(tensor)
        if entry is None:
            twin = self._twin(tensor)
            if twin is None:  # made before the pass, by hand or in a library's cache
                self._adopt(tensor, "constant")
            else:
                self._known[tensor] = _Known(twin.value, twin.memory)
                twin.memory.members[tensor] = None
            entry = self._known[tensor]
        assert isinstance(entry, _Known)
        return entry

    def _twin(self, tensor: Tensor) -> _Known | None:
        """The known tensor of which this is another handle, made out of sight of the mode (`tensor.data`)."""
        if tensor.layout is not torch.strided:
            return None
        memory = self._memories.get(tensor.untyped_storage()._cdata)
        for other in memory.members.keys() if memory is not None else ():
            if other.dtype == tensor.dtype and _geometry(other) == _geometry(tensor):
                return self._entry(other)
        return None

    def _adopt(self, tensor: Tensor, source: Source, name: str = "") -> int:
        entry = self._known.get(tensor)
        if entry is not None:
            return int(entry.value)
        return self._place(tensor, source, name)

    def _place(self, tensor: Tensor, source: Source, name: str) -> int:
        index = len(self._values)
        memory = self._memory(tensor, source)
        self._values.append(Value(index, tuple(tensor.shape), tensor.dtype, source, name, memory.index))
        memory.members[tensor] = None
        self._known[tensor] = _Known(index, memory)
        return index

    def _memory(self, tensor: Tensor, source: Source) -> _Memory:
        """That of the tensors which lie in the same storage: alive as long as one of them is, so that the
        storage's address means no other.
        """
        if tensor.layout is not torch.strided:
            entry = self._known.get(tensor)
            memory = _Memory(source == "parameter", self._log, source) if entry is None else entry.memory
            assert isinstance(memory, _Memory)
            self._log.holds(memory.index, tensor.numel() * tensor.element_size())
            return memory
        storage = tensor.untyped_storage()
        found = self._memories.get(storage._cdata)
        if found is None:
            found = self._memories[storage._cdata] = _Memory(source == "parameter", self._log, source)
        self._log.holds(found.index, storage.nbytes())
        return found


_RESTRIDES = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_.default)


def flatten(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from flatten(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flatten(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for member in dataclasses.fields(value):
            yield from flatten(getattr(value, member.name))


def _bind(schema: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Argument names to values, defaults filled in."""
    positional = list(args)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(positional) and not argument.kwarg_only:
            bound[argument.name] = positional[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def _geometry(tensor: Tensor) -> tuple[Shape, Shape, int]:
    """(sizes, strides, offset) in the shared memory."""
    return tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
