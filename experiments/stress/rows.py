"""What an attack counts: findings of single tries, rows of a table, faults that are alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aaren_rl.folders import replace_file

KINDS = ("lost", "tracebacks", "hangs", "crashes", "memory", "wrong", "leftovers")
"""What counts as a fault: work that was lost; an exception that is no clear error; no end in time; the end of the
process by a signal; too much memory; a success that it should not be; hidden files left behind."""


@dataclass(frozen=True)
class Finding:
    """A fault that one try showed.

    Attributes:
        kind: one of `KINDS`.
        about: what happened, the same words for the same fault.
        detail: what differs from try to try.
    """

    kind: str
    about: str
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.about}: {self.detail}" if self.detail else self.about


@dataclass
class Row:
    """Tries of one kind of attack, and the faults that they showed.

    Attributes:
        name: of the attack.
        tried: number of tries.
        counts: tries by the kind of fault.
        faults: tries by fault.
        examples: name of the first try that showed a fault.
        figures: further figures of the row, for the JSON file.
    """

    name: str
    tried: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[Finding] = field(default_factory=Counter)
    examples: dict[Finding, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, example: str, findings: Iterable[Finding]) -> None:
        """Counts one try."""
        self.tried += 1
        found = list(dict.fromkeys(findings))
        self.counts.update({finding.kind for finding in found})
        self.faults.update(found)
        for finding in found:
            self.examples.setdefault(finding, example)

    def to_json(self) -> dict[str, Any]:
        """The row in JSON's types."""
        return {"name": self.name, "tried": self.tried, **{kind: self.counts[kind] for kind in KINDS}, **self.figures}


def faulty(rows: Iterable[Row]) -> bool:
    """True if a row has a fault."""
    return any(row.faults for row in rows)


def table(rows: list[Row]) -> str:
    """The rows and their sum as a table of plain text, and the faults below it."""
    names = [row.name for row in rows]
    width = max(map(len, [*names, "together"]), default=0)
    lines = [f"{'':<{width}} {'tried':>9}" + "".join(f" {kind:>10}" for kind in KINDS)]
    for row in [*rows, together(rows)]:
        lines.append(f"{row.name:<{width}} {row.tried:>9}" + "".join(f" {row.counts[kind]:>10}" for kind in KINDS))
    for row in rows:
        for finding, count in row.faults.most_common():
            lines.append(f"{row.name}: {count} x {finding.kind}, first in {row.examples[finding]}: {finding}")
    return "\n".join(lines)


def together(rows: Iterable[Row]) -> Row:
    """The sum of rows."""
    total = Row("together")
    for row in rows:
        total.tried += row.tried
        total.counts += row.counts
    return total


def write(path: Path, part: str, rows: list[Row], **about: Any) -> None:
    """Writes rows and faults as JSON.

    Args:
        path: file to write.
        part: what ran, as "faults".
        rows: of the table.
        **about: further entries, as the seed.
    """
    faults = [
        {"row": row.name, "kind": finding.kind, "count": count, "first": row.examples[finding], "about": str(finding)}
        for row in rows
        for finding, count in row.faults.most_common()
    ]
    content = {"part": part, **about, "rows": [row.to_json() for row in rows], "faults": faults}
    replace_file(path, json.dumps(content, indent=2) + "\n")
