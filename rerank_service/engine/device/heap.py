"""Returns memory that loading a model has freed to the operating system."""

import ctypes
from contextlib import suppress

__all__ = ["return_freed_memory"]


def return_freed_memory() -> None:
    """Makes the C library give unused pages of its heap back.

    Loading converts and packs the weights in many steps. Afterwards, glibc's heap has up to 190 MB of free pages
    between the pages in use (a model of 22 million parameters in int8), which glibc would keep for later allocations.
    Other C libraries lack the call.
    """
    with suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process itself
        ctypes.CDLL(None).malloc_trim(0)
