// SVDF: each unit is a sum of `rank` filters, each of which remembers its last `memory` values and weighs them. This
// step's values have been made by a matrix product. An invocation computes one unit of one row of the batch.

override WG: u32 = 64u;
override INTEGER: u32 = 0u;

struct Params {
    // Rows of the batch times quads of a result row.
    quads: u32,
    row: u32,
    units: u32,
    rank: u32,
    memory: u32,
    // Quads of a row of this step's values, elements of a row of the state.
    fresh_row: u32,
    state_row: u32,
    has_bias: u32,
    // What the weights are multiplied by; of integers, what sums are multiplied by, and the zero point of results.
    scale: f32,
    factor: i32,
    shift: i32,
    zero: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> fresh: array<acc_Val4>;
@group(0) @binding(2) var<storage, read> w: array<w_Elem4>;
@group(0) @binding(3) var<storage, read> bias: array<acc_Val>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;
@group(0) @binding(5) var<storage, read_write> state: array<acc_Val>;

fn weight(at: u32) -> acc_Val {
    return acc_Val(w_unpack(w[at / 4u])[at % 4u]);
}

// The unit's result; its filters' memories move on by one.
fn unit(image: u32, u: u32) -> acc_Val {
    var s = acc_Val();
    for (var r = 0u; r < p.rank; r++) {
        let filt = u * p.rank + r;
        let at = image * p.state_row + filt * p.memory;
        let last = p.memory - 1u;
        for (var m = 0u; m < last; m++) {
            let x = state[at + m + 1u];
            state[at + m] = x;
            s += x * weight(filt * p.memory + m);
        }
        let x = fresh[image * p.fresh_row + filt / 4u][filt % 4u];
        state[at + last] = x;
        s += x * weight(filt * p.memory + last);
    }
    if (INTEGER == 0u) {
        s = acc_Val(f32(s) * p.scale);
    }
    if (p.has_bias == 1u) {
        s += bias[u];
    }
    if (INTEGER == 0u) {
        return s;
    }
    let r = i_requant4(vec4<i32>(i32(s)), vec4<i32>(p.factor), vec4<i32>(p.shift)).x;
    return acc_Val(clamp(clamp(r, -65536, 65536) + p.zero, -128, 127));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = linear_id(wg, count, local, WG);
    if (at >= p.quads) {
        return;
    }
    let image = at / p.row;
    let first = at % p.row * 4u;
    let n = min(4u, p.units - first);
    var y = acc_Val4();
    for (var i = 0u; i < n; i++) {
        y[i] = unit(image, first + i);
    }
    out[at] = out_pack(out_mask(finish(y, at), n));
}
