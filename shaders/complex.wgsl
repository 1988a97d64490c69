// COMPLEX_ABS, REAL, IMAG: one number of each complex one, whose two lie side by side.

override WG: u32 = 64u;
// 0: magnitude, 1: real part, 2: imaginary part.
override PART: u32 = 0u;

struct Params {
    // Quads of the result, quads in a row of it, elements in a row, quads in a row of the operand.
    quads: u32,
    row: u32,
    width: u32,
    in_row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    if (i >= p.quads) {
        return;
    }
    let q = i % p.row;
    let at = (i / p.row) * p.in_row + 2u * q;
    let a = in0_unpack(in0[at]);
    var b = vec4<f32>();
    if (2u * q + 1u < p.in_row) {
        b = in0_unpack(in0[at + 1u]);
    }
    let re = vec4<f32>(a.xz, b.xz);
    let im = vec4<f32>(a.yw, b.yw);
    var y = re;
    if (PART == 2u) {
        y = im;
    }
    if (PART == 0u) {
        // Squares of large and small numbers leave the range of floats; a quotient of at most 1 does not.
        let most = max(abs(re), abs(im));
        let ratio = min(abs(re), abs(im)) / max(most, vec4<f32>(1e-37));
        y = most * sqrt(1.0 + ratio * ratio);
    }
    out[i] = out_pack(out_mask(finish(y, i), min(4u, p.width - q * 4u)));
}
