"""All blob stores pass the suite that stands open to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests._stores import S3, Postgres, postgres, s3

from conclave.host.stores import BlobStore, open_store
from conclave.testing import StoreConformance

__all__ = ["postgres", "s3"]
pytestmark = pytest.mark.slow


class _Ours(StoreConformance):
    url = ""

    def opener(self) -> Callable[[], BlobStore]:
        return partial(open_store, self.url, timeout_seconds=60)


@pytest.mark.spec("STORE-1", "STORE-2", "STORE-3", "STORE-4", "STORE-5", "STORE-6", "STORE-7", "STORE-8")
class TestDirectory(_Ours):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.url = f"file:{tmp_path / 'store'}"


@pytest.mark.spec("STORE-1", "STORE-2", "STORE-3", "STORE-4", "STORE-5", "STORE-6", "STORE-7", "STORE-9")
class TestSqlite(_Ours):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.url = f"sqlite:{tmp_path / 'store.db'}"


@pytest.mark.spec("STORE-1", "STORE-2", "STORE-3", "STORE-4", "STORE-5", "STORE-6", "STORE-7", "STORE-10")
class TestS3(_Ours):
    @pytest.fixture(autouse=True)
    def place(self, s3: S3) -> None:
        self.url = f"s3:{s3.bucket()}/below/here"


@pytest.mark.spec("STORE-1", "STORE-2", "STORE-3", "STORE-4", "STORE-5", "STORE-6", "STORE-7", "STORE-11")
class TestPostgres(_Ours):
    @pytest.fixture(autouse=True)
    def place(self, postgres: Postgres) -> Iterator[None]:
        self.url = postgres.database()
        yield
        postgres.drop(self.url)
