import pytest

from aaren_rl.errors import InvalidInput

pytest.importorskip("popgym")

EXACT = [
    *(
        f"{game}{level}"
        for game in ("RepeatFirst", "RepeatPrevious", "Autoencode", "CountRecall")
        for level in ("Easy", "Hard")
    ),
    "PositionOnlyCartPoleEasy",
    "NoisyPositionOnlyCartPoleHard",
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


def test_game_without_a_player_is_refused(play):
    with pytest.raises(InvalidInput, match="does not play popgym-BattleshipEasy-v0"):
        play("popgym", "popgym-BattleshipEasy-v0")
