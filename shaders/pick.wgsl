// SELECT: where the condition holds the first operand's element, elsewhere the second's; all three broadcast.
// Indexing as in binary.wgsl.

override WG: u32 = 64u;
// Bits: 1 the condition, 2 the first operand, 4 the second.
override SPLAT: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    ndims: u32,
    // (size, stride of the condition, of the first operand, of the second), innermost first.
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> cond: array<u32>;
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
    let x = i % p.row;
    var at = vec3<u32>(x) * (vec3<u32>(1u) - (vec3<u32>(SPLAT, SPLAT >> 1u, SPLAT >> 2u) & vec3<u32>(1u)));
    var rest = i / p.row;
    for (var d = 0u; d < p.ndims; d++) {
        let dim = p.dims[d];
        let c = rest % dim.x;
        rest /= dim.x;
        at += c * dim.yzw;
    }
    var c = unpack4xU8(cond[at.x]);
    var a = in0_unpack(in0[at.y]);
    var b = in1_unpack(in1[at.z]);
    if ((SPLAT & 1u) != 0u) {
        c = vec4<u32>(c.x);
    }
    if ((SPLAT & 2u) != 0u) {
        a = in0_Val4(a.x);
    }
    if ((SPLAT & 4u) != 0u) {
        b = in1_Val4(b.x);
    }
    let n = select(4u, p.tail, x == p.row - 1u);
    out[i] = out_pack(out_mask(select(b, a, c != vec4<u32>()), n));
}
