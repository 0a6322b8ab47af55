"""What holds for the project as a whole: imports go down only, nothing unpickles, scripts are short."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (
    {"errors"},
    {"actor", "cuda_graph", "figures", "folders", "spec"},
    {"data"},
    {"ops"},
    {"mixers"},
    {"model"},
    {"checkpoint", "core"},
    {"stepping"},
    {"training"},
    {"agents", "envs"},
    {"experiments"},
    {"scripts"},
    {"benchmarks"},
)
"""Rooms from the ground up. A file imports from its room and from lower levels, not from a room beside it."""

FOLDERS = ("aaren_rl", "agents", "envs", "experiments", "scripts", "benchmarks")


def module_name(path):
    """The name by which a file is imported: those of folders beside aaren_rl/ lie in it once installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    if parts[0] == "benchmarks":
        return parts[-1]
    return ".".join(parts if parts[0] == "aaren_rl" else ("aaren_rl", *parts))


SOURCES = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def room_of(module):
    if module in SOURCES and SOURCES[module].parent.name == "benchmarks":
        return "benchmarks"
    return module.split(".")[1] if "." in module else "front door"


def imports(tree, everywhere=True):
    """Project modules that a syntax tree imports; with `everywhere` False only those that importing it imports."""
    for node in ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # The version is a constant, not the front door.
            names = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif everywhere or not (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            yield from imports(node, everywhere)
        for name in names:
            while name and name not in SOURCES:
                name = name.rpartition(".")[0]
            if name:
                yield name


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_only(module):
    room = room_of(module)
    if room == "front door":
        return
    (level,) = (number for number, rooms in enumerate(LEVELS) if room in rooms)
    allowed = {room}.union(*LEVELS[:level])
    beyond = {name for name in imports(ast.parse(SOURCES[module].read_text())) if room_of(name) not in allowed}
    assert not beyond, f"{SOURCES[module].relative_to(ROOT)} imports {sorted(beyond)}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for module, path in SOURCES.items():
        graph[module] = set(imports(ast.parse(path.read_text()), everywhere=False))
        # Importing a module runs the packages above it first; those above this file run already.
        for parts in [name.split(".") for name in graph[module]]:
            above = {".".join(parts[:count]) for count in range(2, len(parts))}
            graph[module] |= {name for name in above if not f"{module}.".startswith(f"{name}.")}
    # Raises CycleError, which names the circle.
    assert len(list(TopologicalSorter(graph).static_order())) == len(SOURCES)


def test_nothing_is_unpickled():
    for path in SOURCES.values():
        assert not re.search(r"torch\.load\(|import pickle|allow_pickle=True|joblib", path.read_text()), path


COMMANDS = [*sorted((ROOT / "scripts").glob("[!_]*.py")), ROOT / "benchmarks" / "benchmark.py"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.stem)
def test_every_command_line_explains_itself(command, tmp_path):
    environment = {**os.environ, "COLUMNS": "120"}
    ran = subprocess.run(
        [sys.executable, command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert command.stem in ran.stdout.split("\n")[0]
    assert list(tmp_path.iterdir()) == []


def test_scripts_stay_short():
    """They parse, call and print; what they do is importable from experiments."""
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "scripts").glob("*.py")) < 720


def test_a_checkout_that_was_not_installed_is_whole():
    """Where a user starts Python in the checkout, its folders are the package's rooms."""
    code = "import aaren_rl, aaren_rl.envs.catalogue as room; print(aaren_rl.fit.__name__, room.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["fit", str(ROOT / "envs" / "catalogue" / "__init__.py")]
