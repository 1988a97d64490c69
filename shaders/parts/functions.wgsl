// The library: small functions that kernels call and epilogues are made of. A section starts with its name and the
// sections it needs; only what is called becomes part of a module. f_ functions take and give vec4<f32>, i_ functions
// vec4<i32>; b_ functions compare and give 0 or 1 in a vec4<i32>.

//@ f_id:
fn f_id(x: vec4<f32>) -> vec4<f32> {
    return x;
}

//@ i_id:
fn i_id(x: vec4<i32>) -> vec4<i32> {
    return x;
}

//@ f_relu:
// What is not a number stays so: max() may give the other operand.
fn f_relu(x: vec4<f32>) -> vec4<f32> {
    return select(x, vec4<f32>(), x < vec4<f32>());
}

//@ f_clamp:
fn f_clamp(x: vec4<f32>, low: f32, high: f32) -> vec4<f32> {
    let y = select(x, vec4<f32>(low), x < vec4<f32>(low));
    return select(y, vec4<f32>(high), y > vec4<f32>(high));
}

//@ f_abs:
fn f_abs(x: vec4<f32>) -> vec4<f32> {
    return abs(x);
}

//@ f_neg:
fn f_neg(x: vec4<f32>) -> vec4<f32> {
    return -x;
}

//@ f_exp:
fn f_exp(x: vec4<f32>) -> vec4<f32> {
    return exp(x);
}

//@ f_log:
// Near 1, where the builtin may lose all relative accuracy, a series in (x - 1) / (x + 1).
fn f_log(x: vec4<f32>) -> vec4<f32> {
    let s = (x - 1.0) / (x + 1.0);
    let z = s * s;
    let near = 2.0 * s * (1.0 + z * (0.33333334 + z * (0.2 + z * (0.14285715 + z * (0.11111111 + z * 0.09090909)))));
    return select(log(x), near, abs(x - 1.0) < vec4<f32>(0.25));
}

//@ f_sqrt:
fn f_sqrt(x: vec4<f32>) -> vec4<f32> {
    return sqrt(x);
}

//@ f_rsqrt:
fn f_rsqrt(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / sqrt(x);
}

//@ f_wave:
// The sine of x plus some quarters of a turn. The builtins need be no nearer than 2^-11, and that near zero only: x is
// brought within an eighth of a turn of zero by quarters in three pieces (products with whole numbers below 2^15 of the
// first two are exact), and polynomials of least error do the rest.
fn f_wave(x: vec4<f32>, quarters: i32) -> vec4<f32> {
    let k = round(x * 0.63661975);
    let r = ((x - k * 1.5703125) - k * 0.0004837513) - k * 7.54979e-8;
    let z = r * r;
    let s = r + r * z * (-0.16666655 + z * (0.008332161 - z * 0.00019515296));
    let c = (1.0 - 0.5 * z) + z * z * (0.041666646 + z * (-0.0013887316 + z * 0.0000244332));
    let turn = vec4<i32>(k) + quarters;
    let y = select(s, c, (turn & vec4<i32>(1)) == vec4<i32>(1));
    let near = select(y, -y, (turn & vec4<i32>(2)) == vec4<i32>(2));
    // Too many turns away for that, or no number.
    return select(sin(x + f32(quarters) * 1.5707964), near, abs(x) < vec4<f32>(50000.0));
}

//@ f_sin: f_wave
fn f_sin(x: vec4<f32>) -> vec4<f32> {
    return f_wave(x, 0);
}

//@ f_cos: f_wave
fn f_cos(x: vec4<f32>) -> vec4<f32> {
    return f_wave(x, 1);
}

//@ f_floor:
fn f_floor(x: vec4<f32>) -> vec4<f32> {
    return floor(x);
}

//@ f_ceil:
fn f_ceil(x: vec4<f32>) -> vec4<f32> {
    return ceil(x);
}

//@ f_round:
fn f_round(x: vec4<f32>) -> vec4<f32> {
    return round(x);
}

//@ f_sign:
fn f_sign(x: vec4<f32>) -> vec4<f32> {
    return sign(x);
}

//@ f_square:
fn f_square(x: vec4<f32>) -> vec4<f32> {
    return x * x;
}

//@ f_zero:
fn f_zero(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>();
}

//@ f_logistic:
fn f_logistic(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-max(x, vec4<f32>(-88.0))));
}

//@ f_tanh:
fn f_tanh(x: vec4<f32>) -> vec4<f32> {
    return tanh(clamp(x, vec4<f32>(-12.0), vec4<f32>(12.0)));
}

//@ f_hard_swish:
fn f_hard_swish(x: vec4<f32>) -> vec4<f32> {
    return x * clamp(x + 3.0, vec4<f32>(), vec4<f32>(6.0)) * (1.0 / 6.0);
}

//@ f_elu:
fn f_elu(x: vec4<f32>) -> vec4<f32> {
    // exp(x) - 1 loses its digits near 0: a series there.
    let near = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * 0.008333334))));
    let below = select(exp(x) - 1.0, near, x > vec4<f32>(-0.1));
    return select(x, below, x < vec4<f32>());
}

//@ f_leaky:
fn f_leaky(x: vec4<f32>, slope: f32) -> vec4<f32> {
    return select(x, x * slope, x < vec4<f32>());
}

//@ f_gelu_tanh: f_tanh
fn f_gelu_tanh(x: vec4<f32>) -> vec4<f32> {
    return 0.5 * x * (1.0 + f_tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
}

//@ f_erf:
// Absolute error below 2e-7 (Abramowitz and Stegun 7.1.26 beyond 0.5, the Taylor series below).
fn f_erf(x: vec4<f32>) -> vec4<f32> {
    let a = abs(x);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let far = sign(x) * (1.0 - poly * exp(-a * a));
    let z = x * x;
    let near = 1.1283791671 * x
        * (1.0 + z * (-0.33333334 + z * (0.1 + z * (-0.023809524 + z * (0.0046296296 - z * 0.00075757576)))));
    return select(far, near, a < vec4<f32>(0.5));
}

//@ f_gelu: f_erf
fn f_gelu(x: vec4<f32>) -> vec4<f32> {
    return 0.5 * x * (1.0 + f_erf(x * 0.70710678));
}

//@ f_scale:
fn f_scale(x: vec4<f32>, factor: f32) -> vec4<f32> {
    return x * factor;
}

//@ f_grid:
// 8-bit numbers over a range: zero, and both ends of it or the farther one, are among them.
struct Grid {
    scale: f32,
    inverse: f32,
    zero: f32,
    least: f32,
}
fn f_nearest(v: vec4<f32>) -> vec4<f32> {
    return sign(v) * floor(abs(v) + 0.5);
}
// The least and the greatest number of each lane, or zero.
fn f_grid(lows: vec4<f32>, highs: vec4<f32>, asymmetric: bool) -> Grid {
    let low = min(min(lows.x, lows.y), min(lows.z, lows.w));
    let high = max(max(highs.x, highs.y), max(highs.z, highs.w));
    let span = select(max(high, -low), high - low, asymmetric);
    if (!(span > 0.0 && span < 3.4e38)) {
        return Grid(1.0, 0.0, 0.0, 0.0);
    }
    if (!asymmetric) {
        return Grid(span / 127.0, 127.0 / span, 0.0, -127.0);
    }
    // The zero point comes from the end that gives it with the smaller error.
    let scale = span / 255.0;
    let zero = select(127.0 - high / scale, -128.0 - low / scale, 128.0 - low / scale < 127.0 + high / scale);
    return Grid(scale, 1.0 / scale, clamp(f_nearest(vec4<f32>(zero)).x, -128.0, 127.0), -128.0);
}

//@ f_snap: f_grid
// The nearest numbers of the grid.
fn f_snap(v: vec4<f32>, g: Grid) -> vec4<f32> {
    return (clamp(f_nearest(v * g.inverse + g.zero), vec4<f32>(g.least), vec4<f32>(127.0)) - g.zero) * g.scale;
}

//@ f_add:
fn f_add(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return a + b;
}

//@ f_sub:
fn f_sub(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return a - b;
}

//@ f_mul:
fn f_mul(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return a * b;
}

//@ f_div:
fn f_div(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return a / b;
}

//@ f_max:
fn f_max(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return max(a, b);
}

//@ f_min:
fn f_min(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return min(a, b);
}

//@ f_sqdiff:
fn f_sqdiff(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return (a - b) * (a - b);
}

//@ f_prelu:
fn f_prelu(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return select(a, a * b, a < vec4<f32>());
}

//@ f_pow:
// Negative bases are fine where the exponent is a whole number, as in C.
fn f_pow(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    // Adapters differ in what a negative power of zero is; made from an operand, as below.
    let all = bitcast<vec4<f32>>((bitcast<vec4<u32>>(a) & vec4<u32>(0u)) | vec4<u32>(0x7f800000u));
    let size = select(pow(abs(a), b), all, (a == vec4<f32>()) & (b < vec4<f32>()));
    let whole = b == floor(b);
    let odd = whole & (abs(b % 2.0) == vec4<f32>(1.0));
    let signed = select(size, -size, odd & (a < vec4<f32>()));
    // A root of a negative number is none. The value is made from an operand: as a constant it is no valid program.
    let none = bitcast<vec4<f32>>((bitcast<vec4<u32>>(a) & vec4<u32>(0u)) | vec4<u32>(0x7fc00000u));
    let real = select(none, signed, whole | (a >= vec4<f32>()) | (a != a));
    return select(real, vec4<f32>(1.0), b == vec4<f32>());
}

//@ f_floor_div:
fn f_floor_div(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return floor(a / b);
}

//@ f_floor_mod:
fn f_floor_mod(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let r = a % b;
    return select(r, r + b, (r != vec4<f32>()) & ((r < vec4<f32>()) != (b < vec4<f32>())));
}

//@ f_atan2:
fn f_atan2(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return atan2(a, b);
}

//@ b_flag:
fn b_flag(c: vec4<bool>) -> vec4<i32> {
    return select(vec4<i32>(), vec4<i32>(1), c);
}

//@ bf_equal: b_flag
fn bf_equal(a: vec4<f32>, b: vec4<f32>) -> vec4<i32> {
    return b_flag(a == b);
}

//@ bf_not_equal: b_flag
fn bf_not_equal(a: vec4<f32>, b: vec4<f32>) -> vec4<i32> {
    return b_flag(a != b);
}

//@ bf_less: b_flag
fn bf_less(a: vec4<f32>, b: vec4<f32>) -> vec4<i32> {
    return b_flag(a < b);
}

//@ bf_less_equal: b_flag
fn bf_less_equal(a: vec4<f32>, b: vec4<f32>) -> vec4<i32> {
    return b_flag(a <= b);
}

//@ bf_greater: b_flag
fn bf_greater(a: vec4<f32>, b: vec4<f32>) -> vec4<i32> {
    return b_flag(a > b);
}

//@ bf_greater_equal: b_flag
fn bf_greater_equal(a: vec4<f32>, b: vec4<f32>) -> vec4<i32> {
    return b_flag(a >= b);
}

//@ bi_equal: b_flag
fn bi_equal(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b_flag(a == b);
}

//@ bi_not_equal: b_flag
fn bi_not_equal(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b_flag(a != b);
}

//@ bi_less: b_flag
fn bi_less(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b_flag(a < b);
}

//@ bi_less_equal: b_flag
fn bi_less_equal(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b_flag(a <= b);
}

//@ bi_greater: b_flag
fn bi_greater(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b_flag(a > b);
}

//@ bi_greater_equal: b_flag
fn bi_greater_equal(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b_flag(a >= b);
}

//@ i_add:
fn i_add(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a + b;
}

//@ i_sub:
fn i_sub(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a - b;
}

//@ i_mul:
fn i_mul(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a * b;
}

//@ i_div:
fn i_div(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a / b;
}

//@ i_floor_div:
fn i_floor_div(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let q = a / b;
    let r = a - q * b;
    return select(q, q - 1, (r != vec4<i32>()) & ((r < vec4<i32>()) != (b < vec4<i32>())));
}

//@ i_floor_mod:
fn i_floor_mod(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let r = a - (a / b) * b;
    return select(r, r + b, (r != vec4<i32>()) & ((r < vec4<i32>()) != (b < vec4<i32>())));
}

//@ i_max:
fn i_max(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return max(a, b);
}

//@ i_min:
fn i_min(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return min(a, b);
}

//@ i_sqdiff:
fn i_sqdiff(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return (a - b) * (a - b);
}

//@ i_and:
fn i_and(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a & b;
}

//@ i_or:
fn i_or(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a | b;
}

//@ i_xor:
fn i_xor(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return a ^ b;
}

//@ i_not:
fn i_not(x: vec4<i32>) -> vec4<i32> {
    return vec4<i32>(1) - x;
}

//@ i_neg:
fn i_neg(x: vec4<i32>) -> vec4<i32> {
    return -x;
}

//@ i_abs:
fn i_abs(x: vec4<i32>) -> vec4<i32> {
    return abs(x);
}

//@ i_sign:
fn i_sign(x: vec4<i32>) -> vec4<i32> {
    return sign(x);
}

//@ i_square:
fn i_square(x: vec4<i32>) -> vec4<i32> {
    return x * x;
}

//@ i_zero:
fn i_zero(x: vec4<i32>) -> vec4<i32> {
    return vec4<i32>();
}

//@ i_relu:
fn i_relu(x: vec4<i32>) -> vec4<i32> {
    return max(x, vec4<i32>());
}

//@ i_clamp:
fn i_clamp(x: vec4<i32>, low: i32, high: i32) -> vec4<i32> {
    return clamp(x, vec4<i32>(low), vec4<i32>(high));
}

//@ to_float:
fn to_float(x: vec4<i32>) -> vec4<f32> {
    return vec4<f32>(x);
}

//@ to_int:
// Truncates; what does not fit saturates.
fn to_int(x: vec4<f32>) -> vec4<i32> {
    return vec4<i32>(x);
}

//@ to_byte:
// Wraps to signed 8 bits, as the reference's casts between integer types do.
fn to_byte(x: vec4<i32>) -> vec4<i32> {
    return (x << vec4<u32>(24u)) >> vec4<u32>(24u);
}

//@ to_ubyte:
fn to_ubyte(x: vec4<i32>) -> vec4<i32> {
    return x & vec4<i32>(255);
}

//@ f_to_bool: b_flag
fn f_to_bool(x: vec4<f32>) -> vec4<i32> {
    return b_flag(x != vec4<f32>());
}

//@ i_to_bool: b_flag
fn i_to_bool(x: vec4<i32>) -> vec4<i32> {
    return b_flag(x != vec4<i32>());
}

//@ dequantize:
fn dequantize(x: vec4<i32>, scale: f32, zero: i32) -> vec4<f32> {
    return scale * vec4<f32>(x - zero);
}

//@ quantize:
// Rounds half away from zero.
fn quantize(x: vec4<f32>, scale: f32, zero: i32, least: i32, greatest: i32) -> vec4<i32> {
    let v = x / scale;
    let r = sign(v) * floor(abs(v) + 0.5);
    // floor(|v| + 0.5) is one too great where |v| is the float just below a half.
    let fixed = select(r, r - sign(v), abs(r - v) > vec4<f32>(0.5));
    return clamp(vec4<i32>(clamp(fixed, vec4<f32>(-1e9), vec4<f32>(1e9))) + zero, vec4<i32>(least), vec4<i32>(greatest));
}

//@ i_high_mul:
// The high half of the doubled 64-bit product, rounded as the reference rounds it. b is not negative: no multiplier is.
fn i_high_mul(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let negative = a < vec4<i32>();
    let x = vec4<u32>(abs(a));
    let y = vec4<u32>(b);
    let xl = x & vec4<u32>(0xffffu);
    let xh = x >> vec4<u32>(16u);
    let yl = y & vec4<u32>(0xffffu);
    let yh = y >> vec4<u32>(16u);
    let low = xl * yl;
    let mid = xh * yl + (low >> vec4<u32>(16u));
    let mid2 = xl * yh + (mid & vec4<u32>(0xffffu));
    var high = xh * yh + (mid >> vec4<u32>(16u)) + (mid2 >> vec4<u32>(16u));
    let lowest = (mid2 << vec4<u32>(16u)) | (low & vec4<u32>(0xffffu));
    // Adds a half to the magnitude (just less than a half where the product is negative: its exact half goes towards
    // zero) and takes bits 31 and up.
    let sum = lowest + select(vec4<u32>(0x40000000u), vec4<u32>(0x3fffffffu), negative);
    high += select(vec4<u32>(), vec4<u32>(1u), sum < lowest);
    let r = vec4<i32>((high << vec4<u32>(1u)) | (sum >> vec4<u32>(31u)));
    return select(r, -r, negative);
}

//@ i_rounding_shift:
// x / 2^n, rounded half away from zero; n from 0 to 31.
fn i_rounding_shift(x: vec4<i32>, n: vec4<u32>) -> vec4<i32> {
    let mask = (vec4<i32>(1) << n) - 1;
    let remainder = x & mask;
    let threshold = (mask >> vec4<u32>(1u)) + select(vec4<i32>(), vec4<i32>(1), x < vec4<i32>());
    return (x >> n) + select(vec4<i32>(), vec4<i32>(1), remainder > threshold);
}

//@ i_real:
// x times a double precision factor, rounded once. The factor is a whole number of 53 bits, in two words, times 2^-shift
// with a shift from 33 up. The product is exact; what the reference's double loses of it matters only where it makes a
// half of just less, and that is added.
fn long_mul(a: u32, b: u32) -> vec2<u32> {
    let ll = (a & 0xffffu) * (b & 0xffffu);
    let m = (a & 0xffffu) * (b >> 16u) + (ll >> 16u);
    let n = (a >> 16u) * (b & 0xffffu) + (m & 0xffffu);
    return vec2<u32>((n << 16u) | (ll & 0xffffu), (a >> 16u) * (b >> 16u) + (m >> 16u) + (n >> 16u));
}
fn real_mul(x: i32, high: u32, low: u32, shift: u32) -> i32 {
    let a = select(u32(x), 0u - u32(x), x < 0);
    let p = long_mul(a, low);
    let q = long_mul(a, high);
    // Three words: p.x, mid, top.
    var mid = p.y + q.x;
    var top = q.y + select(0u, 1u, mid < q.x);
    // Half a unit of the double's last place.
    let bits = select(select(0u, 32u + firstLeadingBit(mid), mid != 0u), 64u + firstLeadingBit(top), top != 0u);
    let unit = select(0u, 1u << (max(bits, 53u) - 53u), bits >= 53u);
    let sum = p.x + unit;
    let carry = select(0u, 1u, sum < p.x);
    mid += carry;
    top += select(0u, carry, mid == 0u);
    // Half of the result's, in the middle word or above it.
    let at = shift - 33u;
    let half = select(0u, 1u << (at & 31u), at < 32u);
    mid += half;
    top += select(0u, 1u, mid < half) + select(0u, 1u << (at & 31u), at >= 32u && at < 64u);
    var r = select((mid >> (shift & 31u)) | (top << (32u - (shift & 31u))), top >> (shift & 31u), shift >= 64u);
    let much = shift < 64u && (top >> (shift & 31u)) != 0u;
    r = select(select(r, 0u, shift >= 96u), 0x3fffffffu, much || r > 0x3fffffffu);
    return select(i32(r), -i32(r), x < 0);
}
fn i_real(x: vec4<i32>, high: vec4<i32>, low: vec4<i32>, shift: vec4<i32>) -> vec4<i32> {
    let h = vec4<u32>(high);
    let l = vec4<u32>(low);
    let s = vec4<u32>(shift);
    return vec4<i32>(
        real_mul(x.x, h.x, l.x, s.x),
        real_mul(x.y, h.y, l.y, s.y),
        real_mul(x.z, h.z, l.z, s.z),
        real_mul(x.w, h.w, l.w, s.w),
    );
}

//@ i_mean:
// A sum of n divided by n, rounded half away from zero.
fn i_mean(x: vec4<i32>, n: i32) -> vec4<i32> {
    return select((x - n / 2) / n, (x + n / 2) / n, x > vec4<i32>());
}

//@ i_shift_up:
// To the left by positive shifts; others do nothing.
fn i_shift_up(x: vec4<i32>, shift: vec4<i32>) -> vec4<i32> {
    return x << vec4<u32>(max(shift, vec4<i32>()));
}

//@ i_shift_down: i_rounding_shift
// To the right, rounded, by negative shifts.
fn i_shift_down(x: vec4<i32>, shift: vec4<i32>) -> vec4<i32> {
    return i_rounding_shift(x, vec4<u32>(min(-min(shift, vec4<i32>()), vec4<i32>(31))));
}

//@ i_requant4: i_high_mul i_rounding_shift
// x times (multiplier, shift) of each lane, rounded twice.
fn i_requant4(x: vec4<i32>, multiplier: vec4<i32>, shift: vec4<i32>) -> vec4<i32> {
    let left = vec4<u32>(max(shift, vec4<i32>()));
    let right = vec4<u32>(max(-shift, vec4<i32>()));
    return i_rounding_shift(i_high_mul(x << left, multiplier), right);
}

//@ i_requant: i_requant4
fn i_requant(x: vec4<i32>, multiplier: i32, shift: i32) -> vec4<i32> {
    return i_requant4(x, vec4<i32>(multiplier), vec4<i32>(shift));
}
