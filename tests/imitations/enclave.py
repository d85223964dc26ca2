"""An enclave process on imitated hardware, started as the host starts a platform process.

`run` is that process, for a runtime of this interpreter: KIND ROOT ENDORSEMENTS FD. It says that it
was launched, and becomes the runtime, with the TEE that `find` finds below ROOT, or with
an imitated module in this very process for Nitro, whose device cannot be mounted.

`become` starts the measured bootstrap itself, in a mount namespace where the imitation
lies at the kernel's own paths.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

LAUNCH = "from tests.imitations.enclave import run; run()"
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
REFUSED = 77


def tell(endorsements: bytes) -> None:
    print(json.dumps({"event": "launched", "endorsements": endorsements.hex()}), flush=True)


def run() -> None:
    from conclave.enclave import _runtime
    from conclave.enclave.drivers import Tee, find

    kind, root, endorsements, channel = sys.argv[1:]
    os.dup2(int(channel), 3)
    tell(Path(endorsements).read_bytes())

    def nitro() -> Tee:
        from tests.imitations.nsm import Module
        from tests.imitations.processor import Nitro

        from conclave.enclave.drivers.nsm import NitroTee, Nsm

        return NitroTee(Nsm(-1, ioctl=Module(Nitro(datetime.fromisoformat(root))).ioctl))

    _runtime.main(nitro if kind == "nitro" else lambda: find(Path(root)))


def become() -> None:
    """MOUNTED ENDORSEMENTS FD COMMAND...: the command, with `sys/kernel/config` and `dev` of an imitation."""
    from conclave.platform.sandbox import mount

    mounted, endorsements, channel, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    try:
        if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
            raise OSError(ctypes.get_errno(), "unshare")
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        mount(libc, "none", "/", "", 0x4000 | 1 << 18)
        for place in ("/sys/kernel", "/dev"):
            mount(libc, "tmpfs", place, "tmpfs", 0)
        Path("/sys/kernel/config").mkdir()
        mount(libc, f"{mounted}/sys/kernel/config", "/sys/kernel/config", "", 0x1000)
        Path("/dev/sev-guest").write_bytes(b"")
        # As a guest's image does: what the host could change while it is used is copied into memory.
        bundle = Path.cwd()
        shutil.copytree(bundle, "/dev/bundle")
        mount(libc, "/dev/bundle", str(bundle), "", 0x1000)
        os.chdir(bundle)
    except OSError as error:
        print(json.dumps({"event": "refused", "code": "platform", "message": f"namespace: {error}"}), flush=True)
        os._exit(REFUSED)
    tell(Path(endorsements).read_bytes())
    os.dup2(int(channel), 3)
    os.closerange(4, 1 << 16)
    os.set_inheritable(3, True)
    os.execve(command[0], command, {"LC_ALL": "C.UTF-8"})


if __name__ == "__main__":
    {"run": run, "become": become}[sys.argv.pop(1)]()
