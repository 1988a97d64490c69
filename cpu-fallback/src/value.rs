//! Tensor values: aligned bytes with a type and a shape.

use bytemuck::{Pod, Zeroable};
use bytes::Bytes;
use litegpu_graph::{DType, Error, Quant, Result, Shape, elements};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// 64 bytes aligned to a cache line: the unit of tensor storage, so that any element type can view it without unsafe.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// The memory that the tensors of one executor may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, used: AtomicUsize::new(0) })
    }
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
    fn grow(&self, bytes: usize) -> Result<()> {
        let fits = |used: usize| used.checked_add(bytes).filter(|&n| n <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => Err(Error::invalid(format!(
                "{bytes} bytes more than the {used} in use would exceed the memory limit of {} bytes",
                self.limit
            ))),
        }
    }
    fn shrink(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// An owned, aligned byte buffer. It grows and never shrinks, so that a steady-state run does not allocate.
#[derive(Debug, Default)]
pub struct Storage {
    lines: Vec<Line>,
    len: usize,
    /// Which of the planned places this is (see `arena.rs`); 0 is none.
    place: u32,
    /// Whose memory it is; `None` outside an executor.
    budget: Option<Arc<Budget>>,
}

impl Clone for Storage {
    /// The copy belongs to nobody's budget until an executor takes it.
    fn clone(&self) -> Storage {
        Storage { lines: self.lines.clone(), len: self.len, place: 0, budget: None }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(b) = &self.budget {
            b.shrink(self.capacity());
        }
    }
}

impl Storage {
    /// Sets the length in bytes. The contents are unspecified afterwards.
    ///
    /// # Errors
    /// `Invalid` when the memory cannot be had or is beyond the executor's limit.
    pub fn resize(&mut self, len: usize) -> Result<()> {
        self.reserve(len)?;
        self.len = len;
        Ok(())
    }
    /// Makes room for `len` bytes; the contents are unspecified where there was less.
    pub(crate) fn reserve(&mut self, len: usize) -> Result<()> {
        let lines = len.div_ceil(64);
        if lines > self.lines.len() {
            if let Some(b) = &self.budget {
                b.grow((lines - self.lines.len()).saturating_mul(64))?;
            }
            // The old memory goes before new is asked for: a run holds no more than it must.
            self.lines = Vec::new();
            if self.lines.try_reserve_exact(lines).is_err() {
                if let Some(b) = &self.budget {
                    b.shrink(lines * 64);
                }
                self.len = 0;
                return Err(Error::invalid(format!("cannot allocate {len} bytes for a tensor")));
            }
            self.lines.resize(lines, Line([0; 64]));
            self.len = 0;
        }
        Ok(())
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines).get(..self.len).unwrap_or_default()
    }
    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines).get_mut(..self.len).unwrap_or_default()
    }
    /// Bytes held, used or not.
    pub fn capacity(&self) -> usize {
        self.lines.len() * 64
    }
    /// The planned place that this is.
    pub(crate) fn place(&self) -> u32 {
        self.place
    }
}

/// A tensor's value, owned.
#[derive(Debug, Clone)]
pub struct Value {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
    /// Quantization, as the graph declares it.
    pub quant: Option<Arc<Quant>>,
    data: Storage,
}

impl Value {
    /// A value of shape [0]; [`Value::reshape`] gives it room.
    pub fn empty(dtype: DType, quant: Option<Arc<Quant>>) -> Value {
        Value { dtype, shape: Shape::from_slice(&[0]), quant, data: Storage::default() }
    }

    /// The same empty value, whose memory counts against `budget`.
    pub(crate) fn budgeted(mut self, budget: &Arc<Budget>) -> Value {
        self.data.budget = Some(budget.clone());
        self
    }

    /// A zero-filled value.
    ///
    /// # Errors
    /// `Invalid` when the size overflows or the memory cannot be had.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Value> {
        let mut v = Value::empty(dtype, None);
        v.reshape(shape)?;
        Ok(v)
    }

    /// A value with a copy of `bytes` (little endian, packed types packed).
    ///
    /// # Errors
    /// `Invalid` when the bytes do not fit the shape.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Value> {
        let mut v = Value::empty(dtype, None);
        if dtype.bits() == 0 {
            v.shape = Shape::from_slice(shape);
            v.set_raw(bytes)?;
            return Ok(v);
        }
        v.reshape(shape)?;
        if v.bytes().len() != bytes.len() {
            return Err(Error::invalid(format!(
                "{dtype} of shape {shape:?} needs {} bytes, {} given",
                v.bytes().len(),
                bytes.len()
            )));
        }
        v.bytes_mut().copy_from_slice(bytes);
        Ok(v)
    }

    /// Sets the shape and makes room. Contents are unspecified afterwards.
    ///
    /// # Errors
    /// `Invalid` when the size overflows or the memory cannot be had.
    pub fn reshape(&mut self, shape: &[usize]) -> Result<()> {
        if self.dtype.bits() != 0 {
            let n = elements(shape);
            let bytes = self.dtype.byte_len(n).filter(|_| (n as u64) < (1 << 40));
            let bytes = bytes.ok_or_else(|| Error::invalid(format!("shape {shape:?} is too large")))?;
            self.data.resize(bytes)?;
        }
        if self.shape.as_slice() != shape {
            self.shape = Shape::from_slice(shape);
        }
        Ok(())
    }

    /// Replaces the bytes of a type without an element size (strings).
    ///
    /// # Errors
    /// `Invalid` when the memory cannot be had.
    pub fn set_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.data.resize(bytes.len())?;
        self.data.bytes_mut().copy_from_slice(bytes);
        Ok(())
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        elements(&self.shape)
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes, little endian.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }
    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.bytes_mut()
    }
    /// Bytes held.
    pub fn capacity(&self) -> usize {
        self.data.capacity()
    }
    pub(crate) fn take_storage(&mut self) -> Storage {
        self.shape.clear();
        self.shape.push(0);
        let empty = self.new_storage(0);
        std::mem::replace(&mut self.data, empty)
    }
    /// Storage without room yet, for a planned place, in the same budget.
    pub(crate) fn new_storage(&self, place: u32) -> Storage {
        Storage { lines: Vec::new(), len: 0, place, budget: self.data.budget.clone() }
    }
    /// Makes room, and loses the contents where there was less.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<()> {
        self.data.reserve(bytes)
    }
    pub(crate) fn put_storage(&mut self, storage: Storage) -> Storage {
        std::mem::replace(&mut self.data, storage)
    }
    /// The elements. `T` must have the element type's size; kernels match on `dtype` first.
    ///
    /// # Errors
    /// `Internal` when it has not.
    pub fn as_slice<T: Pod>(&self) -> Result<&[T]> {
        bytemuck::try_cast_slice(self.bytes()).map_err(|e| Error::internal(format!("view of {}: {e}", self.dtype)))
    }
    /// The elements, to write.
    ///
    /// # Errors
    /// `Internal` when `T` does not fit the element type.
    pub fn as_mut_slice<T: Pod>(&mut self) -> Result<&mut [T]> {
        let dtype = self.dtype;
        bytemuck::try_cast_slice_mut(self.data.bytes_mut())
            .map_err(|e| Error::internal(format!("view of {dtype}: {e}")))
    }
    /// A view.
    pub fn view(&self) -> View<'_> {
        View { dtype: self.dtype, shape: &self.shape, quant: self.quant.as_deref(), bytes: self.bytes() }
    }
    /// (scale, zero point), which must be per tensor.
    ///
    /// # Errors
    /// `Invalid` when the tensor has no per-tensor quantization.
    pub fn scale_zero(&self) -> Result<(f32, i32)> {
        self.view().scale_zero()
    }
}

/// A tensor's value, borrowed: an owned [`Value`] or a constant in the file.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: &'a [usize],
    /// Quantization.
    pub quant: Option<&'a Quant>,
    /// The bytes, little endian.
    pub bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// The elements.
    ///
    /// # Errors
    /// `Internal` when `T` does not fit the element type.
    pub fn as_slice<T: Pod>(&self) -> Result<&'a [T]> {
        bytemuck::try_cast_slice(self.bytes).map_err(|e| Error::internal(format!("view of {}: {e}", self.dtype)))
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        elements(self.shape)
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// (scale, zero point), which must be per tensor.
    ///
    /// # Errors
    /// `Invalid` when the tensor has no per-tensor quantization.
    pub fn scale_zero(&self) -> Result<(f32, i32)> {
        self.quant
            .and_then(Quant::per_tensor)
            .ok_or_else(|| Error::invalid(format!("a quantized {} tensor has no per-tensor scale", self.dtype)))
    }
}

/// A constant's bytes, copied only when the file has them at an address that its element type cannot be viewed at.
#[derive(Debug, Clone)]
pub(crate) enum Constant {
    Shared(Bytes),
    Copied(Storage),
}

impl Constant {
    pub(crate) fn new(dtype: DType, data: &Bytes) -> Result<Constant> {
        let align = (dtype.bits() / 8).clamp(1, 8);
        if data.as_ptr().align_offset(align) == 0 {
            return Ok(Constant::Shared(data.clone()));
        }
        let mut s = Storage::default();
        s.resize(data.len())?;
        s.bytes_mut().copy_from_slice(data);
        Ok(Constant::Copied(s))
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Constant::Shared(b) => b,
            Constant::Copied(s) => s.bytes(),
        }
    }
}

/// Gives a kernel's working memory `n` elements, each `x`. Unlike `Vec::resize` it fails with an error.
///
/// # Errors
/// `Invalid` when the memory cannot be had.
pub(crate) fn fill_to<T: Clone>(v: &mut Vec<T>, n: usize, x: T) -> Result<()> {
    v.clear();
    v.try_reserve_exact(n).map_err(|_| Error::invalid(format!("cannot allocate {n} elements of working memory")))?;
    v.resize(n, x);
    Ok(())
}
