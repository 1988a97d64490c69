// SCATTER_ND, SPARSE_TO_DENSE and segment reductions: every output quad combines the updates that hit it, so that updates
// to the same place come in order and no two invocations write the same word.

override WG: u32 = 64u;
// Updates are whole rows of the innermost dimension.
override VEC: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    // Index tuples, indices in one, elements of an update.
    tuples: u32,
    depth: u32,
    inner: u32,
    // The innermost dimension of the indices and of the updates, and of both in memory.
    idx_width: u32,
    idx_pitch: u32,
    upd_width: u32,
    upd_pitch: u32,
    // What stands where no update goes, and is combined with the first one: f32 or i32 bits.
    start: u32,
    // Of each index in a tuple: (size of the dimension, stride in output elements).
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> index: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

const NOWHERE: u32 = 0xffffffffu;

// The first output element that the update of that number goes to.
fn place(tuple: u32) -> u32 {
    var to = 0u;
    for (var k = 0u; k < p.depth; k++) {
        let number = tuple * p.depth + k;
        let at = (number / p.idx_width) * p.idx_pitch + number % p.idx_width;
        let v = index[at >> 2u][at & 3u];
        let dim = p.dims[k];
        if (v < 0 || u32(v) >= dim.x) {
            return NOWHERE;
        }
        to += u32(v) * dim.y;
    }
    return to;
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
    let x = (i % p.row) * 4u;
    let number = (i / p.row) * p.width + x;
    let used = min(4u, p.width - x);
    var all = in0_Val4(bitcast<in0_Val>(p.start));
    for (var t = 0u; t < p.tuples; t++) {
        let to = place(t);
        if (to == NOWHERE) {
            continue;
        }
        for (var l = 0u; l < select(used, 1u, VEC == 1u); l++) {
            let n = number + l;
            if (n < to || n - to >= p.inner) {
                continue;
            }
            let e = t * p.inner + n - to;
            let at = (e / p.upd_width) * p.upd_pitch + e % p.upd_width;
            let v = in0_unpack(in0[at >> 2u]);
            if (VEC == 1u) {
                all = COMBINE(all, v);
            } else {
                all[l] = COMBINE(all, in0_Val4(v[at & 3u]))[l];
            }
        }
    }
    out[i] = out_pack(out_mask(finish(all, i), used));
}

// The later of two updates stays.
fn later_f(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return b;
}
fn later_i(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    return b;
}
