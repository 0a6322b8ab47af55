import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_close

pytest.importorskip("sb3_contrib", reason="the extra sb3-contrib is not installed")

from sb3_contrib import RecurrentPPO

from aaren_rl.agents.sb3_contrib import CorePolicy
from aaren_rl.envs.memory.chain import PassiveTMaze
from aaren_rl.errors import InvalidInput


def make(env=None, n_steps=32, **policy):
    options = {"n_steps": n_steps, "batch_size": n_steps, "n_epochs": 1, "seed": 0, "device": "cpu"}
    env = env or PassiveTMaze(2, 6)
    return RecurrentPPO(CorePolicy, env, policy_kwargs={"width": 16, **policy}, **options)


@pytest.mark.parametrize("mixer", ["aaren", "gated-aaren", "gru", "local:3"])
@pytest.mark.parametrize("critic", [{}, {"shared_lstm": True, "enable_critic_lstm": False}])
def test_updates_see_what_was_seen_when_acting(mixer, critic):
    """Whole sequences give the values and probabilities that steps gave, over ends of episodes and of rollouts."""
    model = make(mixer=mixer, **critic)
    model.learn(32)
    # The second rollout begins in the middle of an episode.
    _, callback = model._setup_learn(64)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 32)
    assert model.rollout_buffer.episode_starts.sum() > 2
    (data,) = model.rollout_buffer.get(32)
    values, log_prob, _ = model.policy.evaluate_actions(
        data.observations, data.actions, data.lstm_states, data.episode_starts
    )
    real = data.mask > 1e-8
    assert_close("values", values.flatten()[real], data.old_values[real], atol=1e-5, rtol=1e-4)
    assert_close("log_prob", log_prob[real], data.old_log_prob[real], atol=1e-5, rtol=1e-4)


def test_predict_without_a_state_starts_an_episode():
    model = make()
    cue, junction = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    fresh, _ = model.predict(junction, deterministic=True)
    _, state = model.predict(cue, deterministic=True)
    later, _ = model.predict(junction, state, deterministic=True)
    again, _ = model.predict(junction, state, episode_start=np.array([True]), deterministic=True)
    np.testing.assert_allclose(again, fresh, atol=1e-6)
    assert np.abs(later - fresh).max() > 1e-5


def test_a_saved_model_acts_as_before(tmp_path):
    model = make(gym.make("CartPole-v1"), mixer="gated-aaren", blocks=2)
    model.learn(64)
    model.save(tmp_path / "model.zip")
    loaded = RecurrentPPO.load(tmp_path / "model.zip")
    observation, state, other = np.zeros((1, 4), np.float32), None, None
    for _ in range(5):
        observation = observation + 0.1
        ours, state = model.predict(observation, state, deterministic=True)
        theirs, other = loaded.predict(observation, other, deterministic=True)
        np.testing.assert_array_equal(ours, theirs)
    for one, two in zip(state, other, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_training_reaches_all_weights_of_the_cores():
    model = make()
    before = {name: weight.clone() for name, weight in model.policy.named_parameters()}
    model.learn(64)
    still = [name for name, weight in model.policy.named_parameters() if torch.equal(weight, before[name])]
    assert not [name for name in still if "lstm" in name and "key.bias" not in name]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match="lstm_hidden_size belongs to an LSTM; pass width"):
        make(lstm_hidden_size=16)
    with pytest.raises(InvalidInput, match="state grows with every step"):
        make(mixer="softmax")
