// SOFTMAX, LOG_SOFTMAX and L2_NORMALIZATION of 8-bit integers along the innermost dimension, in the reference's fixed
// point. A difference of two 8-bit values takes 256 values, so what hangs on it alone comes from a table. One row an
// invocation, or (COOP) one row a workgroup.

override WG: u32 = 64u;
override COOP: u32 = 0u;
// 0 softmax, 1 log softmax, 2 L2.
override KIND: u32 = 0u;

struct Params {
    rows: u32,
    row: u32,
    width: u32,
    // Smallest and largest result.
    least: i32,
    greatest: i32,
    // L2: the operand's zero point, left shifts before and in the multiplication, the result's zero point.
    zero: i32,
    before: u32,
    scale_shift: i32,
    out_zero: i32,
    // Log softmax: differences at or below it give the smallest result; the multiplier that turns fixed point into
    // differences.
    diff_min: i32,
    reverse: i32,
    reverse_shift: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
// By the negated difference to the row's maximum: (exp with 31 fraction bits, difference with 26 fraction bits).
@group(0) @binding(2) var<storage, read> table: array<vec2<i32>>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> partial: array<i32, WG>;

fn used(x: u32) -> vec4<bool> {
    return vec4<u32>(0u, 1u, 2u, 3u) + x * 4u < vec4<u32>(p.width);
}

fn share(local: u32, v: i32, greatest: bool) -> i32 {
    if (COOP == 0u) {
        return v;
    }
    workgroupBarrier();
    partial[local] = v;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (local < half) {
            let other = partial[local + half];
            partial[local] = select(partial[local] + other, max(partial[local], other), greatest);
        }
        workgroupBarrier();
    }
    return partial[0];
}

// 1 / (1 + x) for x in [0, 1], 31 fraction bits: Newton's division.
fn one_over_one_plus(x: i32) -> i32 {
    let half = i32((u32(x) + 0x80000000u) >> 1u);
    var r = 1515870810 + mul(half, -1010580540);
    for (var k = 0; k < 3; k++) {
        let error = 536870912 - mul(half, r);
        r += shift_left(mul(error, r), 2u);
    }
    return shift_left(r, 1u);
}

// log(z) for z >= 1 with 12 integer bits; the result has 5.
fn log_of(z: i32) -> i32 {
    let zeros = countLeadingZeros(u32(z));
    let ra = shift_left(mul(shift_left(z, zeros - 1u), 1518500250), 1u);
    let power_a = shift_left(12 - i32(zeros), 25u) + 8388608;
    let headroom = countLeadingZeros(u32(mul(z, 1518500250))) - 1u;
    let rb = shift_left(z, headroom);
    let power_b = shift_left(12 - i32(headroom), 25u) - 8388608;
    let r = min(ra, rb);
    let power = max(power_a, power_b);
    let h = i32((u32(r) + 1805811301u + 1u) >> 1u);
    let q = (r - 1805811301) * 2;
    let square = mul(q, q);
    let numerator = mul(q, r) + mul(mul(q, square), 117049297);
    let denominator = mul(h, 1057819769 + q + mul(127690142, square)) + mul(638450708, q);
    let quotient = mul(shift_right(numerator, 6u), one_over_one_plus(denominator));
    return shift_left(mul(power, 1488522236) + quotient, 1u);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    var r = linear_group(wg, count);
    var first = local;
    var step = WG;
    if (COOP == 0u) {
        r = linear_id(wg, count, local, WG);
        first = 0u;
        step = 1u;
    }
    // No early return: barriers follow.
    let base = r * p.row;
    let end = select(0u, p.row, r < p.rows);
    var top = 0;
    if (KIND != 2u) {
        var m = vec4<i32>(-128);
        for (var x = first; x < end; x += step) {
            m = max(m, select(vec4<i32>(-128), in0_unpack(in0[base + x]), used(x)));
        }
        top = share(local, max(max(m.x, m.y), max(m.z, m.w)), true);
    }
    var s = 0;
    for (var x = first; x < end; x += step) {
        let v = in0_unpack(in0[base + x]);
        let lanes = min(4u, p.width - x * 4u);
        for (var l = 0u; l < lanes; l++) {
            if (KIND == 2u) {
                let d = v[l] - p.zero;
                s += d * d;
            } else {
                s += i32((u32(table[min(top - v[l], 255)].x) + 2048u) >> 12u);
            }
        }
    }
    let sum = share(local, s, false);
    var zeros = 0u;
    var scale = 0;
    var log_sum = 0;
    var limit = 0;
    var root = vec2<i32>();
    switch KIND {
        case 0u: {
            zeros = countLeadingZeros(u32(sum));
            scale = one_over_one_plus(i32((u32(sum) << zeros) - 0x80000000u));
        }
        case 1u: {
            log_sum = log_of(sum);
            let least = log_sum + (-2147483647 - 1);
            limit = max(p.diff_min - 1, i_requant(vec4<i32>(least), p.reverse, p.reverse_shift).x);
        }
        default: { root = inverse_root(sum); }
    }
    for (var x = first; x < end; x += step) {
        let v = in0_unpack(in0[base + x]);
        var y = vec4<i32>();
        switch KIND {
            case 0u: {
                let e = vec4<i32>(entry(top - v.x).x, entry(top - v.y).x, entry(top - v.z).x, entry(top - v.w).x);
                // Sums of 512 and more would shift further; all that is left is zero.
                let bits = vec4<u32>(min(12u + 23u - zeros, 31u));
                y = i_rounding_shift(i_high_mul(e, vec4<i32>(scale)), bits) + p.least;
            }
            case 1u: {
                let d = vec4<i32>(entry(top - v.x).y, entry(top - v.y).y, entry(top - v.z).y, entry(top - v.w).y);
                y = i_rounding_shift(d - log_sum, vec4<u32>(22u)) + p.greatest;
                y = select(vec4<i32>(p.least), y, v - top > vec4<i32>(limit));
            }
            default: {
                let d = (v - p.zero) << vec4<u32>(p.before);
                y = i_requant(d, root.x, p.scale_shift - root.y) + p.out_zero;
            }
        }
        y = clamp(y, vec4<i32>(p.least), vec4<i32>(p.greatest));
        out[base + x] = out_pack(out_mask(finish(y, base + x), min(4u, p.width - x * 4u)));
    }
}

// Padding may lie above the row's maximum.
fn entry(d: i32) -> vec2<i32> {
    return table[clamp(d, 0, 255)];
}
