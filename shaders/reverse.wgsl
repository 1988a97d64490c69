// REVERSE_SEQUENCE: in each batch the first elements along one dimension, as many as another buffer says, in reverse
// order. A length out of range reverses nothing.

override WG: u32 = 64u;
// Neither dimension is the innermost: whole quads move.
override VEC: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    // Of the reversed dimension and of the batch: the size, and the elements behind it.
    steps: u32,
    behind_step: u32,
    batch: u32,
    behind_batch: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> lengths: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

// The address of what goes to the element of that number.
fn source(number: u32) -> u32 {
    let s = (number / p.behind_step) % p.steps;
    let b = (number / p.behind_batch) % p.batch;
    let n = u32(lengths[b >> 2u][b & 3u]);
    // Modulo 2^32: the distance may be negative.
    let origin = number + select(0u, (n - 1u - 2u * s) * p.behind_step, n <= p.steps && s < n);
    return (origin / p.width) * p.row * 4u + origin % p.width;
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
    var v = in0_Val4();
    for (var l = 0u; l < select(used, 1u, VEC == 1u); l++) {
        let at = source(number + l);
        let e = in0_unpack(in0[at >> 2u]);
        if (VEC == 1u) {
            v = e;
        } else {
            v[l] = e[at & 3u];
        }
    }
    out[i] = out_pack(out_mask(finish(v, i), used));
}
