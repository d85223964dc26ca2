"""The same source gives the same bundle, whoever builds it, wherever and whenever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import conclave.demo
from conclave import _codec
from conclave.bundle import Bundle, build, read_bundle, reproduce
from conclave.bundle.archive import write_archive
from conclave.bundle.builder import cache_directory
from conclave.bundle.manifest import Manifest
from conclave.cli import main
from conclave.errors import BundleError

# Loaded by every interpreter of a build: what it reads as the time is another day.
FAKED_CLOCK = """
import time, datetime
OFFSET = {days} * 86400
for name, unit in (("time", 1), ("time_ns", 10**9)):
    setattr(time, name, lambda real=getattr(time, name), unit=unit: real() + OFFSET * unit)
for name in ("gmtime", "localtime"):
    setattr(time, name, lambda at=None, real=getattr(time, name): real(time.time() if at is None else at))
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Clock
"""
BUILD = """
import json, os, sys, time, datetime
from pathlib import Path
from conclave.bundle import build
bundle = build(Path("hospitals.py"), Path("out.enclave"))
mask = os.umask(0)
print(json.dumps({"uid": os.getuid(), "mask": mask, "home": os.environ["HOME"], "day": int(time.time() // 86400),
                  "today": str(datetime.datetime.now().date()), "order": list({"a", "b", "c", "d", "e", "f", "g"}),
                  "wheels": len(bundle.manifest.wheels), "code": bundle.code.hex()}))
"""


def other_user() -> list[str]:
    """What runs a command as another user ID, if the kernel lets us."""
    command = ["unshare", "--map-user=4321"]
    done = subprocess.run([*command, "true"], check=False, capture_output=True)
    return command if done.returncode == 0 else []


def built_by(place: Path, *, folder: str, seed: str, mask: int, days: int, user: list[str]) -> dict[str, object]:
    source = place / folder
    home = place / f"home-{seed}"
    clock = place / f"clock-{seed}"
    for made in (source, home, clock):
        made.mkdir(parents=True)
    demo = Path(conclave.demo.__file__).parent
    for name in ("hospitals.py", "hospitals.lock"):
        shutil.copyfile(demo / name, source / name)
        os.utime(source / name, (days * 86400, days * 86400))
    (clock / "sitecustomize.py").write_text(FAKED_CLOCK.format(days=days))
    # Its own cache, so that all byte code is compiled again; only wheels are shared, and they are pinned.
    shutil.copytree(cache_directory() / "wheels", home / "cache" / "conclave" / "wheels")
    environment = {
        **os.environ,
        "HOME": str(home),
        "USER": f"user{seed}",
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": str(clock),
        "TZ": f"UTC{seed}",
    }
    command = [*user, sys.executable, "-c", BUILD]
    done = subprocess.run(
        command, cwd=source, env=environment, umask=mask, check=True, capture_output=True, text=True, timeout=500
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.spec("BND-9", "BND-14")
def test_two_folders_users_masks_seeds_and_days_with_scikit_learn_inside(place: Path, warm_wheels: None) -> None:
    first = built_by(place, folder="a", seed="1", mask=0o022, days=0, user=[])
    second = built_by(place, folder="b/deep/er", seed="2", mask=0o077, days=500, user=other_user())
    # The two really were different builders.
    assert first["order"] != second["order"]
    assert (first["mask"], second["mask"]) == (0o022, 0o077)
    assert second["day"] - first["day"] in (500, 501)
    assert first["today"][:4] != second["today"][:4]
    if other_user():
        assert (first["uid"], second["uid"]) == (os.getuid(), 4321)
    assert first["wheels"] == second["wheels"] == 7
    one, two = (place / folder / "out.enclave" for folder in ("a", "b/deep/er"))
    assert one.read_bytes() == two.read_bytes()
    # And whoever has only the source finds that it is this one.
    theirs, differences = reproduce(place / "b/deep/er/hospitals.py", one)
    assert theirs.code.hex() == first["code"]
    assert differences == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="session")
def warm_wheels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The demonstration's wheels are in the cache."""
    where = tmp_path_factory.mktemp("warm")
    demo = Path(conclave.demo.__file__).parent
    for name in ("hospitals.py", "hospitals.lock"):
        shutil.copyfile(demo / name, where / name)
    build(where / "hospitals.py", where / "warm.enclave")


SOURCE = """
from conclave.enclave import Enclave, rpc

class Small(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
"""


@pytest.fixture
def small(place: Path) -> Bundle:
    (place / "small.py").write_text(SOURCE)
    return build(place / "small.py", place / "small.enclave")


def status(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def altered(bundle: Bundle, path: Path, **changes: object) -> Path:
    """The same bundle, with another manifest around it."""
    import zipfile

    fields = {n: getattr(bundle.manifest, n) for n in Manifest.__struct_fields__}
    with zipfile.ZipFile(bundle.path) as archive:
        rest = [(n, archive.read(n)) for n in archive.namelist() if n != "manifest"]
    with open(path, "wb") as file:
        write_archive(file, [("manifest", _codec.encode(Manifest(**{**fields, **changes}))), *rest])
    return read_bundle(path).path


@pytest.mark.spec("BND-15")
def test_every_field_that_differs_is_named(small: Bundle, place: Path) -> None:
    source = place / "small.py"
    for changes, said in (
        ({"revocation_level": 3}, "revocation_level: the source gives 0, the bundle has 3"),
        ({"release": "7"}, "release: the source gives '0', the bundle has '7'"),
        ({"environment": [("EXTRA", "1")]}, "environment: differs"),
        ({"interface": b"\x90"}, "interface: differs"),
        ({"roster": [bytes(32)], "quorum": 1}, "roster: differs"),
        ({"limits": replace_limit(small)}, "limits: the source gives"),
    ):
        _, differences = reproduce(source, altered(small, place / "other.enclave", **changes))
        assert any(d.startswith(said) for d in differences), (changes, differences)


def replace_limit(bundle: Bundle) -> object:
    limits = bundle.manifest.limits
    return type(limits)(memory_mib=limits.memory_mib + 1, temporary_mib=limits.temporary_mib)


@pytest.mark.spec("BND-15")
def test_files_that_differ_are_named(small: Bundle, place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "small.py").write_text(SOURCE.replace("return data", "return data[::-1]"))
    _, differences = reproduce(elsewhere / "small.py", small.path)
    assert "file 'app/small.py': differs" in differences
    assert any("__pycache__" in d for d in differences)
    (elsewhere / "pyproject.toml").write_text("[project]\nname = 'small'\nversion = '0'\n")
    (elsewhere / "small").mkdir()
    (elsewhere / "small.py").rename(elsewhere / "small" / "__init__.py")
    _, differences = reproduce(elsewhere, small.path)
    assert "file 'app/small.py': not from the source" in differences
    assert "file 'app/small/__init__.py': not in the bundle" in differences


@pytest.mark.spec("BND-15")
def test_mode_and_signature_are_the_bundles_own(place: Path, small: Bundle) -> None:
    from conclave._crypto import SigningKey

    source = place / "small.py"
    signed = build(source, place / "signed.enclave", mode="debug", signing_key=SigningKey.generate())
    assert reproduce(source, signed.path)[1] == []
    assert reproduce(source, signed.path)[0].signer == signed.signer
    left = {p.name for p in place.iterdir()}
    reproduce(source, small.path)
    assert {p.name for p in place.iterdir()} == left


@pytest.mark.spec("BND-15")
def test_another_compiler_is_no_difference_but_a_hint(
    small: Bundle, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = place / "small.py"
    other = altered(small, place / "other.enclave", compiler="cpython-3.11.99")
    assert reproduce(source, other)[1] == []
    name = next(f.path for f in small.manifest.files if f.path.endswith(".pyc"))
    compiled = bytes(range(40))
    files = [replace_entry(f, compiled) if f.path == name else f for f in small.manifest.files]
    fields = {n: getattr(small.manifest, n) for n in Manifest.__struct_fields__}
    manifest = Manifest(**{**fields, "compiler": "cpython-3.11.99", "files": files})
    with open(place / "bytecode.enclave", "wb") as file:
        app = [("app/small.py", source.read_bytes()), (f"bytecode/{name}", compiled)]
        write_archive(file, [("manifest", _codec.encode(manifest)), *app])
    assert status(["build", str(source), "--verify", str(place / "bytecode.enclave")]) == 1
    said = capsys.readouterr().out
    assert "only byte code differs: it was compiled by cpython-3.11.99" in said
    with pytest.raises(BundleError, match=r"built by cpython-3\.10\.1, this is cpython-"):
        reproduce(source, altered(small, place / "old.enclave", python="cp310", compiler="cpython-3.10.1"))


def replace_entry(entry: object, data: bytes) -> object:
    from conclave._crypto import sha256

    return type(entry)(path=entry.path, size=len(data), sha256=sha256(data))


@pytest.mark.spec("BND-15")
def test_the_command_says_and_returns_it(small: Bundle, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(place / "small.py")
    assert status(["build", source, "--verify", str(small.path)]) == 0
    assert "REPRODUCED" in capsys.readouterr().out
    assert status(["build", source, "--verify", str(small.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "reproduced": True, "code": small.code.hex(), "signer": "00" * 32, "differences": [],
    }  # fmt: skip
    level = str(altered(small, place / "other.enclave", revocation_level=1))
    assert status(["build", source, "--verify", level]) == 1
    assert "revocation_level: the source gives 0, the bundle has 1" in capsys.readouterr().out
    assert status(["build", source, "--verify", str(small.path), "--debug"]) != 0
    assert "--verify goes with" in capsys.readouterr().err
    for wrong in (place / "small.py", place / "nothing"):
        assert status(["build", source, "--verify", str(wrong)]) != 0
        assert "Traceback" not in capsys.readouterr().err
