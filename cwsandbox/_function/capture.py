"""What a function needs, found at the moment of the call: a graph of functions, classes, modules and values."""

from __future__ import annotations

import builtins
import functools
import logging
import re
import sys
import types
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from cwsandbox._function.modules import ShippedModules, resolved
from cwsandbox._function.origin import importable_name, is_installed, lookup
from cwsandbox._function.source import class_definition, function_definition, methods
from cwsandbox._function.values import pickle_code, pickle_value, to_json
from cwsandbox._text import short_repr
from cwsandbox.exceptions import FunctionSerializationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cwsandbox._function.source import Definition

__all__ = ["Capture"]

Ref = dict[str, Any]
"""`{"json": text}`, `{"blob": number}` or `{"node": number}`."""

_SET_BY_MODULES = frozenset({"__name__", "__builtins__", "__loader__", "__spec__", "__annotations__", "__package__"})
_TYPING_MODULES = frozenset({"typing", "types"})
_PICKLED_ALWAYS = (logging.Logger, re.Pattern)
"""What modules commonly hold and JSON has no form for; their pickles are a few words."""


class Capture:
    """Collects what functions refer to, transitively.

    Installed functions, classes and modules are sent by name; the caller's own as source text, or by cloudpickle where
    there is none; everything else as a value.

    Args:
        use_pickle: Values as pickles; else as JSON.
    """

    def __init__(self, *, use_pickle: bool) -> None:
        self.use_pickle = use_pickle
        self.nodes: list[dict[str, Any]] = []
        self.cells: list[Ref | None] = []
        self.blobs: list[bytes] = []
        self.modules = ShippedModules()
        self.has_bytecode = False
        self._spaces: dict[int, tuple[str, dict[str, Any]]] = {}
        self._cells: dict[int, int] = {}
        self._failed: dict[int, FunctionSerializationError] = {}
        self._numbers: dict[int, int] = {}
        self._objects: list[Any] = []  # of the nodes
        self._alive: list[Any] = []  # ids stay unique only as long as their objects live

    @property
    def spaces(self) -> dict[str, dict[str, Any]]:
        """The globals to make, by label."""
        return dict(self._spaces.values())

    def ref(self, value: Any, what: str) -> Ref:
        """A reference to whatever it is.

        Raises:
            FunctionSerializationError: It cannot be sent; `what` says what it is.
        """
        if (failed := self._failed.get(id(value))) is not None:
            raise failed
        number = self._numbers.get(id(value))
        if number is None:
            try:
                number = self._checked_node(value, what)
            except FunctionSerializationError as error:
                self._failed[id(value)] = error  # half of it is there: it must not be found
                raise
        return self._value(value, what) if number is None else {"node": number}

    def name(self, value: Any) -> None:
        """A pickle names this class or function: see that it is there."""
        from cwsandbox.function import RemoteFunction

        if not isinstance(value, type | FunctionType | RemoteFunction) or is_installed(value.__module__):
            return
        if lookup(value.__module__, value.__qualname__) is not value:
            return
        if isinstance(value, FunctionType) and "." in value.__qualname__:  # a method: its class has it
            value = lookup(value.__module__, value.__qualname__.rpartition(".")[0])
        self.ref(value, value.__qualname__)

    def finish(self) -> None:
        """Members of modules that are sent whole are imported from there."""
        for _, space in self._spaces.values():
            if space["module"] in self.modules:
                space.update(installed=True, names={})
        for number, node in enumerate(self.nodes):
            if node["kind"] == "source" and node["module"] in self.modules:
                self._take_from_module(number, node)

    def _take_from_module(self, number: int, node: dict[str, Any]) -> None:
        from cwsandbox.function import RemoteFunction

        found, value = lookup(node["module"], node["qualname"]), self._objects[number]
        is_remote = isinstance(found, RemoteFunction) and found._function is value
        if found is value or is_remote:
            name = {"module": node["module"], "name": node["qualname"]}
            self.nodes[number] = {"kind": "attribute", **name, "remote": is_remote}

    # Kinds of objects.

    def _checked_node(self, value: Any, what: str) -> int | None:
        try:
            return self._node(value, what)
        except FunctionSerializationError:
            raise
        except Exception as error:  # whatever a user's __getattribute__ raises
            raise FunctionSerializationError(f"{what} cannot be looked at: {short_repr(str(error))}") from error

    def _node(self, value: Any, what: str) -> int | None:
        from cwsandbox.function import RemoteFunction

        match value:
            case RemoteFunction():
                return self._remote(value)
            case ModuleType():
                return self._module(value, what)
            case functools.partial():
                return self._partial(value, what)
            case functools._lru_cache_wrapper():
                return self._cached(value, what)
            case type() | FunctionType() | BuiltinFunctionType() | MethodType():
                return self._code(value, what)
        if type(value).__module__ in _TYPING_MODULES and not isinstance(value, types.SimpleNamespace):
            return self._bytecode(self._begin(value), value, what)
        if callable(value) and (name := importable_name(value)) is not None:
            return self._add(value, {"kind": "attribute", "module": name[0], "name": name[1]})
        return None

    def _code(self, value: Any, what: str) -> int | None:
        if (name := importable_name(value)) is not None:
            return self._add(value, {"kind": "attribute", "module": name[0], "name": name[1]})
        if isinstance(value, type):
            return self._class(value)
        return self._function(value) if isinstance(value, FunctionType) else None

    def _remote(self, remote: Any) -> int:
        """A decorated function is in the sandbox what it was before it was decorated."""
        ref = self.ref(remote._function, remote.__qualname__)
        if "node" not in ref:
            raise FunctionSerializationError(
                f"{remote.__qualname__} is no function and cannot be called by another one"
            )
        number: int = ref["node"]
        self._numbers[id(remote)] = number
        self._alive.append(remote)
        if self.nodes[number]["kind"] in {"source", "pickled"}:
            self.nodes[number]["remote"] = True
        return number

    def _module(self, module: ModuleType, what: str) -> int:
        if module.__name__ == "__main__":
            raise FunctionSerializationError(f"{what} is the main module itself, which cannot be sent")
        if not is_installed(module.__name__):
            self.modules.add(module, what)
        return self._add(module, {"kind": "module", "module": module.__name__})

    def _partial(self, value: functools.partial[Any], what: str) -> int:
        number = self._begin(value)
        self.nodes[number] = {
            "kind": "partial",
            "function": self.ref(value.func, f"the function of {what}"),
            "args": [self.ref(item, f"an argument of {what}") for item in value.args],
            "keywords": {name: self.ref(item, f"{name!r} of {what}") for name, item in value.keywords.items()},
        }
        return number

    def _cached(self, value: Any, what: str) -> int:
        number = self._begin(value)
        function = self.ref(value.__wrapped__, f"the function of {what}")
        self.nodes[number] = {"kind": "cached", "function": function, **value.cache_parameters()}
        return number

    def _function(self, function: FunctionType) -> int:
        number = self._begin(function)
        definition = function_definition(function)
        what = f"the function {function.__qualname__}"
        if definition is None:
            return self._bytecode(number, function, what)
        node = self._source_node(number, definition, function.__globals__, function.__qualname__, what)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        node["free"] = {name: self._cell(cell, f"{name!r}, used by {what},") for name, cell in cells}
        node["function_name"] = function.__name__
        if function.__defaults__ is not None:
            node["defaults"] = [self.ref(item, f"a default of {what}") for item in function.__defaults__]
        keywords = (function.__kwdefaults__ or {}).items()
        node["keyword_defaults"] = {name: self.ref(item, f"the default of {name!r}") for name, item in keywords}
        return number

    def _class(self, cls: type) -> int:
        what = f"the class {cls.__qualname__}"
        outer, _, name = cls.__qualname__.rpartition(".")
        if outer and isinstance(holder := lookup(cls.__module__, outer), type) and vars(holder).get(name) is cls:
            named = {"module": cls.__module__, "qualname": cls.__qualname__}
            return self._add(cls, {"kind": "member", "outer": self.ref(holder, what), "name": name, **named})
        number = self._begin(cls)
        space = getattr(sys.modules.get(cls.__module__), "__dict__", {})
        around = _names_around(cls) if "<locals>" in cls.__qualname__ else {}
        free: list[str] = []
        definition = class_definition(cls)
        if definition is not None:
            names = definition.early | definition.late
            free = [name for name in around if name in names and name not in space and name not in vars(builtins)]
            definition = class_definition(cls, free)
        if definition is None:
            return self._bytecode(number, cls, what)
        node = self._source_node(number, definition, space, cls.__qualname__, what)
        node["free"] = {name: self._cell(around[name], f"{name!r}, used by {what},") for name in free}
        node["is_class"] = True
        return number

    def _source_node(
        self, number: int, definition: Definition, space: dict[str, Any], qualname: str, what: str
    ) -> dict[str, Any]:
        label = self._space(space)
        node = self.nodes[number] = {
            "kind": "source",
            "space": label,
            "module": self.spaces[label]["module"],
            "qualname": qualname,
            "file": definition.file,
            "line": definition.line,
            "text": definition.text,
            "name": definition.name,
            "early": sorted(definition.early),
            "late": sorted(definition.late),
            "is_class": False,
            "remote": False,
            "free": {},
            "defaults": None,
            "keyword_defaults": {},
        }
        self._capture_globals(label, space, definition.early | definition.late, what)
        for name in sorted(set(resolved(definition.imports, self.spaces[label]["package"]))):
            if name in sys.modules and not is_installed(name):
                self.modules.add(sys.modules[name], f"{name}, imported by {what},")
        return node

    def _bytecode(self, number: int, value: Any, what: str) -> int:
        self.has_bytecode |= isinstance(value, type | FunctionType)  # type variables and the like are of any version
        self.modules.add_cloudpickle()
        names = {getattr(value, "__module__", None), *(space["module"] for space in self.spaces.values())}
        own = [sys.modules[name] for name in names if name in sys.modules and not is_installed(name)]
        self.blobs.append(pickle_code(value, own, what, self._sent_by_name))
        self.nodes[number] = {"kind": "pickled", "blob": len(self.blobs) - 1}
        if isinstance(value, type | FunctionType):
            self.nodes[number].update(module=value.__module__, qualname=value.__qualname__)
        return number

    def _sent_by_name(self, value: Any) -> bool:
        """Whether a pickle may name one of the caller's functions or classes: it has source, and is sent beside it."""
        if is_installed(value.__module__):
            return False
        is_method = isinstance(value, FunctionType) and "." in value.__qualname__
        if lookup(value.__module__, value.__qualname__) is value and not is_method:
            has_source = class_definition(value) if isinstance(value, type) else function_definition(value)
            if has_source is not None:
                self.ref(value, value.__qualname__)
                return True
        self.has_bytecode = True
        return False

    # Globals and values.

    def _space(self, space: dict[str, Any]) -> str:
        known = self._spaces.get(id(space))
        if known is None:
            module = space.get("__name__") or "__main__"
            taken = {label for label, _ in self._spaces.values()}
            label = module if module not in taken else f"{module}#{len(taken)}"
            known = (
                label,
                {
                    "module": module,
                    "package": _package(space),
                    "installed": is_installed(module),
                    "names": {},
                },
            )
            self._spaces[id(space)] = known
            self._alive.append(space)
        return known[0]

    def _capture_globals(self, label: str, space: dict[str, Any], names: Iterable[str], what: str) -> None:
        target = self.spaces[label]
        if target["installed"]:
            return
        for name in sorted(names):
            if name in space and name not in target["names"] and name not in _SET_BY_MODULES:
                target["names"][name] = None  # being captured: what leads back here need not do it again
                target["names"][name] = self.ref(space[name], f"the global {name!r}, used by {what},")

    def _cell(self, cell: CellType, what: str) -> int:
        """The number of a cell: functions that share one go on to share it."""
        number = self._cells.get(id(cell))
        if number is None:
            number = self._cells[id(cell)] = len(self.cells)
            self.cells.append(None)
            self._alive.append(cell)
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                return number
            self.cells[number] = self.ref(value, what)
        return number

    def _value(self, value: Any, what: str) -> Ref:
        if not self.use_pickle and not isinstance(value, _PICKLED_ALWAYS):
            return {"json": to_json(value, what)}
        self.blobs.append(pickle_value(value, what, self.name))
        return {"blob": len(self.blobs) - 1}

    def _begin(self, value: Any) -> int:
        """Reserve the number of a node before it is complete: it may refer to itself."""
        return self._add(value, {"kind": "unfinished"})

    def _add(self, value: Any, node: dict[str, Any]) -> int:
        self.nodes.append(node)
        self._objects.append(value)
        self._numbers[id(value)] = len(self.nodes) - 1
        return len(self.nodes) - 1


def _package(space: dict[str, Any]) -> str | None:
    """What relative imports are relative to."""
    package, spec = space.get("__package__"), space.get("__spec__")
    package = getattr(spec, "parent", None) if package is None else package
    return package if isinstance(package, str) else None


def _names_around(cls: type) -> dict[str, CellType]:
    """What a class may use of the function it was made in: the closures of its methods, and its bases."""
    found = {base.__name__: types.CellType(base) for base in cls.__bases__}
    for method in methods(cls):
        cells = zip(method.__code__.co_freevars, method.__closure__ or (), strict=True)
        found.update((name, cell) for name, cell in cells if name != "__class__")
    return found
