"""OGBench's arm (cube, scene, puzzle): the oracles that it ships."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from aaren_rl.data.trajectories import Floats
from aaren_rl.envs.experts.expert import Env, game_of, within
from aaren_rl.errors import InvalidInput

CUBE, BUTTON = "cube", "button"


class Arm:
    """OGBench's Markov oracles, one target after another.

    With `mode="data_collection"` the environment draws the targets, as for OGBench's play data. As a task, cubes are
    brought to the goal's places, the lowest first, and the buttons of a puzzle are pressed that solve it.

    Raises:
        InvalidInput: the environment is a task of scene, whose order of steps OGBench's oracles do not know.
    """

    def __init__(self, env: Env, rng: np.random.Generator) -> None:
        self.game = game_of(env)
        self.has_cubes, self.has_buttons = (hasattr(self.game, name) for name in ("_num_cubes", "_num_buttons"))
        self.is_task = self.game._mode == "task"
        if self.is_task and self.has_cubes and self.has_buttons:
            raise InvalidInput(
                "OGBench's oracles do not know the order of a scene's steps; pass mode=data_collection among the "
                "environment's arguments (and terminate_at_goal=false), which draws targets one by one"
            )
        self.oracles = _oracles(env, always_closed=not self.has_cubes)

    def reset(self, observation: Any, info: Mapping[str, Any]) -> None:
        """See `Policy`."""
        self.oracle: Any = None

    def act(self, observation: Any, info: Mapping[str, Any], taken: Any) -> Floats:
        """See `Policy`."""
        if self.oracle is not None and self.oracle.done:
            self.oracle = None
            if not self.is_task:
                observation, info = self.game.set_new_target()
        if self.oracle is None:
            self.goal = self._next_goal() if self.is_task else {}
            self.oracle = self.oracles[(self.goal or info)["privileged/target_task"]]
            self.oracle.reset(observation, {**info, **self.goal})
        action = self.oracle.select_action(observation, {**info, **self.goal})
        return within(action)

    def _next_goal(self) -> dict[str, Any]:
        """What the environment says of its target when it draws one, for the next step of a task."""
        return self._next_cube() if self.has_cubes else self._next_button()

    def _next_cube(self) -> dict[str, Any]:
        data, targets = self.game._data, self.game._cube_target_mocap_ids
        ends = np.array([data.mocap_pos[target] for target in targets])
        # The lowest of those that are not in place; if all are, the last one is held there.
        waiting = [i for i, placed in enumerate(self.game._compute_successes()) if not placed] or [len(ends) - 1]
        cube = min(waiting, key=lambda i: float(ends[i][2]))
        w, x, y, z = data.mocap_quat[targets[cube]]
        return {
            "privileged/target_task": CUBE,
            "privileged/target_block": cube,
            "privileged/target_block_pos": ends[cube],
            "privileged/target_block_yaw": np.array([np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))]),
        }

    def _next_button(self) -> dict[str, Any]:
        game = self.game
        wrong = np.array(game._cur_button_states) != np.array(game._target_button_states)
        presses = lights_out(wrong.reshape(game._num_rows, game._num_cols))
        button = int(presses.argmax())
        return {
            "privileged/target_task": BUTTON,
            "privileged/target_button": button,
            "privileged/target_button_state": 1 - game._cur_button_states[button],
            "privileged/target_button_top_pos": game._data.site_xpos[game._button_site_ids[button]].copy(),
        }


def lights_out(wrong: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The buttons whose presses mend a board on which a press turns a button and those beside it, (rows x columns,).

    Args:
        wrong: buttons that are not as they should be, (rows, columns).

    Raises:
        InvalidInput: no presses mend it.
    """
    rows, columns = wrong.shape
    places = [(i, j) for i in range(rows) for j in range(columns)]
    turns = np.array([[abs(i - k) + abs(j - m) <= 1 for k, m in places] for i, j in places])
    board = np.column_stack([turns, wrong.ravel()])
    # Gauss's elimination, modulo 2; pivots are rows that each settle one button.
    pivots: list[tuple[int, int]] = []
    for column in range(len(places)):
        found = np.flatnonzero(board[len(pivots) :, column])
        if len(found):
            row = len(pivots)
            board[[row, row + found[0]]] = board[[row + found[0], row]]
            others = board[:, column] & (np.arange(len(board)) != row)
            board[others] ^= board[row]
            pivots.append((row, column))
    if board[len(pivots) :, -1].any():
        raise InvalidInput(f"no presses mend the board {wrong.astype(int).tolist()}")
    presses = np.zeros(len(places), dtype=np.bool_)
    for row, column in pivots:
        presses[column] = board[row, -1]
    return presses


def _oracles(env: Env, always_closed: bool) -> dict[str, Any]:
    """The oracles by the name of what they move; a puzzle's gripper stays closed."""
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

    return {
        CUBE: CubeMarkovOracle(env=env),
        BUTTON: ButtonMarkovOracle(env=env, gripper_always_closed=always_closed),
        "drawer": DrawerMarkovOracle(env=env),
        "window": WindowMarkovOracle(env=env),
    }
