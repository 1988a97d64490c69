// f16, stored two to a word; arithmetic is f32.
alias ROLE_Elem4 = vec2<u32>;
alias ROLE_Val4 = vec4<f32>;
alias ROLE_Val = f32;
fn ROLE_unpack(e: ROLE_Elem4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(e.x), unpack2x16float(e.y));
}
fn ROLE_pack(v: vec4<f32>) -> ROLE_Elem4 {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
// The first n lanes, zeros behind.
fn ROLE_mask(v: vec4<f32>, n: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(n));
}
