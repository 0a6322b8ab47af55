import itertools

import numpy as np
import pytest

from aaren_rl.envs.experts.ogbench import lights_out
from aaren_rl.errors import InvalidInput

PLAY = {"mode": "data_collection", "terminate_at_goal": False}


def pressed(presses):
    """The buttons that presses turn, counted one by one."""
    turned = np.zeros(presses.shape, dtype=bool)
    for i, j in zip(*np.nonzero(presses), strict=True):
        for k, m in ((i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if 0 <= k < presses.shape[0] and 0 <= m < presses.shape[1]:
                turned[k, m] ^= True
    return turned


def test_lights_are_put_out_on_every_board():
    for bits in itertools.product([False, True], repeat=9):
        wrong = np.array(bits).reshape(3, 3)
        np.testing.assert_array_equal(pressed(lights_out(wrong).reshape(3, 3)), wrong)


def test_board_that_cannot_be_mended_is_named():
    rng = np.random.default_rng(0)
    solvable = [pressed(rng.random((4, 4)) < 0.5) for _ in range(20)]
    for wrong in solvable:
        np.testing.assert_array_equal(pressed(lights_out(wrong).reshape(4, 4)), wrong)
    # No presses turn one light of the 4 x 4 board alone.
    with pytest.raises(InvalidInput, match="no presses mend the board"):
        lights_out(solvable[0] ^ (np.arange(16).reshape(4, 4) == 0))


def test_tasks_of_ogbench_are_solved(play):
    pytest.importorskip("ogbench")
    for env_id in ("cube-single-v0", "puzzle-3x3-v0"):
        assert play("ogbench-arm", env_id, 3).success.all()
    with pytest.raises(InvalidInput, match="pass mode=data_collection"):
        play("ogbench-arm", "scene-v0")


@pytest.mark.parametrize("env_id", ["cube-double-v0", "scene-v0", "puzzle-3x3-v0"])
def test_play_of_ogbench_meets_one_target_after_another(play, env_id):
    pytest.importorskip("ogbench")
    assert play("ogbench-arm", env_id, 1, PLAY).success.all()


@pytest.mark.parametrize("task", ["reach-v3", "door-open-v3"])
def test_policies_of_metaworld_are_found_and_succeed(play, task):
    pytest.importorskip("metaworld")
    assert play("metaworld", "Meta-World/MT1", 2, {"env_name": task, "seed": 0}, longest=200).success.any()
