// ONE_HOT: an output element is the one value where its coordinate along the new axis is the index, else the other.

override WG: u32 = 64u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    // Size of the new axis, elements behind it.
    depth: u32,
    inner: u32,
    // The innermost dimension of the indices, and of it in memory.
    idx_width: u32,
    idx_pitch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> index: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(3) var<storage, read> in1: array<in1_Elem4>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    if (i >= p.quads) {
        return;
    }
    let x = (i % p.row) * 4u;
    let used = min(4u, p.width - x);
    var hit = vec4<bool>(false);
    for (var l = 0u; l < used; l++) {
        let e = (i / p.row) * p.width + x + l;
        let rest = e / p.inner;
        let number = (rest / p.depth) * p.inner + e % p.inner;
        let at = (number / p.idx_width) * p.idx_pitch + number % p.idx_width;
        hit[l] = index[at >> 2u][at & 3u] == i32(rest % p.depth);
    }
    let one = in0_Val4(in0_unpack(in0[0]).x);
    let other = in0_Val4(in1_unpack(in1[0]).x);
    out[i] = out_pack(out_mask(finish(select(other, one, hit), i), used));
}
