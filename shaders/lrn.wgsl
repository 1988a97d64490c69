// LOCAL_RESPONSE_NORMALIZATION: each element over a power of the sum of squares around it in the innermost dimension.

override WG: u32 = 64u;

struct Params {
    quads: u32,
    row: u32,
    width: u32,
    radius: u32,
    bias: f32,
    alpha: f32,
    beta: f32,
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
    let x = i % p.row;
    let base = i - x;
    let used = min(4u, p.width - x * 4u);
    var sum = vec4<f32>();
    for (var l = 0u; l < used; l++) {
        let c = x * 4u + l;
        let low = c - min(c, p.radius);
        let high = min(c + p.radius + 1u, p.width);
        for (var k = low; k < high; k++) {
            let v = in0_unpack(in0[base + (k >> 2u)])[k & 3u];
            sum[l] += v * v;
        }
    }
    let v = in0_unpack(in0[i]) * f_pow(p.bias + p.alpha * sum, vec4<f32>(-p.beta));
    out[i] = out_pack(out_mask(finish(v, i), used));
}
