// DYNAMIC_UPDATE_SLICE: the operand, with an update laid over it from a place on that another buffer names. The place is
// moved so that the update fits.

override WG: u32 = 64u;
// Rows of the update are whole rows of the operand.
override VEC: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    ndims: u32,
    // (size, the update's size, stride in the update's memory, where its first index stands), innermost first.
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> first: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(3) var<storage, read> in1: array<in1_Elem4>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;

// Where the update holds the element of that number, or -1.
fn place(number: u32) -> i32 {
    var rest = number;
    var at = 0u;
    for (var d = 0u; d < p.ndims; d++) {
        let dim = p.dims[d];
        let low = u32(clamp(first[dim.w >> 2u][dim.w & 3u], 0, i32(dim.x - dim.y)));
        let c = rest % dim.x;
        rest /= dim.x;
        if (c < low || c - low >= dim.y) {
            return -1;
        }
        at += (c - low) * dim.z;
    }
    return i32(at);
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
    var v = in0_unpack(in0[i]);
    for (var l = 0u; l < select(used, 1u, VEC == 1u); l++) {
        let at = place(number + l);
        if (at >= 0) {
            let e = in1_unpack(in1[u32(at) >> 2u]);
            if (VEC == 1u) {
                v = e;
            } else {
                v[l] = e[u32(at) & 3u];
            }
        }
    }
    out[i] = out_pack(out_mask(finish(v, i), used));
}
