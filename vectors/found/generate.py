"""Makes vectors of inputs that once ended in a traceback.

Nothing of `conclave` is imported.

Usage: python vectors/found/generate.py [DIRECTORY]
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent


def broken_wheel() -> bytes:
    """A wheel whose first member's deflate stream begins with an impossible block."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in ("thing/__init__.py", "thing-1.dist-info/METADATA"):
            wheel.writestr(zipfile.ZipInfo(name), "content " * 20, zipfile.ZIP_DEFLATED)
    data = bytearray(buffer.getvalue())
    start = 30 + len("thing/__init__.py")
    data[start : start + 4] = b"\xff" * 4
    return bytes(data)


CASES = {
    "wheel-broken-stream": ("BND-12", "A wheel with a broken deflate stream.", "wheel", broken_wheel()),
    "lock-not-utf-8": ("BND-10", "A lock that is not UTF-8.", "lock", b"# conclave lock 1 \xff\n"),
}


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, (spec, comment, kind, data) in CASES.items():
        case = {"id": f"found/{name}", "spec": spec, "comment": comment, "expect": "bundle", kind: data.hex()}
        (target / f"{name}.json").write_text(json.dumps(case, indent=2) + "\n")


if __name__ == "__main__":
    main()
