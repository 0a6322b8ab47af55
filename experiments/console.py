"""What all command lines share: errors without tracebacks, results in words, the device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from tqdm import tqdm

from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.training.run import Interrupted

Say: TypeAlias = Callable[[str], object]
"""Takes a line on what was done, as `say` does."""


def run(command: Callable[[], object]) -> None:
    """Runs a command; an error that the user can mend is printed without a traceback, exit status 2 (Ctrl-C: 130)."""
    try:
        command()
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(130)
    except (AarenError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


@contextmanager
def progress(total: int, unit: str, name: str | None = None) -> Iterator[Callable[[int], object]]:
    """A progress bar; yields a function that takes how many more are done."""
    with tqdm(total=total, unit=unit, desc=name, mininterval=1.0) as bar:
        yield bar.update


def device_named(name: str) -> torch.device:
    """The device of `--device`.

    Raises:
        InvalidInput: a GPU was asked for and torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda was asked for, but torch sees no GPU; pass --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def rounded(value: float) -> str:
    """A return in words: to the whole number from 100 on, below that to three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def describe(name: str, figures: dict[str, Any]) -> str:
    """One line on a result."""
    spread = f"{rounded(figures['mean'])} +- {rounded(figures['std'])}"
    line = f"{name + ':':<11} return {spread} over {figures['episodes']} episodes"
    if figures["normalized_score"] is not None:
        line += f", normalised score {figures['normalized_score']:.1f}"
        line += "" if figures["ci95"] is None else " [{:.1f}, {:.1f}]".format(*figures["ci95"])
        line += f" ({figures['reference']})"
    asked = "" if figures["target"] is None else f", target {rounded(figures['target'])}"
    return f"{line}{asked}, {figures['environment']}, source {figures['source']}"
