# mypy: ignore-errors
"""Triton kernels of `aaren_rl.ops.prefix_attention.fused`; importing this module imports Triton.

The grid is (rows, parts, groups): a program computes one (batch, head) row, one part of the features and one group of
chunks. The indices k and j count tokens of a chunk, j <= k, and d counts features of the values. With s the scores and
L_k the logsumexp of what token k sees, the weight of token j at token k is exp(s_j - L_k) <= 1.

Arguments that end in _b, _h, _t and _d are the strides of a tensor over batch, heads, time and features.
"""

import triton
import triton.language as tl

# Triton decides when it is imported whether it interprets.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)


@triton.jit
def _dot(weights, x, native: tl.constexpr):
    """Matrix product of float32 weights and x of any dtype, nearly as exact as in float32.

    With native, the product is taken in the dtype of x, also if it has 16 bits.
    """
    if x.dtype == tl.float32 or not native:
        result = tl.dot(weights, x.to(tl.float32), input_precision="ieee")
    else:
        # Two terms carry a float32 weight through the 16-bit units; one term would lose 13 to 16 of its 24 bits.
        high = weights.to(x.dtype)
        low = (weights - high.to(tl.float32)).to(x.dtype)
        result = tl.dot(high, x) + tl.dot(low, x)
    return result


@triton.jit
def _finite(x):
    """Replaces -inf, the maximum of the empty prefix, by 0: -inf - -inf is NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def forward_kernel(
    scores,
    values,
    segment,
    valid,
    log_before,
    output_before,
    group_log,
    group_output,
    outputs,
    logs,
    time,
    heads,
    dim,
    group_size,
    scores_b,
    scores_h,
    scores_t,
    values_b,
    values_h,
    values_t,
    values_d,
    segment_b,
    segment_t,
    valid_b,
    valid_t,
    outputs_b,
    outputs_h,
    outputs_t,
    has_segment: tl.constexpr,
    has_valid: tl.constexpr,
    has_groups: tl.constexpr,
    native: tl.constexpr,
    chunk: tl.constexpr,
    features: tl.constexpr,
):
    """Outputs and logs of one group, from the state before it.

    The carried state is (m, c, a) of the paper. Within a chunk all prefixes are one small matrix product. group_log and
    group_output (rows, groups - 1[, dim]) hold the states at the ends of the groups; all groups but the first read one.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(2)
    b = row // heads
    h = row % heads
    k = tl.arange(0, chunk)
    d = tl.program_id(1) * features + tl.arange(0, features)
    in_dim = d < dim
    scores += b * scores_b + h * scores_h
    values += b * values_b + h * values_h
    outputs += b * outputs_b + h * outputs_h
    logs += row * time

    m_before = tl.load(log_before + row)
    a_before = tl.load(output_before + row * dim + d, mask=in_dim, other=0.0)
    if has_groups:
        later = group > 0
        state = row * (tl.num_programs(2) - 1) + group - 1
        m_group = tl.load(group_log + state, mask=later, other=0.0)
        a_group = tl.load(group_output + state * dim + d, mask=d < tl.where(later, dim, 0), other=0.0)
        m_before = tl.where(later, m_group, m_before)
        a_before = tl.where(later, a_group, a_before)
    c_before = tl.full((), 1.0, tl.float32)

    first = group * group_size
    last = tl.minimum(first + group_size, time)
    for start in range(first, last, chunk):
        t = (start + k).to(tl.int64)
        inside = t < last
        present = inside
        if has_valid:
            present = inside & (tl.load(valid + b * valid_b + t * valid_t, mask=inside, other=0) != 0)
        s = tl.load(scores + t * scores_t, mask=present, other=float("-inf")).to(tl.float32)
        v = tl.load(
            values + t[:, None] * values_t + d[None, :] * values_d,
            mask=present[:, None] & in_dim[None, :],
            other=0.0,
        )
        visible = k[:, None] >= k[None, :]
        carried = k >= 0
        if has_segment:
            at = segment + b * segment_b
            segments = tl.load(at + t * segment_t, mask=inside, other=-1)
            segment_before = tl.load(at + (start - 1) * segment_t, mask=start > 0, other=0)
            visible = visible & (segments[:, None] == segments[None, :])
            carried = segments == segment_before

        m_carried = tl.where(carried, m_before, float("-inf"))
        table = tl.where(visible, s[None, :], float("-inf"))
        m = tl.maximum(tl.max(table, axis=1), m_carried)
        finite_m = _finite(m)
        weights = tl.exp(table - finite_m[:, None])
        weight_before = tl.exp(m_carried - finite_m)
        c = tl.sum(weights, axis=1) + weight_before * c_before
        a = _dot(weights, v, native) + weight_before[:, None] * a_before[None, :]
        some = tl.where(c == 0.0, 1.0, c)
        tl.store(
            outputs + t[:, None] * outputs_t + d[None, :],
            (a * (1.0 / some)[:, None]).to(outputs.dtype.element_ty),
            mask=inside[:, None] & in_dim[None, :],
        )
        if tl.program_id(1) == 0:
            tl.store(logs + t, m + tl.log(some), mask=inside)

        end = k == chunk - 1
        m_before = tl.max(tl.where(end, m, float("-inf")), axis=0)
        c_before = tl.sum(tl.where(end, c, 0.0), axis=0)
        a_before = tl.sum(tl.where(end[:, None], a, 0.0), axis=0)


@triton.jit
def forward_summary_kernel(
    scores,
    values,
    segment,
    valid,
    group_log,
    group_output,
    heads,
    dim,
    group_size,
    scores_b,
    scores_h,
    scores_t,
    values_b,
    values_h,
    values_t,
    values_d,
    segment_b,
    segment_t,
    valid_b,
    valid_t,
    has_segment: tl.constexpr,
    has_valid: tl.constexpr,
    chunk: tl.constexpr,
    features: tl.constexpr,
):
    """Log and output at the end of one group, from the tokens of the group alone; for all groups but the last."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(2)
    b = row // heads
    h = row % heads
    k = tl.arange(0, chunk)
    d = tl.program_id(1) * features + tl.arange(0, features)
    in_dim = d < dim
    scores += b * scores_b + h * scores_h
    values += b * values_b + h * values_h

    first = group * group_size
    m = tl.full((), float("-inf"), tl.float32)
    c = tl.full((), 0.0, tl.float32)
    a = tl.full((features,), 0.0, tl.float32)
    for start in range(first, first + group_size, chunk):
        t = (start + k).to(tl.int64)
        present = k >= 0
        if has_valid:
            present = tl.load(valid + b * valid_b + t * valid_t) != 0
        if has_segment:
            at = segment + b * segment_b
            segments = tl.load(at + t * segment_t)
            present = present & (segments == tl.load(at + (first + group_size - 1) * segment_t))
        s = tl.load(scores + t * scores_t, mask=present, other=float("-inf")).to(tl.float32)
        v = tl.load(
            values + t[:, None] * values_t + d[None, :] * values_d,
            mask=present[:, None] & in_dim[None, :],
            other=0.0,
        ).to(tl.float32)
        m_next = tl.maximum(m, tl.max(s, axis=0))
        finite_m = _finite(m_next)
        weights = tl.exp(s - finite_m)
        shrink = tl.exp(m - finite_m)
        c = c * shrink + tl.sum(weights, axis=0)
        a = a * shrink + tl.sum(weights[:, None] * v, axis=0)
        m = m_next

    some = tl.where(c == 0.0, 1.0, c)
    summary = row * tl.num_programs(2) + group
    tl.store(group_output + summary * dim + d, a * (1.0 / some), mask=in_dim)
    if tl.program_id(1) == 0:
        tl.store(group_log + summary, m + tl.log(some))


@triton.jit
def backward_kernel(
    scores,
    values,
    segment,
    valid,
    log_before,
    output_before,
    outputs,
    logs,
    d_outputs,
    d_logs,
    group_after,
    group_delta,
    d_scores,
    d_values,
    d_log_before,
    d_output_before,
    time,
    heads,
    dim,
    group_size,
    scores_b,
    scores_h,
    scores_t,
    values_b,
    values_h,
    values_t,
    values_d,
    segment_b,
    segment_t,
    valid_b,
    valid_t,
    outputs_b,
    outputs_h,
    outputs_t,
    outputs_d,
    logs_b,
    logs_h,
    logs_t,
    d_outputs_b,
    d_outputs_h,
    d_outputs_t,
    d_outputs_d,
    d_logs_b,
    d_logs_h,
    d_logs_t,
    d_values_b,
    d_values_h,
    d_values_t,
    has_segment: tl.constexpr,
    has_valid: tl.constexpr,
    has_d_logs: tl.constexpr,
    has_groups: tl.constexpr,
    native: tl.constexpr,
    chunk: tl.constexpr,
    features: tl.constexpr,
):
    """All gradients of one group, from the last chunk to the first.

    Two sums are carried back over the tokens k after a chunk, in the segment of its last token e: `after`, of
    exp(L_e - L_k) do_k, and `after_delta`, of exp(L_e - L_k) delta_k with delta_k = <do_k, o_k> - dL_k. Both, and
    ds_j = <v_j, dv_j> - sum_k p_kj delta_k, are linear in the features. Each part of the features therefore gives a
    summand of d_scores (parts, rows, time) and of d_log_before (parts, rows); the caller adds them up. group_after and
    group_delta (rows, groups - 1[, dim]) hold the carried sums at the ends of all groups but the last.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    group = tl.program_id(2)
    b = row // heads
    h = row % heads
    k = tl.arange(0, chunk)
    d = part * features + tl.arange(0, features)
    in_dim = d < dim
    scores += b * scores_b + h * scores_h
    values += b * values_b + h * values_h
    outputs += b * outputs_b + h * outputs_h
    logs += b * logs_b + h * logs_h
    d_outputs += b * d_outputs_b + h * d_outputs_h
    d_values += b * d_values_b + h * d_values_h
    part_row = part * tl.num_programs(0).to(tl.int64) + row
    d_scores += part_row * time
    log_state = tl.load(log_before + row)

    after = tl.full((features,), 0.0, tl.float32)
    after_delta = tl.full((), 0.0, tl.float32)
    if has_groups:
        behind = group < tl.num_programs(2) - 1
        state = row * (tl.num_programs(2) - 1) + group
        after = tl.load(group_after + state * dim + d, mask=d < tl.where(behind, dim, 0), other=0.0)
        after_delta = tl.load(group_delta + state, mask=behind & (part == 0), other=0.0)

    first = group * group_size
    last = tl.minimum(first + group_size, time)
    # The logs belong to no feature: the first part accounts for them.
    logs_until = tl.where(part == 0, last, 0)
    chunks = tl.cdiv(last - first, chunk)
    for i in range(0, chunks):
        start = first + (chunks - 1 - i) * chunk
        t = (start + k).to(tl.int64)
        inside = t < last
        present = inside
        if has_valid:
            present = inside & (tl.load(valid + b * valid_b + t * valid_t, mask=inside, other=0) != 0)
        s = tl.load(scores + t * scores_t, mask=present, other=float("-inf")).to(tl.float32)
        log = tl.load(logs + t * logs_t, mask=inside, other=float("-inf"))
        known = log > float("-inf")
        log = _finite(log)
        v = tl.load(
            values + t[:, None] * values_t + d[None, :] * values_d,
            mask=present[:, None] & in_dim[None, :],
            other=0.0,
        ).to(tl.float32)
        filled = inside[:, None] & in_dim[None, :]
        do = tl.load(d_outputs + t[:, None] * d_outputs_t + d[None, :] * d_outputs_d, mask=filled, other=0.0)
        o = tl.load(outputs + t[:, None] * outputs_t + d[None, :] * outputs_d, mask=filled, other=0.0)
        delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
        if has_d_logs:
            d_log_at = d_logs + b * d_logs_b + h * d_logs_h + t * d_logs_t
            delta -= tl.load(d_log_at, mask=known & (t < logs_until), other=0.0)

        end = tl.minimum(start + chunk, last) - 1
        log_end = _finite(tl.load(logs + end * logs_t))
        log_start = tl.where(start > 0, tl.load(logs + (start - 1) * logs_t, mask=start > 0, other=0.0), log_state)
        # Row j, column k: the transposed weights.
        visible = (k[:, None] <= k[None, :]) & known[None, :]
        to_end = k >= 0
        to_start = known
        step = log_start - log_end
        if has_segment:
            at = segment + b * segment_b
            segments = tl.load(at + t * segment_t, mask=inside, other=-1)
            segment_end = tl.load(at + end * segment_t)
            segment_start = tl.load(at + (start - 1) * segment_t, mask=start > 0, other=0)
            visible = visible & (segments[:, None] == segments[None, :])
            to_end = segments == segment_end
            to_start = known & (segments == segment_start)
            step = tl.where(segment_start == segment_end, step, float("-inf"))
        weights = tl.exp(tl.where(visible, s[:, None] - log[None, :], float("-inf")))
        weight_end = tl.exp(tl.where(to_end, s - log_end, float("-inf")))
        weight_start = tl.exp(tl.where(to_start, log_start - log, float("-inf")))
        keep = tl.exp(step)

        dv = _dot(weights, do, native) + weight_end[:, None] * after[None, :]
        ds = tl.sum(v * dv, axis=1) - tl.sum(weights * delta[None, :], axis=1) - weight_end * after_delta
        tl.store(d_values + t[:, None] * d_values_t + d[None, :], dv.to(d_values.dtype.element_ty), mask=filled)
        tl.store(d_scores + t, ds.to(d_scores.dtype.element_ty), mask=inside)
        after = after * keep + tl.sum(weight_start[:, None] * do.to(tl.float32), axis=0)
        after_delta = after_delta * keep + tl.sum(weight_start * delta, axis=0)

    if group == 0:
        # The sums carried back past the first token are the gradient of the state before.
        tl.store(d_output_before + row * dim + d, after, mask=in_dim)
        o_before = tl.load(output_before + row * dim + d, mask=in_dim, other=0.0)
        tl.store(d_log_before + part_row, tl.sum(after * o_before, axis=0) - after_delta)


@triton.jit
def backward_summary_kernel(
    segment,
    outputs,
    logs,
    d_outputs,
    d_logs,
    group_after,
    group_delta,
    time,
    heads,
    dim,
    group_size,
    segment_b,
    segment_t,
    outputs_b,
    outputs_h,
    outputs_t,
    outputs_d,
    logs_b,
    logs_h,
    logs_t,
    d_outputs_b,
    d_outputs_h,
    d_outputs_t,
    d_outputs_d,
    d_logs_b,
    d_logs_h,
    d_logs_t,
    has_segment: tl.constexpr,
    has_d_logs: tl.constexpr,
    chunk: tl.constexpr,
    features: tl.constexpr,
):
    """The sums that one group adds to those carried back past its start; for all groups but the first."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    group = tl.program_id(2) + 1
    b = row // heads
    h = row % heads
    k = tl.arange(0, chunk)
    d = part * features + tl.arange(0, features)
    in_dim = d < dim
    outputs += b * outputs_b + h * outputs_h
    logs += b * logs_b + h * logs_h
    d_outputs += b * d_outputs_b + h * d_outputs_h

    first = group * group_size
    last = tl.minimum(first + group_size, time)
    logs_until = tl.where(part == 0, last, 0)
    log_start = tl.load(logs + (first - 1) * logs_t)
    after = tl.full((features,), 0.0, tl.float32)
    after_delta = tl.full((), 0.0, tl.float32)
    for start in range(first, last, chunk):
        t = (start + k).to(tl.int64)
        inside = t < last
        log = tl.load(logs + t * logs_t, mask=inside, other=float("-inf"))
        known = log > float("-inf")
        log = _finite(log)
        to_start = known
        if has_segment:
            at = segment + b * segment_b
            segments = tl.load(at + t * segment_t, mask=inside, other=-1)
            to_start = known & (segments == tl.load(at + (first - 1) * segment_t))
        filled = inside[:, None] & in_dim[None, :]
        do = tl.load(d_outputs + t[:, None] * d_outputs_t + d[None, :] * d_outputs_d, mask=filled, other=0.0)
        o = tl.load(outputs + t[:, None] * outputs_t + d[None, :] * outputs_d, mask=filled, other=0.0)
        do = do.to(tl.float32)
        delta = tl.sum(do * o.to(tl.float32), axis=1)
        if has_d_logs:
            d_log_at = d_logs + b * d_logs_b + h * d_logs_h + t * d_logs_t
            delta -= tl.load(d_log_at, mask=known & (t < logs_until), other=0.0)
        weight_start = tl.exp(tl.where(to_start, log_start - log, float("-inf")))
        after += tl.sum(weight_start[:, None] * do, axis=0)
        after_delta += tl.sum(weight_start * delta, axis=0)

    summary = row * tl.num_programs(2) + group - 1
    tl.store(group_after + summary * dim + d, after, mask=in_dim)
    parts_before = part * tl.num_programs(0).to(tl.int64) * tl.num_programs(2)
    tl.store(group_delta + parts_before + summary, after_delta)
