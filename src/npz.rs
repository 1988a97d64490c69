//! Array files: NumPy's `.npz`, a zip of `.npy` arrays.

use crate::error::{Error, Result};
use crate::tensor::{Tensor, join_strings, split_strings};
use litegpu_graph::{DType, elements};
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek, Write};

/// The longest `.npy` header that is read.
const MAX_HEADER: usize = 64 << 10;

/// Reads every array of an `.npz`, by name.
///
/// # Errors
/// `Invalid` when the file is no zip, or an array is broken or of a type that no tensor has.
pub fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| Error::invalid(format!("no .npz file: {e}")))?;
    let mut out = BTreeMap::new();
    for i in 0..zip.len() {
        let mut file = zip.by_index(i).map_err(|e| Error::invalid(format!("array {i}: {e}")))?;
        let name = file.name().trim_end_matches(".npy").to_string();
        let tensor = read_npy(&mut file).map_err(|e| e.at(format!("array '{name}'")))?;
        out.insert(name, tensor);
    }
    Ok(out)
}

/// Reads one `.npy` array. bfloat16, which NumPy lacks, comes as uint16 bits.
///
/// # Errors
/// `Invalid` when it is broken or of a type that no tensor has.
pub fn read_npy(from: &mut impl Read) -> Result<Tensor> {
    let head = Head::read(from)?;
    let bytes = head.body(from)?;
    match head.dtype {
        Some(d) => Tensor::from_bytes(d, &head.shape, &bytes),
        None => strings(&head.kind, head.item, &head.shape, &bytes),
    }
}

/// What the header of an array says.
#[derive(Debug)]
struct Head {
    kind: String,
    /// `None` for strings.
    dtype: Option<DType>,
    shape: Vec<usize>,
    /// Bytes of an element.
    item: usize,
    /// Bytes whose order is to be turned around, where it is not little endian.
    swap: Option<usize>,
    fortran: bool,
}

impl Head {
    fn read(from: &mut impl Read) -> Result<Head> {
        let mut magic = [0u8; 8];
        from.read_exact(&mut magic)?;
        if &magic[..6] != b"\x93NUMPY" {
            return Err(Error::invalid("no .npy array"));
        }
        let mut len = [0u8; 4];
        let wide = magic[6] >= 2;
        from.read_exact(&mut len[..if wide { 4 } else { 2 }])?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_HEADER {
            return Err(Error::invalid(format!("an array header of {len} bytes")));
        }
        let mut text = vec![0u8; len];
        from.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let (descr, fortran, shape) = parse_header(&text)
            .ok_or_else(|| Error::invalid(format!("cannot read the array header {:?}", text.trim())))?;
        let (order, code) = descr.split_at_checked(1).unwrap_or_default();
        let (kind, width) = code.split_at_checked(1).unwrap_or_default();
        let width: usize = width.parse().map_err(|_| Error::invalid(format!("array type {descr:?}")))?;
        let item = if kind == "U" { width.saturating_mul(4) } else { width };
        let dtype = match (kind, width) {
            ("f", 2) => Some(DType::F16),
            ("f", 4) => Some(DType::F32),
            ("f", 8) => Some(DType::F64),
            ("i", 1) => Some(DType::I8),
            ("i", 2) => Some(DType::I16),
            ("i", 4) => Some(DType::I32),
            ("i", 8) => Some(DType::I64),
            ("u", 1) => Some(DType::U8),
            ("u", 2) => Some(DType::U16),
            ("u", 4) => Some(DType::U32),
            ("u", 8) => Some(DType::U64),
            ("b", 1) => Some(DType::Bool),
            ("c", 8) => Some(DType::C64),
            ("c", 16) => Some(DType::C128),
            ("S" | "U", _) => None,
            _ => return Err(Error::invalid(format!("array type {descr:?} is no tensor type"))),
        };
        let unit = match kind {
            "c" => item / 2,
            "U" => 4,
            _ => item,
        };
        let swap = (order == ">").then_some(unit.max(1));
        let head = Head { kind: kind.to_string(), dtype, shape, item, swap, fortran };
        head.size(&head.shape)?;
        Ok(head)
    }

    /// Bytes of that many elements.
    fn size(&self, shape: &[usize]) -> Result<usize> {
        let size = self.item.checked_mul(elements(shape)).filter(|&n| n < 1 << 40);
        size.ok_or_else(|| Error::invalid(format!("an array of shape {shape:?} is too large")))
    }

    fn piece(&self, from: &mut impl Read, size: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        from.take(size as u64).read_to_end(&mut bytes)?;
        if bytes.len() != size {
            return Err(Error::invalid(format!("{} bytes of {size}", bytes.len())));
        }
        if let Some(unit) = self.swap {
            bytes.chunks_exact_mut(unit).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }

    fn body(&self, from: &mut impl Read) -> Result<Vec<u8>> {
        let bytes = self.piece(from, self.size(&self.shape)?)?;
        Ok(if self.fortran && self.shape.len() > 1 { from_fortran(&bytes, &self.shape, self.item) } else { bytes })
    }
}

/// A `.npy` array of numbers that is read piece by piece.
#[derive(Debug)]
pub struct Reader<R> {
    head: Head,
    dtype: DType,
    from: R,
    /// All of an array whose order is not that of its rows.
    whole: Option<Cursor<Vec<u8>>>,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// `Invalid` when it is broken, or of an array of strings.
    pub fn new(mut from: R) -> Result<Reader<R>> {
        let head = Head::read(&mut from)?;
        let dtype = head.dtype.ok_or_else(|| Error::invalid("an array of strings"))?;
        Ok(Reader { head, dtype, from, whole: None })
    }

    /// The array's shape.
    pub fn shape(&self) -> &[usize] {
        &self.head.shape
    }

    /// The next elements, as a tensor of this shape.
    ///
    /// # Errors
    /// `Invalid` when there are not as many.
    pub fn next(&mut self, shape: &[usize]) -> Result<Tensor> {
        let size = self.head.size(shape)?;
        if self.head.fortran && self.head.shape.len() > 1 {
            if self.whole.is_none() {
                self.whole = Some(Cursor::new(self.head.body(&mut self.from)?));
            }
            let mut bytes = vec![0; size];
            if let Some(whole) = &mut self.whole {
                whole.read_exact(&mut bytes).map_err(|_| Error::invalid("the array ends early"))?;
            }
            return Tensor::from_bytes(self.dtype, shape, &bytes);
        }
        Tensor::from_bytes(self.dtype, shape, &self.head.piece(&mut self.from, size)?)
    }
}

/// The dictionary of an array header: `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }`.
fn parse_header(text: &str) -> Option<(&str, bool, Vec<usize>)> {
    let after = |key: &str| Some(text.split_once(&format!("'{key}'"))?.1.trim_start().strip_prefix(':')?.trim_start());
    let descr = after("descr")?.strip_prefix('\'')?.split_once('\'')?.0;
    let fortran = after("fortran_order")?.starts_with("True");
    let dims = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let dims = dims.split(',').map(str::trim).filter(|d| !d.is_empty());
    let shape = dims.map(|d| d.trim_end_matches('L').parse().ok()).collect::<Option<Vec<usize>>>()?;
    Some((descr, fortran, shape))
}

fn from_fortran(bytes: &[u8], shape: &[usize], item: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = vec![0usize; shape.len()];
    for _ in 0..elements(shape) {
        let (mut from, mut stride) = (0, item);
        for (&i, &d) in at.iter().zip(shape) {
            from += i * stride;
            stride *= d;
        }
        out.extend_from_slice(bytes.get(from..from + item).unwrap_or_default());
        for (i, &d) in at.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    out
}

fn strings(kind: &str, item: usize, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
    let one = |b: &[u8]| -> Vec<u8> {
        if kind == "U" {
            let chars = b.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c));
            let text: String = chars.take_while(|&c| c != 0).filter_map(char::from_u32).collect();
            text.into_bytes()
        } else {
            let end = b.iter().rposition(|&c| c != 0).map_or(0, |i| i + 1);
            b.get(..end).unwrap_or_default().to_vec()
        }
    };
    let items: Vec<Vec<u8>> =
        if item == 0 { vec![Vec::new(); elements(shape)] } else { bytes.chunks_exact(item).map(one).collect() };
    Tensor::from_bytes(DType::String, shape, &join_strings(&items)?)
}

/// Writes tensors as an `.npz`. Types that NumPy lacks are written as the integers that hold their bits, four-bit and
/// two-bit ones widened to bytes.
///
/// # Errors
/// `Io` when writing fails.
pub fn write(to: impl Write + Seek, arrays: &[(String, Tensor)]) -> Result<()> {
    let mut zip = zip::ZipWriter::new(to);
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated).large_file(true);
    let failed = |e: zip::result::ZipError| Error::new(crate::ErrorKind::Io, e.to_string());
    for (name, t) in arrays {
        zip.start_file(format!("{name}.npy"), options).map_err(failed)?;
        zip.write_all(&npy(t)?)?;
    }
    zip.finish().map_err(failed)?;
    Ok(())
}

/// A tensor as a `.npy` array.
fn npy(t: &Tensor) -> Result<Vec<u8>> {
    let mut wide = Vec::new();
    let (descr, bytes) = match t.dtype() {
        DType::F16 => ("<f2".into(), t.bytes()),
        DType::F32 => ("<f4".into(), t.bytes()),
        DType::F64 => ("<f8".into(), t.bytes()),
        DType::I8 => ("|i1".into(), t.bytes()),
        DType::I16 => ("<i2".into(), t.bytes()),
        DType::I32 | DType::Resource => ("<i4".into(), t.bytes()),
        DType::I64 => ("<i8".into(), t.bytes()),
        DType::U8 | DType::F8E4M3 | DType::F8E5M2 => ("|u1".into(), t.bytes()),
        DType::U16 | DType::BF16 => ("<u2".into(), t.bytes()),
        DType::U32 => ("<u4".into(), t.bytes()),
        DType::U64 => ("<u8".into(), t.bytes()),
        DType::Bool => ("|b1".into(), t.bytes()),
        DType::C64 => ("<c8".into(), t.bytes()),
        DType::C128 => ("<c16".into(), t.bytes()),
        DType::I4 | DType::U4 | DType::I2 => {
            let values = crate::tensor::numbers(t.dtype(), t.bytes())?;
            wide.extend(values.iter().take(t.len()).map(|&v| v as i8 as u8));
            (if t.dtype() == DType::U4 { "|u1" } else { "|i1" }.into(), &wide[..])
        }
        DType::String => {
            let items = split_strings(t.bytes())?;
            let longest = items.iter().map(|s| s.len()).max().unwrap_or(0).max(1);
            for s in items {
                wide.extend_from_slice(s);
                wide.resize(wide.len() + longest - s.len(), 0);
            }
            (format!("|S{longest}"), &wide[..])
        }
        DType::Variant => return Err(Error::invalid("a variant tensor cannot be written as an array")),
    };
    let dims: Vec<String> = t.shape().iter().map(|d| format!("{d},")).collect();
    let mut head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.join(" "));
    // The header, with the ten bytes before it, ends on a multiple of 64.
    while (head.len() + 11) % 64 != 0 {
        head.push(' ');
    }
    head.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&(head.len() as u16).to_le_bytes());
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(bytes);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_survive() {
        let arrays = vec![
            ("a".to_string(), Tensor::new(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap()),
            ("b".to_string(), Tensor::new::<i64>(&[], &[-5]).unwrap()),
            ("s".to_string(), Tensor::strings(&[2], &["hello", "w"]).unwrap()),
            ("n".to_string(), Tensor::new::<u8>(&[0], &[]).unwrap()),
        ];
        let mut file = Cursor::new(Vec::new());
        write(&mut file, &arrays).unwrap();
        let back = read(file.get_ref()).unwrap();
        assert_eq!(back.len(), 4);
        for (name, t) in &arrays {
            let b = &back[name];
            assert_eq!((b.dtype(), b.shape(), b.bytes()), (t.dtype(), t.shape(), t.bytes()), "{name}");
        }
    }

    #[test]
    fn pieces_are_the_whole() {
        let t = Tensor::new(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let bytes = npy(&t).unwrap();
        let mut r = Reader::new(&bytes[..]).unwrap();
        assert_eq!(r.shape(), [3, 2]);
        for want in [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]] {
            assert_eq!(r.next(&[1, 2]).unwrap().to_f32().unwrap(), want);
        }
        assert!(r.next(&[1, 2]).is_err());
        // Columns first in the file, rows all the same.
        let head = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }\n";
        let mut v = b"\x93NUMPY\x01\x00".to_vec();
        v.extend_from_slice(&(head.len() as u16).to_le_bytes());
        v.extend_from_slice(head.as_bytes());
        v.extend_from_slice(&[0, 3, 1, 4, 2, 5]);
        let mut r = Reader::new(&v[..]).unwrap();
        assert_eq!(r.next(&[3]).unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0]);
        assert_eq!(r.next(&[3]).unwrap().to_f32().unwrap(), [3.0, 4.0, 5.0]);
        assert!(r.next(&[1]).is_err());
    }

    #[test]
    fn other_byte_orders_are_understood() {
        let npy = |descr: &str, fortran: &str, shape: &str, data: &[u8]| {
            let head = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
            let mut v = b"\x93NUMPY\x01\x00".to_vec();
            v.extend_from_slice(&(head.len() as u16).to_le_bytes());
            v.extend_from_slice(head.as_bytes());
            v.extend_from_slice(data);
            read_npy(&mut Cursor::new(v))
        };
        assert_eq!(npy(">i2", "False", "(2,)", &[0, 1, 1, 0]).unwrap().view::<i16>().unwrap(), [1, 256]);
        let t = npy("|u1", "True", "(2, 3)", &[0, 3, 1, 4, 2, 5]).unwrap();
        assert_eq!(t.view::<u8>().unwrap(), [0, 1, 2, 3, 4, 5]);
        let u = npy("<U2", "False", "(2,)", &[65, 0, 0, 0, 66, 0, 0, 0, 67, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(u.to_strings().unwrap(), ["AB", "C"]);
        assert!(npy("<f4", "False", "(99999999, 99999999)", &[]).is_err());
        assert!(npy("<f4", "False", "(4,)", &[0; 8]).is_err());
        assert!(npy("O", "False", "(4,)", &[0; 8]).is_err());
    }
}
