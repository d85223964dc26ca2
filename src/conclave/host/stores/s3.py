"""A blob store in a bucket of S3, or of what speaks as S3 does.

Runs in the untrusted host. Endpoint, region and credentials are the environment's
usual variables. A conditional write whose answer is lost is not repeated: the
second try could not tell its own first one from somebody else's.

The client is called in threads of ours. Its own asynchronous calls end in threads of
its own, which abort an interpreter that happens to end beside them.

Spec: spec/stores.md (STORE-10).
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from conclave.errors import StoreConflict, StoreFull, StoreUnavailable
from conclave.host.stores.blobs import check_name, check_prefix, check_put
from conclave.host.stores.patience import Patience
from conclave.host.stores.threads import Threads

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ClientConfig, S3Config

# The text has the server's answer: its status, and its document with a code.
_FULL: Final = re.compile(r"status code: 507\b|<Code>(XMinioStorageFull|QuotaExceeded)</Code>")
_NO_BUCKET: Final = "<Code>NoSuchBucket</Code>"
# Requests at one time.
_THREADS: Final = 8


class S3Store:
    """Each blob is an object below a prefix."""

    def __init__(self, bucket: str, prefix: str, patience: Patience) -> None:
        """Connects to nothing yet. Raises StoreUnavailable if the environment does not say where."""
        self._threads = Threads(_THREADS, "s3-store", patience, _told)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config: S3Config = {} if endpoint is None else {"endpoint": endpoint}
        options: ClientConfig = {
            "timeout": timedelta(seconds=patience.timeout_seconds),
            "connect_timeout": timedelta(seconds=patience.timeout_seconds / 2),
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
        }
        try:
            self._store = obstore.store.S3Store(
                bucket,
                prefix=prefix or None,
                config=config,
                client_options=options,
                # Which attempt may be repeated is decided here.
                retry_config={"max_retries": 0},
            )
        except (BaseError, ValueError):
            raise StoreUnavailable(
                "the environment does not describe an S3 store; expected AWS_REGION or AWS_ENDPOINT_URL, "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        check_put(name, data)
        mode: PutMode = "overwrite" if expected is None else "create" if expected == "" else {"e_tag": expected}

        def work() -> str:
            result = obstore.put(self._store, name, data, mode=mode, use_multipart=False)
            if not result["e_tag"]:
                raise StoreUnavailable("the S3 server gives no etag; conditional writes need one")
            return result["e_tag"]

        return await self._threads.run(work, again=expected is None)

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        check_name(name)

        def work() -> tuple[bytes, str] | None:
            try:
                result = obstore.get(self._store, name)
            except FileNotFoundError as error:
                if _NO_BUCKET in str(error):
                    raise
                return None
            return bytes(result.bytes()), result.meta["e_tag"] or ""

        return await self._threads.run(work, again=True)

    async def list(self, prefix: str) -> list[str]:
        """See BlobStore."""
        check_prefix(prefix)
        # The server is asked for whole parts of names.
        folder = prefix.rpartition("/")[0].rstrip("/")

        def work() -> list[str]:
            found = obstore.list(self._store, folder or None).collect()
            return sorted(meta["path"] for meta in found if meta["path"].startswith(prefix))

        return await self._threads.run(work, again=True)

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        check_name(name)

        def work() -> None:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError as error:
                if _NO_BUCKET in str(error):
                    raise

        await self._threads.run(work, again=True)

    async def close(self) -> None:
        """See BlobStore."""
        self._threads.close()


def _told(error: Exception) -> Exception:
    """What an S3 server's or client's trouble is to us; its text, which others wrote, is only searched."""
    if not isinstance(error, BaseError | OSError | ValueError):
        return error
    text = str(error)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return StoreConflict("the blob is not the one that was expected")
    if _FULL.search(text):
        return StoreFull("the S3 server has no room, or the quota is used up")
    if _NO_BUCKET in text:
        return StoreUnavailable("the S3 server has no such bucket; create it first")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return StoreUnavailable(
            "the S3 server refuses these credentials; look at AWS_ACCESS_KEY_ID and the bucket's policy"
        )
    return StoreUnavailable("the S3 server cannot be reached, or answers that it has trouble")
