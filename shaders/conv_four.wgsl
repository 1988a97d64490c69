// conv.wgsl for software adapters with subgroups of four. There every word that an invocation reads costs far more than a
// product, so an invocation takes four pixels, and reads the weights of two of the eight channels, which the subgroup
// passes round. The parameters are those of conv.wgsl.

override WG: u32 = 16u;

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

// The weights of eight channels in one step.
struct Rows {
    r0: Factors,
    r1: Factors,
    r2: Factors,
    r3: Factors,
    r4: Factors,
    r5: Factors,
    r6: Factors,
    r7: Factors,
}

// Sums of eight channels.
struct Sums {
    lo: acc_Val4,
    hi: acc_Val4,
}

fn add(a: Sums, f: Factors, r: Rows) -> Sums {
    return Sums(
        a.lo + acc_Val4(dot8(f, r.r0), dot8(f, r.r1), dot8(f, r.r2), dot8(f, r.r3)),
        a.hi + acc_Val4(dot8(f, r.r4), dot8(f, r.r5), dot8(f, r.r6), dot8(f, r.r7)),
    );
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) team: u32,
) {
    let channel = wg.y * 8u;
    let pixel = (wg.z * p.more_tiles + wg.x) * (4u * WG) + lane;
    var o0 = origin(pixel);
    var o1 = origin(pixel + WG);
    var o2 = origin(pixel + 2u * WG);
    var o3 = origin(pixel + 3u * WG);
    let base = wg.z * p.x_batch;
    o0.base += base;
    o1.base += base;
    o2.base += base;
    o3.base += base;
    // Weights end with the last channel: those past it repeat it, and are masked in the result.
    let last = (p.nq - 1u) * 4u + p.tail - 1u - channel;
    let first = wg.z * p.w_batch + channel * p.steps;
    let first_a = first + min(team % 4u, last) * p.steps;
    let first_b = first + min(team % 4u + 4u, last) * p.steps;
    var s0 = Sums();
    var s1 = Sums();
    var s2 = Sums();
    var s3 = Sums();
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
        let a = weights(first_a + s);
        let b = weights(first_b + s);
        let r = Rows(
            Factors(subgroupBroadcast(a.lo, 0u), subgroupBroadcast(a.hi, 0u)),
            Factors(subgroupBroadcast(a.lo, 1u), subgroupBroadcast(a.hi, 1u)),
            Factors(subgroupBroadcast(a.lo, 2u), subgroupBroadcast(a.hi, 2u)),
            Factors(subgroupBroadcast(a.lo, 3u), subgroupBroadcast(a.hi, 3u)),
            Factors(subgroupBroadcast(b.lo, 0u), subgroupBroadcast(b.hi, 0u)),
            Factors(subgroupBroadcast(b.lo, 1u), subgroupBroadcast(b.hi, 1u)),
            Factors(subgroupBroadcast(b.lo, 2u), subgroupBroadcast(b.hi, 2u)),
            Factors(subgroupBroadcast(b.lo, 3u), subgroupBroadcast(b.hi, 3u)),
        );
        s0 = add(s0, factors(o0, dy, dx0, c, dx1, c1, ok1), r);
        s1 = add(s1, factors(o1, dy, dx0, c, dx1, c1, ok1), r);
        s2 = add(s2, factors(o2, dy, dx0, c, dx1, c1, ok1), r);
        s3 = add(s3, factors(o3, dy, dx0, c, dx1, c1, ok1), r);
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
    let low = chan4(chan(channel), chan(channel + 1u), chan(channel + 2u), chan(channel + 3u));
    let high = chan4(chan(channel + 4u), chan(channel + 5u), chan(channel + 6u), chan(channel + 7u));
    let to = wg.z * p.to_batch;
    // A loop: the epilogue is long, and is compiled once this way.
    for (var i = 0u; i < 4u; i++) {
        write(pixel + i * WG < p.pixels, to + o0.to, channel / 4u, low, high, s0.lo, s0.hi);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        o0 = o1;
        o1 = o2;
        o2 = o3;
    }
}
