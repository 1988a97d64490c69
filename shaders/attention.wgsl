// softmax(q k^T * scale + mask) v without the matrix of scores: a workgroup takes four queries of one head and walks the
// keys, a block of as many as it has invocations at a time. What was summed up for a smaller maximum is scaled down when a
// block has a greater one.

override WG: u32 = 32u;
// A mask: 1 of numbers that are added, 2 of booleans that are false where scores are hidden.
override MASK: u32 = 0u;
// Quads of four queries.
override QUERIES: u32 = 4u;
// Quads of a value that an invocation takes: up to four. Each makes the kernel longer, and its compilation.
override QUADS: u32 = 4u;

struct Params {
    groups: u32,
    // Queries, groups of four of them, keys; the last two of the three outer dimensions.
    queries: u32,
    tiles: u32,
    keys: u32,
    middle: u32,
    inner: u32,
    // Quads of a query, quads of a value and elements of it.
    q_row: u32,
    v_row: u32,
    width: u32,
    scale: f32,
    // What scores become that a mask of booleans hides.
    instead: f32,
    // Distances in the outer dimensions and of positions, in quads.
    q_at: vec4<u32>,
    k_at: vec4<u32>,
    v_at: vec4<u32>,
    out_at: vec4<u32>,
    // Of the mask, in elements.
    mask_at: vec4<u32>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<q_Elem4>;
@group(0) @binding(2) var<storage, read> k: array<k_Elem4>;
@group(0) @binding(3) var<storage, read> v: array<v_Elem4>;
@group(0) @binding(4) var<storage, read> mask: array<mask_Elem4>;
@group(0) @binding(5) var<storage, read_write> out: array<out_Elem4>;

var<workgroup> query: array<vec4<f32>, QUERIES>;
// Of each key in the block: its scores with the four queries, then their exponentials.
var<workgroup> scores: array<vec4<f32>, WG>;

const LOWEST: f32 = -3.4028234e38;

fn place(at: vec4<u32>, outer: vec3<u32>, position: u32) -> u32 {
    let d = at * vec4<u32>(outer, position);
    return d.x + d.y + d.z + d.w;
}

fn hidden(outer: vec3<u32>, row: u32, key: u32) -> f32 {
    let at = place(p.mask_at, outer, row) + key;
    return f32(mask_unpack(mask[at / 4u])[at % 4u]);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let g = linear_group(wg, count);
    if (g >= p.groups) {
        return;
    }
    let first = g % p.tiles * 4u;
    let head = g / p.tiles;
    let outer = vec3<u32>(head / p.inner / p.middle, head / p.inner % p.middle, head % p.inner);
    let last = p.queries - 1u;
    for (var i = local; i < 4u * p.q_row; i += WG) {
        let row = min(first + i / p.q_row, last);
        query[i] = q_unpack(q[place(p.q_at, outer, row) + i % p.q_row]) * p.scale;
    }
    workgroupBarrier();
    var top = vec4<f32>(LOWEST);
    var total = vec4<f32>();
    // Each invocation sums up to four quads of the results, for four queries.
    var sums: array<mat4x4<f32>, 4>;
    for (var s = 0u; s < p.keys; s += WG) {
        let key = s + local;
        var d = vec4<f32>(LOWEST);
        if (key < p.keys) {
            let base = place(p.k_at, outer, key);
            d = vec4<f32>();
            for (var c = 0u; c < p.q_row; c++) {
                let e = k_unpack(k[base + c]);
                d += vec4<f32>(
                    dot(query[c], e),
                    dot(query[p.q_row + c], e),
                    dot(query[2u * p.q_row + c], e),
                    dot(query[3u * p.q_row + c], e),
                );
            }
            if (MASK > 0u) {
                let m = vec4<f32>(
                    hidden(outer, first, key),
                    hidden(outer, min(first + 1u, last), key),
                    hidden(outer, min(first + 2u, last), key),
                    hidden(outer, min(first + 3u, last), key),
                );
                d = select(d + m, select(vec4<f32>(p.instead), d, m != vec4<f32>()), MASK == 2u);
            }
        }
        workgroupBarrier();
        scores[local] = d;
        workgroupBarrier();
        let n = min(WG, p.keys - s);
        var most = top;
        for (var j = 0u; j < n; j++) {
            most = max(most, scores[j]);
        }
        workgroupBarrier();
        scores[local] = exp(d - most);
        workgroupBarrier();
        let less = exp(top - most);
        top = most;
        total *= less;
        for (var i = 0u; i < QUADS; i++) {
            sums[i][0] *= less.x;
            sums[i][1] *= less.y;
            sums[i][2] *= less.z;
            sums[i][3] *= less.w;
        }
        for (var j = 0u; j < n; j++) {
            let e = scores[j];
            total += e;
            let base = place(p.v_at, outer, s + j);
            for (var i = 0u; i < QUADS; i++) {
                let c = local + i * WG;
                if (c < p.v_row) {
                    let x = v_unpack(v[base + c]);
                    sums[i][0] += e.x * x;
                    sums[i][1] += e.y * x;
                    sums[i][2] += e.z * x;
                    sums[i][3] += e.w * x;
                }
            }
        }
    }
    for (var i = 0u; i < QUADS; i++) {
        let c = local + i * WG;
        for (var r = 0u; r < 4u; r++) {
            if (c < p.v_row && first + r < p.queries) {
                let at = place(p.out_at, outer, first + r) + c;
                out[at] = out_pack(out_mask(finish(sums[i][r] / total[r], at), min(4u, p.width - c * 4u)));
            }
        }
    }
}
