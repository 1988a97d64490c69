// LSTM over a whole sequence: a workgroup walks the steps of one row of the batch. The input's part of every step's
// sums has been made by a matrix product; here come the recurrent part, the gates, the states and the projection.
// Weights are rows of four: for each quad of the state, gate by gate, one row a cell; then those of the projection.

override WG: u32 = 64u;
// Without an input gate: it is what the forget gate leaves.
override CIFG: u32 = 0u;
override PEEPHOLE: u32 = 0u;
override NORM: u32 = 0u;
override PROJECTION: u32 = 0u;
// Weights are integers: sums of products are scaled, and what weights meet is rounded to 8 bits over its range, without (1)
// or with (2) a zero point that moves.
override ROUND: u32 = 0u;
// The cell's activation: 0 none, 1 RELU, 2 RELU6, 3 RELU_N1_TO_1, 4 TANH.
override ACT: u32 = 4u;
// Elements of workgroup memory: the output state and the hidden vector in whole quads, the gates' sums.
override STATE: u32 = 4u;
override HIDDEN: u32 = 4u;
override SUMS: u32 = 1u;

struct Params {
    time: u32,
    cells: u32,
    outputs: u32,
    backward: u32,
    // Distances in rows of the sequence: of steps, of the batch.
    step: u32,
    image: u32,
    // Quads of a row: of the input's sums, of the result, of the output state, of the cell state.
    sum_row: u32,
    out_row: u32,
    state_row: u32,
    cell_row: u32,
    // Limits of the states; none where they are not positive.
    cell_clip: f32,
    state_clip: f32,
    // Of the recurrent weights of each gate, and of the projection.
    scales: vec4<f32>,
    projection_scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ahead: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<w_Elem4>;
// By cell: four biases, peephole weights of the input, forget and output gates, four factors of the normalization; by
// output: the projection's bias.
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> cell: array<f32>;

var<workgroup> h: array<f32, STATE>;
var<workgroup> hidden: array<f32, HIDDEN>;
var<workgroup> sums: array<f32, SUMS>;

const BIAS: u32 = 0u;
const PEEP: u32 = 4u;
const NORMAL: u32 = 7u;
const AFTER: u32 = 11u;

fn constant(kind: u32, j: u32) -> f32 {
    return v[kind * p.cells + j];
}

fn activate(x: vec4<f32>) -> vec4<f32> {
    switch ACT {
        case 1u: { return max(x, vec4<f32>()); }
        case 2u: { return clamp(x, vec4<f32>(), vec4<f32>(6.0)); }
        case 3u: { return clamp(x, vec4<f32>(-1.0), vec4<f32>(1.0)); }
        case 4u: { return f_tanh(x); }
        default: { return x; }
    }
}

fn early(row: u32, gate: u32, j: u32) -> f32 {
    let at = (gate - CIFG) * p.cells + j;
    return ahead[row * p.sum_row + at / 4u][at % 4u];
}

fn weight(q: u32, gate: u32, j: u32) -> vec4<f32> {
    return vec4<f32>(w_unpack(w[(q * (4u - CIFG) + gate - CIFG) * p.cells + j]));
}

fn limit(x: f32, most: f32) -> f32 {
    return select(x, clamp(x, -most, most), most > 0.0);
}

// The grid of the output state.
fn state_grid() -> Grid {
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var q = 0u; q < p.state_row; q++) {
        let x = vec4<f32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
        low = min(low, x);
        high = max(high, x);
    }
    return f_grid(low, high, ROUND == 2u);
}

// The grid of what the projection reads.
fn hidden_grid() -> Grid {
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var q = 0u; q < p.cell_row; q++) {
        let x = vec4<f32>(hidden[q * 4u], hidden[q * 4u + 1u], hidden[q * 4u + 2u], hidden[q * 4u + 3u]);
        low = min(low, x);
        high = max(high, x);
    }
    return f_grid(low, high, ROUND == 2u);
}

// The gates' sums of one cell: input, forget, cell, output.
fn product(row: u32, j: u32, g: Grid) -> vec4<f32> {
    var first = vec4<f32>(0.0, early(row, 1u, j), early(row, 2u, j), early(row, 3u, j));
    if (CIFG == 0u) {
        first.x = early(row, 0u, j);
    }
    var s = select(first, vec4<f32>(), ROUND > 0u);
    for (var q = 0u; q < p.state_row; q++) {
        var x = vec4<f32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
        if (ROUND > 0u) {
            x = f_snap(x, g);
        }
        if (CIFG == 0u) {
            s.x += dot(weight(q, 0u, j), x);
        }
        s.y += dot(weight(q, 1u, j), x);
        s.z += dot(weight(q, 2u, j), x);
        s.w += dot(weight(q, 3u, j), x);
    }
    if (ROUND > 0u) {
        return first + s * p.scales;
    }
    return s;
}

// The cell's next state from its gates' sums.
fn next(s: vec4<f32>, before: f32) -> f32 {
    let gates = f_logistic(s);
    let fresh = select(gates.x, 1.0 - gates.y, CIFG == 1u);
    return limit(gates.y * before + fresh * activate(vec4<f32>(s.z)).x, p.cell_clip);
}

// Mean of a gate's sums, and what brings their deviation to 1.
fn moments(gate: u32) -> vec2<f32> {
    let n = f32(p.cells);
    var mean = 0.0;
    for (var j = 0u; j < p.cells; j++) {
        mean += sums[gate * p.cells + j];
    }
    mean /= n;
    var variance = 0.0;
    for (var j = 0u; j < p.cells; j++) {
        let d = sums[gate * p.cells + j] - mean;
        variance += d * d;
    }
    return vec2<f32>(mean, 1.0 / sqrt(variance / n + 1e-8));
}

fn normal(m: vec2<f32>, gate: u32, j: u32) -> f32 {
    let x = (sums[gate * p.cells + j] - m.x) * m.y;
    return x * constant(NORMAL + gate, j) + constant(BIAS + gate, j);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let image = wg.x;
    let cells = image * p.cell_row * 4u;
    let states = image * p.state_row * 4u;
    for (var k = local; k < STATE; k += WG) {
        h[k] = state[states + k];
    }
    for (var k = local; k < HIDDEN; k += WG) {
        hidden[k] = 0.0;
    }
    workgroupBarrier();
    for (var t = 0u; t < p.time; t++) {
        let row = image * p.image + select(t, p.time - 1u - t, p.backward == 1u) * p.step;
        var g = Grid();
        if (ROUND > 0u) {
            g = state_grid();
        }
        for (var j = local; j < p.cells; j += WG) {
            var s = product(row, j, g);
            let before = cell[cells + j];
            if (PEEPHOLE == 1u) {
                s += vec4<f32>(constant(PEEP, j), constant(PEEP + 1u, j), 0.0, 0.0) * before;
            }
            if (NORM == 1u) {
                for (var gate = 0u; gate < 4u; gate++) {
                    sums[gate * p.cells + j] = s[gate];
                }
                continue;
            }
            for (var gate = 0u; gate < 4u; gate++) {
                s[gate] += constant(BIAS + gate, j);
            }
            let after = next(s, before);
            cell[cells + j] = after;
            if (PEEPHOLE == 1u) {
                s.w += constant(PEEP + 2u, j) * after;
            }
            hidden[j] = f_logistic(s).w * activate(vec4<f32>(after)).x;
        }
        if (NORM == 1u) {
            workgroupBarrier();
            var first = vec2<f32>();
            if (CIFG == 0u) {
                first = moments(0u);
            }
            let second = moments(1u);
            let third = moments(2u);
            for (var j = local; j < p.cells; j += WG) {
                var s = vec4<f32>(0.0, normal(second, 1u, j), normal(third, 2u, j), 0.0);
                if (CIFG == 0u) {
                    s.x = normal(first, 0u, j);
                }
                let after = next(s, cell[cells + j]);
                cell[cells + j] = after;
                if (PEEPHOLE == 1u) {
                    sums[3u * p.cells + j] += constant(PEEP + 2u, j) * after;
                }
            }
            workgroupBarrier();
            let fourth = moments(3u);
            for (var j = local; j < p.cells; j += WG) {
                hidden[j] = f_logistic(vec4<f32>(normal(fourth, 3u, j))).x * activate(vec4<f32>(cell[cells + j])).x;
            }
        }
        workgroupBarrier();
        if (ROUND > 0u && PROJECTION == 1u) {
            g = hidden_grid();
        }
        for (var k = local; k < p.outputs; k += WG) {
            if (PROJECTION == 0u) {
                h[k] = hidden[k];
                continue;
            }
            let bias = v[AFTER * p.cells + k];
            var s = select(bias, 0.0, ROUND > 0u);
            let base = p.state_row * (4u - CIFG) * p.cells;
            for (var q = 0u; q < p.cell_row; q++) {
                var x = vec4<f32>(hidden[q * 4u], hidden[q * 4u + 1u], hidden[q * 4u + 2u], hidden[q * 4u + 3u]);
                if (ROUND > 0u) {
                    x = f_snap(x, g);
                }
                s += dot(vec4<f32>(w_unpack(w[base + q * p.outputs + k])), x);
            }
            if (ROUND > 0u) {
                s = bias + s * p.projection_scale;
            }
            h[k] = limit(s, p.state_clip);
        }
        workgroupBarrier();
        for (var q = local; q < p.out_row; q += WG) {
            let at = row * p.out_row + q;
            let y = vec4<f32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
            out[at] = out_pack(out_mask(finish(y, at), min(4u, p.outputs - q * 4u)));
        }
    }
    for (var k = local; k < STATE; k += WG) {
        state[states + k] = h[k];
    }
}
