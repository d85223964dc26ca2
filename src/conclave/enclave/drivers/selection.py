"""Which TEE this is, by what the machine offers and nothing else.

Runs inside the enclave, before author code. No argument, variable or file of the
host's chooses: a machine that offers none or several is refused.

Spec: spec/drivers.md section 1 (DRV-5, DRV-6).
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from conclave.enclave.drivers import gramine, nsm, sevguest, tsm
from conclave.enclave.drivers.files import Folder
from conclave.enclave.drivers.simulated import SimulatedTee
from conclave.enclave.drivers.tee import Tee
from conclave.errors import PlatformError

PLATFORM_FD: Final = 4


def find(root: Path = Path("/")) -> Tee:
    """The one TEE there is here.

    Args:
        root: where `dev` and `sys` are looked for.

    Raises:
        PlatformError: there is none, or more than one.
    """
    offered: list[Tee] = []
    reasons: list[str] = []
    probes: tuple[Callable[[Path], Tee | str], ...] = (_simulated, _gramine, _tsm, _nsm)
    for probe in probes:
        found = probe(root)
        if isinstance(found, str):
            reasons.append(found)
        else:
            offered.append(found)
    if len(offered) == 1:
        return offered[0]
    if offered:
        kinds = ", ".join(tee.kind for tee in offered)
        raise PlatformError(f"this machine offers more than one TEE ({kinds}), and nobody may choose")
    raise PlatformError("this machine offers no TEE that is known here: " + "; ".join(reasons))


def _simulated(root: Path) -> Tee | str:
    with suppress(OSError):
        if stat.S_ISSOCK(os.fstat(PLATFORM_FD).st_mode):
            return SimulatedTee(socket.socket(fileno=PLATFORM_FD))
    return "simulated: no channel of a platform process"


def _gramine(root: Path) -> Tee | str:
    place = root / gramine.PLACE
    if not os.path.isdir(place):
        return f"sgx: no /{gramine.PLACE}"
    # Gramine without SGX has the directory, with nothing but keys in it.
    if not os.path.exists(place / "attestation_type"):
        return f"sgx: /{gramine.PLACE} holds no attestation type, so Gramine runs without SGX"
    return gramine.GramineTee(Folder(place))


def _tsm(root: Path) -> Tee | str:
    place = root / tsm.PLACE
    reports = tsm.Reports(Folder(place))
    try:
        provider = reports.provider()
    except OSError as error:
        return f"snp and tdx: /{tsm.PLACE}: {error.strerror}"
    if provider == tsm.SnpTee.provider:
        return tsm.SnpTee(reports, sevguest.SevGuest(root / sevguest.PLACE), places=[str(place)])
    if provider == tsm.TdxTee.provider:
        return tsm.TdxTee(reports, registers=Folder(root / tsm.REGISTERS), places=[str(place)])
    return f"snp and tdx: /{tsm.PLACE} has a provider that is not known here"


def _nsm(root: Path) -> Tee | str:
    path = root / nsm.PLACE
    try:
        # Kept for the whole boot; the device needs no privilege once it is open.
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"nitro: /{nsm.PLACE}: {error.strerror}"
    return nsm.NitroTee(nsm.Nsm(descriptor))
