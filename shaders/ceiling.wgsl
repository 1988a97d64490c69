// What an adapter can do at most: multiplications and additions in registers, as many as STEPS says, and one quad read
// and one written.

override WG: u32 = 64u;
override STEPS: u32 = 0u;

struct Params {
    quads: u32,
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
    let x = in0_unpack(in0[i]);
    // Eight chains: none waits for the one before. They stay small whatever x is.
    let f = clamp(x, vec4<f32>(-0.5), vec4<f32>(0.5));
    var a = x;
    var b = x + vec4<f32>(1.0);
    var c = x + vec4<f32>(2.0);
    var d = x + vec4<f32>(3.0);
    var e = x + vec4<f32>(4.0);
    var g = x + vec4<f32>(5.0);
    var h = x + vec4<f32>(6.0);
    var k = x + vec4<f32>(7.0);
    for (var s = 0u; s < STEPS; s++) {
        a = fma(a, f, x);
        b = fma(b, f, x);
        c = fma(c, f, x);
        d = fma(d, f, x);
        e = fma(e, f, x);
        g = fma(g, f, x);
        h = fma(h, f, x);
        k = fma(k, f, x);
    }
    out[i] = out_pack(a + b + c + d + e + g + h + k);
}
