// What conv.wgsl, conv_four.wgsl and conv_tile.wgsl begin with: parameters, where a pixel lies, and how its results are written.

// A product of matrices, as a convolution of one tap is: pixels lie one behind the other, and no window reaches outside.
// 2 where a pixel has an even number of quads, 1 where it has an odd one.
override POINT: u32 = 0u;

struct Params {
    // Output pixels, pixels in an image, in a row, and their reciprocals.
    pixels: u32,
    image: u32,
    width: u32,
    per_image: f32,
    per_width: f32,
    // Input rows, columns and quads of a pixel.
    h: u32,
    w: u32,
    cq: u32,
    stride_y: i32,
    stride_x: i32,
    pad_y: i32,
    pad_x: i32,
    dilation_y: i32,
    dilation_x: i32,
    // Filter columns, quads of a tap in the weights, steps of the whole filter.
    kw: u32,
    tap: u32,
    steps: u32,
    // Output quads of a pixel, and elements in the last of them.
    nq: u32,
    tail: u32,
    // Where output pixels lie: the first, and the distance of images, rows and columns, in pixels.
    to: u32,
    to_image: u32,
    to_row: u32,
    to_column: u32,
    // What wg.z counts: further pixel tiles, or matrices at these distances (input quads, steps, output pixels).
    more_tiles: u32,
    x_batch: u32,
    w_batch: u32,
    to_batch: u32,
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

// Where an output pixel's window begins, and where the pixel goes.
struct Origin {
    base: u32,
    y: i32,
    x: i32,
    to: u32,
}

// a / d for a / d below 2^22: the float quotient is off by one at most.
fn divide(a: u32, d: u32, per: f32) -> u32 {
    let q = u32(i32(f32(i32(a)) * per));
    let r = i32(a - q * d);
    return select(select(q, q + 1u, r >= i32(d)), q - 1u, r < 0i);
}

fn origin(pixel: u32) -> Origin {
    let m = min(pixel, p.pixels - 1u);
    if (POINT != 0u) {
        return Origin(m * p.cq, 0, 0, p.to + m);
    }
    let n = divide(m, p.image, p.per_image);
    let r = m - n * p.image;
    let y = divide(r, p.width, p.per_width);
    let x = r - y * p.width;
    return Origin(
        n * p.h * p.w * p.cq,
        i32(y) * p.stride_y - p.pad_y,
        i32(x) * p.stride_x - p.pad_x,
        p.to + n * p.to_image + y * p.to_row + x * p.to_column,
    );
}

// Eight factors of a dot product.
struct Factors {
    lo: Factor4,
    hi: Factor4,
}

fn weights(step: u32) -> Factors {
    let v = w_load8(2u * step, 2u * step + 1u);
    return Factors(w_factor(v.lo), w_factor(v.hi));
}

// Quad c0 of the tap at (dy, dx0), and quad c1 of the tap at (dy, dx1); zeros outside.
fn factors(o: Origin, dy: i32, dx0: i32, c0: u32, dx1: i32, c1: u32, ok1: bool) -> Factors {
    if (POINT == 2u) {
        let v = x_load8(o.base + c0, o.base + c1);
        return Factors(x_factor(v.lo), x_factor(v.hi));
    }
    if (POINT == 1u) {
        let v = x_load8(o.base + c0, o.base + select(c0, c1, ok1));
        return Factors(x_factor(v.lo), select(outside(), x_factor(v.hi), ok1));
    }
    let y = u32(o.y + dy);
    let x0 = u32(o.x + dx0);
    let x1 = u32(o.x + dx1);
    let in0 = y < p.h && x0 < p.w;
    let in1 = y < p.h && x1 < p.w && ok1;
    let at = o.base + y * p.w * p.cq;
    let v = x_load8(select(0u, at + x0 * p.cq + c0, in0), select(0u, at + x1 * p.cq + c1, in1));
    return Factors(select(outside(), x_factor(v.lo), in0), select(outside(), x_factor(v.hi), in1));
}

fn dot8(a: Factors, b: Factors) -> acc_Val {
    return dot4(a.lo, b.lo) + dot4(a.hi, b.hi);
}

fn write(wanted: bool, pixel: u32, quad: u32, c0: Chan4, c1: Chan4, lo: acc_Val4, hi: acc_Val4) {
    if (!wanted) {
        return;
    }
    let at = pixel * p.nq + quad;
    let two = quad + 1u < p.nq;
    let a = finish(result(lo, c0), at);
    let b = finish(result(hi, c1), at + 1u);
    out_store8(at, two, out_mask(a, select(p.tail, 4u, two)), out_mask(b, select(p.tail, 4u, quad + 2u < p.nq)));
}

