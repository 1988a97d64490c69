// 8-bit to 8-bit by a table of 256 bytes: element-wise operators on quantized tensors. The table holds the result for
// each byte in order (0 to 255 as unsigned).

override WG: u32 = 64u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

fn entry(byte: u32) -> u32 {
    return extractBits(table[byte >> 2u], (byte & 3u) * 8u, 8u);
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
    let b = unpack4xU8(in0[i]);
    var r = entry(b.x) | (entry(b.y) << 8u) | (entry(b.z) << 16u) | (entry(b.w) << 24u);
    if (i % p.row == p.row - 1u && p.tail < 4u) {
        r = extractBits(r, 0u, p.tail * 8u);
    }
    out[i] = r;
}
