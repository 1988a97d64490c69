// Convolution in groups: output channel c reads the `depth` input channels from c / multiplier * depth on. A depthwise
// convolution with several outputs for an input channel is one with a depth of 1.
// An invocation computes one quad of one output pixel.

override WG: u32 = 64u;

struct Params {
    pixels: u32,
    image: u32,
    width: u32,
    per_image: f32,
    per_width: f32,
    h: u32,
    w: u32,
    // Output quads of a pixel, elements in the last of them, pairs of quads, input quads.
    nq: u32,
    tail: u32,
    octs: u32,
    cq: u32,
    multiplier: u32,
    depth: u32,
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
@group(0) @binding(1) var<storage, read> x: array<x_Elem4>;
@group(0) @binding(2) var<storage, read> w: array<w_Word>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;

fn divide(a: u32, d: u32, per: f32) -> u32 {
    let q = u32(i32(f32(i32(a)) * per));
    let r = i32(a - q * d);
    return select(select(q, q + 1u, r >= i32(d)), q - 1u, r < 0i);
}

fn element(at: u32, c: u32) -> acc_Val {
    let v = x_value(x_unpack(x[at + c / 4u]));
    let two = select(v.xy, v.zw, (c & 2u) != 0u);
    return select(two.x, two.y, (c & 1u) != 0u);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    let m = i / p.nq;
    if (m >= p.pixels) {
        return;
    }
    let quad = i - m * p.nq;
    let n = divide(m, p.image, p.per_image);
    let r = m - n * p.image;
    let oy = divide(r, p.width, p.per_width);
    let iy = i32(oy) * p.stride_y - p.pad_y;
    let ix = i32(r - oy * p.width) * p.stride_x - p.pad_x;
    let c = vec4<u32>(quad * 4u) + vec4<u32>(0u, 1u, 2u, 3u);
    let channel = min(c / vec4<u32>(p.multiplier) * p.depth, vec4<u32>(p.cq * 4u - p.depth));
    var sum = acc_Val4();
    for (var ky = 0u; ky < p.kh; ky++) {
        let y = u32(iy + i32(ky) * p.dilation_y);
        for (var kx = 0u; kx < p.kw; kx++) {
            let xx = u32(ix + i32(kx) * p.dilation_x);
            if (y < p.h && xx < p.w) {
                let at = ((n * p.h + y) * p.w + xx) * p.cq;
                for (var j = 0u; j < p.depth; j++) {
                    let d = channel + vec4<u32>(j);
                    let a = acc_Val4(element(at, d.x), element(at, d.y), element(at, d.z), element(at, d.w));
                    let pair = ((ky * p.kw + kx) * p.depth + j) * p.octs * 2u + (quad & ~1u);
                    let b = w_load8(pair, pair + 1u);
                    sum += a * select(w_value(b.lo), w_value(b.hi), (quad & 1u) != 0u);
                }
            }
        }
    }
    let v = finish(result(sum, quad_chans(quad)), i);
    out[i] = out_pack(out_mask(v, select(4u, p.tail, quad + 1u == p.nq)));
}
