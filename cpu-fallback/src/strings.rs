//! The layout of string tensors: a count, one offset per string and one past the last, then the bytes.

use litegpu_graph::{Error, Result};

/// The strings of a tensor's bytes. No bytes at all mean no string.
///
/// # Errors
/// `Invalid` when count or offsets do not fit the bytes.
pub fn decode(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let broken = || Error::invalid("broken string tensor");
    let word = |i: usize| -> Result<usize> {
        let at = i.checked_mul(4).ok_or_else(broken)?;
        let b = bytes.get(at..).and_then(|b| b.first_chunk::<4>()).ok_or_else(broken)?;
        usize::try_from(i32::from_le_bytes(*b)).map_err(|_| broken())
    };
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let count = word(0)?;
    // Each string needs an offset: a count beyond the bytes must not reserve room.
    if count.checked_add(2).and_then(|n| n.checked_mul(4)).is_none_or(|n| n > bytes.len()) {
        return Err(broken());
    }
    (0..count).map(|i| bytes.get(word(i + 1)?..word(i + 2)?).ok_or_else(broken)).collect()
}

/// The bytes of a tensor that holds `strings`.
///
/// # Errors
/// `Invalid` when an offset would not fit 32 bits.
pub fn encode<S: AsRef<[u8]>>(strings: &[S]) -> Result<Vec<u8>> {
    let header = 4 * (strings.len() + 2);
    let total: usize = strings.iter().map(|s| s.as_ref().len()).sum::<usize>() + header;
    if i32::try_from(total).is_err() {
        return Err(Error::invalid(format!("string tensor of {total} bytes")));
    }
    let mut out = Vec::with_capacity(total);
    out.extend((strings.len() as i32).to_le_bytes());
    let mut at = header;
    for s in strings {
        out.extend((at as i32).to_le_bytes());
        at += s.as_ref().len();
    }
    out.extend((at as i32).to_le_bytes());
    strings.iter().for_each(|s| out.extend(s.as_ref()));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let s = [b"one".as_slice(), b"", b"three"];
        assert_eq!(decode(&encode(&s).unwrap()).unwrap(), s);
        assert_eq!(decode(&encode::<&[u8]>(&[]).unwrap()).unwrap().len(), 0);
    }

    #[test]
    fn broken_bytes_are_errors() {
        assert!(decode(&[1, 0, 0]).is_err());
        assert!(decode(&[0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0]).is_err());
        assert!(decode(&[1, 0, 0, 0, 12, 0, 0, 0, 99, 0, 0, 0]).is_err());
        assert!(decode(&[1, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0]).is_err());
    }
}
