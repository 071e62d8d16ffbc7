"""The public surface as text: every exported name with its signatures. `python -m tests.support.api` records it anew."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cwsandbox
from cwsandbox import files

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDED = Path(__file__).parents[1] / "surface" / "api.txt"
LINE = 120
STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
PROTOCOLS = {
    "__await__": "await",
    "__enter__": "with",
    "__aenter__": "async with",
    "__iter__": "for",
    "__aiter__": "async for",
}


def surface() -> str:
    """What `api.txt` has to be."""
    lines = [line for name in sorted(cwsandbox.__all__) for line in exported(name, getattr(cwsandbox, name))]
    lines += [line for name in sorted(files.__all__) for line in exported(f"files.{name}", getattr(files, name))]
    return "\n".join(lines) + "\n"


def exported(name: str, value: Any) -> Iterator[str]:
    """One exported name."""
    if isinstance(value, type):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        yield from _signature(f"def {name}", value)
    elif isinstance(value, str):
        yield f"{name}: str"
    else:
        yield f"{name} = {value}".replace("typing.", "")


def members(cls: type) -> dict[str, Any]:
    """The public attributes that a class has from this package, by name; those of exported bases are theirs."""
    homes = [base for base in cls.__mro__ if base.__module__.startswith("cwsandbox")]
    own = [base for base in homes if base is cls or base.__name__ not in cwsandbox.__all__]
    return {
        name: value
        for base in reversed(own)
        for name, value in vars(base).items()
        if not name.startswith("_") and not (inspect.ismemberdescriptor(value) or inspect.ismodule(value))
    }


def _class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield ""
    if issubclass(cls, enum.Enum):
        yield f"class {name}({bases})"
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    yield from _signature(f"class {name}", cls, suffix=f" < {bases}" if bases else "")
    if supported := [word for method, word in PROTOCOLS.items() if hasattr(cls, method)]:
        yield f"    supports {', '.join(supported)}"
    for member, value in sorted(members(cls).items()):
        yield from _member(member, value)


def _member(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, property):
        assert value.fget is not None
        settable = " (settable)" if value.fset else ""
        yield f"    {name}: {_annotation(inspect.signature(value.fget).return_annotation)}{settable}"
    elif isinstance(value, classmethod | staticmethod):
        yield from _signature(f"    {type(value).__name__} {name}", value.__func__)
    elif inspect.isfunction(value):
        yield from _signature(f"    def {name}", value)
    else:
        yield f"    {name}"


def _signature(start: str, value: Any, suffix: str = "") -> Iterator[str]:
    try:
        signature = inspect.signature(value)
    except ValueError:
        yield f"{start}(...){suffix}"
        return
    if not isinstance(value, type) and signature.return_annotation is not inspect.Signature.empty:
        suffix += f" -> {_annotation(signature.return_annotation)}"
    parameters = list(_parameters(signature))
    line = f"{start}({', '.join(parameters)}){suffix}"
    if len(line) <= LINE:
        yield line
        return
    indent = " " * (len(start) - len(start.lstrip()) + 4)
    yield f"{start}("
    yield from (f"{indent}{parameter}," for parameter in parameters)
    yield f"{indent[4:]}){suffix}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    for index, parameter in enumerate(signature.parameters.values()):
        first_keyword = parameter.kind is parameter.KEYWORD_ONLY and parameter.kind not in kinds[:index]
        if first_keyword and parameter.VAR_POSITIONAL not in kinds:
            yield "*"
        text = STARS.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        yield text
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.kind not in kinds[index + 1 :]:
            yield "/"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    return "..." if " at 0x" in repr(value) or repr(value).startswith("<") else repr(value)


if __name__ == "__main__":
    RECORDED.write_text(surface())
