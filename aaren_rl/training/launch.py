"""How torchrun started this process, by the variables of the environment that it sets."""

from __future__ import annotations

import os

from aaren_rl.errors import InvalidInput


def launched() -> int:
    """Number of processes that torchrun started for this command; 1 without torchrun.

    Raises:
        InvalidInput: the variables of the environment that torchrun sets are incomplete.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return 1
    if not count.isdecimal():
        raise InvalidInput(f"the environment variable WORLD_SIZE is {count!r}; expected a number of processes")
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InvalidInput(
            f"the environment variable WORLD_SIZE is {count}, and {', '.join(missing)} is missing; start several "
            "processes with torchrun, or unset WORLD_SIZE"
        )
    return int(count)


def launched_here() -> int:
    """Number of these processes that run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1


def may_restart() -> bool:
    """True if torchrun starts the processes again should one of them fail."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def launch_name() -> str | None:
    """What torchrun's restarts of one launch have in common; None without torchrun or a name for it.

    Counts of restarts would not do: a machine that joins later counts anew.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    # Without --standalone and --rdzv-id every launch has this name.
    return None if name == "none" else name


def was_restarted() -> bool:
    """True if torchrun started these processes again after one of those before failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
