// conv_tile.wgsl by cooperative matrices: 64 channels of 64 pixels, the sums of which the subgroups of a workgroup hold
// together. In each step an invocation brings sixteen factors of one pixel and the weights of one channel into
// workgroup memory, from where subgroups load them as matrices. The parameters are those of conv.wgsl; products are exact
// and are added in f32, in an order that is the hardware's.

const WG: u32 = 64u;
// Factors of a step, and the elements from one row of them to the next: rows begin in different banks.
const DEPTH: u32 = 16u;
const PITCH: u32 = 24u;
// Rows and columns of matrices that a subgroup sums up, and how many subgroups share the pixels.
const ROWS: u32 = 64u / SIDE / DOWN;
const COLUMNS: u32 = 64u / SIDE / ACROSS;

var<workgroup> pixels: array<Part, 1536>;
var<workgroup> channels: array<Part, 1536>;
var<workgroup> results: array<f32, 4096>;

fn lay_pixel(at: u32, f: Factors) {
    for (var i = 0u; i < 4u; i++) {
        pixels[at + i] = Part(f.lo[i]);
        pixels[at + 4u + i] = Part(f.hi[i]);
    }
}

fn lay_channel(at: u32, f: Factors) {
    for (var i = 0u; i < 4u; i++) {
        channels[at + i] = Part(f.lo[i]);
        channels[at + 4u + i] = Part(f.hi[i]);
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) team: u32,
) {
    let tile = (wg.z * p.more_tiles + wg.x) * WG;
    var mine = origin(tile + lane);
    mine.base += wg.z * p.x_batch;
    // Weights end with the last channel: those past it repeat it, and are masked in the result.
    let last = (p.nq - 1u) * 4u + p.tail - 1u;
    let first = wg.z * p.w_batch + min(wg.y * WG + lane, last) * p.steps;
    let row = team / ACROSS * ROWS * SIDE;
    let column = team % ACROSS * COLUMNS * SIDE;
    var sums: array<MatrixC, ROWS * COLUMNS>;
    // The tap and the quad in it of the step's first half.
    var dy = 0i;
    var kx = 0u;
    var c = 0u;
    for (var s = 0u; s < p.steps; s += 2u) {
        workgroupBarrier();
        for (var half = 0u; half < 2u; half++) {
            var f = Factors(outside(), outside());
            var g = f;
            if (s + half < p.steps) {
                var c1 = c + 1u;
                var kx1 = kx;
                if (POINT == 0u) {
                    let wrap = c1 == p.tap;
                    kx1 = select(kx, kx + 1u, wrap);
                    c1 = select(c1, 0u, wrap);
                }
                let ok1 = kx1 < p.kw && c1 < p.cq;
                f = factors(mine, dy, i32(kx) * p.dilation_x, c, i32(kx1) * p.dilation_x, c1, ok1);
                g = weights(first + s + half);
                // On to the next step.
                c1 += 1u;
                c = c1;
                if (POINT == 0u) {
                    let next = c1 == p.tap;
                    c = select(c1, 0u, next);
                    kx = select(kx1, kx1 + 1u, next);
                    let down = kx >= p.kw;
                    kx = select(kx, 0u, down);
                    c = select(c, 0u, down);
                    dy = select(dy, dy + p.dilation_y, down);
                }
            }
            lay_pixel(lane * PITCH + half * 8u, f);
            lay_channel(lane * PITCH + half * 8u, g);
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k += SIDE) {
            var a: array<MatrixA, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                a[r] = coopLoadT<MatrixA>(&pixels[(row + r * SIDE) * PITCH + k], PITCH);
            }
            for (var n = 0u; n < COLUMNS; n++) {
                let b = coopLoad<MatrixB>(&channels[(column + n * SIDE) * PITCH + k], PITCH);
                for (var r = 0u; r < ROWS; r++) {
                    sums[n * ROWS + r] = coopMultiplyAdd(a[r], b, sums[n * ROWS + r]);
                }
            }
        }
    }
    for (var n = 0u; n < COLUMNS; n++) {
        for (var r = 0u; r < ROWS; r++) {
            coopStoreT(sums[n * ROWS + r], &results[(row + r * SIDE) * WG + column + n * SIDE], WG);
        }
    }
    workgroupBarrier();
    let own = lane % 8u * 8u;
    let channel = wg.y * WG + own;
    let low = chan4(chan(channel), chan(channel + 1u), chan(channel + 2u), chan(channel + 3u));
    let high = chan4(chan(channel + 4u), chan(channel + 5u), chan(channel + 6u), chan(channel + 7u));
    let to = wg.z * p.to_batch;
    for (var i = 0u; i < 8u; i++) {
        let at = (lane / 8u + 8u * i) * WG + own;
        let pixel = tile + lane / 8u + 8u * i;
        let lo = vec4<f32>(results[at], results[at + 1u], results[at + 2u], results[at + 3u]);
        let hi = vec4<f32>(results[at + 4u], results[at + 5u], results[at + 6u], results[at + 7u]);
        write(pixel < p.pixels && channel / 4u < p.nq, to + origin(pixel).to, channel / 4u, low, high, lo, hi);
    }
}
