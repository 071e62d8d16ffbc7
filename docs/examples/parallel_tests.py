"""Split a test suite over several sandboxes and run the parts at the same time."""

from cwsandbox import Process, Sandbox, Session

SUITE = {
    "test_add.py": "def test_add(): assert 1 + 1 == 2",
    "test_text.py": "def test_upper(): assert 'a'.upper() == 'A'\ndef test_split(): assert 'a b'.split() == ['a', 'b']",
    "test_wrong.py": "def test_wrong(): assert 1 + 1 == 3",
    "test_dict.py": "def test_get(): assert {}.get('a') is None",
}
"""Of your own: `{path.name: path.read_text() for path in Path("tests").glob("test_*.py")}`."""

# Stands in for pytest, which the image of your suite has: `RUN = ["python", "-m", "pytest", "-q"]`.
RUNNER = """
import importlib, pathlib, sys
failed = 0
for path in map(pathlib.Path, sys.argv[1:]):
    module = importlib.import_module(path.stem)
    for name in sorted(name for name in vars(module) if name.startswith("test_")):
        try:
            getattr(module, name)()
        except AssertionError:
            failed += 1
            print("FAILED", f"{path}::{name}")
        else:
            print("passed", f"{path}::{name}")
sys.exit(failed > 0)
"""
RUN = ["python", "run.py"]
SANDBOXES = 2


def start_part(sandbox: Sandbox, files: dict[str, str]) -> Process:
    """Copy a part of the suite into a sandbox and start it; nothing waits for it here but the copying."""
    refs = [sandbox.write_file(f"/suite/{name}", text.encode()) for name, text in {**files, "run.py": RUNNER}.items()]
    for ref in refs:
        ref.result()
    return sandbox.exec([*RUN, *files], cwd="/suite", env={"PYTHONPATH": "."}, timeout_seconds=600)


with Session() as session:
    parts = [dict(list(SUITE.items())[number::SANDBOXES]) for number in range(SANDBOXES)]
    running = [start_part(session.sandbox(), part) for part in parts]
    results = [process.result() for process in running]

for result in results:
    print(result.stdout, end="")
print("all passed" if all(result.returncode == 0 for result in results) else "some failed")
