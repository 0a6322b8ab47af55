"""Packages that environments need: which one, how it is installed, and that nothing else is imported."""

import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec, Wrapper
from aaren_rl.envs import packages
from aaren_rl.envs.environments import _make, register
from aaren_rl.envs.packages import PACKAGES, needed
from aaren_rl.envs.wrappers import Recorded, rebuildable
from aaren_rl.errors import DataError, InvalidInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("env_id", "module", "expected"),
    [
        ("ALE/Breakout-v5", None, "ale_py"),
        ("BreakoutNoFrameskip-v4", None, "ale_py"),
        ("BabyAI-GoToRedBall-v0", None, "minigrid"),
        ("MiniGrid-FourRooms-v0", "minigrid", "minigrid"),
        ("PointMaze_UMaze-v3", None, "gymnasium_robotics"),
        ("AdroitHandDoorSparse-v1", None, "gymnasium_robotics"),
        ("FetchPickAndPlace-v4", None, "gymnasium_robotics"),
        ("cube-single-v0", None, "ogbench"),
        ("visual-antmaze-large-v0", None, "ogbench"),
        ("pointmaze-giant-singletask-task2-v0", None, "ogbench"),
        ("popgym-RepeatPreviousEasy-v0", None, "popgym"),
        ("Meta-World/MT1", None, "metaworld"),
        ("bsuite/catch-v0", None, "shimmy"),
        ("bsuite/catch-v0", "bsuite", "shimmy"),
        ("dm_control/cartpole-balance-v0", "shimmy", "shimmy"),
        ("highway-fast-v0", None, "highway_env"),
        # What data name decides, whatever the id looks like.
        ("Anything-v0", "minigrid", "minigrid"),
        ("ALE/Breakout-v5", "elsewhere", None),
        # D4RL's, which no package here registers.
        ("antmaze-umaze-v2", None, None),
        ("antmaze-large-play-v2", None, None),
        ("maze2d-umaze-v1", None, None),
        ("Hopper-v5", None, None),
        ("CartPole-v1", None, None),
    ],
)
def test_which_package_an_environment_needs(env_id, module, expected):
    package = needed(env_id, module)
    assert (package and package.module) == expected


def test_extras_of_the_list_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for package in PACKAGES:
        assert [line.partition(";")[0] for line in extras[package.extra]] == list(package.install), package.module


@pytest.fixture
def absent(monkeypatch):
    """Makes a package look as if it were not installed, and takes its environments away."""

    def take(module):
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(packages, "is_installed", lambda name: name != module)
        kept = {k: v for k, v in gym.registry.items() if getattr(needed(k), "module", None) != module}
        monkeypatch.setattr(gym.envs.registration, "registry", kept)
        monkeypatch.setattr(gym, "registry", kept)

    return take


@pytest.mark.parametrize(
    ("env_id", "module", "extra", "install"),
    [
        ("minigrid:BabyAI-GoToRedBall-v0", "minigrid", "minigrid", "minigrid>=3.1"),
        ("BabyAI-GoToRedBall-v0", "minigrid", "minigrid", "minigrid>=3.1"),
        ("ALE/Pong-v5", "ale_py", "atari", "ale-py>=0.12"),
        ("PointMaze_UMaze-v3", "gymnasium_robotics", "robotics", "gymnasium-robotics>=1.4"),
        ("FrankaKitchen-v1", "gymnasium_robotics", "kitchen", "gymnasium-robotics>=1.4' 'mujoco<3.12"),
        ("Meta-World/MT1", "metaworld", "metaworld", "metaworld>=3.1"),
        ("bsuite/catch-v0", "shimmy", "bsuite", "shimmy[bsuite]>=2.0"),
    ],
)
def test_a_missing_package_is_named_with_its_install(env_id, module, extra, install, absent):
    absent(module)
    message = (
        f"environment {env_id.rpartition(':')[2]} is of the package {module}, which is not installed; "
        f"pip install 'aaren-rl[{extra}]' (or pip install '{install}')"
    )
    with pytest.raises(InvalidInput, match=re.escape(message)):
        register(EnvironmentSpec(env_id))


def test_a_package_that_fails_is_named_with_its_failure(monkeypatch, tmp_path, absent):
    (tmp_path / "popgym.py").write_text("raise OSError('no such library')")
    absent("popgym")
    monkeypatch.delitem(sys.modules, "popgym")
    monkeypatch.setattr(packages, "is_installed", lambda name: True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match=r"which cannot be imported: OSError\('no such library'\); pip install"):
        register(EnvironmentSpec("popgym-RepeatPreviousEasy-v0"))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("numpy:Hoper-v5", r"did you mean '[^?]*'\? numpy does not register it$"),
        ("Hoper-v5", r"did you mean '[^?]*'\? one of yours is known once its package is imported, with --import"),
    ],
)
def test_near_names_come_before_what_registers_none(env_id, message):
    with pytest.raises(InvalidInput, match=message):
        register(EnvironmentSpec(env_id))


def test_an_id_that_a_known_package_lacks_is_refused():
    pytest.importorskip("popgym")
    with pytest.raises(
        InvalidInput,
        match=r"unknown environment 'popgym-RepeatPreviouslyEasy-v0'; did you mean [^?]*'\? popgym does not",
    ):
        register(EnvironmentSpec("popgym-RepeatPreviouslyEasy-v0"))


@pytest.mark.parametrize(
    ("module", "env_id"),
    [
        ("minigrid", "MiniGrid-Empty-5x5-v0"),
        ("gymnasium_robotics", "PointMaze_UMaze-v3"),
        ("ale_py", "ALE/Pong-v5"),
        ("ogbench", "pointmaze-medium-v0"),
        ("popgym", "popgym-RepeatPreviousEasy-v0"),
    ],
)
def test_environments_of_known_packages_are_made_by_their_id(module, env_id):
    pytest.importorskip(module)
    env = _make(EnvironmentSpec(env_id))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    env.close()


def test_environments_that_need_an_older_mujoco_say_so():
    pytest.importorskip("gymnasium_robotics")
    if importlib.metadata.version("mujoco").split(".")[0] < "4":
        pytest.skip("this MuJoCo is old enough")
    with pytest.raises(InvalidInput, match=r"it needs mujoco<3.12, and .* pip install 'aaren-rl\[kitchen\]'"):
        _make(EnvironmentSpec("FrankaKitchen-v1"))
    # Another failure of the same package is not of that cause.
    with pytest.raises(InvalidInput, match=r"cannot be made: TypeError") as caught:
        _make(EnvironmentSpec("PointMaze_UMaze-v3", {"no_such_argument": 1}))
    assert "it needs" not in str(caught.value)


# Wrappers


def test_wrappers_that_take_no_arguments_need_no_record_of_them():
    wrappers = pytest.importorskip("minigrid.wrappers")
    for package in PACKAGES:
        for name in package.without_arguments:
            assert list(inspect.signature(getattr(wrappers, name)).parameters) == ["env"]
    with pytest.raises(DataError, match="through the wrapper ViewSizeWrapper, which cannot be built again"):
        rebuildable([Recorded("ViewSizeWrapper", "minigrid.wrappers:ViewSizeWrapper", None)], "data")


@pytest.mark.parametrize("kwargs", [{}, None])
def test_wrappers_of_known_packages_are_built_again(kwargs):
    pytest.importorskip("minigrid")
    found = rebuildable([Recorded("FullyObsWrapper", "minigrid.wrappers:FullyObsWrapper", kwargs)], "data")
    assert found == (Wrapper("FullyObsWrapper"),)
    env = _make(EnvironmentSpec("MiniGrid-Empty-5x5-v0", wrappers=found))
    assert env.reset(seed=0)[0]["image"].shape == (5, 5, 3)
    env.close()


@pytest.mark.parametrize(
    ("entry_point", "name"),
    [("evil.wrappers:FullyObsWrapper", "FullyObsWrapper"), ("minigrid.wrappers:ReseedWrapper", "ReseedWrapper")],
)
def test_wrappers_that_no_package_of_the_list_has_are_refused(entry_point, name):
    with pytest.raises(DataError, match=f"through the wrapper {name}, which cannot be built again"):
        rebuildable([Recorded(name, entry_point, {})], "data")


def test_a_wrapper_of_a_missing_package_names_its_install(absent):
    absent("minigrid")
    with pytest.raises(InvalidInput, match=r"the wrapper FullyObsWrapper is of the package minigrid, which is not"):
        packages.wrapper_class("FullyObsWrapper")
