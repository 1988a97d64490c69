// Integers to 8 bits by 255 thresholds in ascending order: the least result, and one more for each that is reached. What a
// rounding of floats makes of an integer is such a ladder, to the last bit.

override WG: u32 = 64u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    least: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> rungs: array<i32>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

fn climb(x: i32) -> i32 {
    var n = 0u;
    for (var half = 128u; half > 0u; half /= 2u) {
        n = select(n, n + half, x >= rungs[n + half - 1u]);
    }
    return p.least + i32(n);
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
    let x = in0[i];
    let y = vec4<i32>(climb(x.x), climb(x.y), climb(x.z), climb(x.w));
    out[i] = out_pack(out_mask(y, select(4u, p.tail, i % p.row == p.row - 1u)));
}
