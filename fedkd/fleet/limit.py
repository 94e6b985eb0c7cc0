"""The memory that a node may have, so that a round that wants too much fails by itself and takes nobody along."""

from __future__ import annotations

from pathlib import Path

from fedkd.errors import ConfigError

WORK = 48 * 2**20
"""Bytes that a node needs for the smallest of rounds: linear algebra alone sets 32 MiB aside."""
STATUS = Path("/proc/self/status")


def cap_memory(limit: int | None) -> None:
    """Let this process have at most ``limit`` bytes of memory to write to; raise if it could not even start.

    What it asks for counts, which is more than what it uses by the 32 MiB of linear algebra and the like. A round that
    wants more fails with a MemoryError, costs its answer, and leaves node and device as they were.
    """
    if limit is None:
        return
    if not STATUS.exists():
        raise ConfigError("--max-memory is known to work on Linux only; join again without it")
    import resource

    least = held() + WORK
    if limit < least:
        raise ConfigError(f"--max-memory must be at least {least / 1e6:.0f} (MB) here, got {limit / 1e6:.0f}")
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def held() -> int:
    """Return the bytes of memory to write to that this process has asked for so far."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmData"))
    return 1024 * int(line.split()[1])
