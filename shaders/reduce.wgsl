// Reductions over any set of axes. An output quad's lanes start at addresses that `dims` gives; from there `steps`
// rows are combined, at the offsets that `over` gives. Floats accumulate in f32, integers in i32.

override WG: u32 = 64u;
// The innermost dimension is kept: quads are combined lane by lane. Else it is reduced too: each lane combines whole
// rows of `inner` elements.
override LANES: u32 = 1u;
// A whole workgroup combines one output quad.
override COOP: u32 = 0u;

struct Params {
    // Output quads, quads in an output row, elements in an output row, dimensions kept.
    quads: u32,
    row: u32,
    width: u32,
    ndims: u32,
    // Rows to combine, elements of the innermost dimension, dimensions reduced.
    steps: u32,
    inner: u32,
    nover: u32,
    // What sums are divided by (1 where nothing is).
    divisor: f32,
    // The neutral element, as f32 or i32 bits; then for quantized results: multiplier, shift, offset.
    neutral: u32,
    multiplier: i32,
    shift: i32,
    offset: i32,
    // (least, greatest, subtracted in all before scaling, -)
    limits: vec4<i32>,
    // Kept dimensions: (size, stride in elements), innermost first.
    dims: array<vec4<u32>, 6>,
    // Reduced dimensions: (size, stride in elements), innermost first.
    over: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> partial: array<in0_Val4, WG>;

fn start(number: u32) -> u32 {
    var rest = number;
    var at = 0u;
    for (var d = 0u; d < p.ndims; d++) {
        let dim = p.dims[d];
        at += (rest % dim.x) * dim.y;
        rest /= dim.x;
    }
    return at;
}

fn offset(step: u32) -> u32 {
    var rest = step;
    var at = 0u;
    for (var d = 0u; d < p.nover; d++) {
        let dim = p.over[d];
        at += (rest % dim.x) * dim.y;
        rest /= dim.x;
    }
    return at;
}

// Combines every `stride`-th step from `first` on.
fn gather(i: u32, first: u32, stride: u32) -> in0_Val4 {
    let neutral = in0_Val4(bitcast<in0_Val>(p.neutral));
    let number = (i / p.row) * p.width + (i % p.row) * 4u;
    if (LANES == 1u) {
        var acc = neutral;
        let at = start(number);
        for (var s = first; s < p.steps; s += stride) {
            acc = COMBINE(acc, in0_unpack(in0[(at + offset(s)) >> 2u]));
        }
        return acc;
    }
    var result = neutral;
    let quads = (p.inner + 3u) / 4u;
    for (var l = 0u; l < 4u; l++) {
        if ((i % p.row) * 4u + l >= p.width) {
            break;
        }
        var acc = neutral;
        let at = start(number + l);
        for (var s = first; s < p.steps * quads; s += stride) {
            let x = s % quads;
            let e = in0_unpack(in0[((at + offset(s / quads)) >> 2u) + x]);
            let used = vec4<u32>(0u, 1u, 2u, 3u) + x * 4u < vec4<u32>(p.inner);
            acc = COMBINE(acc, select(neutral, e, used));
        }
        let half = COMBINE(acc, acc.zwxy);
        result[l] = COMBINE(half, half.yxwz).x;
    }
    return result;
}

fn store(i: u32, v: in0_Val4) {
    let n = min(4u, p.width - (i % p.row) * 4u);
    out[i] = out_pack(out_mask(finish(CLOSE(v), i), n));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if (COOP == 0u) {
        let i = linear_id(wg, count, local, WG);
        if (i < p.quads) {
            store(i, gather(i, 0u, 1u));
        }
        return;
    }
    let i = linear_group(wg, count);
    if (i >= p.quads) {
        return;
    }
    partial[local] = gather(i, local, WG);
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (local < half) {
            partial[local] = COMBINE(partial[local], partial[local + half]);
        }
        workgroupBarrier();
    }
    if (local == 0u) {
        store(i, partial[0]);
    }
}

fn close_f(v: vec4<f32>) -> vec4<f32> {
    return v / p.divisor;
}

// Scaled where a multiplier is given.
fn close_i(v: vec4<i32>) -> vec4<i32> {
    if (p.multiplier == 0) {
        return v;
    }
    let x = i_requant(v - p.limits.z, p.multiplier, p.shift) + p.offset;
    return clamp(x, vec4<i32>(p.limits.x), vec4<i32>(p.limits.y));
}
