// What differs between the classes of arithmetic of a convolution or a matrix product, and between adapters: how stored
// values become factors, what belongs to an output channel, and how eight invocations share what each has read. A
// kernel takes one section of each group.
//
// chan_...: the arithmetic. each_...: what belongs to an output channel, channel by channel, for kernels in which
// every invocation reads another one. quad_...: the same in rows of four channels. share_...: how rows and channels are
// shared. dots_...: how four factors are kept and multiplied. mul_...: the product of chan_int. taps_...: the filter's size where it is compiled in.

//@ chan_float
// Floats: a bias.
alias acc_Val4 = vec4<f32>;
alias acc_Val = f32;
alias Limit = f32;
alias Chan4 = vec4<f32>;
// A clamp, or HARD_SWISH: data, so that layers which differ in it share a kernel.
fn activated(x: vec4<f32>) -> vec4<f32> {
    let swish = x * clamp(x + 3.0, vec4<f32>(), vec4<f32>(6.0)) * (1.0 / 6.0);
    return select(clamp(x, vec4<f32>(p.low), vec4<f32>(p.high)), swish, p.swish != 0u);
}
fn x_value(v: x_Val4) -> acc_Val4 {
    return v;
}
fn w_value(v: w_Val4) -> acc_Val4 {
    return v;
}
fn result(v: acc_Val4, c: Chan4) -> acc_Val4 {
    return activated(v + c);
}

//@ chan_scaled
// Float activations with int8 weights: a bias and the weights' scale.
alias acc_Val4 = vec4<f32>;
alias acc_Val = f32;
alias Limit = f32;
struct Chan4 {
    bias: vec4<f32>,
    scale: vec4<f32>,
}
// A clamp, or HARD_SWISH: data, so that layers which differ in it share a kernel.
fn activated(x: vec4<f32>) -> vec4<f32> {
    let swish = x * clamp(x + 3.0, vec4<f32>(), vec4<f32>(6.0)) * (1.0 / 6.0);
    return select(clamp(x, vec4<f32>(p.low), vec4<f32>(p.high)), swish, p.swish != 0u);
}
fn x_value(v: x_Val4) -> acc_Val4 {
    return v;
}
fn w_value(v: w_Val4) -> acc_Val4 {
    return vec4<f32>(v);
}
fn result(v: acc_Val4, c: Chan4) -> acc_Val4 {
    return activated(v * c.scale + c.bias);
}

//@ chan_int
// 8-bit integers: a bias, a multiplier and its shift.
alias acc_Val4 = vec4<i32>;
alias acc_Val = i32;
alias Limit = i32;
struct Chan4 {
    bias: vec4<i32>,
    factor: vec4<i32>,
    shift: vec4<i32>,
}
fn x_value(v: x_Val4) -> acc_Val4 {
    return v - vec4<i32>(p.x_zero);
}
fn w_value(v: w_Val4) -> acc_Val4 {
    return v - vec4<i32>(p.w_zero);
}
fn result(v: acc_Val4, c: Chan4) -> acc_Val4 {
    let left = vec4<u32>(max(c.shift, vec4<i32>()));
    let right = vec4<u32>(min(-min(c.shift, vec4<i32>()), vec4<i32>(31)));
    let x = high_mul((v + c.bias) << left, c.factor);
    let mask = vec4<i32>((vec4<u32>(1u) << right) - vec4<u32>(1u));
    let half = (mask >> vec4<u32>(1u)) + select(vec4<i32>(), vec4<i32>(1), x < vec4<i32>());
    let y = (x >> right) + select(vec4<i32>(), vec4<i32>(1), (x & mask) > half);
    return clamp(y + vec4<i32>(p.out_zero), vec4<i32>(p.low), vec4<i32>(p.high));
}

//@ chan_real
// 8-bit integers in a fully connected layer: a bias and a double precision factor, the result rounded once.
alias acc_Val4 = vec4<i32>;
alias acc_Val = i32;
alias Limit = i32;
struct Chan4 {
    bias: vec4<i32>,
    high: vec4<i32>,
    low: vec4<i32>,
    shift: vec4<i32>,
}
fn x_value(v: x_Val4) -> acc_Val4 {
    return v - vec4<i32>(p.x_zero);
}
fn w_value(v: w_Val4) -> acc_Val4 {
    return v - vec4<i32>(p.w_zero);
}
fn result(v: acc_Val4, c: Chan4) -> acc_Val4 {
    let y = i_real(v + c.bias, c.high, c.low, c.shift);
    return clamp(y + vec4<i32>(p.out_zero), vec4<i32>(p.low), vec4<i32>(p.high));
}

//@ dots_values
// Four numbers, without their zero points.
alias Factor4 = acc_Val4;
fn x_factor(v: x_Val4) -> Factor4 {
    return x_value(v);
}
fn w_factor(v: w_Val4) -> Factor4 {
    return w_value(v);
}
fn outside() -> Factor4 {
    return acc_Val4();
}
fn dot4(a: Factor4, b: Factor4) -> acc_Val {
    return dot(a, b);
}

//@ dots_packed
// Four int8 in a word as they are stored: the bias has what the zero point adds to the sum. Weights have none.
alias Factor4 = u32;
fn x_factor(v: u32) -> Factor4 {
    return v;
}
fn w_factor(v: u32) -> Factor4 {
    return v;
}
fn outside() -> Factor4 {
    return (u32(p.x_zero) & 255u) * 0x1010101u;
}
fn dot4(a: Factor4, b: Factor4) -> acc_Val {
    return dot4I8Packed(a, b);
}

//@ each_float
alias Chan = f32;
@group(0) @binding(3) var<storage, read> chans: array<f32>;
fn chan(c: u32) -> Chan {
    return chans[c];
}
fn chan4(a: Chan, b: Chan, c: Chan, d: Chan) -> Chan4 {
    return vec4<f32>(a, b, c, d);
}

//@ each_scaled
alias Chan = vec2<f32>;
@group(0) @binding(3) var<storage, read> chans: array<vec2<f32>>;
fn chan(c: u32) -> Chan {
    return chans[c];
}
fn chan4(a: Chan, b: Chan, c: Chan, d: Chan) -> Chan4 {
    return Chan4(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

//@ each_int
alias Chan = vec4<i32>;
@group(0) @binding(3) var<storage, read> chans: array<vec4<i32>>;
fn chan(c: u32) -> Chan {
    return chans[c];
}
fn chan4(a: Chan, b: Chan, c: Chan, d: Chan) -> Chan4 {
    return Chan4(
        vec4<i32>(a.x, b.x, c.x, d.x),
        vec4<i32>(a.y, b.y, c.y, d.y),
        vec4<i32>(a.z, b.z, c.z, d.z),
    );
}

//@ each_real
alias Chan = vec4<i32>;
@group(0) @binding(3) var<storage, read> chans: array<vec4<i32>>;
fn chan(c: u32) -> Chan {
    return chans[c];
}
fn chan4(a: Chan, b: Chan, c: Chan, d: Chan) -> Chan4 {
    return Chan4(
        vec4<i32>(a.x, b.x, c.x, d.x),
        vec4<i32>(a.y, b.y, c.y, d.y),
        vec4<i32>(a.z, b.z, c.z, d.z),
        vec4<i32>(a.w, b.w, c.w, d.w),
    );
}

//@ quad_float
const ROWS: u32 = 1u;
@group(0) @binding(3) var<storage, read> chans: array<vec4<f32>>;
alias Row = vec4<f32>;
fn chan_rows(a: Row, b: Row, c: Row) -> Chan4 {
    return a;
}
fn quad_chans(q: u32) -> Chan4 {
    return chans[q];
}

//@ quad_scaled
const ROWS: u32 = 2u;
@group(0) @binding(3) var<storage, read> chans: array<vec4<f32>>;
alias Row = vec4<f32>;
fn chan_rows(a: Row, b: Row, c: Row) -> Chan4 {
    return Chan4(a, b);
}
fn quad_chans(q: u32) -> Chan4 {
    return Chan4(chans[2u * q], chans[2u * q + 1u]);
}

//@ quad_int
const ROWS: u32 = 3u;
@group(0) @binding(3) var<storage, read> chans: array<vec4<i32>>;
alias Row = vec4<i32>;
fn chan_rows(a: Row, b: Row, c: Row) -> Chan4 {
    return Chan4(a, b, c);
}
fn quad_chans(q: u32) -> Chan4 {
    return Chan4(chans[3u * q], chans[3u * q + 1u], chans[3u * q + 2u]);
}

//@ quad_real
@group(0) @binding(3) var<storage, read> chans: array<vec4<i32>>;
fn quad_chans(q: u32) -> Chan4 {
    return Chan4(chans[4u * q], chans[4u * q + 1u], chans[4u * q + 2u], chans[4u * q + 3u]);
}

//@ mul_none
// Floats need none.

//@ mul_u32
// The doubled high half of the product with a factor that is not negative, rounded half away from zero.
fn high_mul(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let negative = a < vec4<i32>();
    let x = select(vec4<u32>(a), vec4<u32>() - vec4<u32>(a), negative);
    let y = vec4<u32>(b);
    let low = vec4<u32>(0xffffu);
    let ll = (x & low) * (y & low);
    let m = (x & low) * (y >> vec4<u32>(16u)) + (ll >> vec4<u32>(16u));
    let n = (x >> vec4<u32>(16u)) * (y & low) + (m & low);
    let high = (x >> vec4<u32>(16u)) * (y >> vec4<u32>(16u)) + (m >> vec4<u32>(16u)) + (n >> vec4<u32>(16u));
    let tail = (n << vec4<u32>(16u)) | (ll & low);
    let sum = tail + select(vec4<u32>(0x40000000u), vec4<u32>(0x3fffffffu), negative);
    let carry = select(vec4<u32>(), vec4<u32>(1u), sum < tail);
    let r = ((high + carry) << vec4<u32>(1u)) | (sum >> vec4<u32>(31u));
    return vec4<i32>(select(r, vec4<u32>() - r, negative));
}

//@ mul_u64
// The doubled high half of the product with a factor that is not negative, rounded half away from zero.
fn high_mul1(a: u32, b: u32, nudge: u32) -> u32 {
    return u32((u64(a) * u64(b) + u64(nudge)) >> 31u);
}
fn high_mul(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let negative = a < vec4<i32>();
    let x = select(vec4<u32>(a), vec4<u32>() - vec4<u32>(a), negative);
    let y = vec4<u32>(b);
    let n = select(vec4<u32>(0x40000000u), vec4<u32>(0x3fffffffu), negative);
    let r = vec4<u32>(
        high_mul1(x.x, y.x, n.x), high_mul1(x.y, y.y, n.y), high_mul1(x.z, y.z, n.z), high_mul1(x.w, y.w, n.w),
    );
    return vec4<i32>(select(r, vec4<u32>() - r, negative));
}

//@ share_subgroup
// The workgroup is one subgroup of eight: invocation i reads what belongs to row or channel i, and passes it round.
fn mine(lane: u32, at: u32) -> Factors {
    return weights(at + lane * p.steps);
}
fn row(m: Factors, at: u32, i: u32, last: u32) -> Factors {
    return Factors(subgroupShuffle(m.lo, i), subgroupShuffle(m.hi, i));
}
fn my_chan(lane: u32, c: u32) -> Chan {
    return chan(c + lane);
}
fn pick_chan(m: Chan, c: u32, i: u32) -> Chan {
    return subgroupShuffle(m, i);
}

//@ share_none
// Every invocation reads everything.
fn mine(lane: u32, at: u32) -> Factors {
    return Factors();
}
fn row(m: Factors, at: u32, i: u32, last: u32) -> Factors {
    return weights(at + min(i, last) * p.steps);
}
fn my_chan(lane: u32, c: u32) -> Chan {
    return Chan();
}
fn pick_chan(m: Chan, c: u32, i: u32) -> Chan {
    return chan(c + i);
}

//@ split_none
// An invocation takes all of a sum.
const SPLIT: u32 = 1u;
fn total(v: acc_Val4, lane: u32) -> acc_Val4 {
    return v;
}

//@ split_sum
// SPLIT invocations, a power of two, take a sum together; the first has it.
override SPLIT: u32 = 8u;
var<workgroup> shares: array<acc_Val4, WG>;
fn total(v: acc_Val4, lane: u32) -> acc_Val4 {
    shares[lane] = v;
    for (var n = SPLIT / 2u; n > 0u; n /= 2u) {
        workgroupBarrier();
        if (lane % SPLIT < n) {
            shares[lane] += shares[lane + n];
        }
    }
    return shares[lane];
}

//@ taps_3
const K: u32 = 3u;

//@ taps_5
const K: u32 = 5u;
