"""The fused kernels against the definition in float64.

The functions named check_* are tests too: on the GPU where there is one, else in Triton's interpreter. Triton decides
whether to interpret when it is imported, so they run in a process of their own. By hand, on the CPU:

    TRITON_INTERPRET=1 pytest -o python_functions='check_*' tests/aaren_rl/test_fused_scan.py
"""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache

import pytest
import torch

from aaren_rl.errors import InvalidInput
from aaren_rl.ops.prefix_attention import ScanState, prefix_attention
from aaren_rl.ops.prefix_attention import fused as fused_scan
from aaren_rl.ops.prefix_attention.fused import CHUNK, Plan, choose_plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {FLOAT32: 1e-5, FLOAT16: 2e-3, BFLOAT16: 1.5e-2}
GRADIENTS = ("scores", "values", "log_before", "output_before")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_compiler = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is told to interpret")
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and fused_scan.available()), reason="there is no CUDA device that Triton supports"
)


def draw(batch, heads, time, dim, seed=0, scale=3.0, resets=0.1, padded=0.2, state=True, kind=FLOAT32, score_kind=None):
    """Random arguments of `forward`; the values are a transposed view, as in a layer, and NaN in padding."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(batch, heads, time, generator=generator) * scale).to(score_kind or kind)
    values = torch.randn(batch, time, heads * dim, generator=generator).to(kind)
    values = values.view(batch, time, heads, dim).transpose(1, 2)
    segment = valid = None
    if resets:
        segment = (torch.rand(batch, time, generator=generator) < resets).cumsum(1).int()
    if padded:
        valid = torch.rand(batch, time, generator=generator) >= padded
        values.transpose(1, 2)[~valid] = torch.nan
        scores.transpose(1, 2)[~valid] = torch.nan
    log_before, output_before = torch.full((batch, heads), -torch.inf), torch.zeros(batch, heads, dim)
    if state:
        log_before = torch.randn(batch, heads, generator=generator) * scale
        output_before = torch.randn(batch, heads, dim, generator=generator)
    return [scores, values, segment, valid, log_before, output_before]


def draw_gradients(values, seed=1):
    generator = torch.Generator().manual_seed(seed)
    batch, heads, time, dim = values.shape
    d_outputs = torch.randn(batch, time, heads, dim, generator=generator).to(values.dtype).transpose(1, 2)
    return d_outputs, torch.randn(batch, heads, time, generator=generator)


def there(tensors):
    return [None if x is None else x.to(DEVICE) for x in tensors]


def definition(scores, values, segment, valid, log_before, output_before):
    """One softmax per position over what it sees."""
    batch, heads, time, dim = values.shape
    outputs, logs = [], []
    for b in range(batch):
        for t in range(time):
            own = 0 if segment is None else segment[b, t]
            same = [j for j in range(t + 1) if segment is None or segment[b, j] == own]
            seen = [j for j in same if valid is None or valid[b, j]]
            s, v = scores[b][:, seen], values[b][:, seen]
            if own == 0:
                s, v = torch.cat([log_before[b, :, None], s], 1), torch.cat([output_before[b, :, None], v], 1)
            if s.isneginf().all():
                outputs.append(torch.zeros(heads, dim))
                logs.append(torch.full((heads,), -torch.inf))
            else:
                outputs.append((torch.softmax(s, 1).unsqueeze(-1) * v).sum(1))
                logs.append(torch.logsumexp(s, 1))
    return (
        torch.stack(outputs).view(batch, time, heads, dim).transpose(1, 2),
        torch.stack(logs).view(batch, time, heads).transpose(1, 2),
    )


def in_float64(given, d_outputs, d_logs, formula):
    """Outputs, logs and the four gradients; the formula gives the logs of all positions or of the last ones."""
    leaves = [given[i].double().requires_grad_() for i in (0, 1, 4, 5)]
    outputs, logs = formula(leaves[0], leaves[1], given[2], given[3], leaves[2], leaves[3])
    total = (outputs * d_outputs.double()).sum()
    if d_logs is not None:
        total = total + (logs * d_logs[..., -logs.shape[-1] :].double())[~logs.isneginf()].sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return outputs.detach(), logs.detach(), gradients


def assert_near(name, computed, expected, tolerance):
    """The error is small beside the whole; nothing is NaN, and -inf stands where it should."""
    computed = computed.double().cpu()
    assert computed.shape == expected.shape
    assert torch.equal(computed.isneginf(), expected.isneginf()), name
    finite = ~expected.isneginf()
    error, size = (computed - expected)[finite].norm(), expected[finite].norm()
    assert error <= tolerance * size + 1e-5, f"{name}: error {error:.2e} beside {size:.2e}"


def compare(
    given,
    with_d_logs=True,
    tolerance=None,
    forward_tolerance=None,
    formula=definition,
    device="cpu",
    ways=(lambda: None,),
):
    """Both calls, made in each of the ways, against the formula."""
    kind = given[1].dtype
    tolerance = tolerance or TOLERANCE[kind]
    d_outputs, d_logs = draw_gradients(given[1])
    d_logs = d_logs if with_d_logs else None
    expected_outputs, expected_logs, expected_gradients = in_float64(given, d_outputs, d_logs, formula)
    known = expected_logs.shape[-1]
    if with_d_logs:
        d_logs[..., :-known] = 0.0
    *arguments, d_outputs, d_logs = there((*given, d_outputs, d_logs))
    for prepare in ways:
        prepare()
        outputs, logs = fused_scan.forward(*arguments)
        assert (outputs.dtype, logs.dtype, outputs.transpose(1, 2).is_contiguous()) == (kind, FLOAT32, True)
        assert_near("outputs", outputs, expected_outputs, forward_tolerance or tolerance)
        assert_near("logs", logs[..., -known:], expected_logs, forward_tolerance or TOLERANCE[FLOAT32])
        gradients = fused_scan.backward(*arguments, outputs, logs, d_outputs, d_logs)
        assert [gradient.dtype for gradient in gradients] == [given[0].dtype, kind, FLOAT32, FLOAT32]
        assert gradients[1].transpose(1, 2).is_contiguous()
        for name, computed, expected in zip(GRADIENTS, gradients, expected_gradients, strict=True):
            assert_near(f"d_{name}", computed, expected, tolerance)


@pytest.fixture
def cut(monkeypatch):
    """Forces how the work is cut."""
    return lambda block, group: monkeypatch.setattr(fused_scan, "choose_plan", lambda *_: Plan(block, group))


@pytest.fixture
def unwritten_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


poisoned = pytest.mark.usefixtures("unwritten_is_nan")


@poisoned
@pytest.mark.parametrize("time", [1, 5, 63, 64, 65, 130])
def check_lengths(time):
    compare(draw(1, 1, time, 8, seed=time))


@poisoned
@pytest.mark.parametrize("dim", [1, 8, 17, 32, 128])
def check_columns(dim):
    compare(draw(1, 1, 37, dim, seed=dim), with_d_logs=False)


@poisoned
def check_more_columns_than_a_block():
    compare(draw(1, 1, 37, 150))


@poisoned
@pytest.mark.parametrize(("resets", "state", "dim"), [(0.0, True, 17), (0.03, False, 4)])
def check_groups(cut, resets, state, dim):
    cut(16, CHUNK)
    compare(draw(1, 1, 3 * CHUNK + 2, dim, resets=resets, padded=10 * resets, state=state), with_d_logs=state)


@poisoned
def check_many_groups_of_many_chunks(cut):
    cut(16, 2 * CHUNK)
    compare(draw(1, 1, 6 * CHUNK, 3, resets=0.01, padded=0.5))


@poisoned
@pytest.mark.parametrize(("kind", "group"), [(BFLOAT16, CHUNK), (FLOAT16, 4 * CHUNK)])
def check_half_types(cut, kind, group):
    cut(16, group)
    compare(draw(1, 1, 2 * CHUNK + 6, 16, kind=kind))


@poisoned
def check_scores_and_values_of_different_types():
    compare(draw(1, 1, 20, 8, kind=BFLOAT16, score_kind=FLOAT32))


@poisoned
def check_weights_keep_their_bits_beside_half_types():
    """Of equal values the weights do not matter: only their rounding would show in the gradient."""
    given = there(draw(1, 1, CHUNK + 8, 16, resets=0, padded=0, state=False, kind=FLOAT16, score_kind=FLOAT32))
    given[1] = torch.ones_like(given[1])
    d_outputs, _ = there(draw_gradients(given[1]))
    d_scores = fused_scan.backward(*given, *fused_scan.forward(*given), d_outputs, None)[0]
    assert d_scores.abs().max() < 2e-4


@poisoned
def check_nothing_but_tokens():
    compare(draw(2, 1, 40, 8, resets=0, padded=0, state=False), with_d_logs=False)


@poisoned
@pytest.mark.parametrize("group", [CHUNK, 4 * CHUNK])
def check_padding_on_either_side_and_everywhere(cut, group):
    cut(16, group)
    time = CHUNK + 8
    given = draw(3, 1, time, 4, resets=0, padded=0, state=False)
    given[3] = torch.ones(3, time, dtype=torch.bool)
    given[3][0, : CHUNK + 3], given[3][1, 3:], given[3][2] = False, False, False
    given[1].transpose(1, 2)[~given[3]] = torch.nan
    outputs, logs = fused_scan.forward(*there(given))
    assert logs[2].isneginf().all()
    assert not outputs[2].any()
    torch.testing.assert_close(outputs[1, :, 3:], outputs[1, :, 2:3].expand(-1, time - 3, -1))
    compare(given)


@poisoned
@pytest.mark.parametrize("group", [CHUNK, 4 * CHUNK])
def check_extreme_scores(cut, group):
    cut(16, group)
    given = draw(1, 2, CHUNK + 8, 4, scale=1.0)
    given[0] = torch.where(torch.rand(given[0].shape) < 0.5, 1e4, -1e4) + given[0]
    given[4] = torch.tensor([[1e4, -1e4]])
    # A float32 log near 1e4 is known to half of 2**-10, and so is the weight; within one group no log is used.
    compare(given, forward_tolerance=2e-3 if group == CHUNK else 1e-5, tolerance=2e-3)


def spread(x):
    """Equal to x, with its dimensions turned round and gaps between its elements."""
    if x is None:
        return None
    turned = x.permute(*reversed(range(x.ndim)))
    wide = torch.zeros(*turned.shape[:-1], 2 * turned.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., ::2] = turned
    return wide[..., ::2].permute(*reversed(range(x.ndim)))


@poisoned
def check_any_strides(cut):
    cut(16, CHUNK)
    given = there(draw(2, 2, CHUNK + 3, 5))
    gradients = there(draw_gradients(given[1]))
    results = fused_scan.forward(*given)
    expected = *results, *fused_scan.backward(*given, *results, *gradients)
    given, results, gradients = ([spread(x) for x in tensors] for tensors in (given, results, gradients))
    computed = *fused_scan.forward(*given), *fused_scan.backward(*given, *results, *gradients)
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


@poisoned
def check_expanded_gradients():
    given = there(draw(1, 2, 9, 4))
    results = fused_scan.forward(*given)
    d_outputs = torch.ones((), device=DEVICE).expand(1, 2, 9, 4)
    computed = fused_scan.backward(*given, *results, d_outputs, None)
    expected = fused_scan.backward(*given, *results, d_outputs.contiguous(), None)
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


@poisoned
def check_two_calls_are_one():
    given = there(draw(1, 2, CHUNK + 20, 8, resets=0.0))
    cut = CHUNK - 7
    d_outputs, d_logs = there(draw_gradients(given[1]))
    outputs, logs = fused_scan.forward(*given)
    d_scores, d_values, d_log_before, d_output_before = fused_scan.backward(*given, outputs, logs, d_outputs, d_logs)

    first = [given[0][..., :cut], given[1][:, :, :cut], None, given[3][:, :cut], *given[4:]]
    o1, l1 = fused_scan.forward(*first)
    second = [given[0][..., cut:], given[1][:, :, cut:], None, given[3][:, cut:], l1[..., -1], o1[:, :, -1]]
    o2, l2 = fused_scan.forward(*second)
    g2 = fused_scan.backward(*second, o2, l2, d_outputs[:, :, cut:], d_logs[..., cut:])
    do1, dl1 = d_outputs[:, :, :cut].clone(), d_logs[..., :cut].clone()
    dl1[..., -1] += g2[2]
    do1[:, :, -1] += g2[3]
    g1 = fused_scan.backward(*first, o1, l1, do1, dl1)
    for computed, expected in (
        (torch.cat([o1, o2], 2), outputs),
        (torch.cat([l1, l2], 2), logs),
        (torch.cat([g1[0], g2[0]], 2), d_scores),
        (torch.cat([g1[1], g2[1]], 2), d_values),
        (g1[2], d_log_before),
        (g1[3], d_output_before),
    ):
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)


def check_operators():
    """Schema, shapes, layout and tracing, as torch checks them."""
    given = there(draw(1, 2, 5, 4))
    gradients = there(draw_gradients(given[1]))
    results = fused_scan.forward(*given)
    torch.library.opcheck(torch.ops.aaren_rl.fused_scan_forward.default, given)
    torch.library.opcheck(torch.ops.aaren_rl.fused_scan_backward.default, (*given, *results, *gradients))


def check_compiled_in_one_graph():
    @torch.compile(fullgraph=True, backend="eager")
    def attend(*given):
        return fused_scan.forward(*given) if fused_scan.available() else None

    given = there(draw(1, 1, 5, 4))
    torch.testing.assert_close(attend(*given), fused_scan.forward(*given))


@pytest.mark.parametrize("index", [0, 1])
def check_other_types_are_refused(index):
    given = draw(1, 1, 5, 4, padded=0)
    given[index] = given[index].double()
    with pytest.raises(InvalidInput, match=r"are torch.float64; the fused scan takes float32"):
        fused_scan.forward(*there(given))


@needs_triton
def test_checks(tmp_path):
    command = ["-m", "pytest", __file__, "-q", "-o", "python_functions=check_*", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1" if DEVICE == "cpu" else "0"}
    ran = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d\d passed", ran.stdout, re.MULTILINE)
    assert "skipped" not in ran.stdout


@needs_triton
@needs_compiler
@pytest.mark.parametrize(
    ("name", "kind"),
    [("forward", "*fp32"), ("forward_summary", "*bf16"), ("backward", "*bf16"), ("backward_summary", "*fp32")],
)
def test_kernels_compile_for_hopper(name, kind, tmp_path, monkeypatch):
    """The interpreter accepts more than the compiler, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aaren_rl.ops.prefix_attention import kernels as fused_scan_kernels

    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no CUDA compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(fused_scan_kernels, f"{name}_kernel")
    in_the_type_of_the_values = {"scores", "values", "outputs", "d_outputs", "d_values", "d_scores"}
    numbers = {"time", "heads", "dim", "group_size"}
    constants = {"chunk": CHUNK, "block": 32}
    signature, fixed = {}, {}
    for parameter in kernel.params:
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            fixed[(parameter.num,)] = constants.get(parameter.name, True)
        elif parameter.name in numbers or re.search("_[bhtd]$", parameter.name):
            signature[parameter.name] = "i32"
        else:
            pointers = {"segment": "*i32", "valid": "*u8"}
            default = kind if parameter.name in in_the_type_of_the_values else "*fp32"
            signature[parameter.name] = pointers.get(parameter.name, default)
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]


def test_plan():
    h200 = 132
    # Enough rows: whole rows, one group.
    assert choose_plan(rows=1024, time=4000, dim=128, multiprocessors=h200) == Plan(128, 4000)
    assert choose_plan(rows=1024, time=60, dim=17, multiprocessors=h200) == Plan(32, 64)
    assert choose_plan(rows=1024, time=60, dim=1, multiprocessors=h200) == Plan(16, 64)
    # Fewer: narrower blocks first, and short sequences stay whole.
    assert choose_plan(rows=140, time=4000, dim=128, multiprocessors=h200) == Plan(64, 4000)
    assert choose_plan(rows=64, time=60, dim=128, multiprocessors=h200) == Plan(32, 64)
    assert choose_plan(rows=1, time=1000, dim=128, multiprocessors=h200).groups(1000) == 1
    # Then groups, as many as needed and no smaller than allowed.
    long = choose_plan(rows=4, time=30000, dim=64, multiprocessors=h200)
    assert (long.block, long.groups(30000)) == (32, 33)
    short = choose_plan(rows=1, time=1500, dim=16, multiprocessors=h200)
    assert short == Plan(16, 160)
    assert all(plan.group % CHUNK == 0 for plan in (long, short))
    assert choose_plan(rows=0, time=0, dim=8, multiprocessors=h200).groups(0) == 1


@needs_compiler
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cpu_tensors_are_refused():
    assert not fused_scan.available()
    with pytest.raises(InvalidInput, match="takes CUDA tensors, these are on cpu|pip install triton"):
        fused_scan.forward(*draw(1, 1, 5, 4))


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "aaren_rl.ops.prefix_attention.kernels", raising=False)
    for cached in (fused_scan._kernels, fused_scan._available):
        monkeypatch.setattr(fused_scan, cached.__name__, cache(cached.__wrapped__))
    assert not fused_scan.available()
    with pytest.raises(InvalidInput, match="pip install triton"):
        fused_scan.forward(*draw(1, 1, 5, 4))


def parallel_scan(scores, values, segment, valid, log_before, output_before):
    """All outputs and the last logs, by a form of the scan."""
    state = ScanState(log_before, torch.ones_like(log_before), output_before)
    reset = None if segment is None else segment.diff(dim=1, prepend=segment.new_zeros(len(segment), 1)) > 0
    outputs, state = prefix_attention(scores, values, state, reset, valid, form="parallel")
    empty = state.c == 0
    log = (state.m + torch.log(state.c.masked_fill(empty, 1.0))).masked_fill(empty, -torch.inf)
    return outputs, log.unsqueeze(-1)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("resets", [0.0, 0.005])
@pytest.mark.parametrize(
    ("batch", "heads", "time", "dim"), [(64, 1, 60, 128), (300, 1, 20, 64), (4, 4, 3000, 32), (1, 2, 5000, 200)]
)
def test_gpu_agrees_with_the_scan(cut, batch, heads, time, dim, resets, kind):
    ways = [lambda: None, lambda: cut(128, CHUNK * time), lambda: cut(32, CHUNK), lambda: cut(64, 4 * CHUNK)]
    given = draw(batch, heads, time, dim, resets=resets, padded=20 * resets, kind=kind)
    tolerance = 5 * TOLERANCE[kind] if kind == FLOAT32 else TOLERANCE[kind]
    compare(given, tolerance=tolerance, formula=parallel_scan, ways=ways)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("group", [2048, 256])
def test_cuda_graphs_capture_both_calls(cut, group):
    cut(32, group)
    given = there(draw(2, 2, 2000, 32))
    gradients = there(draw_gradients(given[1]))

    def both():
        results = fused_scan.forward(*given)
        return (*results, *fused_scan.backward(*given, *results, *gradients))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    for old, new in zip(given, draw(2, 2, 2000, 32, seed=5), strict=True):
        old.copy_(new)
    graph.replay()
    torch.testing.assert_close(captured, both(), rtol=0, atol=0, equal_nan=False)
