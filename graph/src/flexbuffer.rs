//! A reader of flexbuffers, the self-describing format of custom operators' options.
//!
//! It reads what options hold: maps of scalars, strings and vectors, nested to any depth that the caller walks. Every
//! position is checked against the bytes when it is followed, nothing is allocated, and a broken buffer reads as null
//! where it is broken; so hostile options can give wrong values, never a panic or a loop.

use std::fmt;

const NULL: u8 = 0;
const INT: u8 = 1;
const UINT: u8 = 2;
const FLOAT: u8 = 3;
const KEY: u8 = 4;
const STRING: u8 = 5;
const INDIRECT_INT: u8 = 6;
const INDIRECT_UINT: u8 = 7;
const INDIRECT_FLOAT: u8 = 8;
const MAP: u8 = 9;
const VECTOR: u8 = 10;
/// First and last of the vectors whose elements share a type, with their length stored.
const TYPED: (u8, u8) = (11, 15);
/// Vectors of 2, 3 and 4 ints, uints or floats, without a length.
const FIXED: (u8, u8) = (16, 24);
const BOOL: u8 = 26;
const VECTOR_BOOL: u8 = 36;

/// A value inside a flexbuffer.
#[derive(Clone, Copy)]
pub struct Flex<'a> {
    bytes: &'a [u8],
    /// Where the value, or the offset to it, is.
    at: usize,
    /// Bytes of the value or offset at `at`.
    parent: usize,
    /// Bytes of the elements of what the offset leads to.
    width: usize,
    kind: u8,
}

impl<'a> Flex<'a> {
    /// The root of a buffer. Bytes that are no flexbuffer give a null.
    pub fn root(bytes: &'a [u8]) -> Flex<'a> {
        let null = Flex { bytes, at: 0, parent: 1, width: 1, kind: NULL };
        let [body @ .., packed, size] = bytes else { return null };
        match body.len().checked_sub(*size as usize) {
            Some(at) if matches!(size, 1 | 2 | 4 | 8) => Flex::at(bytes, at, *size as usize, *packed),
            _ => null,
        }
    }

    fn at(bytes: &'a [u8], at: usize, parent: usize, packed: u8) -> Flex<'a> {
        Flex { bytes, at, parent, width: 1 << (packed & 3), kind: packed >> 2 }
    }

    fn null(&self) -> Flex<'a> {
        Flex { kind: NULL, ..*self }
    }

    fn uint(&self, at: usize, width: usize) -> Option<u64> {
        let b = self.bytes.get(at..at.checked_add(width)?)?;
        let mut out = [0; 8];
        out.get_mut(..width)?.copy_from_slice(b);
        Some(u64::from_le_bytes(out))
    }

    fn int(&self, at: usize, width: usize) -> Option<i64> {
        let bits = 64 - 8 * width.min(8) as u32;
        Some(((self.uint(at, width)? << bits) as i64) >> bits)
    }

    fn float(&self, at: usize, width: usize) -> Option<f64> {
        let raw = self.uint(at, width)?;
        Some(match width {
            8 => f64::from_bits(raw),
            4 => f32::from_bits(raw as u32) as f64,
            2 => half::f16::from_bits(raw as u16).to_f64(),
            _ => return None,
        })
    }

    /// Where an offset leads.
    fn target(&self, at: usize, width: usize) -> Option<usize> {
        at.checked_sub(usize::try_from(self.uint(at, width)?).ok()?)
    }

    fn body(&self) -> Option<usize> {
        self.target(self.at, self.parent)
    }

    /// Whether there is no value.
    pub fn is_null(&self) -> bool {
        self.kind == NULL
    }

    /// The value as an integer; floats are truncated, strings are not parsed.
    pub fn as_i64(&self) -> Option<i64> {
        match self.kind {
            INT => self.int(self.at, self.parent),
            UINT | BOOL => self.uint(self.at, self.parent).map(|v| v as i64),
            FLOAT => self.float(self.at, self.parent).map(|v| v as i64),
            INDIRECT_INT => self.int(self.body()?, self.width),
            INDIRECT_UINT => self.uint(self.body()?, self.width).map(|v| v as i64),
            INDIRECT_FLOAT => self.float(self.body()?, self.width).map(|v| v as i64),
            _ => None,
        }
    }

    /// The value as a number.
    pub fn as_f64(&self) -> Option<f64> {
        match self.kind {
            FLOAT => self.float(self.at, self.parent),
            INDIRECT_FLOAT => self.float(self.body()?, self.width),
            UINT => self.uint(self.at, self.parent).map(|v| v as f64),
            INDIRECT_UINT => self.uint(self.body()?, self.width).map(|v| v as f64),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    /// The value as a truth value; numbers are true unless zero.
    pub fn as_bool(&self) -> Option<bool> {
        self.as_f64().map(|v| v != 0.0)
    }

    /// The bytes of a string or a key.
    pub fn as_str(&self) -> Option<&'a str> {
        let start = self.body()?;
        let bytes = match self.kind {
            STRING => {
                let n = usize::try_from(self.uint(start.checked_sub(self.width)?, self.width)?).ok()?;
                self.bytes.get(start..start.checked_add(n)?)?
            }
            KEY => zero_terminated(self.bytes.get(start..)?)?,
            _ => return None,
        };
        std::str::from_utf8(bytes).ok()
    }

    /// Number of elements of a vector or map; 0 for anything else.
    pub fn len(&self) -> usize {
        self.length().unwrap_or(0)
    }

    /// Whether the value has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn length(&self) -> Option<usize> {
        if (FIXED.0..=FIXED.1).contains(&self.kind) {
            return Some(((self.kind - FIXED.0) / 3 + 2) as usize);
        }
        if !matches!(self.kind, MAP | VECTOR | VECTOR_BOOL) && !(TYPED.0..=TYPED.1).contains(&self.kind) {
            return None;
        }
        let start = self.body()?;
        let n = usize::try_from(self.uint(start.checked_sub(self.width)?, self.width)?).ok()?;
        // A length beyond the bytes is broken: callers may loop over it.
        (n <= self.bytes.len()).then_some(n)
    }

    /// The i-th element of a vector, or value of a map; null when there is none.
    pub fn index(&self, i: usize) -> Flex<'a> {
        self.element(i).unwrap_or(self.null())
    }

    fn element(&self, i: usize) -> Option<Flex<'a>> {
        let n = self.length()?;
        if i >= n {
            return None;
        }
        let start = self.body()?;
        let at = start.checked_add(i.checked_mul(self.width)?)?;
        let kind = match self.kind {
            MAP | VECTOR => {
                let types = start.checked_add(n.checked_mul(self.width)?)?;
                return Some(Flex::at(self.bytes, at, self.width, *self.bytes.get(types.checked_add(i)?)?));
            }
            VECTOR_BOOL => BOOL,
            k if k >= FIXED.0 => (k - FIXED.0) % 3 + INT,
            // Strings in a typed vector are a deprecated form that nothing writes.
            k => k - TYPED.0 + INT,
        };
        Some(Flex { bytes: self.bytes, at, parent: self.width, width: 1, kind })
    }

    /// A map's value by key; null when the key is not there.
    pub fn get(&self, key: &str) -> Flex<'a> {
        self.lookup(key).unwrap_or(self.null())
    }

    fn lookup(&self, key: &str) -> Option<Flex<'a>> {
        if self.kind != MAP {
            return None;
        }
        let start = self.body()?;
        let field = start.checked_sub(3 * self.width)?;
        let keys = self.target(field, self.width)?;
        let width = usize::try_from(self.uint(field + self.width, self.width)?).ok()?;
        if !matches!(width, 1 | 2 | 4 | 8) {
            return None;
        }
        (0..self.length()?).find_map(|i| {
            let at = self.target(keys.checked_add(i.checked_mul(width)?)?, width)?;
            let rest = self.bytes.get(at..)?;
            // Compared in place: a terminator far away must not cost a walk for every key.
            (rest.get(..key.len())? == key.as_bytes() && rest.get(key.len()) == Some(&0)).then(|| self.element(i))?
        })
    }
}

fn zero_terminated(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|&b| b == 0).and_then(|n| bytes.get(..n))
}

impl fmt::Debug for Flex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flex {{ kind {}, {} bytes }}", self.kind, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// {"a": 3, "half": 0.5, "neg": -2, "yes": true, "v": [1, 2]} as the reference library writes it.
    fn sample() -> Vec<u8> {
        let mut b = Vec::new();
        let mut keys = Vec::new();
        for k in ["a", "half", "neg", "v", "yes"] {
            keys.push(b.len());
            b.extend(k.as_bytes());
            b.push(0);
        }
        b.push(2);
        let v = b.len();
        b.extend([1, 2]);
        while b.len() % 4 != 0 {
            b.push(0);
        }
        b.extend(5u32.to_le_bytes());
        let key_vector = b.len();
        for k in keys {
            b.extend(((b.len() - k) as u32).to_le_bytes());
        }
        b.extend(((b.len() - key_vector) as u32).to_le_bytes());
        b.extend(4u32.to_le_bytes());
        b.extend(5u32.to_le_bytes());
        let map = b.len();
        b.extend(3u32.to_le_bytes());
        b.extend(0.5f32.to_le_bytes());
        b.extend((-2i32).to_le_bytes());
        b.extend(((b.len() - v) as u32).to_le_bytes());
        b.extend(1u32.to_le_bytes());
        b.extend([INT << 2 | 2, FLOAT << 2 | 2, INT << 2 | 2, 11 << 2, BOOL << 2 | 2]);
        b.push((b.len() - map) as u8);
        b.extend([MAP << 2 | 2, 1]);
        b
    }

    #[test]
    fn reads_a_map() {
        let b = sample();
        let m = Flex::root(&b);
        assert_eq!(m.len(), 5);
        assert_eq!(m.get("a").as_i64(), Some(3));
        assert_eq!(m.get("half").as_f64(), Some(0.5));
        assert_eq!(m.get("neg").as_i64(), Some(-2));
        assert_eq!(m.get("yes").as_bool(), Some(true));
        let v = m.get("v");
        assert_eq!((v.len(), v.index(0).as_i64(), v.index(1).as_i64()), (2, Some(1), Some(2)));
        assert!(v.index(2).is_null() && m.get("none").is_null() && m.get("yes").get("a").is_null());
    }

    #[test]
    fn broken_bytes_never_panic() {
        let good = sample();
        let walk = |b: &[u8]| {
            let m = Flex::root(b);
            for k in ["a", "half", "neg", "v", "yes", "none"] {
                let v = m.get(k);
                let _ = (v.as_i64(), v.as_f64(), v.as_bool(), v.as_str(), v.len(), v.index(0).as_i64());
            }
        };
        for n in 0..good.len() {
            walk(&good[..n]);
            for x in [0, 1, 0x7f, 0x80, 0xff] {
                let mut b = good.clone();
                b[n] = x;
                walk(&b);
            }
        }
    }
}
