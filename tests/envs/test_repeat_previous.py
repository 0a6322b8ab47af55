import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import baselines, collect
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.environments import make
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.envs.readers.minari import read_folder
from aaren_rl.envs.repeat_previous import REPEAT_PREVIOUS
from aaren_rl.errors import InvalidInput

LEVELS = ("easy", "medium", "hard")


def played(name, actor, episodes):
    entry = find(name)
    return evaluate(actor, Protocol(entry.environments["bundled"], episodes, 0, None, entry.reference))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym.envs", None)
    with pytest.raises(InvalidInput, match=r"popgym.*pip install '\.\[popgym\]'"):
        make(EnvironmentSpec(REPEAT_PREVIOUS))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"k": 0}, "k is 0; expected a whole number"),
        ({"decks": 1.5}, "decks is 1.5; expected a whole number"),
        ({"k": 52}, "k is 52 with 52 cards; expected fewer"),
    ],
)
def test_arguments_that_do_not_fit(kwargs, message):
    with pytest.raises(InvalidInput, match=message):
        make(EnvironmentSpec(REPEAT_PREVIOUS, kwargs))


class TestWithPopgym:
    @pytest.fixture(autouse=True)
    def popgym(self):
        pytest.importorskip("popgym")

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_gymnasium_finds_nothing_to_say(self):
        env = make(EnvironmentSpec(REPEAT_PREVIOUS))
        check_env(env.unwrapped, skip_render_check=True)

    @pytest.mark.parametrize("level", LEVELS)
    def test_game_is_popgyms(self, level):
        from popgym.envs import repeat_previous

        theirs = getattr(repeat_previous, f"RepeatPrevious{level.title()}")()
        entry = find(f"repeat-previous-{level}")
        ours = make(entry.environments["bundled"])
        suit, _ = theirs.reset(seed=3)
        observation, _ = ours.reset(seed=3)
        rng, steps, ended = np.random.default_rng(0), 0, False
        while not ended:
            assert observation.tolist() == [float(suit == other) for other in range(4)]
            action = rng.uniform(-1, 1, 4).astype(np.float32)
            suit, expected, over, _, _ = theirs.step(int(np.argmax(action)))
            observation, reward, ended, truncated, _ = ours.step(action)
            assert (reward, ended, truncated) == (pytest.approx(expected), over, False)
            steps += 1
        assert steps == entry.horizon

    @pytest.mark.parametrize("level", LEVELS)
    def test_expert_and_random_have_their_references_returns(self, level):
        name = f"repeat-previous-{level}"
        entry = find(name)
        expert = played(name, baselines.BehaviourActor(baselines.behaviour_policies(entry)), 30)
        np.testing.assert_allclose(expert.returns, 1.0, atol=1e-9)
        assert set(expert.lengths) == {entry.horizon}
        random = played(name, baselines.random_actor(entry.environments["bundled"]), 50)
        # Of n - k answers a quarter is right: mean -1/2, deviation at most that of independent ones; five of them.
        kwargs = entry.environments["bundled"].kwargs
        answers = 50 * (52 * kwargs["decks"] - kwargs["k"])
        assert abs(random.returns.mean() + 0.5) < 5 * 2 * np.sqrt(0.25 * 0.75 / answers)

    def test_data_repeat_the_suit_of_k_cards_before(self):
        entry = find("repeat-previous-easy")
        read = read_folder(collect.collect(entry, 300, progress=False))
        trajectories, environment = read.trajectories, read.collected_in
        assert environment == entry.environments["bundled"]
        np.testing.assert_allclose(trajectories.returns, 1.0, atol=1e-5)
        for start, end in zip(trajectories.offsets[:-1], trajectories.offsets[1:], strict=True):
            seen, acted = trajectories.observations[start:end], trajectories.actions[start:end]
            np.testing.assert_array_equal(acted[3:], 2 * seen[:-3] - 1)
            assert not acted[:3].any()
