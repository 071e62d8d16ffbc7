"""What a remote function may refer to: helpers, classes, modules, closures; with source and without."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import functools
import importlib
import json as js
import logging
import math
import os.path as osp
import pickle
import re
import subprocess
import sys
from random import randint
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import pytest

from cwsandbox import FunctionSerializationError, SandboxExecutionError, Serialization, Session
from tests.support.clients import run_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from only_for_the_type_checker import Nothing  # type: ignore[import-not-found]

logger = logging.getLogger("a logger of this module")
WORD = re.compile(r"[a-z]+")
FACTOR = 3
TABLE = {"a": [1, 2]}
T = TypeVar("T")


@pytest.fixture(scope="module")
def session(home_folder: object) -> Iterator[Session]:
    with Session() as session:
        yield session


def triple(n: int) -> int:
    return n * FACTOR


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


@functools.cache
def cached(n: int) -> int:
    return triple(n)


@contextlib.contextmanager
def doubled(n: int) -> Iterator[int]:
    yield n * 2


def shouting(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def shout(*args: Any) -> str:
        return function(*args).upper()

    return shout


@shouting
def greet(name: str) -> str:
    return f"hello {name}"


class Base:
    scale = FACTOR

    def scaled(self, n: int) -> int:
        return n * self.scale


class Derived(Base):
    def scaled(self, n: int) -> int:
        return super().scaled(n) + self.__private()

    def __private(self) -> int:
        return Partner().one()

    class Inner:
        value = "inner"


class Partner:
    def one(self) -> int:
        return 1 if issubclass(Derived, Base) else 0


@dataclasses.dataclass
class Point(Generic[T]):
    x: int
    tags: list[str] = dataclasses.field(default_factory=list)
    missing: Nothing = None

    def moved(self) -> Point[T]:
        return dataclasses.replace(self, x=triple(self.x))


class Colour(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    left: int
    right: int


def test_globals_helpers_recursion_and_module_aliases(session: Session) -> None:
    @session.function()
    def uses() -> list[Any]:
        with doubled(4) as eight:
            return [triple(2), even(10), cached(5), eight, greet("ada"), js.dumps(TABLE), math.floor(2.5), randint(7, 7), osp.join("a", "b")]  # fmt: skip

    assert uses.remote().result() == [6, True, 15, 8, "HELLO ADA", '{"a": [1, 2]}', 2, 7, "a/b"]


def test_loggers_and_patterns_of_a_module(session: Session) -> None:
    @session.function()
    def uses() -> list[Any]:
        return [logger.name, WORD.findall("a-b")]

    assert uses.remote().result() == ["a logger of this module", ["a", "b"]]


def test_classes_of_every_kind(session: Session) -> None:
    @session.function()
    def uses(arguments: Any) -> list[Any]:
        assert isinstance(Point(1), Point)
        point: Point[int] = Point(arguments).moved()
        return [Derived().scaled(2), repr(point), point.tags, Colour.RED.value, Pair(1, 2).right, Derived.Inner.value]

    assert uses.remote(2).result() == [7, "Point(x=6, tags=[], missing=None)", [], "red", 2, "inner"]


def test_a_remote_function_may_call_itself_and_others(session: Session) -> None:
    @session.function()
    def double(n: int) -> int:
        return 2 * n

    @session.function()
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial.local(n - 1)

    @session.function()
    def both(n: int) -> int:
        return factorial.local(n) + double.local(n)

    assert factorial.remote(5).result() == 120
    assert both.remote(3).result() == 12


@Session().function()
def twice_as_much(n: int) -> int:
    return 2 * n


BY_NAME = {"double": twice_as_much}


def test_a_remote_function_is_pickled_by_its_name(session: Session) -> None:
    @session.function(serialization=Serialization.PICKLE)
    def uses(given: Any, n: int) -> list[int]:
        return [given.local(n), BY_NAME["double"].local(n + 1)]

    assert uses.remote(twice_as_much, 1).result() == [2, 4]
    assert pickle.loads(pickle.dumps(twice_as_much)) is twice_as_much is copy.deepcopy(twice_as_much)
    assert pickle.loads(pickle.dumps(twice_as_much.local))(1) == 2


def test_closures_are_rebuilt_with_their_cells(session: Session) -> None:
    count, names = 0, ["a"]

    class LocalBase(Exception):
        pass

    class Local(LocalBase):
        size = 2

        def times(self) -> int:
            return self.size * len(names)

    def helper(n: int) -> int:
        nonlocal count
        count += n
        return count

    @session.function()
    def uses() -> list[Any]:
        helper(2)
        assert issubclass(Local, LocalBase)
        return [helper(3), count, names, Local().times(), later()]

    def later() -> str:
        return "defined later"

    assert uses.remote().result() == [5, 5, ["a"], 2, "defined later"]
    assert count == 0


def test_defaults_are_values_not_expressions(session: Session) -> None:
    functions = []
    for number in range(2):

        @session.function()
        def with_default(a: int = number, *, b: Any = TABLE["a"], c: str = "c") -> list[Any]:
            return [a, b, c]

        functions.append(with_default)
    assert [function.remote().result() for function in functions] == [[0, [1, 2], "c"], [1, [1, 2], "c"]]


def test_annotations_are_never_evaluated(session: Session) -> None:
    @session.function(serialization=Serialization.PICKLE)
    def annotated(value: Nothing, *rest: Nothing) -> Nothing:
        local: Nothing = value
        return local

    assert annotated.remote(1).result() == 1


@pytest.mark.parametrize("serialization", Serialization)
def test_lambdas_partials_and_decorated_functions(session: Session, serialization: Serialization) -> None:
    remote = session.function(serialization=serialization)
    add = 5
    first, second = remote(lambda x: x + add), remote(lambda x, y=FACTOR: (
        x * y
    ))  # fmt: skip
    assert (first.remote(1).result(), second.remote(2).result()) == (6, 6)
    assert remote(functools.partial(pow, 2)).remote(5).result() == 32
    assert remote(functools.partial(triple)).remote(5).result() == 15
    assert remote(cached).remote(4).result() == 12
    assert remote(greet).remote("grace").result() == "HELLO GRACE"
    assert remote(math.sqrt).remote(4).result() == 2.0


def test_outer_decorators_belong_to_the_caller(session: Session) -> None:
    registry: list[Any] = []

    def register(function: Any) -> Any:
        registry.append(open(__file__))  # noqa: SIM115 - nothing that could be sent
        return function

    @register
    @session.function()
    def one() -> int:
        return 1

    registry.pop().close()
    assert one.remote().result() == 1


@pytest.mark.parametrize("way", Serialization)
def test_pickle_carries_instances_of_every_kind_of_class(session: Session, way: Serialization) -> None:
    if way is Serialization.JSON:

        @session.function()
        def plain(pair: Any) -> Any:
            return pair

        assert plain.remote(Pair(1, 2)).result() == [1, 2]
        return

    @session.function(serialization=Serialization.PICKLE)
    def same(*values: Any) -> Any:
        return [*values, Point(4), Derived.Inner]

    sent = [Point(3, ["t"]), Colour.RED, Pair(1, 2), triple, {"k": (Point(5),)}, Partner.one]
    assert same.remote(*sent).result() == [*sent, Point(4), Derived.Inner]


def test_captured_values_that_cannot_be_sent_are_named(session: Session) -> None:
    lock = __import__("threading").Lock()
    for way in Serialization:

        @session.function(serialization=way)
        def uses() -> Any:
            return lock

        with pytest.raises(FunctionSerializationError, match="'lock', used by the function"):
            uses.remote().result()


# ------------------------------------------------------------------------------------------------- modules of a project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules that no sandbox has."""
    (tmp_path / "ourpackage").mkdir()
    (tmp_path / "ourpackage" / "__init__.py").write_text("NAME = 'package'\n")
    (tmp_path / "ourpackage" / "deep.py").write_text(
        "from . import NAME\nfrom ourhelpers import up\n\ndef f(): return up(NAME)\n"
    )
    (tmp_path / "ourhelpers.py").write_text(
        "import functools\nSTATE = []\n\ndef up(s):\n    STATE.append(s)\n    return s.upper()\n\n"
        "class Thing:\n    def __init__(self, n): self.n = n\n    def __eq__(self, o): return self.n == o.n\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("our"):
            del sys.modules[name]


def test_modules_of_the_project_are_sent(session: Session, project: Path) -> None:
    import ourhelpers  # type: ignore[import-not-found]
    import ourpackage.deep as deep  # type: ignore[import-not-found]

    @session.function()
    def uses() -> list[Any]:
        ourhelpers.up("x")
        return [deep.f(), ourhelpers.STATE]

    assert uses.remote().result() == ["PACKAGE", ["x", "package"]]
    assert ourhelpers.STATE == []


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfdef text(): return '\xc3\xa9'\n",
        b"# -*- coding: latin-1 -*-\ndef text(): return '\xe9'\n",
        b"def text():\r\n\treturn '\xc3\xa9'\r\n",
    ],
    ids=["byte order mark", "latin-1", "CRLF and tabs"],
)
def test_modules_are_decoded_as_python_does(session: Session, project: Path, content: bytes) -> None:
    file = project / "ourtext.py"
    file.write_bytes(content)
    import ourtext  # type: ignore[import-not-found]

    uses = session.function()(lambda: ourtext.text() * 2)
    assert uses.remote().result() == "éé"
    file.write_text("def text(:\n")
    with pytest.raises(FunctionSerializationError, match="its file cannot be read: invalid syntax"):
        uses.remote().result()


def test_modules_of_the_project_may_be_imported_inside(session: Session, project: Path) -> None:
    import ourpackage.deep  # noqa: F401 - a module is sent if it is loaded here

    @session.function()
    def uses() -> list[Any]:
        import ourhelpers
        from ourpackage import deep

        return [ourhelpers.up("x"), deep.f()]

    assert uses.remote().result() == ["X", "PACKAGE"]


def test_a_file_that_was_edited_meanwhile_does_not_change_what_runs(session: Session, project: Path) -> None:
    file = project / "ourjob.py"
    text = "def helper(n):\n    return n + 1\n\ndef job(n):\n    return helper(n) * 2\n"
    file.write_text(text)
    import ourjob  # type: ignore[import-not-found]

    remote = session.function()(ourjob.job)
    file.write_text(text.replace("n + 1", "n + 100").replace("* 2", "* 3"))
    assert remote.remote(1).result() == ourjob.job(1) == 4
    importlib.reload(ourjob)
    assert session.function()(ourjob.job).remote(1).result() == ourjob.job(1) == 303


def test_relative_imports_inside_and_packages_that_do_something(session: Session, project: Path) -> None:
    """The package of the function is there as it is, not as an empty one that hides it."""
    (project / "ourpackage" / "job.py").write_text(
        "from .deep import f\nfrom . import deep\n"
        "def named(): return f()\n"
        "def through(): return deep.f()\n"
        "def inside():\n    from . import NAME\n    from .deep import f\n    return f() + NAME\n"
    )
    import ourpackage.job as job  # type: ignore[import-not-found]

    assert session.function()(job.named).remote().result() == "PACKAGE"
    assert session.function()(job.through).remote().result() == "PACKAGE"
    assert session.function()(job.inside).remote().result() == "PACKAGEpackage"


def test_a_package_run_as_a_program(home_folder: object, project: Path) -> None:
    (project / "ourpackage" / "__main__.py").write_text(
        "from cwsandbox import Session\n"
        "with Session() as session:\n"
        "    @session.function()\n"
        "    def inside():\n        from .deep import f\n        return f()\n"
        "    from . import deep\n"
        "    print(inside.remote().result())\n"
    )
    command = [sys.executable, "-m", "ourpackage"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=project, check=False)
    assert (done.stdout, done.stderr) == ("PACKAGE\n", "")


OURTASKS = """
from cwsandbox import SandboxDefaults, SandboxError, Serialization, Session, results
from cwsandbox.exceptions import *

class OurFunctionError(FunctionError): pass
def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args): return ["wrapped", function(*args)]
    return wrapper

class OurError(SandboxError): pass
def annotated(session: Session | None, kind: Serialization = Serialization.JSON) -> None: ...
session = Session(SandboxDefaults(tags=("ours",)))
BASE = 5

@session.function()
def first(n): return n + BASE

@session.function()
def second(n):
    import ourtasks
    return [first.local(n), ourtasks.first.local(n), ourtasks.third.local(n)]

@session.function()
@wrapped
def third(n): return BASE

@session.function()
def uses_the_sdk():
    import ourtasks
    return ourtasks.results([])
"""


def test_a_module_that_has_a_session_of_its_own_may_be_sent(home_folder: object, project: Path) -> None:
    """Sandboxes have no cwsandbox; what modules do with it while they are imported must work all the same."""
    (project / "ourtasks.py").write_text("import functools\n" + OURTASKS)
    import ourtasks  # type: ignore[import-not-found]

    with ourtasks.session:
        assert ourtasks.second.remote(1).result() == [6, 6, ["wrapped", 5]]
        with pytest.raises(SandboxExecutionError, match=r"cwsandbox\.results\(\) cannot be called here"):
            ourtasks.uses_the_sdk.remote().result()


@pytest.mark.parametrize("alias", [False, True])
def test_names_imported_from_modules_of_the_project(session: Session, project: Path, alias: bool) -> None:
    import ourhelpers
    from ourhelpers import Thing, up

    module = ourhelpers if alias else None

    @session.function(serialization=Serialization.PICKLE)
    def uses(thing: Any) -> list[Any]:
        up("x")
        assert module is None or module.Thing is Thing
        return [thing, Thing(2)]

    if alias:
        assert uses.remote(Thing(1)).result() == [Thing(1), Thing(2)]
    else:

        @session.function(serialization=Serialization.PICKLE)
        def less(thing: Any) -> list[Any]:
            return [thing, Thing(2), up("x")]

        assert less.remote(Thing(1)).result() == [Thing(1), Thing(2), "X"]


# ------------------------------------------------------------------------------------------------------- without source

WITHOUT_SOURCE = """
import dataclasses
from cwsandbox import Session, Serialization
LIMIT = 10
@dataclasses.dataclass
class Point:
    x: int
    def other(self): return Point(helper(self.x))
def helper(n): return n + LIMIT
class Thing:
    def __init__(self, n): self.n = n
with Session() as session:
    @session.function()
    def add(x: int, y: int = 2) -> int:
        return helper(x) + y
    @session.function(serialization=Serialization.PICKLE)
    def things(thing: Thing) -> Thing:
        return Thing(thing.n + 1)
    square = session.function()(lambda x: x * x)
    @session.function(serialization=Serialization.PICKLE)
    def points(point: Point) -> Point:
        return point.other() if point == Point(1) else None
    assert points.remote(Point(1)).result() == Point(11)
    @session.function(serialization=Serialization.PICKLE)
    def made_there() -> list:
        return [Thing(Point(3)), helper]
    thing, function = made_there.remote().result()
    assert (type(thing), thing.n, function) == (Thing, Point(3), helper)
    table = {"add": add}
    @session.function(serialization=Serialization.PICKLE)
    def by_name(given) -> list:
        return [given.local(1), table["add"].local(2)]
    assert by_name.remote(add).result() == [13, 14]
    print(add.remote(1).result(), square.remote(3).result(), things.remote(Thing(1)).result().n)
"""


def test_python_c(home_folder: object) -> None:
    done = run_client(WITHOUT_SOURCE)
    assert (done.stdout, done.stderr) == ("13 9 2\n", "")


IN_A_REPL = """
from cwsandbox import Session
session, LIMIT = Session(), 10
def helper(n): return n + LIMIT

class Thing:
    def __init__(self, n): self.n = helper(n)

@session.function()
def add(x: int) -> int:
    return Thing(x).n

print(add.remote(1).result())
session.close().result()
"""


def test_a_repl(home_folder: object) -> None:
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=IN_A_REPL, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "11\n", done.stderr


def test_a_script(home_folder: object, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WITHOUT_SOURCE)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, timeout=50, cwd=tmp_path, check=False
    )
    assert (done.stdout, done.stderr) == ("13 9 2\n", "")


def test_functions_made_by_exec(session: Session) -> None:
    names: dict[str, Any] = {"session": session}
    exec("BASE = 5\ndef inner(n): return n + BASE\n@session.function()\ndef outer(n): return inner(n) * 2\n", names)
    assert names["outer"].remote(1).result() == 12
    exec("def made_here(n): return triple(n)\n", globals())
    assert session.function()(globals().pop("made_here")).remote(2).result() == 6


def test_another_python_refuses_bytecode_and_takes_source(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from cwsandbox._function import payload

    class Other:
        version_info = (3, 99)

    monkeypatch.setattr(payload, "sys", Other)
    names: dict[str, Any] = {}
    exec("def without_source(n): return n", names)
    with pytest.raises(FunctionSerializationError, match=r"no source .*Python '3\.\d+'"):
        session.function()(names["without_source"]).remote(1).result()
    assert session.function()(triple).remote(1).result() == 3


def test_a_module_that_the_sandbox_lacks_is_a_remote_error(session: Session, project: Path) -> None:
    @session.function()
    def needs() -> None:
        import module_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(SandboxExecutionError) as caught:
        needs.remote().result()
    assert caught.value.exception_type == "ModuleNotFoundError"
