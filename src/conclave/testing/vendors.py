"""Intel's and AMD's endorsement services on the loopback interface, failures included.

For tests and rehearsals where the vendors cannot be reached: a real HTTP server that
speaks Intel's Provisioning Certification Service version 4 (and the two requests that
only a caching service, PCCS, answers) and AMD's Key Distribution Service. It gives
what was published to it and verifies nothing.

Formats: Intel PCS API v4; PCCS design guide; AMD 57230. Spec: spec/endorsements.md
sections 4 and 5.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, urlsplit

FaultKind = Literal["status", "slow", "drip", "cut", "reset", "redirect", "type", "content", "oversized"]
_LEVELS = ("blSPL", "teeSPL", "snpSPL", "ucodeSPL", "fmcSPL")


@dataclass(slots=True)
class Fault:
    """How requests are to fail.

    Attributes:
        kind: `status`: that status without a document; `slow`: nothing for a time;
            `drip`: a byte at a time; `cut`: the connection ends within the body;
            `reset`: it is reset instead of an answer; `redirect`: to `location`;
            `type`: the right document as text/html; `content`: `body` in its place;
            `oversized`: a body that does not end.
        match: in the path and query of the requests meant; "" means all.
        times: how often, None for ever.
        status, retry_after, seconds, location, body: see `kind`.
    """

    kind: FaultKind
    match: str = ""
    times: int | None = None
    status: int = 503
    retry_after: str | None = None
    seconds: float = 3600.0
    location: str = "http://192.0.2.1/"
    body: bytes = b"<html>Please log in.</html>"


@dataclass(frozen=True, slots=True)
class VendorRequest:
    """One request as it came: path, query, headers by lower-case name."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Answer:
    status: int
    body: bytes = b""
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class VendorServer:
    """Both services at one address, in a thread of its own, for the length of a `with` block.

    Attributes:
        url: for both services.
        root_crl_url: where Intel's root list is, as DER.
        requests: all that came, in order.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.url = ""
        self.requests: list[VendorRequest] = []
        self._tls = tls
        self._faults: list[Fault] = []
        self._published: dict[tuple[str, ...], _Answer] = {}
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    @property
    def root_crl_url(self) -> str:
        return f"{self.url}/IntelSGXRootCA.der"

    # What there is -----------------------------------------------------------------------

    def publish_intel(self, endorsements: bytes, *, evaluation: str = "standard") -> None:
        """Publish what makes up these endorsements of an SGX or TDX platform.

        Args:
            endorsements: in the format of spec/claims.md section 4, such as a simulated machine's.
            evaluation: under which TCB evaluation: `standard`, `early`, or a number.
        """
        parts = json.loads(endorsements)
        tcb, identity = json.loads(parts["tcb_info"]), json.loads(parts["qe_identity"])
        tee = tcb.get("id", "SGX").lower()
        chain = base64.b64decode("".join(parts["pck_crl_issuer_chain"].split("-----")[2].split()))
        ca = "platform" if b"PCK Platform CA" in chain else "processor"
        self._published[("root",)] = _Answer(200, bytes.fromhex(parts["root_ca_crl"]), "application/pkix-crl")
        self._published[("pck", ca)] = _Answer(
            200,
            bytes.fromhex(parts["pck_crl"]),
            "application/pkix-crl",
            {"SGX-PCK-CRL-Issuer-Chain": quote(parts["pck_crl_issuer_chain"])},
        )
        for name in (evaluation, str(tcb.get("tcbEvaluationDataNumber", evaluation))):
            self._published[("tcb", tee, tcb["fmspc"].lower(), name)] = _Answer(
                200,
                f'{{"tcbInfo":{parts["tcb_info"]},"signature":"{parts["tcb_info_signature"]}"}}'.encode(),
                headers={"TCB-Info-Issuer-Chain": quote(parts["tcb_info_issuer_chain"])},
            )
        for name in (evaluation, str(identity.get("tcbEvaluationDataNumber", evaluation))):
            self._published[("qe", tee, name)] = _Answer(
                200,
                f'{{"enclaveIdentity":{parts["qe_identity"]},"signature":"{parts["qe_identity_signature"]}"}}'.encode(),
                headers={"SGX-Enclave-Identity-Issuer-Chain": quote(parts["qe_identity_issuer_chain"])},
            )

    def publish_amd(
        self,
        product: str,
        *,
        key: str = "vcek",
        chain: str | None = None,
        crl: bytes | None = None,
        certificate: bytes | None = None,
        report: bytes | None = None,
    ) -> None:
        """Publish documents of one processor family.

        Args:
            product: `Milan`, `Genoa` or `Turin`.
            key: `vcek` or `vlek`.
            chain: the family's signing key and its root, PEM.
            crl: the root's revocation list, DER.
            certificate: a VCEK's, DER, for the chip and TCB version that `report` names.
            report: an SEV-SNP report, 1184 bytes.
        """
        if chain is not None:
            self._published[("chain", key, product)] = _Answer(200, chain.encode(), "application/x-pem-file")
        if crl is not None:
            self._published[("crl", key, product)] = _Answer(200, crl, "application/pkix-crl")
        if certificate is not None and report is not None:
            tcb, chip = report[0x180:0x188], report[0x1A0:0x1E0]
            if product == "Turin":
                chip, levels = chip[:8], (tcb[1], tcb[2], tcb[3], tcb[7], tcb[0])
            else:
                levels = (tcb[0], tcb[1], tcb[6], tcb[7], 0)
            place = ("vcek", product, chip.hex(), *map(str, levels))
            self._published[place] = _Answer(200, certificate, "application/octet-stream")

    def fail(self, kind: FaultKind, match: str = "", **how: Any) -> None:
        """Let requests fail from now on; see `Fault`."""
        self._faults.append(Fault(kind, match, **how))

    def recover(self) -> None:
        """No more failures."""
        self._faults.clear()

    # Life --------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=self._tls)
        self._started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def __enter__(self) -> Self:
        self._thread.start()
        port = self._started.result(10)
        self.url = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # One request -------------------------------------------------------------------------

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ", 2)
            parts = urlsplit(target)
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:]) if k}
            request = VendorRequest(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers)
            self.requests.append(request)
            answer = _Answer(405) if method != "GET" else self._answer(request)
            await self._send(writer, answer, self._fault(target))
        with suppress(OSError):
            writer.close()

    def _fault(self, target: str) -> Fault | None:
        for fault in self._faults:
            if fault.match in target and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    async def _send(self, writer: asyncio.StreamWriter, answer: _Answer, fault: Fault | None) -> None:
        kind = None if fault is None else fault.kind
        if fault is not None and kind == "status":
            answer = _Answer(fault.status)
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = fault.retry_after
        elif fault is not None and kind == "redirect":
            answer = _Answer(302, headers={"Location": fault.location})
        elif fault is not None and kind == "content":
            answer = _Answer(answer.status, fault.body, "text/html", answer.headers)
        elif fault is not None and kind == "slow":
            await asyncio.sleep(fault.seconds)
        elif kind == "type":
            answer = _Answer(answer.status, answer.body, "text/html", answer.headers)
        elif kind == "reset":
            # Closing with this option sends RST.
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        size = 1 << 40 if kind == "oversized" else len(answer.body)
        lines = [f"HTTP/1.1 {answer.status} -", f"Content-Type: {answer.type}", f"Content-Length: {size}"]
        lines += [f"{k}: {v}" for k, v in answer.headers.items()]
        writer.write("\r\n".join([*lines, "Request-ID: 0123456789", "Connection: close", "", ""]).encode())
        if kind == "cut":
            writer.write(answer.body[: len(answer.body) // 2])
        elif kind == "oversized":
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        elif kind == "drip":
            for byte in answer.body:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(0.05)
        else:
            writer.write(answer.body)
        await writer.drain()

    def _answer(self, request: VendorRequest) -> _Answer:
        """The document, or the status that the vendors' documentation gives."""
        query = request.query
        match request.path.strip("/").split("/"):
            case ["IntelSGXRootCA.der"]:
                return self._of("root")
            case ["sgx", "certification", "v4", "rootcacrl"]:
                found = self._of("root")
                return _Answer(found.status, found.body.hex().encode(), "application/x-pem-file")
            case ["sgx", "certification", "v4", "pckcrl"]:
                if query.get("ca") not in ("processor", "platform") or query.get("encoding", "pem") not in (
                    "pem",
                    "der",
                ):
                    return _Answer(400)
                return _encoded(self._of("pck", query["ca"]), query.get("encoding", "pem"))
            case ["sgx" | "tdx" as tee, "certification", "v4", "tcb"]:
                evaluation = _evaluation(query)
                if evaluation is None or not re.fullmatch("[0-9a-fA-F]{12}", query.get("fmspc", "")):
                    return _Answer(400)
                return self._of("tcb", tee, query["fmspc"].lower(), evaluation)
            case ["sgx" | "tdx" as tee, "certification", "v4", "qe", "identity"]:
                evaluation = _evaluation(query)
                return _Answer(400) if evaluation is None else self._of("qe", tee, evaluation)
            case ["vcek" | "vlek" as key, "v1", product, "cert_chain"]:
                return self._of("chain", key, product)
            case ["vcek" | "vlek" as key, "v1", product, "crl"]:
                return self._of("crl", key, product)
            case ["vlek", "v1", _, "cert"]:
                # Asks for a cloud provider's secret.
                return _Answer(401)
            case ["vcek", "v1", product, hwid]:
                values = {**dict.fromkeys(_LEVELS, "0"), **query}
                if set(values) != set(_LEVELS) or not all(v.isdigit() for v in values.values()):
                    return _Answer(400)
                return self._of("vcek", product, hwid, *(str(int(values[level])) for level in _LEVELS))
        return _Answer(404)

    def _of(self, *place: str) -> _Answer:
        return self._published.get(place) or _Answer(404)


def _evaluation(query: Mapping[str, str]) -> str | None:
    """Which evaluation is asked for; None if the request is not one that Intel allows."""
    if "update" in query and "tcbEvaluationDataNumber" in query:
        return None
    if "tcbEvaluationDataNumber" in query:
        number = query["tcbEvaluationDataNumber"]
        return number if number.isdigit() else None
    update = query.get("update", "standard")
    return update if update in ("early", "standard") else None


def _encoded(answer: _Answer, encoding: str) -> _Answer:
    if encoding == "der" or answer.status != 200:
        return answer
    body = base64.encodebytes(answer.body).decode()
    pem = f"-----BEGIN X509 CRL-----\n{body}-----END X509 CRL-----\n"
    return _Answer(200, pem.encode(), "application/x-pem-file", answer.headers)
