// Two 8-bit operands to 8 bits by a table of 65,536 bytes, with full broadcasting: what has no arithmetic of few steps. The
// table holds the results in the order of the first byte, then the second (0 to 255 as unsigned). Indexing as in binary.wgsl.

override WG: u32 = 64u;
override SPLAT: u32 = 0u;
override SAME: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    ndims: u32,
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<u32>;
@group(0) @binding(2) var<storage, read> in1: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<u32>;

fn entry(a: u32, b: u32) -> u32 {
    return extractBits(table[a * 64u + (b >> 2u)], (b & 3u) * 8u, 8u);
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
    var a = unpack4xU8(in0[i0]);
    var b = unpack4xU8(in1[i1]);
    if ((SPLAT & 1u) != 0u) {
        a = vec4<u32>(a.x);
    }
    if ((SPLAT & 2u) != 0u) {
        b = vec4<u32>(b.x);
    }
    let r = entry(a.x, b.x) | (entry(a.y, b.y) << 8u) | (entry(a.z, b.z) << 16u) | (entry(a.w, b.w) << 24u);
    out[i] = extractBits(r, 0u, select(4u, p.tail, x == p.row - 1u) * 8u);
}
