import gymnasium as gym
import pytest

from aaren_rl.envs.experts import find
from aaren_rl.errors import InvalidInput

minigrid = pytest.importorskip("minigrid")

KEY, BALL = 5, 6
"""Objects in MiniGrid's images."""


def test_bot_solves_babyai(play):
    for level in ("GoToRedBallNoDists", "GoToLocal", "OpenTwoDoors"):
        assert play("babyai", f"BabyAI-{level}-v0", 20).returns.min() > 0.5


def test_bot_recovers_from_noise(play):
    noisy = play("babyai", "BabyAI-GoToRedBallNoDists-v0", 30, noise=0.2)
    assert (noisy.returns > 0).mean() > 0.9


@pytest.mark.parametrize("level", ["MemoryS7", "MemoryS13", "MemoryS17Random"])
def test_memory_is_solved(play, level):
    assert play("minigrid-memory", f"MiniGrid-{level}-v0", 30).returns.min() > 0.9


def test_cue_is_in_an_image_before_the_hallway_ends():
    env = gym.make("MiniGrid-MemoryS13-v0")
    policy = find("minigrid-memory").policy(env, 0)
    for seed in range(30):
        observation, info = env.reset(seed=seed)
        policy.reset(observation, info)
        cue = env.unwrapped.grid.get(1, env.unwrapped.height // 2 - 1).type
        seen, taken, ended = set(), None, False
        while not ended:
            if env.unwrapped.agent_pos[0] < env.unwrapped.width - 5:
                seen |= set(observation["image"][..., 0].ravel().tolist()) & {KEY, BALL}
            taken = policy.act(observation, info, taken)
            observation, _, terminated, truncated, info = env.step(taken)
            ended = terminated or truncated
        assert {"key": KEY, "ball": BALL}[cue] in seen
    env.close()


def test_ways_are_shortest(play):
    # From one corner to the other: five cells, a turn, five cells.
    assert play("minigrid", "MiniGrid-Empty-8x8-v0", 1).lengths.tolist() == [11]
    assert play("minigrid", "MiniGrid-LavaCrossingS9N2-v0", 10).returns.min() > 0.9
    assert play("minigrid", "MiniGrid-FourRooms-v0", 10).returns.min() > 0.5


def test_closed_door_is_named(play):
    with pytest.raises(InvalidInput, match="DoorKeyEnv has no way to the goal through open cells"):
        play("minigrid", "MiniGrid-DoorKey-5x5-v0")
