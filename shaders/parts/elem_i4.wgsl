// int4: weights alone, which are read eight to a word (oct_b4_u32). Unpacks the low half of a word.
alias ROLE_Elem4 = u32;
alias ROLE_Val4 = vec4<i32>;
alias ROLE_Val = i32;
fn ROLE_unpack(e: ROLE_Elem4) -> vec4<i32> {
    return vec4<i32>(vec4<u32>(e) << vec4<u32>(28u, 24u, 20u, 16u)) >> vec4<u32>(28u);
}
