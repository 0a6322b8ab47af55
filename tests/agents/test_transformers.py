"""Agents of Hugging Face's Decision Transformers act as transformers' own model does in Hugging Face's loop."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from aaren_rl.agents import DecisionAgent
from aaren_rl.agents.transformers import from_transformers
from aaren_rl.errors import CheckpointError, InvalidInput
from aaren_rl.experiments.evaluation import Options, measure, prepare
from aaren_rl.experiments.exporting import export

SIZES = {"Hopper-v5": (11, 3), "Pendulum-v1": (3, 1)}
TARGETS = {"Hopper-v5": 3_600.0, "Pendulum-v1": -150.0}

SHAPES = [
    ("Hopper-v5", {"n_layer": 3, "hidden_size": 128}, 20),
    ("Hopper-v5", {"n_layer": 2, "hidden_size": 30, "n_head": 3, "n_inner": 120}, 7),
    ("Hopper-v5", {"n_layer": 1, "hidden_size": 33, "n_head": 1, "max_length": 5}, None),
    ("Pendulum-v1", {"n_layer": 4, "hidden_size": 20, "n_head": 4, "scale_attn_weights": False}, 1),
    ("Pendulum-v1", {"n_layer": 3, "hidden_size": 15, "n_head": 5, "scale_attn_by_inverse_layer_idx": True}, None),
    ("Pendulum-v1", {"n_layer": 2, "hidden_size": 9, "add_cross_attention": True, "reorder_and_upcast_attn": True}, 60),
]


def make_model(env_id="Pendulum-v1", max_length=None, **shape):
    """A Decision Transformer of random weights, biases and norms, so large that all it has seen shows."""
    state_dim, act_dim = SIZES[env_id]
    settings = {"max_ep_len": 60, "bos_token_id": None, "eos_token_id": None, "hidden_size": 16, **shape}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.DecisionTransformerConfig(state_dim=state_dim, act_dim=act_dim, **settings)
        if max_length is not None:
            config.max_length = max_length
        model = transformers.DecisionTransformerModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.15)
    return model


def statistics(env_id):
    rng = np.random.default_rng(0)
    return {"state_mean": rng.normal(size=SIZES[env_id][0]), "state_std": rng.uniform(0.2, 2, SIZES[env_id][0])}


def make_agent(model, env_id="Pendulum-v1", **options):
    settings = {**statistics(env_id), "target_return": TARGETS[env_id], "scale": 1000.0, **options}
    return from_transformers(model, **settings)


class HuggingFaceLoop:
    """`get_action` of Hugging Face's blog and the arrays that its loop keeps, written out."""

    def __init__(self, model, env_id, context):
        self.model, self.context, self.state_dim, self.act_dim = model, context, *SIZES[env_id]
        self.mean, self.std = (torch.from_numpy(part) for part in statistics(env_id).values())
        self.states = torch.zeros(0, self.state_dim)
        self.actions = torch.zeros(0, self.act_dim)
        self.returns = torch.tensor([TARGETS[env_id] / 1000.0], dtype=torch.float32)

    def act(self, observation, reward):
        if reward is not None:
            self.returns = torch.cat([self.returns, self.returns[-1:] - float(reward) / 1000.0])
        observed = torch.from_numpy(observation).float()
        self.states = torch.cat([self.states, observed[None]])
        self.actions = torch.cat([self.actions, torch.zeros(1, self.act_dim)])
        length = min(len(self.states), self.context)
        padding = self.context - length

        def padded(values):
            last = values[-length:]
            return torch.cat([torch.zeros(padding, *last.shape[1:]), last])[None].float()

        timesteps = torch.arange(len(self.states))
        with torch.no_grad():
            _, action_preds, _ = self.model(
                states=padded((self.states - self.mean) / self.std),
                actions=padded(self.actions),
                rewards=torch.zeros(1, self.context, 1),
                returns_to_go=padded(self.returns[:, None]),
                timesteps=padded(timesteps).long(),
                attention_mask=torch.cat([torch.zeros(padding), torch.ones(length)])[None].long(),
                return_dict=False,
            )
        self.actions[-1] = action_preds[0, -1]
        return self.actions[-1].numpy().copy()


def differences(agent, loop, env_id, steps=60):
    """How far the actions are apart at each step of an episode that the loop's actions make, and these actions."""
    env = gym.make(env_id, **({"terminate_when_unhealthy": False} if env_id == "Hopper-v5" else {}))
    observation, _ = env.reset(seed=3)
    agent.reset()
    apart, acted, reward = [], [], None
    for _ in range(steps):
        theirs = loop.act(observation, reward)
        ours = agent.act(observation) if reward is None else agent.act(observation, reward)
        apart.append(np.abs(ours - theirs).max())
        acted.append(theirs)
        observation, reward, _, _, _ = env.step(theirs)
    return np.array(apart), np.array(acted)


@pytest.mark.parametrize(("env_id", "shape", "context"), SHAPES)
def test_actions_equal_those_of_the_loop_of_hugging_face(env_id, shape, context):
    model = make_model(env_id, **shape)
    agent = make_agent(model, env_id, context=context)
    steps = context or shape.get("max_length", 20)
    assert str(agent.acting) == f"closed-window:{steps}"
    apart, acted = differences(agent, HuggingFaceLoop(model, env_id, steps), env_id)
    assert apart.max() < 1e-5
    assert acted.std(0).max() > 0.02


def test_other_ways_of_acting_agree_until_the_window_moves():
    model = make_model("Hopper-v5")
    for acting in ("stream", "window:8"):
        agent = make_agent(model, "Hopper-v5", context=8)
        agent = DecisionAgent(agent.model, agent.card, acting=acting)
        apart, _ = differences(agent, HuggingFaceLoop(model, "Hopper-v5", 8), "Hopper-v5")
        assert apart[:8].max() < 1e-5
        assert apart[8:].max() > 1e-3


def test_folders_act_as_their_models_and_agents_are_saved(tmp_path):
    """Folders of transformers, also without the defaults that older versions left out, and our own."""
    model = make_model("Hopper-v5")
    model.save_pretrained(tmp_path / "hopper")
    file = tmp_path / "hopper" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({name: config[name] for name in ("state_dim", "act_dim", "hidden_size", "max_ep_len")}))
    agent = make_agent(str(tmp_path / "hopper"), "Hopper-v5", environment="Hopper-v5")
    assert agent.card.dataset_id == "hopper"
    agent.save(tmp_path / "agent")
    loaded = DecisionAgent.load(tmp_path / "agent")
    assert loaded.card == agent.card
    for one in (agent, loaded):
        assert differences(one, HuggingFaceLoop(model, "Hopper-v5", 20), "Hopper-v5")[0].max() < 1e-5
    # A window's length that an older version wrote.
    file.write_text(json.dumps({**config, "max_length": 6}))
    assert str(make_agent(tmp_path / "hopper", "Hopper-v5").acting) == "closed-window:6"


def test_agents_are_evaluated_and_refuse_single_steps(tmp_path):
    agent = make_agent(make_model(max_ep_len=200), environment="Pendulum-v1")
    agent.save(tmp_path / "agent")
    candidate = prepare(str(tmp_path / "agent"), Options(episodes=2))
    found = measure(candidate)
    assert (found["source"], found["acting"], found["target"]) == ("transformers", "closed-window:20", -150.0)
    assert found["lengths"] == [200, 200]
    for acting, message in ((None, "closed-window:20, which is no single step"), ("stream", "grows with every token")):
        with pytest.raises(InvalidInput, match=message):
            export(tmp_path / "agent", tmp_path / "exported", acting)


def test_rows_of_a_batch_act_as_single_environments():
    agent = make_agent(make_model(), context=4)
    observations, rewards = np.random.default_rng(1).normal(size=(2, 12, 3)), np.random.default_rng(2).normal(size=12)
    agent.reset(num_envs=2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    none, second = np.zeros(2, bool), np.array([False, True])
    # The second row starts an episode at step 5.
    batch = [agent.act(observations[:, t], np.full(2, rewards[t]), second if t == 5 else none, none) for t in range(12)]
    for row, starts in ((0, (0,)), (1, (0, 5))):
        for t in range(12):
            if t in starts:
                agent.reset()
            action = agent.act(observations[row, t], None if t in starts else rewards[t])
            np.testing.assert_allclose(batch[t][row], action, atol=1e-5)


def test_conversion_leaves_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    make_agent(make_model())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"activation_function": "gelu_new"}, "activation_function .* 'gelu_new', .* only with 'relu'"),
        ({"action_tanh": False}, "action_tanh .* False, .* only with True"),
        ({"n_inner": 32}, "n_inner .* 32, .* only with None or 64"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon .* 1e-06, .* only with 1e-05"),
    ],
)
def test_settings_without_an_equal_here_are_refused(shape, message):
    with pytest.raises(InvalidInput, match=message):
        make_agent(make_model(**shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_mean": np.zeros(4)}, r"state_mean has shape \(4,\); expected \(3,\)"),
        ({"state_std": np.array([1.0, 0.0, 1.0])}, "state_std is .*expected positive"),
        ({"state_std": "wide"}, "state_std is not made of numbers"),
        ({"state_mean": np.full(3, np.nan)}, "float32 does not hold as finite"),
        ({"scale": 0.0}, "return_scale is 0.0"),
        ({"context": 0}, "context is 0"),
        ({"target_return": np.inf}, "expected finite numbers"),
        ({"target_return": "auto"}, "target_return is 'auto'; expected a number, as 3600"),
        ({"target_return": None}, "target_return is None; expected a number, as 3600"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        make_agent(make_model(), **options)


def test_other_models_are_refused():
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=4))
    with pytest.raises(InvalidInput, match="model_type .* 'gpt2'"):
        make_agent(gpt2)
    with pytest.raises(InvalidInput, match="model is a Linear; expected a DecisionTransformerModel"):
        make_agent(torch.nn.Linear(3, 1))


def test_an_episode_beyond_the_timesteps_is_refused():
    agent = make_agent(make_model(max_ep_len=3))
    agent.reset()
    agent.act(np.zeros(3))
    agent.act(np.zeros(3), 0.0)
    agent.act(np.zeros(3), 0.0)
    with pytest.raises(InvalidInput, match="longer than the 3 steps"):
        agent.act(np.zeros(3), 0.0)


def altered(tensors, name, change):
    return {**tensors, name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {name: part for name, part in w.items() if name != "embed_ln.bias"}, "no weight embed_ln.bias"),
        (
            lambda w: altered(w, "embed_state.weight", lambda part: part[:, :2]),
            r"embed_state.weight has shape \(16, 2\)",
        ),
        (lambda w: altered(w, "embed_ln.weight", lambda part: part * torch.nan), "holds a NaN"),
        (lambda w: altered(w, "embed_ln.weight", lambda part: part.to(torch.int8)), "without quantisation"),
        (lambda w: altered(w, "encoder.wpe.weight", lambda part: part[:0]), "wpe.weight has shape"),
        (lambda w: {**w, "adapter.weight": torch.zeros(1)}, "has the weight adapter.weight, which is none"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name: part.contiguous() for name, part in change(load_file(file)).items()}
    save_file(weights, file)
    with pytest.raises(InvalidInput, match=message):
        make_agent(tmp_path)


def test_a_name_on_the_hub_says_how_to_load_it():
    name = "edbeeching/decision-transformer-gym-hopper-medium"
    with pytest.raises(CheckpointError, match=rf"load it with .*from_pretrained\('{name}'\) and pass the model"):
        make_agent(name)


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="config.json is missing"):
        make_agent(tmp_path)
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for given in ({"n_head": "2"}, {"n_head": 3}, {"n_head": 0}, {"n_layer": 10**9}, {"hidden_size": -1}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **given}))
        with pytest.raises(InvalidInput):
            make_agent(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        make_agent(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="load what is there with transformers"):
        make_agent(tmp_path)
