// int8, four to a word; whoever packs has clamped.
alias ROLE_Elem4 = u32;
alias ROLE_Val4 = vec4<i32>;
alias ROLE_Val = i32;
fn ROLE_unpack(e: ROLE_Elem4) -> vec4<i32> {
    return unpack4xI8(e);
}
fn ROLE_pack(v: vec4<i32>) -> ROLE_Elem4 {
    return pack4xI8(v);
}
// The first n lanes, zeros behind.
fn ROLE_mask(v: vec4<i32>, n: u32) -> vec4<i32> {
    return select(vec4<i32>(), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(n));
}
