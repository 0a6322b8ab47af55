"""The whole road in one file: data, model, training, acting. Takes half a minute: `python examples/minimal.py`.

`aaren_rl.fit` does all of this with checkpoints, logs and any mixer; this file shows what happens underneath.
"""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aaren_rl import Episode, Trajectories
from aaren_rl.data.sampler import Sampler
from aaren_rl.data.segment import Segment
from aaren_rl.ops.prefix_attention import ScanState, prefix_attention

ENVIRONMENT, WIDTH, BLOCKS, CONTEXT, BATCH = "InvertedPendulum-v5", 64, 2, 20, 64


def collect(episodes: int) -> Trajectories:
    """Episodes of a balancing controller, each with another amount of noise, so that some are better than others."""
    env, rng = gym.make(ENVIRONMENT), np.random.default_rng(0)
    done = []
    for number in range(episodes):
        noise, ended = rng.uniform(0.0, 2.0), False
        observations, actions, rewards = [env.reset(seed=number)[0]], [], []
        while not ended:
            action = np.clip([1.0, 8.0, 1.0, 1.5] @ observations[-1] + noise * rng.normal(size=1), -3, 3)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
            ended = terminated or truncated
        done.append(Episode(np.array(observations), np.array(actions), np.array(rewards), terminated, truncated))
    env.close()
    return Trajectories.from_episodes(done)


class Block(nn.Module):
    """Aaren, then a perceptron: attention over all tokens so far, with a learned query, as a scan."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        # The query is the same for all tokens, so <query, W_key x> is one linear layer of x.
        self.score, self.value = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, state: ScanState | None, reset: Tensor) -> tuple[Tensor, ScanState]:
        """Tokens (batch, time, width), and the state (m, c, a) after the last one."""
        normed = self.norms[0](x)
        scores = self.score(normed).transpose(1, 2)  # (batch, heads = 1, time)
        values = self.value(normed).unsqueeze(1)  # (batch, heads = 1, time, width)
        mixed, state = prefix_attention(scores, values, state, reset)  # (batch, heads = 1, time, width)
        x = x + mixed.squeeze(1)  # (batch, time, width)
        return x + self.perceptron(self.norms[1](x)), state


class Model(nn.Module):
    """Actions from returns-to-go, observations and previous actions; one token a step."""

    def __init__(self, data: Trajectories, low: float, high: float) -> None:
        super().__init__()
        self.mean, self.std = map(torch.from_numpy, data.observation_statistics())
        self.return_scale, self.low, self.high = float(data.returns.max()), low, high
        size, action_size = data.observations.shape[1], data.actions.shape[1]
        self.embed = nn.Linear(size + action_size + 1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, action_size), nn.Tanh())

    def forward(self, segment: Segment, before: Tensor, states: list | None = None) -> tuple[Tensor, list]:
        """Actions (batch, time, action size) of a segment, and the states of all blocks after it.

        `before` is the action before each step, (batch, time, action size), zero at the start of an episode.
        """
        observations = (segment.observations - self.mean) / self.std  # (batch, time, observation size)
        returns = (segment.returns_to_go / self.return_scale).unsqueeze(-1)  # (batch, time, 1)
        x = self.embed(torch.cat([observations, before, returns], -1))  # (batch, time, width)
        after = []
        for block, state in zip(self.blocks, states or [None] * BLOCKS, strict=True):
            x, state_after = block(x, state, segment.timesteps == 0)
            after.append(state_after)
        return self.low + (self.head(x) + 1) / 2 * (self.high - self.low), after


def train(model: Model, data: Trajectories, updates: int) -> float:
    """Imitates the data's actions, given what was still to be earned; returns the last loss."""
    sampler = Sampler(data, np.arange(data.episodes), BATCH, CONTEXT)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(updates):
        segment = sampler.sample()
        before = torch.cat([segment.previous_action.unsqueeze(1), segment.actions[:, :-1]], 1)
        predicted, _ = model(segment, before)
        error = F.mse_loss(predicted, segment.actions, reduction="none").mean(-1)  # (batch, time)
        loss = segment.mean_over_counted(error)  # padding does not count
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


@torch.inference_mode()
def act(model: Model, target: float, seed: int) -> float:
    """One episode, a step at a time: the same function as in training, on segments of one step and a carried state."""
    env, states = gym.make(ENVIRONMENT), None
    observation, _ = env.reset(seed=seed)
    action, total, step, ended = torch.zeros(1, 1, env.action_space.shape[0]), 0.0, 0, False
    while not ended:
        seen = torch.from_numpy(np.float32(observation))[None]  # (batch = 1, observation size)
        now = Segment.of_one_step(seen, torch.tensor([step]), torch.tensor([target - total]))
        action, states = model(now, action, states)  # (batch = 1, time = 1, action size)
        observation, reward, terminated, truncated, _ = env.step(action[0, 0].numpy())
        total, step, ended = total + float(reward), step + 1, terminated or truncated
    env.close()
    return total


def main(episodes: int = 200, updates: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Collects, trains and acts; returns the returns of the data and of the agent."""
    torch.manual_seed(0)
    data = collect(episodes)
    model = Model(data, low=-3.0, high=3.0)
    loss = train(model, data, updates)
    asked = float(data.returns.max())
    returns = np.array([act(model, asked, 10_000 + seed) for seed in range(5)])
    print(f"data:  mean return {data.returns.mean():.0f}, best {asked:.0f}, over {data.episodes} episodes")
    print(f"agent: mean return {returns.mean():.0f} when asked for {asked:.0f}, loss {loss:.4f}")
    return data.returns, returns


if __name__ == "__main__":
    main()
