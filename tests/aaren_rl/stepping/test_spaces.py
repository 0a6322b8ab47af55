"""Every space, in every form of a step: the whole segment at once, step by step, folded, in NumPy and as a graph."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_close

from aaren_rl.agents import CAgent, DecisionAgent, OnnxAgent, TorchAgent
from aaren_rl.checkpoint import AgentCard, load_agent, save_agent
from aaren_rl.data.packed import map_packed
from aaren_rl.data.segment import Segment
from aaren_rl.data.spaces import DiscreteSpace, TextSpace, space_of, with_vocabularies
from aaren_rl.errors import InvalidInput
from aaren_rl.model import DecisionModel, ModelConfig, Scaling
from aaren_rl.model.inputs_stepper import ACTION
from aaren_rl.stepping import ModelStepper, NumpyModelStepper
from aaren_rl.stepping.c.compiled import find_compiler
from aaren_rl.stepping.c.export import to_c
from aaren_rl.stepping.onnx import to_onnx
from aaren_rl.stepping.torch_program import to_torch

G = gym.spaces
TEXTS = ["go to the red ball", "open a blue door", "go to a door"]


class Missions(G.Text):
    """Texts of a few words."""

    def __init__(self):
        super().__init__(100)

    def sample(self, mask=None, probability=None):
        return TEXTS[self.np_random.integers(len(TEXTS))]


OBSERVATIONS = {
    "vector": G.Box(-2, 2, (3,)),
    "discrete": G.Discrete(5, start=2),
    "multi-discrete": G.MultiDiscrete([[2, 3], [4, 2]]),
    "bits": G.MultiBinary((2, 3)),
    "bytes": G.Box(0, 255, (128,), np.uint8),
    "grid": G.Box(0, 10, (7, 7, 3), np.uint8),
    "picture": G.Box(0, 255, (3, 40, 44), np.uint8),
    "grey floats": G.Box(0, 1, (36, 36, 1), np.float32),
    "text": Missions(),
    "mission": G.Dict(image=G.Box(0, 255, (6, 5, 2), np.uint8), direction=G.Discrete(4), mission=Missions()),
    "nested": G.Tuple((G.Box(-1, 1, ()), G.Dict(b=G.MultiBinary(2), a=G.Box(0, 3, (2, 2), np.int32)))),
}
ACTIONS = {
    "vector": G.Box(-1, 1, (2,)),
    "bounds": G.Box(np.array([0, -3], np.float32), np.array([1, 5], np.float32)),
    "discrete": G.Discrete(4, start=-1),
    "multi-discrete": G.MultiDiscrete([3, 2, 4]),
    "bits": G.MultiBinary(3),
    "parts": G.Dict(move=G.Box(-1, 1, (2,)), buttons=G.Tuple((G.Discrete(3), G.MultiBinary((1, 2))))),
}
PAIRS = [(name, "discrete", "aaren") for name in OBSERVATIONS]
PAIRS += [("vector", name, mixer) for name in ACTIONS for mixer in ("aaren", "gru")]
PAIRS += [("mission", "parts", mixer) for mixer in ("aaren", "gru", "local:4", "softmax")]
ROWS, STEPS = 3, 6


def stack(values):
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stack(list(parts)) for parts in zip(*values, strict=True))
    return list(values) if isinstance(values[0], str) else np.stack(values)


def samples(space, seed=0):
    """Values of a space, (ROWS * STEPS, ...)."""
    space.seed(seed)
    return stack([space.sample() for _ in range(ROWS * STEPS)])


def to_tensors(packed):
    return map_packed(lambda part: torch.from_numpy(np.array(part)).reshape(ROWS, STEPS, *part.shape[1:]), packed)


def build(observed, acted, mixer="aaren", **variant):
    """A model of the spaces, and a segment of made-up values."""
    values, actions = samples(OBSERVATIONS[observed]), samples(ACTIONS[acted], 1)
    space = with_vocabularies(space_of(OBSERVATIONS[observed]), [values])
    action_space = space_of(ACTIONS[acted], image=False)
    torch.manual_seed(0)
    config = ModelConfig(mixer=mixer, blocks=2, width=16, heads=2, **variant)
    size = space.shape if space.size else (0,)
    scaling = Scaling(np.full(size, 0.3, np.float32), np.full(size, 1.7, np.float32), 10.0)
    model = DecisionModel(config, space, action_space, scaling).eval()
    rng = np.random.default_rng(0)
    rewards = torch.from_numpy(rng.normal(size=(ROWS, STEPS)).astype(np.float32))
    packed = to_tensors(space.pack(values, batch=1))
    segment = Segment(
        packed if space.images() else packed.float(),
        torch.arange(STEPS).expand(ROWS, STEPS),
        to_tensors(action_space.pack(actions, batch=1)).float(),
        rewards,
        20 - rewards.cumsum(1) + rewards,
    )
    return model, segment


def at(observations, t):
    return map_packed(lambda part: part[:, t], observations)


def steps_of(step, segment, start, columns):
    """Actions of a step function that is told the segment's actions."""
    state, found = start, []
    for t in range(STEPS):
        reward = segment.rewards[:, t - 1] if t else torch.zeros(ROWS)
        action, state = step(at(segment.observations, t), reward, state)
        state[:, ACTION:columns] = segment.actions[:, t].reshape(ROWS, -1)
        found.append(action)
    return torch.stack([torch.as_tensor(action) for action in found], 1)


@pytest.mark.parametrize("layout", ["fused", "interleaved"])
@pytest.mark.parametrize(("observed", "acted", "mixer"), PAIRS)
def test_every_form_of_a_step_agrees(observed, acted, mixer, layout):
    model, segment = build(observed, acted, mixer, layout=layout, head="gaussian", reward=True)
    with torch.no_grad():
        whole = model(segment)[0].mode
        state, found = model.initial_state(ROWS), []
        for t in range(STEPS):
            before = None if t == 0 else segment.actions[:, t - 1]
            reward = None if t == 0 else segment.rewards[:, t - 1]
            now = Segment.of_one_step(
                at(segment.observations, t), segment.timesteps[:, t], segment.returns_to_go[:, t], before, reward
            )
            action, state = model.step(now, state)
            found.append(action)
        assert whole.shape == segment.actions.shape
        assert_close("stepped actions", torch.stack(found, 1), whole, rtol=0, atol=1e-4)
        if not model.fixed_size:
            return
        step = ModelStepper(model)
        start = step.initial_state(segment.returns_to_go[:, 0])
        assert_close("folded actions", steps_of(step, segment, start.clone(), step.mixed), whole, rtol=0, atol=1e-4)
        numpy_step = NumpyModelStepper.of(step)
        assert (numpy_step is None) == bool(model.observation_space.images())
        if numpy_step is not None:

            def in_numpy(observation, reward, state):
                action, after = numpy_step(observation.numpy(), reward.numpy(), state.numpy())
                return action, torch.from_numpy(after)

            acted_in_numpy = steps_of(in_numpy, segment, start.clone(), step.mixed)
            assert_close("actions in NumPy", acted_in_numpy, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("acted", ACTIONS)
@pytest.mark.parametrize("head", ["squared-error", "gaussian"])
def test_what_is_learned_becomes_the_mode(acted, head):
    """A few updates on one batch: every head fits its actions."""
    model, segment = build("vector", acted, head=head, dropout=0.0)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(150):
        loss, _ = model.loss(segment)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    with torch.no_grad():
        mode = model(segment)[0].mode
    low, high = (part.numpy() for part in (segment.actions.amin((0, 1)), segment.actions.amax((0, 1))))
    apart = (mode - segment.actions).abs().numpy() / np.maximum(high - low, 1)
    assert apart.mean() < 0.1


def card():
    return AgentCard(None, "made-up", "arrays", (20.0,))


def play(agent, observations, rewards, rows=ROWS):
    agent.reset(20.0, rows)
    found = []
    for t, (observation, reward) in enumerate(zip(observations, rewards, strict=True)):
        found.append(agent.act(observation, reward if t else None, np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)))
    return found


def raw(observed, t):
    """Step t of the raw values that `build` packs, as a batch."""
    space = OBSERVATIONS[observed]
    space.seed(0)
    values = [space.sample() for _ in range(ROWS * STEPS)]
    return stack(values[t::STEPS])


@pytest.mark.parametrize(
    ("observed", "acted"),
    [
        ("mission", "parts"),
        ("nested", "discrete"),
        ("text", "bits"),
        ("picture", "multi-discrete"),
        ("discrete", "vector"),
    ],
)
def test_agents_act_in_the_environments_own_values(observed, acted, tmp_path):
    model, segment = build(observed, acted)
    save_agent(tmp_path / "agent", model, card())
    agent = DecisionAgent(*load_agent(tmp_path / "agent"))
    observations = [raw(observed, t) for t in range(STEPS)]
    rewards = segment.rewards.T.numpy()
    actions = play(agent, observations, np.roll(rewards, 1, 0))
    for action in actions:
        packed = model.action_space.pack(action, batch=1)
        for row in range(ROWS):
            assert ACTIONS[acted].contains(model.action_space.unpack(packed[row]))
    # Rows are what single environments would be.
    for row in range(ROWS):
        single = DecisionAgent(agent.model, card())
        single.reset(20.0)
        for t in range(STEPS):
            observation = model.observation_space.unpack(at_row(segment.observations, row, t))
            action = single.act(observation, rewards[t - 1][row] if t else None)
            assert ACTIONS[acted].contains(action)
            ours = model.action_space.pack(actions[t], batch=1)[row]
            np.testing.assert_allclose(model.action_space.pack(action), ours, atol=1e-5)
    to_torch(model, card(), tmp_path / "program")
    for ours, theirs in zip(
        actions, play(TorchAgent(tmp_path / "program"), observations, np.roll(rewards, 1, 0)), strict=True
    ):
        packed = [model.action_space.pack(one, batch=1) for one in (ours, theirs)]
        np.testing.assert_allclose(packed[0], packed[1], atol=1e-5)
    pytest.importorskip("onnxruntime")
    to_onnx(model, card(), tmp_path / "exported")
    exported = play(OnnxAgent(tmp_path / "exported"), observations, np.roll(rewards, 1, 0))
    for ours, theirs in zip(actions, exported, strict=True):
        packed = [model.action_space.pack(one, batch=1) for one in (ours, theirs)]
        np.testing.assert_allclose(packed[0], packed[1], atol=1e-4)
    if find_compiler() is None or model.observation_space.images():
        return
    to_c(model, card(), tmp_path / "in c")
    in_c = play(CAgent(tmp_path / "in c"), observations, np.roll(rewards, 1, 0))
    for ours, theirs in zip(actions, in_c, strict=True):
        packed = [model.action_space.pack(one, batch=1) for one in (ours, theirs)]
        np.testing.assert_allclose(packed[0], packed[1], atol=1e-4)


def test_pictures_are_not_written_in_c(tmp_path):
    model, _ = build("picture", "discrete")
    with pytest.raises(InvalidInput, match="observations with images are not written in C"):
        to_c(model, card(), tmp_path / "in c")


def at_row(observations, row, t):
    return map_packed(lambda part: part[row, t].numpy(), observations)


@pytest.mark.parametrize("acted", ["vector", "discrete", "multi-discrete", "bits", "parts"])
@pytest.mark.parametrize("acting", ["stream", "window:3"])
def test_sampled_actions_have_the_learned_probabilities(acted, acting):
    """Against the distribution's own samples: the first action of many rows."""
    model, _ = build("vector", acted, head="gaussian")
    rows = 4_000
    agent = DecisionAgent(model, card(), acting=acting, temperature=1.0, seed=0)
    observation = np.tile(np.float32([0.3, -1, 2]), (rows, 1))
    agent.reset(20.0, rows)
    found = model.action_space.pack(agent.act(observation), batch=1).reshape(rows, -1)
    with torch.no_grad():
        first = Segment.of_one_step(torch.from_numpy(observation[:1]), torch.zeros(1).long(), torch.tensor([20.0]))
        expected = probabilities(model, first)
    for column, (mean, spread) in enumerate(expected):
        assert found[:, column].mean() == pytest.approx(mean, abs=5 * spread / np.sqrt(rows) + 1e-6)
        assert found[:, column].std() == pytest.approx(spread, rel=0.1, abs=1e-3)
    agent.temperature = 1e-6
    agent.reset(20.0, rows)
    cold = model.action_space.pack(agent.act(observation), batch=1)
    assert np.ptp(cold, axis=0).max() < 1e-4


def probabilities(model, first):
    """Mean and standard deviation of every number of the action, by sums over values or 1e6 normal numbers."""
    prediction = model(first)[0]
    parts = getattr(prediction, "parts", [prediction])
    found = []
    for part, space in zip(parts, model.action_space.parts(), strict=True):
        if isinstance(space.space, DiscreteSpace):
            cuts = np.cumsum(space.space.counts)[:-1]
            for logits, start in zip(np.split(part.logits[0, 0].numpy(), cuts), space.space.starts, strict=True):
                weight, values = np.exp(logits) / np.exp(logits).sum(), np.arange(len(logits)) + start
                mean = (weight * values).sum()
                found.append((mean, np.sqrt((weight * (values - mean) ** 2).sum())))
        elif hasattr(part, "logits"):
            for logit in part.logits[0, 0].numpy():
                p = 1 / (1 + np.exp(-logit))
                found.append((p, np.sqrt(p * (1 - p))))
        else:
            normal = np.random.default_rng(1).normal(size=1_000_000)
            for mean, log_std in zip(part.mean[0, 0].numpy(), part.log_std[0, 0].numpy(), strict=True):
                drawn = np.tanh(mean + np.exp(log_std) * normal)
                found.append((drawn.mean(), drawn.std()))
    return found


def test_agents_without_probabilities_are_not_sampled():
    model, _ = build("vector", "vector")
    with pytest.raises(InvalidInput, match="without probabilities; train it with --head gaussian"):
        DecisionAgent(model, card(), temperature=0.5)
    with pytest.raises(InvalidInput, match="temperature is -1; expected a number from 0 on"):
        DecisionAgent(model, card(), temperature=-1)


def test_parts_that_are_left_out_change_nothing():
    model, segment = build("mission", "discrete", leave_out=("image", "mission"))
    other = {**segment.observations, "image": 10 - segment.observations["image"]}
    with torch.no_grad():
        first = model(segment)[0].logits
        assert_close("logits", model(segment._replace(observations=other))[0].logits, first, rtol=0, atol=0)
        turned = {**other, "numbers": torch.where(torch.arange(6) == 0, 0.0, other["numbers"])}
        assert not torch.equal(model(segment._replace(observations=turned))[0].logits, first)


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [
        (("images",), "leave_out names the part 'images'; the observations have 'direction', 'image', 'mission'"),
        (("image", "mission", "direction"), "leave_out names all parts"),
    ],
)
def test_parts_to_leave_out_must_be_parts(leave_out, message):
    with pytest.raises(InvalidInput, match=message):
        build("mission", "discrete", leave_out=leave_out)
    with pytest.raises(InvalidInput, match="the observations have no parts"):
        build("vector", "discrete", leave_out=leave_out)


def test_a_word_said_often_counts_alike_in_every_form():
    space = TextSpace().of_texts(["go " * 400])
    model = DecisionModel(ModelConfig(blocks=1, width=8), space, DiscreteSpace((), (3,), (0,)), Scaling.identity(space))
    text = torch.from_numpy(space.pack(["go " * 400], batch=1))
    encoder = model.inputs.observation
    assert_close("features", encoder(text), torch.tensor([[0.0, 100.0]]), rtol=0, atol=0)
    step = model.inputs.stepper()
    made = step(text, torch.zeros(1), (torch.ones(1, 1), torch.zeros(1, 1), torch.full((1, 1), -1.0))).x
    first = Segment.of_one_step(text, torch.zeros(1).long(), torch.ones(1))
    assert_close("tokens", made, model.eval().inputs(first).x[0], rtol=0, atol=1e-5)


def test_configurations_come_back_from_agents(tmp_path):
    model, _ = build("mission", "parts", leave_out=("image",), head="gaussian", image_encoder="impala")
    save_agent(tmp_path / "agent", model, card())
    again, _ = load_agent(tmp_path / "agent")
    assert again.config == model.config
    assert dataclasses.asdict(again.config)["leave_out"] == ("image",)
    assert again.observation_space == model.observation_space
