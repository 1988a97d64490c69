// Moves elements: every layout operator is this kernel. A region of the output is numbered row by row; `dims` splits
// an element's number into coordinates (innermost first), each with a stride into the input's padded memory. What
// falls outside [low, high) of a dimension is padding: a constant, or the mirror image.

override WG: u32 = 64u;
// Whole quads are contiguous and aligned on both sides.
override VEC: u32 = 0u;
// 0 nothing outside, 1 constant, 2 mirror without the edge, 3 mirror with it.
override PAD: u32 = 0u;

struct Params {
    // Quads in the region.
    quads: u32,
    // Quads that a row of the region touches.
    row: u32,
    // Elements in a row of the region.
    width: u32,
    ndims: u32,
    // Output row of region row r: (r / group) * pitch + r % group + first.
    group: u32,
    pitch: u32,
    first: u32,
    // Quads in an output row.
    out_row: u32,
    // The region's first quad and lane in an output row.
    quad0: u32,
    lane0: u32,
    // Address of the element with all coordinates 0.
    base: i32,
    // The constant outside, as f32 or i32 bits.
    outside: u32,
    // (size, stride, low, high).
    dims: array<vec4<i32>, 8>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

// Reads the element of that number, or the quad that starts with it.
fn fetch(number: u32) -> in0_Val4 {
    var rest = i32(number);
    var at = p.base;
    var inside = true;
    for (var d = 0u; d < p.ndims; d++) {
        let dim = p.dims[d];
        var c = rest % dim.x;
        rest /= dim.x;
        if (PAD == 1u) {
            inside = inside && c >= dim.z && c < dim.w;
        }
        if (PAD >= 2u) {
            let edge = i32(PAD) - 2;
            if (c < dim.z) {
                c = 2 * dim.z - c - edge;
            }
            if (c >= dim.w) {
                c = 2 * dim.w - 2 + edge - c;
            }
        }
        at += c * dim.y;
    }
    if (PAD == 1u && !inside) {
        return in0_Val4(bitcast<in0_Val>(p.outside));
    }
    let e = in0_unpack(in0[u32(at) >> 2u]);
    if (VEC == 1u) {
        return e;
    }
    return in0_Val4(e[u32(at) & 3u]);
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
    let r = i / p.row;
    let x = i % p.row;
    let o = ((r / p.group) * p.pitch + r % p.group + p.first) * p.out_row + p.quad0 + x;
    let start = r * p.width;
    if (VEC == 1u) {
        let n = min(4u, p.width - x * 4u);
        out[o] = out_pack(out_mask(finish(fetch(start + x * 4u), o), n));
        return;
    }
    // Lanes before the region belong to what was written there earlier; lanes behind it are zero until they are
    // written, or padding.
    var v = in0_Val4();
    var keep = vec4<bool>(false);
    for (var l = 0u; l < 4u; l++) {
        let e = x * 4u + l;
        if (e >= p.lane0 && e - p.lane0 < p.width) {
            v[l] = fetch(start + e - p.lane0).x;
            keep[l] = true;
        }
    }
    var y = select(out_Val4(), finish(v, o), keep);
    if (x == 0u && p.lane0 > 0u) {
        y = select(out_unpack(out[o]), y, vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(p.lane0));
    }
    out[o] = out_pack(y);
}
