"""A hostile author tries to get out: T-19. Real enclaves, both modes, raw system calls."""

# ruff: noqa: E501, RUF005, SIM117

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conclave._framing import FrameReader, PlatformKind, pack
from conclave.bundle import Bundle, unpack
from conclave.client import Client
from conclave.errors import TransportError
from conclave.platform import runtime_tree
from conclave.platform import sandbox as outer
from conclave.platform.tree import bootstrap_command
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = r'''
import asyncio, ctypes, errno, mmap, os, resource, signal, socket, struct, sys, tempfile, threading
from conclave.enclave import Enclave, rpc

libc = ctypes.CDLL(None, use_errno=True)
AT_IMPORT = []
for fd in range(8192):
    try:
        os.fstat(fd)
        AT_IMPORT.append(fd)
    except OSError:
        pass


def name(number):
    return errno.errorcode.get(number, str(number))


def outcome(act):
    """'ok: ...' or the name of the error."""
    try:
        return f"ok: {act()!r}"
    except OSError as error:
        return name(error.errno)
    except BaseException as error:
        return type(error).__name__


def raw(number, *arguments):
    """A system call without any wrapper."""
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return f"ok: {result}" if result >= 0 else name(ctypes.get_errno())


def taken(size, flags):
    """Whether that much memory can be mapped to be written; nothing of it is."""
    libc.syscall.restype = ctypes.c_long
    try:
        at = libc.syscall(9, None, ctypes.c_size_t(size), 3, flags, -1, ctypes.c_long(0))
        if at < 0:
            return name(ctypes.get_errno())
        libc.syscall(11, ctypes.c_void_p(at), ctypes.c_size_t(size))
        return "ok"
    finally:
        libc.syscall.restype = ctypes.c_int


class Prisoner(Enclave):
    @rpc
    def sockets(self) -> dict[str, str]:
        kinds = {
            "inet": (2, 1, 0), "inet6": (10, 1, 0), "udp": (2, 2, 0), "raw": (2, 3, 1), "unix": (1, 1, 0),
            "unix datagram": (1, 2, 0), "netlink": (16, 3, 0), "vsock": (40, 1, 0), "packet": (17, 3, 0),
            "alg": (38, 5, 0), "bluetooth": (31, 5, 3), "xdp": (44, 3, 0),
        }
        found = {k: raw(41, *v) for k, v in kinds.items()}
        found["inet pair"] = raw(53, 2, 1, 0, (ctypes.c_int * 2)())
        a, b = socket.socketpair()
        found["abstract connect"] = outcome(lambda: a.connect("\0conclave-test"))
        found["abstract bind"] = outcome(lambda: a.bind("\0conclave-test"))
        found["path bind"] = outcome(lambda: a.bind("/tmp/s"))
        host = socket.socket(fileno=os.dup(3))
        found["pass a descriptor"] = outcome(lambda: socket.send_fds(host, [b"x"], [0]))
        found["receive a descriptor"] = outcome(lambda: socket.recv_fds(host, 1, 1))
        return found

    @rpc
    def datagrams(self, names: list[str]) -> dict[str, str]:
        found = {}
        for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
            pair = socket.socketpair(socket.AF_UNIX, kind)
            for to in names:
                address = struct.pack("H", 1) + to.encode() + bytes(not to.startswith("\0"))
                found[f"{kind} to {to}"] = raw(44, pair[0].fileno(), b"secret", 6, 0, address, len(address))
                found[f"{kind} to {to}, message"] = outcome(lambda: pair[0].sendmsg([b"secret"], (), 0, to))
        return found

    @rpc
    def socket_options(self) -> dict[str, str]:
        pair = socket.socketpair()
        program = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0xFFFF))
        attach = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(program))
        size, value = ctypes.c_int(12), ctypes.create_string_buffer(12)
        return {
            "attach a filter": raw(54, pair[0].fileno(), 1, 26, attach, len(attach)),
            "attach bpf": raw(54, pair[0].fileno(), 1, 50, struct.pack("<i", 3), 4),
            "pass credentials": raw(54, pair[0].fileno(), 1, 16, struct.pack("<i", 1), 4),
            "force a buffer": raw(54, pair[0].fileno(), 1, 32, struct.pack("<i", 1 << 30), 4),
            "who is the host": raw(55, 3, 1, 17, value, ctypes.byref(size)),
            "a handle of the host": raw(55, 3, 1, 77, value, ctypes.byref(size)),
        }

    @rpc
    def files(self, paths: list[str]) -> dict[str, str]:
        here = {p: outcome(lambda p=p: os.listdir(p) if p.endswith("/") else open(p, "rb").read(1)) for p in paths}
        return here

    @rpc
    def writes(self) -> dict[str, str]:
        bundle, tree = os.getcwd(), os.path.dirname(os.path.dirname(os.path.dirname(os.__file__)))
        temporary = tempfile.gettempdir()
        found = {}
        for where, place in (("bundle", bundle), ("tree", tree), ("app", bundle + "/app")):
            found[f"create in {where}"] = outcome(lambda: open(place + "/new", "wb"))
            found[f"mkdir in {where}"] = outcome(lambda: os.mkdir(place + "/newdir"))
        found["change the manifest"] = outcome(lambda: open(bundle + "/manifest", "r+b"))
        found["delete the manifest"] = outcome(lambda: os.unlink(bundle + "/manifest"))
        found["hard link"] = outcome(lambda: os.link(bundle + "/manifest", temporary + "/link"))
        found["symbolic link"] = outcome(lambda: os.symlink("/etc/passwd", temporary + "/sym"))
        found["device"] = raw(133, (temporary + "/dev").encode(), 0o20666, os.makedev(1, 1))
        found["chmod"] = outcome(lambda: os.chmod(bundle + "/manifest", 0o777))
        found["chown"] = outcome(lambda: os.chown(temporary, 0, 0))
        return found

    @rpc
    def processes(self) -> dict[str, str]:
        found = {
            "fork": outcome(os.fork), "vfork": raw(58), "clone": raw(56, 17, 0, 0, 0, 0),
            "clone a namespace": raw(56, 0x10000000 | 17, 0, 0, 0, 0), "clone3": raw(435, bytes(88), 88),
            "a thread in a namespace": raw(56, 0x10000000 | 0x10900, 0, 0, 0, 0),
            "exec": outcome(lambda: os.execv(sys.executable, ["x"])),
            "execveat": raw(322, -100, b"/runtime/bin/python3", None, None, 0),
            "spawn": outcome(lambda: os.posix_spawn(sys.executable, ["x"], {})),
            "kill 1": raw(62, 1, 0), "kill parent": raw(62, os.getppid(), 0), "kill all": raw(62, -1, 0),
            "tkill": raw(200, 1, 0), "tgkill another": raw(234, os.getpid() + 1, os.getpid() + 1, 0),
            "ptrace me": raw(101, 0, 0, 0, 0), "ptrace attach": raw(101, 16, os.getppid() or 2, 0, 0),
            "process_vm_readv": raw(310, os.getppid() or 1, None, 0, None, 0, 0),
            "process_vm_writev": raw(311, os.getppid() or 1, None, 0, None, 0, 0),
            "pidfd_open": raw(434, os.getpid(), 0), "pidfd_getfd": raw(438, 3, 0, 0), "kcmp": raw(312, 1, 1, 0, 0, 0),
            "wait": raw(61, -1, None, 0, None), "setsid": raw(112), "prctl dumpable": raw(157, 4, 1, 0, 0, 0),
            "prctl ptracer": raw(157, 0x59616D61, -1, 0, 0, 0), "personality": raw(135, 0xFFFFFFFF),
            "setpriority": raw(141, 0, 0, -20), "fcntl owner": raw(72, 3, 8, os.getppid()),
        }
        return found

    @rpc
    def kernel(self) -> dict[str, str]:
        return {
            "unshare": raw(272, 0x10000000), "setns": raw(308, 3, 0), "mount": raw(165, b"none", b"/tmp", b"tmpfs", 0, None),
            "umount": raw(166, b"/tmp", 0), "pivot_root": raw(155, b".", b"."), "chroot": raw(161, b"/tmp"),
            "open_tree": raw(428, -100, b"/", 1), "fsopen": raw(430, b"tmpfs", 0), "mount_setattr": raw(442, -100, b"/", 0, 0, 0),
            "io_uring": raw(425, 1, bytes(120)), "bpf": raw(321, 0, bytes(64), 64), "perf": raw(298, bytes(112), 0, -1, -1, 0),
            "keyctl": raw(250, 0, -3, 0), "add_key": raw(248, b"user", b"x", b"y", 1, -3), "userfaultfd": raw(323, 0),
            "memfd": raw(319, b"x", 0), "memfd_secret": raw(447, 0), "init_module": raw(175, None, 0, b""),
            "kexec": raw(246, 0, 0, None, 0), "reboot": raw(169, 0, 0, 0, None), "syslog": raw(103, 3, None, 0),
            "acct": raw(163, None), "quotactl": raw(179, 0, None, 0, None), "seccomp": raw(317, 0, 0, None),
            "landlock": raw(444, None, 0, 1), "sethostname": raw(170, b"x", 1), "settimeofday": raw(164, None, None),
            "clock_settime": raw(227, 0, bytes(16)), "iopl": raw(172, 3), "setuid": raw(105, 0), "setgroups": raw(116, 0, None),
            "capset": raw(126, bytes(8), bytes(24)), "shmget": raw(29, 0, 4096, 0o1600), "msgget": raw(68, 0, 0o1600),
            "mq_open": raw(240, b"/x", 64, 0o600, None), "inotify": raw(253), "fanotify": raw(300, 0, 0),
            "name_to_handle": raw(303, -100, b"/", None, None, 0), "open_by_handle": raw(304, 3, None, 0),
            "swapon": raw(167, b"x", 0), "modify_ldt": raw(154, 0, None, 0), "vmsplice": raw(278, 3, None, 0, 0),
            "ioctl TIOCSTI": raw(16, 0, 0x5412, b"x"), "ioctl SIOCGIFCONF": raw(16, 3, 0x8912, bytes(16)),
            "remap_file_pages": raw(216, 0, 0, 0, 0, 0), "pkey_mprotect": raw(329, 0, 4096, 7, -1), "open": raw(2, b"/etc/passwd", 0),
        }

    @rpc
    def executable_memory(self) -> dict[str, str]:
        W, X, R, PRIVATE, ANON = mmap.PROT_WRITE, mmap.PROT_EXEC, mmap.PROT_READ, mmap.MAP_PRIVATE, mmap.MAP_ANON
        page = raw(9, None, 4096, R | W, PRIVATE | ANON, -1, 0)
        keep = mmap.mmap(-1, 4096, flags=PRIVATE | ANON)
        address = ctypes.addressof(ctypes.c_char.from_buffer(keep))
        libc.syscall.restype = ctypes.c_long
        path = tempfile.gettempdir() + "/code"
        with open(path, "wb") as file:
            file.write(bytes(4096))
        handle = os.open(path, os.O_RDWR)
        found = {
            "anonymous rwx": outcome(lambda: mmap.mmap(-1, 4096, flags=PRIVATE | ANON, prot=R | W | X)),
            "anonymous rx": outcome(lambda: mmap.mmap(-1, 4096, flags=PRIVATE | ANON, prot=R | X)),
            "mprotect rx": raw(10, ctypes.c_void_p(address & ~4095), ctypes.c_size_t(4096), R | X),
            "mprotect rwx": raw(10, ctypes.c_void_p(address & ~4095), ctypes.c_size_t(4096), R | W | X),
            "file rwx": outcome(lambda: mmap.mmap(handle, 4096, flags=PRIVATE, prot=R | W | X)),
            "written file rx": outcome(lambda: mmap.mmap(handle, 4096, flags=PRIVATE, prot=R | X).close()),
        }
        libc.syscall.restype = ctypes.c_int
        return found

    @rpc
    def identity(self) -> dict[str, str]:
        return {
            "uid": str(os.getuid()), "pid": str(os.getpid()), "host": os.uname().nodename,
            "environment": repr(sorted(os.environ.items())), "arguments": repr(sys.argv), "fds": repr(AT_IMPORT),
            "mounts": outcome(lambda: [os.statvfs(p).f_flag & 15 for p in ("/runtime", "/bundle", "/tmp")]),
            "cwd": os.getcwd(), "groups": outcome(os.getgroups), "temporary": tempfile.gettempdir(),
        }

    @rpc
    def limits(self) -> dict[str, str]:
        def raise_it(kind):
            return raw(302, 0, kind, struct.pack("<QQ", 2**64 - 1, 2**64 - 1), None)

        def fill():
            with open(tempfile.gettempdir() + "/big", "wb") as file:
                for _ in range(128):
                    file.write(bytes(1 << 20))

        found = {
            "raise data": raise_it(resource.RLIMIT_DATA), "raise files": raise_it(resource.RLIMIT_NOFILE),
            "keep": raw(302, 0, resource.RLIMIT_NOFILE, struct.pack("<QQ", 256, 256), None),
            "of another": raw(302, os.getppid() or 2, resource.RLIMIT_NOFILE, None, ctypes.create_string_buffer(16)),
            "setrlimit": raw(160, resource.RLIMIT_NOFILE, struct.pack("<QQ", 1, 1)),
            "read": str(resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20),
            "stack": str(resource.getrlimit(resource.RLIMIT_STACK)),
            "memory": outcome(lambda: len(bytearray(4 << 30))),
            "private memory": taken(4 << 30, 0x22), "shared memory": taken(4 << 30, 0x21),
            "shared memory, little": taken(4096, 0x21), "shared memory, validated": taken(4096, 0x23),
            "growing memory": taken(4 << 30, 0x122), "growing memory, little": taken(4096, 0x122),
            "little memory": taken(1 << 20, 0x22),
            "many descriptors": outcome(lambda: [os.dup(0) for _ in range(10000)]),
        }
        for number in range(6, 256):
            try:
                os.close(number) if os.fstat(number).st_ino == os.fstat(0).st_ino else None
            except OSError:
                pass
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        found["temporary"] = outcome(fill)
        os.unlink(tempfile.gettempdir() + "/big")
        return found

    @rpc
    def useful(self) -> dict[str, str]:
        def thread():
            done = []
            worker = threading.Thread(target=lambda: done.append(1))
            worker.start()
            worker.join()
            return done

        def callback():
            kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            seen = []
            values = (ctypes.c_int * 3)(3, 1, 2)
            libc.qsort(values, 3, 4, kind(lambda a, b: seen.append(1) or 0))
            return bool(seen)

        def file():
            with tempfile.NamedTemporaryFile() as made:
                made.write(b"x")
                made.flush()
                return open(made.name, "rb").read()

        def lazy():
            import decimal, json.tool, sqlite3, wave
            return sqlite3.connect(":memory:").execute("select 1").fetchone()

        def loop():
            made = asyncio.new_event_loop()
            made.close()

        def ended():
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(4) as pool:
                return sum(pool.map(int, range(10)))

        return {f.__name__: outcome(f) for f in (thread, callback, file, lazy, loop, ended)}

    @rpc(retry=False)
    def x32(self) -> str:
        return raw(0x40000000 + 39)
'''

MODES = ("namespaces", "landlock")


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("prisoner", SOURCE)


def refused_by_kernel(mode: str) -> str | None:
    """Why this machine cannot run a mode; asked of the kernel itself."""
    if mode != "namespaces":
        return None
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import ctypes; raise SystemExit(ctypes.CDLL(None).unshare({outer._NEW_NAMESPACES}) != 0)",
        ],
        check=False,
    )
    return "the kernel refuses user namespaces here" if done.returncode else None


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    why = refused_by_kernel(request.param)
    if why:
        pytest.skip(why)
    return str(request.param)


@pytest.fixture(scope="module")
def server(serve: Callable[..., HostServer], bundle: Bundle, mode: str) -> Iterator[HostServer]:
    with serve(bundle, sandbox=mode) as running:
        assert running.host.launched["sandbox"] == mode
        yield running


@pytest.fixture(scope="module")
def inside(server: HostServer, bundle: Bundle, only: Callable[[Bundle], str], mode: str) -> Iterator[Client]:
    with Client(server.url, constraint=only(bundle)) as client:
        # The client sees which sandbox it gets.
        assert client.verify().claims.sandbox == mode
        yield client


DENIED = {"EPERM", "EACCES", "ENOENT", "EROFS", "ENOSYS", "PermissionError"}


def all_denied(found: dict[str, str], also: dict[str, set[str]] | None = None) -> None:
    wrong = {k: v for k, v in found.items() if v not in DENIED | (also or {}).get(k, set())}
    assert not wrong


@pytest.mark.spec("T-19", "BOX-2")
def test_sockets(inside: Client) -> None:
    found = inside.call("sockets")
    assert len(found) == 18
    all_denied(found)


@pytest.mark.spec("T-19", "BOX-2")
def test_nothing_goes_to_a_socket_that_has_a_name(inside: Client, tmp_path: Path) -> None:
    """A datagram pair is no way out to the sockets of the machine's services."""
    abstract = f"\0conclave-test-{os.getpid()}"
    names = [str(tmp_path / "service"), abstract]
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in names]
        for service, to in zip(services, names, strict=True):
            service.bind(to)
            service.setblocking(False)
        found = inside.call("datagrams", names)
        for service in services:
            with pytest.raises(BlockingIOError):
                service.recv(100)
    assert len(found) == 12
    assert set(found.values()) == {"EPERM"}


@pytest.mark.spec("T-19", "BOX-2")
def test_socket_options(inside: Client) -> None:
    assert set(inside.call("socket_options").values()) == {"EPERM"}


@pytest.mark.spec("T-19", "BOX-1")
def test_files(inside: Client, mode: str, machine: Path) -> None:
    places = ["/etc/passwd", "/etc/", "/proc/self/status", "/proc/", "/proc/1/environ", "/sys/", "/dev/mem", "/root/"]
    places += [
        "/home/",
        "/var/",
        __file__,
        f"{machine}/",
        f"{machine}/machine/settings.json",
        "/dev/null",
        "../../",
        "/tmp/../etc/",
    ]
    found = inside.call("files", places)
    if mode == "namespaces":
        # What is left of the parent is the tree itself: nothing of the host.
        assert found.pop("../../").startswith("ok: [")
    all_denied(found)


@pytest.mark.spec("T-19", "BOX-1")
def test_writes(inside: Client) -> None:
    all_denied(inside.call("writes"))


@pytest.mark.spec("T-19", "BOX-3")
def test_processes(inside: Client) -> None:
    found = inside.call("processes")
    assert len(found) == 28
    all_denied(found)


@pytest.mark.spec("T-19", "BOX-3")
def test_kernel(inside: Client) -> None:
    all_denied(inside.call("kernel"))


@pytest.mark.spec("T-19", "BOX-4")
def test_executable_memory(inside: Client, mode: str) -> None:
    found = inside.call("executable_memory")
    if mode == "landlock":
        # The temporary directory is an ordinary one there: a known difference (SECURITY.md).
        found.pop("written file rx")
    all_denied(found)


@pytest.mark.spec("T-19", "T-11", "BOX-3", "BOOT-2")
def test_identity(inside: Client, mode: str) -> None:
    found = inside.call("identity")
    assert found["environment"] == repr(
        sorted(
            [("LC_ALL", "C.UTF-8"), ("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1")]
            + ([("TMPDIR", found["temporary"])] if mode == "landlock" else [])
        )
    )
    assert found["fds"] == "[0, 1, 2, 3, 4]"
    if mode == "namespaces":
        assert (found["uid"], found["pid"], found["host"]) == ("65534", "1", "enclave")
        assert found["cwd"] == "/bundle"
        # Read-only, no set-user-ID, no devices; only the last is written, and nothing in it executed.
        assert found["mounts"] == "ok: [7, 7, 14]"
        assert found["arguments"] == "['/runtime/bootstrap.py']"


def descendants(pid: int) -> list[int]:
    """A process' children and theirs, in the order of their birth."""
    found = []
    for status in sorted(Path("/proc").glob("[0-9]*/status"), key=lambda p: int(p.parent.name)):
        with contextlib.suppress(OSError):
            if facts(status)["PPid"] == str(pid):
                found.append(int(status.parent.name))
    return [d for child in found for d in (child, *descendants(child))]


def facts(status: Path) -> dict[str, str]:
    return {k: v.strip() for k, _, v in (line.partition(":") for line in status.read_text().splitlines())}


@pytest.mark.spec("T-19", "BOX-3")
def test_privileges_seen_from_outside(server: HostServer, inside: Client) -> None:
    """Root or not: the kernel itself says that nothing is left and nothing can be regained."""
    inside.verify()
    assert server.host._process is not None
    found = facts(Path(f"/proc/{descendants(server.host._process.pid)[-1]}/status"))
    assert {found[c] for c in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


@pytest.mark.spec("T-19", "BOX-5")
def test_limits(inside: Client) -> None:
    found = inside.call("limits")
    assert found.pop("stack") == str((8 << 20, 8 << 20))
    assert found.pop("private memory") == "ENOMEM"
    assert found.pop("little memory") == "ok"
    assert found.pop("read") == "2048"
    assert found.pop("memory") == "MemoryError"
    assert found.pop("many descriptors") == "EMFILE"
    assert found.pop("temporary") in ("ENOSPC", "EFBIG")
    all_denied(found)


def test_what_authors_need_works(inside: Client) -> None:
    found = inside.call("useful")
    assert found == {
        "thread": "ok: [1]",
        "callback": "ok: True",
        "file": "ok: b'x'",
        "lazy": "ok: (1,)",
        "loop": "ok: None",
        "ended": "ok: 45",
    }


@pytest.mark.spec("T-19", "BOX-3")
def test_calls_of_another_table_end_the_enclave(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str], mode: str
) -> None:
    with serve(bundle, sandbox=mode) as server, Client(server.url, constraint=only(bundle), attempts=1) as client:
        with pytest.raises(TransportError, match="ended"):
            client.call("x32", retry=False)


@pytest.mark.spec("BOX-6")
def test_the_enclave_ends_with_its_platform(
    serve: Callable[..., HostServer], bundle: Bundle, only: Callable[[Bundle], str], mode: str
) -> None:
    with serve(bundle, sandbox=mode) as server, Client(server.url, constraint=only(bundle), attempts=1) as client:
        client.verify()
        process = server.host._process
        assert process is not None
        enclave = os.pidfd_open(descendants(process.pid)[-1])
        try:
            process.kill()
            process.wait()
            ended, _, _ = select.select([enclave], [], [], 30)
            assert ended == [enclave]
        finally:
            os.close(enclave)
        with pytest.raises(TransportError):
            client.call("identity")


@contextmanager
def started_by_hand(
    tree: Path, bundle: Path, mode: str, user: int, numbers: str
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """The outer half, run by the tree's own interpreter as some user; gives the platform's end."""
    program = tree.parent / "outer.py"
    shutil.copyfile(outer.__file__, program)
    start = textwrap.dedent(
        """
        import os, resource, runpy, sys
        made = runpy.run_path(sys.argv[1], run_name="outer")
        mode, root, bundle, platform = sys.argv[2:6]
        place = made["Place"](root, tuple(sys.argv[7:]), bundle, 1024, 16)
        nothing, _ = os.pipe()
        # What a busy host has open, and where: none of it may get in.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for number in (7, 9, min(hard, 6000) - 1):
            os.dup2(0, number, inheritable=True)
        for number in (6, 8, 200, 203):
            os.dup2(int(platform), number, inheritable=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        child = made["launch"](place, mode, (nothing, 2, 2, *map(int, sys.argv[6].split(","))))
        os.waitpid(child, 0)
        """
    )
    ours, theirs = socket.socketpair()
    command = bootstrap_command(str(tree))[:4]
    process = subprocess.Popen(
        [*command, "-I", "-S", "-c", start, str(program), mode, str(tree), str(bundle)]
        + [str(theirs.fileno()), numbers, *bootstrap_command(outer.ROOT)],
        env={"LC_ALL": "C.UTF-8"},
        pass_fds=(theirs.fileno(),),
        user=user,
        group=user,
        extra_groups=[],
    )
    theirs.close()
    ours.settimeout(30)
    try:
        yield ours, process
    finally:
        ours.close()
        process.wait(30)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("user", "numbers"), [(0, "6,8"), (65534, "203,200")])
@pytest.mark.spec("T-19", "BOOT-1", "BOOT-3")
def test_as_root_and_as_nobody(bundle: Bundle, mode: str, user: int, numbers: str) -> None:
    """The bootstrap comes up, closes the sandbox and asks the platform who it is."""
    why = refused_by_kernel(mode)
    if why:
        pytest.skip(why)
    # Not below pytest's own directories: those only their owner may pass through.
    place = Path(tempfile.mkdtemp(prefix="conclave-nobody-"))
    place.chmod(0o755)
    try:
        tree = place / "root"
        shutil.copytree(runtime_tree().root, tree, symlinks=True)
        unpack(bundle, place / "bundle")
        (place / "tmp").mkdir(mode=0o777)
        os.chmod(place / "tmp", 0o777)
        with started_by_hand(tree, place / "bundle", mode, user, numbers) as (channel, process):
            reader = FrameReader(PlatformKind)
            (frame,) = reader.feed(channel.recv(4096))
            assert frame.kind == PlatformKind.IDENTITY
            enclave = Path(f"/proc/{descendants(process.pid)[-1]}")
            assert {int(name) for name in os.listdir(enclave / "fd")} == {0, 1, 2, 3, 4}
            assert facts(enclave / "status")["CapEff"] == "0" * 16
            channel.sendall(pack(PlatformKind.REFUSED, frame.request, b"enough"))
    finally:
        shutil.rmtree(place)
