// Eight elements at a time: what the kernels that compute dot products read and write. A section is one way to move two
// quads; the declared type of the binding is ROLE_Word. Every word read costs a software adapter a branch per lane, so
// words are as wide as the adapter and the alignment of rows allow. Sections without "odd" want an even number of quads
// in a row, and quads a and b = a + 1 with a even. ROLE_raw reads, ROLE_open unpacks, ROLE_load8 does both.

//@ oct_quads
// Any storage, any row.
alias ROLE_Word = ROLE_Elem4;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
struct ROLE_Raw {
    a: ROLE_Word,
    b: ROLE_Word,
}
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE_Raw(ROLE[a], ROLE[b]);
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_unpack(r.a), ROLE_unpack(r.b));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_f32_u64
alias ROLE_Word = vec4<u64>;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
fn ROLE_words(a: u64, b: u64) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(u32(a), u32(a >> 32u), u32(b), u32(b >> 32u)));
}
alias ROLE_Raw = ROLE_Word;
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE[a / 2u];
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_words(r.x, r.y), ROLE_words(r.z, r.w));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_f32_u64_odd
alias ROLE_Word = vec2<u64>;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
fn ROLE_words(w: vec2<u64>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(u32(w.x), u32(w.x >> 32u), u32(w.y), u32(w.y >> 32u)));
}
struct ROLE_Raw {
    a: ROLE_Word,
    b: ROLE_Word,
}
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE_Raw(ROLE[a], ROLE[b]);
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_words(r.a), ROLE_words(r.b));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_f16_u64
alias ROLE_Word = vec2<u64>;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
alias ROLE_Raw = ROLE_Word;
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE[a / 2u];
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(
        ROLE_unpack(vec2<u32>(u32(r.x), u32(r.x >> 32u))),
        ROLE_unpack(vec2<u32>(u32(r.y), u32(r.y >> 32u))),
    );
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_f16_u64_odd
alias ROLE_Word = u64;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
struct ROLE_Raw {
    a: ROLE_Word,
    b: ROLE_Word,
}
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE_Raw(ROLE[a], ROLE[b]);
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(
        ROLE_unpack(vec2<u32>(u32(r.a), u32(r.a >> 32u))),
        ROLE_unpack(vec2<u32>(u32(r.b), u32(r.b >> 32u))),
    );
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_f16_u32
alias ROLE_Word = vec4<u32>;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
alias ROLE_Raw = ROLE_Word;
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE[a / 2u];
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_unpack(r.xy), ROLE_unpack(r.zw));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_b8_u32
alias ROLE_Word = vec2<u32>;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
alias ROLE_Raw = ROLE_Word;
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE[a / 2u];
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_unpack(r.x), ROLE_unpack(r.y));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_b8_dots
// Packed as they are, for dots_packed.
alias ROLE_Word = vec2<u32>;
struct ROLE_Oct {
    lo: u32,
    hi: u32,
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    let r = ROLE[a / 2u];
    return ROLE_Oct(r.x, r.y);
}

//@ oct_quads_dots
alias ROLE_Word = u32;
struct ROLE_Oct {
    lo: u32,
    hi: u32,
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_Oct(ROLE[a], ROLE[b]);
}

//@ oct_b4_u32
// int4: a word holds both quads.
alias ROLE_Word = u32;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
alias ROLE_Raw = ROLE_Word;
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE[a / 2u];
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_unpack(r), ROLE_unpack(r >> 16u));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ oct_b2_u32
// int2: half a word holds both quads.
alias ROLE_Word = u32;
struct ROLE_Oct {
    lo: ROLE_Val4,
    hi: ROLE_Val4,
}
alias ROLE_Raw = ROLE_Word;
fn ROLE_raw(a: u32, b: u32) -> ROLE_Raw {
    return ROLE[a / 4u] >> ((a & 2u) * 8u);
}
fn ROLE_open(r: ROLE_Raw) -> ROLE_Oct {
    return ROLE_Oct(ROLE_unpack(r), ROLE_unpack(r >> 8u));
}
fn ROLE_load8(a: u32, b: u32) -> ROLE_Oct {
    return ROLE_open(ROLE_raw(a, b));
}

//@ put_quads
// Quad a, and quad a + 1 if there are two.
alias ROLE_Word = ROLE_Elem4;
fn ROLE_store8(a: u32, two: bool, lo: ROLE_Val4, hi: ROLE_Val4) {
    ROLE[a] = ROLE_pack(lo);
    if (two) {
        ROLE[a + 1u] = ROLE_pack(hi);
    }
}

//@ put_f32_u64
alias ROLE_Word = vec2<u64>;
fn ROLE_word(v: vec2<f32>) -> u64 {
    return u64(bitcast<u32>(v.x)) | (u64(bitcast<u32>(v.y)) << 32u);
}
fn ROLE_store8(a: u32, two: bool, lo: ROLE_Val4, hi: ROLE_Val4) {
    ROLE[a] = vec2<u64>(ROLE_word(lo.xy), ROLE_word(lo.zw));
    if (two) {
        ROLE[a + 1u] = vec2<u64>(ROLE_word(hi.xy), ROLE_word(hi.zw));
    }
}

//@ put_f16_u64
alias ROLE_Word = u64;
fn ROLE_word(v: ROLE_Val4) -> u64 {
    let w = ROLE_pack(v);
    return u64(w.x) | (u64(w.y) << 32u);
}
fn ROLE_store8(a: u32, two: bool, lo: ROLE_Val4, hi: ROLE_Val4) {
    ROLE[a] = ROLE_word(lo);
    if (two) {
        ROLE[a + 1u] = ROLE_word(hi);
    }
}

//@ put_f16_u32
alias ROLE_Word = vec4<u32>;
fn ROLE_store8(a: u32, two: bool, lo: ROLE_Val4, hi: ROLE_Val4) {
    ROLE[a / 2u] = vec4<u32>(ROLE_pack(lo), ROLE_pack(hi));
}

//@ put_b8_u32
alias ROLE_Word = vec2<u32>;
fn ROLE_store8(a: u32, two: bool, lo: ROLE_Val4, hi: ROLE_Val4) {
    ROLE[a / 2u] = vec2<u32>(ROLE_pack(lo), ROLE_pack(hi));
}
