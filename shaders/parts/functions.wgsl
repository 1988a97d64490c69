// The library: small functions that kernels call and epilogues are made of. A section starts with its name and the
// sections it needs; only what is called becomes part of a module. Float functions take and give vec4<f32>, integer
// functions vec4<i32>.

//@ f_relu:
fn f_relu(x: vec4<f32>) -> vec4<f32> {
    return max(x, vec4<f32>());
}

//@ f_clamp:
fn f_clamp(x: vec4<f32>, low: f32, high: f32) -> vec4<f32> {
    return min(max(x, vec4<f32>(low)), vec4<f32>(high));
}
