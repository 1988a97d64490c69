// int2: weights alone, which are read sixteen to a word (oct_b2_u32). Unpacks the low byte of a word.
alias ROLE_Elem4 = u32;
alias ROLE_Val4 = vec4<i32>;
alias ROLE_Val = i32;
fn ROLE_unpack(e: ROLE_Elem4) -> vec4<i32> {
    return vec4<i32>(vec4<u32>(e) << vec4<u32>(30u, 28u, 26u, 24u)) >> vec4<u32>(30u);
}
