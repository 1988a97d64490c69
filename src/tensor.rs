//! Tensor values as callers hold them.

use crate::error::{Error, Result};
use bytemuck::Pod;
use litegpu_cpu::Value;
use litegpu_graph::{DType, Quant};

/// A value lent by a session: type, shape, bytes.
pub use litegpu_cpu::View;

/// A type of tensor elements. Booleans are bytes (0 or 1), complex numbers pairs of floats.
pub trait Element: Pod {
    /// The tensor type that [`Tensor::new`] gives a slice of this type.
    const DTYPE: DType;
    /// Whether a tensor of type `t` can be viewed as a slice of this type.
    fn fits(t: DType) -> bool {
        t == Self::DTYPE
    }
}

macro_rules! elements {
    ($($t:ty = $d:ident $(, also $also:ident)?;)*) => { $(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn fits(t: DType) -> bool { t == DType::$d $(|| t == DType::$also)? }
        }
    )* };
}

elements! {
    f32 = F32;
    f64 = F64;
    half::f16 = F16;
    half::bf16 = BF16;
    i8 = I8;
    u8 = U8, also Bool;
    i16 = I16;
    u16 = U16;
    i32 = I32, also Resource;
    u32 = U32;
    i64 = I64;
    u64 = U64;
    [f32; 2] = C64;
    [f64; 2] = C128;
}

/// A tensor: element type, shape, and the elements as dense little-endian bytes, outermost dimension first.
#[derive(Debug, Clone)]
pub struct Tensor(Value);

impl Tensor {
    /// A tensor with a copy of `data`.
    ///
    /// # Errors
    /// `Invalid` when the number of elements does not fit the shape.
    pub fn new<T: Element>(shape: &[usize], data: &[T]) -> Result<Tensor> {
        Tensor::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(data))
    }

    /// A tensor with a copy of `bytes`.
    ///
    /// # Errors
    /// `Invalid` when the number of bytes does not fit type and shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
        if dtype == DType::String {
            let items = split_strings(bytes)?;
            if items.len() != litegpu_graph::elements(shape) {
                return Err(Error::invalid(format!("{} strings given for the shape {shape:?}", items.len())));
            }
        }
        Ok(Tensor(Value::from_bytes(dtype, shape, bytes)?))
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// `Invalid` when the memory cannot be had.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let mut v = Value::zeros(dtype, shape)?;
        if dtype == DType::String {
            v.set_raw(&join_strings(&vec![Vec::new(); litegpu_graph::elements(shape)])?)?;
        }
        Ok(Tensor(v))
    }

    /// A tensor of strings.
    ///
    /// # Errors
    /// `Invalid` when their number does not fit the shape, or they are longer than the format can say.
    pub fn strings<S: AsRef<[u8]>>(shape: &[usize], items: &[S]) -> Result<Tensor> {
        let items: Vec<Vec<u8>> = items.iter().map(|s| s.as_ref().to_vec()).collect();
        Tensor::from_bytes(DType::String, shape, &join_strings(&items)?)
    }

    pub(crate) fn from_view(v: &View<'_>) -> Result<Tensor> {
        let mut value = Value::from_bytes(v.dtype, v.shape, v.bytes)?;
        value.quant = v.quant.cloned().map(Into::into);
        Ok(Tensor(value))
    }

    /// As the executor's value.
    pub fn into_value(self) -> Value {
        self.0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
    /// Quantization, for a session's outputs as the graph declares it.
    pub fn quant(&self) -> Option<&Quant> {
        self.0.quant.as_deref()
    }
    /// The tensor with quantization, so that [`Tensor::to_f32`] knows what its integers mean.
    pub fn with_quant(mut self, quant: Option<Quant>) -> Tensor {
        self.0.quant = quant.map(Into::into);
        self
    }
    /// As a borrowed value.
    pub fn as_view(&self) -> View<'_> {
        self.0.view()
    }

    /// The elements.
    ///
    /// # Errors
    /// `Invalid` when `T` is not the element type.
    pub fn view<T: Element>(&self) -> Result<&[T]> {
        self.check::<T>()?;
        Ok(self.0.as_slice()?)
    }

    /// The elements, to write.
    ///
    /// # Errors
    /// `Invalid` when `T` is not the element type.
    pub fn view_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check::<T>()?;
        Ok(self.0.as_mut_slice()?)
    }

    fn check<T: Element>(&self) -> Result<()> {
        match T::fits(self.dtype()) {
            true => Ok(()),
            false => Err(Error::invalid(format!("a {} tensor is not a slice of {}", self.dtype(), T::DTYPE))),
        }
    }

    /// The elements as real numbers: quantized integers through scale and zero point, anything else converted. Of
    /// complex numbers the real and imaginary parts follow each other.
    ///
    /// # Errors
    /// `Invalid` for strings and opaque types.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let raw = numbers(self.dtype(), self.bytes())?;
        let quant = self.quant().and_then(Quant::per_tensor).filter(|_| !self.dtype().is_float());
        Ok(match quant {
            Some((scale, zero)) if scale > 0.0 => {
                raw.iter().map(|v| ((v - f64::from(zero)) * f64::from(scale)) as f32).collect()
            }
            _ => raw.iter().map(|&v| v as f32).collect(),
        })
    }

    /// The strings of a string tensor.
    ///
    /// # Errors
    /// `Invalid` for another type.
    pub fn to_strings(&self) -> Result<Vec<String>> {
        if self.dtype() != DType::String {
            return Err(Error::invalid(format!("a {} tensor holds no strings", self.dtype())));
        }
        Ok(split_strings(self.bytes())?.into_iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }
}

/// Elements as numbers, without regard to quantization.
pub(crate) fn numbers(dtype: DType, bytes: &[u8]) -> Result<Vec<f64>> {
    fn map<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
    }
    Ok(match dtype {
        DType::F32 | DType::C64 => map(bytes, |b| f64::from(f32::from_le_bytes(b))),
        DType::F64 | DType::C128 => map(bytes, f64::from_le_bytes),
        DType::F16 => map(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
        DType::BF16 => map(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
        DType::I8 => bytes.iter().map(|&b| f64::from(b as i8)).collect(),
        DType::U8 | DType::Bool => bytes.iter().map(|&b| f64::from(b)).collect(),
        DType::I16 => map(bytes, |b| f64::from(i16::from_le_bytes(b))),
        DType::U16 => map(bytes, |b| f64::from(u16::from_le_bytes(b))),
        DType::I32 | DType::Resource => map(bytes, |b| f64::from(i32::from_le_bytes(b))),
        DType::U32 => map(bytes, |b| f64::from(u32::from_le_bytes(b))),
        DType::I64 => map(bytes, |b| i64::from_le_bytes(b) as f64),
        DType::U64 => map(bytes, |b| u64::from_le_bytes(b) as f64),
        DType::I4 => bytes.iter().flat_map(|&b| [f64::from((b << 4) as i8 >> 4), f64::from(b as i8 >> 4)]).collect(),
        DType::U4 => bytes.iter().flat_map(|&b| [f64::from(b & 15), f64::from(b >> 4)]).collect(),
        DType::I2 => {
            let at = |b: u8, i: u32| f64::from((b << (6 - 2 * i)) as i8 >> 6);
            bytes.iter().flat_map(|&b| [at(b, 0), at(b, 1), at(b, 2), at(b, 3)]).collect()
        }
        DType::F8E4M3 | DType::F8E5M2 | DType::String | DType::Variant => {
            return Err(Error::invalid(format!("{dtype} elements cannot be shown as numbers")));
        }
    })
}

/// Joins strings in the format's way: count, offsets from the start of the buffer, the end's offset, the bytes.
pub(crate) fn join_strings(items: &[Vec<u8>]) -> Result<Vec<u8>> {
    let head = items.len().saturating_add(2).saturating_mul(4);
    let total = items.iter().fold(head, |n, s| n.saturating_add(s.len()));
    if i32::try_from(total).is_err() {
        return Err(Error::invalid(format!("strings of {total} bytes are more than the format can address")));
    }
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&(items.len() as i32).to_le_bytes());
    let mut at = head;
    out.extend_from_slice(&(at as i32).to_le_bytes());
    for s in items {
        at += s.len();
        out.extend_from_slice(&(at as i32).to_le_bytes());
    }
    for s in items {
        out.extend_from_slice(s);
    }
    Ok(out)
}

/// The inverse of [`join_strings`]. An empty buffer holds no string.
pub(crate) fn split_strings(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let bad = || Error::invalid("a string buffer is broken");
    let word = |i: usize| -> Result<usize> {
        let b = i.checked_mul(4).and_then(|at| bytes.get(at..at.checked_add(4)?)).ok_or_else(bad)?;
        let v = i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        usize::try_from(v).map_err(|_| bad())
    };
    let n = word(0)?;
    if n > bytes.len() / 4 {
        return Err(bad());
    }
    (0..n).map(|i| bytes.get(word(i + 1)?..word(i + 2)?).ok_or_else(bad)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_survive() {
        let t = Tensor::strings(&[3], &["a", "", "ccc"]).unwrap();
        assert_eq!(t.to_strings().unwrap(), ["a", "", "ccc"]);
        assert!(Tensor::strings(&[2], &["a"]).is_err());
        assert!(split_strings(&[255, 255, 255, 127, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn views_check_types() {
        let mut t = Tensor::new(&[2, 2], &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(t.view::<f32>().unwrap()[3], 4.0);
        t.view_mut::<f32>().unwrap()[0] = 9.0;
        assert_eq!(t.to_f32().unwrap(), [9.0, 2.0, 3.0, 4.0]);
        assert!(t.view::<i32>().is_err());
        assert!(Tensor::new(&[3], &[1u8]).is_err());
    }

    #[test]
    fn quantized_values_are_real_numbers() {
        let t = Tensor::new(&[2], &[-128i8, 127]).unwrap().with_quant(Some(Quant::scalar(0.5, -128)));
        assert_eq!(t.to_f32().unwrap(), [0.0, 127.5]);
        assert_eq!(numbers(DType::I4, &[0xf1]).unwrap(), [1.0, -1.0]);
        assert_eq!(numbers(DType::I2, &[0b1110_0100]).unwrap(), [0.0, 1.0, -2.0, -1.0]);
    }
}
