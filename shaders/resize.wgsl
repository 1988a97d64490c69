// RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR: a quad of channels of one output pixel an invocation.

override WG: u32 = 64u;
// 0 bilinear in floats, 1 bilinear in the reference's 10-bit fixed point, 2 nearest, 3 bilinear in floats of uint8.
override KIND: u32 = 0u;
override HALF_PIXEL: u32 = 0u;
// Nearest: round instead of floor.
override ALIGN: u32 = 0u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    in_h: u32,
    in_w: u32,
    out_h: u32,
    out_w: u32,
    pad: u32,
    scale_h: f32,
    scale_w: f32,
    // 10-bit fixed-point scales.
    fixed_h: i32,
    fixed_w: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

fn load(b: u32, y: i32, x: i32, c: u32) -> in0_Val4 {
    return in0_unpack(in0[((b * p.in_h + u32(y)) * p.in_w + u32(x)) * p.row + c]);
}

fn position(i: u32, scale: f32) -> f32 {
    if (HALF_PIXEL == 1u) {
        return (f32(i) + 0.5) * scale - 0.5;
    }
    return f32(i) * scale;
}

fn nearest(i: u32, scale: f32, size: u32) -> i32 {
    let offset = select(0.0, 0.5, HALF_PIXEL == 1u);
    let at = (f32(i) + offset) * scale;
    // Rounds half away from zero; positions are never negative.
    let whole = select(floor(at), floor(at + 0.5), ALIGN == 1u);
    return clamp(i32(whole), 0, i32(size) - 1);
}

fn between_f(b: u32, oy: u32, ox: u32, c: u32) -> vec4<f32> {
    let y = position(oy, p.scale_h);
    let x = position(ox, p.scale_w);
    let y0 = max(i32(floor(y)), 0);
    let x0 = max(i32(floor(x)), 0);
    let y1 = min(i32(ceil(y)), i32(p.in_h) - 1);
    let x1 = min(i32(ceil(x)), i32(p.in_w) - 1);
    let dy = y - f32(y0);
    let dx = x - f32(x0);
    return vec4<f32>(load(b, y0, x0, c)) * ((1.0 - dy) * (1.0 - dx))
        + vec4<f32>(load(b, y1, x0, c)) * (dy * (1.0 - dx))
        + vec4<f32>(load(b, y0, x1, c)) * ((1.0 - dy) * dx)
        + vec4<f32>(load(b, y1, x1, c)) * (dy * dx);
}

// (position * 1024, lower, upper)
fn fixed_position(i: u32, scale: i32, size: u32) -> vec3<i32> {
    var at = i32(i) * scale;
    if (HALF_PIXEL == 1u) {
        at += scale / 2 - 512;
    }
    let lower = max(at / 1024, 0);
    let upper = min((at + 1023) / 1024, i32(size) - 1);
    return vec3<i32>(at, lower, upper);
}

fn between_i(b: u32, oy: u32, ox: u32, c: u32) -> vec4<i32> {
    let y = fixed_position(oy, p.fixed_h, p.in_h);
    let x = fixed_position(ox, p.fixed_w, p.in_w);
    let dy = y.x - 1024 * y.y;
    let dx = x.x - 1024 * x.y;
    let sum = vec4<i32>(load(b, y.y, x.y, c)) * ((1024 - dy) * (1024 - dx))
        + vec4<i32>(load(b, y.z, x.y, c)) * (dy * (1024 - dx))
        + vec4<i32>(load(b, y.y, x.z, c)) * ((1024 - dy) * dx)
        + vec4<i32>(load(b, y.z, x.z, c)) * (dy * dx);
    let round = select(vec4<i32>(-524288), vec4<i32>(524288), sum > vec4<i32>());
    return (sum + round) / 1048576;
}

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
    let ox = rest % p.out_w;
    rest /= p.out_w;
    let oy = rest % p.out_h;
    let b = rest / p.out_h;
    var v = in0_Val4();
    switch KIND {
        case 0u: { v = in0_Val4(between_f(b, oy, ox, c)); }
        case 1u: { v = in0_Val4(between_i(b, oy, ox, c)); }
        case 3u: { v = in0_Val4(between_f(b, oy, ox, c) + 0.5); }
        default: {
            v = load(b, nearest(oy, p.scale_h, p.in_h), nearest(ox, p.scale_w, p.in_w), c);
        }
    }
    let n = select(4u, p.tail, c == p.row - 1u);
    out[i] = out_pack(out_mask(finish(v, i), n));
}
