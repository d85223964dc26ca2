"""Our bundles agree with vectors that another program made from the specification."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conclave.bundle import parse_manifest, read_bundle
from conclave.bundle.archive import write_archive
from conclave.errors import BundleError

PLACE = Path(__file__).parents[2] / "vectors" / "bundle"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(PLACE.glob("*.json"))}


def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {p.name: p.read_text() for p in PLACE.glob("*.json")}
    assert len(CASES) == 12


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case["expect"] == "ok"])
@pytest.mark.spec("BND-1", "BND-7")
def test_accepted(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / "a.enclave"
    path.write_bytes(bytes.fromhex(case["archive"]))
    bundle = read_bundle(path)
    assert bundle.manifest_bytes.hex() == case["manifest"]
    assert (bundle.code.hex(), bundle.signer.hex()) == (case["code"], case["signer"])
    assert bundle.bundle_id.hex() == case["bundle_id"]
    # Both encodings give the same bytes again.
    assert parse_manifest(bundle.manifest_bytes).encode() == bundle.manifest_bytes
    with zipfile.ZipFile(path) as archive, open(tmp_path / "b", "wb") as again:
        write_archive(again, [(n, archive.read(n)) for n in archive.namelist()])
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case["expect"] != "ok"])
def test_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.enclave"
    path.write_bytes(bytes.fromhex(CASES[name]["archive"]))
    with pytest.raises(BundleError) as refused:
        read_bundle(path)
    assert refused.value.code == CASES[name]["expect"]
