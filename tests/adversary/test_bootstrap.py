"""An operator who starts the enclave with something nobody measured: T-11, T-12, T-22."""

# ruff: noqa: E501

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import resource
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from conclave import _codec, _crypto
from conclave._crypto import SigningKey
from conclave._framing import FrameReader, Kind, PlatformKind, pack
from conclave.bundle import Bundle, build, read_bundle, unpack
from conclave.bundle.archive import write_archive
from conclave.bundle.manifest import FileEntry
from conclave.bundle.wheels import members
from conclave.errors import BundleError, PlatformError
from conclave.host import Host
from conclave.platform import bootstrap_command, runtime_tree, start_platform
from conclave.testing import HostServer

pytestmark = pytest.mark.slow

SOURCE = """
import os
from conclave.enclave import Enclave, rpc

os.write(1, b"AUTHOR CODE RAN")

class Small(Enclave):
    @rpc
    def ping(self) -> str:
        return "pong"
"""
MEASURED = {"LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("small", SOURCE)


def start(command: list[str], *, environment: dict[str, str] = MEASURED, **options: object) -> tuple[int, str]:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )
    return done.returncode, done.stderr


@pytest.mark.spec("T-11", "BOOT-1")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXTRA", "1"),
        ("PYTHONPATH", "."),
        ("PYTHONHOME", "x"),
        ("LD_PRELOAD", ""),
        ("LANG", "C"),
        ("OMP_NUM_THREADS", "4"),
    ],
)
def test_an_extra_environment_variable_by_hand(name: str, value: str) -> None:
    status, said = start(bootstrap_command(str(runtime_tree().root)), environment={**MEASURED, name: value})
    assert status == 78
    assert f"environment variables that are not measured are set: {name}" in said


@pytest.mark.spec("T-11", "BOOT-1")
def test_other_unmeasured_input_by_hand(tmp_path: Path) -> None:
    command = bootstrap_command(str(runtime_tree().root))
    python, bootstrap = command[3], command[-1]
    loader = command[:3]
    for changed, why in (
        ([*command, "argument"], "takes none"),
        ([*loader, python, "-I", bootstrap], "takes none"),
        ([*loader, python, "-S", "-I", bootstrap], "takes none"),
        ([*loader, python, "-I", "-S", "-X", "dev", bootstrap], "takes none"),
        ([*loader, python, "-I", "-S", "-i", bootstrap], "takes none"),
        ([*loader, python, "-IS", bootstrap], "takes none"),
        (
            [*loader, python, "-I", "-S", "-c", f"import runpy; runpy.run_path({bootstrap!r}, run_name='__main__')"],
            "takes none",
        ),
    ):
        status, said = start(changed, stdin=subprocess.DEVNULL)
        assert (status, why in said) == (78, True), (changed, said)
    for environment in ({}, {"LC_ALL": "C"}):
        status, said = start(command, environment=environment)
        assert status == 78
        assert "LC_ALL" in said or "LC_CTYPE" in said
    extra = os.open("/dev/null", os.O_RDONLY)
    status, said = start(command, pass_fds=(extra,))
    os.close(extra)
    assert (status, "open descriptors are [0, 1, 2" in said) == (78, True)


@pytest.mark.spec("T-11", "BOOT-1")
@pytest.mark.parametrize("entry", [b"no variable", b"LC_ALL=C.UTF-8", b"LC_ALL=C", b""])
def test_what_python_does_not_show_of_the_environment(entry: bytes) -> None:
    command = bootstrap_command(str(runtime_tree().root))
    raw = (
        "import ctypes, sys; array = lambda a: (ctypes.c_char_p * (len(a) + 1))(*a, None);"
        "words = [w.encode() for w in sys.argv[2:]];"
        "ctypes.CDLL(None).execve(words[0], array(words), array([b'LC_ALL=C.UTF-8', bytes.fromhex(sys.argv[1])]))"
    )
    status, said = start([*command[:4], "-I", "-S", "-c", raw, entry.hex(), *command])
    assert (status, "the environment holds more than its variables" in said) == (78, True), said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to look into a process that is not dumpable")
@pytest.mark.spec("T-11", "BOOT-1")
def test_a_descriptor_beyond_those_that_are_looked_at(place: Path, bundle: Bundle) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        high = fcntl.fcntl(0, fcntl.F_DUPFD, 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        with fake_platform(place, bundle.bundle_id, high) as (_, process):
            # The platform was asked, so the sandbox is closed.
            assert {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")} >= {0, 1, 2, 3, 4}
            assert not os.path.lexists(f"/proc/{process.pid}/fd/{high}")
    finally:
        os.close(high)


@pytest.mark.spec("T-11", "BOOT-1")
def test_through_the_launcher(machine: Path, bundle: Bundle) -> None:
    host = Host(
        lambda: start_platform(machine, bundle.path, environment=("LD_PRELOAD=/x.so", "SECRET=hunter2")), restart=False
    )
    with pytest.raises(PlatformError, match="LD_PRELOAD, SECRET") as refused, HostServer(host):
        pass
    assert "hunter2" not in str(refused.value)


@contextmanager
def fake_platform(place: Path, bundle_id: bytes, *more: int) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """The measured bootstrap, told by a platform of our own which bundle it is."""
    host, host_end = socket.socketpair()
    platform, platform_end = socket.socketpair()
    start_with = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.closerange(5, 200);"
        "os.set_inheritable(3, True); os.set_inheritable(4, True); os.execve(sys.argv[3], sys.argv[3:], {'LC_ALL': 'C.UTF-8'})"
    )
    command = bootstrap_command(str(runtime_tree().root))
    for end, number in ((host_end, 100), (platform_end, 101)):
        os.dup2(end.fileno(), number)
    process = subprocess.Popen(
        [*command[:4], "-I", "-S", "-c", start_with, "100", "101", *command],
        env=MEASURED,
        cwd=place / "bundle",
        pass_fds=(100, 101, *more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for number in (100, 101):
        os.close(number)
    host_end.close()
    platform_end.close()
    host.settimeout(60)
    platform.settimeout(60)
    try:
        # A manifest that does not parse is refused before the TEE is asked.
        for asked in FrameReader(PlatformKind).feed(platform.recv(4096)):
            assert asked.kind == PlatformKind.IDENTITY
            facts = {"tee": "simulated", "bundle_id": bundle_id, "sandbox": "landlock"}
            platform.sendall(pack(PlatformKind.IDENTITY_IS, asked.request, _codec.encode(facts)))
        yield host, process
    finally:
        host.close()
        platform.close()
        process.kill()
        process.wait()


def refused_start(place: Path, bundle_id: bytes) -> str:
    with fake_platform(place, bundle_id) as (host, process):
        (frame,) = FrameReader(Kind).feed(host.recv(65536))
        assert frame.kind == Kind.FAILED
        assert process.wait(60) == 78
        assert process.stdout is not None
        assert b"AUTHOR CODE RAN" not in process.stdout.read()
        return frame.payload.decode()


@pytest.fixture
def place(bundle: Bundle, tmp_path: Path) -> Path:
    unpack(bundle, tmp_path / "bundle")
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.spec("T-12", "CLM-2")
def test_another_bundle_than_the_tee_names(place: Path) -> None:
    assert "the TEE names another bundle" in refused_start(place, bytes(32))


@pytest.mark.spec("T-12", "CLM-2")
def test_a_changed_manifest_is_another_bundle(place: Path, bundle: Bundle) -> None:
    manifest = place / "bundle" / "manifest"
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b"\xa7release\xa10", b"\xa7release\xa11"))
    assert manifest.read_bytes() != data
    assert "the TEE names another bundle" in refused_start(place, bundle.bundle_id)
    manifest.write_bytes(data[:-1])
    assert "manifest" in refused_start(place, bundle.bundle_id)


@pytest.mark.spec("T-11", "T-12", "BOOT-1")
@pytest.mark.parametrize(
    "path",
    ["app/sitecustomize.py", "site/usercustomize.py", "app/x.pth", "extra", "app/__pycache__/os.cpython-311.pyc"],
)
def test_a_file_that_the_manifest_does_not_list(place: Path, bundle: Bundle, path: str) -> None:
    (place / "bundle" / path).write_bytes(b"print('AUTHOR CODE RAN')")
    said = refused_start(place, bundle.bundle_id)
    assert path in said
    assert "not in the manifest" in said


@pytest.mark.spec("T-12")
def test_missing_changed_and_linked_files(place: Path, bundle: Bundle) -> None:
    source = place / "bundle" / "app" / "small.py"
    text = source.read_bytes()
    source.unlink()
    assert "missing" in refused_start(place, bundle.bundle_id)
    source.write_bytes(text + b"#")
    assert "another size" in refused_start(place, bundle.bundle_id)
    source.unlink()
    outside = place / "outside.py"
    outside.write_bytes(text)
    source.symlink_to(outside)
    assert "not in the manifest" in refused_start(place, bundle.bundle_id)


@pytest.mark.spec("CLM-2", "BOOT-3")
def test_the_right_bundle_starts_and_only_then_author_code_runs(place: Path, bundle: Bundle) -> None:
    with fake_platform(place, bundle.bundle_id) as (host, process):
        process.stdout.read(1) if process.stdout else None  # the author's first byte
        host.sendall(pack(Kind.STOP, 0))


def parts_of(bundle: Bundle) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(bundle.path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archived(*parts: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    write_archive(target, parts)
    return target.getvalue()


@pytest.mark.spec("T-18")
def test_hostile_bundles_are_refused_by_the_platform(machine: Path, bundle: Bundle, tmp_path: Path) -> None:
    data = bundle.path.read_bytes()
    manifest, *files = parts_of(bundle)
    author = SigningKey.generate()
    of_another = author.public + author.sign("bundle", _crypto.ZERO_DIGEST, manifest[1] + b"\0")
    for name, changed in (
        ("empty", b""),
        ("truncated", data[:-1]),
        ("extended", data + b"\0"),
        ("prefixed", b"#!/bin/sh\n" + data),
        ("changed", data.replace(b"pong", b"ping")),
        ("junk", os.urandom(5000)),
        ("in an author's name", archived(manifest, ("signature", of_another), *files)),
    ):
        path = tmp_path / f"{name}.enclave"
        path.write_bytes(changed)
        with (
            pytest.raises(BundleError),
            HostServer(Host(lambda path=path: start_platform(machine, path), restart=False)),
        ):
            pass


@pytest.mark.spec("T-22", "BND-2")
@pytest.mark.parametrize("path", ["app/../../escaped.py", "app/../../../escaped.py", "/tmp/escaped.py"])
def test_no_path_in_a_bundle_leads_out_of_it(bundle: Bundle, tmp_path: Path, path: str) -> None:
    """All of it is consistent: size, digest and place in the archive are as the manifest says."""
    text = b"escaped"
    entry = FileEntry(path=path, size=len(text), sha256=hashlib.sha256(text).digest())
    files = sorted([*bundle.manifest.files, entry], key=lambda file: file.path)
    manifest = msgspec.structs.replace(bundle.manifest, files=files)
    (tmp_path / "hostile").write_bytes(
        archived(("manifest", manifest.encode()), *sorted([*parts_of(bundle)[1:], (path, text)]))
    )
    with pytest.raises(BundleError, match="not allowed"):
        unpack(read_bundle(tmp_path / "hostile"), tmp_path / "machine" / "enclave" / "bundle")
    assert not list(tmp_path.rglob("escaped.py"))


@pytest.mark.spec("T-22", "BND-12")
def test_no_path_or_link_in_a_wheel_leads_out_of_it() -> None:
    for name, mode, said in (("../../escaped.py", 0o100644, "not allowed"), ("data.txt", 0o120777, "is a link")):
        data, info = io.BytesIO(), zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        with zipfile.ZipFile(data, "w") as wheel:
            wheel.writestr(info, "/etc/passwd")
        with pytest.raises(BundleError, match=said):
            list(members(data.getvalue(), "hostile-1-py3-none-any.whl"))


@pytest.mark.spec("T-22")
def test_no_link_in_sources_brings_a_file_of_the_build_machine_into_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(f'# /// script\n# [tool.conclave]\n# include = ["data"]\n# ///\n{SOURCE}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="links do not go into a bundle"):
        build(tmp_path / "small.py", tmp_path / "small.enclave")


@pytest.mark.spec("T-12")
def test_a_platform_directory_that_cannot_be_used(bundle: Bundle, tmp_path: Path) -> None:
    damaged = tmp_path / "machine"
    damaged.mkdir()
    (damaged / "settings.json").write_text("{")
    with (
        pytest.raises(PlatformError, match="damaged"),
        HostServer(Host(lambda: start_platform(tmp_path, bundle.path), restart=False)),
    ):
        pass
    file = tmp_path / "file"
    file.write_text("x")
    with (
        pytest.raises(PlatformError, match="cannot make"),
        HostServer(Host(lambda: start_platform(file, bundle.path), restart=False)),
    ):
        pass
    shutil.rmtree(damaged)
