"""What all command lines share: errors without tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Callable

from aaren_rl.errors import AarenError
from aaren_rl.training import Interrupted


def run(command: Callable[[], None]) -> None:
    """Runs a command; an error that the user can mend is printed in one paragraph, with exit status 2 (130 for Ctrl-C)."""
    try:
        command()
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(130)
    except AarenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)
