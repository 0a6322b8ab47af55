import dataclasses

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("d3rlpy", reason="the extra d3rlpy is not installed")

import d3rlpy
from d3rlpy.dataset import Episode as D3rlpyEpisode
from d3rlpy.dataset import InfiniteBuffer, MDPDataset, ReplayBuffer
from d3rlpy.metrics.utility import evaluate_transformer_with_environment

from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.d3rlpy import StatefulAgent, mdp_dataset, trajectories_of
from aaren_rl.checkpoint import AgentCard
from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import Box
from aaren_rl.data.trajectories import Episode, Trajectories
from aaren_rl.envs.d3rlpy_writer import to_d3rlpy
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.errors import DataError
from aaren_rl.model import DecisionModel, ModelConfig, Scaling


def data_of(kind):
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate([4, 2, 5]):
        observations = {
            "images": lambda n: rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8),
            "tuple": lambda n: (rng.normal(size=(n, 2)), rng.normal(size=(n, 3))),
        }.get(kind, lambda n: rng.normal(size=(n, 3)))(length + (kind != "no final"))
        choices = rng.integers(0, 3, length)
        actions = choices if kind in ("choices", "images") else rng.uniform(-2, 2, (length, 2))
        made.append(Episode(observations, actions, rng.normal(size=length), terminated=number != 1))
    return Trajectories.from_episodes(made, action_space=gym.spaces.Discrete(4) if kind == "choices" else None)


def assert_same_steps(found, expected):
    assert found.lengths.tolist() == expected.lengths.tolist()
    np.testing.assert_array_equal(found.terminated, expected.terminated)
    np.testing.assert_array_equal(found.truncated, ~expected.terminated)
    np.testing.assert_array_equal(found.rewards, expected.rewards)
    np.testing.assert_array_equal(found.actions, expected.actions)
    np.testing.assert_equal(found.observations, expected.observations)
    assert found.final_observations is None


KINDS = ["vectors", "no final", "choices", "images", "tuple"]


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_come_back(kind):
    expected = data_of(kind)
    dataset = mdp_dataset(expected)
    assert isinstance(dataset, MDPDataset)
    np.testing.assert_allclose([one.compute_return() for one in dataset.episodes], expected.returns, rtol=1e-5)
    assert_same_steps(trajectories_of(dataset), expected)


def test_all_choices_are_counted():
    dataset = mdp_dataset(data_of("choices"))
    assert (dataset.dataset_info.action_space, dataset.dataset_info.action_size) == (d3rlpy.ActionSpace.DISCRETE, 4)
    assert trajectories_of(dataset).action_space.counts == (4,)


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_loaded_by_d3rlpy(kind, tmp_path):
    expected = data_of(kind)
    to_d3rlpy(expected, tmp_path / "data.h5")
    with (tmp_path / "data.h5").open("rb") as file:
        assert_same_steps(trajectories_of(ReplayBuffer.load(file, InfiniteBuffer())), expected)


def of_lengths(lengths, terminated=False, actions=None):
    rng = np.random.default_rng(0)
    return Trajectories.from_episodes(
        [
            Episode(
                rng.normal(size=(n, 3)), rng.uniform(-2, 2, (n, 2)) if actions is None else actions, np.ones(n), end
            )
            for n, end in zip(lengths, np.broadcast_to(terminated, len(lengths)), strict=True)
        ]
    )


def loaded(file, **options):
    """The call that `to_d3rlpy` documents."""
    with file.open("rb") as opened:
        episodes = d3rlpy.dataset.load(d3rlpy.dataset.Episode, opened)
    return d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=episodes, **options)


def test_truncated_episodes_of_one_step_are_counted(tmp_path):
    data = of_lengths([4, 1, 1, 3, 1], [False, False, False, False, True])
    with pytest.warns(RuntimeWarning, match="d3rlpy leaves out 2 of 5 episodes: they are truncated after one step"):
        found = trajectories_of(mdp_dataset(data))
    assert found.lengths.tolist() == [4, 3, 1]
    with pytest.warns(RuntimeWarning, match="d3rlpy leaves out 2 of 5 episodes"):
        to_d3rlpy(data, tmp_path / "data.h5")
    with (tmp_path / "data.h5").open("rb") as file:
        assert [len(one) for one in ReplayBuffer.load(file, InfiniteBuffer()).episodes] == [4, 3, 1]
    nothing = of_lengths([1, 1])
    for write in (mdp_dataset, lambda data: to_d3rlpy(data, tmp_path / "none.h5")):
        with pytest.raises(DataError, match="all episodes are truncated after one step"):
            write(nothing)
    assert not (tmp_path / "none.h5").exists()


def test_kind_and_count_of_actions_are_given_to_d3rlpy(tmp_path):
    whole, fractions = np.ones((2, 2)), np.full((2, 2), 0.5)
    data = Trajectories.join([of_lengths([2], actions=whole), of_lengths([2], actions=fractions)])
    with pytest.warns(RuntimeWarning, match=r"whole numbers, which .*CONTINUOUS, action_size=2 \(see to_d3rlpy\)"):
        to_d3rlpy(data, tmp_path / "whole.h5")
    with (tmp_path / "whole.h5").open("rb") as file:
        guessed = ReplayBuffer.load(file, InfiniteBuffer())
    assert guessed.dataset_info.action_space == d3rlpy.ActionSpace.DISCRETE
    given = loaded(tmp_path / "whole.h5", action_space=d3rlpy.ActionSpace.CONTINUOUS, action_size=2)
    np.testing.assert_array_equal(trajectories_of(given).actions, data.actions)
    to_d3rlpy(data_of("choices"), tmp_path / "choices.h5")
    given = loaded(tmp_path / "choices.h5", action_space=d3rlpy.ActionSpace.DISCRETE, action_size=4)
    assert trajectories_of(given).action_space.counts == (4,)


def test_an_episode_under_way_counts_as_cut_off():
    whole = of_lengths([3], True)
    buffer = mdp_dataset(whole)
    for step in range(4):
        buffer.append(np.full(3, step, np.float32), np.full(2, 0.5, np.float32), float(step))
    found = trajectories_of(buffer)
    assert (found.lengths.tolist(), found.terminated.tolist()) == ([3, 4], [True, False])
    assert found.truncated.tolist() == [False, True]
    np.testing.assert_array_equal(found.rewards[3:], np.arange(4))
    buffer.clip_episode(terminated=True)
    assert trajectories_of(buffer).terminated.tolist() == [True, True]


def test_d3rlpy_trains_on_a_dataset():
    algorithm = d3rlpy.algos.BCConfig(batch_size=4).create(device=False)
    algorithm.fit(
        mdp_dataset(data_of("vectors")),
        n_steps=2,
        n_steps_per_epoch=2,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    assert algorithm.predict(np.zeros((1, 3), np.float32)).shape == (1, 2)


def test_a_buffer_without_episodes_is_refused():
    signature = D3rlpyEpisode(np.zeros((2, 3)), np.zeros((2, 1)), np.zeros((2, 1)), True)
    dataset = ReplayBuffer(InfiniteBuffer(), episodes=[signature])
    empty = ReplayBuffer(
        InfiniteBuffer(),
        **{name: getattr(dataset.dataset_info, name) for name in ("action_space", "action_size")},
        observation_signature=signature.observation_signature,
        action_signature=signature.action_signature,
        reward_signature=signature.reward_signature,
    )
    with pytest.raises(DataError, match="has no episode"):
        trajectories_of(empty)


class Seeded(gym.Wrapper):
    """Begins with a seed, as evaluations of this project do."""

    seed = 7

    def reset(self, **options):
        seed, self.seed = self.seed, None
        return self.env.reset(seed=seed)


def test_evaluation_of_d3rlpy_gives_the_returns_of_ours():
    """The model counts the return-to-go down, so wrong rewards would show."""
    spaces = Box.unbounded((3,)), Box.bounded([-2.0], [2.0])
    scaling = dataclasses.replace(Scaling.identity(spaces[0]), return_scale=100.0)
    model = DecisionModel(ModelConfig(blocks=1, width=16), *spaces, scaling)
    spec = EnvironmentSpec("Pendulum-v1", max_episode_steps=40)
    agent = DecisionAgent(model, AgentCard(spec, "some data", "arrays", (-50.0,)))
    expected = evaluate(agent, Protocol(spec, 3, 7, -80.0, None, instances=1)).returns.mean()
    env = Seeded(gym.make("Pendulum-v1", max_episode_steps=40))
    found = evaluate_transformer_with_environment(StatefulAgent(agent, -80.0), env, 3)
    assert found == pytest.approx(expected, rel=1e-5)
    other = evaluate_transformer_with_environment(StatefulAgent(agent, -20.0), Seeded(env.env), 3)
    assert other != pytest.approx(expected, rel=1e-4)
