// MATRIX_DIAG and MATRIX_SET_DIAG: matrices with a given diagonal, and zeros or an operand's elements around it.

override WG: u32 = 64u;
// Around the diagonal lies the operand.
override AROUND: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    // Rows of a matrix, quads of a diagonal.
    height: u32,
    line: u32,
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
    let row = i / p.row;
    let r = row % p.height;
    var v = in0_Val4();
    if (AROUND == 1u) {
        v = in0_unpack(in0[i]);
    }
    // Row r of the diagonal's quad r / 4 holds its element in lane r % 4: here and there.
    if (r / 4u == x && r < p.width) {
        let e = in1_unpack(in1[(row / p.height) * p.line + x]);
        v = select(v, e, vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(r % 4u));
    }
    out[i] = out_pack(out_mask(finish(v, i), min(4u, p.width - x * 4u)));
}
