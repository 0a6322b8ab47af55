"""How much memory this process may still take."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Of cgroups of version 2 and 1: limit, use, and the entries of memory.stat for cached files, which can be dropped.

Files that were read twice are active; the system drops them too before it refuses memory.
"""


def free_memory() -> int:
    """Bytes of memory that this process may still take, by the machine, its cgroups and RLIMIT_AS."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        # Not Linux. What others use is not known, so the bound is a wide one.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        taken = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        free = min(free, most - taken)
    return min([free, *map(_left_in, cgroups())])


def in_words(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def cgroups() -> list[Path]:
    """Folders of the memory cgroups that this process is in, from its own up to the outermost."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            root = CGROUPS / "memory" if number != "0" else CGROUPS
            own = root / path.lstrip("/")
            # In a container the path is often that of the host, and the limit stands at the root.
            found += [own, *(above for above in own.parents if above == root or root in above.parents)]
    return found


def _left_in(folder: Path) -> int:
    """Bytes that a cgroup may still take; what it holds of files can be dropped."""
    for limit, usage, dropped in _FILES:
        try:
            most = (folder / limit).read_text("ascii").strip()
            if most == "max":
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            return (
                int(most) - int((folder / usage).read_text("ascii")) + sum(int(stat.get(name, 0)) for name in dropped)
            )
        except (OSError, ValueError):
            continue
    return sys.maxsize
