// What conv_four.wgsl and conv_tile.wgsl sum up: eight channels of a pixel, with the weights of all eight in a step.

// The weights of eight channels in one step.
struct Rows {
    r0: Factors,
    r1: Factors,
    r2: Factors,
    r3: Factors,
    r4: Factors,
    r5: Factors,
    r6: Factors,
    r7: Factors,
}

// Sums of eight channels.
struct Sums {
    lo: acc_Val4,
    hi: acc_Val4,
}

fn add(a: Sums, f: Factors, r: Rows) -> Sums {
    return Sums(
        a.lo + acc_Val4(dot8(f, r.r0), dot8(f, r.r1), dot8(f, r.r2), dot8(f, r.r3)),
        a.hi + acc_Val4(dot8(f, r.r4), dot8(f, r.r5), dot8(f, r.r6), dot8(f, r.r7)),
    );
}
