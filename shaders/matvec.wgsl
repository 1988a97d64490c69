// A matrix product with a constant right side for few rows: an invocation, or several of them, each with every SPLIT-th
// step, compute four columns of one row. Weights are packed as for conv.wgsl.

override WG: u32 = 8u;

struct Params {
    rows: u32,
    // Input quads of a row, steps of eight, output quads of a row, elements in the last of them.
    cq: u32,
    steps: u32,
    nq: u32,
    tail: u32,
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
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;

fn product(xl: Factor4, xh: Factor4, step: u32) -> acc_Val {
    let v = w_load8(2u * step, 2u * step + 1u);
    return dot4(xl, w_factor(v.lo)) + dot4(xh, w_factor(v.hi));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let wanted = wg.x * (WG / SPLIT) + lane / SPLIT;
    let quad = min(wanted, p.nq - 1u);
    let row = wg.y * p.cq;
    let first = quad * 4u * p.steps;
    // Weights end with the last channel: those past it repeat it, and are masked in the result.
    let last = select(3u, p.tail - 1u, quad + 1u == p.nq);
    var sum = acc_Val4();
    for (var s = lane % SPLIT; s < p.steps; s += SPLIT) {
        let c = 2u * s;
        // Past the end of a row the weights are zero, and so must be the other factor.
        let two = c + 1u < p.cq;
        let v = x_load8(row + c, row + select(c, c + 1u, two));
        let lo = x_factor(v.lo);
        let hi = select(outside(), x_factor(v.hi), two);
        sum += acc_Val4(
            product(lo, hi, first + s),
            product(lo, hi, first + s + min(1u, last) * p.steps),
            product(lo, hi, first + s + min(2u, last) * p.steps),
            product(lo, hi, first + s + last * p.steps),
        );
    }
    sum = total(sum, lane);
    if (wanted >= p.nq || lane % SPLIT != 0u) {
        return;
    }
    let at = wg.y * p.nq + quad;
    let r = finish(result(sum, quad_chans(quad)), at);
    out[at] = out_pack(out_mask(r, select(4u, p.tail, quad + 1u == p.nq)));
}
