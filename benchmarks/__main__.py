"""Print the table. Everything is measured in rounds, side by side, so that a noisy moment hits all rows alike."""

from __future__ import annotations

import argparse
import os
import platform
from functools import partial

from benchmarks import baseline, sdk
from benchmarks.timing import Goal, Measurement, table
from cwsandbox import Sandbox

SUBPROCESS = "subprocess.run(['true'])"
ASYNCIO = "asyncio.create_subprocess_exec, pipes"


def measurements(sandbox: Sandbox, times: int) -> list[Measurement]:
    """All rows, in the order of the table."""
    return [
        Measurement(SUBPROCESS, "ms", partial(baseline.subprocess_run, times)),
        Measurement("exec true, .result()", "ms", partial(sdk.exec_result, sandbox, times), Goal(times=SUBPROCESS)),
        Measurement(ASYNCIO, "ms", partial(baseline.asyncio_subprocess, times)),
        Measurement(
            "exec true, awaited on asyncio", "ms", partial(sdk.exec_awaited, "asyncio", times), Goal(times=ASYNCIO)
        ),
        Measurement("exec true, awaited on trio", "ms", partial(sdk.exec_awaited, "trio", times), Goal(times=ASYNCIO)),
        Measurement("Sandbox.run() to first result", "ms", partial(sdk.run_to_first_result, times // 5), Goal(10)),
        Measurement("the same, gateway not yet running", "ms", sdk.cold_start, Goal(500)),
        Measurement("1,000 execs in flight", "per s", partial(sdk.in_flight_per_second, sandbox), Goal(1000), True),
        Measurement("local pipe, lines iterated", "MB/s", baseline.pipe_mb_per_second),
        Measurement("stdout, lines iterated", "MB/s", partial(sdk.stdout_mb_per_second, sandbox), Goal(100), True),
        Measurement("read 1 KiB file", "ms", partial(sdk.file_read, sandbox, times), Goal(1)),
        Measurement("write 1 KiB file", "ms", partial(sdk.file_write, sandbox, times), Goal(1)),
        Measurement(
            "import cwsandbox, above bare Python",
            "ms",
            partial(baseline.import_milliseconds, "cwsandbox", 5),
            Goal(100),
        ),
        Measurement("client CPU for 1,000 execs", "s", partial(sdk.client_cpu_per_thousand, sandbox), Goal(0.5)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured (default 5)")
    parser.add_argument("--times", type=int, default=50, help="calls per round for the quick rows (default 50)")
    options = parser.parse_args()
    with sdk.own_folders() as environment:
        os.environ.update(environment)
        with Sandbox.run() as sandbox:
            sandbox.wait()
            rows = measurements(sandbox, options.times)
            for _ in range(options.rounds):
                for row in rows:
                    row.values += row.sample()
            level = sandbox.isolation
    cores = os.cpu_count()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {cores} cores, load {load:.1f}, isolation {level}")
    print(table(rows))


if __name__ == "__main__":
    main()
