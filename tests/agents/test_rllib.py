import runpy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_close

pytest.importorskip("ray.rllib", reason="the extra rllib is not installed")

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.postprocessing.zero_padding import unpad_data_if_necessary
from ray.tune.registry import register_env

from aaren_rl.agents.rllib import CoreRLModule
from aaren_rl.envs.memory.chain import PassiveTMaze
from aaren_rl.errors import InvalidInput


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def algorithm(env="tmaze", steps=64, **options):
    register_env("tmaze", lambda _: PassiveTMaze(2, 6))
    spec = RLModuleSpec(module_class=CoreRLModule, model_config={"width": 16, "max_seq_len": 5, **options})
    return (
        PPOConfig()
        .environment(env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=steps // 2)
        .rl_module(rl_module_spec=spec)
        .training(train_batch_size_per_learner=steps, minibatch_size=steps, num_epochs=1, use_kl_loss=False)
        .debugging(seed=0)
        .build_algo()
    )


def batch_of_learner(algo, episodes):
    """What RLlib's learner makes of episodes, and its module."""
    learner = algo.learner_group._learner
    modules = learner.module
    made = learner._learner_connector(rl_module=modules, batch={}, episodes=episodes, shared_data={})
    return made[DEFAULT_MODULE_ID], modules[DEFAULT_MODULE_ID]


@pytest.mark.parametrize("mixer", ["aaren", "gated-aaren", "lstm", "local:3"])
@pytest.mark.parametrize("shares", [False, True])
def test_sequences_in_the_learner_see_what_steps_saw(mixer, shares):
    """Over ends of episodes, of sequences and of roll-outs, the second of which begins within episodes."""
    algo = algorithm(mixer=mixer, blocks=2, vf_share_layers=shares)
    algo.env_runner.sample()
    episodes = algo.env_runner.sample()
    assert any(episode.t_started > 0 for episode in episodes)
    acted = torch.cat([torch.as_tensor(one.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)) for one in episodes])
    batch, module = batch_of_learner(algo, episodes)
    assert batch[Columns.OBS].shape[1] == 5
    assert batch[Columns.SEQ_LENS].min() < 5
    with torch.no_grad():
        out = module.forward_train(batch)
        real = batch[Columns.LOSS_MASK]
        assert_close("distributions", out[Columns.ACTION_DIST_INPUTS][real], acted, atol=1e-5, rtol=0)
        values = module.compute_values(batch, out[Columns.EMBEDDINGS])
        assert_close("values", module.compute_values(batch), values, atol=1e-6, rtol=0)
    algo.stop()


def test_values_of_sequences_are_those_of_steps():
    """The critic's state too is that of the whole episode before."""
    algo = algorithm(mixer="gated-aaren")
    episodes = algo.env_runner.sample()
    lengths = [len(episode) + 1 for episode in episodes]
    observations = [torch.as_tensor(np.array(one.get_observations())) for one in episodes]
    assert max(lengths) > 5
    batch, module = batch_of_learner(algo, episodes)
    with torch.no_grad():
        found = unpad_data_if_necessary(lengths, module.compute_values(batch).numpy())
        for number, seen in enumerate(observations):
            state = {name: part[None] for name, part in module.get_initial_state().items()}
            one_by_one = []
            for observation in seen:
                now = {Columns.OBS: observation[None, None], Columns.STATE_IN: state}
                one_by_one.append(module.compute_values(now).item())
                state = module._forward(now)[Columns.STATE_OUT]
            start = sum(lengths[:number])
            np.testing.assert_allclose(found[start : start + len(seen)], one_by_one, atol=1e-5)
    algo.stop()


@pytest.mark.parametrize("make", [lambda: gym.make("CartPole-v1"), lambda: OfChoices(gym.spaces.MultiDiscrete([2, 3]))])
def test_all_weights_learn_with_choices(make):
    register_env("choices", lambda _: make())
    algo = algorithm("choices", mixer="gated-aaren")
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID]
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    algo.train()
    still = [name for name, weight in module.named_parameters() if torch.equal(weight, before[name])]
    assert not [name for name in still if "key.bias" not in name]
    algo.stop()


class OfChoices(gym.Env):
    """Rewards the first choice for being 1."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 4
        return self.observation_space.sample(), {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.sample(), float(action[0] == 1), self.left == 0, False, {}


def test_a_saved_algorithm_acts_as_before(tmp_path):
    algo = algorithm(mixer="gated-aaren", blocks=2)
    algo.train()
    loaded = Algorithm.from_checkpoint(algo.save_to_path(tmp_path / "saved"))
    outputs = []
    for one in (algo, loaded):
        module = one.get_module()
        state = {name: part[None] for name, part in module.get_initial_state().items()}
        for observation in torch.randn(4, 1, 1, 2, generator=torch.Generator().manual_seed(0)):
            out = module.forward_inference({Columns.OBS: observation, Columns.STATE_IN: state})
            state = out[Columns.STATE_OUT]
        outputs.append(out[Columns.ACTION_DIST_INPUTS])
        one.stop()
    assert torch.equal(*outputs)


@pytest.mark.slow
def test_ppo_learns_to_remember():
    """By chance half of the turns are right."""
    register_env("short", lambda _: PassiveTMaze(2, 2))
    algo = algorithm("short", steps=1024, mixer="aaren", width=32)
    config = algo.config.copy(copy_frozen=False).training(lr=3e-3, minibatch_size=256, num_epochs=4)
    algo.stop()
    algo = config.build_algo()
    right = [algo.train()["env_runners"]["episode_return_mean"] for _ in range(7)]
    assert right[0] < 0.7
    assert right[-1] > 0.9
    algo.stop()


def module_of(observations=None, actions=None, **options):
    observations = observations or gym.spaces.Box(-1, 1, (2,), np.float32)
    actions = actions or gym.spaces.Discrete(2)
    return CoreRLModule(observation_space=observations, action_space=actions, model_config=options)


def test_the_example_refuses_fewer_steps_than_an_update():
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "recurrent_ppo_rllib.py"))
    with pytest.raises(InvalidInput, match="steps is 2047; expected at least 2048"):
        example["main"](example["Arguments"](steps=2047))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match=r"model_config has use_lstm, widht; CoreRLModule takes mixer, width, .*"):
        module_of(widht=16, use_lstm=True)
    with pytest.raises(InvalidInput, match="state grows with every step.* as aaren or local"):
        module_of(mixer="softmax")
    with pytest.raises(InvalidInput, match="the observation space is Discrete.*FlattenObservations"):
        module_of(gym.spaces.Discrete(3))
    with pytest.raises(InvalidInput, match=r"the action space is MultiBinary\(2\); expected Discrete"):
        module_of(actions=gym.spaces.MultiBinary(2))
