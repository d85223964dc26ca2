"""What is named as the thing to build: a file, a project, or an attribute of a module in one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conclave.bundle import build
from conclave.bundle.source import read_source
from conclave.errors import BundleError

APPLICATION = "async def app(scope, receive, send): ...\nother = app\n"
ENCLAVES = """
from conclave.enclave import Enclave, rpc

class One(Enclave):
    @rpc
    def ping(self) -> int: ...

class Two(Enclave):
    @rpc
    def pong(self) -> int: ...
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APPLICATION)
    return tmp_path


def project(place: Path, *settings: str) -> None:
    lines = ["[project]", 'name = "thing"', 'version = "7"', "dependencies = []", "[tool.conclave]", *settings]
    (place / "pyproject.toml").write_text("\n".join(lines))


def test_an_attribute_of_a_single_file(place: Path) -> None:
    source = read_source(place / "app:app")
    assert (source.module, source.attribute, source.lock.name) == ("app", "app", "app.lock")
    (place / "app.py").write_text('# /// script\n# [tool.conclave]\n# entry = "app:other"\n# ///\n' + APPLICATION)
    assert read_source(place / "app.py").attribute == "other"
    assert read_source(place / "app:app").attribute == "app"
    # A file that declares itself needs no project, whatever lies beside it.
    project(place)
    assert read_source(place / "app:app").name == "app"


def test_an_attribute_in_a_project(place: Path) -> None:
    project(place, 'entry = "app:app"')
    source = read_source(place)
    assert (source.name, source.release, source.module, source.attribute) == ("thing", "7", "app", "app")
    assert read_source(place / "app:other").attribute == "other"
    (place / "site_").mkdir()
    (place / "site_" / "asgi.py").write_text(APPLICATION)
    named = read_source(place / "site_.asgi:app")
    assert (named.module, named.attribute, list(named.files)) == ("site_.asgi", "app", ["site_/asgi.py"])


def test_what_goes_in_beside_it(place: Path) -> None:
    (place / "templates" / "deep").mkdir(parents=True)
    for name in ("templates/page.html", "templates/deep/part.html", "templates/.hidden", "more.py", "not.py"):
        (place / name).write_text("")
    project(place, 'entry = "app:app"', 'include = ["templates", "more.py"]')
    assert sorted(read_source(place).files) == [
        "app.py",
        "more.py",
        "templates/deep/part.html",
        "templates/page.html",
    ]


@pytest.mark.parametrize("name", ["../outside", "/etc/hosts", "nothing", "", "templates/.."])
def test_what_does_not_go_in(place: Path, name: str) -> None:
    (place / "templates").mkdir()
    project(place, 'entry = "app:app"', f'include = ["{name}"]')
    with pytest.raises(BundleError, match="include"):
        read_source(place)
    (place.parent / "outside").unlink(missing_ok=True)


def test_links_do_not_go_in(place: Path) -> None:
    (place / "link.py").symlink_to("/etc/hosts")
    project(place, 'entry = "app:app"', 'include = ["link.py"]')
    with pytest.raises(BundleError, match="links do not go into a bundle"):
        read_source(place)


def test_what_names_nothing(place: Path) -> None:
    with pytest.raises(BundleError, match=r"has no missing\.py, and no pyproject\.toml"):
        read_source(place / "missing:app")
    with pytest.raises(BundleError, match="neither a Python file nor a project directory"):
        read_source(place / "app:app:app")
    for given, meant in (("app", "app.py"), ("app.py:app", "app:app")):
        with pytest.raises(BundleError, match=f"did you mean .*/{meant}\\?"):
            read_source(place / given)
    project(place, 'entry = "app"')
    with pytest.raises(BundleError, match="entry is module:attribute"):
        read_source(place)
    (place / "app.py").write_text('# /// script\n# [tool.conclave]\n# entry = "other:app"\n# ///\n')
    with pytest.raises(BundleError, match="names this file's module, app"):
        read_source(place / "app.py")


@pytest.mark.spec("ASGI-1")
def test_entries(place: Path) -> None:
    first = build(place / "app:app", place / "a.enclave")
    second = build(place / "app:other", place / "b.enclave")
    assert (first.manifest.entry, second.manifest.entry) == ("app:app", "app:other")
    assert first.manifest.interface == second.manifest.interface
    (place / "two.py").write_text(ENCLAVES)
    with pytest.raises(BundleError, match="found: One, Two; an ASGI application is named as module:attribute"):
        build(place / "two.py", place / "c.enclave")
    assert b"pong" in build(place / "two:Two", place / "c.enclave").manifest.interface
    for attribute, reason in (("missing", "has nothing called missing"), ("__name__", "can be called, and no class")):
        with pytest.raises(BundleError, match=reason):
            build(place / f"app:{attribute}", place / "d.enclave")
