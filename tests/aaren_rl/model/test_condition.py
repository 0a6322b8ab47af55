"""The return-to-go outside the trunk."""

import pytest
import torch
from helpers import draw_segment

from aaren_rl.model import DecisionModel, ModelConfig
from aaren_rl.model.condition import ReturnCondition

both_layouts = pytest.mark.parametrize("layout", ["interleaved", "fused"])


def test_it_scales_and_shifts_as_written(loud):
    condition = loud(ReturnCondition(8)).double()
    hidden, returns = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    for row in range(3):
        for step in range(5):
            units = (condition.read.weight[:, 0] * returns[row, step] + condition.read.bias).clamp(min=0)
            both = condition.modulate.weight @ units + condition.modulate.bias
            expected = (1 + both[:8]) * hidden[row, step] + both[8:]
            torch.testing.assert_close(condition(hidden, returns)[row, step], expected)


def test_it_starts_as_the_identity_and_learns():
    condition = ReturnCondition(8)
    hidden = torch.randn(4, 8)
    assert torch.equal(condition(hidden, torch.randn(4)), hidden)
    optimiser = torch.optim.Adam(condition.parameters(), 1e-2)
    wanted = torch.linspace(-1, 1, 4)
    for _ in range(300):
        loss = (condition(hidden, wanted).sum(-1) - hidden.sum(-1) - 3 * wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


@both_layouts
def test_the_state_is_free_of_returns_and_another_target_counts_as_if_from_the_start(make_model, layout):
    model = make_model(layout=layout, blocks=2, condition="norm")
    segment = draw_segment(30)
    higher = segment._replace(returns_to_go=segment.returns_to_go + 40)
    changed = segment._replace(
        returns_to_go=torch.cat([segment.returns_to_go[:, :12], higher.returns_to_go[:, 12:]], 1)
    )
    (plain, _), (high, state), (mixed, same) = model(segment), model(higher), model(changed)
    assert (plain.mode - high.mode).abs().amax() > 1e-2
    assert torch.equal(mixed.mode[:, :12], plain.mode[:, :12])
    assert torch.equal(mixed.mode[:, 12:], high.mode[:, 12:])
    for one, other in zip(state[0], same[0], strict=True):
        assert torch.equal(one, other)


def test_a_model_without_returns_has_none(observation_space, action_space, scaling):
    config = ModelConfig(width=8, blocks=1, condition="norm", return_to_go=False)
    assert DecisionModel(config, observation_space, action_space, scaling).condition is None


@both_layouts
def test_the_return_is_no_token(layout):
    token, behind = (ModelConfig(layout=layout, condition=condition).tokens_per_step for condition in ("token", "norm"))
    assert token - behind == (layout == "interleaved")
