"""A small builder of machine-code kernels: Python that reads like the loop nest it emits, as LLVM's text.

A `Module` collects functions; a `Function` hands out typed values whose operators emit instructions:

- `Int`: a 64-bit integer, for sizes and offsets. Plain Python ints mix freely and fold away.
- `Pointer`: an address and what it points at; `p + 3` moves by three elements, `p.load()` reads a vector.
- `Vector`: as many float32 as the host's registers hold (`module.width`), or fewer in a function that asks for fewer;
  `+ - *` and `fma`.
- `Flag`: true or false; `Mask`: one flag a lane, for the last, partly filled vector of a row.

`with f.loop(0, n) as i:` is a loop, `with f.when(flag):` a condition, `f.variable(v)` a value that a loop
changes (LLVM keeps it in a register). Text is emitted rather than objects of `llvmlite.ir` because it is an
order of magnitude faster, and building the text is on the path of every first use, cached code or not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from convscope.algorithms.kernels.host import Host

INT = "i64"  # kinds of parameters: this, or an element type with a star
FLOATS = "float*"
INTS = "i64*"
POINTERS = "ptr*"

_SYMBOLS = {
    "omp_get_thread_num": "declare i32 @omp_get_thread_num()",
    "omp_get_num_threads": "declare i32 @omp_get_num_threads()",
    "GOMP_barrier": "declare void @GOMP_barrier()",
    "prefetch": "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
    "fence": "declare void @llvm.x86.sse.sfence()",
}


class Module:
    """The functions of one kernel, and the vector width they are written for.

    Example:
        >>> from convscope.algorithms.kernels.host import Host
        >>> module = Module(Host(cpu="x86-64-v3", features="", width=8, registers=16))
        >>> f = module.function("double_all", x=FLOATS, count=INT)
        >>> x, count = f.arguments
        >>> with f.loop(0, count, step=module.width) as i:
        ...     value = (x + i).load()
        ...     (x + i).store(value + value)
        >>> "fadd contract <8 x float>" in module.text()
        True
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.width = host.width
        self.vector = f"<{self.width} x float>"
        self._functions: list[Function] = []
        self._declarations: dict[str, str] = {}

    def function(
        self, name: str, *, public: bool = True, width: int | None = None, **parameters: str
    ) -> Function:
        """A new function; `public` ones have an address after compilation, others serve those of this module.

        Args:
            name: unique in the module.
            public: whether it is called from outside.
            width: numbers in its vectors; those of the module by default.
            parameters: for each parameter its kind: `INT`, or a pointer: `FLOATS`, `INTS`, `POINTERS`.
        """
        function = Function(self, name, public, parameters, width or self.width)
        self._functions.append(function)
        return function

    def declare(self, name: str, text: str) -> None:
        """Make an outside function known, once."""
        self._declarations[name] = text

    def text(self) -> str:
        """The module in LLVM's assembly language."""
        bits = 32 * self.width
        functions = "\n".join(function.text() for function in self._functions)
        return (
            "\n".join(sorted(self._declarations.values()))
            + f"\n{functions}\n!0 = !{{i32 1}}\n"
            + f'attributes #0 = {{ nounwind "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" }}\n'
        )


class _Value:
    """Something of a type with a name in the text."""

    __slots__ = ("f", "name")
    type: str

    def __init__(self, f: Function, name: str) -> None:
        self.f = f
        self.name = name

    def __bool__(self) -> NoReturn:
        raise TypeError("a value of the kernel is not known while it is being built; use `when` or `select`")


class Int(_Value):
    """A signed 64-bit integer; `//` and `%` are meant for numbers that are not negative."""

    __slots__ = ()
    type = "i64"

    def __add__(self, other: Int | int) -> Int:
        return self if _is(other, 0) else self.f._int("add nsw", self, other)

    __radd__ = __add__

    def __sub__(self, other: Int | int) -> Int:
        return self if _is(other, 0) else self.f._int("sub nsw", self, other)

    def __rsub__(self, other: int) -> Int:
        return self.f._int("sub nsw", other, self)

    def __mul__(self, other: Int | int) -> Int:
        return self if _is(other, 1) else self.f._int("mul nsw", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Int | int) -> Int:
        return self if _is(other, 1) else self.f._int("udiv", self, other)

    def __mod__(self, other: Int | int) -> Int:
        return self.f._int("urem", self, other)

    def __lt__(self, other: Int | int) -> Flag:
        return self.f._compare("slt", self, other)

    def __le__(self, other: Int | int) -> Flag:
        return self.f._compare("sle", self, other)

    def __gt__(self, other: Int | int) -> Flag:
        return self.f._compare("sgt", self, other)

    def __ge__(self, other: Int | int) -> Flag:
        return self.f._compare("sge", self, other)

    def equals(self, other: Int | int) -> Flag:
        """Whether both are the same number."""
        return self.f._compare("eq", self, other)

    def inside(self, limit: Int | int) -> Flag:
        """Whether 0 <= self < limit: one unsigned comparison."""
        return self.f._compare("ult", self, limit)


class Flag(_Value):
    """True or false."""

    __slots__ = ()
    type = "i1"

    def __and__(self, other: Flag) -> Flag:
        return Flag(self.f, self.f.emit(f"and i1 {self.name}, {other.name}"))

    def __or__(self, other: Flag) -> Flag:
        return Flag(self.f, self.f.emit(f"or i1 {self.name}, {other.name}"))

    def __invert__(self) -> Flag:
        return Flag(self.f, self.f.emit(f"xor i1 {self.name}, true"))


class Vector(_Value):
    """As many float32 as a register holds. The compiler may fuse a multiplication into an addition."""

    __slots__ = ()

    @property
    def type(self) -> str:  # type: ignore[override]
        """Its type in LLVM's language."""
        return self.f.vector

    def _with(self, operation: str, other: Vector) -> Vector:
        return Vector(self.f, self.f.emit(f"{operation} contract {self.type} {self.name}, {other.name}"))

    def __add__(self, other: Vector) -> Vector:
        return self._with("fadd", other)

    def __sub__(self, other: Vector) -> Vector:
        return self._with("fsub", other)

    def __mul__(self, other: Vector) -> Vector:
        return self._with("fmul", other)

    def __neg__(self) -> Vector:
        return Vector(self.f, self.f.emit(f"fneg {self.type} {self.name}"))


class Mask(_Value):
    """One flag a lane."""

    __slots__ = ()

    @property
    def type(self) -> str:  # type: ignore[override]
        """Its type in LLVM's language."""
        return f"<{self.f.width} x i1>"


class Pointer(_Value):
    """An address, and the type of what lies there: "float", "i64" or "ptr"."""

    __slots__ = ("element",)
    type = "ptr"

    def __init__(self, f: Function, name: str, element: str) -> None:
        super().__init__(f, name)
        self.element = element

    def __add__(self, offset: Int | int) -> Pointer:
        if _is(offset, 0):
            return self
        where = f"getelementptr inbounds {self.element}, ptr {self.name}, i64 {_name(offset)}"
        return Pointer(self.f, self.f.emit(where), self.element)

    def as_(self, element: str) -> Pointer:
        """The same address, pointing at another type."""
        return Pointer(self.f, self.name, element)

    def load(self, *, mask: Mask | None = None, align: int = 4) -> Vector:
        """The vector that begins here; with a mask, lanes outside it are not touched and read as 0."""
        f = self.f
        if mask is None:
            return Vector(f, f.emit(f"load {f.vector}, ptr {self.name}, align {align}"))
        return Vector(f, f._masked("load", f"ptr align {align} {self.name}, {mask.type} {mask.name}"))

    def store(
        self, value: Vector, *, mask: Mask | None = None, align: int = 4, streaming: bool = False
    ) -> None:
        """Write a vector here; with a mask, lanes outside it are left alone.

        Args:
            value: what to write.
            mask: the lanes to write.
            align: bytes that the address is a multiple of.
            streaming: past the caches (needs the alignment of a whole vector).
        """
        f = self.f
        if mask is not None:
            f._masked(
                "store", f"{value.type} {value.name}, ptr align {align} {self.name}, {mask.type} {mask.name}"
            )
            return
        hint = ", !nontemporal !0" if streaming else ""
        f.line(f"store {value.type} {value.name}, ptr {self.name}, align {align}{hint}")

    def splat(self) -> Vector:
        """A vector whose lanes all are the one number here."""
        return self.f._splat(self.f.emit(f"load float, ptr {self.name}, align 4"))

    def store_floor(self, value: Vector) -> None:
        """Write the whole part of each lane, none negative, as an integer of 32 bits."""
        f = self.f
        kind = f"<{f.width} x i32>"
        name = f.emit(f"fptosi {value.type} {value.name} to {kind}")
        f.line(f"store {kind} {name}, ptr {self.name}, align 4")

    def load_short(self) -> Int:
        """The integer of 32 bits here."""
        short = self.f.emit(f"load i32, ptr {self.name}, align 4")
        return Int(self.f, self.f.emit(f"sext i32 {short} to i64"))

    def load_int(self) -> Int:
        """The integer here."""
        return Int(self.f, self.f.emit(f"load i64, ptr {self.name}, align 8"))

    def load_pointer(self, element: str = "float") -> Pointer:
        """The pointer here."""
        return Pointer(self.f, self.f.emit(f"load ptr, ptr {self.name}, align 8"), element)

    def store_value(self, value: Int | Pointer | int) -> None:
        """Write an integer or a pointer here."""
        kind = "i64" if isinstance(value, int) else value.type
        self.f.line(f"store {kind} {_name(value)}, ptr {self.name}, align 8")

    def claim(self) -> Int:
        """The integer here, which grows by one at once: no two threads get the same."""
        return Int(self.f, self.f.emit(f"atomicrmw add ptr {self.name}, i64 1 monotonic"))

    def prefetch(self, *, level: int = 3, write: bool = False) -> None:
        """Ask for the line here: level 3 brings it to the first cache, 2 to the second, 1 to the third."""
        self.f.module.declare("prefetch", _SYMBOLS["prefetch"])
        self.f.line(f"call void @llvm.prefetch.p0(ptr {self.name}, i32 {int(write)}, i32 {level}, i32 1)")


class Variable:
    """A value that loops and branches change; LLVM turns it into a register."""

    __slots__ = ("_place", "_sample")

    def __init__(self, initial: Vector | Int | Pointer) -> None:
        f = initial.f
        self._sample = initial
        self._place = f._reserve(initial.type)
        self.set(initial)

    def get(self) -> Any:
        """The value now, of the kind it began with."""
        sample = self._sample
        name = sample.f.emit(f"load {sample.type}, ptr {self._place}")
        if isinstance(sample, Pointer):
            return Pointer(sample.f, name, sample.element)
        return type(sample)(sample.f, name)

    def set(self, value: Vector | Int | Pointer | int) -> None:
        """The value from now on."""
        self._sample.f.line(f"store {self._sample.type} {_name(value)}, ptr {self._place}")


class Function:
    """One function being written, from its first line to its last; it returns nothing."""

    def __init__(
        self, module: Module, name: str, public: bool, parameters: dict[str, str], width: int
    ) -> None:
        self.module = module
        self.width = width
        self.vector = f"<{width} x float>"
        self.name = name
        self._kinds = list(parameters.values())
        self._signature = ", ".join(
            f"{'i64' if kind == INT else 'ptr'} %{parameter}" for parameter, kind in parameters.items()
        )
        self._public = public
        self._stack: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self.arguments: tuple[Any, ...] = tuple(
            Int(self, f"%{parameter}") if kind == INT else Pointer(self, f"%{parameter}", kind.rstrip("*"))
            for parameter, kind in parameters.items()
        )

    # ------------------------------------------------------------ text

    def line(self, text: str) -> None:
        """An instruction without a result."""
        self._lines.append("  " + text)

    def emit(self, text: str) -> str:
        """An instruction with a result; the name given to it."""
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {text}")
        return name

    def text(self) -> str:
        """The function in LLVM's assembly language."""
        linkage = "" if self._public else "internal "
        body = "\n".join([*self._stack, *self._lines])
        extra = "" if self._public else " noinline"
        head = f"define {linkage}void @{self.name}({self._signature}){extra} #0"
        return f"{head} {{\nentry:\n{body}\n  ret void\n}}\n"

    def _label(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _begin(self, label: str) -> None:
        self._lines.append(f"{label}:")

    def _reserve(self, type_: str) -> str:
        """Room on the stack, made once on entry."""
        self._count += 1
        name = f"%s{self._count}"
        self._stack.append(f"  {name} = alloca {type_}, align 64")
        return name

    def _int(self, operation: str, a: Int | int, b: Int | int) -> Int:
        return Int(self, self.emit(f"{operation} i64 {_name(a)}, {_name(b)}"))

    def _compare(self, relation: str, a: Int | int, b: Int | int) -> Flag:
        return Flag(self, self.emit(f"icmp {relation} i64 {_name(a)}, {_name(b)}"))

    def _splat(self, scalar: str, element: str = "float", lanes: str | None = None) -> Vector:
        kind = f"<{self.width} x {element}>"
        single = self.emit(f"insertelement {kind} poison, {element} {scalar}, i64 0")
        zeros = f"<{self.width} x i32> zeroinitializer"
        return Vector(self, self.emit(f"shufflevector {kind} {single}, {kind} poison, {zeros}"))

    def _masked(self, what: str, operands: str) -> str:
        vector, width = self.vector, self.width
        name, mask = f"llvm.masked.{what}.v{width}f32.p0", f"<{width} x i1>"
        if what == "load":
            self.module.declare(name, f"declare {vector} @{name}(ptr, {mask}, {vector})")
            return self.emit(f"call {vector} @{name}({operands}, {vector} zeroinitializer)")
        self.module.declare(name, f"declare void @{name}({vector}, ptr, {mask})")
        self.line(f"call void @{name}({operands})")
        return ""

    # ------------------------------------------------------------ control

    @contextmanager
    def loop(self, start: Int | int, stop: Int | int, step: Int | int = 1) -> Iterator[Int]:
        """Repeat the body for start, start + step, ... below stop (step > 0); the index is what `as` names."""
        before, body, latch, after = (self._label(stem) for stem in ("before", "body", "latch", "after"))
        self.line(f"br label %{before}")
        self._begin(before)
        enter = self._compare("slt", start, stop)
        self.line(f"br i1 {enter.name}, label %{body}, label %{after}")
        self._begin(body)
        index, following = f"%{body}.i", f"%{latch}.i"
        self.line(f"{index} = phi i64 [ {_name(start)}, %{before} ], [ {following}, %{latch} ]")
        yield Int(self, index)
        self.line(f"br label %{latch}")
        self._begin(latch)
        self.line(f"{following} = add nsw i64 {index}, {_name(step)}")
        more = self._compare("slt", Int(self, following), stop)
        self.line(f"br i1 {more.name}, label %{body}, label %{after}")
        self._begin(after)

    @contextmanager
    def repeat(self, condition: Callable[[], Flag]) -> Iterator[None]:
        """Repeat the body while the condition, written out by the call, holds."""
        head, body, after = (self._label(stem) for stem in ("while", "body", "after"))
        self.line(f"br label %{head}")
        self._begin(head)
        self.line(f"br i1 {condition().name}, label %{body}, label %{after}")
        self._begin(body)
        yield
        self.line(f"br label %{head}")
        self._begin(after)

    @contextmanager
    def when(self, flag: Flag) -> Iterator[None]:
        """Run the body only where the flag holds."""
        yes, after = self._label("yes"), self._label("after")
        self.line(f"br i1 {flag.name}, label %{yes}, label %{after}")
        self._begin(yes)
        yield
        self.line(f"br label %{after}")
        self._begin(after)

    @contextmanager
    def either(self, flag: Flag) -> Iterator[tuple[Any, Any]]:
        """Two bodies, one of which runs: `with f.either(flag) as (yes, no):`, then `with yes:` and `with no:`."""
        labels = [self._label(stem) for stem in ("yes", "no")]
        after = self._label("after")
        self.line(f"br i1 {flag.name}, label %{labels[0]}, label %{labels[1]}")

        @contextmanager
        def body(label: str) -> Iterator[None]:
            self._begin(label)
            yield
            self.line(f"br label %{after}")

        yield body(labels[0]), body(labels[1])
        self._begin(after)

    def call(self, other: Function, *arguments: Int | Pointer | int) -> None:
        """Run another function of the module."""
        typed = [
            f"{'i64' if kind == INT else 'ptr'} {_name(argument)}"
            for kind, argument in zip(other._kinds, arguments, strict=True)
        ]
        self.line(f"call void @{other.name}({', '.join(typed)})")

    def keep_order(self, value: Vector) -> Vector:
        """The value, computed before any load that follows: the compiler may otherwise read ahead of the
        arithmetic more than the registers hold. No instruction is added."""
        vector = value.type
        return Vector(
            self, self.emit(f'call {vector} asm sideeffect "", "=v,0,~{{memory}}"({vector} {value.name})')
        )

    # ------------------------------------------------------------ values

    def variable(self, initial: Vector | Int | Pointer) -> Variable:
        """A value that may change later."""
        return Variable(initial)

    def array(self, count: int, element: str) -> Pointer:
        """Room on the stack for some integers ("i64"), pointers ("ptr") or numbers ("float")."""
        return Pointer(self, self._reserve(f"[{count} x {element}]"), element)

    def integer(self, value: int) -> Int:
        """A constant, where a variable is to begin with one."""
        return Int(self, str(value))

    def minimum(self, a: Int | int, b: Int | int) -> Any:
        """The smaller of two integers."""
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.select(self._compare("slt", a, b), a, b)

    def select(self, flag: Flag, a: Any, b: Any) -> Any:
        """`a` where the flag holds, otherwise `b`: both integers, both pointers or both vectors."""
        sample = a if isinstance(a, _Value) else b
        kind = sample.type if isinstance(sample, _Value) else "i64"
        name = self.emit(f"select i1 {flag.name}, {kind} {_name(a)}, {kind} {_name(b)}")
        if isinstance(sample, Pointer):
            return Pointer(self, name, sample.element)
        return Vector(self, name) if isinstance(sample, Vector) else Int(self, name)

    def constant(self, value: float) -> Vector:
        """A vector whose lanes all are one number, rounded to float32."""
        (single,) = struct.unpack("<f", struct.pack("<f", value))
        (bits,) = struct.unpack("<Q", struct.pack("<d", single))
        return Vector(self, f"splat (float 0x{bits:016X})")

    def zero(self) -> Vector:
        """A vector of zeros."""
        return Vector(self, "zeroinitializer")

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """a * b + c, rounded once."""
        name, vector = f"llvm.fma.v{self.width}f32", self.vector
        self.module.declare(name, f"declare {vector} @{name}({vector}, {vector}, {vector})")
        operands = f"{vector} {a.name}, {vector} {b.name}, {vector} {c.name}"
        return Vector(self, self.emit(f"call {vector} @{name}({operands})"))

    def linear(self, terms: Sequence[tuple[float, Vector]]) -> Vector:
        """The sum of coefficient * vector; coefficients 0, 1 and -1 cost nothing, or one addition."""
        used = sorted(((c, v) for c, v in terms if c), key=lambda term: (abs(term[0]) != 1, term[0] < 0))
        if not used:
            return self.zero()
        coefficient, total = used[0]
        if coefficient != 1:
            total = -total if coefficient == -1 else total * self.constant(coefficient)
        for coefficient, vector in used[1:]:
            if abs(coefficient) == 1:
                total = total + vector if coefficient > 0 else total - vector
            else:
                total = self.fma(vector, self.constant(coefficient), total)
        return total

    def positive(self, value: Vector) -> Vector:
        """max(value, 0), where a NaN stays one: the rectifier."""
        vector, width = value.type, self.width
        below = self.emit(f"fcmp ogt {vector} zeroinitializer, {value.name}")
        chosen = f"select <{width} x i1> {below}, {vector} zeroinitializer, {vector} {value.name}"
        return Vector(self, self.emit(chosen))

    def larger(self, a: Vector, b: Vector) -> Vector:
        """The larger of two in each lane; where `a` is not a number, `b`."""
        return self._choose("ogt", a, b)

    def smaller(self, a: Vector, b: Vector) -> Vector:
        """The smaller of two in each lane; where `a` is not a number, `b`."""
        return self._choose("olt", a, b)

    def _choose(self, relation: str, a: Vector, b: Vector) -> Vector:
        wins = self.emit(f"fcmp {relation} {a.type} {a.name}, {b.name}")
        return Vector(
            self, self.emit(f"select <{self.width} x i1> {wins}, {a.type} {a.name}, {b.type} {b.name}")
        )

    def between(self, value: Vector, low: Vector, high: Vector) -> Mask:
        """The lanes in which low < value < high."""
        above = self.emit(f"fcmp ogt {value.type} {value.name}, {low.name}")
        below = self.emit(f"fcmp olt {value.type} {value.name}, {high.name}")
        return Mask(self, self.emit(f"and <{self.width} x i1> {above}, {below}"))

    def where(self, mask: Mask, a: Vector, b: Vector) -> Vector:
        """`a` in the lanes of the mask, `b` in the others."""
        return Vector(
            self, self.emit(f"select {mask.type} {mask.name}, {a.type} {a.name}, {b.type} {b.name}")
        )

    def floor(self, value: Vector) -> Vector:
        """The largest whole number that is not above each lane."""
        return self._unary("floor", value)

    def magnitude(self, value: Vector) -> Vector:
        """Each lane without its sign."""
        return self._unary("fabs", value)

    def _unary(self, operation: str, value: Vector) -> Vector:
        name = f"llvm.{operation}.v{self.width}f32"
        self.module.declare(name, f"declare {self.vector} @{name}({self.vector})")
        return Vector(self, self.emit(f"call {self.vector} @{name}({self.vector} {value.name})"))

    def inverse(self, value: Vector) -> Vector:
        """1 / value, rounded once."""
        return Vector(self, self.emit(f"fdiv {value.type} {self.constant(1.0).name}, {value.name}"))

    def number(self, value: Int) -> Vector:
        """A vector whose lanes all are one integer, as a float."""
        return self._splat(self.emit(f"sitofp i64 {value.name} to float"))

    def ramp(self) -> Vector:
        """0, 1, 2, ... in the lanes."""
        return Vector(self, "<" + ", ".join(f"float {lane}.0" for lane in range(self.width)) + ">")

    def shuffle(self, a: Vector, b: Vector, lanes: Sequence[int]) -> Vector:
        """Lanes picked from two vectors: 0 to width-1 are those of `a`, the following those of `b`."""
        picked = ", ".join(f"i32 {lane}" for lane in lanes)
        operands = f"{a.type} {a.name}, {b.type} {b.name}, <{len(lanes)} x i32> <{picked}>"
        return Vector(self, self.emit(f"shufflevector {operands}"))

    def lanes(self, count: Int | int) -> Mask:
        """The first `count` lanes (all where count is at least the width; none where it is not positive)."""
        width = self.width
        if isinstance(count, int):
            bits = ", ".join(f"i1 {str(lane < count).lower()}" for lane in range(width))
            return Mask(self, f"<{bits}>")
        kind = f"<{width} x i64>"
        limit = self._splat(count.name, "i64").name
        numbers = ", ".join(f"i64 {lane}" for lane in range(width))
        return Mask(self, self.emit(f"icmp slt {kind} <{numbers}>, {limit}"))

    # ------------------------------------------------------------ threads

    def _outside(self, name: str) -> Int:
        self.module.declare(name, _SYMBOLS[name])
        number = self.emit(f"call i32 @{name}()")
        return Int(self, self.emit(f"zext i32 {number} to i64"))

    def thread(self) -> Int:
        """The number of this thread in its team."""
        return self._outside("omp_get_thread_num")

    def threads(self) -> Int:
        """How many threads the team has."""
        return self._outside("omp_get_num_threads")

    def barrier(self) -> None:
        """Wait for all threads of the team."""
        self.module.declare("GOMP_barrier", _SYMBOLS["GOMP_barrier"])
        self.line("call void @GOMP_barrier()")

    def fence(self) -> None:
        """Make streaming stores visible to other threads."""
        self.module.declare("fence", _SYMBOLS["fence"])
        self.line("call void @llvm.x86.sse.sfence()")


def _is(value: Int | int, number: int) -> bool:
    return isinstance(value, int) and value == number


def _name(value: _Value | int) -> str:
    return str(value) if isinstance(value, int) else value.name
