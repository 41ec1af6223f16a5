"""Where the kernel puts the memory of processes: by default at random, so that of two equal ones one is
lastingly faster, by some hundredths of what takes microseconds."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

NOT_AT_RANDOM = 0x0040000
"""ADDR_NO_RANDOMIZE. Source: Linux, personality(2)."""
_AS_IT_IS = 0xFFFFFFFF


@contextmanager
def alike() -> Iterator[bool]:
    """Processes that this thread begins within lie in memory alike, and so do theirs. False: it was refused.

    Docker's default profile refuses it. Source: Mytkowicz et al., 2009, Producing wrong data without doing
    anything obviously wrong!, sections 3 and 5; here measured by `bench/brief.py`.
    """
    personality = ctypes.CDLL(None).personality
    personality.argtypes, personality.restype = [ctypes.c_ulong], ctypes.c_int
    before = personality(_AS_IT_IS)
    done = before >= 0 and personality(before | NOT_AT_RANDOM) >= 0
    try:
        yield done
    finally:
        if done:
            personality(before)
