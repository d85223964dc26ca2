"""The outer half of the sandbox: starts the runtime where it can reach nothing.

Runs in the simulated platform, standard library only. `namespaces`: a user, mount,
PID, network, IPC, UTS and cgroup namespace of its own, the runtime tree as root.
`landlock`: where the kernel refuses those; the inner half alone confines, and the
process table and host name stay visible.

Spec: spec/host-channel.md section 5 (BOX-1 to BOX-6). Sources: user_namespaces(7),
pivot_root(2), mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

MODES: Final = ("namespaces", "landlock")
ROOT: Final = "{root}"
BUNDLE: Final = "bundle"
TEMPORARY: Final = "tmp"
ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8"}
NOBODY: Final = 65534
_MAX_OPEN_FILES: Final = 256
_MOST_DESCRIPTORS: Final = 1 << 20
_STACK: Final = 8 << 20
_NEW_NAMESPACES: Final = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_PIVOT_ROOT: Final = 155
# Flags of the underlying mount that a namespace may not drop when it mounts again
# (statvfs bit, mount bit).
_LOCKED: Final = ((2, 2), (4, 4), (8, 8), (1024, 1024), (2048, 2048), (4096, 1 << 21))
_REFUSED_STATUS: Final = 71


class SandboxError(Exception):
    """The sandbox cannot be made here; the message says which step failed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an enclave runs.

    Attributes:
        root: the runtime tree.
        command: starts the bootstrap; `{root}` stands for where the tree is by then.
        bundle: the unpacked bundle; in mode `landlock` an empty directory `tmp` lies beside it.
        memory_mib: most private memory.
        temporary_mib: size of `/tmp`, in memory (`namespaces`); largest file (`landlock`).
    """

    root: str
    command: tuple[str, ...]
    bundle: str
    memory_mib: int
    temporary_mib: int


def launch(place: Place, mode: str, descriptors: tuple[int, int, int, int, int]) -> int:
    """Start the bootstrap; returns the process id to wait for.

    Args:
        mode: `namespaces` or `landlock`.
        descriptors: what becomes fds 0 to 4 of the enclave, closed nowhere here.

    Raises:
        SandboxError: this mode cannot be had here. No process is left behind.
    """
    report_read, report_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report_read)
        _in_child(report_write, lambda: _outer(place, mode, descriptors, report_write))
    os.close(report_write)
    # The pipe closes when the interpreter is executed; until then it carries why not.
    with os.fdopen(report_read, "rb") as report:
        why = report.read(500)
    if why:
        os.waitpid(child, 0)
        raise SandboxError(why.decode(errors="replace"))
    return child


def _in_child(report: int, work: Callable[[], None]) -> NoReturn:
    try:
        work()
    except OSError as error:
        os.write(report, str(error)[:400].encode())
    except BaseException as error:
        os.write(report, type(error).__name__.encode())
    os._exit(_REFUSED_STATUS)


def _outer(place: Place, mode: str, descriptors: tuple[int, int, int, int, int], report: int) -> None:
    report = _arrange(descriptors, report)
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    _die_with_parent(libc)
    if mode == "landlock":
        os.chdir(place.bundle)
        _limits(place, file_size=place.temporary_mib)
        _execute(libc, place, place.root, report)
    user, group = os.geteuid(), os.getegid()
    _check(libc.unshare(_NEW_NAMESPACES), "new namespaces")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    inner = os.fork()
    if inner == 0:
        _in_child(report, lambda: _inner(libc, place, report))
    # This process only carries the status; it must not hold the enclave's channels.
    os.closerange(0, 64)
    _, status = os.waitpid(inner, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _inner(libc: ctypes.CDLL, place: Place, report: int) -> None:
    _die_with_parent(libc)
    root = place.root
    mount(libc, "none", "/", "", _MS_REC | _MS_PRIVATE)
    _bind_read_only(libc, root, root)
    _bind_read_only(libc, place.bundle, f"{root}/{BUNDLE}")
    options = f"size={place.temporary_mib}m,nr_inodes=4096,mode=0700"
    mount(libc, "tmpfs", f"{root}/{TEMPORARY}", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    os.chdir(root)
    _check(libc.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(libc.umount2(b".", _MNT_DETACH), "detach the old root")
    os.chdir("/bundle")
    _check(libc.sethostname(b"enclave", 7), "host name")
    _limits(place, file_size=place.temporary_mib)
    _execute(libc, place, "", report)


def _execute(libc: ctypes.CDLL, place: Place, root: str, report: int) -> None:
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    os.set_inheritable(report, False)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and 32 != number != 33:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    command = [part.replace(ROOT, root) for part in place.command]
    os.execve(command[0], command, ENVIRONMENT)  # noqa: S606


def _arrange(descriptors: tuple[int, ...], report: int) -> int:
    """Give the descriptors their numbers and close everything else."""
    # Copies above 5 first, each to a number that is free: any of them may stand in the way of another.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 6) for fd in (*descriptors, report)]
    for n, fd in enumerate(high[:-1]):
        os.dup2(fd, n, inheritable=True)
    kept = os.dup2(high[-1], 5, inheritable=False)
    # Whatever the limit is now, it may have been higher when something was opened.
    os.closerange(6, _MOST_DESCRIPTORS)
    return kept


def _limits(place: Place, *, file_size: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # No more than the operator allows, and nobody may raise that here.
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _MAX_OPEN_FILES if allowed == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, allowed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    memory, size = place.memory_mib << 20, file_size << 20
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    # Private memory does not count the first thread's stack.
    most = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = _STACK if most == resource.RLIM_INFINITY else min(_STACK, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))


def _die_with_parent(libc: ctypes.CDLL) -> None:
    parent = os.getppid()
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "die with parent")
    if os.getppid() != parent:
        os._exit(_REFUSED_STATUS)


def _bind_read_only(libc: ctypes.CDLL, source: str, target: str) -> None:
    mount(libc, source, target, "", _MS_BIND)
    inherited = os.statvfs(target).f_flag
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    for seen, bit in _LOCKED:
        if inherited & seen:
            flags |= bit
    mount(libc, "none", target, "", _MS_REMOUNT | _MS_BIND | flags)


def mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError naming the target's last part."""
    result = libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, f"mount {os.path.basename(target) or '/'}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
