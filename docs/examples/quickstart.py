"""The first sandbox: run a command, read its output."""

from cwsandbox import Sandbox

with Sandbox.run() as sandbox:
    print(sandbox.exec(["echo", "hello"]).result().stdout, end="")
