"""The Linux calls that the standard library lacks, by ctypes.

Every function raises `OSError` with the call's name. Numbers from 424 on are the same on all architectures; the few
older ones are looked up by machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

MACHINE = os.uname().machine

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MNT_DETACH = 0x2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x10_0000

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21

RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

_AT_FDCWD = -100
_RENAME_EXCHANGE = 0x2
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_FALLOC_FL_KEEP_SIZE = 0x1
_FALLOC_FL_PUNCH_HOLE = 0x2
_SECCOMP_MODE_FILTER = 2
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_NEW_LISTENER = 0x8
_SECCOMP_WAIT_KILLABLE = 0x20
_PR_SET_SECCOMP = 22
_CAPABILITY_VERSION_3 = 0x2008_0522

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_SECCOMP = 317 if MACHINE == "x86_64" else 277
_SYS_SCHED_SETATTR = 314 if MACHINE == "x86_64" else 274
_SYS_PIVOT_ROOT = 155 if MACHINE == "x86_64" else 41

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), what)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def set_title(title: str) -> None:
    """Replace the arguments that /proc and `ps` show of this process; as many bytes as they had are shown at most."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end (proc_pid_stat(5), 48 and 49)
    if 0 < start < end:
        text = title.encode()[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, len(text))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a range of a file's content back to the system; its size stays (fallocate(2))."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    result = _libc.fallocate(ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
    _checked(result, "fallocate")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """Mount a file system, or change a mount."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _checked(result, f"mount {kind or source} on {target}")


def umount(target: str, flags: int = 0) -> None:
    """Take a mount away."""
    _checked(_libc.umount2(_bytes(target), ctypes.c_int(flags)), f"umount {target}")


def exchange(one: str, other: str) -> None:
    """Give two files each other's name, in one step."""
    at = ctypes.c_int(_AT_FDCWD)
    result = _libc.renameat2(at, _bytes(one), at, _bytes(other), ctypes.c_uint(_RENAME_EXCHANGE))
    _checked(result, f"renameat2 {other}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root mount, and this process's root with it."""
    _syscall("pivot_root", _SYS_PIVOT_ROOT, _bytes(new_root), _bytes(put_old))


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A detached copy of the mount at `path`, as a descriptor that closes on exec."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall(f"open_tree {path}", _SYS_OPEN_TREE, _AT_FDCWD, _bytes(path), flags)


def move_mount(tree: int, target: int) -> None:
    """Attach a detached mount to the directory or file that the descriptor `target` is."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _syscall("move_mount", _SYS_MOVE_MOUNT, tree, b"", target, b"", flags)


def mount_setattr(tree: int, attributes: int, user_namespace: int = 0, *, recursive: bool = False) -> None:
    """Set attributes on the mount `tree`; with `MOUNT_ATTR_IDMAP`, by the maps of `user_namespace`."""
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    attr = struct.pack("QQQQ", attributes, 0, 0, user_namespace)
    _syscall("mount_setattr", _SYS_MOUNT_SETATTR, tree, b"", flags, attr, len(attr))


def openat2(directory: int, path: str, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Open `path` as if `directory` were the root: no symlink, `..` or magic link leads out of it."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(f"openat2 {path}", _SYS_OPENAT2, directory, _bytes(path), how, len(how))


def prctl(option: int, *arguments: int) -> None:
    """Set an attribute of this process; missing arguments are zero, as many options insist."""
    words = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(ctypes.c_int(option), *words), f"prctl {option}")


def set_capabilities(kept: tuple[int, ...] = ()) -> None:
    """Make `kept` the permitted and effective capabilities, with nothing inheritable."""
    bits = sum(1 << capability for capability in kept)
    low, high = bits & 0xFFFF_FFFF, bits >> 32
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("IIIIII", low, low, 0, high, high, 0)
    _checked(_libc.capset(header, data), "capset")


def drop_bounding_set() -> None:
    """Empty the capability bounding set: no program started from here on gains a capability by exec."""
    last = 63
    for capability in range(last + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            if capability == 0:
                raise
            return  # EINVAL: the kernel knows no more capabilities.


def set_time_slice(seconds: float) -> None:
    """Ask for shorter turns on the processor, and so for earlier ones; before Linux 6.12 this changes nothing."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: its size, SCHED_OTHER, no flags, nice, priority, then three times in nanoseconds.
    attributes = struct.pack("IIQiIQQQ", 48, 0, 0, nice, 0, int(seconds * 1e9), 0, 0)
    _syscall("sched_setattr", _SYS_SCHED_SETATTR, 0, attributes, 0)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter, an array of `struct sock_filter`; needs no-new-privileges or CAP_SYS_ADMIN."""
    # `buffer` has to live until the kernel has copied it.
    prog, buffer = _sock_fprog(program)
    result = _libc.prctl(ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(_SECCOMP_MODE_FILTER), prog, None, None)
    _checked(result, "seccomp")
    del buffer


def install_listener(program: bytes) -> int:
    """Install a filter whose notifications can be read from the returned descriptor."""
    prog, buffer = _sock_fprog(program)
    flags = _SECCOMP_NEW_LISTENER | _SECCOMP_WAIT_KILLABLE
    try:
        return _syscall("seccomp", _SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, prog)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Before Linux 5.19 a signal interrupts a call that waits for its answer, also when it is being answered.
    listener = _syscall("seccomp", _SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_NEW_LISTENER, prog)
    del buffer
    return listener


def _sock_fprog(program: bytes) -> tuple[bytes, Any]:
    buffer = ctypes.create_string_buffer(program, len(program))
    return struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)), buffer
