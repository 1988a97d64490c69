// Layer normalization of an integer LSTM's gates: mean with 10, variance with 20 fractional bits, as the reference has them.

// Sums of 64 bits: (low, high), as the library has the products.
fn long_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn moments(gate: u32) -> Moments {
    let n = p.cells;
    var sum = 0;
    // Squares of 16-bit numbers, in halves that cannot overflow: workgroup memory holds no 2^16 cells.
    var low = 0u;
    var high = 0u;
    for (var j = 0u; j < n; j++) {
        let x = sums[gate * n + j];
        let square = u32(x * x);
        sum += x;
        low += square & 65535u;
        high += square >> 16u;
    }
    let size = u32(abs(sum));
    let mean = size / n * 1024u + size % n * 1024u / n;
    let share = 1048576u / n;
    let upper = long_mul(high, share);
    let squares = long_add(vec2<u32>(upper.x << 16u, (upper.y << 16u) | (upper.x >> 16u)), long_mul(low, share));
    let taken = long_mul(mean, mean);
    let less = squares.y < taken.y || (squares.y == taken.y && squares.x < taken.x);
    // The difference without the 20 fractional bits; negative ones round to zero.
    let rest = long_add(squares, long_add(~taken, vec2<u32>(1u, 0u)));
    let variance = select((rest.y << 12u) | (rest.x >> 20u), 0u, less);
    let root = inverse_root(select(i32(variance), p.guard[gate], variance == 0u));
    return Moments(select(i32(mean), -i32(mean), sum < 0), root);
}

fn normal(gate: u32, j: u32) -> i32 {
    if (gate < CIFG) {
        return 0;
    }
    let m = stats[gate];
    let centred = i_requant4(vec4<i32>(1024 * sums[gate * p.cells + j] - m.mean), vec4<i32>(m.root.x), vec4<i32>(-m.root.y));
    let scaled = centred.x * constant(3u + gate, j) + constant(7u + gate, j);
    // The nearest of units 2^10 times as large, halves away from zero.
    let size = i32((u32(select(scaled, -scaled, scaled < 0)) + 512u) >> 10u);
    let rounded = vec4<i32>(select(-size, size, scaled > 0));
    return narrow(i_requant4(rounded, vec4<i32>(p.norm_factor[gate]), vec4<i32>(p.norm_shift[gate]))).x;
}
