// Rows of floats as a cell with 8-bit weights sees them: each rounded to 8 bits over its own range, and back. A workgroup
// takes a row.

override WG: u32 = 32u;
// The zero point moves, so that both ends of the range are used.
override ASYMMETRIC: u32 = 0u;

struct Params {
    rows: u32,
    // Quads of a row.
    row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> low: array<vec4<f32>, WG>;
var<workgroup> high: array<vec4<f32>, WG>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let r = linear_group(wg, count);
    if (r >= p.rows) {
        return;
    }
    var a = vec4<f32>();
    var b = vec4<f32>();
    for (var q = local; q < p.row; q += WG) {
        let v = in0_unpack(in0[r * p.row + q]);
        a = min(a, v);
        b = max(b, v);
    }
    low[local] = a;
    high[local] = b;
    workgroupBarrier();
    for (var i = 0u; i < min(WG, p.row); i++) {
        a = min(a, low[i]);
        b = max(b, high[i]);
    }
    let g = f_grid(a, b, ASYMMETRIC == 1u);
    for (var q = local; q < p.row; q += WG) {
        let at = r * p.row + q;
        out[at] = out_pack(f_snap(in0_unpack(in0[at]), g));
    }
}
