"""Figures for Prometheus: sums of the whole host, by small fixed sets of labels.

Runs in the untrusted host. No label names a client, session, topic, box or address, and
none takes what a client sent: a label's values are listed here.

Spec: spec/http.md (HTTP-22).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from conclave.errors import StoreConflict, StoreDamaged, StoreFull, StoreUnavailable
from conclave.host.counts import BATCH_CLASSES, Way
from conclave.host.exchange import OTHER, ROUTES, STATUSES
from conclave.host.states import Item, Snapshot, StateStore, What
from conclave.host.stores import BlobStore

if TYPE_CHECKING:
    from conclave.host.host import Host
    from conclave.host.server import Server

Value = TypeVar("Value")
Names = list[str]
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
# The last one is of state: what was committed together.
OPERATIONS: Final = ("put", "get", "list", "delete", "append")
ERRORS: Final = {
    StoreConflict: "conflict",
    StoreDamaged: "damaged",
    StoreFull: "full",
    StoreUnavailable: "unavailable",
}
DIRECTIONS: Final = ("to_enclave", "to_host")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_OUTBOX: Final = {
    "boxes": "Boxes with posted mail, or that had some.",
    "mails": "Posted mails that wait for their readers.",
    "bytes": "Bytes of them.",
    "waiting": "Frames of posted mail that are not on the store yet.",
}
# Every value that a label can have, beside the bounds of buckets.
LABELS: Final = {
    "route": frozenset({*ROUTES.values(), OTHER}),
    "status": frozenset(map(str, STATUSES)) | {OTHER},
    "direction": frozenset(DIRECTIONS),
    "operation": frozenset(OPERATIONS),
    "error": frozenset(ERRORS.values()),
}


class Metrics(Collector):
    """A registry of its own, read when somebody asks."""

    def __init__(self) -> None:
        """Figures of the process and of stores; those of a host and its servers once `watch` names them."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._store_seconds = Histogram(
            "conclave_store_seconds",
            "How long operations of the store took.",
            ["operation"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._store_errors = Counter(
            "conclave_store_errors",
            "Operations of the store that failed.",
            ["operation", "error"],
            registry=self.registry,
        )
        for operation in OPERATIONS:
            self._store_seconds.labels(operation)
            for error in ERRORS.values():
                self._store_errors.labels(operation, error)
        self._host: Host | None = None
        self._servers: tuple[Server, ...] = ()

    def watch(self, host: Host, *servers: Server) -> None:
        """Give figures of these from now on; once."""
        self._host, self._servers = host, servers
        self.registry.register(self)

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)

    def store(self, store: BlobStore) -> BlobStore:
        """The same store, measured."""
        return _Measured(store, self._store_seconds, self._store_errors)

    def state(self, store: StateStore) -> StateStore:
        """The same state store, measured."""
        return _MeasuredState(store, self._store_seconds, self._store_errors)

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: what there is now."""
        if self._host is None:
            return
        yield from self._http()
        yield from self._enclave(self._host)

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "conclave_http_requests", "HTTP requests that were answered.", labels=["route", "status"]
        )
        sums: dict[tuple[str, str], int] = {}
        for server in self._servers:
            for (route, status), number in server.answers.items():
                key = (route, str(status) if status in STATUSES else OTHER)
                sums[key] = sums.get(key, 0) + number
        for labels, number in sorted(sums.items()):
            requests.add_metric(labels, number)
        yield requests
        yield GaugeMetricFamily(
            "conclave_http_connections", "Open connections.", value=sum(len(s.connections) for s in self._servers)
        )
        yield GaugeMetricFamily(
            "conclave_http_incoming_bytes",
            "Bytes of mails and other bodies that are on their way in.",
            value=sum(s.collected for s in self._servers),
        )

    def _enclave(self, host: Host) -> Iterator[Metric]:
        counts = host.counts
        yield GaugeMetricFamily("conclave_enclave_up", "1: an enclave with evidence runs.", value=host.info is not None)
        yield CounterMetricFamily("conclave_enclave_starts", "Starts of the enclave.", value=counts.starts)
        yield CounterMetricFamily("conclave_enclave_renewals", "Renewals of key and evidence.", value=counts.renewals)
        yield GaugeMetricFamily(
            "conclave_enclave_halted", "1: this boot found its state rolled back or forked.", value=host.halted
        )
        yield CounterMetricFamily("conclave_enclave_halts", "Boots that found so.", value=counts.halts)
        yield from self._state(host)
        yield CounterMetricFamily("conclave_mails", "Mails handed to the enclave.", value=counts.mails)
        yield GaugeMetricFamily(
            "conclave_requests_in_flight", "Requests that the enclave has not answered.", value=host.in_flight
        )
        for name, value in host.outbox.sizes().items():
            yield GaugeMetricFamily(f"conclave_outbox_{name}", _OUTBOX[name], value=value)
        ways = dict(zip(DIRECTIONS, (counts.to_enclave, counts.to_host), strict=True))
        frames = CounterMetricFamily("conclave_channel_frames", "Frames on the host channel.", labels=["direction"])
        size = CounterMetricFamily("conclave_channel_bytes", "Bytes on the host channel.", labels=["direction"])
        batches = HistogramMetricFamily(
            "conclave_channel_batch_frames", "Frames that went together.", labels=["direction"]
        )
        for name, way in ways.items():
            frames.add_metric([name], way.frames)
            size.add_metric([name], way.size)
            batches.add_metric([name], _buckets(way), way.frames)
        yield from (frames, size, batches)

    def _state(self, host: Host) -> Iterator[Metric]:
        figures = host.journal.figures
        yield CounterMetricFamily("conclave_state_commits", "Commits of the enclave.", value=figures.commits)
        yield CounterMetricFamily("conclave_state_bytes", "Bytes of them.", value=figures.committed_bytes)
        yield GaugeMetricFamily(
            "conclave_state_waiting", "Commits that are not on the store yet.", value=host.journal.waiting
        )
        yield GaugeMetricFamily("conclave_state_log_records", "Records since the snapshot.", value=figures.records)
        yield GaugeMetricFamily("conclave_state_log_bytes", "Bytes of them.", value=figures.bytes)


def _buckets(way: Way) -> list[tuple[str, float]]:
    found, total = [], 0
    for number, count in enumerate(way.batches):
        total += count
        found.append((str(float(2 ** (number + 1) - 1)) if number + 1 < BATCH_CLASSES else "+Inf", float(total)))
    return found


class _Measured:
    """A store whose operations are timed and whose errors are counted."""

    def __init__(self, store: BlobStore, seconds: Histogram, errors: Counter) -> None:
        self._store = store
        self._seconds = seconds
        self._errors = errors

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        """See BlobStore."""
        return await self._timed("put", self._store.put(name, data, expected=expected))

    async def get(self, name: str) -> tuple[bytes, str] | None:
        """See BlobStore."""
        return await self._timed("get", self._store.get(name))

    async def list(self, prefix: str) -> Names:
        """See BlobStore."""
        return await self._timed("list", self._store.list(prefix))

    async def delete(self, name: str) -> None:
        """See BlobStore."""
        await self._timed("delete", self._store.delete(name))

    async def close(self) -> None:
        """See BlobStore."""
        await self._store.close()

    async def _timed(self, operation: str, work: Awaitable[Value]) -> Value:
        began = time.monotonic()
        try:
            return await work
        except tuple(ERRORS) as error:
            self._errors.labels(operation, ERRORS[type(error)]).inc()
            raise
        finally:
            self._seconds.labels(operation).observe(time.monotonic() - began)


class _MeasuredState:
    """A state store whose appends are timed and whose failures to append are counted."""

    def __init__(self, store: StateStore, seconds: Histogram, errors: Counter) -> None:
        self._store = store
        self._seconds = seconds.labels("append")
        self._errors = errors

    def read(self) -> AsyncGenerator[tuple[What, bytes], None]:
        """See StateStore."""
        return self._store.read()

    async def append(self, items: Sequence[Item]) -> None:
        """See StateStore."""
        began = time.monotonic()
        try:
            await self._store.append(items)
        except tuple(ERRORS) as error:
            self._errors.labels("append", ERRORS[type(error)]).inc()
            raise
        finally:
            self._seconds.observe(time.monotonic() - began)

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        """See StateStore."""
        await self._store.put_chunk(snapshot, index, chunk)

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        """See StateStore."""
        await self._store.complete(snapshot, manifest)

    async def forget(self) -> None:
        """See StateStore."""
        await self._store.forget()

    async def close(self) -> None:
        """See StateStore."""
        await self._store.close()
