"""The Perceiver mixer, against its formula with the softmax over every prefix written out."""

import pytest
import torch

from aaren_rl.errors import InvalidInput
from aaren_rl.mixers import Aaren, Perceiver, Softmax

WIDTH, HEADS = 12, 3
HEAD_WIDTH = WIDTH // HEADS


def reference(mixer, x, reset, valid):
    """Outputs at the real tokens, 0 elsewhere."""
    rows = []
    for row in range(x.shape[0]):
        seen, outputs = [], []
        for t in range(x.shape[1]):
            if reset[row, t]:
                seen = []
            if not valid[row, t]:
                outputs.append(torch.zeros(WIDTH, dtype=x.dtype))
                continue
            seen.append(t)
            own = x[row, seen]
            keys, values = (part(own).view(-1, HEADS, HEAD_WIDTH) for part in (mixer.key, mixer.value))
            query = mixer.query(x[row, t]).view(HEADS, HEAD_WIDTH)
            mixed = []
            for head in range(HEADS):
                latents = torch.stack(
                    [
                        latent + torch.softmax(keys[:, head] @ latent / HEAD_WIDTH**0.5, 0) @ values[:, head]
                        for latent in mixer.latents[head]
                    ]
                )
                mixed.append(torch.softmax(latents @ query[head] / HEAD_WIDTH**0.5, 0) @ latents)
            outputs.append(mixer.output(torch.cat(mixed)))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def draw(time, seed=0):
    return torch.randn(2, time, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("latents", [1, 4])
def test_outputs_and_gradients_are_the_formulas(loud, latents):
    mixer, x = loud(Perceiver(WIDTH, HEADS, latents), std=0.6).double(), draw(80).requires_grad_()
    generator = torch.Generator().manual_seed(4)
    reset, valid = (torch.rand(2, 80, generator=generator) < share for share in (0.03, 0.85))
    weights = draw(80, seed=5) * valid.unsqueeze(-1)
    # No score depends on the key's bias but for a shift of all.
    wanted = [x, *(parameter for name, parameter in mixer.named_parameters() if name != "key.bias")]

    def in_pieces():
        outputs, state = [], None
        for piece in (slice(0, 7), slice(7, 8), slice(8, None)):
            y, state = mixer(x[:, piece], state, reset[:, piece], valid[:, piece])
            outputs.append(y)
        return torch.cat(outputs, 1)

    expected = reference(mixer, x, reset, valid)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), wanted)
    for y in (mixer(x, None, reset, valid)[0], in_pieces()):
        torch.testing.assert_close(y[valid], expected[valid], rtol=1e-9, atol=1e-10)
        found = torch.autograd.grad((y * weights).sum(), wanted)
        for ours, theirs in zip(found, expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_one_latent_is_aaren_and_a_constant(loud):
    mixer, aaren, x = loud(Perceiver(WIDTH, HEADS, 1)).double(), Aaren(WIDTH, HEADS).double(), draw(150)
    aaren.load_state_dict(mixer.state_dict(), strict=False)
    with torch.no_grad():
        aaren.query.weight.zero_()
        aaren.query.bias.copy_(mixer.latents.flatten())
    constant = mixer.output.weight @ mixer.latents.flatten()
    torch.testing.assert_close(mixer(x)[0], aaren(x)[0] + constant)


def test_it_has_its_latents_more_than_softmax_attention():
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(Perceiver(WIDTH, HEADS, 4)) == count(Softmax(WIDTH, HEADS)) + 4 * WIDTH


def test_without_latents_it_is_refused():
    with pytest.raises(InvalidInput, match="0 latents of each head; expected at least 1"):
        Perceiver(WIDTH, HEADS, 0)
