// The inverse root of an integer in fixed point, and the steps that it is made of.

fn mul(a: i32, b: i32) -> i32 {
    // The library multiplies by what is not negative.
    return i_high_mul(vec4<i32>(select(a, -a, b < 0)), vec4<i32>(abs(b))).x;
}

fn shift_right(a: i32, n: u32) -> i32 {
    return i_rounding_shift(vec4<i32>(a), vec4<u32>(n)).x;
}

// a * 2^n, saturated.
fn shift_left(a: i32, n: u32) -> i32 {
    let limit = i32(0x7fffffffu >> n);
    if (a > limit) {
        return 2147483647;
    }
    if (a < -limit - 1) {
        return -2147483647 - 1;
    }
    return a << n;
}

// 1 / sqrt(x) as (multiplier, shift to the right).
fn inverse_root(x: i32) -> vec2<i32> {
    if (x <= 1) {
        return vec2<i32>(2147483647, 0);
    }
    var v = x;
    var shift = 11;
    while (v >= 536870912) {
        v /= 4;
        shift += 1;
    }
    let pairs = (i32(countLeadingZeros(u32(v))) - 1) / 2 - 1;
    shift -= pairs;
    v = (v << u32(2 * pairs)) >> 1u;
    let half = shift_right(v, 1u);
    var r = 268435456;
    for (var k = 0; k < 5; k++) {
        let cube = shift_left(mul(mul(r, r), r), 6u);
        r = shift_left(mul(402653184, r) - mul(half, cube), 3u);
    }
    var m = mul(r, 1518500250);
    if (shift < 0) {
        m = m << u32(-shift);
        shift = 0;
    }
    return vec2<i32>(m, shift);
}
