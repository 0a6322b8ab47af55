"""Packages that register environments: which one an id needs, and how it is installed.

The list is the project's own. An id picks from it; data never add to it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.errors import InvalidInput


@dataclass(frozen=True)
class Package:
    """A package that registers environments when it is imported.

    Attributes:
        module: module to import.
        install: what pip installs, with the versions of other packages that it needs.
        extra: extra of this project that installs it.
        ids: regular expression for the beginning of its ids.
        modules: root modules that its environments' classes may come from, besides `module`.
        wrappers: its wrappers, in `module.wrappers`, that their arguments determine.
        without_arguments: those of its wrappers that take none, whose arguments need no record.
        limits: regular expression for the beginning of its ids whose environments end or truncate every episode
            themselves, without a limit in Gymnasium's registry; None for none.
    """

    module: str
    install: tuple[str, ...]
    extra: str
    ids: str
    modules: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    without_arguments: tuple[str, ...] = ()
    limits: str | None = None

    @property
    def how(self) -> str:
        """How to install it, in words."""
        return f"pip install 'aaren-rl[{self.extra}]' (or pip install {' '.join(map(repr, self.install))})"


PACKAGES = (
    Package(
        "gymnasium_robotics",
        ("gymnasium-robotics>=1.4",),
        "robotics",
        r"(PointMaze|AntMaze)_|AdroitHand",
    ),
    Package(
        "gymnasium_robotics",
        ("gymnasium-robotics>=1.4", "mujoco<3.12"),
        "kitchen",
        r"FrankaKitchen-|Fetch(Reach|Push|Slide|PickAndPlace)|Hand(Reach|Manipulate)",
    ),
    Package(
        "minigrid",
        ("minigrid>=3.1",),
        "minigrid",
        r"MiniGrid-|BabyAI-",
        wrappers=(
            "DictObservationSpaceWrapper",
            "DirectionObsWrapper",
            "FlatObsWrapper",
            "FullyObsWrapper",
            "ImgObsWrapper",
            "OneHotPartialObsWrapper",
            "RGBImgObsWrapper",
            "RGBImgPartialObsWrapper",
            "SymbolicObsWrapper",
            "ViewSizeWrapper",
        ),
        without_arguments=("FullyObsWrapper", "ImgObsWrapper", "SymbolicObsWrapper"),
        limits="",
    ),
    # The games count frames.
    Package("ale_py", ("ale-py>=0.12",), "atari", r"ALE/|\w+(NoFrameskip|Deterministic)-v[04]$", limits=""),
    Package(
        "ogbench",
        ("ogbench>=1.2",),
        "ogbench",
        # D4RL's AntMaze sets have "umaze" in their names, or "play" and "diverse".
        r"(visual-)?((pointmaze|humanoidmaze|antmaze)-(medium|large|giant|teleport)-(?!play|diverse)|antsoccer-|cube-"
        r"|scene-|puzzle-|powderworld-)",
    ),
    Package("popgym", ("popgym>=1.0.7",), "popgym", r"popgym-", limits=""),
    Package("metaworld", ("metaworld>=3.1",), "metaworld", r"Meta-World/", limits=""),
    Package("shimmy", ("shimmy[bsuite]>=2.0",), "bsuite", r"bsuite/", modules=("bsuite",), limits=""),
    Package(
        "shimmy",
        ("shimmy[dm-control]>=2.0", "mujoco<4"),
        "dm-control",
        r"dm_control/",
        modules=("dm_control",),
        limits=r"dm_control/(?!lqr-)",
    ),
    Package(
        "highway_env",
        ("highway-env>=1.12",),
        "highway",
        r"(exit|highway|highway-fast|intersection|lane-keeping|merge|parking|racetrack|roundabout|two-way|u-turn)(-\w+)*"
        r"-v\d+$",
        limits=r"(?!lane-keeping|merge|two-way)",
    ),
)


def needed(env_id: str, module: str | None = None) -> Package | None:
    """The package of the list that an environment needs; None if the list has none.

    Args:
        env_id: Gymnasium id without a module.
        module: root module that it is said to come from; None where nothing says so, and the id decides.
    """
    fits = [package for package in PACKAGES if module in (None, package.module, *package.modules)]
    by_id = next((package for package in fits if re.match(package.ids, env_id)), None)
    return by_id or (fits[0] if fits and module is not None else None)


def wrapper_names() -> list[str]:
    """Names of the listed packages' wrappers."""
    return [name for package in PACKAGES for name in package.wrappers]


def takes_no_arguments(module: str, name: str) -> bool:
    """True if a wrapper of a listed package takes no arguments."""
    return any(module == package.module and name in package.without_arguments for package in PACKAGES)


def has_wrapper(module: str, name: str) -> bool:
    """True if a wrapper is one of a listed package's."""
    return any(module == package.module and name in package.wrappers for package in PACKAGES)


def wrapper_class(name: str) -> Any:
    """The class of a listed package's wrapper.

    Raises:
        InvalidInput: its package is not installed, or has no such wrapper.
    """
    package = next(package for package in PACKAGES if name in package.wrappers)
    module = _imported(f"{package.module}.wrappers", f"the wrapper {name}", package)
    try:
        return getattr(module, name)
    except AttributeError as error:
        lacks = f"{module.__name__} has no wrapper {name}"
        raise InvalidInput(f"{lacks}; install a version that has it: {package.how}") from error


def import_package(package: Package, env_id: str) -> None:
    """Imports a package of the list, so that it registers its environments.

    Raises:
        InvalidInput: it is not installed, or fails; the message says how to install it.
    """
    _imported(package.module, f"environment {env_id}", package)


def is_installed(module: str) -> bool:
    """True if a module can be found."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def advice(spec: EnvironmentSpec) -> str:
    """What to install for an environment that fails with the versions that are here; empty where they should serve."""
    package = needed(spec.registered_id, spec.package)
    if package is None:
        return ""
    for requirement in package.install:
        name, below, limit = requirement.partition("<")
        if below and _numbers(importlib.metadata.version(name)) >= _numbers(limit):
            here = importlib.metadata.version(name)
            return f"; it needs {requirement}, and {here} is installed: in an environment of its own, {package.how}"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _imported(module: str, what: str, package: Package) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # A package's import is anyone's code.
        why = f"cannot be imported: {error!r}" if is_installed(package.module) else "is not installed"
        raise InvalidInput(f"{what} is of the package {package.module}, which {why}; {package.how}") from error
