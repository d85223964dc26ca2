"""The inner half of the sandbox: Landlock, then a seccomp allow-list.

Runs inside the enclave, before author code. What it forbids is forbidden for
good: no files outside tree, bundle and `/tmp`, no sockets beyond what is open, no
processes, no memory that is writable and executable. x86-64 only.

Spec: spec/host-channel.md section 5 (BOX-1 to BOX-6). Sources: landlock(7),
linux/landlock.h, linux/seccomp.h, the x86-64 system call table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPSET: Final = 126
_CAPABILITY_VERSION: Final = 0x20080522
_CLOSE_RANGE: Final = 436
_AFTER_OURS: Final = 5
_SECCOMP: Final = 317
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
_LANDLOCK_CREATE: Final = 444
_LANDLOCK_ADD: Final = 445
_LANDLOCK_RESTRICT: Final = 446

# struct statfs begins with the type of the file system (linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC).
_STATFS_SIZE: Final = 256
_MEMORY: Final = (0x01021994, 0x858458F6)

# Landlock rights by the ABI version that brought them (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FS_ABI1: Final = (1 << 13) - 1
_FS_BY_ABI: Final = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_ABI4: Final = 3
_SCOPE_ABI6: Final = 3
_READ_ONLY: Final = _READ_FILE | _READ_DIR
# Truncate (ABI 3) and device ioctl (ABI 5) included when handled; no devices, no execution.
_TEMPORARY: Final = _READ_ONLY | _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | 1 << 14

# Entries of configfs: made, written, read and taken away.
_DEVICE: Final = _READ_ONLY | _WRITE_FILE | 1 << 4 | 1 << 7 | 1 << 14


def close(trees: Sequence[str], *, bundle: str, temporary: str, devices: Sequence[str] = ()) -> str:
    """Close the sandbox around the calling process, all its threads included.

    Args:
        trees: the runtime tree, or what of it may be read; read-only.
        bundle: the unpacked bundle; read-only.
        temporary: the one directory that may be written.
        devices: on hardware, directories by which the TEE is asked; entries are made in them.

    Returns:
        `landlock`, or `none` where the kernel has none and the TEE alone isolates.

    Raises:
        OSError: the kernel refuses; nothing may run then.
    """
    _make_closures()
    # Whatever got past the bootstrap's look at the descriptors ends here.
    _libc.syscall(_CLOSE_RANGE, _AFTER_OURS, 0xFFFFFFFF, 0)
    # Without a user namespace, root would keep its privileges behind the list of calls.
    header, none = struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _check(_libc.syscall(_CAPSET, header, none), "no capabilities")
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    # With a root of its own, namespaces carry the guarantee and Landlock doubles it; on
    # hardware, the TEE does. Elsewhere Landlock is all there is.
    places = {**dict.fromkeys((*trees, bundle), _READ_ONLY), temporary: _TEMPORARY, **dict.fromkeys(devices, _DEVICE)}
    confined = _landlock(places, required=not devices and list(trees) != ["/"])
    _seccomp()
    return "landlock" if confined else "none"


def _make_closures() -> None:
    """Let libffi map its trampolines now: later, writable code is refused."""
    kind = ctypes.CFUNCTYPE(None)
    made = [kind(lambda: None) for _ in range(200)]
    made.clear()


def in_memory(place: str) -> bool:
    """Whether a directory lies in this machine's own memory: tmpfs, or the initial file system."""
    found = ctypes.create_string_buffer(_STATFS_SIZE)
    _check(_libc.statfs(os.fsencode(place), found), "statfs")
    return int.from_bytes(found.raw[:8], "little") in _MEMORY


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# Landlock ----------------------------------------------------------------------------


def _landlock(places: Mapping[str, int], *, required: bool) -> bool:
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 2:
        if required:
            raise OSError(errno.ENOSYS, "Landlock ABI 2 is needed where there are no namespaces")
        return False
    handled = _FS_ABI1 | sum(right for since, right in _FS_BY_ABI.items() if since <= abi)
    attributes = struct.pack("<Q", handled)
    if abi >= 4:
        attributes += struct.pack("<Q", _NET_ABI4)
    if abi >= 6:
        attributes += struct.pack("<Q", _SCOPE_ABI6)
    rules = _check(_libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0), "Landlock ruleset")
    try:
        for place, rights in places.items():
            parent = os.open(place, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("<Qi", rights & handled, parent)
                _check(_libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), "Landlock rule")
            finally:
                os.close(parent)
        _check(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "Landlock")
    finally:
        os.close(rules)
    return True


# seccomp -----------------------------------------------------------------------------

_ARCH_X86_64: Final = 0xC000003E
_X32_BIT: Final = 0x40000000
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_LOAD: Final = 0x20
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_ANY_BIT: Final = 0x45
_MASK: Final = 0x54
_RETURN: Final = 0x06

_ALLOWED: Final = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32,
    "nanosleep": 35, "getpid": 39, "recvfrom": 45, "shutdown": 48, "getsockname": 51, "getpeername": 52, "exit": 60,
    "uname": 63, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getcwd": 79, "rename": 82, "mkdir": 83, "rmdir": 84,
    "unlink": 87, "readlink": 89, "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99,
    "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131,
    "statfs": 137, "fstatfs": 138, "gettid": 186, "futex": 202, "sched_getaffinity": 204, "getdents64": 217,
    "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
    "epoll_wait": 232, "epoll_ctl": 233, "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263,
    "renameat": 264, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273,
    "epoll_pwait": 281, "fallocate": 285, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_MMAP, _MPROTECT, _IOCTL, _SOCKETPAIR, _CLONE, _FCNTL, _PRCTL, _TGKILL = 9, 10, 16, 53, 56, 72, 157, 234
_PRLIMIT64, _CLONE3, _SENDTO, _SETSOCKOPT, _GETSOCKOPT = 302, 435, 44, 54, 55
_PROT_WRITE, _PROT_EXEC = 2, 4
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 1, 0x20, 0x100
_CLONE_THREAD: Final = 0x10000
_CLONE_NEW: Final = 0x7E020000
_AF_UNIX: Final = 1
_PR_SET_NAME: Final = 15
_IOCTLS: Final = (0x5401, 0x5421, 0x5450, 0x5451)  # TCGETS FIONBIO FIONCLEX FIOCLEX
# Type, error, buffer sizes, timeouts, protocol and domain: no filter programs, nothing that
# names the peer's process or gives a descriptor of it.
_SOCKET_OPTIONS: Final = (2, 3, 4, 7, 8, 9, 13, 20, 21, 30, 38, 39)
# Duplicate, flags and record locks: nothing that sends signals or leases.
_FCNTLS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, k)


def _argument(index: int, *, high: bool = False) -> bytes:
    return _op(_LOAD, 16 + 8 * index + (4 if high else 0))


def _refuse(code: int) -> bytes:
    return _op(_RETURN, 0x00050000 | code)


_GO: Final = _op(_RETURN, _ALLOW)
_NO: Final = _refuse(errno.EPERM)


def _on(number: int, body: bytes) -> bytes:
    """Run `body`, which always returns, if the system call has this number."""
    return _op(_EQUAL, number, 0, len(body) // 8) + body


def _one_of(index: int, values: tuple[int, ...]) -> bytes:
    """Allow if an argument is one of the values."""
    last = len(values)
    jumps = b"".join(_op(_EQUAL, value, last - at, 0) for at, value in enumerate(values))
    return _argument(index) + jumps + _NO + _GO


def _any_bit(index: int, bits: int, *, then: bytes, otherwise: bytes) -> bytes:
    return _argument(index) + _op(_ANY_BIT, bits, 0, len(then) // 8) + then + otherwise


def _all_bits(index: int, bits: int, *, then: bytes, otherwise: bytes) -> bytes:
    return _argument(index) + _op(_MASK, bits) + _op(_EQUAL, bits, 0, len(then) // 8) + then + otherwise


def _is_null(index: int) -> bytes:
    """Allow if a pointer is null, both halves of it."""
    low, high = _op(_EQUAL, 0, 0, 2), _op(_EQUAL, 0, 1, 0)
    return _argument(index) + low + _argument(index, high=True) + high + _NO + _GO


def filter_program(pid: int) -> bytes:
    """The seccomp program: struct sock_filter, 8 bytes each.

    Args:
        pid: the one process that may be signalled, so that abort() works.
    """
    number = _op(_LOAD, 0)
    mapped_from_memory = _any_bit(3, _MAP_ANONYMOUS, then=_NO, otherwise=_GO)
    executable = _any_bit(2, _PROT_WRITE, then=_NO, otherwise=mapped_from_memory)
    written = _any_bit(2, _PROT_EXEC, then=executable, otherwise=_GO)
    # Memory that the limit of private memory does not count: shared, or growing down.
    shared = _all_bits(3, _MAP_SHARED | _MAP_ANONYMOUS, then=_NO, otherwise=written)
    thread = _any_bit(0, _CLONE_THREAD, then=_GO, otherwise=_NO)
    head = _op(_LOAD, 4) + _op(_EQUAL, _ARCH_X86_64, 1, 0) + _op(_RETURN, _KILL)
    head += number + _op(_AT_LEAST, _X32_BIT, 0, 1) + _op(_RETURN, _KILL)
    # The busiest calls first; every other allowed one jumps to the end.
    special = b"".join(
        (
            # Code comes from files of the tree or bundle, never from memory.
            _on(_MPROTECT, _any_bit(2, _PROT_EXEC, then=_NO, otherwise=_GO)),
            _on(_MMAP, _any_bit(3, _MAP_GROWSDOWN, then=_NO, otherwise=shared)),
            # A datagram pair would send to any socket that has a name.
            _on(_SENDTO, _is_null(4)),
            _on(_CLONE, _any_bit(0, _CLONE_NEW, then=_NO, otherwise=thread)),
            # glibc falls back to clone, whose flags a filter can see.
            _on(_CLONE3, _refuse(errno.ENOSYS)),
            _on(_IOCTL, _one_of(1, _IOCTLS)),
            _on(_FCNTL, _one_of(1, _FCNTLS)),
            _on(_SOCKETPAIR, _one_of(0, (_AF_UNIX,))),
            _on(_SETSOCKOPT, _one_of(2, _SOCKET_OPTIONS)),
            _on(_GETSOCKOPT, _one_of(2, _SOCKET_OPTIONS)),
            _on(_PRCTL, _one_of(0, (_PR_SET_NAME,))),
            _on(_TGKILL, _one_of(0, (pid,))),
            # Reading one's own limits: pid 0, no new value.
            _on(_PRLIMIT64, _argument(0) + _op(_EQUAL, 0, 1, 0) + _NO + _is_null(2)),
        )
    )  # fmt: skip
    numbers = sorted(_ALLOWED.values())
    listed = b"".join(_op(_EQUAL, n, len(numbers) - at, 0) for at, n in enumerate(numbers))
    return head + number + special + listed + _NO + _GO


def _seccomp() -> None:
    program = filter_program(os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    result = _libc.syscall(_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, header)
    _check(result, "seccomp")
    if result != 0:
        raise OSError(errno.EPERM, "seccomp: a thread could not be confined")
