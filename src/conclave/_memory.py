"""Memory that the C library keeps for later use.

Runs at every party. Without it each block of more than 128 KiB comes as fresh pages from
the kernel, which cost more than what is done with them.
"""

from __future__ import annotations

from functools import cache


@cache
def keep_memory(mib: int) -> None:
    """Have blocks of up to so many MiB, at most 31, reused from now on.

    Once in a process, for each number: a second block would come from what is kept, and each page of it be touched.
    """
    bytearray(mib * 1024 * 1024)
