"""What a saved training must look like before any of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aaren_rl.errors import CheckpointError
from aaren_rl.model.weights_check import scaling_fault

RANDOM, CARRIED = "random.", "carried."
"""How the names of random states, and of the state carried between segments, begin."""

LARGEST = 1e15
"""Largest weight or moment that training could have left: products of such numbers would overflow float32."""

_GENERATOR_BYTES = {"cpu": torch.Generator().get_state().numel(), "cuda": 16}
"""Size of the state of a generator on a type of device; that on a GPU is a seed and an offset."""

_SHOWN = 5
"""Tensors that an error names at most."""


@dataclass(frozen=True)
class Expected:
    """Tensors of a saved training, by examples whose values do not matter.

    Attributes:
        required: those that must be there, by name.
        groups: those of which all or none must be there: an optimiser has nothing on a parameter without a gradient.
        ignored: names that may be there and are not taken.
        generators: devices of the generators whose random states are among them, by the states' names without
            `RANDOM` and what is before it.
    """

    required: Mapping[str, Tensor]
    groups: tuple[Mapping[str, Tensor], ...]
    ignored: frozenset[str]
    generators: Mapping[str, torch.device]

    def prefixed(self, prefix: str) -> Expected:
        """The same tensors, under names that begin with a prefix."""
        required, *groups = (
            {prefix + name: tensor for name, tensor in group.items()} for group in (self.required, *self.groups)
        )
        return Expected(required, tuple(groups), frozenset(prefix + name for name in self.ignored), self.generators)

    def joined(self, other: Expected) -> Expected:
        """The tensors of both."""
        groups, ignored = (*self.groups, *other.groups), self.ignored | other.ignored
        return Expected({**self.required, **other.required}, groups, ignored, self.generators)

    def check(self, saved: Mapping[str, Tensor]) -> None:
        """Checks the name, shape, dtype and values of every tensor of a saved training.

        Raises:
            CheckpointError: tensors are missing, unknown, of another shape or dtype, or hold what no training leaves;
                the message names them.
        """
        expected = dict(self.required)
        for group in self.groups:
            expected |= group if group.keys() & saved.keys() else {}
        faults = [f"{name} is missing" for name in expected if name not in saved]
        for name, tensor in saved.items():
            if name in self.ignored:
                continue
            known = expected.get(name)
            fault = "is unknown" if known is None else _fault(name, tensor, known, self.generators)
            faults += [f"{name} {fault}"] if fault else []
        faults = faults or _moment_faults(saved)
        if faults:
            more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise CheckpointError(f"the saved training does not fit: {'; '.join(faults[:_SHOWN])}{more}")


def device_type_of(random_state: Tensor) -> str | None:
    """The type of device that a generator's state is of, by its size; None for a state of no known generator."""
    found = [kind for kind, size in _GENERATOR_BYTES.items() if random_state.shape == (size,)]
    return found[0] if found and random_state.dtype == torch.uint8 else None


def _fault(name: str, tensor: Tensor, like: Tensor, generators: Mapping[str, torch.device]) -> str | None:
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        found, expected = (f"{str(each.dtype)[6:]} of shape {tuple(each.shape)}" for each in (tensor, like))
        return f"is {found}, expected {expected}"
    if RANDOM in name:
        return _random_fault(tensor, generators[name.rpartition(RANDOM)[2]])
    if not tensor.is_floating_point():
        return None
    # A state before the first token may hold -inf, the greatest of no scores.
    good = ~tensor.isnan() & (tensor != torch.inf) if CARRIED in name else tensor.isfinite()
    if not good.all():
        return "holds a NaN or an infinite value"
    if fault := scaling_fault(name, tensor):
        return fault
    if name.endswith((".exp_avg_sq", ".step")) and (tensor < 0).any():
        return f"holds {tensor.min():.3g}, expected nothing below 0"
    if CARRIED not in name and (tensor.abs() > LARGEST).any():
        return f"holds a value of {tensor.abs().max():.3g}, expected at most {LARGEST:g}"
    return None


def _moment_faults(saved: Mapping[str, Tensor]) -> list[str]:
    """Means of gradients that are larger than their means of squares allow (Cauchy and Schwarz, AdamW's own decays).

    With decays of 0.9 and 0.999 the square of the one is at most 53 times the other. Where it is not, one of the two
    was altered, and the next update would throw its weights far off.
    """
    faults = []
    for name, mean in saved.items():
        squares = saved.get(name.removesuffix(".exp_avg") + ".exp_avg_sq")
        if not name.endswith(".exp_avg") or squares is None:
            continue
        # Squares below 1e-38 are 0 in float32.
        if (mean.double().square() > 100 * squares.double() + 1e-30).any():
            faults.append(f"{name} and {name}_sq are not of the same gradients")
    return faults


def _random_fault(tensor: Tensor, device: torch.device) -> str | None:
    """Tries a random state on a generator of its own."""
    try:
        torch.Generator(device).set_state(tensor)
    except RuntimeError as error:
        return f"is no state of a random generator ({str(error).splitlines()[0]})"
    return None
