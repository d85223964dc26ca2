"""All commands and their options.

Runs on the machine of an author, an operator or a data owner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

import conclave
from conclave.cli._state import state
from conclave.cli._tcb import tcb
from conclave.errors import BundleError

Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
Seconds = Annotated[float, Parameter(validator=Number(gt=0))]

app = App(
    name="conclave",
    help="Privacy-first applications on Trusted Execution Environments.",
    version=conclave.__version__,
    help_format="plaintext",
    # No --no-this and --empty-that: what is not given is off, or empty.
    default_parameter=Parameter(negative=()),
)


@app.command
def demo() -> int:
    """Take the tour on real data: two hospitals, one enclave, an operator who attacks.

    Example: conclave demo
    """
    from conclave.demo.tour import tour

    return tour()


@app.command
def new(name: Path, *, asgi: bool = False) -> int:
    """Write a project: enclave, client, test, README.

    Example: conclave new my-survey

    Args:
        name: the project's name, 2 to 40 characters of a-z 0-9 _ -, of which the first is a letter: a folder of this
            name is made. It may be a path: then its last part is the name, and the folders before it are there already.
        asgi: an ASGI application (Starlette) rather than a class with @rpc methods.
    """
    from conclave.cli._new import new_command

    return new_command(name, asgi=asgi)


@app.command
def run(
    path: Path,
    *,
    port: Port = 8765,
    host: str = "127.0.0.1",
    platform: Path | None = None,
    sandbox: str = "auto",
    constraint_file: Path | None = None,
    peer: tuple[str, ...] = (),
    witness: tuple[str, ...] = (),
) -> int:
    """Build an enclave in debug mode, launch it under the simulated TEE and serve it.

    Prints a ready constraint and writes it to a file beside the enclave.
    Example: conclave run hello.py

    Args:
        path: a Python file with one Enclave class, a project directory, or module:attribute of an ASGI application.
        port: TCP port; 0 takes a free one.
        host: address to listen on.
        platform: directory of the simulated machine.
        sandbox: auto, namespaces or landlock.
        constraint_file: where to write the constraint (default: beside PATH).
        peer: URL of a host whose enclave this one may call; may be repeated.
        witness: NAME=URL of a witness that the enclave declares; may be repeated.
    """
    from conclave.cli._serve import build_and_serve

    return build_and_serve(
        path,
        port=port,
        address=host,
        platform=platform,
        sandbox=sandbox,
        constraint_file=constraint_file,
        peers=peer,
        witnesses=witness,
    )


@app.command
def lock(path: Path) -> None:
    """Pin an enclave's dependencies by hash in a lock file beside it (needs uv).

    Example: conclave lock hello.py

    Args:
        path: a Python file that declares them in a `# /// script` block, or a project directory with pyproject.toml.
    """
    from conclave.bundle import lock as make_lock

    print(f"wrote {make_lock(path)}")


@app.command
def build(
    path: Path,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    sign: Path | None = None,
    request: Path | None = None,
    signature: Path | None = None,
    debug: bool = False,
    verify: Path | None = None,
    json: bool = False,
) -> int:
    """Build a bundle; prints code, signer, product, revocation level and ready constraints, and writes one beside it.

    Example: conclave build hello.py --sign author.key
    Somebody else's: conclave build hello.py --verify hello-0.enclave

    Args:
        path: a Python file with one Enclave class, a project directory, or module:attribute of an ASGI application.
        output: the bundle to write (default: NAME-VERSION.enclave here).
        sign: the author's key file, made if it does not exist yet.
        request: write the bytes to sign to this file, for a key that is kept elsewhere.
        signature: a file with public key (32 bytes) and Ed25519 signature (64 bytes) over them.
        debug: output and tracebacks reach the terminal of the host; INSECURE everywhere.
        verify: build nothing to keep, and say whether this bundle is what PATH gives (exit status 1: it is not).
        json: print one JSON object.
    """
    from conclave.cli._build import build_command, verify_build

    if verify is not None:
        if output or sign or request or signature or debug:
            raise BundleError("--verify goes with PATH and --json alone: mode and signature are the bundle's own")
        return verify_build(path, verify, as_json=json)
    mode = "debug" if debug else "release"
    build_command(path, output=output, sign=sign, request=request, signature=signature, mode=mode, as_json=json)
    return 0


@app.command
def verify(
    source: str,
    *,
    constraint: str | None = None,
    at: str | None = None,
    endorsements: Path | None = None,
    roots: Path | None = None,
    reference: Path | None = None,
    publisher: str | None = None,
    json: bool = False,
    explain: bool = False,
) -> int:
    """Verify a running enclave, saved instance info, or a processor's evidence.

    Without a constraint: whether it is authentic. With one: whether it is accepted, or every reason why not.
    Exit status 0: accepted or authentic, 10: refused by the constraint, 20: not authentic, 30: malformed,
    1: no verdict (a mistake in the command, a file that is missing, a host that does not answer).

    Example: conclave verify http://127.0.0.1:8765 --constraint hello.constraint
    Somebody's quote: conclave verify quote.bin --endorsements collateral/ --at 2026-01-31T12:00:00Z --explain

    Args:
        source: URL of a host; a file with instance info, an SGX or TDX quote, an SEV-SNP report or a Nitro attestation
            document; or a folder with one of the last three and its endorsements.
        constraint: the constraint line, or a file with it.
        at: as of when: ISO 8601 with a time zone (default: now).
        endorsements: folder with the vendor's endorsements, for evidence that comes without.
        roots: folder with root certificates that stand in for the vendors' pinned ones.
        reference: signed file of reference values: which measurements are which release.
        publisher: SHA-256 (hex) of the public key that signed it.
        json: print one JSON object (spec/verify.schema.json).
        explain: tell it step by step.
    """
    from conclave.cli._verify import verify_command

    return verify_command(
        source,
        constraint=constraint,
        at=at,
        endorsements=endorsements,
        roots=roots,
        reference=reference,
        publisher=publisher,
        as_json=json,
        explain=explain,
    )


@app.command
def inspect(source: str, *, json: bool = False) -> int:
    """Explain an artefact in words; verifies nothing.

    Example: conclave inspect hello-0.enclave

    Args:
        source: a file, the URL of a host, or a constraint line.
        json: print one JSON object.
    """
    from conclave.cli._inspect import inspect_command

    return inspect_command(source, as_json=json)


@app.command
def serve(
    bundle: Path | None = None,
    *,
    config: Path | None = None,
    print_config: bool = False,
    tee: str | None = None,
    host: str | None = None,
    port: Port | None = None,
    platform: Path | None = None,
    sandbox: str | None = None,
    store: str | None = None,
    store_timeout_seconds: float | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    metrics_host: str | None = None,
    metrics_port: int | None = None,
    log: str | None = None,
    drain_seconds: float | None = None,
    peer: tuple[str, ...] | None = None,
    witness: tuple[str, ...] | None = None,
) -> int:
    """Serve a bundle over HTTP under a TEE.

    Everything but --config and --print-config can stand in the file as well; what is given here wins.
    Example: conclave serve hello-0.enclave --tee simulated

    Args:
        bundle: made by `conclave build`.
        config: TOML file with the options below.
        print_config: show the options that result, and end.
        tee: which TEE driver; `simulated` so far (default: simulated).
        host: address to listen on (default: 127.0.0.1).
        port: TCP port; 0 takes a free one (default: 8765).
        platform: directory of the simulated machine.
        sandbox: auto, namespaces or landlock (default: auto).
        store: where posted mail and the enclave's state are kept, of this host alone: file:DIR, sqlite:FILE,
            s3:BUCKET/PREFIX or postgresql://… (default: a directory under the user's state, one for each program:
            name one if state is to outlive a new release).
        store_timeout_seconds: how long an operation of the store may take (default: 10).
        tls_cert: PEM file with the certificate chain; read again on SIGHUP.
        tls_key: PEM file with its key.
        metrics_host: address for the port of operators (default: 127.0.0.1).
        metrics_port: a port for /metrics, /healthz and /readyz; then /metrics is there alone. 0 takes a free one,
            -1 none (default: -1).
        log: console, json or none; to standard error (default: console).
        drain_seconds: how long a stop waits for what is under way (default: 20).
        peer: URL of a host whose enclave this one may call; may be repeated.
        witness: NAME=URL of a witness that the enclave declares; may be repeated.
    """
    from conclave.cli._config import settings
    from conclave.cli._serve import serve_bundle

    flags = {
        "bundle": bundle,
        "tee": tee,
        "host": host,
        "port": port,
        "platform": platform,
        "sandbox": sandbox,
        "store": store,
        "store_timeout_seconds": store_timeout_seconds,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "metrics_host": metrics_host,
        "metrics_port": metrics_port,
        "log": log,
        "drain_seconds": drain_seconds,
        "peer": peer,
        "witness": witness,
    }
    chosen = settings(config, flags)
    if print_config:
        print(chosen.text(), end="")
        return 0
    return serve_bundle(chosen)


@app.command
def attack(
    path: Path,
    *,
    workload: Path | None = None,
    seeds: Annotated[int | None, Parameter(validator=Number(gt=0))] = None,
    seconds: Seconds = 60.0,
    seed: int | None = None,
    schedule: str | None = None,
    actions: str = "",
    json: bool = False,
) -> int:
    """Run an enclave under a hostile host, and look for what does not hold.

    The operator drops, delays, reorders, duplicates, cuts, changes, swaps and replays mail, kills and forks the
    enclave, rolls its store back, swaps its program, lies about time: by schedules drawn from seeds. What must hold
    is what the workload asserts; without one, every method is called and what holds for all enclaves is checked.
    A schedule that fails is shortened and told in plain words.
    Exit status 0: nothing found, 10: found, 1: no verdict (a mistake in the command or in the workload).

    Example: conclave attack poll.py

    Args:
        path: a Python file with one Enclave class, a project directory, or module:attribute of an ASGI application.
        workload: Python file with `workload(attack)` (default: NAME_workload.py beside it; in a project workload.py).
        seeds: how many schedules, of the seeds 1, 2, … (default: as many as the time allows).
        seconds: when no further schedule is begun.
        seed: the schedule of this seed alone.
        schedule: this schedule alone, as a report gives it.
        actions: what the operator may do, with commas (default: everything): drop, delay, reorder, duplicate,
            truncate, alter, cross-wire, replay, roll-back, fork, restart, clock, bundle, stale, garbage, store.
        json: print one JSON object.
    """
    from conclave.cli._attack import attack_command

    return attack_command(
        path,
        workload=workload,
        seeds=seeds,
        seconds=seconds,
        seed=seed,
        schedule=schedule,
        actions=actions,
        as_json=json,
    )


@app.command
def call(
    url: str,
    method: str,
    *arguments: str,
    constraint: str,
    identity: Path | None = None,
    state: Path | None = None,
    timeout: Seconds = 30.0,
    deadline: Seconds | None = None,
) -> int:
    """Verify an enclave and call one of its methods; prints the result as JSON.

    Each argument is read as JSON, or as text if it is none.
    Example: conclave call http://127.0.0.1:8765 greet World --constraint hello.constraint

    Args:
        url: where the host serves; several interchangeable ones with commas between them.
        method: name of an @rpc method.
        arguments: its arguments.
        constraint: the constraint line, or a file with it.
        identity: key file of this client, made if there is none (default: a fresh identity).
        state: file that keeps a call without an answer, for the next `conclave call` to finish; needs --identity.
        timeout: seconds to wait for the host at each attempt.
        deadline: seconds for everything together (default: as long as the attempts take).
    """
    from conclave.cli._client import call_command

    return call_command(
        url,
        method,
        arguments,
        constraint,
        identity=identity,
        state=state,
        timeout_seconds=timeout,
        deadline_seconds=deadline,
    )


reference = App(name="reference", help="Reference values: which measurements are which release, signed.")
app.command(reference)


@reference.command(name="sign")
def reference_sign(values: Path, *, key: Path, output: Annotated[Path, Parameter(alias="-o")]) -> int:
    """Sign reference values; prints the publisher that clients pin.

    Example: conclave reference sign values.json --key publisher.key -o reference.values

    Args:
        values: JSON with version, number, issued, releases, bundles and minimum_tcb (spec/evidence.md section 7).
        key: the publisher's key file (`conclave build --sign` makes one).
        output: the signed file to write.
    """
    from conclave.cli._reference import sign_command

    return sign_command(values, key=key, output=output)


@reference.command(name="show")
def reference_show(path: Path, *, publisher: str, json: bool = False) -> int:
    """Verify reference values and show them.

    Example: conclave reference show reference.values --publisher 64HEX

    Args:
        path: the signed file.
        publisher: SHA-256 of the key whose word counts, 64 hex digits.
        json: print one JSON object.
    """
    from conclave.cli._reference import show_command

    return show_command(path, publisher=publisher, as_json=json)


endorsements = App(
    name="endorsements", help="Endorsements of processor vendors: what is cached, and how it crosses an air gap."
)
app.command(endorsements)


@endorsements.command(name="export")
def endorsements_export(
    directory: Path,
    *,
    evidence: list[Path] | None = None,
    cache: Path | None = None,
    intel: str | None = None,
    intel_root_crl: str | None = None,
    amd: str | None = None,
    ca_file: Path | None = None,
    evaluation: str = "standard",
    product: str | None = None,
    revocation_lists: Annotated[bool, Parameter(negative="--no-revocation-lists")] = True,
    certificate: list[Path] | None = None,
    json: bool = False,
) -> int:
    """Write cached endorsements as a folder that another machine can import.

    With --evidence, exactly what those platforms need; what is missing or due is fetched
    if there is an address to fetch it from. Without, everything that is cached and valid.
    Example: conclave endorsements export carry --evidence quote.bin --intel https://pccs.example

    Args:
        directory: folder to make.
        evidence: a quote, a report or instance info of a platform; may be repeated.
        cache: directory of the cache.
        intel: Intel's service or a caching service (PCCS), scheme and host.
        intel_root_crl: where Intel's root list is (default: at that service, as with a PCCS).
        amd: AMD's service or a mirror, scheme and host.
        ca_file: PEM of the authority for the services' TLS certificates.
        evaluation: TCB evaluation of Intel's: standard, early or a number.
        product: AMD processor family, for reports of version 2: Milan or Genoa.
        revocation_lists: whether AMD's revocation lists are wanted.
        certificate: an AMD certificate (DER) that came with a machine, such as a VLEK's; may be repeated.
        json: print one JSON object.
    """
    from conclave.cli._endorsements import Services, export_command

    services = Services(
        intel, intel_root_crl, amd, ca_file, evaluation, product, revocation_lists, tuple(certificate or ())
    )
    return export_command(directory, tuple(evidence or ()), cache=cache, services=services, as_json=json)


@endorsements.command(name="import")
def endorsements_import(directory: Path, *, cache: Path | None = None, json: bool = False) -> int:
    """Take a folder of exported endorsements into the cache: all of it or nothing.

    Example: conclave endorsements import carry

    Args:
        directory: written by `conclave endorsements export`.
        cache: directory of the cache.
        json: print one JSON object.
    """
    from conclave.cli._endorsements import import_command

    return import_command(directory, cache=cache, as_json=json)


@endorsements.command(name="list")
def endorsements_list(*, cache: Path | None = None, json: bool = False) -> int:
    """Say which endorsements are cached, and until when they are valid.

    Example: conclave endorsements list

    Args:
        cache: directory of the cache.
        json: print one JSON object.
    """
    from conclave.cli._endorsements import list_command

    return list_command(cache=cache, as_json=json)


witness = App(name="witness", help="An outside witness, which keeps operators from forking a log unseen.")
app.command(witness)


@witness.default
def witness_serve(
    *,
    key: Path,
    store: str,
    host: str = "127.0.0.1",
    port: Port = 8770,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    logs: Annotated[int, Parameter(validator=Number(gte=1))] = 100_000,
    allow: tuple[str, ...] = (),
    log: str = "console",
) -> int:
    """Countersign states of enclaves' logs, so that no log has two continuations.

    For another party than those who run the enclaves. The store must never go back: a witness
    whose store was lost or restored begins anew, with a new key.
    Example: conclave witness --key witness.key --store sqlite:witness.db

    Args:
        key: key file of this witness (`conclave witness key` makes one).
        store: where it keeps where each log stands, as of `conclave serve`.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        tls_cert: PEM file with the certificate chain.
        tls_key: PEM file with its key.
        logs: how many logs are witnessed at most.
        allow: id of a log (64 hex digits) that is witnessed; may be repeated (default: anybody's).
        log: console, json or none.
    """
    from conclave.cli._witness import witness_command

    return witness_command(
        key=key,
        store=store,
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        logs=logs,
        allow=allow,
        log=log,
    )


@witness.command(name="key")
def witness_key(path: Path) -> int:
    """Make a witness's key; prints the public half, which enclaves declare.

    Example: conclave witness key witness.key

    Args:
        path: file to make.
    """
    from conclave.cli._witness import key_command

    return key_command(path)


@witness.command(name="show")
def witness_show(path: Path) -> int:
    """Print the public half of a witness's key, 64 hex digits.

    Example: conclave witness show witness.key

    Args:
        path: the key file.
    """
    from conclave.cli._witness import show_command

    return show_command(path)


app.command(state)
app.command(tcb)
