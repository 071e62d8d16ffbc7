"""`RemoteFunction`: a Python function, each call of which runs in a sandbox of its own."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, cast

from cwsandbox._function.call import Call, Slots
from cwsandbox._function.payload import Snapshot
from cwsandbox._function.source import remember
from cwsandbox._function.standby import Standby
from cwsandbox._operate import operate
from cwsandbox._runtime.operation import OperationRef
from cwsandbox.exceptions import AsyncFunctionError
from cwsandbox.options import Serialization

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cwsandbox.session import Session

__all__ = ["RemoteFunction"]

P = ParamSpec("P")
R = TypeVar("R")

_MAX_ITEMS = 10_000
_DEFAULT_CONCURRENCY = 32


class RemoteFunction(Generic[P, R]):
    """A function made by `Session.function`: `remote` runs it in a sandbox, `local` here.

    Each call gets a new sandbox, which is stopped before the result is there. The function, what it refers to and its
    arguments are taken as they are when `remote` is called. It keeps the name, documentation and annotations of the
    function; calling it directly is a TypeError.
    """

    def __init__(
        self,
        session: Session,
        function: Callable[P, R],
        *,
        options: Mapping[str, Any],
        serialization: Serialization,
        temp_dir: str,
        limit: float,
        standby: int,
    ) -> None:
        function = _plain_function(function)
        remember(function)
        functools.update_wrapper(cast("Any", self), function, updated=())
        self._session = session
        self._function = function
        self._options = options
        self._use_pickle = serialization is Serialization.PICKLE
        self._temp_dir = temp_dir
        self._standby = Standby(session, standby, limit)
        self.__name__: str = getattr(function, "__name__", type(function).__name__)
        self.__qualname__: str = getattr(function, "__qualname__", self.__name__)

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> OperationRef[R]:
        """Call it in a sandbox of its own; returns at once.

        Returns:
            A ref to what it returns. Cancelling whoever awaits it kills the function and stops the sandbox.

        Raises:
            SandboxExecutionError: From the ref: the function raised (`exception_type`, `exception_message`, a note with
                the remote traceback, `exec_result` with what it printed), or it left no result.
            FunctionSerializationError: From the ref: the function, what it refers to, or the arguments cannot be sent.
            SandboxCommandTimeoutError: From the ref: it took longer than `request_timeout_seconds`.
            SandboxError: From the ref: the session is closed, or the sandbox failed.
        """
        try:
            snapshot = self._snapshot()
            arguments = snapshot.arguments(args, kwargs)
        except Exception as error:
            return OperationRef.failed(error)
        return self._launch(snapshot, arguments, None)

    def map(
        self, items: Iterable[Iterable[Any]], *, max_concurrency: int = _DEFAULT_CONCURRENCY
    ) -> list[OperationRef[R]]:
        """Call it for each item, at the same time; each item is unpacked as positional arguments.

        The items are read here and now, to their end, before the first call is made; if reading them raises, nothing is
        called.

        Args:
            items: Tuples or other iterables of arguments, from a list, a generator, ...; at most 10,000.
            max_concurrency: How many sandboxes run at a time; the other calls wait for their turn.

        Returns:
            A ref per item, in order; raises as those of `remote`.

        Raises:
            TypeError: `items`, or one of them, is not iterable.
            ValueError: More than 10,000 items, or `max_concurrency` below 1.
        """
        if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int):
            raise TypeError(f"max_concurrency must be an int, not {type(max_concurrency).__name__}")
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be 1 or more, not {max_concurrency}")
        try:
            remaining = iter(items)
        except TypeError:
            kind = type(items).__name__
            raise TypeError(f"map() takes an iterable with the arguments of each call, not {kind}") from None
        try:
            snapshot: Snapshot | Exception = self._snapshot()
        except Exception as error:
            snapshot = error
        encoded: list[bytes | Exception] = []
        for item in remaining:
            if len(encoded) == _MAX_ITEMS:
                raise ValueError(f"map() takes at most {_MAX_ITEMS} items; is the iterator endless? Map it in slices")
            encoded.append(_encode(snapshot, _arguments(item)))
        slots = Slots(max_concurrency)
        return [self._launch(snapshot, arguments, slots) for arguments in encoded]

    def local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it here, in this process, as if it had not been decorated."""
        return self._function(*args, **kwargs)

    def prepare(self) -> OperationRef[None]:
        """Start the function's standby sandboxes now, so that the first call is as fast as later ones.

        Without `standby` there are none, and there is nothing to do.

        Returns:
            A ref that resolves when they run.

        Raises:
            FunctionSerializationError: From the ref: the function, or what it refers to, cannot be sent.
            SandboxError: From the ref: the session is closed, or a sandbox could not be started.
        """
        try:
            imports = self._snapshot().imports()
        except Exception as error:
            return OperationRef.failed(error)
        return operate(
            self._session._operations_scope, self._standby.prepare, self._current_options(), imports, name="prepare"
        )

    if not TYPE_CHECKING:  # for type checkers it cannot be called

        def __call__(self, /, *args: object, **kwargs: object) -> NoReturn:
            """Say which of its methods is to be called."""
            name = self.__name__
            raise TypeError(f"{name} is a remote function: {name}.remote() runs in a sandbox, {name}.local() here")

    def __repr__(self) -> str:
        return f"<RemoteFunction {self.__qualname__}>"

    def __reduce__(self) -> str:
        """By its name, as functions are pickled: worker processes have it where their modules make it."""
        return self.__qualname__

    def _snapshot(self) -> Snapshot:
        self._session._expect_sandboxes()
        return Snapshot(self._function, use_pickle=self._use_pickle)

    def _launch(
        self, snapshot: Snapshot | Exception, arguments: bytes | Exception, slots: Slots | None
    ) -> OperationRef[R]:
        """Start a call; what could not be sent fails its ref."""
        if isinstance(snapshot, Exception):
            return OperationRef.failed(snapshot)
        if isinstance(arguments, Exception):
            return OperationRef.failed(arguments)
        call = Call(
            name=self.__qualname__,
            snapshot=snapshot,
            arguments=arguments,
            folder=self._temp_dir,
            use_pickle=self._use_pickle,
            options=self._current_options(),
            standby=self._standby,
            slots=slots,
        )
        return operate(self._session._operations_scope, call, name=f"remote function {self.__qualname__}")

    def _current_options(self) -> dict[str, Any]:
        """The options as they are now: the caller may change its dicts between calls."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in self._options.items()}


def _plain_function(function: Any) -> Any:
    if isinstance(function, staticmethod):
        function = function.__func__
    if not callable(function) or isinstance(function, type | RemoteFunction):
        raise TypeError(f"only functions can be remote, not {function!r}; write @session.function() above a def")
    _refuse_async(function)
    return function


def _refuse_async(function: Callable[..., Any]) -> None:
    inner: Any = function
    while inner is not None:
        if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
            raise AsyncFunctionError(
                f"{getattr(inner, '__qualname__', inner)!r} is async; remote functions are plain ones: write `def`, "
                "and call anyio.run() or asyncio.run() inside if you need a loop there"
            )
        inner = inner.func if isinstance(inner, functools.partial) else getattr(inner, "__wrapped__", None)


def _arguments(item: Any) -> tuple[Any, ...]:
    try:
        return tuple(item)
    except TypeError as error:
        raise TypeError(
            f"map() unpacks each item as positional arguments, and {type(item).__name__} cannot be unpacked: write "
            "(x,) for a single argument"
        ) from error


def _encode(snapshot: Snapshot | Exception, arguments: tuple[Any, ...]) -> bytes | Exception:
    """One item's arguments, or why they cannot be sent: the item's own ref says so."""
    if isinstance(snapshot, Exception):
        return b""
    try:
        return snapshot.arguments(arguments, {})
    except Exception as error:
        return error
