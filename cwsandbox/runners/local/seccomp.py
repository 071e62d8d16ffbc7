"""The system-call filter of every box, assembled by hand.

A deny list in the spirit of Docker's default profile: what changes mounts, namespaces, the kernel or the machine, what
has a history of kernel bugs and no use in a sandbox, and foreign ABIs, through which all of that could be reached
again. It is the second wall: a box has no capabilities, so most of these calls would fail anyway.
"""

from __future__ import annotations

import errno
import struct

from cwsandbox.runners.local.syscalls import CLONE_NEWUTS, MACHINE

_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32_BIT = 0x4000_0000

# Numbers on (x86_64, aarch64); -1: the architecture has no such call. From 424 on they agree.
_EPERM: dict[str, tuple[int, int]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "userfaultfd": (323, 282),
    "uselib": (134, -1),
    "vhangup": (153, 58),
}
# Programs probe for these and have a fallback; clone3 hides its flags in memory, where a filter cannot look.
_ENOSYS: dict[str, tuple[int, int]] = {
    "clone3": (435, 435),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
}
_CLONE = (56, 220)
_FORKS = ((56, 220), (57, -1), (58, -1))  # clone, fork, vfork; clone3 is refused by the other filter.
_UNSHARE = (272, 97)
_PERSONALITY = (135, 92)
_SOCKET = (41, 198)
_IOCTL = (16, 29)

_ALL_CLONE_NEW = 0x7E02_0000
_LOCAL_FAMILIES = (1,)  # UNIX
_FAMILIES = (*_LOCAL_FAMILIES, 2, 10, 16)  # INET, INET6, NETLINK
_PERSONALITIES = (0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)
_TTY_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_LOAD, _JUMP, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x05, 0x15, 0x45, 0x35, 0x06
_ALLOW, _NOTIFY, _ERRNO = 0x7FFF_0000, 0x7FC0_0000, 0x0005_0000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16


def _op(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, on_true, on_false, value)


def _deny(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _section(number: int, argument: int, tests: list[bytes], otherwise: bytes) -> bytes:
    """Instructions for one call: load a word of an argument, run `tests`, end with `otherwise`."""
    body = [_op(_LOAD, _ARGUMENTS + 8 * argument), *tests, otherwise]
    return _op(_EQUAL, number, 0, len(body)) + b"".join(body)


def build_filter(machine: str = MACHINE, *, network: bool = True) -> bytes:
    """The filter for `machine`, as an array of `struct sock_filter`.

    Args:
        machine: As `os.uname` names it.
        network: False leaves Unix sockets only: how a box without a network namespace is kept from the network.

    Raises:
        OSError: ENOSYS for an architecture without a table; nothing runs unfiltered.
    """
    if machine not in _AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no system-call filter for the architecture {machine}")
    column = 0 if machine == "x86_64" else 1
    allow, refuse = _op(_RETURN, _ALLOW), _deny(errno.EPERM)
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _deny(errno.ENOSYS), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        program += [_op(_AT_LEAST, _X32_BIT, 0, 1), _deny(errno.ENOSYS)]
    for table, number in ((_EPERM, errno.EPERM), (_ENOSYS, errno.ENOSYS)):
        for numbers in table.values():
            if numbers[column] >= 0:
                program += [_op(_EQUAL, numbers[column], 0, 1), _deny(number)]
    program.append(_section(_CLONE[column], 0, [_op(_ANY_BIT, _ALL_CLONE_NEW, 0, 1), refuse], allow))
    # The agent marks commands with UTS namespaces of their own; its children lack the capability for it.
    program.append(_section(_UNSHARE[column], 0, [_op(_EQUAL, CLONE_NEWUTS, 0, 1), allow], refuse))
    personalities = [step for value in _PERSONALITIES for step in (_op(_EQUAL, value, 0, 1), allow)]
    program.append(_section(_PERSONALITY[column], 0, personalities, refuse))
    families = [
        step for value in (_FAMILIES if network else _LOCAL_FAMILIES) for step in (_op(_EQUAL, value, 0, 1), allow)
    ]
    program.append(_section(_SOCKET[column], 0, families, _deny(errno.EAFNOSUPPORT)))
    requests = [step for value in _TTY_INJECTION for step in (_op(_EQUAL, value, 0, 1), refuse)]
    program.append(_section(_IOCTL[column], 1, requests, allow))
    program.append(allow)
    return b"".join(program)


def build_fork_filter(machine: str = MACHINE) -> bytes:
    """A second filter, for boxes with a warden: every fork and every new thread is asked about."""
    column = 0 if machine == "x86_64" else 1
    numbers = [each[column] for each in _FORKS if each[column] >= 0]
    program = [_op(_LOAD, _NUMBER)]
    program += [step for number in numbers for step in (_op(_EQUAL, number, 0, 1), _op(_RETURN, _NOTIFY))]
    return b"".join([*program, _op(_RETURN, _ALLOW)])
