// Element-wise with two operands and full broadcasting. Rows (everything but the innermost dimension) are numbered by
// the output; `dims` gives each operand's stride in quads along them, 0 where it is broadcast. In the innermost
// dimension an operand is read by quads, or its one element is spread (SPLAT bits: 1 the first, 2 the second).

override WG: u32 = 64u;
override SPLAT: u32 = 0u;
// Both operands are laid out as the output is.
override SAME: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    ndims: u32,
    // (size, stride of the first operand, of the second, -), innermost first.
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read> in1: array<in1_Elem4>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

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
    var a = in0_unpack(in0[i0]);
    var b = in1_unpack(in1[i1]);
    if ((SPLAT & 1u) != 0u) {
        a = in0_Val4(a.x);
    }
    if ((SPLAT & 2u) != 0u) {
        b = in1_Val4(b.x);
    }
    let n = select(4u, p.tail, x == p.row - 1u);
    out[i] = out_pack(out_mask(finish(OP(a, b), i), n));
}
