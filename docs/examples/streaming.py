"""Talk to a running command: write lines to it, and read its lines as they come."""

from cwsandbox import Sandbox

with Sandbox.run() as sandbox:
    process = sandbox.exec(["sh", "-c", "while read name; do echo hello $name; done"], stdin=True)
    for name in ("ada", "grace"):
        process.stdin.writeline(name).result()
        print(next(process.stdout), end="")
    process.stdin.close().result()
    print("exit code", process.result().returncode)
