// f16, stored natively; arithmetic is f32.
alias ROLE_Elem4 = vec4<f16>;
alias ROLE_Val4 = vec4<f32>;
alias ROLE_Val = f32;
fn ROLE_unpack(e: ROLE_Elem4) -> vec4<f32> {
    return vec4<f32>(e);
}
fn ROLE_pack(v: vec4<f32>) -> ROLE_Elem4 {
    return vec4<f16>(v);
}
// The first n lanes, zeros behind.
fn ROLE_mask(v: vec4<f32>, n: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(n));
}
