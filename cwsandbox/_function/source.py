"""The source text of a function or class, cut out of its file so that it can be compiled on its own."""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import linecache
import sys
from functools import lru_cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

__all__ = ["Definition", "class_definition", "function_definition", "imported_names", "methods", "remember"]

_ANNOTATIONS = __future__.annotations.compiler_flag
_SHARED_FILENAMES = frozenset({"<stdin>", "<string>", "<console>"})
"""Many texts are compiled under these names, so a line number says nothing."""
_GLOBAL_OPERATIONS = frozenset({
    "LOAD_NAME", "LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS",
})  # fmt: skip
_RUN_AT_ONCE = frozenset({"<lambda>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})

_remembered: dict[str, str] = {}
"""The text of a file when a function of it was last found in it to be what runs here."""

_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


@frozen
class Definition:
    """A text that defines one function or class when it is executed.

    Line numbers are those of the file. Where the original has free variables, or can have some, the text defines
    `__cws_make__`, which takes them and returns the object and a function that sets them anew.
    """

    file: str
    line: int
    text: str
    name: str
    early: frozenset[str]
    """Globals that are looked up while it is executed: bases, decorators, what a class body uses."""
    late: frozenset[str]
    """Globals that are looked up by the functions in it."""
    imports: frozenset[str]
    """Modules that it may import, as `imported_names` gives them."""


@frozen
class _Source:
    """A parsed file."""

    file: str
    text: bytes
    starts: tuple[int, ...]
    found: tuple[tuple[_Node, str, bool], ...]
    """Every definition, its qualified name, and whether it is a member of a class."""

    def offset(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def end(self, node: ast.expr | _Node) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.offset(node.end_lineno, node.end_col_offset)


def remember(function: object) -> None:
    """Read the source of a function that is just being made: later its file may say something else."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    if code is not None:
        _remembered[code.co_filename] = _present_text(code.co_filename)


def function_definition(function: FunctionType) -> Definition | None:
    """The definition of a plain function, without decorators and without the expressions of its defaults.

    Returns:
        None if its source is not known, or does not say all (methods: their names and `super()` need the class).
    """
    code = function.__code__
    if "__class__" in code.co_freevars:
        return None

    def find(source: _Source) -> _Cut | None:
        for node, _, is_member in source.found:
            if not isinstance(node, ast.ClassDef) and not is_member and _is_code_of(node, code):
                return _cut(source, node, code.co_freevars)
        return None

    return _find(code.co_filename, find, [code])


def class_definition(cls: type, free: Sequence[str] = ()) -> Definition | None:
    """The definition of a class, decorators included; None if its source is not known.

    Args:
        cls: The class.
        free: Names that it uses of the function around it.
    """
    own = [code for method in methods(cls) if (code := method.__code__).co_qualname.startswith(cls.__qualname__ + ".")]
    module_file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    file = own[0].co_filename if own else module_file

    def find(source: _Source) -> _Cut | None:
        named = (node for node, name, _ in source.found if isinstance(node, ast.ClassDef) and name == cls.__qualname__)
        around = [node for node in named if all(_is_within(code, node) for code in own)]
        return _cut(source, around[-1], free) if around else None

    return _find(file, find, own) if file else None


def _is_within(code: CodeType, node: ast.ClassDef) -> bool:
    return node.lineno <= code.co_firstlineno <= (node.end_lineno or 0)


def _find(file: str, find: Callable[[_Source], _Cut | None], codes: list[CodeType]) -> Definition | None:
    """The definition in the file as it is now, unless only the file as it was says what is running here.

    A file may be edited while its program runs, and a module may be loaded again. Where neither fits, as where a tool
    has rewritten the code (pytest does that to assert statements), the file as it is now counts.
    """
    wanted = [_fingerprint(code) for code in codes]
    found: list[_Cut] = []
    present = _present_text(file)
    for text in dict.fromkeys((present, _remembered.get(file, ""))):
        source = _parse(file, text) if text else None
        cut = find(source) if source is not None else None
        if cut is None:
            continue
        if set(wanted) <= set(_fingerprints(cut.code)):
            _remembered[file] = text
            return cut.definition
        found.append(cut)
    return found[0].definition if found else None


def _fingerprint(code: CodeType) -> Hashable:
    constants = [_fingerprint(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return code.co_name, code.co_code, code.co_names, code.co_varnames, tuple(constants)


def _fingerprints(code: CodeType) -> Iterator[Hashable]:
    yield _fingerprint(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _fingerprints(constant)


def methods(cls: type) -> Iterator[FunctionType]:
    """The plain functions in a class's own body, those in properties and static methods included."""
    for value in vars(cls).values():
        inner = (value, getattr(value, "__func__", None), getattr(value, "fget", None), getattr(value, "func", None))
        yield from (item for item in inner if isinstance(item, FunctionType))


def _present_text(file: str) -> str:
    if file in _SHARED_FILENAMES:
        return ""
    linecache.checkcache(file)
    return "".join(linecache.getlines(file))


@lru_cache(maxsize=64)
def _parse(file: str, text: str) -> _Source | None:
    try:
        tree, encoded = ast.parse(text), text.encode()
    except (SyntaxError, ValueError):
        return None
    starts = [0]
    for line in encoded.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    return _Source(file, encoded, tuple(starts), tuple(_definitions(tree, "", is_member=False)))


def _definitions(parent: ast.AST, prefix: str, *, is_member: bool) -> Iterator[tuple[_Node, str, bool]]:
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.ClassDef):
            yield child, prefix + child.name, is_member
            yield from _definitions(child, f"{prefix}{child.name}.", is_member=True)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            name = "<lambda>" if isinstance(child, ast.Lambda) else child.name
            yield child, prefix + name, is_member
            yield from _definitions(child, f"{prefix}{name}.<locals>.", is_member=False)
        else:
            yield from _definitions(child, prefix, is_member=is_member)


def _is_code_of(node: _Node, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        body = (node.body.lineno, node.body.end_lineno, node.body.col_offset, node.body.end_col_offset)
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno and body in code.co_positions()
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return node.name == code.co_name and first == code.co_firstlineno


@frozen
class _Cut:
    """A definition, and what it compiles to."""

    definition: Definition
    code: CodeType


def _cut(source: _Source, node: _Node, free: Sequence[str]) -> _Cut | None:
    """The node as a text of its own; None if it does not compile alone."""
    if isinstance(node, ast.Lambda):
        name, indent = "__cws_function__", " " if free else ""
        first = node.lineno
        body = f"{indent}{name} = ({_without_defaults(source, node, source.offset(first, node.col_offset))})"
    else:
        decorators = node.decorator_list if isinstance(node, ast.ClassDef) else []
        name, first = node.name, min([node.lineno, *(decorator.lineno for decorator in decorators)])
        body = _without_defaults(source, node, source.offset(first, 0))
        indent = body[: len(body) - len(body.lstrip())]
    if free and not indent:
        return None
    text = _wrap(body, name, first, indent, free)
    try:
        code = compile(text, source.file, "exec", _ANNOTATIONS, dont_inherit=True)
    except SyntaxError:
        return None
    early: set[str] = set()
    late: set[str] = set()
    _collect_globals(code, early, late, at_once=True)
    imports = frozenset(imported_names(node))
    return _Cut(Definition(source.file, first, text, name, frozenset(early), frozenset(late - early), imports), code)


def _wrap(body: str, name: str, first: int, indent: str, free: Sequence[str]) -> str:
    """Give an indented body something to be indented under, on the line before it."""
    if not indent:
        return "\n" * (first - 1) + body
    padding = "\n" * max(0, first - 2)
    if not free:
        return f"{padding}if 1:\n{body}\n"
    names = ", ".join(free)
    return (
        f"{padding}def __cws_make__({names}):\n{body}\n"
        f"{indent}def __cws_set__(*values):\n{indent} nonlocal {names}\n{indent} ({names},) = values\n"
        f"{indent}return {name}, __cws_set__\n"
    )


def _without_defaults(source: _Source, node: _Node, start: int) -> str:
    """Its text from `start` on, each default that is no literal replaced: its value is sent, not its expression."""
    text = source.text[start : source.end(node)]
    if isinstance(node, ast.ClassDef):
        return text.decode()
    given = [*node.args.defaults, *(default for default in node.args.kw_defaults if default is not None)]
    for default in sorted(given, key=lambda item: (item.lineno, item.col_offset), reverse=True):
        if not isinstance(default, ast.Constant):
            begin, end = source.offset(default.lineno, default.col_offset) - start, source.end(default) - start
            text = text[:begin] + b"None" + b"\n" * text[begin:end].count(b"\n") + text[end:]
    return text.decode()


def _collect_globals(code: CodeType, early: set[str], late: set[str], *, at_once: bool) -> None:
    names = early if at_once else late
    names.update(item.argval for item in dis.get_instructions(code) if item.opname in _GLOBAL_OPERATIONS)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            is_function = bool(constant.co_flags & 1)  # CO_OPTIMIZED: all but modules and class bodies
            runs_now = at_once and (not is_function or constant.co_name in {*_RUN_AT_ONCE, "__cws_make__"})
            _collect_globals(constant, early, late, at_once=runs_now)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """The modules that a text may import: `a` and `a.b` for `from a import b`, with leading dots where it has them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}{'.' if node.module else ''}{alias.name}" for alias in node.names)
