"""An operator who owns genuine processors, and old and other endorsements for them: T-12, T-24 to T-31.

He signs nothing that a vendor would not: everything here is built under a test PKI of the
vendor's shape, as genuine hardware in hostile hands would make it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from conclave.bundle import Bundle, unpack
from conclave.enclave import _runtime
from conclave.enclave._sandbox import in_memory
from conclave.enclave.drivers.nsm import NitroTee, Nsm
from conclave.errors import BundleError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

HONEST = """
from conclave.enclave import Enclave, rpc

class Honest(Enclave):
    @rpc
    def give(self, secret: str) -> None:
        self.kept = secret
"""


# The operator lays out the bundle ----------------------------------------------------


@pytest.mark.spec("T-12", "BND-4")
@pytest.mark.parametrize("change", ["contents", "byte code", "package"])
def test_a_bundle_with_the_names_and_sizes_of_another(
    author: Callable[..., Bundle], tmp_path: Path, change: str
) -> None:
    """On hardware nobody measures more of a bundle than its manifest: the runtime must."""
    from tests.imitations.nsm import Module
    from tests.imitations.processor import Nitro

    bundle = author("genuine", HONEST)
    unpack(bundle, tmp_path / "bundle")
    source = tmp_path / "bundle" / "app" / "genuine.py"
    if change == "package":
        (tmp_path / "bundle" / "app" / "torch").mkdir()
    else:
        path = next((source.parent / "__pycache__").iterdir()) if change == "byte code" else source
        honest = path.read_bytes()
        path.write_bytes(honest.replace(b"kept", b"sent"))
        assert len(path.read_bytes()) == len(honest)
        assert path.read_bytes() != honest
    tee = NitroTee(Nsm(-1, ioctl=Module(Nitro(NOW)).ioctl))
    with pytest.raises(BundleError, match=r"differs from what the manifest says|is not in the manifest"):
        _runtime._prepare(tmp_path / "bundle", tee, None)
    assert "genuine" not in sys.modules


@pytest.mark.spec("T-12", "DRV-28")
def test_a_bundle_on_a_disk_that_changes_after_it_was_checked(author: Callable[..., Bundle], tmp_path: Path) -> None:
    from tests.imitations.nsm import Module
    from tests.imitations.processor import Nitro

    unpack(author("genuine", HONEST), tmp_path / "bundle")
    assert not in_memory(str(tmp_path / "bundle")) or pytest.skip("everything lies in memory here")
    tee = NitroTee(Nsm(-1, ioctl=Module(Nitro(NOW)).ioctl))
    with pytest.raises(_runtime.StartError, match="where the host can change it"):
        _runtime._prepare(tmp_path / "bundle", tee, lambda places: "landlock")
