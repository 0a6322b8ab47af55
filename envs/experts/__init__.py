"""Scripted experts by name: small adapters around what packages ship, and controllers of our own.

Experts may look at the environment itself (`env.unwrapped`); what they record is what an agent sees. Adding an expert
is adding a line to `EXPERTS`.
"""

from __future__ import annotations

from aaren_rl.envs.experts import (
    blackjack,
    box2d,
    classic,
    mazes,
    memory,
    metaworld,
    minigrid,
    ogbench,
    popgym,
    tabular,
)
from aaren_rl.envs.experts.expert import Expert, Policy, Random
from aaren_rl.errors import unknown_name

__all__ = ["EXPERTS", "Expert", "Policy", "find"]

_CLASSIC, _TOY, _BOX2D = (f"gymnasium.envs.{folder}." for folder in ("classic_control", "toy_text", "box2d"))
_ROBOTICS, _OGBENCH = "gymnasium_robotics.envs.maze.", "ogbench."

EXPERTS: dict[str, Expert] = {
    expert.name: expert
    for expert in (
        Expert("random", None, ("",), Random),
        Expert("aaren", None, ("aaren_rl.envs.memory.",), memory.Own),
        Expert("cartpole", None, (f"{_CLASSIC}cartpole.CartPoleEnv",), classic.CartPole),
        Expert(
            "mountaincar",
            None,
            (f"{_CLASSIC}mountain_car.MountainCarEnv", f"{_CLASSIC}continuous_mountain_car.Continuous_MountainCarEnv"),
            classic.MountainCar,
        ),
        Expert("pendulum", None, (f"{_CLASSIC}pendulum.PendulumEnv",), classic.Pendulum),
        Expert("acrobot", None, (f"{_CLASSIC}acrobot.AcrobotEnv",), classic.Acrobot),
        Expert(
            "tabular",
            None,
            tuple(f"{_TOY}{name}." for name in ("taxi", "frozen_lake", "cliffwalking")),
            tabular.Tabular,
        ),
        Expert("blackjack", None, (f"{_TOY}blackjack.",), blackjack.Blackjack),
        Expert("lunarlander", "gymnasium[box2d]", (f"{_BOX2D}lunar_lander.",), box2d.LunarLander),
        Expert("bipedalwalker", "gymnasium[box2d]", (f"{_BOX2D}bipedal_walker.",), box2d.BipedalWalker),
        Expert("carracing", "gymnasium[box2d]", (f"{_BOX2D}car_racing.",), box2d.CarRacing),
        Expert("babyai", "minigrid", ("minigrid.envs.babyai.",), minigrid.BabyAI),
        Expert("minigrid", "minigrid", ("minigrid.minigrid_env.",), minigrid.Walker),
        Expert("minigrid-memory", "minigrid", ("minigrid.envs.memory.",), minigrid.Memory),
        Expert("popgym", "popgym", tuple(f"popgym.envs.{name}" for name in popgym.PLAYERS), popgym.player),
        Expert(
            "pointmaze",
            "gymnasium-robotics",
            (f"{_ROBOTICS}point_maze.", f"{_OGBENCH}locomaze.point."),
            mazes.PointMaze,
        ),
        Expert("antmaze", "gymnasium-robotics", (f"{_ROBOTICS}ant_maze_v", f"{_OGBENCH}locomaze.ant."), mazes.AntMaze),
        Expert("ogbench-arm", "ogbench", (f"{_OGBENCH}manipspace.",), ogbench.Arm),
        Expert("metaworld", "metaworld", ("metaworld.sawyer_xyz_env.", "metaworld.envs."), metaworld.MetaWorld),
    )
}
"""All experts by name."""


def find(name: str) -> Expert:
    """The expert of a name.

    Raises:
        InvalidInput: there is none; the message lists near matches.
    """
    if name not in EXPERTS:
        raise unknown_name("expert", name, EXPERTS)
    return EXPERTS[name]
