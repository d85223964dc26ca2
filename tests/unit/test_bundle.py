"""Bundles: built the same every time, read one way only, refused when anything differs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conclave import _codec, _crypto
from conclave._crypto import SigningKey
from conclave.bundle import (
    Bundle,
    archive,
    build,
    generate_key,
    load_signing_key,
    parse_manifest,
    read_bundle,
    signing_request,
    unpack,
)
from conclave.bundle import manifest as manifests
from conclave.bundle.archive import write_archive
from conclave.bundle.lockfile import provided, read_lock
from conclave.bundle.manifest import FileEntry, Limits, Manifest, check_files
from conclave.bundle.source import read_source
from conclave.bundle.wheels import members
from conclave.errors import BundleError

SOURCE = """
from conclave.enclave import Enclave, rpc

class Small(Enclave):
    @rpc
    def ping(self, word: str = "x") -> str:
        return word
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "small.py").write_text(SOURCE)
    return tmp_path


def built(place: Path, text: str = SOURCE, **options: Any) -> Bundle:
    (place / "small.py").write_text(text)
    return build(place / "small.py", place / "small.enclave", **options)


def declared(*lines: str) -> str:
    return "\n".join(["# /// script", *(f"# {line}".rstrip() for line in lines), "# ///", SOURCE])


# Building ------------------------------------------------------------------------------


@pytest.mark.spec("BND-9", "BND-14")
def test_building_twice_gives_the_same_bytes(place: Path) -> None:
    first = built(place).path.read_bytes()
    assert built(place).path.read_bytes() == first
    assert built(place, mode="debug").path.read_bytes() != first
    other = place / "elsewhere" / "deep"
    other.mkdir(parents=True)
    (other / "small.py").write_text(SOURCE)
    os.utime(other / "small.py", (0, 0))
    program = (
        "import sys; from pathlib import Path; from conclave.bundle import build; build(Path('small.py'), Path('out'))"
    )
    for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "COLUMNS": seed}
        subprocess.run([sys.executable, "-c", program], cwd=other, env=environment, check=True, umask=0o77)
        assert (other / "out").read_bytes() == first


def test_a_project(place: Path) -> None:
    project = place / "thing"
    (project / "src" / "thing" / "inner").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "Thing"\nversion = "1.2"\n[tool.conclave]\nproduct-id = 9\nenvironment = {MODEL = "b"}\n'
    )
    (project / "src" / "thing" / "__init__.py").write_text(SOURCE + "from thing.inner import data\n")
    (project / "src" / "thing" / "inner" / "__init__.py").write_text("data = 1\n")
    (project / "src" / "thing" / "data.bin").write_bytes(bytes(range(256)))
    (project / "src" / "thing" / "__pycache__").mkdir()
    (project / "src" / "thing" / "__pycache__" / "stale.pyc").write_bytes(b"x")
    (project / "src" / "thing" / ".hidden").write_text("x")
    bundle = build(project, place / "thing.enclave")
    manifest = bundle.manifest
    assert (manifest.name, manifest.release, manifest.product_id, manifest.entry) == ("thing", "1.2", 9, "thing:Small")
    assert ("MODEL", "b") in manifest.environment
    paths = [f.path for f in manifest.files]
    assert [p for p in paths if "__pycache__" not in p] == [
        "app/thing/__init__.py",
        "app/thing/data.bin",
        "app/thing/inner/__init__.py",
    ]
    assert len(paths) == 5
    (project / "src" / "thing" / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="links do not go into a bundle"):
        build(project, place / "thing.enclave")


@pytest.mark.spec("BND-7")
def test_signing_here_and_elsewhere(place: Path) -> None:
    key = generate_key(place / "author.key")
    assert load_signing_key(place / "author.key").public == key.public
    with pytest.raises(FileExistsError):
        generate_key(place / "author.key")
    unsigned, signed = built(place), built(place, signing_key=key)
    assert unsigned.signer == bytes(32)
    assert signed.signer == hashlib.sha256(key.public).digest()
    assert signed.code == unsigned.code
    assert signed.bundle_id != unsigned.bundle_id
    # On another machine, with another program: plain Ed25519 over those bytes.
    request = signing_request(unsigned)
    assert request == b"conclave/1 bundle\0" + bytes(64) + unsigned.manifest_bytes
    outside = Ed25519PrivateKey.generate()
    made = outside.public_key().public_bytes_raw() + outside.sign(request)
    assert built(place, signature=made).signer == hashlib.sha256(made[:32]).digest()
    for wrong in (made[:-1], made + b"\0", b""):
        with pytest.raises(BundleError, match="96 bytes"):
            built(place, signature=wrong)
    with pytest.raises(BundleError, match="does not verify"):
        built(place, signature=made[:-1] + bytes([made[-1] ^ 1]))
    (place / "not.key").write_text("something else")
    with pytest.raises(BundleError, match="not an author's key"):
        load_signing_key(place / "not.key")


def test_a_failed_build_leaves_what_was_there(place: Path) -> None:
    before = built(place).path.read_bytes()
    with pytest.raises(BundleError):
        built(place, "x = 1\n")
    assert (place / "small.enclave").read_bytes() == before
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found: none"),
        (SOURCE + SOURCE.replace("Small", "Other"), "found: Small, Other"),
        ("raise RuntimeError('no')\n", "small.py, line 1: RuntimeError: no"),
        ("import sys; sys.exit(0)\n", "SystemExit"),
        ("import os; os._exit(3)\n", "ended the process that imported it"),
        ("def broken(:\n", "SyntaxError"),
        (SOURCE.replace('word: str = "x"', "word"), "'word' needs a type annotation"),
        (SOURCE.replace("-> str", ""), "needs a return annotation"),
        (SOURCE.replace("word: str", "word: object"), "Small.ping: parameter 'word': object cannot cross"),
        (SOURCE.replace("@rpc", "@rpc(retries=False)"), "small.py, line 5: TypeError: rpc() got an unexpected"),
        (SOURCE.replace("@rpc", "@rpc(padding=5)"), "small.py, line 5: TypeError: padding is padme"),
        (SOURCE.replace("    @rpc\n", ""), "Small has no @rpc method and no on_mail: nothing could call it"),
        (SOURCE.replace("word: str", "*word: str").replace(' = "x"', ""), "do not cross"),
        (declared("dependencies = 5"), "must be a list of strings"),
        (declared("dependencies = [", "x = 1"), "small.py, in the `# /// script` block: "),
        (declared("dependencies = [", "x = 1"), "at line 3, "),
        ("\n\n" + declared("dependencies = [", "x = 1"), "at line 5, "),
        (declared("[tool.conclave]", "product = 1"), "has no setting 'product'"),
        (declared("[tool.conclave]", 'product-id = "1"'), "must be of type int"),
        (declared("[tool.conclave]", "product-id = true"), "must be of type int"),
        (declared("[tool.conclave]", "product-id = 65536"), "product id is 0 to 65535"),
        (declared("[tool.conclave]", 'roster = ["ab"]'), "64 hex digits"),
        (declared("[tool.conclave]", "roster = [5]"), "64 hex digits"),
        (declared("[tool.conclave]", "quorum = 1"), "quorum"),
        (declared("[tool.conclave]", f'roster = ["{"a" * 64}", "{"a" * 64}"]'), "different 32-byte keys"),
        (declared("[tool.conclave]", 'environment = {LD_PRELOAD = "x"}'), "cannot be declared"),
        (declared("[tool.conclave]", 'environment = {PYTHONPATH = "x"}'), "cannot be declared"),
        (declared("[tool.conclave]", 'environment = {lower = "x"}'), "cannot be declared"),
        (declared("[tool.conclave]", "environment = {A = 1}"), "values are strings"),
        (declared("x = 1") + declared("y = 1"), "more than one"),
        (declared('dependencies = ["numpy"]'), "small.lock is missing: run `conclave lock /"),
    ],
)
@pytest.mark.spec("BND-3", "RPC-7")
def test_mistakes_in_the_source(place: Path, text: str, said: str) -> None:
    with pytest.raises(BundleError) as refused:
        built(place, text)
    assert said in str(refused.value)


def test_mail_alone_can_be_all_that_an_enclave_takes(place: Path) -> None:
    text = SOURCE.replace("@rpc\n    def ping(self, word", "def on_mail(self, mail")
    assert built(place, text).manifest.entry == "small:Small"


@pytest.mark.spec("BND-16")
@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("import pytest", "No module named 'pytest'; the bundle does not have it: declare the package"),
        ("import pytest", "`dependencies` of the `# /// script` block and run `conclave lock /"),
        (
            "import helper",
            "No module named 'helper'; helper.py is here and not packed: put \"helper.py\" into `include`",
        ),
        ("import beside", "No module named 'beside'; beside is here and not packed"),
        ("import conclave.nothing", "No module named 'conclave.nothing'"),
    ],
)
def test_a_module_that_the_enclave_would_not_find(place: Path, first: str, said: str) -> None:
    (place / "helper.py").write_text("")
    (place / "beside").mkdir()
    with pytest.raises(BundleError) as refused:
        built(place, f"{first}\n{SOURCE}")
    assert "small cannot be built: small.py, line 1: ModuleNotFoundError: No module named" in str(refused.value)
    assert said in str(refused.value)
    assert ("conclave lock" in str(refused.value)) == (first == "import pytest")


@pytest.mark.spec("BND-16")
def test_imports_find_what_an_enclave_has(place: Path) -> None:
    optional = "try:\n    import pytest\nexcept ImportError:\n    pytest = None\nassert pytest is None\n"
    packages = "".join(f"import {name}\n" for name in provided())
    (place / "data.txt").write_text("7")
    setting = declared("[tool.conclave]", 'include = ["data.txt"]').replace(SOURCE, "")
    read = "from pathlib import Path\nassert Path(__file__).with_name('data.txt').read_text() == '7'\n"
    text = f"{setting}\nimport ctypes, sqlite3\n{packages}\ncffi.FFI()\n{optional}{read}{SOURCE}"
    assert built(place, text).manifest.entry == "small:Small"


def test_modules_of_the_working_directory_do_not_count(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    for name in ("json", "types", "helper"):
        Path(f"{name}.py").write_text("raise SystemExit\n")
    assert built(place).manifest.entry == "small:Small"
    with pytest.raises(BundleError, match="No module named 'helper'"):
        built(place, f"import helper\n{SOURCE}")


def test_what_a_project_does_not_declare(place: Path) -> None:
    (place / "pyproject.toml").write_text('[project]\nname = "small"\n')
    (place / "small.py").write_text(f"import pytest\n{SOURCE}")
    with pytest.raises(BundleError, match=r"of \[project\] in pyproject\.toml and run `conclave lock /[^ ]*[^/.]{3}`$"):
        build(place, place / "x")


def test_files_that_are_no_source(place: Path) -> None:
    (place / "not-a-name.py").write_text(SOURCE)
    with pytest.raises(BundleError, match="must be a module name"):
        build(place / "not-a-name.py", place / "x")
    (place / "latin.py").write_bytes(b"# \xe9\n")
    with pytest.raises(BundleError, match="not UTF-8"):
        build(place / "latin.py", place / "x")


# Archives ------------------------------------------------------------------------------


def parts_of(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(e.filename, archive.read(e)) for e in archive.infolist()]


def written(path: Path, parts: list[tuple[str, bytes]]) -> Path:
    with open(path, "wb") as file:
        write_archive(file, parts)
    return path


def refused(path: Path, match: str = "") -> None:
    with pytest.raises(BundleError, match=match or None):
        read_bundle(path)


@pytest.mark.spec("BND-5", "BND-6")
def test_an_archive_has_one_reading(place: Path) -> None:
    bundle = built(place, signing_key=SigningKey.generate())
    data, parts = bundle.path.read_bytes(), parts_of(bundle.path)
    bad = place / "bad"
    assert read_bundle(written(bad, parts)).code == bundle.code
    for changed, said in (
        (data[:-1], "not a bundle"),
        (data[: len(data) // 2], "not a bundle"),
        (b"", "not a bundle"),
        (data + b"\0", ""),
        (b"\0" + data, ""),
        (data[:-2] + b"\1\0c", ""),
        (data[:-22] + b"gap" + data[-22:], ""),
    ):
        bad.write_bytes(changed)
        refused(bad, said)
    for changed_parts, said in (
        (parts[::-1], "does not begin with a manifest"),
        (parts[1:], "does not begin with a manifest"),
        ([parts[0], *parts[2:], parts[1]], "other files than"),
        (parts[:-1], "other files than"),
        ([*parts, ("zz", b"more")], "other files than"),
        ([*parts, parts[-1]], "other files than"),
        ([*parts[:-1], (parts[-1][0], parts[-1][1] + b"x")], "differs from what the manifest says"),
        ([parts[0], ("signature", b"short"), *parts[2:]], "96 bytes"),
        ([parts[0], ("signature", bytes(96)), *parts[2:]], "does not verify"),
    ):
        refused(written(bad, changed_parts), said)
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in parts:
            archive.writestr(name, body)
    refused(bad, "compressed")
    with zipfile.ZipFile(bad, "w") as archive:
        for name, body in parts:
            archive.writestr(name, body)
    refused(bad, "canonical")


@pytest.mark.spec("BND-5")
def test_every_byte_of_an_archive_counts(place: Path) -> None:
    data = built(place, signing_key=SigningKey.generate()).path.read_bytes()
    bad = place / "bad"
    for at in range(0, len(data), 7):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        refused(bad)


@pytest.mark.spec("BND-5")
def test_each_bound_of_an_archive_refuses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = built(place)
    parts = parts_of(bundle.path)
    (place / "empty").write_bytes(b"PK\5\6" + bytes(18))
    refused(place / "empty", "does not begin with a manifest")
    size = len(bundle.manifest_bytes)
    for name, bound, said in (
        ("MAX_ENTRIES", len(parts) - 1, "too large"),
        ("MAX_TOTAL", sum(len(body) for _, body in parts) - 1, "too large"),
        ("MAX_MANIFEST", size - 1, "does not begin with a manifest"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archive, name, bound)
            refused(bundle.path, said)
            patch.setattr(archive, name, bound + 1)
            assert read_bundle(bundle.path).code == bundle.code
    for name, bound in (("MAX_ENTRIES", len(parts) - 1), ("MAX_TOTAL", size)):
        with monkeypatch.context() as patch:
            patch.setattr(archive, name, bound)
            with pytest.raises(BundleError, match="do not go into a bundle"):
                written(place / "more", parts)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 10**6), st.integers(0, 10**6))
def test_any_bytes_give_a_bundle_or_one_error(place: Path, junk: bytes, start: int, size: int) -> None:
    good = (
        (place / "small.enclave").read_bytes() if (place / "small.enclave").exists() else built(place).path.read_bytes()
    )
    start %= len(good)
    for data in (junk, good[:start] + junk + good[start + size % 50 :]):
        (place / "bad").write_bytes(data)
        with contextlib.suppress(BundleError):
            assert read_bundle(place / "bad").path == place / "bad"


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "release": "0",
        "product_id": 0,
        "revocation_level": 0,
        "mode": "release",
        "python": "cp311",
        "platform": "any",
        "compiler": "cpython-3.11.7",
        "entry": "small:Small",
        "interface": b"",
        "environment": [],
        "roster": [],
        "quorum": 0,
        "limits": Limits(memory_mib=1, temporary_mib=1),
        "key_specs": [],
        "metrics": [],
        "wheels": [],
        "files": [],
    }
    return Manifest(**{**values, **changes})


def entry(path: str, **changes: Any) -> FileEntry:
    return FileEntry(**{"path": path, "size": 0, "sha256": bytes(32), **changes})


@pytest.mark.spec("BND-1", "BND-2", "BND-3")
@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"name": "Big"},
        {"name": ""},
        {"release": "x" * 65},
        {"product_id": -1},
        {"revocation_level": 65535},
        {"mode": "test"},
        {"compiler": "3.11.7"},
        {"compiler": "cpython-3.11.7\n"},
        {"compiler": "cpython-" + "1" * 33},
        {"entry": "small"},
        {"entry": "small:Small.x"},
        {"entry": "../x:Small"},
        {"environment": [("B", ""), ("A", "")]},
        {"environment": [("A", ""), ("A", "")]},
        {"environment": [("LD_LIBRARY_PATH", "")]},
        {"environment": [("A", "\0")]},
        {"roster": [bytes(31)], "quorum": 1},
        {"roster": [b"b" * 32, b"a" * 32], "quorum": 1},
        {"roster": [bytes(32)], "quorum": 2},
        {"roster": [bytes(32)], "quorum": 0},
        {"quorum": 1},
        {"key_specs": [b""]},
        {"metrics": ["m"]},
        {"files": [entry("app/b"), entry("app/a")]},
        {"files": [entry("app/a"), entry("app/a")]},
        {"files": [entry("app/A"), entry("app/a")]},
        {"files": [entry("app/a"), entry("app/a/b")]},
        *({"files": [entry(path)]} for path in (
            "app", "etc/passwd", "/app/x", "app/../x", "app/./x", "app//x", "app/x/", "app/x\\y", "app/\u00e9",
            "app/x\n",             "app/" + "x" * 600, "C:/x", "site/.. /x", "",
        )),
        {"files": [entry("app/a", size=-1)]},
        {"files": [entry("app/a", size=2**32)]},
        {"files": [entry("app/a", sha256=bytes(31))]},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_manifests_of_another_form(changes: dict[str, Any]) -> None:
    assert parse_manifest(manifest().encode())
    with pytest.raises(BundleError):
        parse_manifest(manifest(**changes).encode())


@pytest.mark.spec("BND-1")
def test_other_encodings_of_a_manifest() -> None:
    good = manifest().encode()
    fields = {name: getattr(manifest(), name) for name in manifest().__struct_fields__}
    without = {k: v for k, v in fields.items() if k != "files"}
    for data in (good + b"\0", good[:-1], b"", _codec.encode(without), _codec.encode({**fields, "x": 1})):
        with pytest.raises(BundleError):
            parse_manifest(data)


@pytest.mark.spec("BND-1", "BND-2")
def test_bounds_of_a_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    two = manifest(files=[entry("app/a", size=5), entry("app/b", size=5)]).encode()
    for name, bound in (("MAX_FILES", 1), ("MAX_TOTAL", 9)):
        with monkeypatch.context() as patch:
            patch.setattr(manifests, name, bound)
            with pytest.raises(BundleError, match="more than"):
                parse_manifest(two)
            patch.setattr(manifests, name, bound + 1)
            assert len(parse_manifest(two).files) == 2
    assert parse_manifest(manifest(release="a" * 64, environment=[("A", "b" * 1024)]).encode()).release == "a" * 64
    for changes in ({"release": "\u00e4"}, {"release": "a" * 65}, {"environment": [("A", "b" * 1025)]}):
        with pytest.raises(BundleError):
            parse_manifest(manifest(**changes).encode())


# Unpacking -----------------------------------------------------------------------------


@pytest.mark.spec("BND-8", "BND-4")
def test_unpacking_is_whole_or_not_at_all(place: Path) -> None:
    bundle = built(place, signing_key=SigningKey.generate())
    target = place / "there" / "bundle"
    errors: list[BaseException] = []

    def work() -> None:
        try:
            unpack(bundle, target)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]
    check_files(target, bundle.manifest, contents=True)
    assert (target / "manifest").read_bytes() == bundle.manifest_bytes
    assert (target / "app" / "small.py").read_text() == SOURCE
    # Changed after it was read: the digests are checked again, not only the archive's own sums.
    parts, data = parts_of(bundle.path), bundle.path.read_bytes()
    bundle.path.write_bytes(data.replace(b"def ping", b"def pong"))
    with pytest.raises(BundleError, match="differs from what the manifest says"):
        unpack(bundle, place / "other" / "bundle")
    written(bundle.path, [(name, body.replace(b"def ping", b"def pong")) for name, body in parts])
    with pytest.raises(BundleError, match="differs from what the manifest says"):
        unpack(bundle, place / "other" / "bundle")
    assert list((place / "other").iterdir()) == []


def test_a_disk_that_refuses_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = built(place)

    def full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="no room"):
        unpack(bundle, place / "there" / "bundle")
    assert list((place / "there").iterdir()) == []


@pytest.mark.spec("BND-4")
@pytest.mark.parametrize(
    "change", ["more", "less", "size", "link", "link of that size", "directory", "empty directory"]
)
def test_a_directory_that_is_not_the_bundle(place: Path, change: str) -> None:
    bundle = built(place)
    unpack(bundle, place / "b")
    source = place / "b" / "app" / "small.py"
    if change == "more":
        (place / "b" / "app" / "sitecustomize.py").write_text("")
    elif change == "empty directory":
        (place / "b" / "app" / "numpy").mkdir()
    elif change == "size":
        source.write_text(SOURCE + " ")
    else:
        source.unlink()
        if change == "link":
            source.symlink_to("/etc/passwd")
        elif change == "link of that size":
            # A link's own size is that of the text it holds.
            source.symlink_to("x" * len(SOURCE.encode()))
        elif change == "directory":
            source.mkdir()
    with pytest.raises(BundleError, match=r"not in the manifest|missing|another size"):
        check_files(place / "b", bundle.manifest, contents=True)


# Wheels and locks ----------------------------------------------------------------------


def wheel(files: dict[str, bytes], *, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            change(info)
            archive.writestr(info, body)
    return buffer.getvalue()


def offer(place: Path, name: str, data: bytes) -> str:
    """Put a wheel into the cache, as if it had been fetched before."""
    digest = hashlib.sha256(data).hexdigest()
    cache = place / "cache" / "conclave" / "wheels"
    (cache / "index").mkdir(parents=True, exist_ok=True)
    (cache / name).write_bytes(data)
    (cache / "index" / digest).write_text(name)
    return digest


def locked(place: Path, dependencies: list[str], pins: dict[str, str]) -> str:
    """Source text that declares dependencies, and its lock."""
    text = declared(f"dependencies = {dependencies!r}".replace("'", '"'))
    (place / "small.py").write_text(text)
    fingerprint = hashlib.sha256("\n".join(sorted(dependencies)).encode()).hexdigest()
    lines = [f"# conclave lock 1 {fingerprint}"]
    lines += [f"{pin} \\\n    --hash=sha256:{digest}" for pin, digest in pins.items()]
    (place / "small.lock").write_text("\n".join(lines) + "\n")
    return text


@pytest.mark.spec("BND-10", "BND-11", "BND-14")
def test_locked_wheels_are_packed_as_they_are(place: Path) -> None:
    data = wheel(
        {
            "thing/__init__.py": b"value = 7\n",
            "thing/tests/t.py": b"x = 1\n",
            "thing-1.dist-info/METADATA": b"Name: thing\n",
        }
    )
    digest = offer(place, "thing-1-py3-none-any.whl", data)
    text = locked(place, ["thing"], {"thing==1": digest}).replace("from conclave", "import thing\nfrom conclave", 1)
    bundle = built(place, text)
    assert bundle.wheel_names() == ["thing-1-py3-none-any.whl"]
    assert bundle.wheel("thing-1-py3-none-any.whl") == data
    assert bundle.manifest.platform == "any"
    unpack(bundle, place / "b")
    assert (place / "b" / "site" / "thing" / "__init__.py").read_bytes() == b"value = 7\n"
    code = place / "b" / "site" / "thing" / "__pycache__"
    assert [p.suffix for p in code.iterdir()] == [".pyc"]
    assert int.from_bytes(next(code.iterdir()).read_bytes()[4:8], "little") == 1
    check_files(place / "b", bundle.manifest, contents=True)
    assert built(place, text).path.read_bytes() == bundle.path.read_bytes()
    native = offer(place, "thing-1-cp311-cp311-manylinux_2_17_x86_64.whl", data + b"")
    assert native == digest


@pytest.mark.spec("BND-8")
def test_a_wheel_that_holds_more_than_the_manifest_lists(place: Path) -> None:
    digest = offer(
        place, "thing-1-py3-none-any.whl", wheel({"thing.py": b"", "thing-1.dist-info/METADATA": b"Name: thing\n"})
    )
    bundle = built(place, locked(place, ["thing"], {"thing==1": digest}))
    fewer = [f for f in bundle.manifest.files if f.path != "site/thing.py"]
    assert len(fewer) == len(bundle.manifest.files) - 1
    known = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files=fewer))
    with pytest.raises(BundleError, match="differs from what the manifest says"):
        unpack(known, place / "b")


@pytest.mark.spec("BND-13")
def test_two_wheels_with_one_file(place: Path) -> None:
    pins = {}
    for name in ("one", "two"):
        pins[f"{name}==1"] = offer(place, f"{name}-1-py3-none-any.whl", wheel({"shared.py": b"", f"{name}.py": b""}))
    text = locked(place, ["one", "two"], pins)
    with pytest.raises(BundleError, match=r"two-1.*shared.py.*in another wheel too"):
        built(place, text)


@pytest.mark.spec("BND-12")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../escape.py", "not allowed"),
        ("/absolute.py", "not allowed"),
        ("a/../../b.py", "not allowed"),
        ("a\\b.py", "not allowed"),
        ("a\nb.py", "not allowed"),
        ("a//b.py", "not allowed"),
        ("thing.pth", "kind that bundles do not take"),
        ("thing-1.data/scripts/run", "kind that bundles do not take"),
        ("thing/__pycache__/x.cpython-311.pyc", "kind that bundles do not take"),
    ],
)
def test_wheels_with_odd_members(name: str, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        list(members(wheel({"good.py": b"", name: b"x"}), "odd.whl"))


@pytest.mark.spec("BND-12")
def test_wheels_with_links_clashes_and_bombs() -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    with pytest.raises(BundleError, match="is a link"):
        list(members(wheel({"x.py": b"/etc/passwd"}, change=link), "odd.whl"))
    with pytest.raises(BundleError, match="but for case"):
        list(members(wheel({"a.py": b"", "A.py": b""}), "odd.whl"))
    bomb = bytearray(wheel({"zeros": bytes(50 << 20)}))
    size = (50 << 20).to_bytes(4, "little")
    # It declares ten bytes, in the directory and in the header.
    bomb = bytearray(bytes(bomb).replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(BundleError):
        list(members(bytes(bomb), "odd.whl"))
    for data in (b"", b"PK", os.urandom(300), wheel({"a.py": b"x" * 1000})[:-30]):
        with pytest.raises(BundleError, match="not a readable wheel"):
            list(members(data, "odd.whl"))


@pytest.mark.spec("BND-10")
def test_locks(place: Path) -> None:
    good = offer(place, "thing-1-py3-none-any.whl", wheel({"thing.py": b""}))
    text = locked(place, ["thing"], {"thing==1": good})
    assert read_lock(read_source(place / "small.py")) == {"thing": ("1", frozenset({good}))}
    (place / "small.py").write_text(text.replace('"thing"', '"thing>2"'))
    with pytest.raises(BundleError, match=r"belongs to other dependencies.*run `conclave lock .*/small\.py`"):
        read_lock(read_source(place / "small.py"))
    mine = provided()["cryptography"]
    locked(place, ["cryptography"], {f"cryptography=={mine}": "a" * 64})
    assert read_lock(read_source(place / "small.py")) == {}
    locked(place, ["cryptography"], {"cryptography==1.0": "a" * 64})
    with pytest.raises(BundleError, match=f"cryptography.*{mine}"):
        read_lock(read_source(place / "small.py"))
    locked(place, ["thing"], {"thing==1": good, "Thing==2": good})
    with pytest.raises(BundleError, match="pinned twice"):
        read_lock(read_source(place / "small.py"))
    for line in (
        "thing==1",
        "thing --hash=sha256:" + good,
        "thing==1 --hash=md5:aa",
        "-r other",
        "--index-url x",
        "thing @ file:///x",
    ):
        locked(place, ["thing"], {})
        with open(place / "small.lock", "a") as file:
            file.write(line + "\n")
        with pytest.raises(BundleError, match=r"name==version with sha256 hashes; run `conclave lock .*/small\.py`"):
            read_lock(read_source(place / "small.py"))


def test_a_cached_wheel_that_was_changed_is_not_used(place: Path) -> None:
    digest = offer(place, "thing-1-py3-none-any.whl", wheel({"thing.py": b""}))
    text = locked(place, ["thing"], {"thing==1": digest})
    (place / "cache" / "conclave" / "wheels" / "thing-1-py3-none-any.whl").write_bytes(b"changed")
    # It has to be fetched again, and no index has this one.
    with pytest.raises(BundleError, match="no wheel for thing==1"):
        built(place, text)


def test_identities_of_a_bundle_are_what_the_specification_says(place: Path) -> None:
    key = SigningKey.generate()
    bundle = built(place, declared("[tool.conclave]", "product-id = 5", "revocation-level = 6"), signing_key=key)
    code = hashlib.sha256(bundle.manifest_bytes).digest()
    signer = hashlib.sha256(key.public).digest()
    expected = hashlib.sha256(b"conclave/1 bundle" + code + signer + b"\0\5\0\6").digest()
    assert (bundle.code, bundle.signer, bundle.bundle_id) == (code, signer, expected)
    assert _crypto.sha256(b"") == hashlib.sha256(b"").digest()
