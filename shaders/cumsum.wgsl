// CUMSUM: sums along one axis, one after the other, as the reference adds them. An invocation has a quad of the
// innermost dimension (LANES), or a whole row where that is the axis.

override WG: u32 = 64u;
override LANES: u32 = 1u;
override EXCLUSIVE: u32 = 0u;
override REVERSE: u32 = 0u;

struct Params {
    // Invocations; quads between the starts of two outer elements; quads of an inner block; elements along the axis.
    lines: u32,
    pitch: u32,
    block: u32,
    count: u32,
    // Quads in a row, elements in it.
    row: u32,
    width: u32,
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
    if (i >= p.lines) {
        return;
    }
    if (LANES == 1u) {
        let base = (i / p.block) * p.pitch + i % p.block;
        let used = min(4u, p.width - (i % p.row) * 4u);
        var sum = in0_Val4();
        for (var k = 0u; k < p.count; k++) {
            let at = base + select(k, p.count - 1u - k, REVERSE == 1u) * p.block;
            let v = in0_unpack(in0[at]);
            let next = sum + v;
            out[at] = out_pack(out_mask(finish(select(next, sum, vec4<bool>(EXCLUSIVE == 1u)), at), used));
            sum = next;
        }
        return;
    }
    var sum = in0_Val();
    for (var k = 0u; k < p.row; k++) {
        let q = select(k, p.row - 1u - k, REVERSE == 1u);
        let at = i * p.row + q;
        let used = min(4u, p.width - q * 4u);
        let v = in0_unpack(in0[at]);
        var y = in0_Val4();
        for (var l = 0u; l < used; l++) {
            let lane = select(l, used - 1u - l, REVERSE == 1u);
            let next = sum + v[lane];
            y[lane] = select(next, sum, EXCLUSIVE == 1u);
            sum = next;
        }
        out[at] = out_pack(out_mask(finish(y, at), used));
    }
}
