import json

import numpy as np
import pytest
import torch

from aaren_rl.envs.behaviours import ActorBehaviour
from aaren_rl.experiments.behaviour_training import to_behaviour
from aaren_rl.scripts.train_behaviour import main

sb3 = pytest.importorskip("stable_baselines3")


@pytest.fixture(scope="module")
def model():
    return sb3.SAC("MlpPolicy", "Hopper-v5", seed=0, learning_starts=20, device="cpu").learn(60)


def without_noise(behaviour):
    """The behaviour with the least standard deviation there is."""
    kernel, bias = behaviour.layers[3]
    return ActorBehaviour([*behaviour.layers[:3], (np.zeros_like(kernel), np.full_like(bias, -20))])


@pytest.fixture(scope="module")
def observations():
    return np.random.default_rng(0).normal(scale=2, size=(200, 11)).astype(np.float32)


def test_mean_action_is_the_deterministic_action_of_the_model(model, observations, tmp_path):
    expected, _ = model.predict(observations, deterministic=True)
    behaviour = to_behaviour(model)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(without_noise(behaviour)(observations[:, None], rng), expected, atol=1e-5)
    # On disk it is kept in half precision.
    behaviour.save(tmp_path / "a.npz")
    np.testing.assert_allclose(
        without_noise(ActorBehaviour.load(tmp_path / "a.npz"))(observations[:, None], rng), expected, atol=5e-3
    )
    # Of an actor that tells observations apart, or the comparison would say little.
    assert expected.std(0).min() > 0.01


def test_random_actions_spread_as_those_of_the_model(model, observations):
    mean, log_std, _ = model.actor.get_action_dist_params(torch.as_tensor(observations[:1]))
    actions = to_behaviour(model)(np.repeat(observations[:1, None], 20_000, 0), np.random.default_rng(0))
    before_tanh = np.arctanh(np.clip(actions.astype(np.float64), -1 + 1e-7, 1 - 1e-7))
    np.testing.assert_allclose(np.median(before_tanh, 0), mean[0].detach(), atol=0.05)
    np.testing.assert_allclose(before_tanh.std(0), log_std[0].exp().detach(), rtol=0.05)


def test_command_line_writes_snapshots_and_a_log(command, tmp_path):
    arguments = [
        "--env-id",
        "Hopper-v5",
        "--out",
        "made",
        "--steps",
        "180",
        "--snapshot-every",
        "90",
        "--episodes",
        "1",
    ]
    status, out, _ = command(main, *arguments)
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["00000090.npz", "00000180.npz", "log.json"]
    log = json.loads((tmp_path / "made" / "log.json").read_text())
    assert [row["t"] for row in log] == [90, 180]
    assert set(log[0]) == {"t", "ret", "std", "len", "sec"}
    assert "180 steps" in out
    first, second = (ActorBehaviour.load(tmp_path / "made" / f"{steps:08d}.npz") for steps in (90, 180))
    assert not np.array_equal(first.layers[0][0], second.layers[0][0])
    # A second training does not overwrite the first.
    status, _, errors = command(main, *arguments)
    assert status == 2
    assert "another --out" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "Pendulum-v1"], "within [-1, 1]"),
        (["--env-id", "CartPole-v1"], "Discrete"),
        (["--env-id", "Hoper-v5"], "did you mean"),
        (["--env-id", "Hopper-v5", "--steps", "5"], "none would be saved"),
    ],
)
def test_what_does_not_fit_is_refused(command, tmp_path, arguments, message):
    status, _, errors = command(main, *arguments, "--out", "made")
    assert status == 2
    assert message in errors
    assert not (tmp_path / "made").exists()
