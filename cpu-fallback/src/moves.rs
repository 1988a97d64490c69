//! Operators that only move elements, written once for every element type: the element's size decides, packed types
//! are unpacked to bytes and back, and strings are moved as indices.

use crate::kernel::Call;
use crate::strings;
use crate::value::View;
use bytemuck::Pod;
use litegpu_graph::{DType, Error, Op, Result, Shape, elements};
use smallvec::SmallVec;

/// An operand: shape and elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Src<'a, T> {
    pub shape: &'a [usize],
    pub data: &'a [T],
}

/// A result: shape and room for its elements.
#[derive(Debug)]
pub(crate) struct Dst<'a, T> {
    pub shape: Shape,
    pub data: &'a mut [T],
}

/// Bytes that an operator copies from an operand to an output, as often as `count` says and each time further on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub operand: usize,
    pub from: usize,
    pub output: usize,
    pub to: usize,
    pub bytes: usize,
    pub count: usize,
    /// From one time to the next, modulo the size of an address: operands are read backwards too.
    pub steps: [usize; 2],
}

impl Piece {
    /// Does it. False where the bytes are not there.
    pub(crate) fn copy(&self, from: &[u8], to: &mut [u8]) -> bool {
        match self.bytes {
            1 => self.elements::<1>(from, to),
            2 => self.elements::<2>(from, to),
            4 => self.elements::<4>(from, to),
            _ => self.each(from, to, |from, to| to.copy_from_slice(from)),
        }
    }

    fn elements<const N: usize>(&self, from: &[u8], to: &mut [u8]) -> bool {
        self.each(from, to, |from, to| {
            if let (Some(from), Some(to)) = (from.first_chunk::<N>(), to.first_chunk_mut::<N>()) {
                *to = *from;
            }
        })
    }

    #[inline(always)]
    fn each(&self, from: &[u8], to: &mut [u8], copy: impl Fn(&[u8], &mut [u8])) -> bool {
        let [mut at, mut end] = [self.from, self.to];
        for _ in 0..self.count {
            let source = from.get(at..at.wrapping_add(self.bytes));
            let (Some(from), Some(to)) = (source, to.get_mut(end..end.wrapping_add(self.bytes))) else { return false };
            copy(from, to);
            (at, end) = (at.wrapping_add(self.steps[0]), end.wrapping_add(self.steps[1]));
        }
        true
    }

    /// Whether `next` is one time more; then it is counted.
    fn joins(&mut self, next: &Piece) -> bool {
        let same = (self.operand, self.output, self.bytes) == (next.operand, next.output, next.bytes);
        let last = |first: usize, step: usize| first.wrapping_add(step.wrapping_mul(self.count - 1));
        let steps = [
            next.from.wrapping_sub(last(self.from, self.steps[0])),
            next.to.wrapping_sub(last(self.to, self.steps[1])),
        ];
        if !same || (self.count > 1 && steps != self.steps) {
            return false;
        }
        self.steps = steps;
        self.count += 1;
        true
    }
}

/// Elements that are moved as pieces at most.
const FEW: usize = 1 << 14;
/// Pieces, and times that they are copied in all, that are done sooner than found out anew.
const PIECES: usize = 64;
const TIMES: usize = 1024;

/// Whether moves are recorded. In the browser's module code weighs more than the time that this saves.
pub(crate) const RECORDED: bool = !cfg!(target_family = "wasm");

/// Whether all that an operator does is to copy elements from one place to another that its constants and shapes tell.
pub(crate) fn records(op: &Op) -> bool {
    RECORDED
        && matches!(
            op,
            Op::Concatenation(_)
                | Op::StridedSlice(_)
                | Op::Slice
                | Op::Split(_)
                | Op::SplitV(_)
                | Op::Pack(_)
                | Op::Unpack(_)
                | Op::Transpose
                | Op::Reshape(_)
                | Op::Squeeze(_)
                | Op::ExpandDims
        )
}

/// An operator that moves elements of any copyable type.
pub(crate) trait Move {
    /// Writes every element of `dst`. Room that it leaves holds old bytes.
    fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()>;
}

/// [`Move`] for the usual element sizes, so that what surrounds it is compiled once.
pub(crate) trait AnyMove {
    fn go1(&self, src: &[Src<'_, u8>], dst: &mut [Dst<'_, u8>]) -> Result<()>;
    #[cfg(not(target_family = "wasm"))]
    fn go2(&self, src: &[Src<'_, u16>], dst: &mut [Dst<'_, u16>]) -> Result<()>;
    fn go4(&self, src: &[Src<'_, u32>], dst: &mut [Dst<'_, u32>]) -> Result<()>;
}

impl<M: Move> AnyMove for M {
    fn go1(&self, src: &[Src<'_, u8>], dst: &mut [Dst<'_, u8>]) -> Result<()> {
        self.go(src, dst)
    }
    #[cfg(not(target_family = "wasm"))]
    fn go2(&self, src: &[Src<'_, u16>], dst: &mut [Dst<'_, u16>]) -> Result<()> {
        self.go(src, dst)
    }
    fn go4(&self, src: &[Src<'_, u32>], dst: &mut [Dst<'_, u32>]) -> Result<()> {
        self.go(src, dst)
    }
}

/// Runs `m` on some operands and all outputs of a call.
///
/// # Errors
/// `m`'s, and `Invalid` when operands and outputs have different types.
pub(crate) fn run(call: &mut Call<'_>, operands: &[usize], m: &dyn AnyMove) -> Result<()> {
    let mut views: SmallVec<[View<'_>; 4]> = SmallVec::new();
    for &i in operands {
        views.push(call.input(i)?);
    }
    let Some(dtype) = views.first().map(|v| v.dtype).or(call.outputs.first().map(|v| v.dtype)) else { return Ok(()) };
    if views.iter().any(|v| v.dtype != dtype) || call.outputs.iter().any(|v| v.dtype != dtype) {
        return Err(Error::invalid(format!("operands and outputs are not all {dtype}")));
    }
    if RECORDED && let Some(record) = call.record.take() {
        *record = pieces(call, operands, &views, dtype, m);
    }
    match dtype {
        DType::String => move_strings(call, &views, m),
        DType::Variant => Err(Error::unsupported(format!("elements of {dtype}"))),
        _ => match dtype.bits() {
            8 => typed(call, &views, &|s, d| m.go1(s, d)),
            #[cfg(not(target_family = "wasm"))]
            16 => typed(call, &views, &|s, d| m.go2(s, d)),
            #[cfg(target_family = "wasm")]
            16 => typed(call, &views, &|s, d| widened(s, d, m)),
            32 => typed(call, &views, &|s, d| m.go4(s, d)),
            64 => typed(call, &views, &|s, d| words::<2>(s, d, m)),
            128 => typed(call, &views, &|s, d| words::<4>(s, d, m)),
            bits => packed(call, &views, bits, m),
        },
    }
}

fn typed<T: Pod>(
    call: &mut Call<'_>,
    views: &[View<'_>],
    go: &dyn Fn(&[Src<'_, T>], &mut [Dst<'_, T>]) -> Result<()>,
) -> Result<()> {
    let mut src: SmallVec<[Src<'_, T>; 4]> = SmallVec::new();
    for v in views {
        src.push(Src { shape: v.shape, data: v.as_slice()? });
    }
    let mut dst: SmallVec<[Dst<'_, T>; 2]> = SmallVec::new();
    for v in call.outputs.iter_mut() {
        dst.push(Dst { shape: v.shape.clone(), data: v.as_mut_slice()? });
    }
    go(&src, &mut dst)
}

/// Elements of 64 and 128 bits, of which there are few, are moved as their words.
fn words<const N: usize>(src: &[Src<'_, [u32; N]>], dst: &mut [Dst<'_, [u32; N]>], m: &dyn AnyMove) -> Result<()> {
    for w in 0..N {
        let data: SmallVec<[Vec<u32>; 4]> = src.iter().map(|s| s.data.iter().map(|e| e[w]).collect()).collect();
        let from: SmallVec<[Src<'_, u32>; 4]> =
            src.iter().zip(&data).map(|(s, data)| Src { shape: s.shape, data }).collect();
        let mut room: SmallVec<[Vec<u32>; 2]> = dst.iter().map(|d| d.data.iter().map(|e| e[w]).collect()).collect();
        let mut to: SmallVec<[Dst<'_, u32>; 2]> =
            dst.iter().zip(&mut room).map(|(d, data)| Dst { shape: d.shape.clone(), data }).collect();
        m.go4(&from, &mut to)?;
        drop(to);
        for (d, room) in dst.iter_mut().zip(&room) {
            d.data.iter_mut().zip(room).for_each(|(e, v)| e[w] = *v);
        }
    }
    Ok(())
}

/// Elements of 16 bits are moved as words where code weighs more than the time of a copy: in the browser's module.
#[cfg(any(test, target_family = "wasm"))]
fn widened(src: &[Src<'_, u16>], dst: &mut [Dst<'_, u16>], m: &dyn AnyMove) -> Result<()> {
    let data: SmallVec<[Vec<u32>; 4]> = src.iter().map(|s| s.data.iter().map(|&e| e.into()).collect()).collect();
    let from: SmallVec<[Src<'_, u32>; 4]> =
        src.iter().zip(&data).map(|(s, data)| Src { shape: s.shape, data }).collect();
    let mut room: SmallVec<[Vec<u32>; 2]> = dst.iter().map(|d| d.data.iter().map(|&e| e.into()).collect()).collect();
    let mut to: SmallVec<[Dst<'_, u32>; 2]> =
        dst.iter().zip(&mut room).map(|(d, data)| Dst { shape: d.shape.clone(), data }).collect();
    m.go4(&from, &mut to)?;
    drop(to);
    for (d, room) in dst.iter_mut().zip(&room) {
        d.data.iter_mut().zip(room).for_each(|(e, v)| *e = *v as u16);
    }
    Ok(())
}

/// One byte for each element of a packed type, the first in the lowest bits.
pub(crate) fn unpack(bytes: &[u8], bits: usize, n: usize) -> Vec<u8> {
    let mask = (1u16 << bits) as u8 - 1;
    let per = 8 / bits;
    bytes.iter().flat_map(|&b| (0..per).map(move |i| b >> (i * bits) & mask)).take(n).collect()
}

fn packed(call: &mut Call<'_>, views: &[View<'_>], bits: usize, m: &dyn AnyMove) -> Result<()> {
    if !matches!(bits, 2 | 4) {
        return Err(Error::unsupported(format!("elements of {bits} bits")));
    }
    let data: SmallVec<[Vec<u8>; 4]> = views.iter().map(|v| unpack(v.bytes, bits, v.len())).collect();
    let src: SmallVec<[Src<'_, u8>; 4]> =
        views.iter().zip(&data).map(|(v, d)| Src { shape: v.shape, data: d }).collect();
    let mut room: SmallVec<[Vec<u8>; 2]> = call.outputs.iter().map(|v| vec![0; v.len()]).collect();
    let mut dst: SmallVec<[Dst<'_, u8>; 2]> =
        call.outputs.iter().zip(&mut room).map(|(v, d)| Dst { shape: v.shape.clone(), data: d }).collect();
    m.go1(&src, &mut dst)?;
    drop(dst);
    let mask = (1u16 << bits) as u8 - 1;
    for (v, d) in call.outputs.iter_mut().zip(&room) {
        for (byte, elements) in v.bytes_mut().iter_mut().zip(d.chunks(8 / bits)) {
            *byte = elements.iter().enumerate().fold(0, |b, (i, e)| b | (e & mask) << (i * bits));
        }
    }
    Ok(())
}

/// Where the elements of the outputs come from, by the numbers that `data` gives to those of the operands.
fn numbered(
    call: &Call<'_>,
    views: &[View<'_>],
    data: &[Vec<u32>],
    m: &dyn AnyMove,
) -> Result<SmallVec<[Vec<u32>; 2]>> {
    let src: SmallVec<[Src<'_, u32>; 4]> =
        views.iter().zip(data).map(|(v, d)| Src { shape: v.shape, data: d }).collect();
    let mut room: SmallVec<[Vec<u32>; 2]> = SmallVec::new();
    for v in call.outputs.iter() {
        // A string takes at least four bytes, so that room is bounded by the operands unless an operator repeats them.
        let n = elements(&v.shape);
        if n > 1 << 28 {
            return Err(Error::invalid(format!("{n} elements are too many")));
        }
        room.push(vec![u32::MAX; n]);
    }
    let mut dst: SmallVec<[Dst<'_, u32>; 2]> =
        call.outputs.iter().zip(&mut room).map(|(v, d)| Dst { shape: v.shape.clone(), data: d }).collect();
    m.go4(&src, &mut dst)?;
    drop(dst);
    Ok(room)
}

/// The pieces that an operator of whole bytes moves, when they are few: its elements are numbered, and the numbers moved.
fn pieces(
    call: &Call<'_>,
    operands: &[usize],
    views: &[View<'_>],
    dtype: DType,
    m: &dyn AnyMove,
) -> Option<Vec<Piece>> {
    let total = |n: usize, shape: &[usize]| n.saturating_add(elements(shape));
    let read = views.iter().fold(0, |n, v| total(n, v.shape));
    if read.max(call.outputs.iter().fold(0, |n, v| total(n, &v.shape))) > FEW
        || !matches!(dtype.bits(), 8 | 16 | 32 | 64)
    {
        return None;
    }
    let width = dtype.bits() / 8;
    let mut starts: SmallVec<[usize; 4]> = SmallVec::new();
    let mut next = 0;
    let mut data: SmallVec<[Vec<u32>; 4]> = SmallVec::new();
    for v in views {
        starts.push(next);
        data.push((next as u32..(next + v.len()) as u32).collect());
        next += v.len();
    }
    let mut found: Vec<Piece> = Vec::new();
    let mut times = 0;
    for (output, numbers) in numbered(call, views, &data, m).ok()?.iter().enumerate() {
        let mut rest = numbers.as_slice();
        while let Some(&first) = rest.first() {
            let number = first as usize;
            let which = starts.iter().rposition(|&s| s <= number).filter(|_| number < next)?;
            // Neighbours that were neighbours.
            let end = starts.get(which + 1).map_or(next, |&s| s) - number;
            let n = rest.iter().take(end).zip(first..).take_while(|(a, b)| **a == *b).count();
            let (operand, from) = (*operands.get(which)?, (number - starts.get(which)?) * width);
            let to = (numbers.len() - rest.len()) * width;
            let piece = Piece { operand, from, output, to, bytes: n * width, count: 1, steps: [0; 2] };
            times += 1;
            if !found.last_mut().is_some_and(|p| p.joins(&piece)) {
                found.push(piece);
            }
            if found.len() > PIECES || times > TIMES {
                return None;
            }
            rest = rest.get(n..)?;
        }
    }
    Some(found)
}

/// Strings are numbered through all operands; the numbers are moved, then the strings are written out by number.
fn move_strings(call: &mut Call<'_>, views: &[View<'_>], m: &dyn AnyMove) -> Result<()> {
    let mut all: Vec<&[u8]> = Vec::new();
    let mut data: SmallVec<[Vec<u32>; 4]> = SmallVec::new();
    for v in views {
        let list = strings::decode(v.bytes)?;
        if list.len() != v.len() {
            return Err(Error::invalid(format!("{} strings for shape {:?}", list.len(), v.shape)));
        }
        data.push((0..list.len()).map(|i| (all.len() + i) as u32).collect());
        all.extend(list);
    }
    let room = numbered(call, views, &data, m)?;
    for (v, d) in call.outputs.iter_mut().zip(&room) {
        let list: Vec<&[u8]> = d.iter().map(|&i| all.get(i as usize).copied().unwrap_or_default()).collect();
        v.set_raw(&strings::encode(&list)?)?;
    }
    Ok(())
}

/// A value of type `T` whose low bytes are those of `v`.
pub(crate) fn low_bytes<T: Pod>(v: i64) -> T {
    let wide = [v as u64, if v < 0 { u64::MAX } else { 0 }];
    let bytes: &[u8] = bytemuck::bytes_of(&wide);
    bytemuck::pod_read_unaligned(bytes.get(..size_of::<T>()).unwrap_or(bytes))
}

/// A list of integers from an int32 or int64 operand.
///
/// # Errors
/// `Invalid` for other types.
pub(crate) fn ints(v: &View<'_>) -> Result<SmallVec<[i64; 8]>> {
    Ok(match v.dtype {
        DType::I32 => v.as_slice::<i32>()?.iter().map(|&x| x as i64).collect(),
        DType::U32 => v.as_slice::<u32>()?.iter().map(|&x| x as i64).collect(),
        DType::I16 => v.as_slice::<i16>()?.iter().map(|&x| x as i64).collect(),
        DType::I64 => v.as_slice::<i64>()?.iter().copied().collect(),
        d => return Err(Error::invalid(format!("type {d} where integers are needed"))),
    })
}

/// One integer.
///
/// # Errors
/// `Invalid` when the operand holds another number of elements.
pub(crate) fn int(v: &View<'_>) -> Result<i64> {
    match ints(v)?.as_slice() {
        [x] => Ok(*x),
        x => Err(Error::invalid(format!("{} values given, one is needed", x.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;
    use crate::resources::Resources;
    use crate::value::Value;

    /// The second operand's elements and then the first's, backwards.
    struct Backwards;
    impl Move for Backwards {
        fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
            let all = src.iter().flat_map(|s| s.data).rev();
            dst[0].data.iter_mut().zip(all).for_each(|(d, s)| *d = *s);
            Ok(())
        }
    }

    fn moved<T: Pod + Default>(from: [&[T]; 2], go: impl Fn(&[Src<'_, T>], &mut [Dst<'_, T>]) -> Result<()>) -> Vec<T> {
        let src = from.map(|data| Src { shape: &[2], data });
        let mut data = [T::default(); 4];
        go(&src, &mut [Dst { shape: [4].as_slice().into(), data: &mut data }]).unwrap();
        data.to_vec()
    }

    /// The pieces that a move of two operands into one output is seen to be.
    fn seen(a: &Value, b: &Value, m: &dyn AnyMove) -> Option<Vec<Piece>> {
        let mut out = [Value::zeros(a.dtype, &[a.len() + b.len()]).unwrap()];
        let (mut record, inputs) = (None, [Some(a.view()), None, Some(b.view())]);
        let mut call = Call {
            inputs: &inputs,
            outputs: &mut out,
            variables: &mut [],
            pool: &Pool::default(),
            resources: &mut Resources::default(),
            record: Some(&mut record),
            then: Default::default(),
            pads: Default::default(),
        };
        run(&mut call, &[0, 2], m).unwrap();
        // What was done is what was seen.
        let mut again = vec![0xaa; out[0].bytes().len()];
        for p in record.iter().flatten() {
            let from = if p.operand == 0 { a } else { b };
            assert!(p.copy(from.bytes(), &mut again));
            assert!(!p.copy(&from.bytes()[p.bytes..], &mut [0; 1]));
        }
        assert!(record.is_none() || again == out[0].bytes());
        record
    }

    struct After;
    impl Move for After {
        fn go<T: Pod + Send + Sync>(&self, src: &[Src<'_, T>], dst: &mut [Dst<'_, T>]) -> Result<()> {
            let all = src.iter().rev().flat_map(|s| s.data);
            dst[0].data.iter_mut().zip(all).for_each(|(d, s)| *d = *s);
            Ok(())
        }
    }

    #[test]
    fn few_pieces_are_recorded() {
        let value =
            |dtype, n: usize| Value::from_bytes(dtype, &[n], &vec![n as u8; dtype.byte_len(n).unwrap()]).unwrap();
        for dtype in [DType::I8, DType::I16, DType::F32, DType::I64] {
            let w = dtype.bits() / 8;
            let piece = |operand, to, n| Piece {
                operand,
                from: 0,
                output: 0,
                to: to * w,
                bytes: n * w,
                count: 1,
                steps: [0; 2],
            };
            let (a, b) = (value(dtype, 300), value(dtype, 5));
            assert_eq!(seen(&a, &b, &After), Some(vec![piece(2, 0, 5), piece(0, 5, 300)]));
            // Every element on its own, backwards.
            let back = |operand, n, to| {
                let (from, steps) = ((n - 1) * w, [w.wrapping_neg(), w]);
                Piece { operand, from, output: 0, to: to * w, bytes: w, count: n, steps }
            };
            assert_eq!(seen(&a, &b, &Backwards), Some(vec![back(2, 5, 0), back(0, 300, 5)]));
            assert_eq!(seen(&value(dtype, TIMES), &b, &Backwards), None);
            assert_eq!(seen(&value(dtype, FEW), &b, &After), None);
        }
        // Half bytes are not moved as bytes.
        assert_eq!(seen(&value(DType::I4, 4), &value(DType::I4, 4), &After), None);
    }

    #[test]
    fn elements_in_pieces_are_moved_like_whole_ones() {
        let m: &dyn AnyMove = &Backwards;
        let x = [[1u16, 2], [0xfedc, 4]];
        assert_eq!(moved([&x[0], &x[1]], |s, d| widened(s, d, m)), [4, 0xfedc, 2, 1]);
        let x = [[[1u32, 2], [3, 4]], [[5, 6], [7, 8]]];
        assert_eq!(moved([&x[0], &x[1]], |s, d| words::<2>(s, d, m)), [[7, 8], [5, 6], [3, 4], [1, 2]]);
    }
}
