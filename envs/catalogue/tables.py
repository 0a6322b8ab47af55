"""The files beside this one."""

from __future__ import annotations

import sys
from functools import cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@cache
def table(name: str) -> dict[str, Any]:
    """The content of a TOML file."""
    return tomllib.loads(text(f"{name}.toml"))


def text(file: str) -> str:
    """The text of a file."""
    return (resources.files("aaren_rl.envs.catalogue") / file).read_text("utf-8")
