"""The command line, on top of the SDK; `cwsandbox.cli.app` is where it begins.

A module is one command or a few that belong together. They import click only; the SDK, rich and the gateway load when a
command runs, as `cwsandbox --help` and completion have to be quick.
"""
