// Brings matrices into the rows that a product reads: row r of the result holds column or row r of the operand, with
// padding of a given value behind it and below. An invocation writes one quad.

override WG: u32 = 64u;
// Whether rows of the result are columns of the operand.
override TURN: u32 = 0u;

struct Params {
    quads: u32,
    // Of the result: quads of a row, rows of a matrix.
    row: u32,
    rows: u32,
    // Elements of a row and rows that come from the operand.
    width: u32,
    height: u32,
    // Of the operand: quads of a row, quads of a matrix.
    from_row: u32,
    from_matrix: u32,
    pad: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> in0: array<in0_Elem4>;
@group(0) @binding(2) var<storage, read_write> out: array<out_Elem4>;

fn element(base: u32, r: u32, c: u32) -> in0_Val {
    let v = in0_unpack(in0[base + r * p.from_row + c / 4u]);
    let two = select(v.xy, v.zw, (c & 2u) != 0u);
    return select(two.x, two.y, (c & 1u) != 0u);
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
    let row = i / p.row;
    let c = (i - row * p.row) * 4u;
    let m = row / p.rows;
    let r = row - m * p.rows;
    let base = m * p.from_matrix;
    var v = in0_Val4(in0_Val(p.pad));
    if (r < p.height && c < p.width) {
        if (TURN == 1u) {
            let last = p.width - 1u;
            v = in0_Val4(
                element(base, c, r),
                element(base, min(c + 1u, last), r),
                element(base, min(c + 2u, last), r),
                element(base, min(c + 3u, last), r),
            );
        } else {
            v = in0_unpack(in0[base + r * p.from_row + c / 4u]);
        }
        v = select(in0_Val4(in0_Val(p.pad)), v, vec4<u32>(c, c + 1u, c + 2u, c + 3u) < vec4<u32>(p.width));
    }
    out[i] = out_pack(v);
}
