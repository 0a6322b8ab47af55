import random

import gymnasium as gym
import numpy as np
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.data.spaces import space_of
from aaren_rl.data.trajectories import Trajectories
from aaren_rl.envs import experts
from aaren_rl.envs.baselines import random_actor
from aaren_rl.envs.behaviours import SampledBehaviour
from aaren_rl.envs.environments import make_vector
from aaren_rl.envs.players import ExpertPlayer
from aaren_rl.envs.recording_roll_out import Amount, roll_out
from aaren_rl.envs.rollout import roll_out as roll_out_actor
from aaren_rl.errors import InvalidInput

SPEC = EnvironmentSpec("tests/Everything-v0")


class Everything(gym.Env):
    """All sorts of values, of which one array is written into again and again, and a goal in the infos."""

    observation_space = gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "place": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "said": gym.spaces.Text(20, charset="abcdefghijklmnopqrstuvwxyz "),
            "both": gym.spaces.Tuple((gym.spaces.Discrete(40), gym.spaces.MultiBinary(3))),
        }
    )
    action_space = gym.spaces.Dict({"turn": gym.spaces.Discrete(3), "push": gym.spaces.Box(-1, 1, (2,), np.float32)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, np.zeros(2)
        # As some packages do.
        self.length = 3 + np.random.randint(4) + random.randrange(3)
        return self._observation(), {"goal": np.array([float(self.length), 1.0])}

    def step(self, action):
        self.steps += 1
        self.place += action["push"]
        ends = self.steps == self.length
        info = {} if self.steps == 1 else {"success": np.float64(self.steps == 2)}
        return self._observation(), float(action["turn"]), ends, False, info

    def _observation(self):
        image = np.full((8, 8, 3), self.steps, np.uint8)
        both = (np.int64(self.steps), np.array([1, 0, 1], np.int8))
        return {"image": image, "place": self.place, "said": f"step {'abcdefghijk'[self.steps]}", "both": both}


@pytest.fixture(autouse=True)
def everything():
    gym.register(SPEC.id, Everything)
    yield
    del gym.registry[SPEC.id]


FIVE = Amount(5, "episodes")


def collected(amount=FIVE, seed=(0,), expert="random", **arguments):
    return roll_out(SPEC, [ExpertPlayer(experts.find(expert), arguments)], amount, seed)


def test_values_of_any_space_are_kept_as_they_are():
    for episode in collected():
        length = len(episode.rewards)
        seen = episode.observations
        assert seen["image"].dtype == np.uint8
        np.testing.assert_array_equal(seen["image"][:, 0, 0, 0], range(length + 1))
        assert seen["said"] == [f"step {'abcdefghijk'[t]}" for t in range(length + 1)]
        np.testing.assert_array_equal(seen["both"][0], range(length + 1))
        assert seen["both"][1].shape == (length + 1, 3)
        # The environment's one array has moved on since.
        np.testing.assert_array_equal(np.diff(seen["place"], axis=0), episode.actions["push"])
        assert seen["place"].dtype == np.float64
        np.testing.assert_array_equal(episode.rewards, episode.actions["turn"])
        assert (episode.terminated, episode.truncated) == (True, False)


def test_episodes_pack_into_trajectories():
    episodes = collected()
    spaces = space_of(Everything.observation_space), space_of(Everything.action_space)
    packed = Trajectories.from_episodes(episodes, *spaces)
    assert packed.steps == sum(len(episode.rewards) for episode in episodes)
    assert packed.observations["image"].dtype == np.uint8


def test_success_and_goal_of_infos_are_recorded():
    for episode in collected():
        length = len(episode.rewards)
        assert episode.infos["success"].tolist() == [t == 2 for t in range(length + 1)]
        assert episode.infos["goal"].tolist() == [[length, 1]] * (length + 1)


def test_environment_that_says_nothing_has_no_infos():
    player = ExpertPlayer(experts.find("pendulum"), {})
    [episode] = roll_out(EnvironmentSpec("Pendulum-v1"), [player], Amount(1, "episodes"), (0,))
    assert episode.infos == {}
    assert episode.observations.dtype == np.float32


def test_same_seed_same_data_though_generators_are_global():
    one, same, other = (collected(seed=seed) for seed in ((0,), (0,), (1,)))
    for ours, theirs in zip(one, same, strict=True):
        np.testing.assert_array_equal(ours.observations["place"], theirs.observations["place"])
    assert [len(e.rewards) for e in one] != [len(e.rewards) for e in other] or not np.array_equal(
        one[0].observations["place"], other[0].observations["place"]
    )


def test_global_generators_go_on_as_if_nothing_was():
    np.random.seed(5)
    random.seed(5)
    expected = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)
    collected()
    assert (np.random.random(), random.random()) == expected


@pytest.mark.parametrize("number", [1, 7, 230])
def test_number_of_episodes_is_exact(number):
    assert len(collected(Amount(number, "episodes"))) == number


@pytest.mark.parametrize("players", [2, 3, 7])
@pytest.mark.parametrize("number", [1, 5, 230])
def test_number_of_episodes_is_exact_with_several_players(number, players):
    behaviours = [SampledBehaviour(Everything().action_space)] * players
    assert len(roll_out(SPEC, behaviours, Amount(number, "episodes"), (0,))) == number


def test_shares_that_are_equal_are_cut_as_ever():
    """The seeds of episodes follow from the jobs, so data stay as they were."""
    for player in range(2):
        assert [str(part) for part in Amount(400, "episodes").jobs(player, 2)] == ["100 episodes"] * 2
        assert [str(part) for part in Amount(200_001, "steps").jobs(player, 2)] == [
            "33334 steps",
            "33334 steps",
            "33333 steps",
        ]


def test_steps_are_a_least_number_in_whole_episodes():
    lengths = [len(episode.rewards) for episode in collected(Amount(50, "steps"))]
    assert sum(lengths) >= 50 > sum(lengths[:-1])


def test_amounts_below_one_are_refused():
    with pytest.raises(InvalidInput, match="0 episodes; expected at least 1"):
        Amount(0, "episodes")


def test_expert_of_another_environment_is_refused():
    with pytest.raises(InvalidInput, match="cartpole does not play tests/Everything-v0"):
        collected(expert="cartpole")


def test_random_behaviour_fills_any_space():
    episodes = roll_out(SPEC, [SampledBehaviour(Everything().action_space)], Amount(60, "episodes"), (0,))
    turns = np.concatenate([episode.actions["turn"] for episode in episodes])
    assert np.bincount(turns, minlength=3).min() > 0.2 * len(turns)


def test_random_actor_acts_in_any_space():
    envs = make_vector(SPEC, 3)
    episodes = roll_out_actor(random_actor(SPEC), envs, 6)
    envs.close()
    assert len(episodes.returns) == 6
    assert len(np.unique(episodes.returns)) > 1
