"""The local runner: real Linux sandboxes from a bare installation.

A zygote (`zygote`) forks boxes, `launch` and `root` put them into namespaces of their own, and the forked interpreter
stays inside as PID 1: the `agent`. Those modules are plain blocking standard-library code that runs without
site-packages, so this file and everything they import must stay free of third-party imports. The gateway's side
(`runner`, `box`, `streams`, `link`) is anyio code.
"""
