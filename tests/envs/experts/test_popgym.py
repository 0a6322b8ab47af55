import gymnasium as gym
import pytest

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import collect, sources
from aaren_rl.envs.catalogue import catalogue
from aaren_rl.envs.experts import find
from aaren_rl.envs.references import reference_of
from aaren_rl.errors import InvalidInput

popgym = pytest.importorskip("popgym")

LEVELS = ("Easy", "Medium", "Hard")

LENGTHS = {
    "RepeatPrevious": (51, 103, 155),
    "RepeatFirst": (51, 415, 831),
    "Autoencode": (103, 207, 311),
    "CountRecall": (51, 103, 207),
    "HigherLower": (51, 103, 155),
    "Concentration": (104, 208, 104),
    "Battleship": (64, 100, 144),
    "MineSweeper": (14, 30, 54),
    "MultiarmedBandit": (200, 400, 600),
    "PositionOnlyCartPole": (200, 400, 600),
    "VelocityOnlyCartpole": (200, 400, 600),
    "NoisyPositionOnlyCartPole": (200, 200, 200),
    "PositionOnlyPendulum": (200, 150, 100),
    "NoisyPositionOnlyPendulum": (200, 200, 200),
}
"""Longest episodes of popgym's tasks."""

EXACT = [
    *(
        f"{game}{level}"
        for game in ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall")
        for level in ("Easy", "Hard")
    ),
    "PositionOnlyCartPoleEasy",
    "NoisyPositionOnlyCartPoleHard",
    "NoisyPositionOnlyCartPoleEasy",
    "VelocityOnlyCartpoleMedium",
]


@pytest.mark.parametrize("game", EXACT)
def test_games_of_memory_are_won(play, game):
    played = play("popgym", f"popgym-{game}-v0", 2)
    assert played.returns == pytest.approx([1.0, 1.0])


def test_games_of_chance_are_played_well(play):
    # Random play has 0 in both.
    assert play("popgym", "popgym-HigherLowerEasy-v0", 20).returns.mean() > 0.45
    assert play("popgym", "popgym-MultiarmedBanditEasy-v0", 20).returns.mean() > 0.5
    assert play("popgym", "popgym-PositionOnlyPendulumEasy-v0", 10).returns.mean() > 0.85


def test_board_games_are_played_well(play):
    # Random play has -0.2, -0.45 and -0.25.
    assert play("popgym", "popgym-ConcentrationHard-v0", 10).returns.min() > 0.6
    assert play("popgym", "popgym-BattleshipMedium-v0", 20).returns.mean() > 0.5
    assert play("popgym", "popgym-MineSweeperEasy-v0", 200).returns.mean() > 0.6


def test_unknown_arguments_and_games_are_refused(play):
    with pytest.raises(InvalidInput, match="the expert random has no argument speed"):
        play("random", "popgym-BattleshipEasy-v0", speed=3)
    with pytest.raises(InvalidInput, match="does not play CartPole-v1"):
        play("popgym", "CartPole-v1")


def test_catalogue_has_all_that_popgym_registers():
    """popgym registers its labyrinths only where mazelib is installed."""
    registered = {env_id for env_id in gym.registry if env_id.startswith("popgym-") and "Labyrinth" not in env_id}
    entries = {name: one for name, one in catalogue().items() if name.startswith("popgym-")}
    ids = [entry.environments["bundled"].id for entry in entries.values()]
    assert set(ids) == registered == {f"popgym-{game}{level}-v0" for game in LENGTHS for level in LEVELS}
    assert len(ids) == len(registered)


@pytest.mark.parametrize("game", LENGTHS)
def test_episodes_have_popgyms_lengths_and_keep_to_their_spaces(game):
    for level, length in zip(LEVELS, LENGTHS[game], strict=True):
        env = gym.make(f"popgym-{game}{level}-v0", disable_env_checker=True)
        player = find("popgym").policy(env, 0)
        longest = 0
        for seed in range(5 if game == "MineSweeper" else 2):
            observation, info = env.reset(seed=seed)
            player.reset(observation, info)
            taken, ended, steps = None, False, 0
            while not ended:
                assert env.observation_space.contains(observation)
                taken = player.act(observation, info, taken)
                observation, _, terminated, truncated, info = env.step(taken)
                ended, steps = terminated or truncated, steps + 1
            longest = max(longest, steps)
        env.close()
        exact = game not in ("Concentration", "Battleship")
        assert longest == length if exact else longest < length


def test_same_seed_gives_the_same_data():
    entry = catalogue()["popgym-concentration-easy"]
    made = []
    for seed in (1, 1, 2):
        collect.collect(entry, seed=seed, episodes=3, overwrite=True, progress=False, say=lambda line: None)
        data = sources.load(entry.name, "bundled", say=lambda line: None).trajectories
        made.append((data.observations.tobytes(), data.actions.tobytes()))
    assert made[0] == made[1] != made[2]


def test_every_task_has_reference_returns():
    for name, entry in catalogue().items():
        if name.startswith("popgym-"):
            reference = reference_of(EnvironmentSpec(entry.environments["bundled"].id))
            assert reference.name == "random and scripted expert"
            assert reference.random < reference.expert <= 1
