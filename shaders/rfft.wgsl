// RFFT2D along rows: a real row of 2 * HALF elements through a complex transform of half its length, with even samples
// as real and odd ones as imaginary parts. A workgroup transforms a row in its own memory.

override WG: u32 = 64u;
// Complex points, a power of two.
override HALF: u32 = 256u;

struct Params {
    // Rows of the result, and of them in a slice; rows of the operand in a slice, quads in such a row.
    rows: u32,
    height: u32,
    in_height: u32,
    in_row: u32,
    // Quads in a row of the result, elements in it.
    row: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
// exp(-pi i k / HALF) for k below HALF.
@group(0) @binding(2) var<storage, read> twiddles: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> z: array<vec2<f32>, HALF>;

fn product(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

fn bin(k: u32) -> vec2<f32> {
    let a = z[k % HALF];
    let b = z[(HALF - k) % HALF];
    let even = 0.5 * vec2<f32>(a.x + b.x, a.y - b.y);
    let odd = 0.5 * vec2<f32>(a.y + b.y, b.x - a.x);
    if (k == HALF) {
        return even - odd;
    }
    return even + product(odd, twiddles[k]);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let r = linear_group(wg, count);
    if (r >= p.rows) {
        return;
    }
    let y = r % p.height;
    let start = ((r / p.height) * p.in_height + y) * p.in_row;
    let used = select(0u, p.in_row, y < p.in_height);
    let shift = (32u - countTrailingZeros(HALF)) & 31u;
    for (var i = local; i < HALF; i += WG) {
        var pair = vec2<f32>();
        if (i / 2u < used) {
            let v = in0_unpack(in0[start + i / 2u]);
            pair = select(v.xy, v.zw, (i & 1u) == 1u);
        }
        z[reverseBits(i) >> shift] = pair;
    }
    for (var half = 1u; half < HALF; half *= 2u) {
        workgroupBarrier();
        for (var b = local; b < HALF / 2u; b += WG) {
            let k = b % half;
            let at = (b - k) * 2u + k;
            let c = product(z[at + half], twiddles[k * (HALF / half)]);
            z[at + half] = z[at] - c;
            z[at] += c;
        }
    }
    workgroupBarrier();
    for (var q = local; q < p.row; q += WG) {
        var v = vec4<f32>(bin(2u * q), 0.0, 0.0);
        if (2u * q < HALF) {
            v = vec4<f32>(v.xy, bin(2u * q + 1u));
        }
        out[r * p.row + q] = out_pack(v);
    }
}
