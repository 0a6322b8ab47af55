"""What every registered mixer must do inside a decision model; a new one enters by being registered."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from helpers import assert_close, predict, step_through
from torch.func import functional_call

from aaren_rl import mixers
from aaren_rl.checkpoint import load_agent, save_agent
from aaren_rl.data.segment import Segment
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import state_bytes
from aaren_rl.model import ModelConfig
from aaren_rl.stepping.exported import CARD
from aaren_rl.stepping.model_stepper import ModelStepper
from aaren_rl.stepping.onnx import session, to_onnx

every_mixer = pytest.mark.parametrize("name", mixers.names())
# Tracing one takes ten seconds; these have a base each, and all others are among the slow tests.
TRACED = ("aaren", "bigbird", "compressed", "gru", "linear", "local", "mingru", "perceiver")


def draw(time, batch=3, seed=0):
    """Random steps in the units of the `scaling` fixture."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(batch, time, 4, generator=generator) * torch.tensor([0.5, 2.0, 1.0, 10.0])
    actions = torch.rand(batch, time, 2, generator=generator) * torch.tensor([2.0, 5.0]) - torch.tensor([1.0, 0.0])
    returns = 100 * torch.rand(batch, time, generator=generator)
    observations = observations + torch.tensor([1.0, -2.0, 0.5, 30.0])
    return Segment(observations, torch.arange(time).expand(batch, -1), actions, returns_to_go=returns)


@every_mixer
def test_conformance_an_agent_of_it_is_saved_and_loaded_whole(make_model, card, tmp_path, name):
    model = make_model(mixer=f"{name},aaren")
    save_agent(tmp_path / "agent", model, card)
    # Not even what is random at the start may depend on when it is loaded.
    torch.manual_seed(99)
    loaded = load_agent(tmp_path / "agent")[0].eval()
    assert torch.equal(predict(loaded, draw(30)), predict(model, draw(30)))
    first = loaded.trunk.blocks[0].mixer
    # A mixer with a convolution lies behind it.
    assert type(first.mixer if mixers.get(name).conv else first) is mixers.get(name)


@every_mixer
def test_conformance_a_model_of_it_computes_in_bf16(make_model, name):
    model = make_model(mixer=name, layout="fused")
    valid = torch.ones(3, 30, dtype=torch.bool)
    valid[1, :7] = False
    with torch.autocast("cpu", torch.bfloat16):
        loss, state = model.loss(draw(30)._replace(valid=valid))
        loss.backward()
        following = predict(model, draw(5), state)
    assert loss.isfinite()
    assert following.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [name for name in mixers.names() if mixers.get(name).cuda_graph])
def test_conformance_models_of_it_are_computed_as_one_batch(make_model, name):
    """As several seeds are on a GPU, where nothing may depend on values."""
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(make_model(seed, mixer=name, layout="fused", blocks=1))
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[1, :2] = False
    segment = draw(9)._replace(valid=valid)
    # What a mixer drew and does not train must not depend on the seed.
    buffers = [[part for part in model.buffers() if part.is_floating_point()] for model in models]
    assert all(torch.equal(*pair) for other in buffers[1:] for pair in zip(buffers[0], other, strict=True))

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = models[0]

        def forward(self, segment):
            return self.model.loss(segment)[0]

    def loss(parameters):
        return functional_call(Loss(), {f"model.{key}": value for key, value in parameters.items()}, (segment,))

    stacked = {
        key: torch.stack([dict(model.named_parameters())[key] for model in models])
        for key in dict(models[0].named_parameters())
    }
    together = torch.vmap(torch.func.grad(loss))(stacked)
    for number, model in enumerate(models):
        model.loss(segment)[0].backward()
        for key, parameter in model.named_parameters():
            alone = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_close(f"gradient of {key}", together[key][number], alone, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="the extra `export` is not installed")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TRACED else pytest.mark.slow)
        for name in mixers.names()
        if mixers.get(name).memory != "growing"
    ],
)
def test_conformance_a_step_of_it_is_exported(make_model, card, tmp_path, name):
    model = make_model(mixer=name, layout="fused", blocks=1)
    with torch.no_grad():
        # So that no action saturates.
        model.head.linear.bias.zero_()
    graph = to_onnx(model, card, tmp_path / "exported")
    about = json.loads((tmp_path / "exported" / CARD).read_text())
    running = session(str(graph))
    segment = draw(70, batch=3)
    rewards = torch.rand(3, 70, generator=torch.Generator().manual_seed(1))
    rewards[:, 0] = 0.0
    state = np.tile(np.array(about["state_start"]), (3, 1))
    state[:, about["return_to_go_at"]] = 60.0
    acted = []
    for t in range(70):
        feeds = {"observation": segment.observations[:, t].numpy(), "reward": rewards[:, t].numpy(), "state": state}
        action, state = running.run(None, feeds)
        acted.append(action)
    actions = torch.from_numpy(np.stack(acted, 1))
    with torch.inference_mode():
        expected = predict(model, segment._replace(actions=actions, returns_to_go=60.0 - rewards.cumsum(1)))
    assert_close("actions", actions, expected, rtol=0, atol=2e-4)
    assert actions.std((0, 1)).min() > 2e-3


@pytest.mark.parametrize("layout", ["interleaved", "fused"])
def test_blocks_may_have_different_mixers(make_model, layout):
    model = make_model(mixer="aaren,local:7,mingru", blocks=3, layout=layout)
    assert [type(mixer).__name__ for mixer in model.trunk.mixers()] == ["Aaren", "Local", "MinGRU"]
    assert model.trunk.blocks[1].mixer.span == 7
    # The first step has no previous action, whatever is handed in.
    segment = draw(50)._replace(previous_action=torch.full((3, 2), 4.0))
    assert_close("actions", step_through(model, segment)[0], predict(model, segment), rtol=1e-4, atol=1e-4)
    assert model.fixed_size
    assert len(ModelStepper(model).start) > 0
    grown = make_model(mixer="aaren,softmax,aaren", blocks=3, layout=layout)
    assert not grown.fixed_size
    assert grown.config.cuda_graph
    assert not make_model(mixer="aaren,gru,aaren", blocks=3).config.cuda_graph


def test_blanks_between_mixers_do_not_matter():
    specs = ModelConfig(mixer="aaren, local:7 ,aaren").mixers
    assert [str(spec) for spec in specs] == ["aaren", "local:7", "aaren"]


def test_one_mixer_serves_all_blocks():
    specs = ModelConfig(mixer="local:7", blocks=4).mixers
    assert [str(spec) for spec in specs] == ["local:7"] * 4


def test_recency_is_for_the_blocks_that_have_it(make_model):
    model = make_model(mixer="local,aaren(recency=true),aaren", blocks=3)
    local, recent, plain = model.trunk.mixers()
    assert not hasattr(local, "slopes")
    assert recent.recency
    assert not plain.recency


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        ("aaren,local", "names 2 mixers for 3 blocks; expected one for all, or one for each"),
        ("aaren,locla,aaren", "unknown mixer 'locla'; did you mean 'local'"),
        ("aaren,,aaren", "unknown mixer ''"),
        ("aaren:20", r"mixer 'aaren:20': aaren has no window of tokens; pass 'aaren'"),
        ("local:", "'' is no number of tokens; expected 1 or more, as local:20"),
        ("local:0", "'0' is no number of tokens"),
        ("local:-3", "'-3' is no number of tokens"),
    ],
)
def test_what_is_no_mixer_is_refused(mixer, message):
    with pytest.raises(InvalidInput, match=message):
        ModelConfig(mixer=mixer)


def test_a_longer_window_holds_more():
    sizes = {written: state_bytes(mixers.build(written, 16, 2).initial_state(1)) for written in ("local", "local:60")}
    assert sizes["local"] == state_bytes(mixers.build("local:20", 16, 2).initial_state(1))
    # Key and value in float32 and a flag.
    assert sizes["local:60"] - sizes["local"] == 40 * (2 * 16 * 4 + 1)
