"""Compares the fused kernels with the definition in float64.

Functions named check_* are tests too. They run on a GPU if this machine has one, else in Triton's interpreter. Triton
reads TRITON_INTERPRET when it is imported, so `test_checks` starts a new process. By hand, on the CPU:

    TRITON_INTERPRET=1 pytest -o python_functions='check_*' tests/aaren_rl/ops/test_fused.py
"""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache

import pytest
import torch
from helpers import assert_close

from aaren_rl.errors import InvalidInput
from aaren_rl.ops.prefix_attention import ScanState, fused, launch, prefix_attention
from aaren_rl.ops.prefix_attention.fused import Gradients, Inputs, Results
from aaren_rl.ops.prefix_attention.plan import CHUNK, Plan, choose_plan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {FLOAT32: 1e-5, FLOAT16: 2e-3, BFLOAT16: 1.5e-2}
D_INPUTS = tuple(f"d_{name}" for name in Gradients._fields)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_compiler = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets")
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and fused.available()), reason="no CUDA device that Triton supports"
)


def draw(
    batch, heads, time, dim, seed=0, scale=3.0, resets=0.1, padded=0.2, state=True, dtype=FLOAT32, score_dtype=None
):
    """Random inputs; the values are a transposed view, as in a mixer, and NaN in padding."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(batch, heads, time, generator=generator) * scale).to(score_dtype or dtype)
    values = torch.randn(batch, time, heads * dim, generator=generator).to(dtype)
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
    return Inputs(scores, values, segment, valid, log_before, output_before)


def draw_gradients(values, seed=1):
    generator = torch.Generator().manual_seed(seed)
    batch, heads, time, dim = values.shape
    d_outputs = torch.randn(batch, time, heads, dim, generator=generator).to(values.dtype).transpose(1, 2)
    return d_outputs, torch.randn(batch, heads, time, generator=generator)


def to_device(given):
    """A named tuple of tensors on the device under test, or a tuple."""
    moved = [None if x is None else x.to(DEVICE) for x in given]
    return type(given)(*moved) if hasattr(given, "_fields") else moved


def definition(inputs):
    """One softmax per token over what it sees."""
    scores, values, segment, valid, log_before, output_before = inputs
    batch, heads, time, dim = values.shape
    outputs, logs = [], []
    for b in range(batch):
        for t in range(time):
            current = 0 if segment is None else segment[b, t]
            same = [j for j in range(t + 1) if segment is None or segment[b, j] == current]
            seen = [j for j in same if valid is None or valid[b, j]]
            s, v = scores[b][:, seen], values[b][:, seen]
            if current == 0:
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
    """Outputs, logs and the four gradients; the formula gives the logs of all tokens or of the last ones."""
    leaves = Gradients(*(getattr(given, name).double().requires_grad_() for name in Gradients._fields))
    outputs, logs = formula(given._replace(**leaves._asdict()))
    total = (outputs * d_outputs.double()).sum()
    if d_logs is not None:
        total = total + (logs * d_logs[..., -logs.shape[-1] :].double())[~logs.isneginf()].sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return outputs.detach(), logs.detach(), gradients


def assert_near(name, computed, expected, tolerance):
    """The error is small beside the whole; nothing is NaN, and -inf stands where it should."""
    computed = computed.double().cpu()
    assert computed.shape == expected.shape, name
    assert torch.equal(computed.isneginf(), expected.isneginf()), name
    finite = ~expected.isneginf()
    error, size = (computed - expected)[finite].norm(), expected[finite].norm()
    assert error <= tolerance * size + 1e-5, f"{name}: error {error:.2e} beside {size:.2e}"


def assert_all_close(computed, expected, **tolerances):
    """Outputs, logs and gradients, one by one."""
    for name, ours, theirs in zip(("outputs", "logs", *D_INPUTS), computed, expected, strict=True):
        assert_close(name, ours, theirs, **tolerances)


def compare(given, with_d_logs=True, tolerance=None, forward_tolerance=None, formula=definition, ways=(lambda: None,)):
    """Both calls, made in each of the ways, against the formula."""
    dtype = given.values.dtype
    tolerance = tolerance or TOLERANCE[dtype]
    d_outputs, d_logs = draw_gradients(given.values)
    d_logs = d_logs if with_d_logs else None
    expected_outputs, expected_logs, expected_gradients = in_float64(given, d_outputs, d_logs, formula)
    known = expected_logs.shape[-1]
    if with_d_logs:
        d_logs[..., :-known] = 0.0
    inputs, (d_outputs, d_logs) = to_device(given), to_device((d_outputs, d_logs))
    for prepare in ways:
        prepare()
        outputs, logs = fused.forward(inputs)
        assert (outputs.dtype, logs.dtype, outputs.transpose(1, 2).is_contiguous()) == (dtype, FLOAT32, True)
        assert_near("outputs", outputs, expected_outputs, forward_tolerance or tolerance)
        assert_near("logs", logs[..., -known:], expected_logs, forward_tolerance or TOLERANCE[FLOAT32])
        gradients = fused.backward(inputs, Results(outputs, logs, d_outputs, d_logs))
        assert [gradient.dtype for gradient in gradients] == [given.scores.dtype, dtype, FLOAT32, FLOAT32]
        assert gradients.values.transpose(1, 2).is_contiguous()
        for name, computed, expected in zip(D_INPUTS, gradients, expected_gradients, strict=True):
            assert_near(name, computed, expected, tolerance)


@pytest.fixture
def cut(monkeypatch):
    """Sets how the work is cut."""
    return lambda features, group: monkeypatch.setattr(launch, "choose_plan", lambda *_: Plan(features, group))


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
def check_features(dim):
    compare(draw(1, 1, 37, dim, seed=dim), with_d_logs=False)


@poisoned
def check_more_features_than_a_program_takes():
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
@pytest.mark.parametrize(("dtype", "group"), [(BFLOAT16, CHUNK), (FLOAT16, 4 * CHUNK)])
def check_half_precision(cut, dtype, group):
    cut(16, group)
    compare(draw(1, 1, 2 * CHUNK + 6, 16, dtype=dtype))


@poisoned
def check_scores_and_values_of_different_dtypes():
    compare(draw(1, 1, 20, 8, dtype=BFLOAT16, score_dtype=FLOAT32))


@poisoned
def check_weights_keep_their_bits_beside_half_precision():
    """With equal values no output depends on the weights: the gradient shows only their rounding."""
    given = draw(1, 1, CHUNK + 8, 16, resets=0, padded=0, state=False, dtype=FLOAT16, score_dtype=FLOAT32)
    given = to_device(given._replace(values=torch.ones_like(given.values)))
    d_outputs, _ = to_device(draw_gradients(given.values))
    gradients = fused.backward(given, Results(*fused.forward(given), d_outputs, None))
    assert gradients.scores.abs().max() < 2e-4


@poisoned
def check_nothing_but_tokens():
    compare(draw(2, 1, 40, 8, resets=0, padded=0, state=False), with_d_logs=False)


@poisoned
@pytest.mark.parametrize("group", [CHUNK, 4 * CHUNK])
def check_padding_on_either_side_and_everywhere(cut, group):
    cut(16, group)
    time = CHUNK + 8
    given = draw(3, 1, time, 4, resets=0, padded=0, state=False)
    valid = torch.ones(3, time, dtype=torch.bool)
    valid[0, : CHUNK + 3], valid[1, 3:], valid[2] = False, False, False
    given.values.transpose(1, 2)[~valid] = torch.nan
    given = given._replace(valid=valid)
    outputs, logs = fused.forward(to_device(given))
    assert logs[2].isneginf().all()
    assert not outputs[2].any()
    assert_close("outputs in padding", outputs[1, :, 3:], outputs[1, :, 2:3].expand(-1, time - 3, -1))
    compare(given)


@poisoned
@pytest.mark.parametrize("group", [CHUNK, 4 * CHUNK])
def check_extreme_scores(cut, group):
    cut(16, group)
    given = draw(1, 2, CHUNK + 8, 4, scale=1.0)
    scores = torch.where(torch.rand(given.scores.shape) < 0.5, 1e4, -1e4) + given.scores
    given = given._replace(scores=scores, log_before=torch.tensor([[1e4, -1e4]]))
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
    given = to_device(draw(2, 2, CHUNK + 3, 5))
    results = Results(*fused.forward(given), *to_device(draw_gradients(given.values)))
    expected = *results[:2], *fused.backward(given, results)
    given, results = (type(parts)(*map(spread, parts)) for parts in (given, results))
    computed = *fused.forward(given), *fused.backward(given, results)
    assert_all_close(computed, expected, rtol=1e-5, atol=1e-5)


@poisoned
def check_expanded_gradients():
    given = to_device(draw(1, 2, 9, 4))
    d_outputs = torch.ones((), device=DEVICE).expand(1, 2, 9, 4)
    results = Results(*fused.forward(given), d_outputs, None)
    computed = fused.backward(given, results)
    expected = fused.backward(given, results._replace(d_outputs=d_outputs.contiguous()))
    for name, ours, theirs in zip(D_INPUTS, computed, expected, strict=True):
        assert_close(name, ours, theirs, rtol=1e-5, atol=1e-5)


@poisoned
def check_two_calls_are_one():
    given = to_device(draw(1, 2, CHUNK + 20, 8, resets=0.0))
    scores, values, _, valid, *before = given
    cut = CHUNK - 7
    d_outputs, d_logs = to_device(draw_gradients(values))
    outputs, logs = fused.forward(given)
    gradients = fused.backward(given, Results(outputs, logs, d_outputs, d_logs))

    first = Inputs(scores[..., :cut], values[:, :, :cut], None, valid[:, :cut], *before)
    o1, l1 = fused.forward(first)
    second = Inputs(scores[..., cut:], values[:, :, cut:], None, valid[:, cut:], l1[..., -1], o1[:, :, -1])
    o2, l2 = fused.forward(second)
    g2 = fused.backward(second, Results(o2, l2, d_outputs[:, :, cut:], d_logs[..., cut:]))
    do1, dl1 = d_outputs[:, :, :cut].clone(), d_logs[..., :cut].clone()
    dl1[..., -1] += g2.log_before
    do1[:, :, -1] += g2.output_before
    g1 = fused.backward(first, Results(o1, l1, do1, dl1))
    joined = (
        torch.cat([one, two], 2) for one, two in ((o1, o2), (l1, l2), (g1.scores, g2.scores), (g1.values, g2.values))
    )
    computed = *joined, g1.log_before, g1.output_before
    assert_all_close(computed, (outputs, logs, *gradients), rtol=1e-4, atol=1e-5)


def check_operators():
    """Schema, shapes, layout and tracing, as torch checks them."""
    given = to_device(draw(1, 2, 5, 4))
    gradients = to_device(draw_gradients(given.values))
    results = fused.forward(given)
    torch.library.opcheck(torch.ops.aaren_rl.fused_scan_forward.default, tuple(given))
    torch.library.opcheck(torch.ops.aaren_rl.fused_scan_backward.default, (*given, *results, *gradients))


def check_compiled_in_one_graph():
    @torch.compile(fullgraph=True, backend="eager")
    def attend(*given):
        return fused.forward(Inputs(*given)) if fused.available() else None

    given = to_device(draw(1, 1, 5, 4))
    assert_close("outputs, logs", attend(*given), fused.forward(given))


@pytest.mark.parametrize("name", ["scores", "values"])
def check_other_dtypes_are_refused(name):
    given = draw(1, 1, 5, 4, padded=0)
    given = given._replace(**{name: getattr(given, name).double()})
    with pytest.raises(InvalidInput, match=rf"{name} are torch.float64; the fused scan takes float32"):
        fused.forward(to_device(given))


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
    ("name", "dtype"),
    [("forward", "*fp32"), ("forward_summary", "*bf16"), ("backward", "*bf16"), ("backward_summary", "*fp32")],
)
def test_kernels_compile_for_hopper(name, dtype, tmp_path, monkeypatch):
    """The interpreter accepts more than the compiler, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aaren_rl.ops.prefix_attention import kernels

    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no CUDA compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, f"{name}_kernel")
    in_the_dtype_of_the_values = {"scores", "values", "outputs", "d_outputs", "d_values", "d_scores"}
    numbers = {"time", "heads", "dim", "group_size"}
    constants = {"chunk": CHUNK, "features": 32}
    signature, fixed = {}, {}
    for parameter in kernel.params:
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            fixed[(parameter.num,)] = constants.get(parameter.name, True)
        elif parameter.name in numbers or re.search("_[bhtd]$", parameter.name):
            signature[parameter.name] = "i32"
        else:
            pointers = {"segment": "*i32", "valid": "*u8"}
            default = dtype if parameter.name in in_the_dtype_of_the_values else "*fp32"
            signature[parameter.name] = pointers.get(parameter.name, default)
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]


def test_a_plan_cuts_features_first_and_then_time():
    h200 = 132
    # Enough rows: whole rows, one group.
    assert choose_plan(rows=1024, time=4000, dim=128, multiprocessors=h200) == Plan(128, 4000)
    assert choose_plan(rows=1024, time=60, dim=17, multiprocessors=h200) == Plan(32, 64)
    assert choose_plan(rows=1024, time=60, dim=1, multiprocessors=h200) == Plan(16, 64)
    # Fewer: fewer features per program first, and short sequences stay whole.
    assert choose_plan(rows=140, time=4000, dim=128, multiprocessors=h200) == Plan(64, 4000)
    assert choose_plan(rows=64, time=60, dim=128, multiprocessors=h200) == Plan(32, 64)
    assert choose_plan(rows=1, time=1000, dim=128, multiprocessors=h200).groups(1000) == 1
    # Then groups, no more than needed and no smaller than allowed.
    long = choose_plan(rows=4, time=30000, dim=64, multiprocessors=h200)
    assert (long.features, long.groups(30000)) == (32, 33)
    short = choose_plan(rows=1, time=1500, dim=16, multiprocessors=h200)
    assert short == Plan(16, 160)
    assert all(plan.group % CHUNK == 0 for plan in (long, short))
    assert choose_plan(rows=0, time=0, dim=8, multiprocessors=h200).groups(0) == 1


@needs_compiler
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_cpu_tensors_are_refused():
    assert not fused.available()
    with pytest.raises(InvalidInput, match="takes CUDA tensors, these are on cpu|pip install triton"):
        fused.forward(draw(1, 1, 5, 4))


def test_without_triton_the_form_is_unavailable_and_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "aaren_rl.ops.prefix_attention.kernels", raising=False)
    for module, cached in ((launch, launch.load_kernels), (fused, fused._available)):
        monkeypatch.setattr(module, cached.__name__, cache(cached.__wrapped__))
    assert not fused.available()
    with pytest.raises(InvalidInput, match="pip install triton"):
        fused.forward(draw(1, 1, 5, 4))


def parallel_form(inputs):
    """All outputs and the last logs, by the parallel form."""
    scores, values, segment, valid, log_before, output_before = inputs
    state = ScanState(log_before, torch.ones_like(log_before), output_before)
    reset = None if segment is None else segment.diff(dim=1, prepend=segment.new_zeros(len(segment), 1)) > 0
    outputs, state = prefix_attention(scores, values, state, reset, valid, form="parallel")
    empty = state.c == 0
    log = (state.m + torch.log(state.c.masked_fill(empty, 1.0))).masked_fill(empty, -torch.inf)
    return outputs, log.unsqueeze(-1)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("resets", [0.0, 0.005])
@pytest.mark.parametrize(
    ("batch", "heads", "time", "dim"), [(64, 1, 60, 128), (300, 1, 20, 64), (4, 4, 3000, 32), (1, 2, 5000, 200)]
)
def test_gpu_agrees_with_the_parallel_form(cut, batch, heads, time, dim, resets, dtype):
    ways = [lambda: None, lambda: cut(128, CHUNK * time), lambda: cut(32, CHUNK), lambda: cut(64, 4 * CHUNK)]
    given = draw(batch, heads, time, dim, resets=resets, padded=20 * resets, dtype=dtype)
    tolerance = 5 * TOLERANCE[dtype] if dtype == FLOAT32 else TOLERANCE[dtype]
    compare(given, tolerance=tolerance, formula=parallel_form, ways=ways)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("group", [2048, 256])
def test_cuda_graphs_capture_both_calls(cut, group):
    cut(32, group)
    given = to_device(draw(2, 2, 2000, 32))
    gradients = to_device(draw_gradients(given.values))

    def both():
        results = fused.forward(given)
        return (*results, *fused.backward(given, Results(*results, *gradients)))

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
    assert_all_close(captured, both(), rtol=0, atol=0, equal_nan=False)
