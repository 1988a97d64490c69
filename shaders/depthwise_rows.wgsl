// Depthwise convolution with a square filter of K x K and no dilation, a row at a time: an invocation owns eight
// channels and walks along p.rows rows, reading every column once. At each column the sums that are under way move one
// place on and each takes in the column; the foremost is then complete. The weights stay in registers, or next to them.

override WG: u32 = 8u;

struct Params {
    // Invocations: pairs of quads times strips; strips of an image, output columns of a strip, strips beside each other.
    items: u32,
    octs: u32,
    strips: u32,
    across: u32,
    span: u32,
    // Output rows of a strip, of an image, output columns.
    rows: u32,
    height: u32,
    width: u32,
    h: u32,
    w: u32,
    // Quads of a pixel and elements in the last of them.
    nq: u32,
    tail: u32,
    stride_y: i32,
    stride_x: u32,
    pad_y: i32,
    pad_x: i32,
    taps: u32,
    chan_rows: u32,
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

struct Factors {
    lo: acc_Val4,
    hi: acc_Val4,
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let item = linear_id(wg, count, local, WG);
    let i = min(item, p.items - 1u);
    let strip = i / p.octs;
    let oct = i - strip * p.octs;
    let n = strip / p.strips;
    let s = strip - n * p.strips;
    let sy = s / p.across;
    let first = (s - sy * p.across) * p.span;
    let quad = oct * 2u;
    let two = quad + 1u < p.nq;
    let second = select(quad, quad + 1u, two);
    // Rows of what belongs to the channels. Here as with the weights the trip count is data, and the index is not the
    // counter itself, so that compilers keep the loop: unrolled it takes a software adapter long to compile.
    var rows: array<Row, 2u * ROWS>;
    for (var r = 0u; r < p.chan_rows; r++) {
        rows[min(r, 2u * ROWS - 1u)] = chans[quad * ROWS + r];
    }
    let low = chan_rows(rows[0], rows[min(1u, ROWS - 1u)], rows[ROWS - 1u]);
    let high = chan_rows(rows[ROWS], rows[ROWS + min(1u, ROWS - 1u)], rows[2u * ROWS - 1u]);
    var wl: array<acc_Val4, K * K>;
    var wh: array<acc_Val4, K * K>;
    for (var t = 0u; t < p.taps; t++) {
        let at = (t * p.octs + oct) * 2u;
        let v = w_load8(at, at + 1u);
        let to = min(t, K * K - 1u);
        wl[to] = w_value(v.lo);
        wh[to] = w_value(v.hi);
    }
    let n0 = select(p.tail, 4u, two);
    let n1 = select(p.tail, 4u, quad + 2u < p.nq);
    let last = min(first + p.span, p.width);
    let bottom = select(0u, min((sy + 1u) * p.rows, p.height), item < p.items);
    for (var oy = sy * p.rows; oy < bottom; oy++) {
        let iy = i32(oy) * p.stride_y - p.pad_y;
        var lo: array<acc_Val4, K>;
        var hi: array<acc_Val4, K>;
        // The next output column, and the filter column in which it takes the next input column.
        var ox = first;
        var due = K - 1u;
        for (var ix = i32(first * p.stride_x) - p.pad_x; ox < last; ix++) {
            for (var j = 0u; j + 1u < K; j++) {
                lo[j] = lo[j + 1u];
                hi[j] = hi[j + 1u];
            }
            lo[K - 1u] = acc_Val4();
            hi[K - 1u] = acc_Val4();
            // What is outside is read from the front, and counts for nothing: a branch would cost more than the words.
            let across = u32(ix) < p.w;
            for (var ky = 0u; ky < K; ky++) {
                let y = u32(iy + i32(ky));
                let inside = across && y < p.h;
                let at = select(0u, ((n * p.h + y) * p.w + u32(ix)) * p.nq, inside);
                let v = x_load8(at + quad, at + second);
                let a = select(acc_Val4(), x_value(v.lo), inside);
                let b = select(acc_Val4(), x_value(v.hi), inside);
                for (var j = 0u; j < K; j++) {
                    lo[j] += a * wl[ky * K + K - 1u - j];
                    hi[j] += b * wh[ky * K + K - 1u - j];
                }
            }
            if (due == 0u) {
                let at = ((n * p.height + oy) * p.width + ox) * p.nq + quad;
                let a = finish(result(lo[0], low), at);
                let b = finish(result(hi[0], high), at + 1u);
                out_store8(at, two, out_mask(a, n0), out_mask(b, n1));
                ox += 1u;
                due = p.stride_x;
            }
            due -= 1u;
        }
    }
}
