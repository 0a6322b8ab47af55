"""Environments about reaching a goal, in the two forms that packages have."""

import gymnasium as gym
import numpy as np

from aaren_rl.data.trajectories import Episode, Trajectories

STEPS, NEAR, FASTEST = 20, 0.25, 0.5


class Line(gym.Env):
    """A point on a line that is to reach another, as Gymnasium-Robotics has it.

    Args:
        dense: pays by distance.
        ends: terminates at the goal.
        batch: computes rewards of batches.
        computes: has `compute_reward`.
    """

    def __init__(self, dense=False, ends=False, batch=True, computes=True, threshold=None):
        parts = {name: gym.spaces.Box(-10, 10, (1,), np.float64) for name in ("achieved_goal", "desired_goal")}
        self.observation_space = gym.spaces.Dict({"observation": gym.spaces.Box(-10, 10, (2,), np.float64), **parts})
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.dense, self.ends, self.batch = dense, ends, batch
        if computes:
            self.compute_reward = self._compute_reward
        if threshold is not None:
            self.distance_threshold = threshold

    def _compute_reward(self, achieved, desired, info):
        if not self.batch:
            assert np.ndim(achieved) == 1
        distance = np.linalg.norm(np.asarray(achieved) - desired, axis=-1)
        return np.exp(-distance) if self.dense else (distance <= NEAR).astype(np.float64)

    def compute_terminated(self, achieved, desired, info):
        return self.ends and bool(np.linalg.norm(achieved - desired) <= NEAR)

    def _observed(self):
        point, goal = np.array([self.at]), np.array([self.goal])
        return {"observation": np.array([self.at, self.now / STEPS]), "achieved_goal": point, "desired_goal": goal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.now = 0.0, 0
        self.goal = float(self.np_random.choice([-1, 1]) * self.np_random.uniform(1, 5))
        return self._observed(), {}

    def step(self, action):
        self.at, self.now = self.at + FASTEST * float(np.clip(action[0], -1, 1)), self.now + 1
        reward = float(self._compute_reward(np.array([self.at]), np.array([self.goal]), {}))
        ended = self.compute_terminated(np.array([self.at]), np.array([self.goal]), {})
        return self._observed(), reward, ended, self.now == STEPS, {}


class InfoLine(gym.Env):
    """A point on a line whose goal stands in the info of the reset, as OGBench has it.

    Args:
        goal: "observation", "part", "none" or "wrong".
    """

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, goal="observation"):
        self.form = goal

    def _observed(self):
        return np.array([self.at, self.now / STEPS])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.now = 0.0, 0
        self.goal = float(self.np_random.choice([-1, 1]) * self.np_random.uniform(1, 5))
        forms = {"observation": np.array([self.goal, 1.0]), "part": np.array([self.goal]), "wrong": np.zeros(5)}
        return self._observed(), {"goal": forms[self.form]} if self.form in forms else {}

    def step(self, action):
        self.at, self.now = self.at + FASTEST * float(np.clip(action[0], -1, 1)), self.now + 1
        there = abs(self.at - self.goal) <= NEAR
        return self._observed(), float(there), there, self.now == STEPS, {"success": float(there)}


def wandering(episodes=150, seed=0, goals=True):
    """Walks towards points that are not the goals of their observations, so almost none of them is reached."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(episodes):
        aim, goal = rng.choice([-1, 1], 2) * rng.uniform([1, 6], [5, 9])
        points, actions = [0.0], []
        for _ in range(STEPS):
            actions.append(np.clip((aim - points[-1]) / FASTEST + 0.1 * rng.normal(), -1, 1))
            points.append(points[-1] + FASTEST * actions[-1])
        seen = np.stack([points, np.arange(STEPS + 1) / STEPS], 1)
        observations = seen
        if goals:
            at, wanted = np.array(points)[:, None], np.full((STEPS + 1, 1), goal)
            observations = {"observation": seen, "achieved_goal": at, "desired_goal": wanted}
        paid = (np.abs(np.array(points[1:]) - goal) <= NEAR).astype(np.float64)
        found.append(Episode(observations, np.array(actions)[:, None], paid if goals else np.zeros(STEPS)))
    return Trajectories.from_episodes(found)
