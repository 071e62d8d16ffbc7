"""Run code in isolated sandboxes, from sync Python, asyncio or trio."""

from cwsandbox._version import __version__

__all__ = ["__version__"]
