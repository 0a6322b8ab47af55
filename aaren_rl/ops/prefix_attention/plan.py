"""How the fused kernels cut their work into programs."""

from __future__ import annotations

from typing import NamedTuple

CHUNK = 32
"""Tokens per chunk. Larger chunks do more arithmetic per value; smaller ones more sequential steps (T / CHUNK)."""

MOST_FEATURES, FEWEST_FEATURES = 128, 32
"""Largest and smallest number of features per program, unless the values have fewer."""

PROGRAMS_PER_MULTIPROCESSOR = 2
"""Number of programs below which the device idles."""

GROUPS_FROM, SMALLEST_GROUP = 1024, 4 * CHUNK
"""Shortest sequence to cut into groups, and shortest group: below these, more launches cost more than they save."""


class Plan(NamedTuple):
    """How the work is cut into programs.

    Attributes:
        features: features of the values per program, a power of two, 16 or more.
        group: tokens per program, a multiple of CHUNK.
    """

    features: int
    group: int

    def parts(self, dim: int) -> int:
        """Programs side by side over the features."""
        return _ceil(dim, self.features)

    def groups(self, time: int) -> int:
        """Programs side by side over time."""
        return max(_ceil(time, self.group), 1)

    def over_groups(self, groups: int) -> Plan:
        """The plan for the summaries of all groups but one, which are the tokens of one program."""
        return Plan(self.features, CHUNK * _ceil(groups - 1, CHUNK))

    def constants(self) -> dict[str, int]:
        """A kernel's compile-time constants and launch options."""
        return {
            "chunk": CHUNK,
            "features": self.features,
            # 16 features a warp keep every tile in registers; with 32 the widest backward spills.
            "num_warps": max(self.features // 16, 4),
            "num_stages": 2,
            # Triton 3.10 turns it off by default, and the float32 product is made of these.
            "enable_fp_fusion": True,
        }


def choose_plan(rows: int, time: int, dim: int, multiprocessors: int) -> Plan:
    """Cuts the features, then a long sequence, until the programs fill the device.

    Features come first. Each part of them computes the weights again, which costs little. Groups read the values
    twice, the second time mostly from the cache.

    Args:
        rows: batch times heads.
        time: length of the sequence in tokens.
        dim: features of the values.
        multiprocessors: number of multiprocessors of the device.
    """
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    # The matrix units take 16 features at least.
    features = min(max(_power_of_two(dim), 16), MOST_FEATURES)
    while features > FEWEST_FEATURES and rows * _ceil(dim, features) < wanted:
        features //= 2
    programs = max(rows * _ceil(dim, features), 1)
    groups = 1
    if time >= GROUPS_FROM and programs < wanted:
        groups = min(_ceil(wanted, programs), time // SMALLEST_GROUP)
    return Plan(features, CHUNK * max(_ceil(time, groups * CHUNK), 1))


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _power_of_two(number: int) -> int:
    """The number, or the next power of two."""
    return 1 << (number - 1).bit_length()
