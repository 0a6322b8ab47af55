"""PPO with a recurrent core on a T-maze, in one file: `python examples/recurrent_ppo.py --mixer gated-aaren`.

`aaren_rl.core.RecurrentCore` steps a state while the agent acts, and computes the same outputs for whole rollouts at
once in the update. Any mixer of `python scripts/mixers.py` goes in its place, `lstm` and `gru` too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Normal

from aaren_rl.core import CoreState, RecurrentCore
from aaren_rl.envs.memory.chain import PassiveTMaze

DISCOUNT, TRACE, CLIP, EPOCHS, MINIBATCHES, ENTROPY = 0.99, 0.95, 0.2, 4, 4, 0.001
"""Usual settings of PPO (Schulman et al. 2017, arXiv 1707.06347)."""


@dataclass
class Arguments:
    """Train a recurrent agent by PPO on a T-maze."""

    mixer: str = "gated-aaren"
    """Mixer of the core."""
    length: int = 20
    """Steps from the cue to the junction."""
    steps: int = 200_000
    """Steps of all environments together."""
    width: int = 32
    """Numbers of an output of the core."""
    envs: int = 16
    """Environments side by side."""
    rollout: int = 128
    """Steps of each environment between two updates."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Of weights, environments and actions."""


class ActorCritic(nn.Module):
    """A core with a normal distribution of actions and a value on top.

    Args:
        observations: numbers of an observation.
        actions: numbers of an action.
        mixer: of the core.
        width: of the core.
    """

    def __init__(self, observations: int, actions: int, mixer: str, width: int) -> None:
        super().__init__()
        self.core = RecurrentCore(observations, width, mixer=mixer)
        self.mean, self.value = nn.Linear(width, actions), nn.Linear(width, 1)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def heads(self, y: Tensor) -> tuple[Normal, Tensor]:
        """Distribution of actions (..., actions) and values (...,) from outputs of the core (..., width)."""
        return Normal(self.mean(y), self.log_std.exp()), self.value(y).squeeze(-1)


def main(arguments: Arguments) -> float:
    """Trains, prints the share of right turns as it goes, and returns the last one."""
    torch.manual_seed(arguments.seed)
    make = [lambda: PassiveTMaze(arguments.length, arguments.length)] * arguments.envs
    # The observation after an end is the next episode's first, so no step is wasted.
    envs = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = ActorCritic(envs.single_observation_space.shape[0], 1, arguments.mixer, arguments.width)
    optimiser = torch.optim.Adam(agent.parameters(), arguments.learning_rate)

    x = torch.from_numpy(envs.reset(seed=arguments.seed)[0])
    start, state, right = torch.ones(arguments.envs), agent.core.initial_state(arguments.envs), 0.0
    for update in range(1, arguments.steps // (arguments.envs * arguments.rollout) + 1):
        before, rows = state, []
        for _ in range(arguments.rollout):
            with torch.no_grad():
                y, state = agent.core.step(x, state, start)
                actions, value = agent.heads(y)
                action = actions.sample()
            x_next, reward, terminated, truncated, _ = envs.step(action.clamp(-1, 1).numpy())
            done = torch.from_numpy(terminated | truncated).float()
            log_prob = actions.log_prob(action).sum(-1)
            rows.append((x, action, log_prob, value, torch.from_numpy(reward).float(), done, start))
            x, start = torch.from_numpy(x_next), done
        with torch.no_grad():
            last = agent.heads(agent.core.step(x, state, start)[0])[1]
        rollout = [torch.stack(part, 1) for part in zip(*rows, strict=True)]  # (envs, rollout, ...) each
        learn(agent, optimiser, before, rollout, advantages(*rollout[3:6], last))
        ended, earned = rollout[5].sum(), rollout[4].sum()
        right = float(earned / ended.clamp(min=1))
        if update % 10 == 0:
            print(f"{update * arguments.envs * arguments.rollout:>9,} steps: {right:.2f} of the turns are right")
    return right


def advantages(value: Tensor, reward: Tensor, done: Tensor, last: Tensor) -> Tensor:
    """Generalised advantages (Schulman et al. 2015, arXiv 1506.02438), (envs, rollout)."""
    found, running = torch.zeros_like(value), torch.zeros_like(last)
    for t in reversed(range(value.shape[1])):
        following = last if t + 1 == value.shape[1] else value[:, t + 1]
        error = reward[:, t] + DISCOUNT * (1 - done[:, t]) * following - value[:, t]
        running = found[:, t] = error + DISCOUNT * TRACE * (1 - done[:, t]) * running
    return found


def learn(
    agent: ActorCritic, optimiser: torch.optim.Optimizer, before: CoreState, rollout: list[Tensor], advantage: Tensor
) -> None:
    """Updates the agent from a rollout that began in the state `before`, some environments at a time."""
    returns = advantage + rollout[3]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(advantage)).chunk(MINIBATCHES):
            x, action, log_prob, _, _, _, starts = (part[rows] for part in rollout)
            # The whole rollout at once, from the state that it began with; episodes start where `starts` says.
            y, _ = agent.core(x, tuple(part[rows] for part in before), starts)
            actions, value = agent.heads(y)
            ratio = (actions.log_prob(action).sum(-1) - log_prob).exp()
            gain = torch.minimum(ratio * advantage[rows], ratio.clamp(1 - CLIP, 1 + CLIP) * advantage[rows]).mean()
            entropy = actions.entropy().sum(-1).mean()
            loss = -gain + 0.5 * (value - returns[rows]).square().mean() - ENTROPY * entropy
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimiser.step()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
