// Depthwise convolution for software adapters that run four invocations at a time: an invocation computes four channels
// of four output pixels side by side. There every word that is read costs far more than a product, and arrays that are
// indexed by a loop's counter are read like memory: sums and the window are variables of their own.

override WG: u32 = 16u;
// Neighbouring outputs have neighbouring windows: from one column of the filter to the next, one column is read.
override SLIDE: u32 = 0u;

struct Params {
    // Invocations: quads, times groups of four pixels in a row, times rows, times images; groups in a row.
    items: u32,
    nq: u32,
    across: u32,
    tail: u32,
    // Output rows and columns, input rows and columns.
    height: u32,
    width: u32,
    h: u32,
    w: u32,
    stride_y: i32,
    stride_x: i32,
    pad_y: i32,
    pad_x: i32,
    dilation_y: i32,
    dilation_x: i32,
    kh: u32,
    kw: u32,
    // Quads of a tap in the weights.
    tap: u32,
    x_zero: i32,
    w_zero: i32,
    out_zero: i32,
    low: Limit,
    high: Limit,
    swish: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<x_Elem4>;
@group(0) @binding(2) var<storage, read> w: array<w_Elem4>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;

// The quad of one input column; zeros outside. `row` is the first quad of the row's pixels.
fn column(row: u32, ok: bool, ix: i32) -> acc_Val4 {
    let inside = ok && u32(ix) < p.w;
    return select(acc_Val4(), x_value(x_unpack(x[select(0u, row + u32(ix) * p.nq, inside)])), inside);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let item = linear_id(wg, count, local, WG);
    let i = min(item, p.items - 1u);
    let group = i / p.nq;
    let quad = i - group * p.nq;
    let line = group / p.across;
    let ox = (group - line * p.across) * 4u;
    let n = line / p.height;
    let oy = line - n * p.height;
    var s0 = acc_Val4();
    var s1 = acc_Val4();
    var s2 = acc_Val4();
    var s3 = acc_Val4();
    var at = quad;
    let ix = i32(ox) * p.stride_x - p.pad_x;
    for (var ky = 0u; ky < p.kh; ky++) {
        let y = u32(i32(oy) * p.stride_y - p.pad_y + i32(ky) * p.dilation_y);
        let ok = y < p.h;
        let row = (n * p.h + y) * p.w * p.nq + quad;
        var c0 = acc_Val4();
        var c1 = acc_Val4();
        var c2 = acc_Val4();
        var c3 = acc_Val4();
        if (SLIDE == 1u) {
            c1 = column(row, ok, ix);
            c2 = column(row, ok, ix + 1);
            c3 = column(row, ok, ix + 2);
        }
        for (var kx = 0u; kx < p.kw; kx++) {
            if (SLIDE == 1u) {
                c0 = c1;
                c1 = c2;
                c2 = c3;
                c3 = column(row, ok, ix + 3 + i32(kx));
            } else {
                let left = ix + i32(kx) * p.dilation_x;
                c0 = column(row, ok, left);
                c1 = column(row, ok, left + p.stride_x);
                c2 = column(row, ok, left + 2 * p.stride_x);
                c3 = column(row, ok, left + 3 * p.stride_x);
            }
            let f = w_value(w_unpack(w[at]));
            at += p.tap;
            s0 += c0 * f;
            s1 += c1 * f;
            s2 += c2 * f;
            s3 += c3 * f;
        }
    }
    let c = quad_chans(quad);
    let used = select(p.tail, 4u, quad + 1u < p.nq);
    let end = select(0u, p.width, item < p.items);
    // A loop: the epilogue is long, and is compiled once this way.
    for (var k = 0u; k < 4u; k++) {
        if (ox + k < end) {
            let to = (line * p.width + ox + k) * p.nq + quad;
            out[to] = out_pack(out_mask(finish(result(s0, c), to), used));
        }
        s0 = s1;
        s1 = s2;
        s2 = s3;
    }
}
