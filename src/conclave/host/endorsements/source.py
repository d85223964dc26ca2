"""Endorsements for a host to staple: from memory, from disk, or from the vendor.

Untrusted. A vendor is asked once per document, however many ask at the same time;
what is still valid is used while the vendor cannot be reached, and not a second
longer.

Spec: spec/endorsements.md sections 1 and 6.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from conclave.errors import Error, FormatError, PlatformError, TransportError
from conclave.host.endorsements import amd, intel, schedule
from conclave.host.endorsements.amd import AmdService
from conclave.host.endorsements.cache import MAX_DOCUMENTS, Cache
from conclave.host.endorsements.documents import (
    MAX_ENDORSEMENTS,
    ChipCertificate,
    Document,
    Wanted,
    form,
    is_evaluation,
    read_document,
    vendor,
)
from conclave.host.endorsements.http import FAILURES, Failure, TimeLimits, Transport, check_address
from conclave.host.endorsements.intel import IntelService
from conclave.host.endorsements.platform import (
    PRODUCTS,
    AmdPlatform,
    IntelPlatform,
    NitroPlatform,
    Platform,
    read_platform,
)
from conclave.host.endorsements.schedule import Act, Bucket, Held, Trouble

T = TypeVar("T")

PATIENCE_SECONDS: Final = 60.0
# Requests at once and then one in each interval; and how many may be under way.
RATES: Final = {"intel": (20, timedelta(seconds=5), 4), "amd": (4, timedelta(seconds=10), 1)}
_VENDORS: Final = {"intel": "Intel", "amd": "AMD"}


class EndorsementSource(Protocol):
    """Gives a host what it staples to its enclave's evidence."""

    async def endorsements(self, evidence: bytes, kind: str, hints: bytes = b"") -> bytes:
        """Endorsements for this evidence, valid now.

        Args:
            evidence: as the enclave gave it.
            kind: `sgx`, `tdx`, `snp` or `nitro`.
            hints: endorsements as far as the machine had them, in the format of that kind.

        Raises:
            FormatError: no such evidence.
            TransportError, PlatformError: there are none to be had.
        """


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def now(self) -> datetime:
        """Aware UTC time."""

    async def sleep(self, seconds: float) -> None:
        """Return that much later."""


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Bounded(dict[str, T]):
    """Forgets what was put in longest ago, so that no stream of platforms fills the memory."""

    def __setitem__(self, name: str, value: T) -> None:
        self.pop(name, None)
        super().__setitem__(name, value)
        if len(self) > MAX_DOCUMENTS:
            del self[next(iter(self))]


class Endorsements:
    """An `EndorsementSource` over vendors' services and a cache on disk."""

    def __init__(
        self,
        directory: Path,
        *,
        intel: IntelService | None = None,
        amd: AmdService | None = None,
        evaluation: str = "standard",
        product: str | None = None,
        revocation_lists: bool = True,
        patience_seconds: float = PATIENCE_SECONDS,
        limits: TimeLimits | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Nothing is fetched before it is needed.

        Args:
            directory: the cache; made if need be, may be shared by processes.
            intel, amd: where to ask. Without, only the cache answers, which is the
                air-gapped case.
            evaluation: which TCB evaluation of Intel's: `standard`, `early`, or a number.
            product: AMD's name of the processor family (`Milan`, `Genoa`, `Turin`), for
                reports of version 2, which do not say it; without, each is tried.
            revocation_lists: whether AMD's are stapled. Clients see when they are not.
            patience_seconds: how long a call may wait for a vendor that asks to wait,
                if there is nothing else to answer with.
            limits: time limits for one request.
            clock, chance: time, and numbers from 0 up to 1; for tests.
            on_event: told of failures, as the host's is.

        Raises:
            FormatError: an address or setting is not one.
            PlatformError: the directory cannot be used.
        """
        self._services: dict[str, IntelService | AmdService] = {}
        for name, service in (("intel", intel), ("amd", amd)):
            if service is not None:
                check_address(service.url)
                if isinstance(service, IntelService) and service.root_crl_url is not None:
                    check_address(service.root_crl_url)
                self._services[name] = service
        if not is_evaluation(evaluation) or product not in (None, *PRODUCTS):
            raise FormatError("no such TCB evaluation, or no such processor family", code="service-setting")
        self._evaluation = evaluation
        self._product = product
        self._revocation_lists = revocation_lists
        self._patience = timedelta(seconds=patience_seconds)
        self._limits = limits or TimeLimits()
        self._clock = clock or SystemClock()
        self._chance = chance
        self._on_event = on_event or (lambda event: None)
        self._cache = Cache(directory, warn=self._warn)
        self._held: _Bounded[Document] = _Bounded()
        self._troubles: _Bounded[Trouble] = _Bounded()
        self._flights: dict[str, asyncio.Task[Document]] = {}
        self._transports: dict[str, Transport] = {}
        self._buckets: dict[str, Bucket] = {}
        self._lanes = _lanes()

    async def close(self) -> None:
        """Give up what is under way and close the connections; another event loop may use it then."""
        for flight in list(self._flights.values()):
            flight.cancel()
            with suppress(asyncio.CancelledError, Error):
                await flight
        for transport in self._transports.values():
            await transport.close()
        self._transports.clear()
        self._lanes = _lanes()

    async def endorsements(self, evidence: bytes, kind: str, hints: bytes = b"") -> bytes:
        """See `EndorsementSource`."""
        platform = read_platform(evidence, kind)
        if isinstance(platform, NitroPlatform):
            return b""
        if isinstance(platform, AmdPlatform) and hints:
            await self._take(platform, hints)
        documents = await self.documents(platform)
        try:
            if isinstance(platform, IntelPlatform):
                made = intel.assemble(platform, documents, self._evaluation)
            else:
                made = amd.assemble(documents)
        except FormatError as error:
            raise TransportError(
                f"the documents for {platform} do not belong together: {error}", code="vendor-content"
            ) from None
        if len(made) > MAX_ENDORSEMENTS:
            raise TransportError(f"the endorsements for {platform} are too large", code="vendor-content")
        return made

    async def documents(self, platform: Platform) -> Mapping[str, Document]:
        """The documents that make up a platform's endorsements, by name; raises as `endorsements` does."""
        if isinstance(platform, NitroPlatform):
            return {}
        if isinstance(platform, IntelPlatform):
            return await self._all(intel.wanted(platform, self._evaluation))
        return await self._amd(platform)

    async def _amd(self, platform: AmdPlatform) -> Mapping[str, Document]:
        families = self._families(platform)
        if len(families) == 1:
            leaf, above = families[0]
            return await self._all((leaf, *above))
        refused: PlatformError | None = None
        for leaf, above in sorted(families, key=lambda family: self._newest(family[0]) is None):
            try:
                found = await self._document(leaf)
            except PlatformError as error:
                if error.code not in ("vendor-missing", "endorsements-missing"):
                    raise
                refused = refused or error
            else:
                return {leaf.name: found, **await self._all(above)}
        raise refused or AssertionError

    def _families(self, platform: AmdPlatform) -> list[tuple[ChipCertificate, tuple[Wanted, ...]]]:
        """What is wanted if it is of this family or that: a report of version 2 does not say."""
        products = (self._product,) if self._product and len(platform.products) > 1 else platform.products
        return [amd.wanted(platform, p, revocation_lists=self._revocation_lists) for p in products]

    async def _take(self, platform: AmdPlatform, hints: bytes) -> None:
        """Keep what hints hold of this platform's documents, where there is nothing better."""
        now = self._clock.now()
        try:
            parts = amd.parts(hints, fetched=now)
        except FormatError as error:
            self._warn(f"what came with the machine is no use: {error}")
            return
        wanted = [w for leaf, above in self._families(platform) for w in (leaf, *above)]
        for document in parts:
            held = self._newest(document.wanted)
            better = held is None or not _known(held).usable(now)
            if document.wanted in wanted and better and _known(document).usable(now):
                self._held[document.wanted.name] = document
                await self._store(document)

    async def _all(self, wanted: tuple[Wanted, ...]) -> dict[str, Document]:
        found = await asyncio.gather(*(self._document(w) for w in wanted), return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return {d.wanted.name: d for d in found if isinstance(d, Document)}

    async def offer(self, certificate: bytes) -> Document:
        """Take an AMD certificate that came with the machine: a VLEK's, or a VCEK's that need not be fetched.

        Args:
            certificate: DER, untrusted.

        Raises:
            FormatError: not a VCEK's or VLEK's certificate.
        """
        document = read_document(amd.describe(certificate), certificate, b"", fetched=self._clock.now())
        self._held[document.wanted.name] = document
        await self._store(document)
        return document

    # One document ------------------------------------------------------------------------

    async def _document(self, wanted: Wanted) -> Document:
        """Obtain it, together with everybody who wants it now."""
        flight = self._flights.get(wanted.name)
        if flight is None:
            flight = asyncio.create_task(self._obtain(wanted))
            self._flights[wanted.name] = flight
            flight.add_done_callback(lambda done: self._landed(wanted.name, done))
        return await asyncio.shield(flight)

    def _landed(self, name: str, flight: asyncio.Task[Document]) -> None:
        self._flights.pop(name, None)
        if not flight.cancelled():
            # Looked at, so that nobody complains if all who waited are gone.
            flight.exception()

    async def _obtain(self, wanted: Wanted) -> Document:
        """Do what `schedule.decide` says until there is a document, or it says that there is none."""
        give_up = self._clock.now() + self._patience
        while True:
            act, held = self._decide(wanted)
            if held is not None and act in (Act.USE, Act.KEEP):
                return held
            if not self._can_ask(wanted):
                if held is not None and act is Act.REFRESH:
                    return held
                raise self._nothing(wanted, held)
            if act in (Act.WAIT, Act.REFUSE):
                hindrance = self._hindrance(wanted)
                if act is Act.REFUSE or (hindrance is not None and hindrance.until > give_up):
                    raise self._nothing(wanted, held)
                if hindrance is not None:
                    await self._clock.sleep((hindrance.until - self._clock.now()).total_seconds())
                continue
            async with self._lanes[vendor(wanted)], self._cache.exclusive(wanted.name):
                # Another task or process may have been quicker, or have been told to wait.
                if self._decide(wanted)[0] is act:
                    await self._fetch(wanted, held, give_up)

    def _decide(self, wanted: Wanted) -> tuple[Act, Document | None]:
        held = self._newest(wanted)
        trouble, pause = (self._trouble(n) for n in (wanted.name, vendor(wanted)))
        known = None if held is None else _known(held)
        return schedule.decide(known, trouble, None if pause is None else pause.until, self._clock.now()), held

    def _newest(self, wanted: Wanted) -> Document | None:
        """The newest in memory or on disk, where another process may have put it."""
        now = self._clock.now()
        found = [d for d in (self._held.get(wanted.name), self._cache.load(wanted)) if d is not None]
        best = max(found, key=lambda d: (_known(d).usable(now), d.window.issued, d.fetched), default=None)
        if best is not None:
            self._held[wanted.name] = best
        return best

    def _trouble(self, name: str) -> Trouble | None:
        found = [t for t in (self._troubles.get(name), self._cache.trouble(name)) if t is not None]
        return max(found, key=lambda t: t.until, default=None)

    def _hindrance(self, wanted: Wanted) -> Trouble | None:
        """What makes this document wait longest now, its own trouble or its vendor's."""
        now = self._clock.now()
        found = [t for t in map(self._trouble, (wanted.name, vendor(wanted))) if t and schedule.ahead(t.until, now)]
        return max(found, key=lambda t: t.until, default=None)

    def _can_ask(self, wanted: Wanted) -> bool:
        given_to_anybody = not isinstance(wanted, ChipCertificate) or wanted.key == "vcek"
        return vendor(wanted) in self._services and given_to_anybody

    async def _fetch(self, wanted: Wanted, held: Document | None, give_up: datetime) -> None:
        """Ask once; note the document, or the trouble."""
        try:
            await self._pace(vendor(wanted), give_up)
            document = await self._ask(wanted)
        except Failure as failure:
            self._note(wanted, failure)
            return
        now = self._clock.now()
        if held is not None and _known(held).usable(now) and held.window.issued > document.window.issued:
            # An older copy somewhere on the way is no reason to go back.
            document = replace(held, fetched=now)
        for name in (wanted.name, vendor(wanted)):
            trouble = self._trouble(name)
            # Not what another document was told in the meantime.
            if trouble is not None and not schedule.ahead(trouble.until, now):
                self._settle(name)
        self._held[wanted.name] = document
        # Writing waits for the disk; the host's clients should not.
        await self._store(document)

    async def _ask(self, wanted: Wanted) -> Document:
        name = vendor(wanted)
        service = self._services[name]
        if name not in self._transports:
            try:
                self._transports[name] = Transport(ca_file=service.ca_file, limits=self._limits)
            except OSError as error:
                raise PlatformError(
                    f"cannot use {service.ca_file} as TLS authority: {error.strerror or 'no certificates in PEM'}",
                    code="service-setting",
                ) from None
        if isinstance(service, IntelService):
            url, headers, read = intel.address(wanted, service), intel.headers(wanted, service), intel.read_answer
        else:
            url, headers, read = amd.address(wanted, service), {}, amd.read_answer
        # A list may come in hex, or in PEM.
        answer = await self._transports[name].get(url, max_size=3 * form(wanted).max_size, headers=headers)
        try:
            body, chain = read(wanted, answer.body, answer.headers)
            document = read_document(wanted, body, chain, fetched=self._clock.now())
        except FormatError as error:
            raise Failure("vendor-content", str(error)) from None
        if not _known(document).usable(document.fetched):
            raise Failure("vendor-expired")
        return document

    async def _pace(self, name: str, give_up: datetime) -> None:
        """Wait for this vendor's turn; not at all if it is too far away."""
        burst, interval, _ = RATES[name]
        now = self._clock.now()
        bucket, wait = self._buckets.get(name, Bucket.full(burst, interval, now)).take(now)
        if wait and now + wait > give_up:
            raise Failure("vendor-paced", retry_after=f"{wait.total_seconds():.0f}")
        self._buckets[name] = bucket
        if wait:
            await self._clock.sleep(wait.total_seconds())

    # What was learnt ---------------------------------------------------------------------

    async def _store(self, document: Document) -> None:
        try:
            await asyncio.to_thread(self._cache.store, document)
        except OSError as error:
            self._warn(f"cannot write the cache of endorsements: {error.strerror}; it is kept in memory")

    def _note(self, wanted: Wanted, failure: Failure) -> None:
        now = self._clock.now()
        asked = schedule.retry_after(failure.retry_after, now) if failure.retry_after else None
        for name in (wanted.name, vendor(wanted)) if failure.everywhere else (wanted.name,):
            trouble = schedule.failed(
                self._trouble(name),
                code=failure.code,
                missing=failure.code == "vendor-missing",
                retry_after=asked,
                now=now,
                chance=self._chance(),
            )
            self._troubles[name] = trouble
            with suppress(OSError):
                self._cache.store_trouble(name, trouble)
        self._on_event({"event": "endorsements", "document": wanted.name, "code": failure.code, "text": str(failure)})

    def _settle(self, name: str) -> None:
        self._troubles.pop(name, None)
        with suppress(OSError):
            self._cache.store_trouble(name, None)

    def _warn(self, text: str) -> None:
        self._on_event({"event": "endorsements", "code": "cache", "text": text})

    def _nothing(self, wanted: Wanted, held: Document | None) -> Error:
        """Why there is no such document, and what can be done."""
        copy = ""
        if held is not None:
            late = held.window.valid_until < self._clock.now()
            copy = f"; the copy here {'expired' if late else 'is valid'} {'at' if late else 'only from'} " + (
                _moment(held.window.valid_until if late else held.window.issued)
            )
        if not self._can_ask(wanted):
            how = "import it (conclave endorsements import), or say where to fetch it"
            if isinstance(wanted, ChipCertificate) and wanted.key == "vlek":
                how = "offer the certificate that came with the machine"
            return PlatformError(f"there is no {wanted.name}{copy}; {how}", code="endorsements-missing")
        trouble = self._hindrance(wanted)
        who = _VENDORS[vendor(wanted)]
        if trouble is None:
            return TransportError(f"there is no {wanted.name}{copy}", code="vendor-failed")
        again = f"it is asked again from {_moment(trouble.until)}"
        if trouble.missing:
            return PlatformError(f"{who} has no {wanted.name}{copy}; {again}", code="vendor-missing")
        return TransportError(
            f"no {wanted.name} from {who}: {FAILURES[trouble.code][0]}{copy}; {again}", code=trouble.code
        )


def _lanes() -> dict[str, asyncio.Semaphore]:
    return {name: asyncio.Semaphore(lanes) for name, (_, _, lanes) in RATES.items()}


def _known(document: Document) -> Held:
    return Held(document.fetched, document.window, schedule.MAXIMUM_AGE[type(document.wanted)])


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
