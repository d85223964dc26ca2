"""Whether a bundle is what its source gives: build again, compare.

Runs on the machine of whoever wants to know: a data owner who read the source.
The bundle is untrusted; the source is trusted as far as it was read.

Spec: spec/bundle.md section 3 (BND-15).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conclave.bundle.archive import Bundle, read_bundle
from conclave.bundle.builder import COMPILER, PYTHON_TAG, Progress, build
from conclave.bundle.manifest import FileEntry
from conclave.errors import BundleError


def reproduce(path: Path, bundle: Path, *, on_progress: Progress = lambda text: None) -> tuple[Bundle, list[str]]:
    """Build a bundle again from source and say in what the two differ.

    Args:
        path: the source: a Python file or a project directory.
        bundle: the bundle it shall be. Untrusted.

    Returns:
        The given bundle, checked, and the differences: none if the source gives exactly it.

    Raises:
        BundleError: either cannot be read or built, or the bundle is for another Python.
        SignatureError: the bundle is signed, and wrongly.
    """
    theirs = read_bundle(bundle)
    if theirs.manifest.python != PYTHON_TAG:
        raise BundleError(
            f"{bundle.name} was built by {theirs.manifest.compiler}, this is {COMPILER}: "
            "byte code can only be compared when built by the same minor release"
        )
    with tempfile.TemporaryDirectory(prefix="conclave-reproduce-") as place:
        ours = build(
            path,
            Path(place, "again.enclave"),
            mode=theirs.manifest.mode,
            compiler=theirs.manifest.compiler,
            on_progress=on_progress,
        )
    return theirs, list(_differences(ours, theirs))


def _differences(ours: Bundle, theirs: Bundle) -> Iterator[str]:
    if ours.manifest_bytes == theirs.manifest_bytes:
        return
    for name in type(ours.manifest).__struct_fields__:
        mine, given = getattr(ours.manifest, name), getattr(theirs.manifest, name)
        if mine == given:
            continue
        if name in ("wheels", "files"):
            yield from _entries(name.removesuffix("s"), mine, given)
        elif isinstance(given, bytes | list):
            yield f"{name}: differs"
        else:
            yield f"{name}: the source gives {_short(mine)}, the bundle has {_short(given)}"


def _entries(what: str, ours: list[FileEntry], theirs: list[FileEntry]) -> Iterator[str]:
    mine, given = ({e.path: e for e in entries} for entries in (ours, theirs))
    for path in sorted(mine.keys() | given.keys()):
        if path not in given:
            yield f"{what} {path!r}: not in the bundle"
        elif path not in mine:
            yield f"{what} {path!r}: not from the source"
        elif mine[path] != given[path]:
            yield f"{what} {path!r}: differs"


def _short(value: Any) -> str:
    return repr(value)[:80]
