"""What several test files share."""

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional as F

from aaren_rl.data import converted
from aaren_rl.data.converted import Counts, Rows
from aaren_rl.data.packed import map_packed
from aaren_rl.data.segment import Segment

BEFORE = ("previous_action", "previous_reward")
"""Fields of a segment that have no time."""


def assert_close(name, ours, theirs, **tolerances):
    """`torch.testing.assert_close` whose error begins with the name of what differs."""
    torch.testing.assert_close(ours, theirs, msg=lambda text: f"{name}: {text}", **tolerances)


def assert_same(name, ours, theirs):
    """Equal values of equal dtypes and shapes, tensor by tensor."""
    assert_close(name, ours, theirs, rtol=0, atol=0)


def open_norms(model):
    """The model with layer norms that let all through, so that small parts show too."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(1.0)
    return model


def draw_segment(time, batch=2, seed=0, first=0):
    """Random steps for the `make_model` fixture, in raw units, with timesteps that count up from `first`."""
    generator = torch.Generator().manual_seed(seed)
    return Segment(
        observations=torch.randn(batch, time, 4, generator=generator) * 3,
        timesteps=torch.arange(first, first + time).expand(batch, -1),
        actions=torch.rand(batch, time, 2, generator=generator),
        returns_to_go=torch.rand(batch, time, generator=generator) * 100,
    )


def over_time(segment, function):
    """The segment with a function applied to every field that has a time; what was before it stays."""
    before = {name: getattr(segment, name) for name in BEFORE}
    return segment._replace(**dict.fromkeys(BEFORE)).map(function)._replace(**before)


def cut(segment, where):
    """The steps of a segment in a slice over time, without what was before them."""
    return over_time(segment._replace(**dict.fromkeys(BEFORE)), lambda part: part[:, where])


def pad(segment, left, right, filler=7.0):
    """The segment with padding around its steps."""
    valid = torch.ones_like(segment.timesteps, dtype=torch.bool) if segment.valid is None else segment.valid

    def padded(part):
        value = filler if part.is_floating_point() else 0 if part.dtype == torch.bool else 3
        return F.pad(part, (0, 0) * (part.ndim - 2) + (left, right), value=value)

    return over_time(segment, padded)._replace(valid=F.pad(valid, (left, right)))


def concatenate(segments):
    """One segment of all steps, without what was before them."""
    parts = zip(*(segment._replace(**dict.fromkeys(BEFORE)) for segment in segments), strict=True)
    return Segment(*(None if part[0] is None else torch.cat(part, 1) for part in parts))


def double(segment):
    """The segment with its numbers in float64."""
    return segment.map(lambda part: part.double() if part.is_floating_point() else part)


def predict(model, segment, state=None):
    """The actions that a model takes along a segment."""
    return (model.act if model.config.reach else model)(segment, state)[0].mode


def step_through(model, segment, state=None):
    """The actions and the last state of a model stepped along a segment; unknown previous outcomes count as zeros."""
    batch, time = segment.timesteps.shape
    state = model.initial_state(batch) if state is None else state
    action = torch.zeros_like(segment.actions[:, 0]) if segment.previous_action is None else segment.previous_action
    rewards = torch.zeros(batch, time) if segment.rewards is None else segment.rewards
    reward = torch.zeros(batch) if segment.previous_reward is None else segment.previous_reward
    outputs = []
    with torch.inference_mode():
        for t in range(time):
            now = (segment.observations[:, t], segment.timesteps[:, t], segment.returns_to_go[:, t])
            output, state = model.step(Segment.of_one_step(*now, action, reward), state)
            outputs.append(output)
            action, reward = segment.actions[:, t], rewards[:, t]
    return torch.stack(outputs, 1), state


class Steady(gym.Env):
    """Has no end of its own."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


def episode_by_episode(formula, x, reset, valid):
    """Outputs by (row, token) of a formula of one episode's real tokens, (tokens, width)."""
    outputs = {}
    for row in range(x.shape[0]):
        episodes = [[]]
        for t in range(x.shape[1]):
            if reset[row, t]:
                episodes.append([])
            if valid[row, t]:
                episodes[-1].append(t)
        for places in filter(None, episodes):
            outputs |= {(row, t): y for t, y in zip(places, formula(x[row, places]), strict=True)}
    return outputs


def assert_goes_on(make):
    """A learner goes on from another's state dict as that one does; `make(model_seed=...)` makes learners."""
    learner = make(model_seed=0)
    for _ in range(4):
        learner.update()
    saved = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    expected = [learner.update() for _ in range(3)]
    other = make(model_seed=99)
    other.update()
    other.load_state_dict(saved)
    other.updates = 4
    assert_same("as loaded", other.state_dict(), saved)
    assert_same("metrics", [other.update() for _ in range(3)], expected)
    assert_same("later state", other.state_dict(), learner.state_dict())


def rows_of(data, pieces=3):
    """The steps in blocks that cut episodes."""
    for steps in np.array_split(np.arange(data.steps), pieces):
        here = slice(steps[0], steps[-1] + 1)
        ended = np.flatnonzero((data.offsets[1:] > here.start) & (data.offsets[1:] <= here.stop))
        yield Rows(
            map_packed(lambda part, here=here: part[here], data.observations),
            data.actions[here],
            data.rewards[here],
            data.lengths[ended].tolist(),
            data.terminated[ended].tolist(),
            data.truncated[ended].tolist(),
            None
            if data.final_observations is None
            else map_packed(lambda part, ended=ended: part[ended], data.final_observations),
        )


def on_disk(data, folder):
    """The data as a copy in a new folder, mapped."""
    folder.mkdir(parents=True)
    counts = Counts(data.steps, data.episodes)
    converted.write(folder, rows_of(data), counts, (data.observation_space, data.action_space), {"id": "made-up"})
    return converted.open_folder(folder)
