// ARG_MAX and ARG_MIN along one axis: the first index of the extreme value.

override WG: u32 = 64u;
override LEAST: u32 = 0u;
// The innermost dimension is kept: quads are compared lane by lane. Else it is the axis.
override LANES: u32 = 1u;
// A whole workgroup looks through the rows of one output quad (only where the innermost dimension is the axis).
override COOP: u32 = 0u;

struct Params {
    // Output quads, quads in an output row, elements in it, dimensions kept.
    quads: u32,
    row: u32,
    width: u32,
    ndims: u32,
    // Elements along the axis, and their distance in quads (LANES).
    count: u32,
    stride: u32,
    pad0: u32,
    pad1: u32,
    // Kept dimensions: (size, stride in elements), innermost first.
    dims: array<vec4<u32>, 6>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

// The best value of each invocation and where it was.
var<workgroup> values: array<in0_Val, WG>;
var<workgroup> places: array<u32, WG>;

const NOWHERE: u32 = 0xffffffffu;

// The quad where the output element of that number starts.
fn start(number: u32) -> u32 {
    var rest = number;
    var at = 0u;
    for (var d = 0u; d < p.ndims; d++) {
        let dim = p.dims[d];
        at += (rest % dim.x) * dim.y;
        rest /= dim.x;
    }
    return at >> 2u;
}

fn before(a: in0_Val, b: in0_Val) -> bool {
    return select(a > b, a < b, LEAST == 1u);
}

struct Found {
    value: in0_Val,
    place: u32,
}

// Looks through every `step`-th quad of a row.
fn search(at: u32, first: u32, step: u32) -> Found {
    var f = Found(in0_Val(), NOWHERE);
    for (var q = first; q * 4u < p.count; q += step) {
        let e = in0_unpack(in0[at + q]);
        for (var l = 0u; l < min(4u, p.count - q * 4u); l++) {
            if (f.place == NOWHERE || before(e[l], f.value)) {
                f = Found(e[l], q * 4u + l);
            }
        }
    }
    return f;
}

fn lanes(i: u32) -> vec4<i32> {
    let at = start((i / p.row) * p.width + (i % p.row) * 4u);
    var best = in0_unpack(in0[at]);
    var index = vec4<i32>();
    for (var k = 1u; k < p.count; k++) {
        let v = in0_unpack(in0[at + k * p.stride]);
        let better = select(v > best, v < best, vec4<bool>(LEAST == 1u));
        best = select(best, v, better);
        index = select(index, vec4<i32>(i32(k)), better);
    }
    return index;
}

// One invocation for each output quad. A function of its own: after a return that only some invocations take there may be
// no barrier in the same one.
fn alone(i: u32) {
    if (i >= p.quads) {
        return;
    }
    let used = min(4u, p.width - (i % p.row) * 4u);
    var v = vec4<i32>();
    if (LANES == 1u) {
        v = lanes(i);
    } else {
        for (var l = 0u; l < used; l++) {
            v[l] = i32(search(start((i / p.row) * p.width + (i % p.row) * 4u + l), 0u, 1u).place);
        }
    }
    out[i] = out_pack(out_mask(v, used));
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if (COOP == 0u) {
        alone(linear_id(wg, count, local, WG));
        return;
    }
    let i = linear_group(wg, count);
    if (i >= p.quads) {
        return;
    }
    var v = vec4<i32>();
    let used = min(4u, p.width - (i % p.row) * 4u);
    for (var l = 0u; l < used; l++) {
        let mine = search(start((i / p.row) * p.width + (i % p.row) * 4u + l), local, WG);
        values[local] = mine.value;
        places[local] = mine.place;
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if (local < half && places[local + half] != NOWHERE) {
                let other = values[local + half];
                let own = values[local];
                let earlier = places[local + half] < places[local];
                if (places[local] == NOWHERE || before(other, own) || (other == own && earlier)) {
                    values[local] = other;
                    places[local] = places[local + half];
                }
            }
            workgroupBarrier();
        }
        v[l] = i32(places[0]);
        workgroupBarrier();
    }
    if (local == 0u) {
        out[i] = out_pack(v);
    }
}
