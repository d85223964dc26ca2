"""The first measured code of an enclave: refuses what is not measured, then seals.

Runs inside the enclave as `python -I -S bootstrap.py` with the bundle as working
directory and nothing else; standard library only until the checks are done. Also
what an operator gets who runs it by hand: the same refusals.

Spec: spec/host-channel.md section 4 (BOOT-1 to BOOT-3).
"""

import ctypes
import os
import sys
from collections.abc import Sequence

REFUSED = 78
ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
DESCRIPTORS = (0, 1, 2, 3, 4)
# On hardware there is no platform process to talk to.
HARDWARE_DESCRIPTORS = DESCRIPTORS[:-1]
# What of the runtime's root may be read, where that is not the sandbox's own root.
TREE = ("runtime", "usr", "lib", "lib64")
_MAX_DESCRIPTOR = 4096


def raw_environment() -> list[bytes]:
    """The strings the process was started with: also what is no variable, or stands there twice."""
    strings = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    found: list[bytes] = []
    while (string := strings[len(found)]) is not None:
        found.append(string)
    return found


def descriptors() -> tuple[int, ...]:
    """What is open."""
    found = []
    for number in range(_MAX_DESCRIPTOR):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return tuple(found)


def refusal() -> str | None:
    """Why this start is refused, or None."""
    if sys.argv != [__file__] or len(sys.orig_argv) != 4 or sys.orig_argv[1:3] != ["-I", "-S"]:
        return "arguments: the bootstrap is started as `python -I -S bootstrap.py` and takes none"
    if sys._xoptions or sys.warnoptions:
        return "interpreter options beside -I and -S are set"
    extra = sorted(set(os.environ) - set(ENVIRONMENT))
    if extra:
        return "environment variables that are not measured are set: " + ", ".join(extra)[:200]
    if dict(os.environ) != ENVIRONMENT:
        return "environment: LC_ALL=C.UTF-8 must be set"
    if raw_environment() != [b"LC_ALL=C.UTF-8"]:
        return "the environment holds more than its variables"
    found = descriptors()
    if found not in (DESCRIPTORS, HARDWARE_DESCRIPTORS):
        return f"open descriptors are {list(found[:32])}, must be {list(DESCRIPTORS)}, on hardware without the last"
    return None


def main() -> None:
    """Check, load the runtime, close the sandbox, run."""
    why = refusal()
    if why is not None:
        os.write(2, b"conclave bootstrap: refused: " + why.encode("ascii", "replace") + b"\n")
        os._exit(REFUSED)
    runtime = os.path.dirname(os.path.abspath(__file__))
    bundle = os.getcwd()
    temporary = os.path.join(os.path.dirname(bundle), "tmp")
    sys.dont_write_bytecode = True
    sys.path.append(runtime + "/site")
    # Everything the runtime needs is loaded before the sandbox closes; author code
    # is looked for only afterwards.
    from conclave.enclave import _runtime, _sandbox, drivers

    def close(places: Sequence[str] = ()) -> str:
        # In the tree alone: where it is the root, much else lies below it on hardware.
        trees = [os.path.join(root, name) for name in TREE] if places else [root]
        try:
            return _sandbox.close(trees, bundle=bundle, temporary=temporary, devices=places)
        except OSError as error:
            os.write(2, b"conclave bootstrap: refused: sandbox: " + str(error).encode("ascii", "replace") + b"\n")
            os._exit(REFUSED)

    root = os.path.dirname(runtime)
    simulated = descriptors() == DESCRIPTORS
    if simulated:
        close()
    if temporary != "/tmp":  # noqa: S108
        # Without a root of its own, the one place to write has another name.
        os.environ["TMPDIR"] = temporary
    _runtime.main(drivers.find, None if simulated else close)


if __name__ == "__main__":
    main()
