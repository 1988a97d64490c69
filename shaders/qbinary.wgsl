// Element-wise with two 8-bit quantized operands and full broadcasting, in the reference's fixed-point arithmetic.
// Indexing as in binary.wgsl.

override WG: u32 = 64u;
override SPLAT: u32 = 0u;
override SAME: u32 = 0u;
// 0 ADD and SUB (the second multiplier carries the sign), 1 MUL, 2 SQUARED_DIFFERENCE, 3 PRELU,
// 4 to 9 EQUAL NOT_EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL.
override KIND: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    ndims: u32,
    dims: array<vec4<u32>, 6>,
    // (offset added, multiplier, shift, left shift first) of the first operand.
    q0: vec4<i32>,
    // The same of the second.
    q1: vec4<i32>,
    // (offset added, multiplier, shift, -) of the result.
    qo: vec4<i32>,
    // (least, greatest, sign of the second operand, -).
    limits: vec4<i32>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read> in1: array<in1_Elem4>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

fn scaled(x: vec4<i32>, q: vec4<i32>) -> vec4<i32> {
    return i_requant((x + q.x) << vec4<u32>(u32(q.w)), q.y, q.z);
}

fn combine(x: vec4<i32>, y: vec4<i32>) -> vec4<i32> {
    if (KIND == 1u) {
        return i_requant((x + p.q0.x) * (y + p.q1.x), p.qo.y, p.qo.z) + p.qo.x;
    }
    if (KIND == 3u) {
        let a = x + p.q0.x;
        let plain = i_requant(a, p.q0.y, p.q0.z);
        let sloped = i_requant(a * (y + p.q1.x), p.q1.y, p.q1.z);
        return select(sloped, plain, a >= vec4<i32>()) + p.qo.x;
    }
    let a = scaled(x, p.q0);
    let b = scaled(y, p.q1);
    if (KIND == 0u) {
        return i_requant(a + b * p.limits.z, p.qo.y, p.qo.z) + p.qo.x;
    }
    if (KIND == 2u) {
        let d = a - b;
        return i_requant(d * d, p.qo.y, p.qo.z) + p.qo.x;
    }
    var r = a == b;
    switch KIND {
        case 5u: { r = a != b; }
        case 6u: { r = a > b; }
        case 7u: { r = a >= b; }
        case 8u: { r = a < b; }
        case 9u: { r = a <= b; }
        default: {}
    }
    return select(vec4<i32>(), vec4<i32>(1), r);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    if (i >= p.quads) {
        return;
    }
    let x = i % p.row;
    var i0 = i;
    var i1 = i;
    if (SAME == 0u) {
        i0 = select(x, 0u, (SPLAT & 1u) != 0u);
        i1 = select(x, 0u, (SPLAT & 2u) != 0u);
        var rest = i / p.row;
        for (var d = 0u; d < p.ndims; d++) {
            let dim = p.dims[d];
            let c = rest % dim.x;
            rest /= dim.x;
            i0 += c * dim.y;
            i1 += c * dim.z;
        }
    }
    var a = in0_unpack(in0[i0]);
    var b = in1_unpack(in1[i1]);
    if ((SPLAT & 1u) != 0u) {
        a = vec4<i32>(a.x);
    }
    if ((SPLAT & 2u) != 0u) {
        b = vec4<i32>(b.x);
    }
    let n = select(4u, p.tail, x == p.row - 1u);
    let v = clamp(combine(a, b), vec4<i32>(p.limits.x), vec4<i32>(p.limits.y));
    out[i] = out_pack(out_mask(v, n));
}
