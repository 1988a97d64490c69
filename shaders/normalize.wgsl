// Normalizations along the innermost dimension: SOFTMAX, LOG_SOFTMAX, L2_NORMALIZATION. One row an invocation, or
// (COOP) one row a workgroup. Sums in f32.

override WG: u32 = 64u;
override COOP: u32 = 0u;
// 0 softmax, 1 log softmax, 2 L2.
override KIND: u32 = 0u;

struct Params {
    rows: u32,
    row: u32,
    width: u32,
    beta: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

const LOWEST: f32 = -3.4028234e38;

var<workgroup> partial: array<f32, WG>;

fn used(x: u32) -> vec4<bool> {
    return vec4<u32>(0u, 1u, 2u, 3u) + x * 4u < vec4<u32>(p.width);
}

fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

fn most(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

fn share(local: u32, v: f32, greatest: bool) -> f32 {
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
    var top = 0.0;
    if (KIND != 2u) {
        var m = vec4<f32>(LOWEST);
        for (var x = first; x < end; x += step) {
            m = max(m, select(vec4<f32>(LOWEST), in0_unpack(in0[base + x]), used(x)));
        }
        top = share(local, most(m), true);
    }
    var s = vec4<f32>();
    for (var x = first; x < end; x += step) {
        let v = in0_unpack(in0[base + x]);
        if (KIND == 2u) {
            s += v * v;
        } else {
            s += select(vec4<f32>(), exp((v - top) * p.beta), used(x));
        }
    }
    let sum = share(local, total(s), false);
    for (var x = first; x < end; x += step) {
        var v = in0_unpack(in0[base + x]);
        switch KIND {
            case 0u: { v = exp((v - top) * p.beta) / sum; }
            case 1u: { v = (v - top) - f_log(vec4<f32>(sum)); }
            default: { v = v / max(sqrt(sum), 1e-6); }
        }
        out[base + x] = out_pack(out_mask(finish(v, base + x), min(4u, p.width - x * 4u)));
    }
}
