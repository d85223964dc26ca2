"""A host in operation: probes, figures, logs, signals, TLS; real processes throughout."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.conftest import only

from conclave.bundle import Bundle
from conclave.client import Client, MailTransport
from conclave.errors import Error, TransportError
from conclave.host.metrics import LABELS

pytestmark = pytest.mark.slow

SOURCE = """
import time

from conclave.enclave import Enclave, rpc


class Worker(Enclave):
    @rpc
    def work(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"
"""


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    desk: str
    log: Path

    def ready(self) -> tuple[int, list[str]]:
        answer = httpx2.get(f"{self.desk}/readyz")
        return answer.status_code, answer.json().get("reasons", [])

    def figures(self) -> dict[str, float]:
        """Every sample, by its name and labels as Prometheus reads them."""
        text = httpx2.get(f"{self.desk}/metrics").text
        return {k: float(v) for k, _, v in (s.rpartition(" ") for s in text.splitlines() if not s.startswith("#"))}

    def events(self, level: str | None = None) -> list[str]:
        lines = map(json.loads, self.log.read_text().splitlines())
        return [line["event"] for line in lines if level in (None, line["level"])]


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("worker", SOURCE)


Serving = Callable[..., "contextmanager[Served]"]


def own(place: Path) -> dict[str, str]:
    """An environment with a state of its own: hosts of one program and user share a store, which is for one of them."""
    return {**os.environ, "XDG_STATE_HOME": str(place)}


def told_by(process: subprocess.Popen[str], last: str) -> dict[str, str]:
    """What a command prints when it begins to serve, by the first word of each line, up to the line of that word."""
    assert process.stdout is not None
    told = {}
    for line in process.stdout:
        word, _, rest = line.partition(" ")
        told[word] = rest.strip()
        if word == last:
            break
    return told


@pytest.fixture
def serving(bundle: Bundle, machine: Path, tmp_path: Path) -> Serving:
    @contextmanager
    def serve(*arguments: str, status: int = 0, end: bool = True) -> Iterator[Served]:
        command = [sys.executable, "-m", "conclave.cli", "serve", str(bundle.path), "--platform", str(machine / "own")]
        command += ["--port", "0", "--metrics-port", "0", *arguments]
        command += [] if "--log" in arguments else ["--log", "json"]
        log = tmp_path / f"log-{secrets.token_hex(4)}"
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=own(tmp_path))
        try:
            told = told_by(process, "constraint")
            assert "serving" in told, log.read_text()
            yield Served(process, told["serving"], told["operators"], log)
            if end:
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == status, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    return serve


def until(holds: Callable[[], bool]) -> None:
    """Wait for what must come; the suite's own time-out is the limit."""
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


# Probes and figures -------------------------------------------------------------------


@pytest.mark.spec("HTTP-20", "HTTP-21", "HTTP-22")
def test_probes_and_figures(serving: Serving, bundle: Bundle, tmp_path: Path) -> None:
    with serving("--store", f"file:{tmp_path / 'store'}") as served:
        assert httpx2.get(f"{served.url}/healthz").status_code == 200
        assert httpx2.get(f"{served.url}/readyz").json() == {"status": "ready"}
        assert served.ready() == (200, [])
        # Figures have moved to the operators' port; mail has not.
        assert httpx2.get(f"{served.url}/metrics").status_code == 404
        assert httpx2.get(f"{served.desk}/instance").status_code == 404
        assert httpx2.post(f"{served.desk}/healthz").status_code == 405
        before = served.figures()
        with Client(served.url, constraint=only(bundle)) as client:
            assert [client.call("work", 0.0) for _ in range(3)] == ["done"] * 3
        assert httpx2.post(f"{served.url}/mail", content=b"none").status_code == 400
        after = served.figures()

        def grown(name: str) -> float:
            return after[name] - before.get(name, 0)

        assert grown('conclave_http_requests_total{route="/mail",status="200"}') >= 3
        assert grown('conclave_http_requests_total{route="/mail",status="400"}') == 1
        assert grown("conclave_mails_total") >= 3
        for way in ("to_enclave", "to_host"):
            assert grown(f'conclave_channel_frames_total{{direction="{way}"}}') >= 3
            assert grown(f'conclave_channel_bytes_total{{direction="{way}"}}') > 300
            assert grown(f'conclave_channel_batch_frames_bucket{{direction="{way}",le="1.0"}}') >= 1
        assert after["conclave_enclave_up"] == 1
        assert after["conclave_enclave_starts_total"] == 1
        assert after["conclave_requests_in_flight"] == 0
        assert after["conclave_outbox_mails"] == after["conclave_outbox_waiting"] == 0
        assert after['conclave_store_seconds_count{operation="get"}'] >= 1
        assert after["process_resident_memory_bytes"] > 0


@pytest.mark.spec("HTTP-22")
def test_labels_are_of_small_fixed_sets(serving: Serving, bundle: Bundle) -> None:
    """Whatever clients ask for: no figure is of one of them, and none more appears for each."""
    with serving() as served:
        with Client(served.url, constraint=only(bundle)) as client:
            client.call("work", 0.0)
        secret = secrets.token_hex(16)
        paths = (f"/{secret}", f"/outbox/{secret}", f"/mail/{secret}", f"/metrics/../{secret}")
        with httpx2.Client(base_url=served.url) as http:
            for number in range(30):
                for path in paths:
                    http.get(f"{path}{number}", params={"x": secret}, headers={"X-Request-Id": secret})
        with socket.create_connection(_address(served.url)) as raw:
            raw.sendall(f"{secret} / HTTP/9.9\r\n\r\n".encode())
            raw.recv(1000)
        text = httpx2.get(f"{served.desk}/metrics").text
        assert secret not in text
        seen: dict[str, set[str]] = {}
        for label, value in re.findall(r'[{,]([a-z_]+)="([^"]*)"', text):
            seen.setdefault(label, set()).add(value)
        bounds = seen.pop("le")
        assert all(re.fullmatch(r"\+Inf|[0-9.]+", bound) for bound in bounds)
        assert len(bounds) < 40
        assert seen.keys() == LABELS.keys()
        for label, values in seen.items():
            assert values <= LABELS[label], label
        assert sum(map(len, LABELS.values())) < 64


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    return host, int(port)


@pytest.mark.spec("HTTP-26")
def test_a_taken_port_is_told_before_an_enclave_is_launched(bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conclave.cli", "serve", str(bundle.path), "--platform", str(tmp_path / "machine")]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for ports in (("--port", port), ("--port", "0", "--metrics-port", port)):
            done = subprocess.run([*command, *ports], capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 1
            assert done.stderr == (
                f"error (transport): cannot listen on 127.0.0.1:{port}: another program listens there;"
                " choose another port (--port 0 takes a free one)\n"
            )
            assert not (tmp_path / "machine").exists()


@pytest.mark.spec("HTTP-21")
def test_an_enclave_that_dies_is_seen(serving: Serving, bundle: Bundle) -> None:
    with serving() as served:
        found = subprocess.run(
            ["ps", "--ppid", str(served.process.pid), "-o", "pid="], capture_output=True, text=True, check=True
        )
        platform = int(found.stdout.split()[0])
        subprocess.run(["kill", "-STOP", str(served.process.pid)], check=True)
        subprocess.run(["kill", "-KILL", str(platform)], check=True)
        subprocess.run(["kill", "-CONT", str(served.process.pid)], check=True)
        until(lambda: served.figures()["conclave_enclave_starts_total"] >= 2)
        until(lambda: served.ready() == (200, []))
        assert httpx2.get(f"{served.desk}/healthz").status_code == 200


@pytest.mark.spec("STORE-17")
@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_second_host_on_the_same_store_refuses(serving: Serving, bundle: Bundle, tmp_path: Path, kind: str) -> None:
    store = ("--store", f"{kind}:{tmp_path / 'store'}")
    second = [sys.executable, "-m", "conclave.cli", "serve", str(bundle.path), "--port", "0", *store]
    with serving(*store, status=-signal.SIGKILL, end=False) as served:
        done = subprocess.run(
            [*second, "--platform", str(tmp_path / "other")], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (
            1,
            "error (store-unavailable): another host uses this store; give each host its own\n",
        )
        assert served.ready() == (200, [])
        served.process.kill()
    # One that was killed holds nothing.
    with serving(*store):
        pass


@pytest.mark.spec("HTTP-21")
def test_a_store_that_is_gone_is_seen_and_forgiven(serving: Serving, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving("--store", f"file:{store}") as served:
        assert served.ready() == (200, [])
        store.rename(tmp_path / "elsewhere")
        until(lambda: served.ready() == (503, ["store"]))
        assert served.figures()['conclave_store_errors_total{error="unavailable",operation="get"}'] >= 1
        assert httpx2.get(f"{served.desk}/healthz").status_code == 200
        (tmp_path / "elsewhere").rename(store)
        until(lambda: served.ready() == (200, []))


# Logs ---------------------------------------------------------------------------------


@pytest.mark.spec("HTTP-23")
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_log_ties_mails_together(serving: Serving, bundle: Bundle, tmp_path: Path, form: str) -> None:
    """Everything that a request can carry is a value known here, and none of them is in the log."""
    known = {name: secrets.token_hex(16) for name in ("session", "box", "capability", "request", "query", "method")}
    with serving("--store", f"file:{tmp_path / 'store'}", "--log", form) as served:
        ports = []
        with Client(served.url, constraint=only(bundle)) as client:
            client.call("work", 0.0)
            with pytest.raises(Error):
                client.call(known["method"])
        address = _address(served.url)
        for path, method, body in (
            (f"/mail?x={known['query']}", "POST", bytes.fromhex(known["session"]) * 20),
            ("/mail", "POST", b"CME1" + bytes.fromhex(known["session"]) * 20),
            (f"/outbox/{known['box']}", "POST", bytes.fromhex(known["capability"]) * 2),
            (f"/outbox/{known['box']}", "POST", b"too short"),
            ("/outbox?wait=0", "GET", b""),
            (f"/{known['query']}", "GET", b""),
            ("/challenge", "POST", b"x"),
            (f"/instance/{known['request'] * 2}", "GET", b""),
        ):
            with socket.create_connection(address) as raw:
                ports.append(raw.getsockname()[1])
                head = f"{method} {path} HTTP/1.1\r\nHost: {known['request']}\r\nX-Request-Id: {known['request']}\r\n"
                head += f"Authorization: Bearer {known['capability']}\r\nContent-Length: {len(body)}\r\n"
                raw.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)
                while raw.recv(65536):
                    pass
        with socket.create_connection(address) as raw:
            ports.append(raw.getsockname()[1])
            raw.sendall(f"GARBAGE {known['request']}\r\n\r\n".encode())
            while raw.recv(65536):
                pass
    log = served.log.read_text()
    assert "serving" in log
    assert "stopped" in log
    for name, value in known.items():
        assert value not in log, name
        assert bytes.fromhex(value).decode("latin1") not in log
    for port in ports:
        assert not re.search(rf"\b{port}\b", log)
    assert "127.0.0.1" not in log
    # Nothing but times and counts has more than a few digits in a row.
    assert not re.search(r"[0-9a-f]{16}", log)


# Signals ------------------------------------------------------------------------------


@contextmanager
def working(served: Served, bundle: Bundle, seconds: float) -> Iterator[list[object]]:
    """A call that is under way for so long; its outcome, once the block has ended."""
    outcome: list[object] = []

    def call() -> None:
        try:
            with Client(served.url, constraint=only(bundle), attempts=1) as client:
                outcome.append(client.call("work", seconds, retry=False))
        except Error as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: served.figures()["conclave_requests_in_flight"] == 1)
    yield outcome
    thread.join()


@pytest.mark.spec("HTTP-25")
def test_a_stop_finishes_what_is_under_way(serving: Serving, bundle: Bundle) -> None:
    with serving(end=False) as served, working(served, bundle, 3.0) as outcome:
        served.process.send_signal(signal.SIGTERM)
        until(lambda: served.ready() == (503, ["draining"]))
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{served.url}/healthz")
        assert served.process.poll() is None
        assert outcome == []
    assert outcome == ["done"]
    assert [e for e in served.events() if e in ("serving", "draining", "drained", "stopped")] == [
        "serving",
        "draining",
        "drained",
        "stopped",
    ]
    # An operator who is told of warnings alone hears nothing of a stop that went as it should.
    assert served.events("warning") == []


@pytest.mark.spec("HTTP-25")
def test_a_stop_does_not_wait_for_ever(serving: Serving, bundle: Bundle) -> None:
    with serving("--drain-seconds", "0.5", end=False) as served, working(served, bundle, 3600.0) as outcome:
        served.process.send_signal(signal.SIGTERM)
    assert isinstance(outcome[0], Error)


@pytest.mark.spec("HTTP-25")
def test_a_second_signal_ends_at_once(serving: Serving, bundle: Bundle) -> None:
    with serving("--drain-seconds", "3600", status=128 + 15, end=False) as served:
        with working(served, bundle, 3600.0) as outcome:
            served.process.send_signal(signal.SIGTERM)
            until(lambda: served.ready() == (503, ["draining"]))
            served.process.send_signal(signal.SIGTERM)
        assert isinstance(outcome[0], Error)


@pytest.mark.spec("HTTP-25")
def test_the_keyboard_is_told_what_shells_expect(serving: Serving) -> None:
    with serving(status=130, end=False) as served:
        served.process.send_signal(signal.SIGINT)


APPLICATION = """
import asyncio


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"done"})
        print("answered", flush=True)
        return
    for _ in range(2):
        message = await receive()
        # Something to wait for: whoever does not finds nothing said.
        await asyncio.sleep(0.2)
        print(message["type"], flush=True)
        await send({"type": message["type"] + ".complete"})
"""


@pytest.mark.spec("ASGI-10", "HTTP-25")
def test_an_application_ends_its_requests_and_then_its_lifespan(machine: Path, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "conclave.cli", "run", "served:app", "--platform", str(machine / "own")]
    process = subprocess.Popen(
        [*command, "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=own(tmp_path),
    )
    with process:
        try:
            told = told_by(process, "written")
            transport = MailTransport(told["serving"], constraint=told["constraint"])
            with httpx2.Client(transport=transport, base_url="https://app") as client, client.stream("GET", "/") as got:
                parts = got.iter_bytes()
                assert next(parts) == b"begun "
                process.send_signal(signal.SIGTERM)
                assert b"".join(parts) == b"done"
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said.splitlines()[-3:] == ["lifespan.startup", "answered", "lifespan.shutdown"]


# TLS ----------------------------------------------------------------------------------


def certificate(place: Path, name: str) -> Path:
    """A new key and certificate for 127.0.0.1, where the host looks for them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    (place / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    (place / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return place / "cert.pem"


def subject(served: Served, trusted: Path) -> str:
    context = ssl.create_default_context(cafile=str(trusted))
    with (
        socket.create_connection(_address(served.url)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as s,
    ):
        found = s.getpeercert()
        assert found is not None
        return dict(pair[0] for pair in found["subject"])["commonName"]


@pytest.mark.spec("HTTP-24")
def test_tls_and_its_renewal(serving: Serving, tmp_path: Path) -> None:
    trusted = certificate(tmp_path, "first")
    with serving("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")) as served:
        assert served.url.startswith("https://")
        assert subject(served, trusted) == "first"
        with httpx2.Client(verify=ssl.create_default_context(cafile=str(trusted))) as http:
            assert http.get(f"{served.url}/readyz").json() == {"status": "ready"}
            certificate(tmp_path, "second")
            served.process.send_signal(signal.SIGHUP)
            until(lambda: "tls-loaded" in served.events())
            assert subject(served, trusted) == "second"
            # Connections that are open go on.
            assert http.get(f"{served.url}/healthz").status_code == 200
        (tmp_path / "key.pem").write_text("half a ke")
        served.process.send_signal(signal.SIGHUP)
        until(lambda: "tls-refused" in served.events())
        assert subject(served, trusted) == "second"


def test_a_client_is_told_why_tls_fails(serving: Serving, bundle: Bundle, tmp_path: Path) -> None:
    certificate(tmp_path, "unknown")
    plain = tmp_path / "plain.db"
    with (
        serving("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")) as secure,
        serving("--store", f"sqlite:{plain}") as open_to_all,
    ):
        for url, why in (
            (secure.url, "is of another name, or not trusted here; SSL_CERT_FILE"),
            (open_to_all.url.replace("http:", "https:"), r"does the host serve http://\?"),
        ):
            with Client(url, constraint=only(bundle), attempts=1) as client, pytest.raises(TransportError, match=why):
                client.verify()
            command = [sys.executable, "-m", "conclave.cli", "verify", url, "--constraint", str(only(bundle))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, bool(re.search(why, done.stderr))) == (1, True), done.stderr


@pytest.mark.spec("HTTP-24")
def test_tls_that_cannot_be(bundle: Bundle, tmp_path: Path) -> None:
    certificate(tmp_path, "x")
    (tmp_path / "other.pem").write_text("nothing")
    for key, why in (("other.pem", "used; expected"), ("missing.pem", "used: missing.pem is not there")):
        command = [sys.executable, "-m", "conclave.cli", "serve", str(bundle.path), "--port", "0"]
        command += ["--platform", str(tmp_path / "machine"), "--tls-cert", str(tmp_path / "cert.pem")]
        done = subprocess.run([*command, "--tls-key", str(tmp_path / key)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert why in done.stderr
        assert "expected two PEM files" in done.stderr
