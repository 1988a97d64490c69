// A plain recurrent cell over a whole sequence, y = activation(W x + R y + b): a workgroup walks the steps of one row of
// the batch. W x + b has been made by a matrix product. Weights are rows of four: for each quad of the state, one row a
// unit.

override WG: u32 = 64u;
// The activation: 0 none, 1 RELU, 2 RELU6, 3 RELU_N1_TO_1, 4 TANH.
override ACT: u32 = 4u;
// Weights are integers: sums of products are scaled, and the state is rounded to 8 bits over its range for them, without
// (1) or with (2) a zero point that moves.
override ROUND: u32 = 0u;
// Elements of the state in whole quads.
override STATE: u32 = 4u;

struct Params {
    time: u32,
    units: u32,
    backward: u32,
    // Distances in rows of the sequence: of steps, of the batch.
    step: u32,
    image: u32,
    // Quads of a row: of the state, of the result, of the input's sums.
    row: u32,
    // Of the recurrent weights.
    scale: f32,
    // How often the sequence is walked, each time from the state that the last walk left.
    walks: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ahead: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<w_Elem4>;
@group(0) @binding(3) var<storage, read_write> out: array<out_Elem4>;
@group(0) @binding(4) var<storage, read_write> state: array<f32>;

var<workgroup> h: array<f32, STATE>;
var<workgroup> fresh: array<f32, STATE>;

fn activate(x: f32) -> f32 {
    switch ACT {
        case 1u: { return max(x, 0.0); }
        case 2u: { return clamp(x, 0.0, 6.0); }
        case 3u: { return clamp(x, -1.0, 1.0); }
        case 4u: { return f_tanh(vec4<f32>(x)).x; }
        default: { return x; }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = wg.x * p.row * 4u;
    for (var k = local; k < STATE; k += WG) {
        h[k] = state[first + k];
        fresh[k] = 0.0;
    }
    workgroupBarrier();
    for (var step = 0u; step < p.time * p.walks; step++) {
        let t = step % p.time;
        let row = (wg.x * p.image + select(t, p.time - 1u - t, p.backward == 1u) * p.step) * p.row;
        var g = Grid();
        if (ROUND > 0u) {
            var low = vec4<f32>();
            var high = vec4<f32>();
            for (var q = 0u; q < p.row; q++) {
                let x = vec4<f32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
                low = min(low, x);
                high = max(high, x);
            }
            g = f_grid(low, high, ROUND == 2u);
        }
        for (var k = local; k < p.units; k += WG) {
            let first = ahead[row + k / 4u][k % 4u];
            var s = select(first, 0.0, ROUND > 0u);
            for (var q = 0u; q < p.row; q++) {
                var x = vec4<f32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
                if (ROUND > 0u) {
                    x = f_snap(x, g);
                }
                s += dot(vec4<f32>(w_unpack(w[q * p.units + k])), x);
            }
            if (ROUND > 0u) {
                s = first + s * p.scale;
            }
            fresh[k] = activate(s);
        }
        workgroupBarrier();
        for (var q = local; q < p.row; q += WG) {
            let y = vec4<f32>(fresh[q * 4u], fresh[q * 4u + 1u], fresh[q * 4u + 2u], fresh[q * 4u + 3u]);
            for (var i = 0u; i < 4u; i++) {
                h[q * 4u + i] = y[i];
            }
            out[row + q] = out_pack(out_mask(finish(y, row + q), min(4u, p.units - q * 4u)));
        }
        workgroupBarrier();
    }
    for (var k = local; k < STATE; k += WG) {
        state[first + k] = h[k];
    }
}
