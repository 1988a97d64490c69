// The integer LSTM over a whole sequence: a workgroup walks the steps of one row of the batch. States that are read by
// products and results have 8 bits, gates 16 with 3 of them before the point, the cell state 16 and a power of two for a
// scale; all is rounded where the reference rounds it. The input's part of every step's sums has been made by a matrix
// product. Weights are rows of four: for each quad of the output state, gate by gate, one row a cell; then those of the
// projection.

override WG: u32 = 64u;
// Without an input gate: it is what the forget gate leaves.
override CIFG: u32 = 0u;
override PROJECTION: u32 = 0u;
override PEEPHOLE: u32 = 0u;
override NORM: u32 = 0u;
// Elements of workgroup memory: the output state and the hidden vector, in whole quads.
override STATE: u32 = 4u;
override HIDDEN: u32 = 4u;
// The gates' sums, where they are normalized.
override SUMS: u32 = 1u;

struct Params {
    // Of the recurrent sums of each gate: the multiplier and its shift.
    factor: vec4<i32>,
    shift: vec4<i32>,
    // Of the hidden vector and of the projection: multiplier and shift.
    after: vec4<i32>,
    // Of what the cell state adds to gates, and of their normalization; what stands in for a variance of zero.
    peep_factor: vec4<i32>,
    peep_shift: vec4<i32>,
    norm_factor: vec4<i32>,
    norm_shift: vec4<i32>,
    guard: vec4<i32>,
    // How far the reference counts cells on from image to image for that, and how many it comes to.
    peep_image: u32,
    peep_end: u32,
    time: u32,
    cells: u32,
    outputs: u32,
    // Distances in rows of the sequence: of steps, of the batch.
    step: u32,
    image: u32,
    // Quads of a row: of the input's sums, of the output state and the result, of the cell state.
    sum_row: u32,
    state_row: u32,
    cell_row: u32,
    // How far what is written to the cell is shifted; bits before the point of the cell state, or 7 where there are not from
    // 0 to 6: the reference, without such a tangent, takes the input gate for it.
    fresh: u32,
    cell_bits: u32,
    // Limits of the states; none where they are not positive.
    cell_clip: i32,
    state_clip: i32,
    // Zero points: of the output state, of the hidden vector.
    state_zero: i32,
    hidden_zero: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> ahead: array<vec4<i32>>;
@group(0) @binding(2) var<storage, read> w: array<w_Elem4>;
// The projection's bias; by cell: peephole weights of the input, forget and output gates, four factors of the normalization
// and four biases.
@group(0) @binding(3) var<storage, read> v: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<out_Elem4>;
@group(0) @binding(5) var<storage, read_write> state: array<state_Elem4>;
@group(0) @binding(6) var<storage, read_write> cell: array<i32>;

var<workgroup> h: array<i32, STATE>;
var<workgroup> hidden: array<i32, HIDDEN>;
var<workgroup> sums: array<i32, SUMS>;
var<workgroup> stats: array<Moments, 4>;

// Of a gate's sums: the mean in units of 2^-10, and what brings their deviation to 1: a multiplier and its shift to the right.
struct Moments {
    mean: i32,
    root: vec2<i32>,
}

fn narrow(x: vec4<i32>) -> vec4<i32> {
    return clamp(x, vec4<i32>(-32768), vec4<i32>(32767));
}

// The product of two fractions of 2^15, rounded half away from zero.
fn times(a: vec4<i32>, b: vec4<i32>) -> vec4<i32> {
    let x = a * b;
    let y = x + select(vec4<i32>(16384), vec4<i32>(-16383), x < vec4<i32>());
    return narrow((y + ((y >> vec4<u32>(31u)) & vec4<i32>(32767))) >> vec4<u32>(15u));
}

// exp(-a) for a >= 0 with `bits` bits before the point: the last quarter by a series around 1/8, then a factor for each
// bit.
fn decay(a: vec4<i32>, bits: vec4<u32>) -> vec4<i32> {
    var factors = array<i32, 7>(25520, 19875, 12055, 4435, 600, 11, 0);
    let first = vec4<u32>(13u) - bits;
    let quarter = vec4<i32>(1) << first;
    let last = (-a & (quarter - 1)) - quarter;
    let x = narrow(last << bits) + 4096;
    let x2 = times(x, x);
    let x3 = times(x2, x);
    let x4 = i_rounding_shift(times(x2, x2), vec4<u32>(2u));
    let tail = i_rounding_shift(times(x4 + x3, vec4<i32>(10923)) + x2, vec4<u32>(1u));
    var y = narrow(28918 + times(vec4<i32>(28918), x + tail));
    let rest = last + a;
    for (var i = 0u; i < 7u; i++) {
        let there = (vec4<u32>(i) < bits + vec4<u32>(2u)) & ((rest & (quarter << vec4<u32>(i))) != vec4<i32>());
        y = select(y, times(y, vec4<i32>(factors[i])), there);
    }
    let far = (bits > vec4<u32>(5u)) & (a > (vec4<i32>(1) << (vec4<u32>(20u) - bits)));
    return select(select(y, vec4<i32>(), far), vec4<i32>(32767), a == vec4<i32>());
}

// The logistic function of lanes with `bits` bits before the point, or their hyperbolic tangent.
fn squash(a: vec4<i32>, bits: vec4<u32>, both: vec4<bool>) -> vec4<i32> {
    // tanh(a) hangs on exp(2 a): the same digits with one more bit before the point.
    let e = decay(abs(a), bits + select(vec4<u32>(), vec4<u32>(1u), both));
    // 1 / (1 + e), with two bits before the point and halved: three of Newton's steps.
    let half = (e + 32768) >> vec4<u32>(1u);
    var r = 23130 + times(half, vec4<i32>(-15420));
    for (var i = 0u; i < 3u; i++) {
        let rest = 8192 - times(half, r);
        r = narrow(r + narrow(times(r, rest) << vec4<u32>(2u)));
    }
    let up = narrow(r << vec4<u32>(1u));
    let s = select(select(32767 - up, up, a > vec4<i32>()), vec4<i32>(16384), a == vec4<i32>());
    let wide = narrow((r - 8192) << vec4<u32>(2u));
    let t = select(select(-wide, wide, a > vec4<i32>()), vec4<i32>(), a == vec4<i32>());
    return select(s, t, both);
}

fn early(row: u32, gate: u32, j: u32) -> i32 {
    let at = (gate - CIFG) * p.cells + j;
    return ahead[row * p.sum_row + at / 4u][at % 4u];
}

fn weight(q: u32, gate: u32, j: u32) -> vec4<i32> {
    return w_unpack(w[(q * (4u - CIFG) + gate - CIFG) * p.cells + j]);
}

fn constant(kind: u32, j: u32) -> i32 {
    return v[p.outputs + kind * p.cells + j];
}

// The sums with what the cell state adds to the input and forget gates, or to the output gate. Weights lie by output, as the
// reference walks them.
fn peep(s: vec4<i32>, image: u32, j: u32, c: i32, last: bool) -> vec4<i32> {
    let at = image * p.peep_image + j;
    if (PEEPHOLE == 0u || at >= p.peep_end) {
        return s;
    }
    let k = at % p.outputs % p.cells;
    let w = select(vec4<i32>(constant(0u, k), constant(1u, k), 0, 0), vec4<i32>(0, 0, 0, constant(2u, k)), last);
    return narrow(i_requant4(w * c, p.peep_factor, p.peep_shift) + s);
}

fn gated(s: vec4<i32>) -> vec4<i32> {
    return squash(s, vec4<u32>(3u), vec4<bool>(false, false, true, false));
}

// The cell's next state.
fn next(gates: vec4<i32>, before: i32) -> i32 {
    let fresh = select(gates.x, 32767 - gates.y, CIFG == 1u);
    // Both cut to 16 bits, as the reference stores them.
    let wide = vec4<i32>(gates.y * before, fresh * gates.z, 0, 0);
    let parts = (i_rounding_shift(wide, vec4<u32>(15u, p.fresh, 0u, 0u)) << vec4<u32>(16u)) >> vec4<u32>(16u);
    let c = clamp(parts.x + parts.y, -32768, 32767);
    return select(c, clamp(c, -p.cell_clip, p.cell_clip), p.cell_clip > 0);
}

// What a cell shows of its state through the output gate.
fn shown(gate: i32, c: i32, input_gate: i32) -> i32 {
    let t = squash(vec4<i32>(c), vec4<u32>(min(p.cell_bits, 6u)), vec4<bool>(true)).x;
    let y = select(t, input_gate, p.cell_bits > 6u);
    let r = i_requant4(vec4<i32>(gate * y), vec4<i32>(p.after.x), vec4<i32>(p.after.y)).x;
    return clamp(r + p.hidden_zero, -128, 127);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let image = wg.x;
    let cells = image * p.cell_row * 4u;
    for (var q = local; q < p.state_row; q += WG) {
        let x = state_unpack(state[image * p.state_row + q]);
        h[q * 4u] = x.x;
        h[q * 4u + 1u] = x.y;
        h[q * 4u + 2u] = x.z;
        h[q * 4u + 3u] = x.w;
    }
    for (var k = local; k < HIDDEN; k += WG) {
        hidden[k] = 0;
    }
    workgroupBarrier();
    for (var t = 0u; t < p.time; t++) {
        let row = image * p.image + t * p.step;
        for (var j = local; j < p.cells; j += WG) {
            var s = vec4<i32>();
            var first = vec4<i32>(0, early(row, 1u, j), early(row, 2u, j), early(row, 3u, j));
            if (CIFG == 0u) {
                first.x = early(row, 0u, j);
            }
            for (var q = 0u; q < p.state_row; q++) {
                let x = vec4<i32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]) - p.state_zero;
                if (CIFG == 0u) {
                    s.x += dot(weight(q, 0u, j), x);
                }
                s.y += dot(weight(q, 1u, j), x);
                s.z += dot(weight(q, 2u, j), x);
                s.w += dot(weight(q, 3u, j), x);
            }
            let late = clamp(i_requant4(s, p.factor, p.shift), vec4<i32>(-65536), vec4<i32>(65536));
            let before = cell[cells + j];
            let sum = peep(narrow(first + late), image, j, before, false);
            if (NORM == 1u) {
                for (var gate = 0u; gate < 4u; gate++) {
                    sums[gate * p.cells + j] = sum[gate];
                }
                continue;
            }
            var gates = gated(sum);
            let c = next(gates, before);
            cell[cells + j] = c;
            if (PEEPHOLE == 1u) {
                gates.w = gated(peep(sum, image, j, c, true)).w;
            }
            hidden[j] = shown(gates.w, c, gates.x);
        }
        if (NORM == 1u) {
            workgroupBarrier();
            if (local < 3u) {
                stats[local] = moments(local);
            }
            workgroupBarrier();
            for (var j = local; j < p.cells; j += WG) {
                let gates = gated(vec4<i32>(normal(0u, j), normal(1u, j), normal(2u, j), 0));
                let c = next(gates, cell[cells + j]);
                cell[cells + j] = c;
                let last = vec4<i32>(sums[3u * p.cells + j]);
                sums[3u * p.cells + j] = peep(last, image, j, c, true).w;
                // What is read again where there is no tangent.
                sums[j] = gates.x;
            }
            workgroupBarrier();
            if (local == 0u) {
                stats[3] = moments(3u);
            }
            workgroupBarrier();
            for (var j = local; j < p.cells; j += WG) {
                hidden[j] = shown(gated(vec4<i32>(normal(3u, j))).w, cell[cells + j], sums[j]);
            }
        }
        workgroupBarrier();
        for (var k = local; k < p.outputs; k += WG) {
            if (PROJECTION == 0u) {
                h[k] = hidden[k];
                continue;
            }
            var s = v[k];
            let base = p.state_row * (4u - CIFG) * p.cells;
            for (var q = 0u; q < p.cell_row; q++) {
                let x = vec4<i32>(hidden[q * 4u], hidden[q * 4u + 1u], hidden[q * 4u + 2u], hidden[q * 4u + 3u]);
                s += dot(w_unpack(w[base + q * p.outputs + k]), x);
            }
            let r = i_requant4(vec4<i32>(s), vec4<i32>(p.after.z), vec4<i32>(p.after.w)).x;
            let y = clamp(clamp(r, -65536, 65536) + p.state_zero, -128, 127);
            h[k] = select(y, clamp(y, -p.state_clip, p.state_clip), p.state_clip > 0);
        }
        workgroupBarrier();
        for (var q = local; q < p.state_row; q += WG) {
            let at = row * p.state_row + q;
            let y = vec4<i32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
            out[at] = out_pack(out_mask(finish(y, at), min(4u, p.outputs - q * 4u)));
        }
    }
    for (var q = local; q < p.state_row; q += WG) {
        let y = vec4<i32>(h[q * 4u], h[q * 4u + 1u], h[q * 4u + 2u], h[q * 4u + 3u]);
        state[image * p.state_row + q] = state_pack(y);
    }
}
