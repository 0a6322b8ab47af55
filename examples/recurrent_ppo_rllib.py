"""RLlib's PPO on a T-maze, with its LSTM or a core of this project in its place.

`python examples/recurrent_ppo_rllib.py --core gated-aaren`, which needs `pip install '.[rllib]'`.
"""

from __future__ import annotations

from dataclasses import dataclass

import ray
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from aaren_rl.agents.rllib import CoreRLModule
from aaren_rl.envs.memory.chain import PassiveTMaze
from aaren_rl.errors import InvalidInput

UPDATE = 2048
"""Steps of all environments for an update."""


@dataclass
class Arguments:
    """Train RLlib's PPO on a T-maze."""

    core: str = "gated-aaren"
    """Mixer of the cores, or "rllib-lstm" for RLlib's own module."""
    length: int = 20
    """Steps from the cue to the junction."""
    steps: int = 200_000
    """Steps of all environments together."""
    width: int = 32
    """Numbers of an output of the cores; of RLlib's LSTMs, and of the layer before each."""
    max_seq_len: int = 32
    """Steps of a training sequence; gradients do not go back beyond its start."""
    seed: int = 0
    """Of weights, environments and actions."""


def configuration(arguments: Arguments) -> PPOConfig:
    """The settings of examples/recurrent_ppo_sb3.py, in RLlib's words."""
    options = {"max_seq_len": arguments.max_seq_len}
    if arguments.core == "rllib-lstm":
        lstm = {"use_lstm": True, "lstm_cell_size": arguments.width, "fcnet_hiddens": [arguments.width]}
        module = RLModuleSpec(model_config={**lstm, **options})
    else:
        core = {"mixer": arguments.core, "width": arguments.width}
        module = RLModuleSpec(module_class=CoreRLModule, model_config={**core, **options})
    register_env("tmaze", lambda _: PassiveTMaze(arguments.length, arguments.length))
    loss = {"gamma": 0.99, "lambda_": 0.95, "clip_param": 0.2, "vf_loss_coeff": 0.5, "entropy_coeff": 0.001}
    return (
        PPOConfig()
        .environment("tmaze")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16, rollout_fragment_length=128)
        .rl_module(rl_module_spec=module)
        .training(train_batch_size_per_learner=UPDATE, minibatch_size=512, num_epochs=4, lr=1e-3, grad_clip=0.5)
        .training(use_kl_loss=False, **loss)
        .debugging(seed=arguments.seed)
    )


def main(arguments: Arguments) -> float:
    """Trains, prints the share of right turns as it goes, and returns the last one.

    Raises:
        InvalidInput: there are fewer steps than an update takes.
    """
    if arguments.steps < UPDATE:
        raise InvalidInput(f"steps is {arguments.steps}; expected at least {UPDATE}, the steps of an update")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    algorithm, right = configuration(arguments).build_algo(), 0.0
    for update in range(1, arguments.steps // UPDATE + 1):
        # RLlib takes the mean over the last 100 episodes.
        right = float(algorithm.train()["env_runners"]["episode_return_mean"])
        if update % 10 == 0:
            print(f"{update * UPDATE:>9,} steps: {right:.2f} of the turns are right", flush=True)
    algorithm.stop()
    ray.shutdown()
    return right


if __name__ == "__main__":
    main(tyro.cli(Arguments))
