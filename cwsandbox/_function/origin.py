"""Where a function, class or module comes from: can the sandbox import it, or does it have to be sent?"""

from __future__ import annotations

import site
import sys
import sysconfig
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FunctionType, ModuleType

__all__ = ["has_own_name", "importable_name", "is_installed", "lookup"]

_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


def is_installed(module: str | None) -> bool:
    """True if a sandbox is expected to have it: the standard library, and what was installed.

    The rest is the caller's own: scripts, notebooks, the modules of a project.
    """
    top, _, _ = (module or "").partition(".")
    if top in sys.stdlib_module_names or top == "cwsandbox":
        return top != "__main__"
    found = sys.modules.get(module or "")
    if found is None:
        return False
    places = [place for place in (getattr(found, "__file__", None), *_paths(found)) if place]
    if not places:
        return getattr(getattr(found, "__spec__", None), "origin", None) in {"built-in", "frozen"}
    return any(_in_package_folder(place) for place in places)


def _paths(module: ModuleType) -> list[str]:
    return [path for path in getattr(module, "__path__", ()) if isinstance(path, str)]


@lru_cache(maxsize=4096)
def _in_package_folder(path: str) -> bool:
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *site.getsitepackages()]
    return any(name in path.split("/") for name in _PACKAGE_FOLDERS) or any(
        path.startswith(folder + "/") for folder in folders
    )


def lookup(module: str | None, qualname: str) -> Any:
    """What a module that is loaded has under a dotted name; None if nothing."""
    found = sys.modules.get(module or "")
    if found is None or "<" in qualname:
        return None
    try:
        return attrgetter(qualname)(found)
    except AttributeError:
        return None


def has_own_name(value: type | FunctionType) -> bool:
    """True if a module of the caller's has exactly this function or class at its top level."""
    name = value.__qualname__
    return "." not in name and not is_installed(value.__module__) and lookup(value.__module__, name) is value


def importable_name(value: Any) -> tuple[str, str] | None:
    """The module and dotted name under which a sandbox can import exactly this object, if it can."""
    qualname = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(qualname, str):
        return None
    module = getattr(value, "__module__", None)
    if isinstance(module, str) and is_installed(module) and lookup(module, qualname) is value:
        return module, qualname
    if isinstance(module, str) and not is_installed(module):
        return None
    # Such as random.randint: a method of an object, with a name of its own in its module.
    name = getattr(value, "__name__", "")
    owner = getattr(type(getattr(value, "__self__", None)), "__module__", None)
    for candidate in (module, owner):
        if isinstance(candidate, str) and is_installed(candidate) and lookup(candidate, name) is value:
            return candidate, name
    return None
