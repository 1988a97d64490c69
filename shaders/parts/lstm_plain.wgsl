// For an integer LSTM without normalization.
fn moments(gate: u32) -> Moments {
    return Moments();
}

fn normal(gate: u32, j: u32) -> i32 {
    return 0;
}
