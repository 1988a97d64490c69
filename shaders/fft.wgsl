// RFFT2D along columns, after rows: a workgroup transforms two neighbouring columns of complex numbers, a quad of the
// row, in its own memory.

override WG: u32 = 64u;
// Points, a power of two.
override POINTS: u32 = 256u;

struct Params {
    // Pairs of columns in all slices; quads in a row.
    pairs: u32,
    row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
// exp(-2 pi i k / POINTS) for k below POINTS / 2.
@group(0) @binding(2) var<storage, read> twiddles: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> z: array<vec4<f32>, POINTS>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_group(wg, count);
    if (i >= p.pairs) {
        return;
    }
    let base = (i / p.row) * POINTS * p.row + i % p.row;
    let shift = (32u - countTrailingZeros(POINTS)) & 31u;
    for (var k = local; k < POINTS; k += WG) {
        z[reverseBits(k) >> shift] = in0_unpack(in0[base + k * p.row]);
    }
    for (var half = 1u; half < POINTS; half *= 2u) {
        workgroupBarrier();
        for (var b = local; b < POINTS / 2u; b += WG) {
            let k = b % half;
            let at = (b - k) * 2u + k;
            let t = twiddles[k * (POINTS / 2u / half)];
            let v = z[at + half];
            let c = v * t.x + vec4<f32>(-v.y, v.x, -v.w, v.z) * t.y;
            z[at + half] = z[at] - c;
            z[at] += c;
        }
    }
    workgroupBarrier();
    for (var k = local; k < POINTS; k += WG) {
        out[base + k * p.row] = out_pack(z[k]);
    }
}
