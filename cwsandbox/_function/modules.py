"""The caller's own modules, sent whole: for functions that use `import helpers` and `helpers.f()`."""

from __future__ import annotations

import ast
import importlib.util
import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwsandbox._function.origin import is_installed
from cwsandbox._function.source import imported_names
from cwsandbox.exceptions import FunctionSerializationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

__all__ = ["ShippedModules", "resolved"]


class ShippedModules:
    """Source texts of modules, with the caller's own modules that they import themselves."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def to_payload(self) -> dict[str, dict[str, Any]]:
        """Text, file and kind of each module, by name; with `if_missing`, the sandbox's own is taken if it has one."""
        return self._modules

    def add(self, module: ModuleType, what: str) -> None:
        """Send this module.

        Raises:
            FunctionSerializationError: It is no Python file, or no longer one.
        """
        name = module.__name__
        if name in self._modules or name == "__main__":
            return
        text = self._put(module, what)
        for other in _imported(text, module):
            if other.partition(".")[0] == "cwsandbox" and other in sys.modules:
                self._modules[other] = {"text": _stand_in(other), "file": other, "package": True, "if_missing": True}
            elif other in sys.modules and not is_installed(other):
                self.add(sys.modules[other], f"{other}, imported by {name},")

    def add_cloudpickle(self) -> None:
        """Send cloudpickle, which the sandbox's Python need not have; it is two files of pure Python."""
        import cloudpickle.cloudpickle  # type: ignore[import-untyped]

        for module in (cloudpickle, cloudpickle.cloudpickle):
            if module.__name__ not in self._modules:
                self._put(module, "cloudpickle")

    def _put(self, module: ModuleType, what: str) -> str:
        file, is_package = getattr(module, "__file__", None), hasattr(module, "__path__")
        if file is None and is_package:  # a folder without __init__.py
            text = ""
        elif file is not None and file.endswith(".py"):
            try:
                text = importlib.util.decode_source(Path(file).read_bytes())
                _names_in(text)
            except (OSError, SyntaxError, ValueError) as error:
                raise FunctionSerializationError(f"{what} cannot be sent: its file cannot be read: {error}") from error
        else:
            raise FunctionSerializationError(
                f"{what} is the module {module.__name__!r}, which has no Python source to send; install it in the "
                "image and import it inside the function"
            )
        self._modules[module.__name__] = {"text": text, "file": file or module.__name__, "package": is_package}
        return text


@cache
def _stand_in(name: str) -> str:
    text = Path(__file__).with_name("standin.py").read_text(encoding="utf-8")
    return f"{text}\n\n__all__ = {list(getattr(sys.modules[name], '__all__', ()))}  # for `import *`\n"


def resolved(names: Iterable[str], package: str | None) -> Iterator[str]:
    """Absolute names of modules, and of the packages that they are in; what leads nowhere is left out."""
    for name in names:
        try:
            parts = importlib.util.resolve_name(name, package).split(".")
        except ImportError:
            continue
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _imported(text: str, module: ModuleType) -> Iterator[str]:
    """The names of the modules that a text imports, and of the packages that they and it are in."""
    return resolved({module.__name__, *_names_in(text)}, module.__package__)


@lru_cache(maxsize=256)
def _names_in(text: str) -> frozenset[str]:
    return frozenset(imported_names(ast.parse(text)))
