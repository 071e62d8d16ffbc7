"""The root file system of a box, from inside its new namespaces.

Runs in the process that becomes PID 1, after it left the host's namespaces and before it gives up its rights. Nothing
here follows a path that a sandbox wrote: the host's side is reached through descriptors of folders that only the
gateway writes, and everything inside the new root is mounted after pivoting into it, from where no symlink leads out.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from cwsandbox.runners.local import syscalls as linux

_PATH = os.O_PATH | os.O_CLOEXEC
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
_PLAIN = linux.MS_NOSUID | linux.MS_NODEV
_MASKED_FILES = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats", "/proc/sysrq-trigger")
_OWN_FOLDERS = (
    ("root", 0o700),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("run", 0o755),
    ("srv", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
)
_LAYERS = ("upper", "work", "usr-upper", "usr-work")


def prepare_folders(folder: str, owner: int) -> None:
    """Make what a box needs in its folder: mount points, and the writable layers, which belong to `owner`."""
    os.makedirs(folder, 0o711, exist_ok=True)
    os.chmod(folder, 0o711)  # noqa: S103 - The box's own root must get through; what is above is the gateway's alone.
    for name in ("root", "lower", "usr-lower", "layer", *(f"layer/{name}" for name in _LAYERS)):
        path = f"{folder}/{name}"
        os.mkdir(path, 0o755)
        if name.startswith("layer"):
            os.chown(path, owner, owner)


def enter_root(plan: dict[str, Any], trees: list[int]) -> None:
    """Build the root file system, make it the process's root, and become the root user of the user namespace.

    Args:
        plan: The box's creation message: `folder`, `image`, `files`.
        trees: Detached mounts of the image, of /usr and perhaps of the interpreter, whose owners are mapped to this
            user namespace. Empty: the plain folders are used.
    """
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    image = plan["image"]
    files = [(target, _read_only(linux.open_tree(source))) for target, source in plan["files"]]
    prefix = None
    if image["prefix"]:
        prefix = _read_only(trees.pop() if trees else linux.open_tree(image["prefix"]))
    devices = [(name, linux.open_tree(f"/dev/{name}")) for name in _DEVICES]
    # Opened while the host's root may still pass the folders above; used as the box's root.
    folder, plain_image = os.open(plan["folder"], _PATH), os.open(image["folder"], _PATH)
    if trees:
        _attach(trees[0], f"{plan['folder']}/lower")
        _attach(trees[1], f"{plan['folder']}/usr-lower")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    lower = f"{_via(folder)}/lower" if trees else _via(plain_image)
    usr_lower = f"{_via(folder)}/usr-lower" if trees else "/usr"
    layer = f"{_via(folder)}/layer"
    # Where the file system cannot map owners, the image's folders belong to nobody: the box then gets its usual ones.
    own = _OWN_FOLDERS if plan["base"] and not trees else _OWN_FOLDERS[:1]
    root = _mount_root(_via(folder), layer, lower, own)
    _mount_usr(root, layer, lower, usr_lower)
    os.close(folder)
    os.close(plain_image)
    os.fchdir(root)
    os.close(root)
    linux.pivot_root(".", ".")
    # The old root now lies on top of "/", but lookups of "/" start below it: all paths are the box's from here on. It
    # stays until proc is mounted, which the kernel allows only while another one is in sight.
    _mount_system(devices)
    if prefix is not None:
        os.makedirs(image["prefix_target"], exist_ok=True)
        _attach(prefix, image["prefix_target"])
    for target, tree in files:
        _attach_file(tree, target)
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")


def _via(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _read_only(tree: int) -> int:
    linux.mount_setattr(tree, _READ_ONLY)
    return tree


def _attach(tree: int, target: str) -> None:
    place = os.open(target, _PATH)
    linux.move_mount(tree, place)
    os.close(place)
    os.close(tree)


def _attach_file(tree: int, target: str) -> None:
    target = os.path.realpath(target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    _attach(tree, target)


def _make_own_folders(upper: str, folders: tuple[tuple[str, int], ...]) -> None:
    for name, mode in folders:
        os.mkdir(f"{upper}/{name}")
        os.chmod(f"{upper}/{name}", mode)


def _overlay(target: str, layer: str, prefix: str, lowers: tuple[str, ...]) -> None:
    options = f"lowerdir={':'.join(lowers)},upperdir={layer}/{prefix}upper,workdir={layer}/{prefix}work,userxattr"
    linux.mount("overlay", target, "overlay", _PLAIN, options)


def _mount_root(folder: str, layer: str, lower: str, own: tuple[tuple[str, int], ...]) -> int:
    _make_own_folders(f"{layer}/upper", own)
    try:
        _overlay(f"{folder}/root", layer, "", (f"{lower}/root",))
    except OSError:
        # The state folder's file system cannot hold an upper layer (a container's own overlay): keep it in memory.
        linux.mount("tmpfs", layer, "tmpfs", _PLAIN, "mode=755")
        for name in _LAYERS:
            os.mkdir(f"{layer}/{name}", 0o755)
        _make_own_folders(f"{layer}/upper", own)
        _overlay(f"{folder}/root", layer, "", (f"{lower}/root",))
    return os.open(f"{folder}/root", _PATH | os.O_DIRECTORY)


def _mount_usr(root: int, layer: str, lower: str, usr_lower: str) -> None:
    usr = linux.openat2(root, "usr", _PATH | os.O_DIRECTORY, resolve=linux.RESOLVE_NO_SYMLINKS)
    try:
        _overlay(_via(usr), layer, "usr-", (f"{lower}/usr", usr_lower))
    except OSError:
        # /usr has mounts of its own below, or is itself at the deepest level of overlays.
        tree = linux.open_tree(usr_lower, recursive=True)
        linux.mount_setattr(tree, _READ_ONLY, recursive=True)
        linux.move_mount(tree, usr)
        os.close(tree)
        # The image's programs (`python`) still come first, if at all possible.
        with contextlib.suppress(OSError):
            programs = linux.openat2(root, "usr/local/bin", _PATH | os.O_DIRECTORY)
            lowers = f"{lower}/usr/local/bin:{_via(programs)}"
            linux.mount("overlay", _via(programs), "overlay", _PLAIN | linux.MS_RDONLY, f"lowerdir={lowers},userxattr")
            os.close(programs)
    os.close(usr)


def _mount_system(devices: list[tuple[str, int]]) -> None:
    linux.mount("proc", "/proc", "proc", _PLAIN | linux.MS_NOEXEC)
    linux.mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=755,size=64k")
    for name, tree in devices:
        os.close(os.open(f"/dev/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
        linux.mount_setattr(tree, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC)
        _attach(tree, f"/dev/{name}")
    for name, target in _DEVICE_LINKS:
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/shm")  # noqa: S108 - Inside the box.
    linux.mount("tmpfs", "/dev/shm", "tmpfs", _PLAIN, "mode=1777,size=256m")  # noqa: S108
    os.mkdir("/dev/pts")
    linux.mount(
        "devpts", "/dev/pts", "devpts", _PLAIN & ~linux.MS_NODEV | linux.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    # No user namespaces in here: they are the way to most of the kernel's privileged code.
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")
    for path in _MASKED_FILES:
        if os.path.exists(path):
            _attach(linux.open_tree("/dev/null"), path)
    _attach(_read_only(linux.open_tree("/proc/sys")), "/proc/sys")
