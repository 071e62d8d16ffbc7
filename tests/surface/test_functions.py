"""Remote functions: calls, map, local, serialization, options, failures (S87 to S98, FIX-U)."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from cwsandbox import (
    AsyncFunctionError,
    FunctionSerializationError,
    NetworkOptions,
    OperationRef,
    RemoteFunction,
    SandboxCommandTimeoutError,
    SandboxDefaults,
    SandboxError,
    SandboxExecutionError,
    Serialization,
    Session,
    results,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.gateway import ServedGateway


class MyClass:
    def __init__(self, number: int) -> None:
        self.number = number

    def transform(self) -> MyClass:
        return MyClass(self.number + 1)


class UnrelatedToAnything(Exception):
    pass


class NeedsTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@pytest.fixture
def session(home_folder: object) -> Iterator[Session]:
    with Session() as session:
        yield session


# ------------------------------------------------------------------------------------------------------- the examples


@pytest.mark.row("S87", "S89", "S90")
def test_s087_s089_s090_the_published_example(session: Session) -> None:
    @session.function()
    def compute(x: int, y: int) -> int:
        return x + y

    ref = compute.remote(2, 3)
    assert isinstance(ref, OperationRef)
    assert ref.result() == 5
    assert compute.local(2, 3) == 5
    refs = compute.map([(1, 2), (3, 4), (5, 6)])
    assert [ref.result() for ref in refs] == [3, 7, 11]
    assert session.sandbox_count == 0


@pytest.mark.row("S87", "S89", "S90")
async def test_s087_s089_s090_the_published_example_async(home_folder: object) -> None:
    async with Session() as session:

        @session.function()
        def compute(x: int, y: int) -> int:
            return x + y

        assert await compute.remote(2, 3) == 5
        assert compute.local(2, 3) == 5
        assert [await ref for ref in compute.map([(1, 2), (3, 4), (5, 6)])] == [3, 7, 11]
        assert session.sandbox_count == 0


@pytest.mark.row("S88", "S89")
async def test_s088_s089_the_published_example_awaited(home_folder: object) -> None:
    async with Session() as session:

        @session.function()
        def compute(x: int, y: int) -> int:
            return x + y

        assert await compute.remote(2, 3) == 5
        assert [await ref for ref in compute.map([(1, 2), (3, 4), (5, 6)])] == [3, 7, 11]


@pytest.mark.row("S95", "FIX-U")
def test_s095_pickle_takes_and_returns_an_instance_of_the_callers_class(session: Session) -> None:
    @session.function(serialization=Serialization.PICKLE)
    def process_complex(data: MyClass) -> MyClass:
        return data.transform()

    result = process_complex.remote(MyClass(1)).result()
    assert type(result) is MyClass
    assert result.number == 2


@pytest.mark.row("S95", "FIX-U")
async def test_s095_pickle_awaited(home_folder: object) -> None:
    async with Session() as session:

        @session.function(serialization=Serialization.PICKLE)
        def process_complex(data: MyClass) -> MyClass:
            return data.transform()

        assert type(await process_complex.remote(MyClass(1))) is MyClass


@pytest.mark.row("S90")
def test_s090_local_makes_no_sandbox(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url}) as session:

        @session.function()
        def compute(x: int, y: int) -> int:
            return x + y

        assert compute.local(2, y=3) == 5
        assert session.sandbox_count == 0
    assert gateway.requests == []


@pytest.mark.row("S91")
def test_s091_remote_returns_before_the_gateway_answers(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    with Session({"base_url": gateway.url}) as session:

        @session.function()
        def one() -> int:
            return 1

        ref = one.remote()
        gateway.accepting.wait_for_arrivals(1)
        with pytest.raises(TimeoutError):
            ref.result(timeout=0.01)
        gateway.accepting.open()
        assert ref.result() == 1


@pytest.mark.row("S91")
async def test_s091_remote_returns_before_the_gateway_answers_async(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    async with Session({"base_url": gateway.url}) as session:

        @session.function()
        def one() -> int:
            return 1

        ref = one.remote()
        await anyio.to_thread.run_sync(gateway.accepting.wait_for_arrivals, 1)
        gateway.accepting.open()
        assert await ref == 1


@pytest.mark.row("S92")
def test_s092_each_call_has_a_sandbox_that_is_stopped_on_success_and_failure(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url}) as session:

        @session.function()
        def divide(x: int, y: int) -> float:
            return x / y

        assert divide.remote(1, 2).result() == 0.5
        assert divide.remote(1, 4).result() == 0.25
        with pytest.raises(SandboxExecutionError):
            divide.remote(1, 0).result()
        assert (gateway.count("create"), gateway.count("stop")) == (3, 3)
        assert session.list().result() == []


@pytest.mark.row("S92")
async def test_s092_a_cancelled_call_stops_its_sandbox(gateway: ServedGateway) -> None:
    async with Session({"base_url": gateway.url}) as session:

        @session.function()
        def slow() -> None:
            import time

            time.sleep(60)

        with anyio.move_on_after(0.5):
            await slow.remote()
        assert session.sandbox_count == 0
        assert await session.list() == []


# ---------------------------------------------------------------------------------------------------------- decoration


@pytest.mark.row("S93")
def test_s093_async_functions_are_refused() -> None:
    with Session() as session:
        with pytest.raises(AsyncFunctionError, match="coroutine"):

            @session.function()
            async def coroutine() -> None: ...

        with pytest.raises(AsyncFunctionError):

            @session.function()
            async def generator() -> Any:
                yield 1

        import functools

        async def inner() -> None: ...

        @functools.wraps(inner)
        def outer() -> None: ...

        with pytest.raises(AsyncFunctionError):
            session.function()(outer)


def test_misuse_is_a_type_or_value_error_at_once() -> None:
    with Session() as session:
        with pytest.raises(TypeError, match=r"write @session\.function\(\), with parentheses"):
            session.function(lambda: 1)  # type: ignore[call-arg, arg-type]
        with pytest.raises(TypeError, match="temp_dir must be a str, not int"):
            session.function(temp_dir=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"map\(\) takes an iterable .*, not NoneType"):
            session.function()(abs).map(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            session.function(network="isolated")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            session.function(serialization="yaml")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="only functions"):
            session.function()(MyClass)
        with pytest.raises(ValueError, match="absolute"):
            session.function(temp_dir="relative")
        with pytest.raises(ValueError, match="standby"):
            session.function(standby=-1)
        session.function(network=NetworkOptions(egress_mode="isolated"))


def test_it_keeps_name_documentation_and_signature() -> None:
    import inspect

    with Session() as session:

        @session.function()
        def compute(x: int, y: int = 2) -> int:
            """Adds."""
            return x + y

    assert isinstance(compute, RemoteFunction)
    assert (compute.__name__, compute.__doc__, compute.__module__) == ("compute", "Adds.", __name__)
    assert compute.__qualname__.endswith("<locals>.compute")
    assert compute.__annotations__ == {"x": "int", "y": "int", "return": "int"}
    assert list(inspect.signature(compute.local).parameters) == ["args", "kwargs"]
    assert list(inspect.signature(compute).parameters) == ["x", "y"]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"compute\.remote\(\) runs in a sandbox, compute\.local\(\) here"):
        compute(1)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------- serialization


@pytest.mark.row("S94")
def test_s094_values_travel_as_json_by_default(session: Session) -> None:
    @session.function()
    def kinds(*values: Any, **named: Any) -> list[Any]:
        return [[type(value).__name__ for value in values], values, named]

    names, values, named = kinds.remote((1, 2), {3}, {4: "four"}, None, 1.5, x=[True]).result()
    assert names == ["list", "list", "dict", "NoneType", "float"]
    assert values == [[1, 2], [3], {"4": "four"}, None, 1.5]
    assert named == {"x": [True]}


@pytest.mark.row("S94")
async def test_s094_values_travel_as_json_awaited(home_folder: object) -> None:
    async with Session() as session:

        @session.function()
        def kind(value: Any) -> list[Any]:
            return [type(value).__name__, value]

        assert await kind.remote((1, {2})) == ["list", [1, [2]]]


def test_rich_values_take_their_json_forms(session: Session) -> None:
    import dataclasses
    import datetime as dt
    import enum
    import uuid
    from pathlib import PurePosixPath

    @dataclasses.dataclass
    class Point:
        x: int
        when: dt.date

    class Colour(enum.Enum):
        RED = "red"

    @session.function()
    def same(*values: Any) -> Any:
        return values

    number = uuid.uuid4()
    sent = (Point(1, dt.date(2026, 1, 2)), Colour.RED, number, PurePosixPath("/x"), b"text", frozenset([1]))
    assert same.remote(*sent).result() == [{"x": 1, "when": "2026-01-02"}, "red", str(number), "/x", "text", [1]]


class Loop:
    def __reduce__(self) -> Any:
        raise RuntimeError("will not be pickled")


class Rude:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("will not be looked at")


class Model:
    def model_dump(self, mode: str) -> Any:
        raise LookupError("will not be dumped")


NEITHER: list[Any] = [(n for n in "ab"), Loop(), Rude()]
UNSENDABLE = [(value, way) for value in NEITHER for way in Serialization]
UNSENDABLE += [(value, Serialization.JSON) for value in (object(), b"\xff", {(1, 2): 3}, Model())]


@pytest.mark.parametrize(
    ("value", "serialization"), UNSENDABLE, ids=[f"{type(value).__name__}-{way}" for value, way in UNSENDABLE]
)
def test_what_cannot_be_sent_is_a_serialization_error_from_the_ref(
    gateway: ServedGateway, value: Any, serialization: Serialization
) -> None:
    with Session({"base_url": gateway.url}) as session:
        same = session.function(serialization=serialization)(lambda value: value)
        ref = same.remote(value)
        with pytest.raises(FunctionSerializationError, match="arguments"):
            ref.result()
        with pytest.raises(FunctionSerializationError, match="'value', used by"):
            session.function(serialization=serialization)(lambda: value).remote().result()
        [ref, good] = same.map([(value,), (1,)])
        with pytest.raises(FunctionSerializationError):
            ref.result()
        assert good.result() == 1
    assert gateway.count("create") == 1


def test_pickle_does_not_carry_local_objects(session: Session) -> None:
    class Local:
        pass

    @session.function(serialization=Serialization.PICKLE)
    def same(value: Any) -> Any:
        return value

    for value in (Local(), lambda: 1):
        with pytest.raises(FunctionSerializationError, match="pickled"):
            same.remote(value).result()


@pytest.mark.parametrize("value", [{1}, object(), b"x"], ids=lambda v: type(v).__name__)
def test_a_result_without_json_form_is_a_remote_type_error(session: Session, value: Any) -> None:
    kind = type(value).__name__

    @session.function()
    def make() -> Any:
        return {"set": {1}, "object": object(), "bytes": b"x"}[kind]

    with pytest.raises(SandboxExecutionError, match="JSON") as caught:
        make.remote().result()
    assert caught.value.exception_type == "TypeError"
    assert str(caught.value).startswith(
        f"the result of {make.__qualname__} cannot be sent as JSON: TypeError: Object of"
    )


def test_arguments_that_do_not_load_there_are_not_said_to_be_the_function_s_fault(session: Session) -> None:
    @session.function(serialization=Serialization.PICKLE)
    def takes(error: Exception) -> None: ...

    with pytest.raises(SandboxExecutionError, match="takes and its arguments cannot be made in the sandbox") as caught:
        takes.remote(NeedsTwo(1, 2)).result()
    assert caught.value.exception_type == "TypeError"


def test_keywords_may_have_any_name(session: Session) -> None:
    @session.function()
    def named(self: int, args: int, session: int) -> list[int]:
        return [self, args, session]

    assert named.remote(self=1, args=2, session=3).result() == [1, 2, 3]
    assert named.local(self=1, args=2, session=3) == [1, 2, 3]


def test_pickle_keeps_types_and_numbers_of_any_size(session: Session) -> None:
    @session.function(serialization=Serialization.PICKLE)
    def same(*values: Any) -> Any:
        return values

    sent = ((1, 2), {3}, b"\xff", 10**5000, float("inf"))
    assert same.remote(*sent).result() == sent


def test_large_values_pass_both_ways(session: Session) -> None:
    text = "é" * 3_000_000

    @session.function()
    def double(value: str) -> str:
        return value + value

    assert double.remote(text).result() == text + text


def test_arguments_and_captures_are_those_of_the_moment_of_the_call(gateway: ServedGateway) -> None:
    captured, argument = [1], [1]
    gateway.accepting.close()
    with Session({"base_url": gateway.url}) as session:

        @session.function()
        def both(value: list[int]) -> list[Any]:
            return [captured, value]

        ref = both.remote(argument)
        captured.append(2)
        argument.append(2)
        gateway.accepting.open()
        assert ref.result() == [[1], [1]]


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.row("S96")
@pytest.mark.parametrize("folder", ["/srv/not/yet/there", '/tmp/quote\'s and "more" \\ $HOME {x}', "/tmp"])
def test_s096_temp_dir_is_made_if_missing(session: Session, folder: str) -> None:
    @session.function(temp_dir=folder)
    def result_is_not_there_yet() -> bool:
        import os

        return os.path.isdir(folder)

    assert isinstance(result_is_not_there_yet.remote().result(), bool)


@pytest.mark.row("S96")
async def test_s096_temp_dir_of_the_session(home_folder: object) -> None:
    async with Session(SandboxDefaults(temp_dir="/srv/of/the/session")) as session:

        @session.function()
        def one() -> int:
            return 1

        assert await one.remote() == 1


@pytest.mark.row("S97", "S98")
def test_s097_s098_image_and_annotations_are_sent(gateway: ServedGateway) -> None:
    image = f"python:{sys.version_info[0]}.{sys.version_info[1]}"
    defaults = SandboxDefaults(
        base_url=gateway.url,
        tags=("of the session",),
        annotations={"a": "session", "b": "session"},
    )
    gateway.making.close()
    with Session(defaults) as session:

        @session.function(container_image=image, annotations={"b": "function"})
        def one() -> int:
            return 1

        ref = one.remote()
        gateway.making.wait_for_arrivals(1)
        [sandbox] = session.list().result()
        assert sandbox._life.record is not None
        spec = sandbox._life.record.spec
        gateway.making.open()
        assert ref.result() == 1
    assert spec is not None
    [container] = spec.containers
    assert container.image == image
    assert spec.annotations == {"a": "session", "b": "function"}
    assert list(spec.tags) == ["of the session"]


@pytest.mark.row("S97")
async def test_s097_container_image_awaited(home_folder: object) -> None:
    async with Session() as session:

        @session.function(container_image="no-such-registry.invalid/no-such-image:1")
        def one() -> int:
            return 1

        with pytest.raises(SandboxError, match="no-such-image"):
            await one.remote()


@pytest.mark.row("S98")
def test_s098_environment_is_read_at_each_call(home_folder: object) -> None:
    environment = {"B": "function"}
    with Session(SandboxDefaults(environment_variables={"A": "session", "B": "session"})) as session:

        @session.function(environment_variables=environment)
        def read() -> list[str]:
            import os

            return [os.environ["A"], os.environ["B"]]

        assert read.remote().result() == ["session", "function"]
        environment["B"] = "changed"
        assert read.remote().result() == ["session", "changed"]


@pytest.mark.row("S98")
async def test_s098_environment_awaited(home_folder: object) -> None:
    async with Session(SandboxDefaults(environment_variables={"A": "session", "B": "session"})) as session:

        @session.function(environment_variables={"B": "function"})
        def read() -> list[str]:
            import os

            return [os.environ["A"], os.environ["B"]]

        assert await read.remote() == ["session", "function"]


# ------------------------------------------------------------------------------------------------------------- failures


def test_a_remote_exception_arrives_with_type_message_traceback_and_output(session: Session) -> None:
    @session.function()
    def fails() -> None:
        print("before")
        raise UnrelatedToAnything("first line\nsecond line")

    with pytest.raises(SandboxExecutionError, match="fails raised UnrelatedToAnything: first line") as caught:
        fails.remote().result()
    error = caught.value
    assert error.exception_type == "UnrelatedToAnything"
    assert error.exception_message == "first line\nsecond line"
    assert error.exec_result is not None
    assert (error.exec_result.stdout, error.exec_result.returncode) == ("before\n", 1)
    assert "Traceback" in error.exec_result.stderr
    [note] = error.__notes__
    assert f'File "{__file__}", line' in note
    assert 'raise UnrelatedToAnything("first line' in note
    assert "<string>" not in note


async def test_a_remote_exception_awaited(home_folder: object) -> None:
    async with Session() as session:

        @session.function()
        def fails() -> None:
            raise ValueError

        with pytest.raises(SandboxExecutionError) as caught:
            await fails.remote()
        assert (caught.value.exception_type, caught.value.exception_message) == ("ValueError", "")


def test_exceptions_of_libraries_keep_their_module(session: Session) -> None:
    @session.function()
    def parse() -> Any:
        return json.loads("{")

    with pytest.raises(SandboxExecutionError) as caught:
        parse.remote().result()
    assert caught.value.exception_type == "json.decoder.JSONDecodeError"


def test_wrong_arguments_are_a_remote_type_error(session: Session) -> None:
    @session.function()
    def one(x: int) -> int:
        return x

    with pytest.raises(SandboxExecutionError) as caught:
        one.remote(1, 2).result()  # type: ignore[call-arg]
    assert caught.value.exception_type == "TypeError"


@pytest.mark.parametrize("status", [0, 3, "text"])
def test_sys_exit_is_an_execution_error(session: Session, status: int | str) -> None:
    @session.function()
    def leave() -> None:
        import sys

        sys.exit(status)

    with pytest.raises(SandboxExecutionError) as caught:
        leave.remote().result()
    assert (caught.value.exception_type, caught.value.exception_message) == ("SystemExit", str(status))


def test_an_interpreter_that_just_ends_is_an_execution_error(session: Session) -> None:
    @session.function()
    def vanish() -> None:
        import os

        os.write(2, b"last words\n")
        os._exit(7)

    with pytest.raises(SandboxExecutionError, match=r"exit code 7.*last words") as caught:
        vanish.remote().result()
    assert caught.value.exception_type is None


def test_prints_do_not_disturb_the_result(session: Session) -> None:
    @session.function()
    def noisy() -> str:
        import os
        import sys

        print('{"ok": true}\n"forged"', flush=True)
        sys.stdout.close()
        os.close(2)
        return "result"

    assert noisy.remote().result() == "result"


def test_a_function_that_closed_its_streams_still_reports(session: Session) -> None:
    @session.function()
    def fails() -> None:
        import sys

        sys.stdout.close()
        sys.stderr.close()
        raise LookupError("seen all the same")

    with pytest.raises(SandboxExecutionError, match="seen all the same") as caught:
        fails.remote().result()
    assert caught.value.exception_type == "LookupError"


def test_a_call_that_takes_too_long_is_killed(session: Session) -> None:
    @session.function(request_timeout_seconds=2)
    def slow() -> None:
        import time

        time.sleep(60)

    with pytest.raises(SandboxCommandTimeoutError) as caught:
        slow.remote().result()
    limits = "request_timeout_seconds and max_timeout_seconds set the limit"
    assert str(caught.value) == f"the remote function {slow.__qualname__} was killed after 2 s; {limits}"
    assert session.sandbox_count == 0


def test_calls_are_counted_once_they_could_be_sent(home_folder: object) -> None:
    with Session() as session:
        half = session.function()(lambda value: value / 2)
        assert half.remote(1).result() == 0.5
        for bad in (object(), "text"):
            with pytest.raises((FunctionSerializationError, SandboxExecutionError)):
                half.remote(bad).result()
        values = session.get_metrics()
    assert values["cwsandbox/sandboxes_created"] == 2
    assert values["cwsandbox/executions"] == 2
    assert (values["cwsandbox/exec_completed_ok"], values["cwsandbox/exec_completed_nonzero"]) == (1, 1)
    assert values["cwsandbox/startup_count"] == 2


def test_a_closed_session_refuses_calls(home_folder: object) -> None:
    with Session() as session:

        @session.function(standby=1)
        def one() -> int:
            return 1

    refs: list[OperationRef[Any]] = [one.remote(), *one.map([()]), one.prepare()]
    for ref in refs:
        with pytest.raises(SandboxError, match="closed"):
            ref.result()


async def test_a_left_session_refuses_calls(home_folder: object) -> None:
    async with Session() as session:

        @session.function()
        def one() -> int:
            return 1

    with pytest.raises(SandboxError):
        await one.remote()


# ------------------------------------------------------------------------------------------------------------------ map


@pytest.mark.row("S89")
def test_s089_map_takes_generators_and_keeps_the_order(session: Session) -> None:
    @session.function()
    def later(delay: float, value: Any) -> Any:
        import time

        time.sleep(delay)
        return value

    refs = later.map((delay, n) for n, delay in enumerate([0.4, 0.2, 0.0]))
    assert isinstance(refs, list)
    assert results(refs) == [0, 1, 2]


def test_a_str_item_is_unpacked_into_its_characters(session: Session) -> None:
    @session.function()
    def join(a: str, b: str) -> str:
        return a + b

    assert results(join.map(["ab", ["c", "d"]])) == ["ab", "cd"]


def test_map_reads_all_items_before_it_calls_anything(gateway: ServedGateway) -> None:
    def items() -> Any:
        yield (1,)
        raise KeyError("while reading")

    def endless() -> Any:
        while True:
            yield ()

    with Session({"base_url": gateway.url}) as session:
        same = session.function()(lambda value: value)
        with pytest.raises(KeyError, match="while reading"):
            same.map(items())
        with pytest.raises(TypeError, match="unpack"):
            same.map([(1,), 2])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="endless"):
            same.map(endless())
        for bad, error in ((0, ValueError), (True, TypeError), (1.5, TypeError)):
            with pytest.raises(error, match="max_concurrency"):
                same.map([], max_concurrency=bad)  # type: ignore[arg-type]
        assert same.map([]) == []
    assert gateway.count("create") == 0


async def test_map_runs_no_more_than_it_may_at_a_time(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    async with Session({"base_url": gateway.url}) as session:
        same = session.function()(lambda value: value)
        refs = same.map([(n,) for n in range(5)], max_concurrency=2)
        await anyio.to_thread.run_sync(gateway.accepting.wait_for_arrivals, 2)
        assert session.sandbox_count == 2
        gateway.accepting.open()
        assert [await ref for ref in refs] == [0, 1, 2, 3, 4]
    assert gateway.count("create") == 5


def test_leaving_the_session_ends_a_map(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url}) as session:

        @session.function()
        def slow() -> None:
            import time

            time.sleep(60)

        gateway.making.close()
        refs = slow.map([()] * 4, max_concurrency=1)
        gateway.making.wait_for_arrivals(1)
        gateway.making.open()
    for ref in refs:
        with pytest.raises(SandboxError):
            ref.result(timeout=20)
