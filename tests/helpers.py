"""What several test files share."""

import torch


def assert_close(name, ours, theirs, **tolerances):
    """`torch.testing.assert_close` whose error begins with the name of what differs."""
    torch.testing.assert_close(ours, theirs, msg=lambda text: f"{name}: {text}", **tolerances)


def assert_same(name, ours, theirs):
    """Equal values of equal dtypes and shapes, tensor by tensor."""
    assert_close(name, ours, theirs, rtol=0, atol=0)
