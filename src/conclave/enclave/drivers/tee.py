"""What every TEE driver offers, and what all of them check alike.

Runs inside the enclave. Nothing here touches a device.

Spec: spec/drivers.md section 1 (DRV-1 to DRV-4, DRV-29).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from conclave import _codec, _crypto
from conclave._crypto import Secret
from conclave.attestation.claims import MAX_EVIDENCE
from conclave.attestation.claims import bundle_id as bundle_id_of
from conclave.errors import PlatformError, UnsupportedPolicy

REPORT_DATA_SIZE: Final = 64
MAX_CONTEXT: Final = 256
MAX_HINTS: Final = 65536
POLICIES: Final = ("code", "signer", "product")
NO_BUNDLE: Final = bytes(32)


class Identity(_codec.Record, frozen=True):
    """What the TEE says about the program it launched."""

    tee: str
    bundle_id: bytes
    sandbox: str


@dataclass(frozen=True, slots=True)
class Mounted:
    """The bundle that lies here, as the measured runtime read it. Not yet what the TEE names."""

    code: bytes
    signer: bytes
    product_id: int
    revocation_level: int

    @property
    def bundle_id(self) -> bytes:
        """The 32 bytes by which a TEE would name it."""
        return bundle_id_of(
            code=self.code,
            signer=self.signer,
            product_id=self.product_id,
            revocation_level=self.revocation_level,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence as the TEE made it, and what the machine gave along.

    Attributes:
        format: how to parse `data`: `sgx`, `tdx`, `snp` or `nitro`.
        data: holds the report data that was asked for.
        hints: endorsements as far as the machine had them, in the form of that format, or
            empty. From the host, checked by nobody.
    """

    format: str
    data: bytes
    hints: bytes = b""


class Tee(Protocol):
    """One TEE as a measured runtime sees it. Safe to use from several threads."""

    @property
    def kind(self) -> str:
        """`simulated`, `sgx`, `snp`, `tdx` or `nitro`."""

    @property
    def places(self) -> Sequence[str] | None:
        """Directories this driver needs while author code runs; None: no sandbox is possible here."""

    def identity(self, mounted: Mounted) -> Identity:
        """The bundle that this TEE names, from now on out of reach of author code.

        Called once, before author code runs. Where the runtime does the naming, it
        names `mounted`; the caller compares in any case.

        Raises:
            PlatformError: the TEE is missing, refuses, or names no bundle.
        """

    def check_closed(self) -> None:
        """Called when the sandbox, if any, is closed, and author code is about to run.

        Raises:
            PlatformError: author code could reach what only the runtime may.
        """

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over 64 bytes of report data.

        Raises:
            PlatformError: the TEE refuses, or answered something else than was asked.
        """

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        """A 32-byte key that only programs with the same identity get on this machine.

        Args:
            policy: `code`, `signer` or `product`: which part of the identity binds.
            context: up to 256 bytes of domain separation.
            level: the key that programs of this revocation level have, which is none above
                the program's own; None: its own. Lower ones with `signer` and `product` alone.

        Raises:
            UnsupportedPolicy: this TEE cannot bind a key to that, or the program may not have the key of that level.
        """


def check_report_data(report_data: bytes) -> None:
    """Raises ValueError unless there are 64 bytes."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise ValueError(f"report data has {REPORT_DATA_SIZE} bytes, not {len(report_data)}")


def check_context(context: bytes) -> None:
    """Raises ValueError if there are more than 256 bytes."""
    if len(context) > MAX_CONTEXT:
        raise ValueError(f"the context of a sealing key has at most {MAX_CONTEXT} bytes, not {len(context)}")


def check_level(policy: str, level: int | None, own: int) -> int:
    """The level whose key is meant.

    Raises:
        UnsupportedPolicy: one that a program of level `own` has no key of, now or ever.
    """
    if level is None or level == own:
        return own
    if policy == "code":
        raise UnsupportedPolicy(
            f"policy 'code' binds keys to one exact program, and its revocation level is {own}, not {level}; "
            "bind what outlives a release to 'signer' or 'product', or take its key from the KDS"
        )
    if not 0 <= level < own:
        raise UnsupportedPolicy(
            f"a program of revocation level {own} has sealing keys of the levels 0 to {own}, and none of {level}; "
            "start a release of that level, or take the key from the KDS"
        )
    return level


def check_echo(echo: bytes | None, report_data: bytes, evidence: bytes) -> None:
    """Refuse evidence that is over something else, or too large to hand out.

    The device is trusted; this catches a race or a driver of the kernel that is not
    what we know, before a client meets it.
    """
    if echo is None or not _crypto.same(echo, report_data):
        raise PlatformError("the TEE made evidence over other report data than was asked for")
    if len(evidence) > MAX_EVIDENCE:
        raise PlatformError(f"the TEE made evidence of {len(evidence)} bytes, at most {MAX_EVIDENCE} are handed out")


def unsupported(policy: str, *, tee: str, offers: str) -> UnsupportedPolicy:
    """The refusal of a policy, with the way out."""
    known = f"{policy!r}" if policy in POLICIES else "that policy"
    return UnsupportedPolicy(f"{tee} {offers}, so no sealing key is bound to {known}; take one from the KDS")


# Sealing keys ------------------------------------------------------------------------


def offered_to(mounted: Mounted) -> Sequence[str]:
    """The policies by which a key can be bound to that bundle.

    An unsigned bundle has no author to bind to: every unsigned bundle would share the key.
    """
    return POLICIES if any(mounted.signer) else POLICIES[:1]


def bound_parts(mounted: Mounted) -> dict[tuple[str, int], bytes]:
    """What each policy binds: the exact bundle, its author, its author and product.

    By policy and revocation level: the bundle's own, and with an author all below it.
    """
    own, product = mounted.revocation_level, mounted.product_id.to_bytes(2, "big")
    parts = {("code", own): mounted.bundle_id}
    if any(mounted.signer):
        for level in range(own + 1):
            parts["signer", level] = mounted.signer + level.to_bytes(2, "big")
            parts["product", level] = mounted.signer + product + level.to_bytes(2, "big")
    return parts


def policy_root(device_key: Secret, *, tee: str, policy: str, bound: bytes) -> Secret:
    """The key of one policy, from a key that the TEE gives to this runtime."""
    info = b"conclave/1 sealing root " + policy.encode() + b"\0" + bound
    return device_key.extract(b"conclave/1 " + tee.encode() + b" device key").expand(info)


def key_from(root: Secret, context: bytes) -> bytes:
    """The sealing key of one context."""
    return root.expand(b"conclave/1 sealing key\0" + context).insecure_reveal()
