"""The option `conv` of every mixer, against its definition."""

import pytest
import torch

from aaren_rl import mixers
from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import NoMixing, state_tensors
from aaren_rl.mixers.base.short_convolution import ShortConvolution

WIDTH = 6


class Repeating(NoMixing):
    """Lets tokens through, so that what the convolution makes of them can be seen."""

    def forward(self, x, state=None, reset=None, valid=None):
        return x, self.initial_state(x.shape[0])


def convolution(taps, seed=0):
    module = ShortConvolution(Repeating(WIDTH, 1), taps).double()
    with torch.no_grad():
        module.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return module


def tokens(time, batch=3, seed=0):
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(weight, x, reset, valid):
    outputs = {}
    for row in range(x.shape[0]):
        seen = []
        for t in range(x.shape[1]):
            if reset[row, t]:
                seen = []
            if valid[row, t]:
                seen.append(x[row, t])
                last = seen[::-1][: len(weight)]
                outputs[row, t] = seen[-1] + sum(w * token for w, token in zip(weight, last, strict=False))
    return outputs


@pytest.mark.parametrize("taps", [2, 3, 4, 7])
@pytest.mark.parametrize("time", [1, 2, 5, 40])
def test_outputs_and_gradients_are_those_of_the_definition(taps, time, assert_is_formula):
    """With resets and padding anywhere, the first tokens of a row included."""
    module = convolution(taps)
    generator = torch.Generator().manual_seed(taps)
    valid = torch.rand(3, time, generator=generator) < 0.7
    valid[0] = True
    reset = (torch.rand(3, time, generator=generator) < 0.15) & valid
    formula = lambda x: by_definition(module.weight, x, reset, valid)  # noqa: E731
    assert_is_formula(module, formula, tokens(time), reset, valid, may_be_silent=True)


def test_it_is_torchs_depthwise_convolution_beside_the_token():
    module, x = convolution(4), tokens(33)
    kernel = module.weight.T.flip(1).unsqueeze(1)
    theirs = torch.nn.functional.conv1d(x.transpose(1, 2), kernel, padding=3, groups=WIDTH)[..., :33].transpose(1, 2)
    torch.testing.assert_close(module(x)[0], x + theirs, rtol=1e-12, atol=1e-12)


def test_the_state_holds_the_last_real_tokens_of_the_episode():
    x = tokens(5, batch=4)
    valid, reset = torch.ones(4, 5, dtype=torch.bool), torch.zeros(4, 5, dtype=torch.bool)
    valid[1, 3] = False
    reset[2, 4] = True
    valid[3], reset[3, 2] = False, True
    _, state = convolution(4)(x, None, reset, valid)
    zero = torch.zeros(WIDTH, dtype=torch.float64)
    for row, expected in enumerate(
        ([x[0, 2], x[0, 3], x[0, 4]], [x[1, 1], x[1, 2], x[1, 4]], [zero, zero, x[2, 4]], [zero] * 3)
    ):
        assert torch.equal(state.past[row], torch.stack(expected))


@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_takes_it(name):
    mixer = mixers.build(f"{name}(conv=4)", 12, 3)
    assert isinstance(mixer, ShortConvolution)
    assert mixer.memory == mixers.get(name).memory
    plain = mixers.build(f"{name}(conv=0)", 12, 3)
    assert not isinstance(plain, ShortConvolution)
    added = sum(part.numel() for part in state_tensors(mixer.initial_state(2)))
    assert added == sum(part.numel() for part in state_tensors(plain.initial_state(2))) + 2 * 3 * 12


@pytest.mark.parametrize("taps", [1, -4, 65])
def test_a_number_of_taps_out_of_range_is_refused(taps):
    with pytest.raises(InvalidInput, match=f"conv is {taps}; expected 0 for no convolution, or 2 to 64"):
        mixers.build(f"aaren(conv={taps})", 12, 3)
