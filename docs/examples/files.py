"""Write a script, run it, read what it wrote."""

from cwsandbox import Sandbox

SCRIPT = b"""
with open("/data/numbers") as numbers, open("/data/sum", "w") as result:
    result.write(str(sum(map(int, numbers))))
"""

with Sandbox.run() as sandbox:
    writing = [sandbox.write_file("/data/sum.py", SCRIPT), sandbox.write_file("/data/numbers", b"1\n2\n39\n")]
    for ref in writing:
        ref.result()
    sandbox.exec(["python", "/data/sum.py"], check=True).result()
    print(sandbox.read_file("/data/sum").result().decode())
