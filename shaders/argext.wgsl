// ARG_MAX and ARG_MIN along one axis: the first index of the extreme value.

override WG: u32 = 64u;
override LEAST: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    ndims: u32,
    // Elements along the axis, and their distance.
    count: u32,
    stride: u32,
    pad0: u32,
    pad1: u32,
    // Kept dimensions: (size, stride in elements), innermost first.
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

fn element(at: u32) -> in0_Val {
    return in0_unpack(in0[at >> 2u])[at & 3u];
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
    var result = vec4<i32>();
    for (var l = 0u; l < 4u; l++) {
        let x = (i % p.row) * 4u + l;
        if (x >= p.width) {
            break;
        }
        var rest = (i / p.row) * p.width + x;
        var at = 0u;
        for (var d = 0u; d < p.ndims; d++) {
            let dim = p.dims[d];
            at += (rest % dim.x) * dim.y;
            rest /= dim.x;
        }
        var best = element(at);
        var index = 0u;
        for (var k = 1u; k < p.count; k++) {
            let v = element(at + k * p.stride);
            if ((LEAST == 0u && v > best) || (LEAST == 1u && v < best)) {
                best = v;
                index = k;
            }
        }
        result[l] = i32(index);
    }
    out[i] = out_pack(result);
}
