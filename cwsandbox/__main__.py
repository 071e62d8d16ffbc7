"""`cwsandbox` and `python -m cwsandbox`: the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; return the exit status."""
    # httpcore imports trio wherever it is installed: a sixth of the time that `exec` takes to start, for a loop that no
    # command uses.
    sys.modules.setdefault("trio", None)  # type: ignore[arg-type]
    try:
        from cwsandbox.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write(f"cwsandbox: its command line needs the package {error.name}: pip install {error.name}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
