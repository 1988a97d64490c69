// GATHER, GATHER_ND and EMBEDDING_LOOKUP, element by element. An output element's number splits into (outer, index
// tuple, inner); the tuple's indices move the address along the gathered dimensions. An index out of range reads zero.

override WG: u32 = 64u;
// Whole quads of the innermost dimension are copied.
override VEC: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    // Indices in a tuple.
    depth: u32,
    // Elements after the gathered dimensions, tuples in a batch, outer elements in a batch.
    inner: u32,
    tuples: u32,
    outer: u32,
    // The innermost dimension of the input, and of it in memory.
    in_width: u32,
    in_pitch: u32,
    // Distance between outer elements in the input's memory.
    outer_stride: u32,
    // The innermost dimension of the indices, and of it in memory.
    idx_width: u32,
    idx_pitch: u32,
    // Of each index in a tuple: (size of the dimension, stride in memory).
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read> in1: array<vec4<i32>>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

fn index(number: u32) -> i32 {
    let at = (number / p.idx_width) * p.idx_pitch + number % p.idx_width;
    return in1[at >> 2u][at & 3u];
}

// The address of the output element of that number, or -1.
fn address(number: u32) -> i32 {
    let inner = number % p.inner;
    let rest = number / p.inner;
    let tuple = rest % p.tuples;
    let outer = rest / p.tuples;
    let batch = outer / p.outer;
    var at = outer * p.outer_stride + (inner / p.in_width) * p.in_pitch + inner % p.in_width;
    for (var k = 0u; k < p.depth; k++) {
        let dim = p.dims[k];
        let v = index((batch * p.tuples + tuple) * p.depth + k);
        if (v < 0 || u32(v) >= dim.x) {
            return -1;
        }
        at += u32(v) * dim.y;
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
    let start = (i / p.row) * p.width + x;
    var v = in0_Val4();
    if (VEC == 1u) {
        let at = address(start);
        if (at >= 0) {
            v = in0_unpack(in0[u32(at) >> 2u]);
        }
    } else {
        for (var l = 0u; l < min(4u, p.width - x); l++) {
            let at = address(start + l);
            if (at >= 0) {
                v[l] = in0_unpack(in0[u32(at) >> 2u])[u32(at) & 3u];
            }
        }
    }
    out[i] = out_pack(out_mask(finish(v, i), min(4u, p.width - x)));
}
