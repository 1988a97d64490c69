//! Text operators: kernels.

use super::*;
use crate::kernel::Call;
use crate::strings;
use litegpu_graph::schema::LSHProjectionType;
use litegpu_graph::{DType, Op};

/// Strings that SKIP_GRAM makes at most: n-grams grow with the power of the skip size.
const MAX_GRAMS: usize = 1 << 20;

/// Bytes that they have at most.
const MAX_BYTES: usize = 1 << 28;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::LshProjection(o) => {
            if site.input(0)?.dtype != DType::F32 || site.output(0)?.dtype != DType::I32 {
                return no_kernel(site);
            }
            let dense = match o.type_ {
                LSHProjectionType::DENSE => true,
                LSHProjectionType::SPARSE => false,
                t => return Err(site.unsupported(format!("projection type {t:?}"))),
            };
            Ok(Box::new(move |call: &mut Call<'_>| project(call, dense)))
        }
        Op::SkipGram(o) => {
            if site.input(0)?.dtype != DType::String || site.output(0)?.dtype != DType::String {
                return no_kernel(site);
            }
            let (size, skip, all) = (o.ngram_size, o.max_skip_size, o.include_all_ngrams);
            let size = usize::try_from(size).map_err(|_| Error::invalid(format!("n-grams of {size} words")))?;
            Ok(Box::new(move |call: &mut Call<'_>| {
                let text = call.input(0)?;
                let list = strings::decode(text.bytes)?;
                let grams = skip_grams(list.first().copied().unwrap_or_default(), size, skip.max(0) as usize, all)?;
                let out = call.output(0)?;
                out.reshape(&[grams.len()])?;
                out.set_raw(&strings::encode(&grams)?)
            }))
        }
        _ => no_kernel(site),
    }
}

/// LSH_PROJECTION: each hash bit is the sign of a (weighted) sum of the items' hashes, salted with the bit's seed.
fn project(call: &mut Call<'_>, dense: bool) -> Result<()> {
    let (seeds, items) = (call.input(0)?, call.input(1)?);
    let bits = seeds.shape.get(1).copied().unwrap_or(0);
    let count = items.shape.first().copied().filter(|&n| n > 0).ok_or_else(|| Error::invalid("no item"))?;
    if items.dtype.bits() == 0 {
        return Err(Error::unsupported(format!("items of {}", items.dtype)));
    }
    let weights = match call.optional(2) {
        Some(w) if w.len() != count || w.dtype != DType::F32 => {
            return Err(Error::invalid(format!("weights of shape {:?} for {count} items", w.shape)));
        }
        Some(w) => Some(w.as_slice::<f32>()?),
        None => None,
    };
    if !dense && bits > 31 {
        return Err(Error::invalid(format!("{bits} bits in a hash of 32")));
    }
    let row = items.bytes.len() / count;
    let mut key = vec![0u8; 4 + row];
    let mut bit = |seed: f32| {
        let mut score = 0f64;
        key[..4].copy_from_slice(&seed.to_le_bytes());
        for i in 0..count {
            key[4..].copy_from_slice(&items.bytes[i * row..(i + 1) * row]);
            let hash = fingerprint(&key) as i64 as f64;
            score += weights.map_or(hash, |w| w[i] as f64 * hash);
        }
        (score > 0.0) as i32
    };
    let seeds = seeds.as_slice::<f32>()?;
    let out = call.output(0)?.as_mut_slice::<i32>()?;
    if dense {
        out.iter_mut().zip(seeds).for_each(|(o, &s)| *o = bit(s));
        return Ok(());
    }
    for (i, (o, seeds)) in out.iter_mut().zip(seeds.chunks(bits.max(1))).enumerate() {
        let hash = seeds.iter().fold(0i32, |h, &s| h << 1 | bit(s));
        *o = hash.wrapping_add((i as i32).wrapping_shl(bits as u32));
    }
    Ok(())
}

/// The words of a sentence joined to n-grams, with up to `skip` words left out between two neighbours.
fn skip_grams(text: &[u8], size: usize, skip: usize, all: bool) -> Result<Vec<Vec<u8>>> {
    let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let words: Vec<&[u8]> = text.split(space).filter(|w| !w.is_empty()).collect();
    let mut out = Vec::new();
    if size == 0 || words.len() < size {
        return Ok(out);
    }
    // Depth first: a gram comes after the longer grams that begin with it.
    let mut stack: Vec<usize> = Vec::with_capacity(size);
    let (mut next, mut total) = (0usize, 0usize);
    loop {
        // Enough words must follow for a whole gram, unless shorter ones count.
        let end = if all { words.len() } else { (words.len() + 1 + stack.len()).saturating_sub(size) };
        let limit = stack.last().map_or(end, |&w| end.min(w.saturating_add(skip).saturating_add(2)));
        if stack.len() < size && next < limit {
            stack.push(next);
            next += 1;
            continue;
        }
        if stack.len() == size || (all && !stack.is_empty()) {
            total += stack.iter().map(|&w| words[w].len() + 1).sum::<usize>();
            if out.len() == MAX_GRAMS || total > MAX_BYTES {
                return Err(Error::invalid(format!("more than {MAX_GRAMS} n-grams or {MAX_BYTES} bytes of them")));
            }
            let gram: Vec<&[u8]> = stack.iter().map(|&w| words[w]).collect();
            out.push(gram.join(b" ".as_slice()));
        }
        match stack.pop() {
            Some(w) => next = w + 1,
            None => return Ok(out),
        }
    }
}

const K0: u64 = 0xc3a5_c85c_97cb_3127;
const K1: u64 = 0xb492_b66f_be98_f273;
const K2: u64 = 0x9ae1_6a3b_2f90_404f;

fn word(s: &[u8], at: usize) -> u64 {
    s.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

fn half_word(s: &[u8], at: usize) -> u64 {
    s.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b) as u64)
}

fn mix(v: u64) -> u64 {
    v ^ v >> 47
}

fn join(u: u64, v: u64, mul: u64) -> u64 {
    let a = mix((u ^ v).wrapping_mul(mul));
    mix((v ^ a).wrapping_mul(mul)).wrapping_mul(mul)
}

fn weak(s: &[u8], at: usize, a: u64, b: u64) -> (u64, u64) {
    let (w, x, y, z) = (word(s, at), word(s, at + 8), word(s, at + 16), word(s, at + 24));
    let a = a.wrapping_add(w);
    let b = b.wrapping_add(a).wrapping_add(z).rotate_right(21);
    let c = a;
    let a = a.wrapping_add(x).wrapping_add(y);
    (a.wrapping_add(z), b.wrapping_add(a.rotate_right(44)).wrapping_add(c))
}

/// FarmHash's Fingerprint64 (the hash of the `na` variant), which the format fixes.
fn fingerprint(s: &[u8]) -> u64 {
    let n = s.len();
    let mul = K2.wrapping_add((n as u64).wrapping_mul(2));
    let add = u64::wrapping_add;
    match n {
        0 => K2,
        1..=3 => {
            let y = s[0] as u64 + ((s[n >> 1] as u64) << 8);
            let z = n as u64 + ((s[n - 1] as u64) << 2);
            mix(y.wrapping_mul(K2) ^ z.wrapping_mul(K0)).wrapping_mul(K2)
        }
        4..=7 => join(add(n as u64, half_word(s, 0) << 3), half_word(s, n - 4), mul),
        8..=16 => {
            let a = add(word(s, 0), K2);
            let b = word(s, n - 8);
            let c = add(b.rotate_right(37).wrapping_mul(mul), a);
            let d = add(a.rotate_right(25), b).wrapping_mul(mul);
            join(c, d, mul)
        }
        17..=32 => {
            let (a, b) = (word(s, 0).wrapping_mul(K1), word(s, 8));
            let (c, d) = (word(s, n - 8).wrapping_mul(mul), word(s, n - 16).wrapping_mul(K2));
            join(
                add(add(add(a, b).rotate_right(43), c.rotate_right(30)), d),
                add(add(a, add(b, K2).rotate_right(18)), c),
                mul,
            )
        }
        33..=64 => {
            let (a, b) = (word(s, 0).wrapping_mul(K2), word(s, 8));
            let (c, d) = (word(s, n - 8).wrapping_mul(mul), word(s, n - 16).wrapping_mul(K2));
            let y = add(add(add(a, b).rotate_right(43), c.rotate_right(30)), d);
            let z = join(y, add(add(a, add(b, K2).rotate_right(18)), c), mul);
            let (e, f) = (word(s, 16).wrapping_mul(mul), word(s, 24));
            let g = add(y, word(s, n - 32)).wrapping_mul(mul);
            let h = add(z, word(s, n - 24)).wrapping_mul(mul);
            join(
                add(add(add(e, f).rotate_right(43), g.rotate_right(30)), h),
                add(add(e, add(f, a).rotate_right(18)), g),
                mul,
            )
        }
        _ => long(s),
    }
}

/// More than 64 bytes: blocks of 64, then the last 64.
fn long(s: &[u8]) -> u64 {
    const SEED: u64 = 81;
    let add = u64::wrapping_add;
    let mut x = SEED.wrapping_mul(K2);
    let mut y = add(SEED.wrapping_mul(K1), 113);
    let mut z = mix(add(y.wrapping_mul(K2), 113)).wrapping_mul(K2);
    let (mut v, mut w) = ((0u64, 0u64), (0u64, 0u64));
    x = add(x, word(s, 0));
    let tail = (s.len() - 1) & 63;
    let end = (s.len() - 1) / 64 * 64;
    let mut step = |at: usize, mul: u64, nine: u64, v: &mut (u64, u64), w: &mut (u64, u64)| {
        x = add(add(add(x, y), v.0), word(s, at + 8)).rotate_right(37).wrapping_mul(mul);
        y = add(add(y, v.1), word(s, at + 48)).rotate_right(42).wrapping_mul(mul);
        x ^= w.1.wrapping_mul(nine);
        y = add(y, add(v.0.wrapping_mul(nine), word(s, at + 40)));
        z = add(z, w.0).rotate_right(33).wrapping_mul(mul);
        *v = weak(s, at, v.1.wrapping_mul(mul), add(x, w.0));
        *w = weak(s, at + 32, add(z, w.1), add(y, word(s, at + 16)));
        std::mem::swap(&mut z, &mut x);
        (x, y, z)
    };
    let mut state = (0, 0, 0);
    for at in (0..end).step_by(64) {
        state = step(at, K1, 1, &mut v, &mut w);
    }
    let mul = add(K1, (state.2 & 0xff) << 1);
    w.0 = add(w.0, tail as u64);
    v.0 = add(v.0, w.0);
    w.0 = add(w.0, v.0);
    let (x, y, z) = step(end + tail - 63, mul, 9, &mut v, &mut w);
    join(add(add(join(v.0, w.0, mul), mix(y).wrapping_mul(K0)), z), add(join(v.1, w.1, mul), x), mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints() {
        // What TensorFlow makes of the same bytes.
        let check = |s: &str, want: u64| assert_eq!(fingerprint(s.as_bytes()), want, "{s}");
        check("", 0x9ae16a3b2f90404f);
        check("a", 0xb3454265b6df75e3);
        check("abc", 0x24a5b3a074e7f369);
        check("abcd", 0x1a5502de4a1f8101);
        check("abcdefg", 0x3c40c92b1ccb7355);
        check("abcdefgh", 0xfee9d22990c82909);
        check("0123456789abcdef", 0x54b961e5dc834067);
        check("0123456789abcdefg", 0xa6ddff87a449d24a);
        check(&"x".repeat(32), 0xb30b9baccc74dc05);
        check(&"0123456789".repeat(4), 0x7a9c9c237a8283bc);
        check(&"q".repeat(64), 0xeccabf5bd55ae477);
        check(&"0123456789".repeat(7), 0x4905f2785f0c2818);
        check(&"z".repeat(128), 0x47e682d1afc425c3);
        check(&"0123456789".repeat(20), 0x861a2ca290dc8395);
    }

    #[test]
    fn grams() {
        let of = |text: &str, n, skip, all| {
            let g = skip_grams(text.as_bytes(), n, skip, all).unwrap();
            g.into_iter().map(|s| String::from_utf8(s).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of("a b  c", 2, 0, false), ["a b", "b c"]);
        assert_eq!(of("a b c", 2, 1, false), ["a b", "a c", "b c"]);
        assert_eq!(of("a b c", 2, 0, true), ["a b", "a", "b c", "b", "c"]);
        assert!(of("a", 2, 0, false).is_empty() && of("", 1, 0, true).is_empty());
        let many = "x ".repeat(2000);
        assert!(skip_grams(many.as_bytes(), 3, 2000, false).is_err());
        // Few grams among very many prefixes.
        assert_eq!(of(&"x ".repeat(60), 59, 60, false).len(), 60);
    }
}
