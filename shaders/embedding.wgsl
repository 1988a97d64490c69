// EMBEDDING_LOOKUP in a table of int8 or int4 with one scale, or one a row. An index out of range reads zeros.

override WG: u32 = 64u;
// Bits of an element: 8 or 4.
override BITS: u32 = 8u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
    // Quads and words of a table row, and their number.
    block: u32,
    words: u32,
    rows: u32,
    // 1 where every row has a scale of its own.
    per_row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> index: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_id(wg, count, local, WG);
    if (i >= p.quads) {
        return;
    }
    let tuple = i / p.block;
    let q = i % p.block;
    let v = index[tuple >> 2u][tuple & 3u];
    var y = vec4<f32>();
    if (v >= 0 && u32(v) < p.rows) {
        let row = u32(v);
        var e = vec4<i32>();
        if (BITS == 8u) {
            e = unpack4xI8(table[row * p.words + q]);
        } else {
            let word = i32(table[row * p.words + q / 2u] >> ((q & 1u) * 16u));
            e = (vec4<i32>(word) << vec4<u32>(28u, 24u, 20u, 16u)) >> vec4<u32>(28u);
        }
        y = vec4<f32>(e) * scales[row * p.per_row];
    }
    let n = select(4u, p.tail, i % p.row == p.row - 1u);
    out[i] = out_pack(out_mask(finish(y, i), n));
}
