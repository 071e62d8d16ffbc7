"""Runs one remote call inside the sandbox: `python -c <this text>`, the payload on standard input.

Nothing but the standard library, kept to what Python 3.8 understands. Imports cost every call, so what only some calls
need is imported where it is needed. The payload's form is documented in `payload.py`; the result goes into a file, so
that nothing which the function prints can be taken for it.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False  # typing is not worth its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Node = dict[str, Any]
    Ref = dict[str, Any]

DEFERRED_ANNOTATIONS = 0x1000000
"""`__future__.annotations.compiler_flag`: what a function is annotated with need not exist here."""
TEXT_LIMIT = 65536


class NothingToDo(Exception):  # noqa: N818 - no error: standard input ended before a payload came
    """The caller has given this interpreter up before it was used."""


class PythonMismatchError(Exception):
    """Compiled code was sent by another Python version."""


class Rebuilder:
    """Makes the caller's functions, classes and values again.

    Args:
        payload: The parsed head of the payload.
        blobs: Its pickles, by number.
    """

    def __init__(self, payload: Node, blobs: list[memoryview]) -> None:
        self.nodes = payload["nodes"]
        self.spaces = payload["spaces"]
        self.blobs = blobs
        self.globals: dict[str, dict[str, Any]] = {}
        self.objects: dict[int, Any] = {}
        self.begun: set[int] = set()
        self.own_modules: dict[str, ModuleType] = {}
        self.cells: dict[int, Any] = {}
        self.later: list[Callable[[], object]] = []
        self.cell_refs = payload["cells"]
        self.by_name = {
            (node["module"], node["qualname"]): number for number, node in enumerate(self.nodes) if "qualname" in node
        }
        self.check_version(payload["python"])
        self.shipped = payload["modules"]
        if self.shipped:
            sys.meta_path.insert(0, shipped_modules(self.shipped))
        for label in self.spaces:
            self.globals[label] = self.open_space(label)

    def check_version(self, python: list[int] | None) -> None:
        """Refuse compiled code of another version before anything of it is loaded."""
        if python is not None and tuple(python) != sys.version_info[:2]:
            raise PythonMismatchError(f"{sys.version_info[0]}.{sys.version_info[1]}")

    def open_space(self, label: str) -> dict[str, Any]:
        """The globals that functions of one module share."""
        from types import ModuleType

        space = self.spaces[label]
        if space["installed"]:
            return imported(space["module"]).__dict__
        module = self.own_module(space["module"])
        # A label of its own for a name that is taken: the globals of an exec that called itself like another module.
        if label != space["module"]:
            module = ModuleType(space["module"])
        module.__package__ = space["package"]
        KEPT.append(module)
        return module.__dict__

    def own_module(self, name: str) -> ModuleType:
        """A module of the caller's, empty at first; pickles made here name what is in it."""
        from types import ModuleType

        if name not in self.own_modules:
            for count in range(1, name.count(".") + 1):
                parent = ".".join(name.split(".")[:count])
                if parent not in sys.modules and parent not in self.shipped:
                    sys.modules[parent] = ModuleType(parent)
                    sys.modules[parent].__path__ = []
            KEPT.append(sys.modules.get(name))
            self.own_modules[name] = sys.modules[name] = ModuleType(name)
        return self.own_modules[name]

    def value(self, ref: Ref) -> Any:
        """What a reference stands for."""
        if "json" in ref:
            return json.loads(ref["json"])
        if "blob" in ref:
            return self.unpickle(ref["blob"])
        self.ready(ref["node"])
        return self.objects[ref["node"]]

    def unpickle(self, number: int) -> Any:
        """A pickle; what it names of the caller's own modules is made when it is met."""
        import io
        import pickle

        rebuilder = self

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                number = rebuilder.by_name.get((module, name))
                if number is not None:
                    return rebuilder.value({"node": number})
                outer = rebuilder.by_name.get((module, name.rpartition(".")[0]))
                if outer is not None:  # a method
                    return getattr(rebuilder.value({"node": outer}), name.rpartition(".")[2])
                return super().find_class(module, name)

        return Unpickler(io.BytesIO(self.blobs[number])).load()

    def ready(self, number: int) -> None:
        """Make a node, after what it needs while it is made, before what it needs when it is used."""
        if number in self.begun:
            return
        self.begun.add(number)
        node = self.nodes[number]
        for name in node.get("early", ()):
            self.bind(node["space"], name)
        self.objects[number] = getattr(self, "make_" + node["kind"])(node)
        for name in node.get("late", ()):
            self.bind(node["space"], name)

    def in_progress(self, ref: Ref) -> bool:
        """Whether it is being made at this moment: what needs it has to wait."""
        return ref.get("node") in self.begun and ref["node"] not in self.objects

    def bind(self, label: str, name: str) -> None:
        """Give a global its value."""
        ref = self.spaces[label]["names"].get(name)
        if ref is None or (name in self.globals[label] and "node" not in ref):
            return
        if self.in_progress(ref):
            self.later.append(lambda: self.bind(label, name))
        else:
            self.globals[label][name] = self.value(ref)

    def cell(self, number: int) -> Any:
        """A cell of a closure; functions that shared it with each other still do."""
        from types import CellType

        if number not in self.cells:
            self.cells[number] = CellType()
            self.fill(number)
        return self.cells[number]

    def fill(self, number: int) -> None:
        """Give a cell its value; one that had none stays empty."""
        ref = self.cell_refs[number]
        if ref is not None and self.in_progress(ref):
            self.later.append(lambda: self.fill(number))
        elif ref is not None:
            self.cells[number].cell_contents = self.value(ref)

    def make_module(self, node: Node) -> Any:
        """A module that is imported here by name."""
        return imported(node["module"])

    def make_attribute(self, node: Node) -> Any:
        """A function or class that an importable module has."""
        found: Any = imported(node["module"])
        for part in node["name"].split("."):
            found = getattr(found, part)
        return found

    def make_member(self, node: Node) -> Any:
        """A class inside a class."""
        return getattr(self.value(node["outer"]), node["name"])

    def make_pickled(self, node: Node) -> Any:
        """Something without source, by cloudpickle."""
        made, named = self.unpickle(node["blob"])
        for item in named:
            if item.__module__ in self.shipped:  # importing it makes what it has
                continue
            setattr(self.own_module(item.__module__), item.__name__, item)
        if node.get("remote"):
            made.local = made
        return made

    def make_cached(self, node: Node) -> Any:
        """A function under `functools.lru_cache`."""
        import functools

        return functools.lru_cache(maxsize=node["maxsize"], typed=node["typed"])(self.value(node["function"]))

    def make_partial(self, node: Node) -> Any:
        """A `functools.partial`."""
        import functools

        keywords = {name: self.value(ref) for name, ref in node["keywords"].items()}
        return functools.partial(self.value(node["function"]), *map(self.value, node["args"]), **keywords)

    def make_source(self, node: Node) -> Any:
        """A function or class from its source text."""
        names: dict[str, Any] = {}
        code = compile(node["text"], node["file"], "exec", DEFERRED_ANNOTATIONS, dont_inherit=True)
        exec(code, self.globals[node["space"]], names)  # noqa: S102 - to run what the caller wrote is the purpose
        finish = self.finish_class if node["is_class"] else self.finish_function
        return finish(node, names)

    def finish_function(self, node: Node, names: dict[str, Any]) -> Any:
        """The function with the caller's cells, and with values for defaults instead of expressions."""
        from types import FunctionType

        free = node["free"]
        code = (names["__cws_make__"](*free)[0] if free else names[node["name"]]).__code__
        closure = tuple(self.cell(free[name]) for name in code.co_freevars) or None
        function: Any = FunctionType(code, self.globals[node["space"]], node["function_name"], None, closure)
        function.__module__, function.__qualname__ = node["module"], node["qualname"]
        if node["defaults"] is not None:
            function.__defaults__ = tuple(map(self.value, node["defaults"]))
        if node["keyword_defaults"]:
            function.__kwdefaults__ = {name: self.value(ref) for name, ref in node["keyword_defaults"].items()}
        if node["remote"]:
            function.local = function
        return function

    def finish_class(self, node: Node, names: dict[str, Any]) -> Any:
        """The class, under its own name in its module, so that pickles find it."""
        free = node["free"]
        if free:
            made, set_free = names["__cws_make__"](*map(self.contents, free.values()))
            self.later.append(lambda: set_free(*map(self.contents, free.values())))
        else:
            made = names[node["name"]]
        made.__qualname__ = node["qualname"]
        if "." not in node["qualname"]:
            self.globals[node["space"]].setdefault(node["name"], made)
        return made

    def contents(self, number: int) -> Any:
        """What a cell holds; None if nothing yet."""
        try:
            return self.cell(number).cell_contents
        except ValueError:
            return None

    def finish(self) -> None:
        """What had to wait for something that was being made."""
        for action in self.later:
            action()


def imported(name: str) -> ModuleType:
    """A module that can be imported here."""
    __import__(name)
    return sys.modules[name]


KEPT: list[ModuleType | None] = []
"""Modules that were replaced, so that they live on: this very one among them."""


def shipped_modules(modules: dict[str, Node]) -> Any:
    """A finder for the caller's own modules, which came as source text."""
    from importlib.abc import InspectLoader, MetaPathFinder
    from importlib.machinery import ModuleSpec, PathFinder

    class Loader(InspectLoader):
        def get_source(self, fullname: str) -> str:
            return str(modules[fullname]["text"])

        def is_package(self, fullname: str) -> bool:
            return bool(modules[fullname]["package"])

        def exec_module(self, module: ModuleType) -> None:
            module.__file__ = modules[module.__name__]["file"]
            exec(compile(self.get_source(module.__name__), module.__file__, "exec", dont_inherit=True), module.__dict__)  # noqa: S102

    class Finder(MetaPathFinder):
        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            if fullname not in modules:
                return None
            if modules[fullname].get("if_missing") and (own := PathFinder.find_spec(fullname, path)) is not None:
                return own
            return ModuleSpec(fullname, Loader(), is_package=modules[fullname]["package"])

    return Finder()


def read_payload() -> tuple[Node, list[memoryview]]:
    """The head of the payload, parsed, and its blobs."""
    data = sys.stdin.buffer.read()
    end = data.find(b"\n")
    if end < 0:
        raise NothingToDo
    payload = json.loads(data[:end])
    blobs, start = [], end + 1
    for size in payload["blobs"]:
        blobs.append(memoryview(data)[start : start + size])
        start += size
    return payload, blobs


def load(payload: Node, blobs: list[memoryview]) -> tuple[Callable[..., Any], Any, Any]:
    """The function and its arguments."""
    rebuilder = Rebuilder(payload, blobs)
    function = rebuilder.value(payload["function"])
    if "node" in payload["function"] and payload["nodes"][payload["function"]["node"]].get("remote"):
        function = function.local
    args, kwargs = rebuilder.unpickle(-1) if payload["pickle"] else json.loads(bytes(blobs[-1]))
    rebuilder.finish()
    return function, args, kwargs


def dump(result: Any, payload: Node) -> bytes:
    """The encoded result."""
    if not payload["pickle"]:
        return json.dumps(result).encode()
    import pickle

    return pickle.dumps(result, 4)


def describe(error: BaseException, payload: Node) -> Node:
    """The report of an exception; the traceback also goes to standard error."""
    import contextlib
    import traceback

    show_source(payload)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:
        text = type(error).__name__
    try:
        message = str(error)
    except Exception:
        message = ""
    with contextlib.suppress(Exception):  # the function may have closed it
        sys.stderr.write(text)
    name, module = type(error).__name__, type(error).__module__
    own = {space["module"] for space in payload["spaces"].values()} | set(payload["modules"])
    qualified = module not in own and module not in {"builtins", "__main__"}
    return {
        "type": (module + "." + name if qualified else name)[:TEXT_LIMIT],
        "message": message[:TEXT_LIMIT],
        "traceback": text[-TEXT_LIMIT:],
        "mismatch": isinstance(error, PythonMismatchError),
    }


def show_source(payload: Node) -> None:
    """Let tracebacks show the caller's lines, as the caller's files are not here."""
    import linecache

    texts: dict[str, dict[int, str]] = {}
    for node in payload["nodes"]:
        if node["kind"] == "source":
            texts.setdefault(node["file"], {}).update(
                (number, line)
                for number, line in enumerate(node["text"].split("\n"), 1)
                if line and number >= node["line"]
            )
    for module in payload["modules"].values():
        texts[module["file"]] = dict(enumerate(module["text"].split("\n"), 1))
    for file, numbered in texts.items():
        lines = [numbered.get(number, "") + "\n" for number in range(1, max(numbered, default=0) + 1)]
        linecache.cache[file] = (0, None, lines, file)


def write_result(path: str, head: Node, body: bytes) -> None:
    """Put the result where the caller looks for it, whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    private = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(path + ".part", private, 0o600), "wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        file.write(body)
    os.replace(path + ".part", path)


def main() -> int:
    """Read, call, report; the exit status is 1 if the function raised."""
    for name in sys.argv[1:]:
        try:
            __import__(name)
        except Exception:  # noqa: S112 - the call itself will say so
            continue
    try:
        payload, blobs = read_payload()
    except NothingToDo:
        return 0
    stage = "load"
    try:
        function, args, kwargs = load(payload, blobs)
        stage = "call"
        result = function(*args, **kwargs)
        stage = "dump"
        body, status = dump(result, payload), 0
        head: Node = {"ok": True}
    except BaseException as error:
        head, body, status = {"ok": False, "stage": stage, **describe(error, payload)}, b"", 1
    write_result(payload["result"], head, body)
    return status


if __name__ == "__main__":
    sys.exit(main())
