"""Imports of large libraries, quickly."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Import large libraries in the body without looking for garbage: not meanwhile, nor among their objects later.

    They make 800,000 objects that live as long as the process. Looking through them takes a fifth of the time of the
    import, and most of a second at the end of the process.
    """
    collected, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        # Garbage that is frozen stays: not each time that a body finds its libraries imported.
        if len(sys.modules) > known:
            gc.freeze()
        if collected:
            gc.enable()
