// Convolution; the matrix products are its 1x1 case, and a transposed convolution is one of these for each phase of its
// stride, which is why output pixels may lie apart. An invocation computes eight output
// channels of two output pixels; the eight invocations of a workgroup have neighbouring pixels and the same channels.
// The filter's rows run through one flat loop, two quads a step: weights are packed as [channel][step][8], a step never
// crosses a filter row, and within a tap channels are padded to p.tap quads. Where p.tap is odd (only with x read by
// single quads and no dilation) a step may hold the end of one tap and the beginning of the next.

override WG: u32 = 8u;

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
    let q = u32(f32(a) * per);
    let r = i32(a - q * d);
    return select(select(q, q + 1u, r >= i32(d)), q - 1u, r < 0i);
}

fn origin(pixel: u32) -> Origin {
    let m = min(pixel, p.pixels - 1u);
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
    lo: acc_Val4,
    hi: acc_Val4,
}

fn weights(step: u32) -> Factors {
    let v = w_load8(2u * step, 2u * step + 1u);
    return Factors(w_value(v.lo), w_value(v.hi));
}

// Quad c0 of the tap at (dy, dx0), and quad c1 of the tap at (dy, dx1); zeros outside.
fn factors(o: Origin, dy: i32, dx0: i32, c0: u32, dx1: i32, c1: u32, ok1: bool) -> Factors {
    let y = u32(o.y + dy);
    let x0 = u32(o.x + dx0);
    let x1 = u32(o.x + dx1);
    let in0 = y < p.h && x0 < p.w;
    let in1 = y < p.h && x1 < p.w && ok1;
    let at = o.base + y * p.w * p.cq;
    let v = x_load8(select(0u, at + x0 * p.cq + c0, in0), select(0u, at + x1 * p.cq + c1, in1));
    return Factors(select(acc_Val4(), x_value(v.lo), in0), select(acc_Val4(), x_value(v.hi), in1));
}

fn dot8(a: Factors, b: Factors) -> acc_Val {
    return dot(a.lo, b.lo) + dot(a.hi, b.hi);
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

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let channel = wg.y * 8u;
    let pixel = (wg.z * p.more_tiles + wg.x) * (2u * WG) + lane;
    var o0 = origin(pixel);
    var o1 = origin(pixel + WG);
    o0.base += wg.z * p.x_batch;
    o1.base += wg.z * p.x_batch;
    let first = wg.z * p.w_batch + channel * p.steps;
    // Weights end with the last channel: those past it repeat it, and are masked in the result.
    let last = (p.nq - 1u) * 4u + p.tail - 1u - channel;
    var a0 = acc_Val4();
    var a1 = acc_Val4();
    var b0 = acc_Val4();
    var b1 = acc_Val4();
    // The tap and the quad in it of the step's first half.
    var dy = 0i;
    var kx = 0u;
    var c = 0u;
    for (var s = 0u; s < p.steps; s++) {
        var c1 = c + 1u;
        let wrap = c1 == p.tap;
        let kx1 = select(kx, kx + 1u, wrap);
        c1 = select(c1, 0u, wrap);
        let dx0 = i32(kx) * p.dilation_x;
        let dx1 = i32(kx1) * p.dilation_x;
        let ok1 = kx1 < p.kw && c1 < p.cq;
        let f = factors(o0, dy, dx0, c, dx1, c1, ok1);
        let g = factors(o1, dy, dx0, c, dx1, c1, ok1);
        let at = first + s;
        let m = mine(min(lane % 8u, last), at);
        let r0 = row(m, at, 0u, last);
        a0.x += dot8(f, r0);
        b0.x += dot8(g, r0);
        let r1 = row(m, at, 1u, last);
        a0.y += dot8(f, r1);
        b0.y += dot8(g, r1);
        let r2 = row(m, at, 2u, last);
        a0.z += dot8(f, r2);
        b0.z += dot8(g, r2);
        let r3 = row(m, at, 3u, last);
        a0.w += dot8(f, r3);
        b0.w += dot8(g, r3);
        let r4 = row(m, at, 4u, last);
        a1.x += dot8(f, r4);
        b1.x += dot8(g, r4);
        let r5 = row(m, at, 5u, last);
        a1.y += dot8(f, r5);
        b1.y += dot8(g, r5);
        let r6 = row(m, at, 6u, last);
        a1.z += dot8(f, r6);
        b1.z += dot8(g, r6);
        let r7 = row(m, at, 7u, last);
        a1.w += dot8(f, r7);
        b1.w += dot8(g, r7);
        // On to the next step.
        c1 += 1u;
        let next = c1 == p.tap;
        c = select(c1, 0u, next);
        kx = select(kx1, kx1 + 1u, next);
        let down = kx >= p.kw;
        kx = select(kx, 0u, down);
        c = select(c, 0u, down);
        dy = select(dy, dy + p.dilation_y, down);
    }
    let mc = my_chan(lane % 8u, channel);
    let low = chan4(
        pick_chan(mc, channel, 0u), pick_chan(mc, channel, 1u), pick_chan(mc, channel, 2u), pick_chan(mc, channel, 3u),
    );
    let high = chan4(
        pick_chan(mc, channel, 4u), pick_chan(mc, channel, 5u), pick_chan(mc, channel, 6u), pick_chan(mc, channel, 7u),
    );
    let to = wg.z * p.to_batch;
    write(pixel < p.pixels, to + o0.to, channel / 4u, low, high, a0, a1);
    write(pixel + WG < p.pixels, to + o1.to, channel / 4u, low, high, b0, b1);
}
