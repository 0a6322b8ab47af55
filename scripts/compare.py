"""Compares agents over datasets and seeds: `python scripts/compare.py comparison.toml --jobs 4`."""

from __future__ import annotations

import tyro

from aaren_rl.experiments.comparison.compare import Request, compare
from aaren_rl.experiments.console import run, say


def main() -> None:
    """Entry point of `aaren-compare`."""
    run(lambda: compare(tyro.cli(Request, prog="compare", config=(tyro.conf.FlagCreatePairsOff,)), say))


if __name__ == "__main__":
    main()
