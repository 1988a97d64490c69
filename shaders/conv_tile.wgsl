// conv.wgsl for GPUs and large products: a workgroup computes 64 channels of 64 pixels. In each step an invocation brings
// the factors of one pixel and the weights of one channel into workgroup memory, and multiplies those of eight pixels with
// those of eight channels. The parameters are those of conv.wgsl, and sums are made in the same order.

const WG: u32 = 64u;

// Steps take turns in two halves, so that one barrier a step is enough.
var<workgroup> pixels: array<Factors, 128>;
var<workgroup> channels: array<Factors, 128>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = (wg.z * p.more_tiles + wg.x) * WG;
    var mine = origin(tile + lane);
    mine.base += wg.z * p.x_batch;
    // Weights end with the last channel: those past it repeat it, and are masked in the result.
    let last = (p.nq - 1u) * 4u + p.tail - 1u;
    let first = wg.z * p.w_batch + min(wg.y * WG + lane, last) * p.steps;
    var s0 = Sums();
    var s1 = Sums();
    var s2 = Sums();
    var s3 = Sums();
    var s4 = Sums();
    var s5 = Sums();
    var s6 = Sums();
    var s7 = Sums();
    // The tap and the quad in it of the step's first half.
    var dy = 0i;
    var kx = 0u;
    var c = 0u;
    for (var s = 0u; s < p.steps; s++) {
        var c1 = c + 1u;
        var kx1 = kx;
        if (POINT == 0u) {
            let wrap = c1 == p.tap;
            kx1 = select(kx, kx + 1u, wrap);
            c1 = select(c1, 0u, wrap);
        }
        let dx0 = i32(kx) * p.dilation_x;
        let dx1 = i32(kx1) * p.dilation_x;
        let ok1 = kx1 < p.kw && c1 < p.cq;
        let half = (s % 2u) * WG;
        pixels[half + lane] = factors(mine, dy, dx0, c, dx1, c1, ok1);
        channels[half + lane] = weights(first + s);
        workgroupBarrier();
        let row = half + lane % 8u * 8u;
        let r = Rows(
            channels[row],
            channels[row + 1u],
            channels[row + 2u],
            channels[row + 3u],
            channels[row + 4u],
            channels[row + 5u],
            channels[row + 6u],
            channels[row + 7u],
        );
        let at = half + lane / 8u;
        s0 = add(s0, pixels[at + 0u], r);
        s1 = add(s1, pixels[at + 8u], r);
        s2 = add(s2, pixels[at + 16u], r);
        s3 = add(s3, pixels[at + 24u], r);
        s4 = add(s4, pixels[at + 32u], r);
        s5 = add(s5, pixels[at + 40u], r);
        s6 = add(s6, pixels[at + 48u], r);
        s7 = add(s7, pixels[at + 56u], r);
        // On to the next step.
        c1 += 1u;
        c = c1;
        if (POINT == 0u) {
            let next = c1 == p.tap;
            c = select(c1, 0u, next);
            kx = select(kx1, kx1 + 1u, next);
            let down = kx >= p.kw;
            kx = select(kx, 0u, down);
            c = select(c, 0u, down);
            dy = select(dy, dy + p.dilation_y, down);
        }
    }
    let channel = wg.y * WG + lane % 8u * 8u;
    let low = chan4(chan(channel), chan(channel + 1u), chan(channel + 2u), chan(channel + 3u));
    let high = chan4(chan(channel + 4u), chan(channel + 5u), chan(channel + 6u), chan(channel + 7u));
    let to = wg.z * p.to_batch;
    // A loop: the epilogue is long, and is compiled once this way.
    for (var i = 0u; i < 8u; i++) {
        let pixel = tile + lane / 8u + 8u * i;
        write(pixel < p.pixels && channel / 4u < p.nq, to + origin(pixel).to, channel / 4u, low, high, s0.lo, s0.hi);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}
