// FILL: one value everywhere.

override WG: u32 = 64u;

struct Params {
    quads: u32,
    row: u32,
    tail: u32,
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
    let n = select(4u, p.tail, i % p.row == p.row - 1u);
    out[i] = out_pack(out_mask(finish(in0_Val4(in0_unpack(in0[0]).x), i), n));
}
