//! Shape and type inference, one file per operator family.
//!
//! `infer` is the only shape rule in the system: the planner, the executors and the quantizer all ask it.

mod binary;
mod control;
mod conv;
mod custom;
mod fill;
mod gather;
mod layout;
mod matmul;
mod normalize;
mod pool;
mod quantize;
mod recurrent;
mod reduce;
mod reshape;
mod resize;
mod select;
mod signal;
mod sort;
mod stablehlo;
mod text;
mod unary;

pub use conv::{Window, transpose_bias_options, transposed, window};
pub use custom::posenet::{self, Posenet};
pub use custom::{Detection, Mfcc, PoolOptions, Spectrogram};
pub use fill::range_count;
pub use gather::gather_axes;
pub use layout::{SpaceBatch, StridedSlice, paddings, permutation, slice, space_batch, split_sizes};
pub use reduce::axes_mask;
pub use reshape::reshaped;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::{Shape, Tensor};
use crate::op::{Family, Op};
use smallvec::SmallVec;

/// What is known of an operand when shapes are inferred.
#[derive(Debug, Clone, Copy)]
pub struct Fact<'a> {
    /// Element type.
    pub dtype: DType,
    /// Current shape.
    pub shape: &'a [usize],
    /// The value, where it is known: constants always, computed tensors only while the graph runs.
    pub value: Option<&'a [u8]>,
}

/// The shapes of a node's outputs; `None` for an output whose shape hangs on a value that is not known yet.
pub type Inferred = SmallVec<[Option<Shape>; 2]>;

/// One inference question.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// Operator and attributes.
    pub op: &'a Op,
    /// Operands; `None` where an optional one is absent.
    pub inputs: &'a [Option<Fact<'a>>],
    /// The output tensors as the file declares them (their types, and their count).
    pub outputs: &'a [&'a Tensor],
}

impl<'a> Site<'a> {
    /// The i-th operand.
    ///
    /// # Errors
    /// `Invalid` when it is absent.
    pub fn input(&self, i: usize) -> Result<Fact<'a>> {
        self.inputs.get(i).copied().flatten().ok_or_else(|| Error::invalid(format!("operand {i} is missing")))
    }

    /// The i-th operand's shape.
    pub fn shape(&self, i: usize) -> Result<&'a [usize]> {
        Ok(self.input(i)?.shape)
    }

    /// The i-th operand's shape, which must have `rank` dimensions.
    pub fn shape_of_rank(&self, i: usize, rank: usize) -> Result<&'a [usize]> {
        let s = self.shape(i)?;
        if s.len() == rank {
            Ok(s)
        } else {
            Err(Error::invalid(format!("operand {i} has shape {s:?}, rank {rank} is needed")))
        }
    }

    /// The i-th operand's value as integers (int32 or int64), or `None` when it is not known yet.
    pub fn ints(&self, i: usize) -> Result<Option<SmallVec<[i64; 8]>>> {
        let f = self.input(i)?;
        let Some(v) = f.value else { return Ok(None) };
        let out = match f.dtype {
            DType::I32 => v.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as i64).collect(),
            DType::U32 => v.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as i64).collect(),
            DType::I16 => v.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b) as i64).collect(),
            DType::I64 => v.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            d => return Err(Error::invalid(format!("operand {i} has type {d}, an integer type is needed"))),
        };
        Ok(Some(out))
    }
}

/// One output of known shape.
pub(crate) fn one(shape: impl Into<Shape>) -> Result<Inferred> {
    Ok(SmallVec::from_elem(Some(shape.into()), 1))
}

/// One output whose shape is known only when the graph runs.
pub(crate) fn unknown() -> Result<Inferred> {
    Ok(SmallVec::from_elem(None, 1))
}

/// Resolves a possibly negative axis.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let a = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(a)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Error::invalid(format!("axis {axis} is out of range for rank {rank}")))
}

/// NumPy broadcasting of two shapes.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).and_then(|j| s.get(j).copied()).unwrap_or(1);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::invalid(format!("shapes {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// Infers the output shapes of one node. Control flow, whose shapes its bodies decide, answers unknown.
///
/// # Errors
/// `Invalid` when operands or attributes do not fit the operator; `Unsupported` when the operator has no rule.
pub fn infer(site: &Site<'_>) -> Result<Inferred> {
    // A rule is chosen, then called: inlined into one function, all of them would be compiled for the first operator where
    // code is compiled when it is called (WebAssembly).
    let rule: fn(&Site<'_>) -> Result<Inferred> = match site.op.family() {
        Family::Conv => conv::infer,
        Family::Matmul => matmul::infer,
        Family::Pool => pool::infer,
        Family::Unary => unary::infer,
        Family::Binary => binary::infer,
        Family::Select => select::infer,
        Family::Quantize => quantize::infer,
        Family::Normalize => normalize::infer,
        Family::Reduce => reduce::infer,
        Family::Reshape => reshape::infer,
        Family::Layout => layout::infer,
        Family::Fill => fill::infer,
        Family::Gather => gather::infer,
        Family::Resize => resize::infer,
        Family::Sort => sort::infer,
        Family::Recurrent => recurrent::infer,
        Family::Control => control::infer,
        Family::Signal => signal::infer,
        Family::Text => text::infer,
        Family::Stablehlo => stablehlo::infer,
        Family::Custom => custom::infer,
    };
    let out = rule(site).map_err(|e| e.at(site.op.name()))?;
    if out.len() < site.outputs.len() {
        return Err(Error::invalid(format!(
            "{} has {} outputs, {} expected",
            site.op.name(),
            site.outputs.len(),
            out.len()
        )));
    }
    Ok(out)
}

/// The answer for an operator of the family that has no rule.
pub(crate) fn no_rule(site: &Site<'_>) -> Result<Inferred> {
    Err(Error::unsupported(format!("no shape rule for {}", site.op.name())))
}
