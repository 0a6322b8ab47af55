import pytest
import torch


@pytest.fixture
def assert_is_formula():
    """Holds a mixer to a formula, given as outputs by (row, token), in outputs and gradients."""

    def check(mixer, formula, x, reset, valid, without=None, may_be_silent=False):
        factors = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = []
        for run in (
            formula,
            lambda x: {
                (row, t): y for row, line in enumerate(mixer(x, None, reset, valid)[0]) for t, y in enumerate(line)
            },
        ):
            mixer.zero_grad()
            given = x.clone().requires_grad_()
            outputs = run(given)
            places = valid.nonzero().tolist()
            sum((outputs[row, t] * factors[row, t]).sum() for row, t in places).backward()
            gradients = [p.grad.clone() for p in mixer.parameters() if p is not without]
            found.append((outputs, [given.grad, *gradients]))
        assert len(found[0][0]) == valid.sum()
        for place, expected in found[0][0].items():
            torch.testing.assert_close(found[1][0][place], expected, rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(found[1][1], found[0][1], strict=True):
            assert may_be_silent or theirs.abs().max() > 1e-4
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)

    return check
