// Groups of elements less their mean (CENTRE), divided by the root of the mean of squares: layer, group and RMS
// normalization. A group is so many rows, each of a stretch of quads, at equal distances. A group an invocation, or (COOP) a
// group a workgroup. Two passes over the values before the one that writes: what is squared is small then.

override WG: u32 = 64u;
override COOP: u32 = 0u;
override CENTRE: u32 = 1u;
// A group has more than one row.
override LONG: u32 = 0u;

struct Params {
    // Groups in all, and beside each other in a row.
    count: u32,
    beside: u32,
    // Rows of a group; quads of its stretch of a row, and from row to row; elements of the stretch.
    rows: u32,
    quads: u32,
    pitch: u32,
    width: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> partial: array<f32, WG>;

// Where the i-th quad of a group is, and which of its row it is.
fn place(base: u32, i: u32) -> vec2<u32> {
    if (LONG == 0u) {
        return vec2<u32>(base + i, i);
    }
    let x = i % p.quads;
    return vec2<u32>(base + i / p.quads * p.pitch + x, x);
}

fn share(local: u32, v: vec4<f32>) -> f32 {
    let sum = (v.x + v.y) + (v.z + v.w);
    if (COOP == 0u) {
        return sum;
    }
    workgroupBarrier();
    partial[local] = sum;
    workgroupBarrier();
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        if (local < half) {
            partial[local] += partial[local + half];
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
    var g = linear_group(wg, count);
    var first = local;
    var step = WG;
    if (COOP == 0u) {
        g = linear_id(wg, count, local, WG);
        first = 0u;
        step = 1u;
    }
    // No early return: barriers follow.
    let base = (g / p.beside) * p.rows * p.pitch + (g % p.beside) * p.quads;
    let end = select(0u, p.rows * p.quads, g < p.count);
    let n = f32(p.rows) * f32(p.width);
    var mean = 0.0;
    if (CENTRE == 1u) {
        var s = vec4<f32>();
        for (var i = first; i < end; i += step) {
            s += in0_unpack(in0[place(base, i).x]);
        }
        mean = share(local, s) / n;
    }
    var s = vec4<f32>();
    for (var i = first; i < end; i += step) {
        let at = place(base, i);
        let e = in0_unpack(in0[at.x]) - mean;
        // Padding is zero before the mean is taken off.
        let used = vec4<u32>(0u, 1u, 2u, 3u) + at.y * 4u < vec4<u32>(p.width);
        s += select(vec4<f32>(), e * e, used);
    }
    let factor = 1.0 / sqrt(share(local, s) / n + p.epsilon);
    for (var i = first; i < end; i += step) {
        let at = place(base, i);
        let e = (in0_unpack(in0[at.x]) - mean) * factor;
        out[at.x] = out_pack(out_mask(finish(e, at.x), min(4u, p.width - at.y * 4u)));
    }
}
