"""Every operation that is written in C, on its own, against torch."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from aaren_rl.errors import InvalidInput
from aaren_rl.stepping.c import code, graph
from aaren_rl.stepping.c.operations import OPERATIONS
from aaren_rl.stepping.c.writer import Writer

X = torch.tensor([[-2.5, 0.0, 1.5, 3.0], [float("nan"), 0.5, -0.5, float("inf")], [7.0, -1.0, 2.0, -3.0]])
POSITIVE = torch.tensor([[0.1, 1.0, 2.5, 3.0], [4.0, 0.5, 0.25, 9.0], [7.0, 1.5, 2.0, 3.5]])
Y = torch.tensor([2.0, -0.5, 3.0, 0.7], dtype=torch.float64)
N = torch.tensor([[2, 0, 1, 3], [-5, 4, 7, -1], [3, 3, 0, 2]])

WEIGHT, KERNEL = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 12).view(2, 3, 2)
TABLE = torch.arange(20.0).view(10, 2)

CASES = {
    "aten.exp": lambda x, p, y, n: p.exp(),
    "aten.log": lambda x, p, y, n: p.log(),
    "aten.log1p": lambda x, p, y, n: p.log1p(),
    "aten.sqrt": lambda x, p, y, n: p.sqrt(),
    "aten.sin": lambda x, p, y, n: p.sin() + y.sin(),
    "aten.cos": lambda x, p, y, n: p.cos(),
    "aten.tanh": lambda x, p, y, n: x.tanh(),
    "aten.floor": lambda x, p, y, n: x.floor(),
    "aten.erf": lambda x, p, y, n: torch.erf(p),
    "aten.abs": lambda x, p, y, n: torch.cat([x.abs(), n.abs().float()]),
    "aten.neg": lambda x, p, y, n: torch.cat([-x, (-n).float()]),
    "aten.reciprocal": lambda x, p, y, n: p.reciprocal(),
    "aten.relu": lambda x, p, y, n: x.relu(),
    "aten.sigmoid": lambda x, p, y, n: x.sigmoid(),
    "aten.logical_not": lambda x, p, y, n: torch.logical_not(x > 0),
    "aten.bitwise_not": lambda x, p, y, n: torch.cat([(~(x > 0)).long(), ~n]),
    "aten.gelu": lambda x, p, y, n: torch.cat([nn.functional.gelu(p), nn.functional.gelu(p, approximate="tanh")]),
    "aten.add": lambda x, p, y, n: x + y,
    "aten.sub": lambda x, p, y, n: 1.5 - x,
    "aten.mul": lambda x, p, y, n: x * n,
    "aten.eq": lambda x, p, y, n: x == 0.5,
    "aten.ne": lambda x, p, y, n: x != 0.5,
    "aten.lt": lambda x, p, y, n: x < y,
    "aten.le": lambda x, p, y, n: n <= 2.5,
    "aten.gt": lambda x, p, y, n: x > 0,
    "aten.ge": lambda x, p, y, n: p >= y[0],
    "aten.logical_and": lambda x, p, y, n: torch.logical_and(x > 0, n > 1),
    "aten.logical_or": lambda x, p, y, n: torch.logical_or(x > 0, n > 1),
    "aten.bitwise_and": lambda x, p, y, n: torch.cat([((x > 0) & (n > 1)).long(), n & 3]),
    "aten.bitwise_or": lambda x, p, y, n: (x > 0) | (n > 1),
    "aten.maximum": lambda x, p, y, n: torch.cat([torch.maximum(x, p), torch.maximum(p, x)]),
    "aten.minimum": lambda x, p, y, n: torch.cat([torch.minimum(x, p), torch.minimum(p, x)]),
    "aten.remainder": lambda x, p, y, n: torch.cat([p % 0.1, p % -0.7, (n % 3).float(), (n % -3).float()]),
    "aten.div": lambda x, p, y, n: torch.cat([x / p, torch.div(n, 3, rounding_mode="floor").float()]),
    "aten.pow": lambda x, p, y, n: torch.cat([x**2, p**1.7]),
    "aten.clamp": lambda x, p, y, n: torch.cat(
        [x.clamp(-1, 2), x.clamp(min=0.5), x.clamp(max=0.5), n.clamp(0, 2).float()]
    ),
    "aten.where": lambda x, p, y, n: torch.where(x > 0, x, y.float()),
    "aten._to_copy": lambda x, p, y, n: torch.cat([p.long(), (x == x).long()]),
    "aten.clone": lambda x, p, y, n: x.t().clone() + 0,
    "aten.alias": lambda x, p, y, n: torch.ops.aten.alias(x) + 0,
    "aten.full_like": lambda x, p, y, n: torch.full_like(x, 2.5) + x * 0,
    "aten.view": lambda x, p, y, n: x.t().reshape(2, 6) + 0,
    "aten.expand": lambda x, p, y, n: x[:, None].expand(3, 2, 4) + 0,
    "aten.unsqueeze": lambda x, p, y, n: x.unsqueeze(-1) + y.float(),
    "aten.squeeze": lambda x, p, y, n: x[:, None, :, None].squeeze(1).squeeze(-1) + 0,
    "aten.permute": lambda x, p, y, n: x.permute(1, 0) * 2,
    "aten.slice": lambda x, p, y, n: x[1:, ::2] + 0,
    "aten.select": lambda x, p, y, n: x[:, -2] + x[2, 1],
    "aten.split_with_sizes": lambda x, p, y, n: torch.split(x, [1, 3], 1)[1] + 0,
    "aten.cat": lambda x, p, y, n: torch.cat([x, p[:, 1:3], x], 1),
    "aten.constant_pad_nd": lambda x, p, y, n: nn.functional.pad(x, (2, -1, 1, 0), value=-1.0),
    "aten.flip": lambda x, p, y, n: x.flip(0, 1),
    "aten.addmm": lambda x, p, y, n: torch.addmm(WEIGHT[0], p, WEIGHT),
    "aten.mm": lambda x, p, y, n: p @ WEIGHT + (p.double() @ WEIGHT.double()),
    "aten.bmm": lambda x, p, y, n: torch.bmm(p.view(3, 2, 2), p.view(3, 2, 2)),
    "aten.native_layer_norm": lambda x, p, y, n: nn.functional.layer_norm(p, (4,), y.float(), y.float() * 2, 1e-3),
    "aten.sum": lambda x, p, y, n: p.sum(0) + p.sum(),
    "aten.sum.dim_IntList": lambda x, p, y, n: p.sum((0, 1), keepdim=True) + p.sum(-1, keepdim=True),
    "aten.mean": lambda x, p, y, n: p.mean(1, keepdim=True),
    "aten.any": lambda x, p, y, n: (n > 3).any(1, keepdim=True),
    "aten.amax": lambda x, p, y, n: torch.cat([x.amax(1), n.amax(0).float(), (x > 5).amax(1).float()]),
    "aten.amin": lambda x, p, y, n: torch.cat([x.amin(1), n.amin(0).float(), (x > -9).amin(1).float()]),
    "aten.linalg_vector_norm": lambda x, p, y, n: torch.linalg.vector_norm(p, dim=-1, keepdim=True),
    "aten.argmax": lambda x, p, y, n: torch.cat([x.argmax(1), n.argmax(0), p.argmax()[None]]),
    "aten.cumsum": lambda x, p, y, n: torch.cat([p.cumsum(0), p.cumsum(1)]),
    "aten._softmax": lambda x, p, y, n: torch.cat([p.softmax(-1), p.softmax(0)]),
    "aten.gather": lambda x, p, y, n: p.gather(1, n.clamp(0, 3)),
    "aten.scatter": lambda x, p, y, n: p.scatter(1, n.clamp(0, 3)[:, :1], p[:, 1:2] * 2),
    "aten.scatter_add": lambda x, p, y, n: p.scatter_add(1, n.clamp(0, 3), p),
    "aten.index": lambda x, p, y, n: p[n.clamp(0, 2)[0], n.clamp(0, 3)[1]],
    "aten.convolution": lambda x, p, y, n: nn.functional.conv1d(p[None], KERNEL, y[:2].float(), dilation=2),
    "aten.embedding": lambda x, p, y, n: nn.functional.embedding(n.clamp(0, 9), TABLE),
}


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, p, y, n):
        return (self.function(x, p, y, n),)


def in_c(function, folder):
    """What the C of a function gives on the inputs, and the names of its operations."""
    program = graph.exported(Called(function), (X, POSITIVE, Y, N))
    writer = Writer()
    (out,) = graph.write(program, ("in_x", "in_p", "in_y", "in_n"), writer)
    code._hand_out(writer, out, "out", "double")
    inputs = "const float *in_x, const float *in_p, const double *in_y, const int64_t *in_n"
    text = code.file(writer, "#include <math.h>\n", f"void run({inputs}, double *out)")
    (folder / "run.c").write_text(text)
    command = ["gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-unused-parameter"]
    said = subprocess.run(
        [*command, "-shared", "-fPIC", "-o", str(folder / "run.so"), str(folder / "run.c"), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    found = np.empty(out.shape, np.float64)
    arrays = [part.numpy() for part in (X, POSITIVE, Y, N)] + [found]
    ctypes.CDLL(str(folder / "run.so")).run(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
    return found, {str(node.target) for node in program.graph.nodes}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_torch_gives(name, tmp_path):
    found, _ = in_c(CASES[name], tmp_path)
    expected = CASES[name](X, POSITIVE, Y, N)
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=2e-6, atol=2e-6)


def test_every_operation_has_its_case():
    assert set(CASES) == set(OPERATIONS)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p, y, n: torch.linalg.vector_norm(p, ord=1, dim=-1),
        lambda x, p, y, n: torch.div(p, 0.1, rounding_mode="floor"),
        lambda x, p, y, n: torch.fft.fft(p).real,
        lambda x, p, y, n: p.to(torch.bfloat16) + 1,
    ],
)
def test_what_is_not_written_is_refused_by_its_name(function, tmp_path):
    with pytest.raises(InvalidInput, match=r"the step has aten\.|the step has the operation aten\."):
        in_c(function, tmp_path)
