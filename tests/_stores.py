"""Servers for the blob stores: moto's S3 in a process of its own, Debian's PostgreSQL on a socket of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) if Path("/usr/lib/postgresql").is_dir() else []


class S3:
    """A server that speaks as S3 does, for as long as the tests of one module run."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._buckets = count()

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        import httpx2

        name = f"bucket-{next(self._buckets)}"
        assert httpx2.put(f"{self.url}/{name}").status_code == 200
        return name


_PROGRAM = """
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

app, one = DomainDispatcherApplication(create_backend_app), threading.Lock()

def serial(environ, start):
    # moto looks at an etag and writes afterwards; a real server does both at once.
    with one:
        return [b"".join(app(environ, start))]

server = make_server("127.0.0.1", 0, serial, threaded=True)
print(server.port, flush=True)
threading.Thread(target=sys.stdin.read).start()
server.serve_forever()
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    server = S3(int(process.stdout.readline()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        yield server
    process.kill()
    process.wait()


class Postgres:
    """A cluster of its own on a Unix socket; stopped and started at will."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._bin = BINARIES[-1].parent
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        self._databases = count()
        self._user = "postgres"
        if self._as:
            shutil.chown(place, "postgres", "postgres")
        self._do("initdb", "-D", str(place / "data"), "-A", "trust", "-U", self._user, "-E", "UTF8", "--locale", "C")

    def _do(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._bin / program), *arguments], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.place} -c max_connections=40"
        self._do("pg_ctl", "-D", str(self.place / "data"), "-l", str(self.place / "log"), "-w", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._do("pg_ctl", "-D", str(self.place / "data"), "-w", "-m", mode, "stop")

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"store{next(self._databases)}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://{self._user}@/{name}?host={quote(str(self.place), safe='')}"

    def sql(self, database: str, statement: str) -> None:
        self._do("psql", "-h", str(self.place), "-U", self._user, "-d", database, "-qc", statement)

    def drop(self, url: str) -> None:
        self.sql("postgres", f"DROP DATABASE {self.name(url)} WITH (FORCE)")

    def name(self, url: str) -> str:
        """The database's, in a URL of this cluster."""
        return url.partition("@/")[2].partition("?")[0]

    def own(self, place: Path) -> None:
        """Give a directory to the server."""
        if self._as:
            shutil.chown(place, "postgres", "postgres")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    # The path of a Unix socket is short, and its directories must be open to another user.
    place = Path(tempfile.mkdtemp(prefix="store-", dir="/tmp"))
    place.chmod(0o755)
    try:
        server = Postgres(place)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(place, ignore_errors=True)
