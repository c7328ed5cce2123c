"""Processor: its name, and its instructions that decide how a network is best computed."""

import contextlib
import functools
import platform
from pathlib import Path

# As Linux names them, on x86-64 and on 64-bit ARM: those for matrix products, the best last.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def cpu_model() -> str:
    """Return the processor's name, as it gives it."""
    return _field("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the names of those instruction sets of the processor that decide the arithmetic of a network."""
    found = (_field("flags") or _field("Features")).split()
    return [name for name in _INSTRUCTION_SETS if name in found]


def has_bfloat16() -> bool:
    """Return True if the processor has instructions for matrix products in bfloat16."""
    return not _BFLOAT16.isdisjoint(instruction_sets())


@functools.cache
def _field(name: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty if there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return ""
