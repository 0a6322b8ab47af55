"""Shared by all command lines: errors without tracebacks, results in words, progress bars, devices."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from aaren_rl.actor import Target
from aaren_rl.envs.environments import registered_limit
from aaren_rl.errors import AarenError, InvalidInput
from aaren_rl.training.launch import launched
from aaren_rl.training.run import Interrupted

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of what is no visible character: controls, directions of text, halves of pairs, unassigned."""


def run(command: Callable[[], object], together: bool = False) -> None:
    """Runs a command. Errors that a user can mend are printed without a traceback; exit status 2, after Ctrl-C 130.

    Args:
        command: to run.
        together: True if several processes may run it as one, under torchrun.
    """
    try:
        if not together and launched() > 1:
            raise InvalidInput("torchrun is for scripts/train.py; start this command by itself")
        command()
    except Interrupted as error:
        print(f"\n{printable(str(error))}", file=sys.stderr)
        sys.exit(130)
    except (AarenError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def say_nothing(line: str) -> None:
    """Takes a line that nobody is to see."""


def say(line: str) -> None:
    """Prints a line without buffering, also into a pipe."""
    print(printable(line), flush=True)


def printable(text: str) -> str:
    r"""Text with its control characters as escapes, as \x1b.

    Names in data and files may hold sequences that move the cursor, change the window's title or hide text.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in "\n\t" and unicodedata.category(character) in _HIDDEN
        else character
        for character in text
    )


@contextmanager
def progress(total: int, unit: str, name: str | None = None) -> Iterator[Callable[[int], object]]:
    """Shows a progress bar. The function that it yields takes the number of units done since the last call."""
    with tqdm(total=total, unit=unit, desc=name and printable(name), mininterval=1.0) as bar:
        yield bar.update


def device_named(name: str) -> torch.device:
    """Device of the option `--device`.

    Raises:
        InvalidInput: the name is "cuda" and torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device cuda was asked for, but torch sees no GPU; pass --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if launched() == 1:
        return torch.device("cuda")
    # torchrun gives each process of a machine a GPU of its own.
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise InvalidInput(
            f"torchrun started more processes on this machine than its {count} GPUs; pass --nproc-per-node {count}"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def rounded(value: float) -> str:
    """A return in words: rounded to a whole number from 100 on, to three digits below."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def target_in_words(target: Target) -> str:
    """A target return in words."""
    return target if isinstance(target, str) else rounded(target)


def describe(name: str, figures: dict[str, Any]) -> str:
    """One line on a result."""
    spread = f"{rounded(figures['mean'])} +- {rounded(figures['std'])}"
    line = f"{name + ':':<11} return {spread} over {figures['episodes']} episodes"
    if figures["success_rate"] is not None:
        low, high = figures["success_ci95"]
        line += f", success {100 * figures['success_rate']:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
    if figures["normalized_score"] is not None:
        line += f", normalised score {figures['normalized_score']:.1f}"
        line += "" if figures["ci95"] is None else " [{:.1f}, {:.1f}]".format(*figures["ci95"])
        line += f" ({figures['reference']})"
    target = "" if figures["target"] is None else f", target {target_in_words(figures['target'])}"
    where = [figures["environment"], *(f"{name}={value}" for name, value in figures["environment_kwargs"].items())]
    if figures["max_episode_steps"] != registered_limit(str(figures["environment"]).rpartition(":")[2]):
        where.append(f"limit {figures['max_episode_steps']} steps")
    where += figures["wrappers"]
    return f"{line}{target}, {', '.join(where)}, source {figures['source']}"
