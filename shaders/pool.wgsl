// AVERAGE_POOL_2D, MAX_POOL_2D, L2_POOL_2D: a quad of channels of one output pixel an invocation.

override WG: u32 = 64u;
// 0 average, 1 greatest, 2 root of the mean square.
override KIND: u32 = 0u;

struct Params {
    quads: u32,
    // Quads of channels, lanes in the last.
    row: u32,
    tail: u32,
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    filter_h: i32,
    filter_w: i32,
    stride_h: i32,
    stride_w: i32,
    top: i32,
    left: i32,
    // Limits of quantized results.
    least: i32,
    greatest: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    if (i >= p.quads) {
        return;
    }
    let c = i % p.row;
    var rest = i / p.row;
    let x = i32(rest % p.out_w) * p.stride_w - p.left;
    rest /= p.out_w;
    let y = i32(rest % p.out_h) * p.stride_h - p.top;
    let b = rest / p.out_h;
    let y0 = max(y, 0);
    let y1 = min(y + p.filter_h, i32(p.in_h));
    let x0 = max(x, 0);
    let x1 = min(x + p.filter_w, i32(p.in_w));
    var acc = in0_unpack(in0[((b * p.in_h + u32(y0)) * p.in_w + u32(x0)) * p.row + c]);
    if (KIND != 1u) {
        acc = in0_Val4();
    }
    for (var yy = y0; yy < y1; yy++) {
        for (var xx = x0; xx < x1; xx++) {
            let v = in0_unpack(in0[((b * p.in_h + u32(yy)) * p.in_w + u32(xx)) * p.row + c]);
            switch KIND {
                case 0u: { acc += v; }
                case 1u: { acc = max(acc, v); }
                default: { acc += v * v; }
            }
        }
    }
    let v = CLOSE(acc, max(1, (y1 - y0) * (x1 - x0)));
    let n = select(4u, p.tail, c == p.row - 1u);
    out[i] = out_pack(out_mask(finish(v, i), n));
}

fn close_f(acc: vec4<f32>, n: i32) -> vec4<f32> {
    switch KIND {
        case 0u: { return acc / f32(n); }
        case 1u: { return acc; }
        default: { return sqrt(acc / f32(n)); }
    }
}

fn close_i(acc: vec4<i32>, n: i32) -> vec4<i32> {
    var v = acc;
    if (KIND == 0u) {
        v = i_mean(acc, n);
    }
    return clamp(v, vec4<i32>(p.least), vec4<i32>(p.greatest));
}
