"""Triton kernels over rows of logits: statistics, their gradient, the one-pass policy loss, and the scaling of rows.

The grid is one-dimensional and persistent: program p takes rows p, p + programs, ... A row is swept in tiles
[K, LANES, VEC], laid out so that a thread owns lane l: it loads K vectors of VEC adjacent elements (16 bytes), and
reductions over K and VEC stay in its registers. A lane keeps its own running maximum and rescales its sums once a tile,
so a tile costs no barrier and an element about ten instructions; lanes are merged once, at the row's end.

The policy loss sweeps a row twice, for its statistics and for its gradient. The launcher lets few enough rows be live
for the second sweep to find them in the L2 cache (docs/performance.md says when it should). That sweep runs backwards:
of a cache too small for the rows, be it L2 or the multiprocessor's own, it meets the part that was read last, where
forwards it would meet nothing.

Exponents are formed as (x - maximum) * log2(e) / T, the difference first: it is exact under a large common offset.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Powers of two below 2^-149 are 0 in float32: bounding an exponent here changes no exponential, and 0 * -inf, which
# would be NaN, never forms.
LOWEST = tl.constexpr(-200.0)
LN2 = tl.constexpr(0.6931471805599453)
LOG_RATIO_BOUND = tl.constexpr(20.0)


@triton.jit
def _exponent(x, maximum, scale):
    """log2 of exp((x - maximum) / T), bounded below. NaN stays NaN, unlike with the default of tl.maximum."""
    return tl.maximum((x - maximum) * scale, LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _finite_maximum(m):
    """What to subtract: 0 in place of the maximum of nothing but -inf, as -inf - -inf is NaN."""
    return tl.where(m == -float("inf"), 0.0, m)


@triton.jit
def _offsets(K: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    k, lane, v = tl.arange(0, K), tl.arange(0, LANES), tl.arange(0, VEC)
    return (k * (LANES * VEC))[:, None, None] + (lane * VEC)[None, :, None] + v[None, None, :]


@triton.jit
def _accumulate(m, s, t, x, scale):
    """Running maximum and sums [LANES] after a tile; s = sum 2^d, t = sum 2^d d with d as in _exponent."""
    largest = tl.maximum(m, tl.max(tl.max(x, 2), 0))
    base = _finite_maximum(largest)
    d = _exponent(x, base[None, :, None], scale)
    e = tl.exp2(d)
    shift = _exponent(m, base, scale)
    decay = tl.exp2(shift)
    t = decay * (t + shift * s) + tl.sum(tl.sum(e * d, 2), 0)
    s = decay * s + tl.sum(tl.sum(e, 2), 0)
    return largest, s, t


@triton.jit
def _statistics(x, columns, width, scale, POLICY: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr,
                VEC: tl.constexpr):
    """(m, s, t) of the row at x: see csrc/ops.cpp. POLICY: eviction policy of the loads."""
    offsets = _offsets(K, LANES, VEC)
    m = tl.full([LANES], -float("inf"), tl.float32)
    s = tl.zeros([LANES], tl.float32)
    t = tl.zeros([LANES], tl.float32)
    full = columns // (K * LANES * VEC) * (K * LANES * VEC)
    for start in range(0, full, K * LANES * VEC):
        tile = tl.load(x + start + offsets, eviction_policy=POLICY).to(tl.float32)
        m, s, t = _accumulate(m, s, t, tile, scale)
    if full < columns:
        # Bounded by the width, which keeps 16-byte loads where `columns` is no multiple of VEC.
        at = full + offsets
        tile = tl.load(x + at, mask=at < width, other=0.0, eviction_policy=POLICY).to(tl.float32)
        m, s, t = _accumulate(m, s, t, tl.where(at < columns, tile, -float("inf")), scale)
    largest = tl.max(m, 0)
    shift = _exponent(m, _finite_maximum(largest), scale)
    decay = tl.exp2(shift)
    return largest, tl.sum(decay * s, 0), tl.sum(decay * (t + shift * s), 0) * LN2


@triton.jit
def _fill_zeros(out, begin, width, K: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    offsets = _offsets(K, LANES, VEC)
    for start in range(begin, width, K * LANES * VEC):
        at = start + offsets
        tl.store(out + at, tl.zeros([K, LANES, VEC], out.dtype.element_ty), mask=at < width, cache_modifier=".cs")


@triton.jit
def _gradient(x, out, columns, width, maximum, scale, a, b, here, token, x_target, target, K: tl.constexpr,
              LANES: tl.constexpr, VEC: tl.constexpr):
    """out_j = 2^d_j (a + b d_j), plus `target` at the token; 0 beyond the columns. out may be x."""
    offsets = _offsets(K, LANES, VEC)
    base = _finite_maximum(maximum)
    full = columns // (K * LANES * VEC) * (K * LANES * VEC)
    if full < columns:
        at = full + offsets
        tile = tl.load(x + at, mask=at < width, other=0.0, eviction_policy="evict_first").to(tl.float32)
        d = _exponent(tile, base, scale)
        tile = tl.where(at < columns, tl.exp2(d) * (a + b * d), 0.0)
        tl.store(out + at, tile.to(out.dtype.element_ty), mask=at < width, cache_modifier=".cs")
    _fill_zeros(out, tl.cdiv(columns, K * LANES * VEC) * (K * LANES * VEC), width, K, LANES, VEC)
    for i in range(0, full, K * LANES * VEC):
        at = full - K * LANES * VEC - i + offsets
        tile = tl.load(x + at, eviction_policy="evict_first").to(tl.float32)
        d = _exponent(tile, base, scale)
        tl.store(out + at, (tl.exp2(d) * (a + b * d)).to(out.dtype.element_ty), cache_modifier=".cs")
    # Another thread than this one's wrote the target's column. Its value is whole before it is rounded: p_y - 1 of a
    # likely token would vanish after it.
    tl.debug_barrier()
    d = _exponent(x_target, base, scale)
    tl.store(out + token, (tl.exp2(d) * (a + b * d) + target).to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["rows", "columns"])
def statistics_kernel(logits, tokens, statistics, rows, width, columns, stride, scale, K: tl.constexpr,
                      LANES: tl.constexpr, VEC: tl.constexpr):
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        x = logits + tl.cast(row, tl.int64) * stride
        token = tl.load(tokens + row)
        here = (token >= 0) & (token < columns)
        x_target = tl.load(x + token, mask=here, other=0.0).to(tl.float32)
        m, s, t = _statistics(x, columns, width, scale, "evict_first", K, LANES, VEC)
        out = statistics + tl.cast(row, tl.int64) * 4
        tl.store(out, m)
        tl.store(out + 1, s)
        tl.store(out + 2, t)
        tl.store(out + 3, x_target)


@triton.jit(do_not_specialize=["rows", "columns"])
def statistics_gradient_kernel(grad, statistics, logits, tokens, out, rows, width, columns, stride, out_stride, scale,
                               temperature, K: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """out may be the logits: the target's logit is taken from the statistics, so no thread reads what another wrote."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        of_row = tl.cast(row, tl.int64) * 4
        of_sum = tl.load(grad + of_row + 1)
        of_term = tl.load(grad + of_row + 2)
        of_target = tl.load(grad + of_row + 3)
        target_row = out + tl.cast(row, tl.int64) * out_stride
        if (of_sum == 0) & (of_term == 0) & (of_target == 0):  # masked or clipped: whatever the logits hold
            _fill_zeros(target_row, 0, width, K, LANES, VEC)
        else:
            token = tl.load(tokens + row)
            here = (token >= 0) & (token < columns)
            maximum = tl.load(statistics + of_row)
            x_target = tl.load(statistics + of_row + 3)
            _gradient(logits + tl.cast(row, tl.int64) * stride, target_row, columns, width, maximum, scale,
                      (of_sum + of_term) / temperature, of_term * LN2 / temperature, here, token, x_target, of_target,
                      K, LANES, VEC)


@triton.jit
def _bound(x, low, high):
    """clamp that keeps NaN."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _policy_term(logprob, log_ratio, advantage, clip_low, clip_high, dual_clip, CISPO: tl.constexpr):
    """Loss of a token, its derivative by the log-probability, and whether its ratio was clipped."""
    outside = (log_ratio < -LOG_RATIO_BOUND) | (log_ratio > LOG_RATIO_BOUND)
    ratio = tl.exp(_bound(log_ratio, -LOG_RATIO_BOUND, LOG_RATIO_BOUND))
    low, high = 1 - clip_low, 1 + clip_high
    bounded = _bound(ratio, low, high)
    if CISPO:
        clipped = (ratio < low) | (ratio > high)
        loss = -bounded * advantage * logprob
        derivative = -bounded * advantage
    else:
        clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
        loss = -tl.where(clipped, bounded, ratio) * advantage
        derivative = tl.where(clipped | outside, 0.0, -ratio * advantage)
        above = (advantage < 0) & (ratio > dual_clip)
        loss = tl.where(above, -dual_clip * advantage, loss)
        derivative = tl.where(above, 0.0, derivative)
        clipped = clipped | above
    return loss, derivative, clipped


@triton.jit
def _kl_term(x, KL: tl.constexpr):
    """Estimator of KL from x = logprob - reference, and its derivative by x."""
    if KL == 1:
        return x, x * 0 + 1
    elif KL == 2:
        return 0.5 * x * x, x
    else:
        d = tl.where(-x > LOG_RATIO_BOUND, LOG_RATIO_BOUND, -x)
        # exp(d) - 1 - d cancels where d is small, and exp(d) - 1 with it: the series there, to float32's rounding.
        tail = 1 / 120 + d * (1 / 720 + d * (1 / 5040 + d * (1 / 40320 + d * (1 / 362880))))
        series = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * tail)))
        growth = tl.exp(d) - 1
        small = tl.abs(d) < 1
        derivative = -tl.where(small, d + series, growth)
        return tl.where(small, series, growth - d), tl.where(-x > LOG_RATIO_BOUND, 0.0, derivative)


@triton.jit(do_not_specialize=["rows", "columns"])
def policy_loss_kernel(logits, tokens, advantages, weights, old_logprobs, ref_logprobs, rollout_logprobs, loss, values,
                       out, rows, width, columns, stride, out_stride, scale, temperature, clip_low, clip_high,
                       dual_clip, kl_coef, entropy_coef, tis_cap, CISPO: tl.constexpr, KL: tl.constexpr,
                       NEEDS_GRAD: tl.constexpr, K: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """Loss [N], values [N, 5] and, with NEEDS_GRAD, the gradient; losses.py has the formulas. out may be the logits."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        # All at once, before the sweep, which hides their latency.
        weight = tl.load(weights + row)
        token = tl.load(tokens + row)
        advantage = tl.load(advantages + row)
        if old_logprobs is not None:
            old = tl.load(old_logprobs + row)
        if ref_logprobs is not None:
            ref = tl.load(ref_logprobs + row)
        if rollout_logprobs is not None:
            rollout = tl.load(rollout_logprobs + row)
        here = (token >= 0) & (token < columns)
        x = logits + tl.cast(row, tl.int64) * stride
        total = 0.0
        logprob = 0.0
        entropy = 0.0
        policy = 0.0
        kl = 0.0
        clip = 0.0
        # Derivatives of the row's loss by its log-probability and by its entropy.
        by_logprob = 0.0
        by_entropy = 0.0
        m = 0.0
        s = 1.0
        t = 0.0
        x_target = 0.0
        if weight != 0:
            x_target = tl.load(x + token, mask=here, other=0.0).to(tl.float32)
            m, s, t = _statistics(x, columns, width, scale, "evict_last" if NEEDS_GRAD else "evict_first",
                                  K, LANES, VEC)
            log_s = tl.log(s)
            logprob = tl.div_rn(x_target - m, temperature) - log_s
            entropy = log_s - t / s
            behind = logprob if old_logprobs is None else old
            policy, by_logprob, clipped = _policy_term(
                logprob, logprob - behind, advantage, clip_low, clip_high, dual_clip, CISPO)
            clip = clipped.to(tl.float32)
            if rollout_logprobs is not None:
                factor = tl.exp(behind - rollout)
                factor = tl.where(factor > tis_cap, tis_cap, factor)
                policy *= factor
                by_logprob *= factor
            if ref_logprobs is not None:
                kl, by_kl = _kl_term(logprob - ref, KL)
                if kl_coef != 0:  # what is only observed may be infinite
                    by_logprob += kl_coef * by_kl
                    total += kl_coef * kl
            if entropy_coef != 0:
                total -= entropy_coef * entropy
            total = weight * (policy + total)
            by_logprob *= weight
            by_entropy = -weight * entropy_coef
        tl.store(loss + row, total)
        of_row = values + tl.cast(row, tl.int64) * 5
        tl.store(of_row, logprob)
        tl.store(of_row + 1, entropy)
        tl.store(of_row + 2, policy)
        tl.store(of_row + 3, kl)
        tl.store(of_row + 4, clip)
        if NEEDS_GRAD:
            target_row = out + tl.cast(row, tl.int64) * out_stride
            if (by_logprob == 0) & (by_entropy == 0):
                _fill_zeros(target_row, 0, width, K, LANES, VEC)
            else:
                # By x_j: (1{j = y} c - p_j (c + e (log p_j + H))) / T, and log p_j + H = d_j ln 2 - t / s.
                share = s * temperature
                # A warp that is ahead would write over the target's logit before one that lags has read it.
                tl.debug_barrier()
                _gradient(x, target_row, columns, width, m, scale, -(by_logprob - by_entropy * (t / s)) / share,
                          -by_entropy * LN2 / share, here, token, x_target, by_logprob / temperature, K, LANES, VEC)


@triton.jit(do_not_specialize=["rows"])
def scale_kernel(matrix, scales, rows, width, stride, scale_stride, K: tl.constexpr, LANES: tl.constexpr,
                 VEC: tl.constexpr):
    offsets = _offsets(K, LANES, VEC)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        scale = tl.load(scales + tl.cast(row, tl.int64) * scale_stride)
        x = matrix + tl.cast(row, tl.int64) * stride
        if scale != 1:  # the usual case is left alone; decided here, as the host would have to wait for the device
            for start in range(0, width, K * LANES * VEC):
                at = start + offsets
                tile = tl.load(x + at, mask=at < width, eviction_policy="evict_first").to(tl.float32)
                tl.store(x + at, (tile * scale).to(matrix.dtype.element_ty), mask=at < width, cache_modifier=".cs")
