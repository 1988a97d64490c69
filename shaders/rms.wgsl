// Rows divided by the root of the mean of their squares, times a factor for each element. A row an invocation, or (COOP) a
// row a workgroup.

override WG: u32 = 64u;
override COOP: u32 = 0u;
// There are factors.
override SCALE: u32 = 0u;

struct Params {
    rows: u32,
    row: u32,
    width: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read> in1: array<in1_Elem4>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> partial: array<f32, WG>;

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
    var s = vec4<f32>();
    for (var x = first; x < end; x += step) {
        let e = in0_unpack(in0[base + x]);
        s += e * e;
    }
    var sum = (s.x + s.y) + (s.z + s.w);
    if (COOP == 1u) {
        partial[local] = sum;
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if (local < half) {
                partial[local] += partial[local + half];
            }
            workgroupBarrier();
        }
        sum = partial[0];
    }
    let factor = 1.0 / sqrt(sum / f32(p.width) + p.epsilon);
    for (var x = first; x < end; x += step) {
        var e = in0_unpack(in0[base + x]) * factor;
        if (SCALE == 1u) {
            e *= in1_unpack(in1[x]);
        }
        out[base + x] = out_pack(out_mask(finish(e, base + x), min(4u, p.width - x * 4u)));
    }
}
