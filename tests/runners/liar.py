"""An agent that lies: listens where a box's agent would, and answers with what it is told to.

Usage: liar.py SOCKET KIND
"""

from __future__ import annotations

import os
import socket
import sys

from cwsandbox.runners.local import journal, protocol


def hello(commands: int) -> bytes:
    return protocol.encode(
        {"event": "hello", "info": {"sandbox_id": "liar"}, "level": "namespaces", "commands": commands}
    )


def saying(data: bytes) -> int:
    read, write = os.pipe()
    os.write(write, data)
    return read


# What it says of its commands to a gateway that takes its boxes back; one was announced.
SURVIVORS: dict[str, list[dict[str, object]]] = {
    "without a name": [{"exec": ""}],
    "with a name that is none": [{"exec": "a\0b"}],
    "with a process that is none": [{"pid": 10**30}],
    "that ended in a way that is none": [{"status": 10**9}],
    "without streams": [{"fds": []}],
    "one too many": [{}, {"exec": "another"}],
}


def tell_of_survivors(connection: socket.socket, kind: str) -> None:
    for lie in SURVIVORS[kind]:
        said = {"event": "command", "exec": "e", "pid": 2, "note": None, "status": None}
        fds = [os.pipe()[0], os.pipe()[0], journal.make(), journal.make()]
        told = protocol.encode({**said, "fds": ["stdout", "stderr", "output", "errors"], **lie})
        socket.send_fds(connection, [told], fds)


def answer(connection: socket.socket, kind: str, request: int) -> None:
    null, (read, _) = os.open("/dev/null", os.O_RDWR), os.pipe()
    tcp, udp = socket.socket().detach(), socket.socket(type=socket.SOCK_DGRAM).detach()
    unix = socket.socket(socket.AF_UNIX).detach()
    started = protocol.encode({"id": request, "pid": 2})
    answered = protocol.encode({"id": request})
    lies = {
        "not a message": (b"\0", []),
        "not json": (b"\0\0\0\1{", []),
        "not an object": (b"\0\0\0\2[]", []),
        "a wrong length": (b"\xff\xff\xff\0{}", []),
        "a deep nest": (protocol._LENGTH.pack(90000) + b"[" * 90000, []),
        "an unknown event": (protocol.encode({"event": "surprise"}), [read]),
        "no event at all": (protocol.encode({}), []),
        "too few streams": (started, [read]),
        "streams that are none": (started, [null, null]),
        "too many streams": (started, [read, read, read]),
        "more descriptors than fit": (started, [read] * 100),
        "a pid that is none": (protocol.encode({"id": request, "pid": "x"}), [read, read]),
        "a second introduction": (hello(0), []),
        "an introduction that is none": (protocol.encode({"event": "hello", "info": None, "commands": -1}), []),
        "a command that nobody started": (
            protocol.encode({"event": "command", "exec": "e", "pid": 2, "fds": ["stdout"]}),
            [read],
        ),
        "descriptors beside an event": (protocol.encode({"event": "fatal", "message": "x"}), [read] * 8),
        "an exit that is none": (protocol.encode({"event": "exit", "exec": "e", "status": 10**9}), []),
        "a message in memory": (b"\xff\xff\xff\xff", [null]),
        "the end": (b"", []),
        "a status that is none": (protocol.encode({"id": request, "found": [1, "2", 3]}), []),
        "a status that is too large": (protocol.encode({"id": request, "found": [1, 2**70, 3]}), []),
        "no status": (answered, [read]),
        "one pipe for a job": (answered, [read]),
        "pipes that are none": (answered, [null, null]),
        "a job that says nonsense": (answered, [read, saying(b"nonsense\n")]),
        "a job that says no object": (answered, [read, saying(b"[]\n")]),
        "a job that never ends a line": (answered, [read, saying(b"x" * 60_000)]),
        "a job whose error is none": (answered, [read, saying(b'{"errno":"2","message":1,"path":null}\n')]),
        "no connection": (answered, []),
        "two connections": (answered, [tcp, tcp]),
        "a pipe for a connection": (answered, [read]),
        "a datagram socket for a connection": (answered, [udp]),
        "a Unix socket for a connection": (answered, [unix]),
        "a job that nests": (answered, [read, saying(b"[" * 20_000 + b"\n")]),
    }
    data, fds = lies[kind]
    if data:
        socket.send_fds(connection, [data], fds) if fds else connection.send(data)
    if kind in {"the end", "descriptors beside an event"}:
        connection.shutdown(socket.SHUT_WR)


def main(path: str, kind: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("listening", flush=True)
        connection, _ = listener.accept()
        connection.send(hello(kind in SURVIVORS))
        if kind in SURVIVORS:
            tell_of_survivors(connection, kind)
        message = protocol.receive(connection, large=True)
        if message is not None:
            answer(connection, kind, message.body["id"])
            protocol.receive(connection, large=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
