"""Aaren's stepper in NumPy against the one in torch."""

import numpy as np
import pytest
import torch
from torch import nn

from aaren_rl import mixers
from aaren_rl.mixers.aaren import stepper
from aaren_rl.ops.numpy_layers import normalise

WIDTH = 12


@pytest.mark.parametrize("narrow", [60.0, -1.0], ids=["bounded", "running"])
@pytest.mark.parametrize("spec", ["aaren", "aaren(recency=true)"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 1), (3, 3), (3, 1)])
def test_numpy_adds_what_torch_adds_centred(loud, monkeypatch, narrow, spec, heads, tokens, outputs):
    monkeypatch.setattr(stepper, "NARROW", narrow)
    norm = loud(nn.LayerNorm(WIDTH), seed=1, std=0.6)
    with torch.no_grad():
        in_torch = loud(mixers.build(spec, WIDTH, heads)).stepper(norm, tokens, outputs)
    assert in_torch.bounded == (narrow > 0)
    in_numpy = in_torch.to_numpy(norm)
    generator = np.random.default_rng(0)
    states, rows = in_torch.start.repeat(2, 1), np.tile(in_torch.start.numpy(), (2, 1))
    for step in range(40):
        x = generator.normal(size=(2 * tokens, WIDTH)).astype(np.float32)
        live = np.ones((2, tokens), np.float32)
        # Only the first step of an episode misses a token.
        live[:, 0] = tokens == 1 or step > 0
        onto = torch.zeros(2 * outputs, WIDTH)
        expected, states = in_torch(
            norm(torch.from_numpy(x)), onto, states, torch.from_numpy(live) if tokens > 1 else None
        )
        centred, after = x - x.mean(1, keepdims=True), np.full_like(rows, np.nan)
        added = in_numpy(normalise(centred, norm.eps), rows, after, live if tokens > 1 else None)
        rows = after
        assert (added.dtype, added.shape) == (np.float32, (2 * outputs, WIDTH))
        np.testing.assert_allclose(added.mean(1), 0.0, rtol=0, atol=1e-6)
        expected = expected.detach().numpy()
        np.testing.assert_allclose(added, expected - expected.mean(1, keepdims=True), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gru", "local"])
def test_a_plain_stepper_has_no_numpy_form(name):
    norm = nn.LayerNorm(WIDTH)
    assert mixers.build(name, WIDTH, 1).stepper(norm, 1, 1).to_numpy(norm) is None
