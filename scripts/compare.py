"""Compares agents over datasets and seeds: `python scripts/compare.py comparison.toml --jobs 4`."""

from __future__ import annotations

from aaren_rl.experiments.command_line import Group, parse
from aaren_rl.experiments.comparison.compare import Request, compare
from aaren_rl.experiments.console import run, say

GROUPS = (
    Group("run", "Folder and processes of the runs.", ("out", "jobs", "d3rlpy", "imports", "table")),
    Group("cluster", "Runs on a Ray cluster, which all have to see their folder.", ("on", "cpus", "gpus")),
    Group("selection", "Part of the comparison to run and to show.", ("only", "datasets", "seeds")),
    Group("table", "Parts of the table beside the scores.", ("against", "returns", "picture", "bandit")),
)


def main() -> None:
    """Entry point of `aaren-compare`."""
    run(lambda: compare(parse(Request, "compare", GROUPS, ["file"]), say))


if __name__ == "__main__":
    main()
