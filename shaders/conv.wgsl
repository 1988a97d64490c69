// Convolution; the matrix products are its 1x1 case, and a transposed convolution is one of these for each phase of its
// stride, which is why output pixels may lie apart. An invocation computes eight output
// channels of two output pixels; the eight invocations of a workgroup have neighbouring pixels and the same channels.
// The filter's rows run through one flat loop, two quads a step: weights are packed as [channel][step][8], a step never
// crosses a filter row, and within a tap channels are padded to p.tap quads. Where p.tap is odd (only with x read by
// single quads and no dilation) a step may hold the end of one tap and the beginning of the next.

override WG: u32 = 8u;

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
        var kx1 = kx;
        if (POINT == 0u) {
            let wrap = c1 == p.tap;
            kx1 = select(kx, kx + 1u, wrap);
            c1 = select(c1, 0u, wrap);
        }
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
    let mc = my_chan(lane % 8u, channel);
    let low = chan4(
        pick_chan(mc, channel, 0u), pick_chan(mc, channel, 1u), pick_chan(mc, channel, 2u), pick_chan(mc, channel, 3u),
    );
    let high = chan4(
        pick_chan(mc, channel, 4u), pick_chan(mc, channel, 5u), pick_chan(mc, channel, 6u), pick_chan(mc, channel, 7u),
    );
    let to = wg.z * p.to_batch;
    // A loop: the epilogue is long, and is compiled once this way.
    for (var i = 0u; i < 2u; i++) {
        write(pixel + i * WG < p.pixels, to + o0.to, channel / 4u, low, high, a0, a1);
        a0 = b0;
        a1 = b1;
        o0 = o1;
    }
}
