// Depthwise convolution with as many outputs as inputs. An invocation computes eight channels of one output pixel.

override WG: u32 = 64u;

struct Params {
    // Output pixels, pixels in an image, in a row, and their reciprocals.
    pixels: u32,
    image: u32,
    width: u32,
    per_image: f32,
    per_width: f32,
    h: u32,
    w: u32,
    // Quads of a pixel, elements in the last of them, and pairs of quads.
    nq: u32,
    tail: u32,
    octs: u32,
    stride_y: i32,
    stride_x: i32,
    pad_y: i32,
    pad_x: i32,
    dilation_y: i32,
    dilation_x: i32,
    kh: u32,
    kw: u32,
    x_zero: i32,
    w_zero: i32,
    out_zero: i32,
    low: Limit,
    high: Limit,
    swish: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<x_Word>;
@group(0) @binding(2) var<storage, read> w: array<w_Word>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Word>;

// a / d for a / d below 2^22: the float quotient is off by one at most.
fn divide(a: u32, d: u32, per: f32) -> u32 {
    let q = u32(i32(f32(i32(a)) * per));
    let r = i32(a - q * d);
    return select(select(q, q + 1u, r >= i32(d)), q - 1u, r < 0i);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    let m = i / p.octs;
    if (m >= p.pixels) {
        return;
    }
    let quad = (i - m * p.octs) * 2u;
    let n = divide(m, p.image, p.per_image);
    let r = m - n * p.image;
    let oy = divide(r, p.width, p.per_width);
    let iy = i32(oy) * p.stride_y - p.pad_y;
    let ix = i32(r - oy * p.width) * p.stride_x - p.pad_x;
    let two = quad + 1u < p.nq;
    let second = select(quad, quad + 1u, two);
    var lo = acc_Val4();
    var hi = acc_Val4();
    for (var ky = 0u; ky < p.kh; ky++) {
        let y = u32(iy + i32(ky) * p.dilation_y);
        for (var kx = 0u; kx < p.kw; kx++) {
            let xx = u32(ix + i32(kx) * p.dilation_x);
            if (y < p.h && xx < p.w) {
                let at = ((n * p.h + y) * p.w + xx) * p.nq;
                let a = x_load8(at + quad, at + second);
                let tap = (ky * p.kw + kx) * p.octs * 2u + quad;
                let b = w_load8(tap, tap + 1u);
                lo += x_value(a.lo) * w_value(b.lo);
                hi += x_value(a.hi) * w_value(b.hi);
            }
        }
    }
    let at = m * p.nq + quad;
    let a = finish(result(lo, quad_chans(quad)), at);
    let b = finish(result(hi, quad_chans(quad + 1u)), at + 1u);
    out_store8(at, two, out_mask(a, select(p.tail, 4u, two)), out_mask(b, select(p.tail, 4u, quad + 2u < p.nq)));
}
