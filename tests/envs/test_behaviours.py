import contextlib

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from aaren_rl.data.environment_spec import EnvironmentSpec
from aaren_rl.envs import behaviours
from aaren_rl.envs.baselines import BehaviourActor, behaviour_policies, random_actor
from aaren_rl.envs.behaviours import ActorBehaviour, ExpertBehaviour, RandomBehaviour
from aaren_rl.envs.catalogue import find
from aaren_rl.envs.evaluation import Protocol, evaluate
from aaren_rl.errors import DataError, InvalidInput

MEDIUM = 140_000


def test_hopper_medium_scores_near_its_level():
    entry = find("hopper-medium")
    protocol = Protocol(entry.environments["bundled"], 6, 0, None, entry.reference)
    returns = evaluate(BehaviourActor(behaviour_policies(entry)), protocol).returns
    # D4RL's set has 1422 +- 379.
    assert 900 < returns.mean() < 2200


def test_actions_follow_the_distribution_of_the_layers():
    behaviour = behaviours.bundled("hopper", MEDIUM)
    observation = np.random.default_rng(0).normal(size=11)
    hidden = observation.astype(np.float64)
    for kernel, bias in behaviour.layers[:2]:
        hidden = np.maximum(hidden @ kernel + bias, 0)
    mean = hidden @ behaviour.layers[2][0] + behaviour.layers[2][1]
    std = np.exp(np.clip(hidden @ behaviour.layers[3][0] + behaviour.layers[3][1], -20, 2))
    actions = behaviour(np.repeat(observation[None, None], 20_000, 0), np.random.default_rng(0))
    assert actions.dtype == np.float32
    # Before the tanh the actions are normal; its quantiles survive the tanh.
    for quantile, z in ((0.16, -0.99446), (0.5, 0.0), (0.84, 0.99446)):
        np.testing.assert_allclose(np.quantile(actions, quantile, axis=0), np.tanh(mean + z * std), atol=0.03)


def test_snapshot_survives_saving_and_loading(tmp_path):
    behaviour = behaviours.bundled("hopper", MEDIUM)
    behaviour.save(tmp_path / "a.npz")
    again = ActorBehaviour.load(tmp_path / "a.npz")
    # Bundled snapshots are half-precision already, so nothing is lost.
    for before, after in zip(behaviour.layers, again.layers, strict=True):
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_array_equal(before[1], after[1])
        assert after[0].dtype == np.float32


def test_noise_comes_from_the_generator_alone():
    behaviour = behaviours.bundled("hopper", MEDIUM)
    episodes = np.zeros((3, 1, 11))
    first, second, other = (behaviour(episodes, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).all()


def test_missing_cut_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match=r"a\.npz is not a behaviour"):
        ActorBehaviour.load(path)
    behaviours.bundled("hopper", MEDIUM).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:10], b"text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz is not a behaviour"):
            ActorBehaviour.load(path)
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(DataError, match="Dense_0/kernel"):
        ActorBehaviour.load(path)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.npz").touch()
    with pytest.raises(DataError, match="not a behaviour"):
        ActorBehaviour.load(tmp_path / "a.npz")


def test_altered_byte_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a.npz"
    behaviours.bundled("hopper", MEDIUM).save(path)
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 150):
        content = bytearray(whole)
        content[position] ^= 0xFF
        path.write_bytes(bytes(content))
        with contextlib.suppress(DataError):
            ActorBehaviour.load(path)


class Explosive:
    def __reduce__(self):
        return print, ("code in a snapshot was run",)


def test_pickled_objects_are_refused_unopened(tmp_path, capsys):
    names = [f"params/Dense_{i}/{part}" for i in range(4) for part in ("kernel", "bias")]
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, np.array([Explosive()], dtype=object)))
    with pytest.raises(DataError, match="not a behaviour"):
        ActorBehaviour.load(tmp_path / "a.npz")
    assert "was run" not in capsys.readouterr().out


def test_unknown_snapshots_and_tasks_name_the_known():
    with pytest.raises(InvalidInput, match=r"00140000\.npz"):
        behaviours.bundled("hopper", 140_001)
    with pytest.raises(InvalidInput, match="none"):
        behaviours.bundled("ant", 10_000)


def test_random_behaviour_fills_its_bounds():
    behaviour = RandomBehaviour(np.array([-1.0, 0.0]), np.array([1.0, 4.0]))
    actions = behaviour(np.zeros((5_000, 1, 3)), np.random.default_rng(0))
    assert actions.shape == (5_000, 2)
    np.testing.assert_allclose(actions.min(0), [-1, 0], atol=0.01)
    np.testing.assert_allclose(actions.max(0), [1, 4], atol=0.01)
    np.testing.assert_allclose(actions.mean(0), [0, 2], atol=0.1)


def test_actor_deals_its_policies_out_in_turn():
    class Constant:
        def __init__(self, value):
            self.value = value

        def __call__(self, episodes, rng):
            return np.full((len(episodes), 1), self.value, dtype=np.float32)

    actor = BehaviourActor([Constant(0), Constant(1), Constant(2)])
    for rows, expected in ((5, [0, 1, 2, 0, 1]), (2, [0, 1])):
        actor.reset(None, rows, AutoresetMode.SAME_STEP)
        flags = np.zeros(rows, dtype=bool)
        assert actor.act(np.zeros((rows, 4)), None, flags, flags)[:, 0].tolist() == expected


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_expert_sees_its_own_episode_from_the_start(mode):
    # Row 0 ends after two steps, row 1 goes on; what is told back is all that was seen.
    actor = BehaviourActor([ExpertBehaviour(lambda seen: np.concatenate([[len(seen)], seen[0]]).astype(np.float32))])
    ended = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [0, 0]], dtype=bool)
    told = []
    actor.reset(None, 2, mode)
    for step, flags in enumerate(ended):
        told.append(actor.act(np.array([[step], [10 + step]]), None, flags, ~flags & False).tolist())
    first = [[[t + 1, 0], [t + 1, 10]] for t in range(2)]
    if mode == AutoresetMode.NEXT_STEP:
        # At step 2 row 0 shows the last observation of the episode that is over.
        assert told == [*first, [[3, 0], [3, 10]], [[1, 3], [4, 10]], [[2, 3], [5, 10]]]
    else:
        assert told == [*first, [[1, 2], [3, 10]], [[2, 2], [4, 10]], [[3, 2], [5, 10]]]
    actor.reset(None, 2, mode)
    assert actor.act(np.array([[7], [8]]), None, ended[0], ended[0]).tolist() == [[1, 7], [1, 8]]


def test_entry_without_behaviours_says_what_to_do():
    with pytest.raises(InvalidInput, match="--source minari or d4rl"):
        behaviour_policies(find("ant-medium"))


def test_expert_that_looks_at_its_environment_plays_only_where_data_are_made():
    with pytest.raises(InvalidInput, match="the expert cartpole looks at its environment.*collect.py cartpole-mixed"):
        behaviour_policies(find("cartpole-mixed"))


def test_random_actor_stays_in_the_environments_bounds():
    actor = random_actor(EnvironmentSpec("Pendulum-v1"), seed=3)
    actor.reset(None, 400, AutoresetMode.SAME_STEP)
    flags = np.zeros(400, dtype=bool)
    actions = actor.act(np.zeros((400, 3)), None, flags, flags)
    assert 1.9 < np.abs(actions).max() <= 2
