"""Write src/pyllama/_native/_binding.pyi: the types of what cffi makes of the C declarations.

    python scripts/binding_stub.py

cffi checks little of a call's arguments, and nothing before the call is made. With the stub,
mypy knows each struct and its fields, each function with its parameters, and each constant. Run
this after a change of a .cdef or .h file in src/pyllama/_native.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cffi
from cffi import model

NATIVE = Path(__file__).resolve().parents[1] / "src" / "pyllama" / "_native"
STUB = NATIVE / "_binding.pyi"

_HEAD = '''\
# Written by scripts/binding_stub.py from the .cdef and .h files of this folder. Do not edit it.
#
# A struct of C is a class here, and a pointer to it is a Pointer[struct]. Where the fields are
# declared, struct_p is the pointer whose attributes are the fields, as cffi has it. An array is a
# pointer that knows its length. char is bytes, and all other numbers are int or float.

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, Literal, TypeVar, overload

from numpy.typing import NDArray
from typing_extensions import Buffer, Self

_T = TypeVar("_T")
_Function = TypeVar("_Function", bound=Callable[..., object])

class CData:
    """What cffi holds of C."""

class Pointer(CData, Generic[_T]):
    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> Array[_T]: ...
    def __setitem__(self, index: int, value: _T) -> None: ...
    def __add__(self, count: int) -> Self: ...

class Array(Pointer[_T]):
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_T]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

class FunctionPointer(CData): ...

_Memory = CData | Buffer | NDArray[Any]
'''

_FFI = """\
class _FFI:
    # It stands for every pointer.
    NULL: Any
    # It is cffi's own, which is read as a memoryview is.
    def buffer(self, data: Pointer[Any], size: int = ...) -> memoryview: ...
    def def_extern(
        self,
        name: str = ...,
        error: object = ...,
        onerror: Callable[[Any, BaseException, Any], object] = ...,
    ) -> Callable[[_Function], _Function]: ...
    def from_handle(self, handle: CData) -> Any: ...
    def memmove(self, dest: _Memory, src: _Memory, n: int) -> None: ...
    def new_handle(self, thing: object) -> CData: ...
    def sizeof(self, type: str | CData) -> int: ...
    def string(self, text: Pointer[bytes], maxlen: int = ...) -> bytes: ...
    def unpack(self, data: Pointer[_T], length: int) -> list[_T]: ...
"""


def main() -> None:
    STUB.write_text(stub(), encoding="utf-8")


def stub() -> str:
    """The text of the stub."""
    ffi = cffi.FFI()
    ffi.cdef("\n".join(path.read_text(encoding="utf-8") for path in declarations()))
    declared: dict[str, tuple[Any, int]] = ffi._parser._declarations
    return "\n".join([_HEAD, *_structs(declared), *_ffi(declared), *_lib(declared)])


def declarations() -> Iterator[Path]:
    """The files that CMake gives to cffi, in its order."""
    text = (NATIVE / "CMakeLists.txt").read_text(encoding="utf-8")
    objects = re.search(r"^set\(objects ([^)]*)\)", text, re.MULTILINE)
    assert objects is not None, "CMakeLists.txt names its objects differently now"
    for name in ["guard", *objects[1].split()]:
        for path in (NATIVE / f"{name}.cdef", NATIVE / f"{name}.h"):
            if path.exists():
                yield path


def _of_kind(declared: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """What was declared so, by its name."""
    parts = ((key.partition(" "), tp) for key, (tp, _) in declared.items())
    return {name: tp for (kind, _, name), tp in parts if kind in kinds}


# The types of C as those of Python.

_SCALARS = {"char": "bytes", "float": "float", "double": "float", "_Bool": "bool"}


def _type(tp: Any, *, taken: bool = False) -> str:
    """A type as the stub has it; that of what C takes is wider than that of what it gives."""
    if isinstance(tp, model.VoidType):
        return "None"
    if isinstance(tp, model.EnumType):
        return "int"
    if isinstance(tp, model.BasePrimitiveType):
        return _SCALARS.get(tp.name, "int")
    if isinstance(tp, model.StructOrUnion):
        return _name(tp)
    if isinstance(tp, model.FunctionPtrType | model.RawFunctionType):
        return "Callable[..., Any] | FunctionPointer" if taken else "FunctionPointer"
    if isinstance(tp, model.ArrayType):
        return "Any" if _is_char(tp.item) else f"Array[{_type(tp.item)}]"
    assert isinstance(tp, model.PointerType), tp
    to = tp.totype
    if isinstance(to, model.VoidType):
        return "CData"
    if isinstance(to, model.StructOrUnion):
        return f"{_name(to)}_p" if to.fldnames and not taken else f"Pointer[{_name(to)}]"
    pointer = f"Pointer[{_type(to)}]"
    if not taken:
        return pointer
    return f"{pointer} | {'bytes' if _is_char(to) else f'Sequence[{_type(to, taken=True)}]'}"


def _is_char(tp: Any) -> bool:
    return isinstance(tp, model.PrimitiveType) and tp.name == "char"


def _name(struct: Any) -> str:
    return str(struct.name).lstrip("$")


def _structs(declared: dict[str, Any]) -> Iterator[str]:
    for name, struct in _all_structs(declared).items():
        if not struct.fldnames:
            yield f"class {name}: ..."
            continue
        yield f"class {name}:"
        for field, tp in _fields(struct):
            yield f"    {field}: {_pointer_or(tp)}"
        yield f"class {name}_p({name}, Pointer[{name}]): ..."
    yield ""


def _pointer_or(tp: Any) -> str:
    """The type of a field, which takes an array for a pointer, too."""
    if isinstance(tp, model.PointerType) and isinstance(tp.totype, model.StructOrUnion):
        return f"Pointer[{_name(tp.totype)}]"
    return _type(tp)


def _all_structs(declared: dict[str, Any]) -> dict[str, Any]:
    structs = _of_kind(declared, "struct", "anonymous")
    return {_name(struct): struct for struct in structs.values() if not _is_enum(struct)}


def _is_enum(tp: Any) -> bool:
    return isinstance(tp, model.EnumType)


def _fields(struct: Any) -> Iterator[tuple[str, Any]]:
    """Its fields, with those of a union that has no name."""
    for name, tp in zip(struct.fldnames, struct.fldtypes, strict=True):
        if name and not keyword.iskeyword(name):
            yield name, tp
        elif not name:
            yield from _fields(tp)


# The module's two objects.


def _ffi(declared: dict[str, Any]) -> Iterator[str]:
    yield _FFI.rstrip()
    numbers, structs, pointers = _made_of(declared)
    made = [
        *(
            pair
            for name, of in numbers.items()
            for pair in (
                (f"{name} *", f"Pointer[{of}]"),
                (f"{name}[]", f"Array[{of}]"),
                (f"{name} **", f"Pointer[Pointer[{of}]]"),
                (f"{name} *[]", f"Array[Pointer[{of}]]"),
            )
        ),
        *((f"{name} *", f"{of}_p") for name, of in structs.items()),
        *((f"{name}[]", f"Array[{of}]") for name, of in structs.items()),
        *((f"{name}[]", f"Array[{of}]") for name, of in pointers.items()),
    ]
    yield from _overloads("new", "init: object = ...", made)
    views = [(name, result) for name, result in made if name.endswith("*")]
    yield from _overloads("cast", "value: object", [*views, ("uintptr_t", "int")])
    arrays = [(f"{name}[]", f"Array[{of}]") for name, of in numbers.items()]
    yield from _overloads("from_buffer", "data: _Memory", arrays)
    yield "    @overload"
    yield "    def from_buffer(self, cdecl: _Memory) -> Array[bytes]: ..."
    for name in structs.values():
        yield "    @overload"
        yield f"    def addressof(self, struct: {name}) -> {name}_p: ..."
    yield "    @overload"
    yield "    def addressof(self, struct: _Lib, name: str) -> FunctionPointer: ..."
    yield "\nffi: _FFI\n"


def _made_of(declared: dict[str, Any]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Numbers, structs and pointers that Python makes, by their names in C, as they are here."""
    numbers = {"char": "bytes", "const char": "bytes", "float": "float", "bool": "bool"}
    numbers |= dict.fromkeys(
        ("int8_t", "int32_t", "uint32_t", "int64_t", "size_t", "uint8_t"), "int"
    )
    structs, pointers = {}, {}
    for name, tp in _of_kind(declared, "struct").items():
        if tp.fldnames:
            structs[f"struct {name}"] = name
        pointers[f"struct {name} *"] = f"Pointer[{name}]"
    for name, tp in _of_kind(declared, "typedef").items():
        if isinstance(tp, model.PrimitiveType):
            numbers[name] = _type(tp)
        elif isinstance(tp, model.StructOrUnion) and tp.fldnames:
            structs.pop(f"struct {name}", None)
            structs[name] = name
        elif isinstance(tp, model.PointerType) and not isinstance(tp, model.FunctionPtrType):
            pointers[name] = _type(tp)
    return numbers, structs, pointers


def _overloads(name: str, argument: str, made: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One for each result, whatever C calls what it is made of."""
    texts: dict[str, list[str]] = {}
    for text, result in made:
        texts.setdefault(result, []).append(f'"{text}"')
    for result, alike in texts.items():
        yield "    @overload"
        yield f"    def {name}("
        yield f"        self, cdecl: Literal[{', '.join(alike)}], {argument}"
        yield f"    ) -> {result}: ..."


def _lib(declared: dict[str, Any]) -> Iterator[str]:
    yield "class _Lib:"
    for name in sorted(_constants(declared)):
        yield f"    {name}: Final[int]"
    for name in sorted(_of_kind(declared, "extern_python")):
        yield f"    {name}: Final[FunctionPointer]"
    for name, function in sorted(_of_kind(declared, "function").items()):
        taken = [f"_{i}: {_type(tp, taken=True)}" for i, tp in enumerate(function.args)]
        parameters = ", ".join(["self", *taken, *(["/"] if taken else [])])
        yield f"    def {name}({parameters}) -> {_type(function.result)}: ..."
    yield "\nlib: _Lib\n"


def _constants(declared: dict[str, Any]) -> Iterator[str]:
    yield from _of_kind(declared, "macro")
    for enum in _of_kind(declared, "enum", "anonymous").values():
        if _is_enum(enum):
            yield from enum.enumerators


if __name__ == "__main__":
    main()
