"""Property tests here find the same examples at every run, and are not timed: the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("wire", derandomize=True, deadline=None, database=None)
settings.load_profile("wire")
