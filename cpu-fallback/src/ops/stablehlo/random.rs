//! Counter-based random bits: Threefry-2x32 with 20 rounds and Philox-4x32 with 10 (Salmon et al., SC 2011).

use super::*;
use litegpu_graph::schema::RngAlgorithm;

pub(super) fn prepare(site: &Site<'_>, algorithm: RngAlgorithm) -> Result<Kernel> {
    let integers = matches!(site.output(1)?.dtype, DType::I32 | DType::U32 | DType::I64 | DType::U64);
    if site.input(0)?.dtype != DType::U64 || site.output(0)?.dtype != DType::U64 || !integers {
        return no_kernel(site);
    }
    let threefry = match algorithm {
        RngAlgorithm::THREEFRY => true,
        RngAlgorithm::PHILOX | RngAlgorithm::DEFAULT => false,
        a => return Err(site.unsupported(format!("algorithm {a:?}"))),
    };
    Ok(Box::new(move |call| {
        let state = call.input(0)?;
        let words = state.as_slice::<u32>()?;
        let key = match words.len() {
            4 => [words[0], words[1]],
            6 if !threefry => [words[0], words[1]],
            n => return Err(Error::invalid(format!("a state of {n} words"))),
        };
        let mut counter = match words {
            [.., a, b, c, d] if words.len() == 6 => [*a, *b, *c, *d],
            [k0, k1, a, b] => [*a, *b, *k0, *k1],
            _ => [0; 4],
        };
        let [next, out] = &mut *call.outputs else { return Err(Error::invalid("two outputs are needed")) };
        let out = out.as_mut_slice::<u32>()?;
        for piece in out.chunks_mut(if threefry { 2 } else { 4 }) {
            let bits = if threefry { threefry2(key, [counter[0], counter[1]]) } else { philox4(key, counter) };
            piece.iter_mut().zip(bits).for_each(|(o, b)| *o = b);
            counter[0] = counter[0].wrapping_add(1);
            if counter[0] == 0 {
                counter[1] = counter[1].wrapping_add(1);
            }
        }
        let next = next.as_mut_slice::<u32>()?;
        next.copy_from_slice(words);
        for (n, v) in next.iter_mut().zip([key[0], key[1], counter[0], counter[1]]) {
            *n = v;
        }
        Ok(())
    }))
}

fn threefry2(key: [u32; 2], counter: [u32; 2]) -> [u32; 4] {
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let [mut x, mut y] = [counter[0].wrapping_add(key[0]), counter[1].wrapping_add(key[1])];
    for round in 0..5u32 {
        let rotations = if round % 2 == 0 { [13, 15, 26, 6] } else { [17, 29, 16, 24] };
        for r in rotations {
            x = x.wrapping_add(y);
            y = y.rotate_left(r) ^ x;
        }
        x = x.wrapping_add(keys[(round as usize + 1) % 3]);
        y = y.wrapping_add(keys[(round as usize + 2) % 3]).wrapping_add(round + 1);
    }
    [x, y, 0, 0]
}

fn philox4(mut key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let p = 0xD251_1F53u64 * c[0] as u64;
        let q = 0xCD9E_8D57u64 * c[2] as u64;
        c = [(q >> 32) as u32 ^ c[1] ^ key[0], q as u32, (p >> 32) as u32 ^ c[3] ^ key[1], p as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(threefry2([0, 0], [0, 0])[..2], [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2([!0, !0], [!0, !0])[..2], [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(philox4([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }
}
