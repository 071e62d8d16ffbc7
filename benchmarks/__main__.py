"""Print the table. Everything is measured in rounds, side by side, so that a noisy moment hits all rows alike."""

from __future__ import annotations

import argparse
import os
import platform
from functools import partial

from benchmarks import baseline, cli, folders, functions, network, sdk
from benchmarks.timing import Measurement, table
from cwsandbox import Sandbox, Session

SUBPROCESS = "subprocess.run(['true'])"
ASYNCIO = "asyncio.create_subprocess_exec, pipes"


# The goals are for a quiet two-core machine on which subprocess.run(["true"]) takes 0.3 to 0.4 ms; on a slower one compare
# the rows with that one.


def measurements(sandbox: Sandbox, session: Session, plain: network.Server, base: str, times: int) -> list[Measurement]:
    """All rows, in the order of the table."""
    exposed = network.inside(sandbox)
    return [
        Measurement(SUBPROCESS, "ms", partial(baseline.subprocess_run, times)),
        Measurement("exec true, .result()", "ms", partial(sdk.exec_result, sandbox, times), 1.2),
        Measurement(ASYNCIO, "ms", partial(baseline.asyncio_subprocess, times)),
        Measurement("exec true, awaited on asyncio", "ms", partial(sdk.exec_awaited, "asyncio", times), 1.0),
        Measurement("exec true, awaited on trio", "ms", partial(sdk.exec_awaited, "trio", times), 1.0),
        Measurement("Sandbox.run() to first result", "ms", partial(sdk.run_to_first_result, times // 5), 12),
        Measurement("the same, gateway not yet running", "ms", sdk.cold_start, 500),
        Measurement("1,000 execs in flight", "per s", partial(sdk.in_flight_per_second, sandbox), 1200, True),
        Measurement("local pipe, lines iterated", "MB/s", baseline.pipe_mb_per_second),
        Measurement("stdout, lines iterated", "MB/s", partial(sdk.stdout_mb_per_second, sandbox), 500, True),
        Measurement("read 1 KiB file", "ms", partial(sdk.file_read, sandbox, times), 0.5),
        Measurement("write 1 KiB file", "ms", partial(sdk.file_write, sandbox, times), 0.5),
        Measurement("list a small folder", "ms", partial(folders.list_milliseconds, sandbox, times), 0.5),
        Measurement("tar | tar, 1,000 files of 2 KiB", "ms", partial(folders.tar_milliseconds, base, "small")),
        Measurement("upload of them", "ms", partial(folders.upload_milliseconds, sandbox, base, "small")),
        Measurement("download of them", "ms", partial(folders.download_milliseconds, sandbox, base, "small")),
        Measurement("tar | tar, 100 MiB", "ms", partial(folders.tar_milliseconds, base, "large")),
        Measurement("upload of it", "ms", partial(folders.upload_milliseconds, sandbox, base, "large")),
        Measurement("download of it", "ms", partial(folders.download_milliseconds, sandbox, base, "large")),
        Measurement(
            "import cwsandbox, above bare Python",
            "ms",
            partial(baseline.import_milliseconds, "cwsandbox", 5),
            40,
        ),
        Measurement("python -c pass, .result()", "ms", partial(functions.bare_interpreter, sandbox, times // 5)),
        Measurement("remote function, cold", "ms", partial(functions.cold_call, session, times // 5), 120),
        Measurement("remote function, standby", "ms", partial(functions.warm_call, session, times // 5), 30),
        Measurement("python -c pass, a process of its own", "ms", partial(cli.bare_python, times // 5)),
        Measurement("cwsandbox --version", "ms", partial(cli.command, times // 5, "--version"), 100),
        Measurement(
            "cwsandbox exec ID true",
            "ms",
            partial(cli.command, times // 5, "exec", str(sandbox.sandbox_id), "true"),
            400,
        ),
        Measurement("client CPU for 1,000 execs", "s", partial(sdk.client_cpu_per_thousand, sandbox), 0.4),
        Measurement("loopback, connect and one byte", "ms", partial(plain.connect_and_echo, times)),
        Measurement("exposed port, connect and one byte", "ms", partial(exposed.connect_and_echo, times), 2.0),
        Measurement("loopback, 256 MiB", "MB/s", plain.flood),
        Measurement("exposed port, 256 MiB", "MB/s", exposed.flood, 500, True),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured (default 5)")
    parser.add_argument("--times", type=int, default=50, help="calls per round for the quick rows (default 50)")
    options = parser.parse_args()
    with sdk.own_folders() as environment:
        os.environ.update(environment)
        with (
            Sandbox.run(ports=network.PORTS) as sandbox,
            Session() as session,
            network.beside() as plain,
            folders.prepared() as base,
        ):
            sandbox.wait()
            rows = measurements(sandbox, session, plain, base, options.times)
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
