// conv.wgsl for software adapters with subgroups of four. There every word that an invocation reads costs far more than a
// product, so an invocation takes four pixels, and reads the weights of two of the eight channels, which the subgroup
// passes round. The parameters are those of conv.wgsl.

override WG: u32 = 16u;

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
        var kx1 = kx;
        if (POINT == 0u) {
            let wrap = c1 == p.tap;
            kx1 = select(kx, kx + 1u, wrap);
            c1 = select(c1, 0u, wrap);
        }
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
