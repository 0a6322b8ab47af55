import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from aaren_rl.envs.experts.board_games import Battleship, Concentration, MineSweeper


def env_of(**facts):
    """An environment that knows the rules of its game, and nothing of its hidden state."""
    return SimpleNamespace(unwrapped=SimpleNamespace(**facts))


# Concentration, on a table of its own


class Table:
    """Cards on a table, by popgym's rules; -1 is a card that is face down."""

    def __init__(self, values):
        self.values, self.up, self.turned = np.array(values), set(), []

    def shown(self):
        seen = np.full(len(self.values), -1)
        for card in (*self.up, *self.turned):
            seen[card] = self.values[card]
        return seen

    def turn(self, card):
        self.turned.append(card)
        shown = self.shown()
        if any(one in self.up for one in self.turned):
            self.turned = []
        elif len(self.turned) == 2:
            one, other = self.turned
            if one != other and self.values[one] == self.values[other]:
                self.up |= {one, other}
            self.turned = []
        return shown


def concentration(cards):
    return Concentration(env_of(action_space=SimpleNamespace(n=cards)), np.random.default_rng(0))


@pytest.mark.parametrize(("cards", "pairs"), [(2, 1), (12, 6), (12, 2), (52, 26)])
def test_no_known_pair_is_left_and_no_card_is_wasted(cards, pairs):
    rng, player = np.random.default_rng(0), concentration(cards)
    for _ in range(20):
        table = Table(rng.permutation(np.arange(cards) % pairs))
        player.reset(table.shown(), {})
        shown, card, seen = table.shown(), None, set()
        while len(table.up) < cards:
            down = [one for one in seen if one not in table.up]
            had_pair = len({table.values[one] for one in down}) < len(down)
            begins, before = not table.turned, len(table.up)
            card = player.act(shown, {}, card)
            assert card not in table.up
            assert card not in table.turned
            # Only a card of a pair is turned a second time.
            assert card not in seen or had_pair or not begins
            shown = table.turn(card)
            seen.add(card)
            if begins and had_pair:
                shown = table.turn(card := player.act(shown, {}, card))
                assert len(table.up) == before + 2


def test_cards_that_noise_turned_are_remembered():
    player, table = concentration(4), Table([0, 1, 1, 0])
    player.reset(table.shown(), {})
    player.act(table.shown(), {}, None)
    # Noise turned card 3 and the player's partner for it is unseen; then a card that is turned already.
    assert player.act(table.turn(3), {}, 3) == 0
    assert player.act(table.turn(3), {}, 3) == 0
    assert player.act(table.turn(0), {}, 0) == 3
    shown = table.turn(3)
    assert table.up == {0, 3}
    # A card that is up ends the turn.
    assert player.act(shown, {}, 3) == 1
    assert player.act(table.turn(0), {}, 0) == 1
    assert player.act(table.turn(1), {}, 1) == 2


# Battleship, against a count of placements


def fitting(size, length, misses):
    """All placements without a miss, cell by cell."""
    lines = [[(row, column + k) for k in range(length)] for row in range(size) for column in range(size - length + 1)]
    lines += [[(column, row) for row, column in line] for line in lines]
    return [line for line in lines if not set(line) & misses]


@pytest.mark.parametrize(("size", "ships"), [(3, [2]), (5, [2, 3, 3]), (8, [2, 3, 3, 4])])
def test_first_shots_lie_where_most_ships_fit(size, ships):
    player, misses, shot = Battleship(env_of(board_size=size, ship_sizes=ships), np.random.default_rng(0)), set(), None
    player.reset(0, {})
    for _ in range(4):
        counts = np.zeros((size, size))
        for length in ships:
            for line in fitting(size, length, misses):
                np.add.at(counts, tuple(np.transpose(line)), 1)
        shot = player.act(0, {}, shot)
        assert counts[tuple(shot)] == counts.max()
        misses.add(tuple(shot.tolist()))


def test_hits_draw_the_next_shots_and_no_shot_is_repeated():
    player = Battleship(env_of(board_size=8, ship_sizes=[2, 3, 3, 4]), np.random.default_rng(0))
    player.reset(0, {})
    player.act(0, {}, None)
    hit = np.array([6, 1])
    following = [player.act(1, {}, hit)]
    following += [player.act(0, {}, following[-1]) for _ in range(1)]
    assert all(np.abs(shot - hit).sum() == 1 for shot in following)
    # A second shot at the hit, which noise takes, is no miss.
    assert np.abs(player.act(0, {}, hit) - hit).sum() == 1
    shots, shot = {(6, 1), *(tuple(one.tolist()) for one in following)}, following[-1]
    for _ in range(61):
        shot = player.act(0, {}, shot)
        assert tuple(shot.tolist()) not in shots
        shots.add(tuple(shot.tolist()))


# MineSweeper, against all boards that fit


CELLS = list(itertools.product(range(4), range(4)))


def mines_around(mines, cell):
    return sum(abs(cell[0] - row) < 2 and abs(cell[1] - column) < 2 for row, column in mines)


def test_free_cells_are_free_on_every_board_that_fits():
    player = MineSweeper(env_of(dims=(4, 4), num_mines=2), np.random.default_rng(0))
    boards = list(itertools.combinations(CELLS, 2))
    won = safe = guessed = 0
    for mines in boards:
        player.reset(0, {})
        fits, taken, seen, known = boards, None, 0, set()
        while len(known) < 14:
            cell = tuple(player.act(seen, {}, taken).tolist())
            assert cell not in known
            risks = {one: np.mean([one in board for board in fits]) for one in CELLS if one not in known}
            assert risks[cell] < 1
            if min(risks.values()) == 0:
                safe += risks[cell] == 0
                guessed += risks[cell] > 0
            if cell in mines:
                break
            seen, taken = mines_around(mines, cell), np.array(cell)
            known.add(cell)
            fits = [board for board in fits if cell not in board and mines_around(board, cell) == seen]
        won += len(known) == 14
    # Simple inference misses a few free cells.
    assert guessed < 0.05 * (safe + guessed)
    assert won > 0.6 * len(boards)
