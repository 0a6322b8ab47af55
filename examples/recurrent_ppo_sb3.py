"""sb3-contrib's RecurrentPPO on a T-maze, with its LSTM or a core of this project in its place.

`python examples/recurrent_ppo_sb3.py --core gated-aaren`, which needs `pip install '.[sb3-contrib]'`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tyro
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from aaren_rl.agents.sb3_contrib import CorePolicy
from aaren_rl.envs.memory.chain import PassiveTMaze


@dataclass
class Arguments:
    """Train sb3-contrib's RecurrentPPO on a T-maze."""

    core: str = "gated-aaren"
    """Mixer of the cores, or "sb3-lstm" for the policy of sb3-contrib itself."""
    length: int = 20
    """Steps from the cue to the junction."""
    steps: int = 200_000
    """Steps of all environments together."""
    width: int = 32
    """Numbers of an output of the cores, or of the LSTMs."""
    seed: int = 0
    """Of weights, environments and actions."""


class Report(BaseCallback):
    """Prints the share of right turns after every tenth rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts, self.right = 0, 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        # Of the last 100 episodes.
        self.right = float(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))
        if self.rollouts % 10 == 0:
            print(f"{self.num_timesteps:>9,} steps: {self.right:.2f} of the turns are right", flush=True)


def main(arguments: Arguments) -> float:
    """Trains, prints the share of right turns as it goes, and returns the last one."""
    envs = make_vec_env(lambda: PassiveTMaze(arguments.length, arguments.length), 16, arguments.seed)
    if arguments.core == "sb3-lstm":
        policy, options = "MlpLstmPolicy", {"lstm_hidden_size": arguments.width}
    else:
        policy, options = CorePolicy, {"mixer": arguments.core, "width": arguments.width}
    settings = {"n_steps": 128, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3, "ent_coef": 0.001}
    model = RecurrentPPO(policy, envs, policy_kwargs=options, seed=arguments.seed, device="cpu", **settings)
    report = Report()
    model.learn(arguments.steps, callback=report)
    return report.right


if __name__ == "__main__":
    main(tyro.cli(Arguments))
