// TOPK_V2: a workgroup picks a row's k greatest elements one after the other. Of equal ones the first comes first.

override WG: u32 = 64u;

struct Params {
    rows: u32,
    // Quads and elements of an input row.
    row: u32,
    width: u32,
    // Elements and quads of an output row.
    k: u32,
    out_row: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<in0_Elem4>;
@group(0) @binding(3) var<storage, read_write> places_out: array<vec4<i32>>;

var<workgroup> values: array<in0_Val, WG>;
var<workgroup> places: array<u32, WG>;

const NOWHERE: u32 = 0xffffffffu;

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let r = linear_group(wg, count);
    if (r >= p.rows) {
        return;
    }
    var last = in0_Val();
    var last_place = NOWHERE;
    var quad = in0_Val4();
    var quad_places = vec4<i32>();
    for (var t = 0u; t < p.k; t++) {
        var value = in0_Val();
        var place = NOWHERE;
        for (var q = local; q < p.row; q += WG) {
            let e = in0_unpack(in0[r * p.row + q]);
            for (var l = 0u; l < min(4u, p.width - q * 4u); l++) {
                let v = e[l];
                let at = q * 4u + l;
                let behind = last_place == NOWHERE || v < last || (v == last && at > last_place);
                if (behind && (place == NOWHERE || v > value)) {
                    value = v;
                    place = at;
                }
            }
        }
        values[local] = value;
        places[local] = place;
        workgroupBarrier();
        for (var half = WG / 2u; half > 0u; half /= 2u) {
            if (local < half && places[local + half] != NOWHERE) {
                let other = values[local + half];
                let own = values[local];
                let earlier = places[local + half] < places[local];
                if (places[local] == NOWHERE || other > own || (other == own && earlier)) {
                    values[local] = other;
                    places[local] = places[local + half];
                }
            }
            workgroupBarrier();
        }
        last = values[0];
        last_place = places[0];
        workgroupBarrier();
        quad[t & 3u] = last;
        // Only elements that compare with nothing (NaN) are left when none is found.
        quad_places[t & 3u] = select(i32(last_place), 0, last_place == NOWHERE);
        if (local == 0u && ((t & 3u) == 3u || t == p.k - 1u)) {
            let at = r * p.out_row + t / 4u;
            out[at] = in0_pack(in0_mask(quad, (t & 3u) + 1u));
            places_out[at] = select(vec4<i32>(), quad_places, vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(t & 3u));
        }
    }
}
