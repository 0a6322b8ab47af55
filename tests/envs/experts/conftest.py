from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.envs.experts import find


@dataclass
class Played:
    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    last_info: dict


@pytest.fixture
def play():
    """Plays whole episodes of an expert, without this project's roll-outs; actions must be the space's."""
    opened = []

    def play(name, env_id, episodes=5, kwargs=None, longest=10_000, **arguments):
        env = gym.make(env_id, disable_env_checker=True, **(kwargs or {}))
        opened.append(env)
        # Some packages draw from the global generator.
        np.random.seed(0)
        policy = find(name).policy(env, 0, **arguments)
        returns, lengths, success = [], [], []
        for seed in range(episodes):
            observation, info = env.reset(seed=seed)
            policy.reset(observation, info)
            total, length, reached, taken, ended = 0.0, 0, False, None, False
            while not ended and length < longest:
                taken = policy.act(observation, info, taken)
                assert env.action_space.contains(taken) or env.action_space.contains(np.int64(taken))
                observation, reward, terminated, truncated, info = env.step(taken)
                total, length, ended = total + reward, length + 1, terminated or truncated
                reached |= bool(info.get("success", False))
            returns.append(total)
            lengths.append(length)
            success.append(reached)
        return Played(np.array(returns), np.array(lengths), np.array(success), info)

    yield play
    for env in opened:
        env.close()
