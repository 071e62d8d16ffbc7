"""Several sandboxes and commands at once: nothing blocks until a result is asked for."""

from cwsandbox import Session

with Session() as session:
    sandboxes = [session.sandbox() for _ in range(3)]
    processes = [sandbox.exec(["python", "-c", f"print({n} ** 2)"]) for n, sandbox in enumerate(sandboxes)]
    print([process.result().stdout.strip() for process in processes])
