"""Folded layers in NumPy against torch's layers one after another."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aaren_rl.ops.numpy_layers import (
    centre_outputs,
    fold_norm,
    log_sigmoid,
    normalise,
    relu,
    sigmoid,
    to_array,
    transpose,
)


@pytest.fixture
def rows():
    x = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32) * 3
    return x - x.mean(1, keepdims=True)


def test_normalise_is_layer_norm_of_centred_rows(rows):
    expected = F.layer_norm(torch.from_numpy(rows), (12,), eps=1e-3).numpy()
    found = normalise(rows, 1e-3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_folded_norm_is_the_norm_and_then_the_layer(loud, rows):
    norm, layer = loud(nn.LayerNorm(12)), loud(nn.Linear(12, 5), seed=1)
    weight, bias = fold_norm(norm, layer.weight, layer.bias)
    expected = layer(norm(torch.from_numpy(rows))).detach().numpy()
    np.testing.assert_allclose(normalise(rows, norm.eps) @ weight + bias, expected, rtol=0, atol=1e-5)


def test_centring_takes_the_mean_from_every_product(rows):
    weight = np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32)
    product = rows @ weight
    np.testing.assert_allclose(
        rows @ centre_outputs(weight), product - product.mean(1, keepdims=True), rtol=0, atol=1e-5
    )


def test_arrays_are_float32_copies_without_gradients():
    weight = nn.Parameter(torch.arange(6.0, dtype=torch.float64).view(2, 3))
    array, transposed = to_array(weight), transpose(weight)
    assert array.dtype == transposed.dtype == np.float32
    assert transposed.flags.c_contiguous
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(transposed, [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("function", "reference"), [(sigmoid, torch.sigmoid), (log_sigmoid, F.logsigmoid), (relu, F.relu)]
)
def test_activations_are_torchs_in_float64(function, reference):
    x = np.concatenate([np.linspace(-75, 75, 301), [-3e38, -1e4, -0.0, 1e-30, 1e4, 3e38]]).astype(np.float32)
    given = x.copy()
    with np.errstate(all="raise", under="ignore"):
        found = function(x)
    np.testing.assert_array_equal(x, given)
    assert found.dtype == np.float32
    expected = reference(torch.from_numpy(x).double()).numpy()
    # Small values keep their digits; those below are 0 in float32, or nearly.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-34)
