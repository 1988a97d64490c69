//! Convolutions: kernels.
//!
//! A 2-D convolution multiplies lines of the image, where windows overlap, by the packed filter; others gather the
//! inputs under a few output pixels at a time. A transposed convolution is taken apart into one forward convolution per
//! phase of its stride, each with the taps that reach outputs of that phase, so that nothing is scattered and sums stay
//! exact; where each phase is one tap, one product with the filters side by side computes them all.

use super::*;
use crate::chain::Then;
use crate::gemm::{
    Bytes, Direct, Finish, FinishF32, Flat, Images, Left, Lines, PackedF32, PackedInt, Place, Rows, Sum, lines_f32,
    lines_int, pad_of, product_f32, product_int, refill,
};
use crate::kernel::Call;
use crate::pool::Pool;
use crate::requant::*;
use crate::simd::{Isa, NR, QUADS, Task, clamp, dispatch, quads_here};
use crate::weights::{Source, Weights};
use bytemuck::Pod;
use litegpu_graph::fixed::{float_range, quantized_range};
use litegpu_graph::ops::{transpose_bias_options, window};
use litegpu_graph::schema::{ActivationFunctionType, Padding, TensorType};
use litegpu_graph::{DType, Op};
use smallvec::SmallVec;
use std::any::TypeId;
use std::marker::PhantomData;

mod depthwise;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    match &site.node.op {
        Op::Conv2d(o) => {
            let frame = Spatial {
                padding: o.padding,
                stride: [1, o.stride_h, o.stride_w],
                dilation: [1, o.dilation_h_factor, o.dilation_w_factor],
                activation: o.fused_activation_function,
                bias_type: o.quantized_bias_type,
                form: Form::Conv2d,
                pads: [[0; 2]; 2],
            };
            dense(site, frame, [0, 1, 2])
        }
        Op::TransposeConv(o) => {
            let frame = Spatial {
                padding: o.padding,
                stride: [1, o.stride_h, o.stride_w],
                dilation: [1; 3],
                activation: o.fused_activation_function,
                bias_type: o.quantized_bias_type,
                form: Form::Transpose2d,
                pads: [[0; 2]; 2],
            };
            dense(site, frame, [2, 1, 3])
        }
        Op::Conv3d(o) => {
            let frame = Spatial {
                padding: o.padding,
                stride: [o.stride_d, o.stride_h, o.stride_w],
                dilation: [o.dilation_d_factor, o.dilation_h_factor, o.dilation_w_factor],
                activation: o.fused_activation_function,
                bias_type: TensorType::FLOAT32,
                form: Form::Conv3d,
                pads: [[0; 2]; 2],
            };
            dense(site, frame, [0, 1, 2])
        }
        Op::Conv3dTranspose(o) => {
            let frame = Spatial {
                padding: o.padding,
                stride: [o.stride_d, o.stride_h, o.stride_w],
                dilation: [o.dilation_d_factor, o.dilation_h_factor, o.dilation_w_factor],
                activation: o.fused_activation_function,
                bias_type: TensorType::FLOAT32,
                form: Form::Transpose3d,
                pads: [[0; 2]; 2],
            };
            dense(site, frame, [2, 1, 3])
        }
        Op::DepthwiseConv2d(o) => {
            let frame = Spatial {
                padding: o.padding,
                stride: [1, o.stride_h, o.stride_w],
                dilation: [1, o.dilation_h_factor, o.dilation_w_factor],
                activation: o.fused_activation_function,
                bias_type: TensorType::FLOAT32,
                form: Form::Conv2d,
                pads: [[0; 2]; 2],
            };
            depthwise::prepare(site, frame)
        }
        _ => no_kernel(site),
    }
}

/// MediaPipe's custom `Convolution2DTransposeBias`: input, filter, bias.
pub(super) fn transpose_bias(site: &Site<'_>, options: &[u8]) -> Result<Kernel> {
    let (padding, [h, w]) = transpose_bias_options(options)?;
    let frame = Spatial {
        padding,
        stride: [1, h, w],
        dilation: [1; 3],
        activation: ActivationFunctionType::NONE,
        bias_type: TensorType::FLOAT32,
        form: Form::Transpose2d,
        pads: [[0; 2]; 2],
    };
    dense(site, frame, [0, 1, 2])
}

/// Which way the filter slides and how its axes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Filter OHWI.
    Conv2d,
    /// Filter OHWI.
    Transpose2d,
    /// Filter DHWIO.
    Conv3d,
    /// Filter DHWOI.
    Transpose3d,
}

/// Attributes, over depth, height and width.
#[derive(Debug, Clone, Copy)]
struct Spatial {
    padding: Padding,
    stride: [i32; 3],
    dilation: [i32; 3],
    activation: ActivationFunctionType,
    bias_type: TensorType,
    form: Form,
    /// Zeros before and behind the image's rows and columns, beside those that `padding` asks for.
    pads: [[usize; 2]; 2],
}

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    input: [usize; 3],
    output: [usize; 3],
    taps: [usize; 3],
    /// Input channels in all, and those that one group's filter sees.
    channels: usize,
    group: usize,
    /// Output channels in all.
    filters: usize,
    /// Phases whose filters lie side by side in one product.
    copies: usize,
}

impl Spatial {
    fn transposed(&self) -> bool {
        matches!(self.form, Form::Transpose2d | Form::Transpose3d)
    }

    /// Whether one product writes whole pixels: what follows can be done with it.
    fn once(&self, s: &Sizes) -> bool {
        !self.transposed() && s.channels == s.group
    }

    fn sizes(&self, x: &[usize], f: &[usize], out: &[usize]) -> Result<Sizes> {
        let sizes = match (self.form, x, f, out) {
            (Form::Conv2d | Form::Transpose2d, &[n, h, w, c], &[o, kh, kw, i], &[_, oh, ow, _]) => Sizes {
                batch: n,
                input: [1, h, w],
                output: [1, oh, ow],
                taps: [1, kh, kw],
                channels: c,
                group: i,
                filters: o,
                copies: 1,
            },
            (Form::Conv3d, &[n, d, h, w, c], &[kd, kh, kw, i, o], &[_, od, oh, ow, _])
            | (Form::Transpose3d, &[n, d, h, w, c], &[kd, kh, kw, o, i], &[_, od, oh, ow, _]) => Sizes {
                batch: n,
                input: [d, h, w],
                output: [od, oh, ow],
                taps: [kd, kh, kw],
                channels: c,
                group: i,
                filters: o,
                copies: 1,
            },
            _ => return Err(Error::invalid(format!("input {x:?}, filter {f:?}, output {out:?}"))),
        };
        let groups = sizes.channels / sizes.group.max(1);
        let fits = sizes.group > 0 && groups * sizes.group == sizes.channels && sizes.filters % groups.max(1) == 0;
        if !fits || groups == 0 || (groups > 1 && self.form != Form::Conv2d) {
            return Err(Error::invalid(format!("a filter of shape {f:?} on an input of shape {x:?}")));
        }
        Ok(sizes)
    }

    /// The phases: one for a forward convolution, one per combination of strides for a transposed one.
    fn phases(&self, s: &Sizes) -> Result<Vec<Phase>> {
        let mut axes: [Vec<Axis>; 3] = Default::default();
        for d in 0..3 {
            let (stride, dilation) = (self.stride[d], self.dilation[d]);
            let [first, behind] = d.checked_sub(1).map_or([0; 2], |d| self.pads[d]);
            let forward = if self.transposed() { s.output[d] } else { s.input[d] + first + behind };
            let before = match (d, self.form) {
                (0, Form::Conv2d | Form::Transpose2d) => 0,
                // The custom operator's VALID outputs are larger than any forward window: nothing hangs over.
                _ => (window(self.padding, forward, s.taps[d], stride, dilation)?.before + first) as i64,
            };
            let (stride, dilation) = (stride as i64, dilation as i64);
            let offset = |k: usize| k as i64 * dilation - before;
            if !self.transposed() {
                axes[d].push(Axis {
                    stride: stride as usize,
                    first: 0,
                    step: 1,
                    count: s.output[d],
                    input: s.input[d],
                    taps: (0..s.taps[d]).map(|k| (k, offset(k))).collect(),
                });
                continue;
            }
            // Phases that some tap reaches; there are no more of them than taps.
            let mut reached: Vec<usize> = (0..s.taps[d]).map(|k| offset(k).rem_euclid(stride) as usize).collect();
            litegpu_graph::order(&mut reached, &mut |a, b| a.cmp(&b));
            reached.dedup();
            for phase in reached.into_iter().filter(|&p| p < s.output[d]).map(|p| p as i64) {
                // Taps in the order of the inputs that they read.
                let taps = (0..s.taps[d]).rev().filter(|&k| (phase - offset(k)).rem_euclid(stride) == 0);
                axes[d].push(Axis {
                    stride: 1,
                    first: phase as usize,
                    step: stride as usize,
                    count: (s.output[d] - phase as usize).div_ceil(stride as usize),
                    input: s.input[d],
                    taps: taps.map(|k| (k, (phase - offset(k)).div_euclid(stride))).collect(),
                });
            }
        }
        let mut phases = Vec::with_capacity(axes.iter().map(Vec::len).product());
        for z in &axes[0] {
            for y in &axes[1] {
                for x in &axes[2] {
                    phases.push(Phase { axes: [z.clone(), y.clone(), x.clone()] });
                }
            }
        }
        Ok(phases)
    }

    /// Where the weights of tap (z, y, x) and output channel o begin, and the distance of their input channels.
    fn tap(&self, s: &Sizes, o: usize, [z, y, x]: [usize; 3]) -> (usize, usize) {
        let at = (z * s.taps[1] + y) * s.taps[2] + x;
        match self.form {
            Form::Conv2d | Form::Transpose2d => ((o * s.taps[1] + y) * s.taps[2] * s.group + x * s.group, 1),
            Form::Conv3d => (at * s.group * s.filters + o, s.filters),
            Form::Transpose3d => ((at * s.filters + o) * s.group, 1),
        }
    }
}

/// One axis of a phase: output `first + step * q` reads inputs `stride * q + offset`, one for each tap.
#[derive(Debug, Clone, Default)]
struct Axis {
    stride: usize,
    first: usize,
    step: usize,
    count: usize,
    input: usize,
    /// (tap, offset)
    taps: SmallVec<[(usize, i64); 8]>,
}

#[derive(Debug, Clone, Default)]
struct Phase {
    axes: [Axis; 3],
}

impl Phase {
    fn taps(&self) -> usize {
        self.axes.iter().map(|a| a.taps.len()).product()
    }
    fn rows(&self, batch: usize) -> usize {
        self.axes.iter().fold(batch, |n, a| n * a.count)
    }
    /// Each tap's place in the filter, in the order in which rows are gathered.
    fn each_tap(&self, mut f: impl FnMut([usize; 3])) {
        let [z, y, x] = &self.axes;
        for (z, _) in &z.taps {
            for (y, _) in &y.taps {
                for (x, _) in &x.taps {
                    f([*z, *y, *x]);
                }
            }
        }
    }
}

/// Input pixels under the window of each output position, side by side.
struct Gather<'a, X, T, F> {
    phase: &'a Phase,
    x: &'a [X],
    channels: usize,
    first_channel: usize,
    group: usize,
    /// What lies beyond the edges of each batch, or of all.
    pads: &'a [T],
    /// Converts a run of elements of a batch.
    convert: F,
}

impl<'a, X, T, F> Gather<'a, X, T, F> {
    /// What one group's filters see of `x`.
    fn new(phase: &'a Phase, x: &'a [X], s: &Sizes, group: usize, pads: &'a [T], convert: F) -> Gather<'a, X, T, F> {
        Gather { phase, x, channels: s.channels, first_channel: group * s.group, group: s.group, pads, convert }
    }

    /// Converts `n` elements. Short runs are done 16 at a time, past their end, where both sides have room: a fixed
    /// length is vector code, and a call for a handful of elements would cost more than they do.
    #[inline(always)]
    fn copy(&self, from: &[X], n: usize, to: &mut [T], batch: usize)
    where
        F: Fn(&[X], &mut [T], usize),
    {
        let blocks = n.div_ceil(NR);
        if n > 16 * NR || from.len() < blocks * NR || to.len() < blocks * NR {
            return (self.convert)(&from[..n], &mut to[..n], batch);
        }
        for (from, to) in from.as_chunks::<NR>().0.iter().zip(to.as_chunks_mut::<NR>().0).take(blocks) {
            (self.convert)(from, to, batch);
        }
    }
}

impl<X: Sync, T: Pod + Sync, F: Fn(&[X], &mut [T], usize) + Sync> Rows<T> for Gather<'_, X, T, F> {
    #[inline(always)]
    fn fill<S: Isa>(&self, first: usize, count: usize, into: &mut [T], stride: usize) {
        let [az, ay, ax] = &self.phase.axes;
        let depth = self.phase.taps() * self.group;
        let pixels = az.input * ay.input * ax.input * self.channels;
        // Neighbouring taps that read neighbouring pixels are copied in one go.
        let run = self.group == self.channels && ax.taps.windows(2).all(|t| t[1].1 == t[0].1 + 1);
        let mut at = [0usize; 4];
        let mut rest = first;
        for (d, n) in [(3, ax.count), (2, ay.count), (1, az.count)] {
            at[d] = rest % n.max(1);
            rest /= n.max(1);
        }
        at[0] = rest;
        for r in 0..count {
            // Copies may run past the row: what follows is written later.
            let row = &mut into[r * stride..];
            let pad = pad_of(self.pads, at[0]);
            let mut done = 0;
            let width = ax.taps.len() * self.group;
            let image = &self.x[at[0] * pixels..][..pixels];
            let x0 = (ax.stride * at[3]) as i64;
            for (_, dz) in &az.taps {
                let z = (az.stride * at[1]) as i64 + dz;
                for (_, dy) in &ay.taps {
                    let y = (ay.stride * at[2]) as i64 + dy;
                    let line = done..done + width;
                    done += width;
                    if z < 0 || y < 0 || z >= az.input as i64 || y >= ay.input as i64 {
                        row[line].fill(pad);
                        continue;
                    }
                    let base = (z as usize * ay.input + y as usize) * ax.input;
                    if run {
                        let from = x0 + ax.taps.first().map_or(0, |t| t.1);
                        let low = (-from).clamp(0, ax.taps.len() as i64) as usize;
                        let high = (ax.input as i64 - from).clamp(low as i64, ax.taps.len() as i64) as usize;
                        let (low, high) = (low * self.channels, high * self.channels);
                        row[line.start..line.start + low].fill(pad);
                        if low < high {
                            let start = ((base as i64 + from) * self.channels as i64 + low as i64) as usize;
                            self.copy(&image[start..], high - low, &mut row[line.start + low..], at[0]);
                        }
                        row[line.start + high..line.end].fill(pad);
                        continue;
                    }
                    for (t, (_, dx)) in ax.taps.iter().enumerate() {
                        let x = x0 + dx;
                        let to = &mut row[line.start + t * self.group..];
                        if x < 0 || x >= ax.input as i64 {
                            to[..self.group].fill(pad);
                            continue;
                        }
                        let start = (base + x as usize) * self.channels + self.first_channel;
                        self.copy(&image[start..], self.group, to, at[0]);
                    }
                }
            }
            // What an odd depth is followed by, a copy may have run over.
            into[r * stride + depth..(r + 1) * stride].fill(pad);
            at[3] += 1;
            for (d, n) in [(3, ax.count), (2, ay.count), (1, az.count)] {
                if at[d] == n {
                    at[d] = 0;
                    at[d - 1] += 1;
                }
            }
        }
    }
}

/// Puts a phase's rows, the p-th of the copies in `from`, where they belong in the output.
fn spread<O: Copy>(phase: &Phase, s: &Sizes, p: usize, from: &[O], out: &mut [O]) {
    let [z, y, x] = &phase.axes;
    let n = s.filters;
    let mut rows = from.chunks_exact((n * s.copies).max(1)).map(|row| &row[p * n..][..n]);
    for b in 0..s.batch {
        for qz in 0..z.count {
            for qy in 0..y.count {
                let oz = z.first + z.step * qz;
                let oy = y.first + y.step * qy;
                let line = ((b * s.output[0] + oz) * s.output[1] + oy) * s.output[2];
                for qx in 0..x.count {
                    match rows.next() {
                        // A call to copy one element would cost more than the copy.
                        Some(&[v]) => out[line + x.first + x.step * qx] = v,
                        Some(row) => out[(line + x.first + x.step * qx) * n..][..n].copy_from_slice(row),
                        None => return,
                    }
                }
            }
        }
    }
}

/// The part of a convolution that differs by element type.
trait Product<O> {
    /// Multiplies the rows of a phase and a group.
    fn product(
        &self,
        pool: &Pool,
        rows: usize,
        phase: &Phase,
        s: &Sizes,
        group: usize,
        pack: usize,
        out: &mut [O],
        place: Place<'_>,
    ) -> Result<()>;
}

/// Runs all phases and groups.
fn run<O: Pod>(
    pool: &Pool,
    spatial: &Spatial,
    s: &Sizes,
    layout: &Layout,
    temp: &mut Vec<O>,
    out: &mut [O],
    then: Then<'_>,
    product: &impl Product<O>,
) -> Result<()> {
    let phases = &layout.phases;
    let whole = Place::whole(s.filters);
    if !spatial.transposed() {
        let (groups, Some(phase)) = (s.channels / s.group, phases.first()) else { return Ok(()) };
        let rows = phase.rows(s.batch);
        for g in 0..groups {
            let place = Place { column: g * (s.filters / groups), then, ..whole };
            product.product(pool, rows, phase, s, g, g, out, place)?;
        }
        return Ok(());
    }
    let all = phases.iter().map(|p| p.rows(1)).sum::<usize>();
    if all < s.output.iter().product() {
        // Some outputs are reached by no tap: they are what an empty sum gives.
        refill(temp, s.filters, O::zeroed())?;
        product.product(pool, 1, &Phase::default(), s, 0, phases.len(), temp, whole)?;
        out.chunks_exact_mut(s.filters).for_each(|row| row.copy_from_slice(temp));
    }
    if s.copies > 1 {
        let Some(phase) = phases.first() else { return Ok(()) };
        let (rows, stride) = (phase.rows(s.batch), s.filters * s.copies);
        refill(temp, rows * stride, O::zeroed())?;
        product.product(pool, rows, phase, s, 0, 0, temp, Place::whole(stride))?;
        phases.iter().enumerate().for_each(|(p, phase)| spread(phase, s, p, temp, out));
        return Ok(());
    }
    for (p, phase) in phases.iter().enumerate() {
        let rows = phase.rows(s.batch);
        if all == phase.rows(1) && all == s.output.iter().product::<usize>() {
            return product.product(pool, rows, phase, s, 0, p, out, whole);
        }
        refill(temp, rows * s.filters, O::zeroed())?;
        product.product(pool, rows, phase, s, 0, p, temp, whole)?;
        spread(phase, s, 0, temp, out);
    }
    Ok(())
}

struct FloatProduct<'a> {
    x: &'a [f32],
    packs: &'a [PackedF32],
    finish: &'a [FinishF32],
    plain: bool,
    lines: Option<Lines>,
}

impl Product<f32> for FloatProduct<'_> {
    fn product(
        &self,
        pool: &Pool,
        rows: usize,
        phase: &Phase,
        s: &Sizes,
        group: usize,
        pack: usize,
        out: &mut [f32],
        place: Place<'_>,
    ) -> Result<()> {
        let (pack, finish) = (&self.packs[pack], &self.finish[group]);
        if self.plain && phase.taps() > 0 {
            return product_f32(pool, rows, &Direct(self.x, s.channels), pack, finish, out, place);
        }
        let convert = |from: &[f32], to: &mut [f32], _: usize| to.copy_from_slice(from);
        if let Some(lines) = self.lines {
            let images = Images { lines, x: self.x, batch: s.batch, same: Some(self.x), pads: &[0.0], convert };
            return lines_f32(pool, &images, pack, finish, out, place.then);
        }
        let a = Gather::new(phase, self.x, s, group, &[0.0], convert);
        product_f32(pool, rows, &a, pack, finish, out, place)
    }
}

/// Integers, as elements of type `T`.
struct IntProduct<'a, X, T, F, U, C> {
    x: &'a [X],
    packs: &'a [PackedInt],
    finish: &'a [F],
    plain: bool,
    lines: Option<Lines>,
    /// What lies beyond the edges of each batch, or of all.
    pads: &'a [T],
    convert: C,
    sum: PhantomData<U>,
}

impl<X: Pod + Sync, T: Left, O: Pod + Send, U: Sum, F: Finish<U, O>, C> Product<O> for IntProduct<'_, X, T, F, U, C>
where
    C: Fn(&[X], &mut [T], usize) + Sync + Copy,
{
    fn product(
        &self,
        pool: &Pool,
        rows: usize,
        phase: &Phase,
        s: &Sizes,
        group: usize,
        pack: usize,
        out: &mut [O],
        place: Place<'_>,
    ) -> Result<()> {
        let (pack, finish) = (&self.packs[pack], &self.finish[group]);
        // Only what is not moved by a zero point is taken as it is.
        let same = TypeId::of::<X>() == TypeId::of::<T>();
        let same = bytemuck::try_cast_slice::<X, T>(self.x).ok().filter(|_| same);
        let plain = self.plain && phase.taps() > 0;
        if let (true, Some(x)) = (plain, same) {
            return product_int::<T, U, O>(pool, rows, &Direct(x, s.channels), pack, finish, out, place);
        }
        let (pads, convert) = (self.pads, self.convert);
        if let Some(lines) = self.lines {
            let same = same.filter(|_| lines.run().is_multiple_of(T::STEP));
            let images = Images { lines, x: self.x, batch: s.batch, same, pads, convert };
            return lines_int::<T, U, X, O, _>(pool, &images, pack, finish, out, place.then);
        }
        if plain {
            return product_int::<T, U, O>(pool, rows, &Flat(self.x, s.channels, convert), pack, finish, out, place);
        }
        let a = Gather::new(phase, self.x, s, group, pads, convert);
        product_int::<T, U, O>(pool, rows, &a, pack, finish, out, place)
    }
}

/// Whether the output's pixels are the input's: the product needs no gathering.
fn plain(spatial: &Spatial, s: &Sizes, phases: &[Phase]) -> bool {
    if s.copies > 1 {
        return true;
    }
    !spatial.transposed()
        && s.channels == s.group
        && s.input == s.output
        && phases.iter().all(|p| p.axes.iter().all(|a| a.stride == 1 && a.taps.as_slice() == [(0, 0)]))
}

/// Filter and bias, and whether they are the same in every invocation.
struct Operands {
    weights: Source,
    bias: Option<Source>,
}

impl Operands {
    fn new(site: &Site<'_>, at: [usize; 3]) -> Result<Operands> {
        let bias = site.optional(at[2]).map(|_| Source::new(site, at[2])).transpose()?;
        Ok(Operands { weights: Source::new(site, at[1])?, bias })
    }
    fn constant(&self) -> bool {
        self.weights.constant && self.bias.as_ref().is_none_or(|b| b.constant)
    }
    fn get<'a>(&'a self, call: &Call<'a>) -> Result<(Weights<'a>, Option<Weights<'a>>)> {
        Ok((self.weights.get(call)?, self.bias.as_ref().map(|b| b.get(call)).transpose()?))
    }
}

/// The kind of arithmetic that operand types ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float,
    Hybrid,
    Int,
    /// 16-bit activations with 64-bit sums.
    Wide,
}

fn kind(site: &Site<'_>, at: [usize; 3], bias_type: TensorType) -> Result<Kind> {
    let (x, w) = (site.input(at[0])?, site.input(at[1])?);
    let y = site.output(0)?.dtype;
    let bias = site.optional(at[2]).map(|t| t.dtype);
    let kind = match (x.dtype, w.dtype) {
        (DType::F32, DType::F32 | DType::F16 | DType::BF16) => Kind::Float,
        (DType::F32, DType::I8 | DType::U8 | DType::I4 | DType::I2) => Kind::Hybrid,
        (DType::I8, DType::I8 | DType::I4 | DType::I2) | (DType::U8, DType::U8) => Kind::Int,
        (DType::I16, DType::I8 | DType::I4 | DType::I2) => {
            let narrow = match bias {
                Some(b) => b == DType::I32,
                None => bias_type == TensorType::INT32,
            };
            if narrow { Kind::Int } else { Kind::Wide }
        }
        (x, w) => return Err(site.unsupported(format!("{x} input and {w} weights"))),
    };
    if y != x.dtype {
        return Err(site.unsupported(format!("{} input and {y} output", x.dtype)));
    }
    Ok(kind)
}

/// Scale and zero point of input and output.
#[derive(Debug, Clone, Copy)]
struct Scales {
    input: (f32, i32),
    output: (f32, i32),
    dtype: DType,
}

fn scales(site: &Site<'_>, input: usize) -> Result<Scales> {
    let per_tensor = |t: &litegpu_graph::Tensor| {
        let scale = t.per_tensor().filter(|(s, _)| *s > 0.0);
        scale.ok_or_else(|| Error::invalid(format!("tensor '{}' has no per-tensor scale", t.name)))
    };
    let (x, y) = (site.input(input)?, site.output(0)?);
    let s = Scales { input: per_tensor(x)?, output: per_tensor(y)?, dtype: x.dtype };
    if x.dtype == DType::I16 && (s.input.1 != 0 || s.output.1 != 0) {
        return Err(Error::invalid("16-bit activations with a zero point"));
    }
    Ok(s)
}

impl Scales {
    /// The column's multipliers.
    fn multipliers(&self, w: &Weights<'_>, channels: usize) -> Result<Vec<litegpu_graph::fixed::Multiplier>> {
        let scales = w.scales(channels)?;
        Ok(match self.dtype {
            DType::U8 => scales.iter().map(|&w| multiplier(self.input.0, w, self.output.0)).collect(),
            _ => multipliers(self.input.0, &scales, self.output.0),
        })
    }
}

/// A convolution whose filters see all channels (of their group).
fn dense(site: &Site<'_>, spatial: Spatial, at: [usize; 3]) -> Result<Kernel> {
    let types = (site.input(at[0])?.dtype, site.input(at[1])?.dtype, site.output(0)?.dtype);
    if types == (DType::I16, DType::I16, DType::I16) {
        // The reference takes the bytes of 16-bit weights for 8-bit weights; here they are what they say.
        return dense_wide(site, spatial, at);
    }
    match kind(site, at, spatial.bias_type)? {
        Kind::Float => dense_float(site, spatial, at),
        Kind::Hybrid => dense_hybrid(site, spatial, at),
        Kind::Int => match site.input(at[0])?.dtype {
            DType::I8 => dense_int::<i8>(site, spatial, at),
            DType::U8 => dense_int::<u8>(site, spatial, at),
            _ => dense_int::<i16>(site, spatial, at),
        },
        Kind::Wide => dense_wide(site, spatial, at),
    }
}

/// Phases and sizes of this invocation, recomputed only when a shape changes.
#[derive(Default)]
struct Layout {
    shapes: SmallVec<[usize; 16]>,
    phases: Vec<Phase>,
    /// Whether the product is one of floats.
    float: bool,
    /// Where lines of the image are multiplied.
    lines: Option<Lines>,
    /// Phases that are computed at once.
    copies: usize,
}

impl Layout {
    fn update(&mut self, spatial: &Spatial, x: &[usize], f: &[usize], out: &[usize]) -> Result<(Sizes, bool)> {
        let mut s = spatial.sizes(x, f, out)?;
        let shapes: SmallVec<[usize; 16]> =
            x.iter().chain(f).chain(out).chain(spatial.pads.as_flattened()).copied().collect();
        let changed = shapes != self.shapes;
        if changed {
            self.phases = spatial.phases(&s)?;
            self.shapes = shapes;
            self.lines = lines(spatial, &s, &self.phases, self.float);
            self.copies = if apart(spatial, &self.phases) { self.phases.len() } else { 1 };
        }
        s.copies = self.copies;
        Ok((s, changed))
    }

    /// How long the packed filter's runs are: what must stay the same for it to stay valid.
    fn run(&self) -> usize {
        self.lines.map_or(0, |l| l.run())
    }
}

/// Whether each phase of a transposed convolution is one tap, on every input pixel.
fn apart(spatial: &Spatial, phases: &[Phase]) -> bool {
    let one = |a: &Axis| a.taps.len() == 1 && a.taps[0].1 == 0 && a.count == a.input;
    spatial.transposed() && phases.len() > 1 && phases.iter().all(|p| p.axes.iter().all(one))
}

/// A forward convolution as lines of its image, where it pays: runs of several pixels, or floats that can be read in
/// place, and lines that fill a tile.
fn lines(spatial: &Spatial, s: &Sizes, phases: &[Phase], float: bool) -> Option<Lines> {
    let [Phase { axes: [_, ay, ax] }] = phases else { return None };
    if spatial.form != Form::Conv2d || s.channels != s.group || plain(spatial, s, phases) {
        return None;
    }
    let steps = |a: &Axis| a.taps.windows(2).map(|t| t[1].1 - t[0].1).next().unwrap_or(1);
    let (&(_, fy), &(_, fx)) = (ay.taps.first()?, ax.taps.first()?);
    let column = ax.input == 1 && ax.count == 1 && ax.taps.len() == 1 && fx == 0;
    let lines = if column && steps(ay) == 1 {
        // One pixel to a line: the image is one line, stood on end.
        Lines {
            input: [1, ay.input],
            channels: s.channels,
            output: [1, ay.count],
            taps: [1, ay.taps.len()],
            stride: [1, ay.stride],
            dilation: 1,
            first: [0, fy],
        }
    } else {
        Lines {
            input: [ay.input, ax.input],
            channels: s.channels,
            output: [ay.count, ax.count],
            taps: [ay.taps.len(), ax.taps.len()],
            stride: [ay.stride, ax.stride],
            dilation: usize::try_from(steps(ay)).ok()?,
            first: [fy, fx],
        }
    };
    let wide = lines.taps[1] == 1 || lines.taps[1] > 1 && (column || steps(ax) == 1);
    let pays = float || lines.taps[0] * lines.taps[1] > 1;
    (wide && pays && lines.output[1] >= 4).then_some(lines)
}

/// Packs the filter, per phase and group. A transposed convolution's phases hang on the padding, hence on the output's
/// size: they are packed again when that changes.
fn pack_float(
    spatial: &Spatial,
    s: &Sizes,
    layout: &Layout,
    w: &Weights<'_>,
    packs: &mut Vec<PackedF32>,
) -> Result<()> {
    let w = w.floats()?;
    each_pack(s, layout, packs, |pack, g, phases| {
        let (depth, per) = (phases[0].taps() * s.group, s.filters / (s.channels / s.group));
        pack.pack_thin(depth, per * phases.len(), |n, row| {
            let mut row = row.chunks_exact_mut(s.group);
            phases[n / per].each_tap(|tap| {
                let (from, step) = spatial.tap(s, g * per + n % per, tap);
                let Some(to) = row.next() else { return };
                match step {
                    1 => to.copy_from_slice(&w[from..][..s.group]),
                    _ => to.iter_mut().zip(w[from..].iter().step_by(step)).for_each(|(t, w)| *t = *w),
                }
            });
        })
    })
}

/// Packs integers. `bytes`: for products of bytes, where the activations' zero point as unsigned ones is given.
fn pack_ints(
    spatial: &Spatial,
    s: &Sizes,
    layout: &Layout,
    w: &Weights<'_>,
    bytes: Option<i32>,
    packs: &mut Vec<PackedInt>,
) -> Result<()> {
    if w.dtype == DType::I16 {
        let words = w.wide()?;
        return pack_values(spatial, s, layout, Operand::Pairs { wide: true }, &words, |w| w as i16, packs);
    }
    let values = w.bytes8()?;
    let unsigned = w.dtype == DType::U8;
    // Signed weights of convolutions have no zero point.
    let zero = if unsigned { w.zero_point()? as i16 } else { 0 };
    if QUADS && let Some(x) = bytes {
        // Unsigned weights as signed ones are 128 less.
        let zeros = [x, if unsigned { zero as i32 - 128 } else { 0 }];
        let value = |b: i8| if unsigned { b as u8 as i16 - 128 } else { b as i16 };
        return pack_values(spatial, s, layout, Operand::Quads { zeros }, &values, value, packs);
    }
    let value = |b: i8| if unsigned { b as u8 as i16 } else { b as i16 } - zero;
    pack_values(spatial, s, layout, Operand::Pairs { wide: unsigned }, &values, value, packs)
}

/// How a filter's values are laid out.
#[derive(Debug, Clone, Copy)]
enum Operand {
    Pairs { wide: bool },
    Quads { zeros: [i32; 2] },
}

fn pack_values<T: Copy>(
    spatial: &Spatial,
    s: &Sizes,
    layout: &Layout,
    operand: Operand,
    values: &[T],
    value: impl Fn(T) -> i16,
    packs: &mut Vec<PackedInt>,
) -> Result<()> {
    each_pack(s, layout, packs, |pack, g, phases| {
        let (depth, per) = (phases[0].taps() * s.group, s.filters / (s.channels / s.group));
        // Runs are padded to whole steps.
        let run = layout.lines.map_or(depth, |l| l.run()).min(depth).max(1);
        let step = match operand {
            Operand::Pairs { .. } => 2,
            Operand::Quads { .. } => 4,
        };
        let padded = if layout.lines.is_some() { run.next_multiple_of(step) } else { run };
        let column = |n: usize, row: &mut [i16]| {
            row.fill(0);
            let mut row = row.chunks_exact_mut(padded).flat_map(|r| r[..run].chunks_exact_mut(s.group));
            phases[n / per].each_tap(|tap| {
                let (from, step) = spatial.tap(s, g * per + n % per, tap);
                let source = values[from..].iter().step_by(step);
                if let Some(to) = row.next() {
                    to.iter_mut().zip(source).for_each(|(t, w)| *t = value(*w));
                }
            });
        };
        let (depth, columns) = (depth / run * padded, per * phases.len());
        if QUADS && let Operand::Quads { zeros } = operand {
            return pack.pack_quads(depth, columns, Bytes { zeros, run: [run, padded] }, column);
        }
        pack.pack(depth, columns, matches!(operand, Operand::Pairs { wide: true }), column)
    })
}

/// Packs each phase and group: `pack` is given the group and the phases whose filters lie side by side. The last one,
/// without taps, is for outputs that no tap reaches.
fn each_pack<P: Default>(
    s: &Sizes,
    layout: &Layout,
    packs: &mut Vec<P>,
    mut pack: impl FnMut(&mut P, usize, &[Phase]) -> Result<()>,
) -> Result<()> {
    let (groups, phases) = (s.channels / s.group, &layout.phases);
    packs.resize_with(phases.len() * groups + 1, P::default);
    if s.copies > 1 {
        pack(&mut packs[0], 0, phases)?;
    } else {
        for (p, phase) in phases.iter().enumerate() {
            for g in 0..groups {
                pack(&mut packs[p * groups + g], g, std::slice::from_ref(phase))?;
            }
        }
    }
    pack(&mut packs[phases.len() * groups], 0, &[Phase::default()])
}

/// Splits per-channel lists by group.
fn per_group<T>(list: Option<&[T]>, g: usize, per: usize) -> Option<&[T]> {
    list.map(|l| &l[g * per..][..per])
}

/// Runs once per invocation what the weights decide: packing, unless they are constant and packed already.
struct State<P, F> {
    operands: Operands,
    ready: bool,
    layout: Layout,
    /// The length of the runs that are packed.
    run: usize,
    packs: Vec<P>,
    finish: Vec<F>,
}

impl<P, F: Default> State<P, F> {
    fn new(site: &Site<'_>, at: [usize; 3], float: bool) -> Result<State<P, F>> {
        let (layout, packs, finish) = (Layout { float, ..Layout::default() }, Vec::new(), Vec::new());
        Ok(State { operands: Operands::new(site, at)?, ready: false, layout, run: 0, packs, finish })
    }

    /// Brings everything up to date; `pack` packs the filter, `set` makes one group's finish.
    fn update(
        &mut self,
        call: &Call<'_>,
        spatial: &Spatial,
        x: &[usize],
        out: &[usize],
        pack: impl FnOnce(&Spatial, &Sizes, &Layout, &Weights<'_>, &mut Vec<P>) -> Result<()>,
        set: impl FnOnce(&Weights<'_>, Option<&Weights<'_>>, &Sizes, &mut [F]) -> Result<()>,
    ) -> Result<Sizes> {
        let (s, changed) = self.layout.update(spatial, x, self.operands.weights.shape(call)?, out)?;
        if self.ready && !(changed && (spatial.transposed() || self.layout.run() != self.run)) {
            return Ok(s);
        }
        self.ready = false;
        let (weights, bias) = self.operands.get(call)?;
        self.run = self.layout.run();
        pack(spatial, &s, &self.layout, &weights, &mut self.packs)?;
        self.finish.resize_with(s.channels / s.group, F::default);
        set(&weights, bias.as_ref(), &s, &mut self.finish)?;
        self.ready = self.operands.constant();
        Ok(s)
    }
}

fn dense_float(site: &Site<'_>, spatial: Spatial, at: [usize; 3]) -> Result<Kernel> {
    let range = float_range(spatial.activation)?;
    let mut state: State<PackedF32, FinishF32> = State::new(site, at, true)?;
    let mut temp = Vec::new();
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(at[0])?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let s = state.update(call, &spatial, x.shape, &shape, pack_float, |_, bias, s, finish| {
            let bias = bias_floats(bias, s.filters)?.map(|b| b.repeat(s.copies));
            let per = s.filters * s.copies / finish.len();
            for (g, f) in finish.iter_mut().enumerate() {
                f.range = range;
                f.set(per, per_group(bias.as_deref(), g, per))?;
            }
            Ok(())
        })?;
        let plain = plain(&spatial, &s, &state.layout.phases);
        let (packs, finish, lines) = (&state.packs, &state.finish, state.layout.lines);
        let product = FloatProduct { x: x.as_slice()?, packs, finish, plain, lines };
        let (pool, then) = (call.pool, call.take_then(spatial.once(&s)));
        run(pool, &spatial, &s, &state.layout, &mut temp, call.output(0)?.as_mut_slice()?, then, &product)
    }))
}

fn dense_int<X: Quantized>(site: &Site<'_>, spatial: Spatial, at: [usize; 3]) -> Result<Kernel> {
    let scales = scales(site, at[0])?;
    let (low, high) = quantized_range(spatial.activation, scales.dtype, scales.output.0, scales.output.1)?;
    let mut state: State<PackedInt, Rounded> = State::new(site, at, false)?;
    let mut temp = Vec::new();
    let zero = scales.input.1;
    // As unsigned bytes, where products are of bytes.
    let bytes = (size_of::<X>() == 1 && quads_here()).then_some(zero - X::LOW);
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(at[0])?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let pack = |spatial: &Spatial, s: &Sizes, layout: &Layout, w: &Weights<'_>, packs: &mut Vec<PackedInt>| {
            pack_ints(spatial, s, layout, w, bytes, packs)
        };
        let s = state.update(call, &spatial, x.shape, &shape, pack, |w, bias, s, finish| {
            let bias = bias_ints(bias, s.filters)?.map(|b| b.repeat(s.copies));
            let multipliers = scales.multipliers(w, s.filters)?.repeat(s.copies);
            let per = s.filters * s.copies / finish.len();
            for (g, f) in finish.iter_mut().enumerate() {
                (f.zero, f.low, f.high) = (scales.output.1, low, high);
                f.set(per_group(bias.as_deref(), g, per), &multipliers[g * per..][..per])?;
            }
            Ok(())
        })?;
        let plain = plain(&spatial, &s, &state.layout.phases);
        let (packs, finish, lines, sum) = (&state.packs, &state.finish, state.layout.lines, PhantomData);
        let (pool, then, x) = (call.pool, call.take_then(spatial.once(&s)), x.as_slice::<X>()?);
        let out = call.output(0)?.as_mut_slice()?;
        if QUADS && let Some(pad) = bytes {
            let convert = |from: &[X], to: &mut [u8], _: usize| {
                crate::strided::convert(from, to, &|x: X| (Into::<i32>::into(x) - X::LOW) as u8);
            };
            let pads = &[pad as u8];
            let product = IntProduct::<X, u8, Rounded, i32, _> { x, packs, finish, plain, lines, pads, convert, sum };
            return run::<X>(pool, &spatial, &s, &state.layout, &mut temp, out, then, &product);
        }
        let zero = zero as i16;
        let convert = |from: &[X], to: &mut [i16], _: usize| {
            // A value of the loop's own: what it writes might else be what the closure refers to.
            let z = zero;
            crate::strided::convert(from, to, &|x: X| (Into::<i32>::into(x) as i16).wrapping_sub(z));
        };
        let product =
            IntProduct::<X, i16, Rounded, i32, _> { x, packs, finish, plain, lines, pads: &[0], convert, sum };
        run::<X>(pool, &spatial, &s, &state.layout, &mut temp, out, then, &product)
    }))
}

fn dense_wide(site: &Site<'_>, spatial: Spatial, at: [usize; 3]) -> Result<Kernel> {
    let scales = scales(site, at[0])?;
    let (low, high) = quantized_range(spatial.activation, scales.dtype, scales.output.0, scales.output.1)?;
    let mut state: State<PackedInt, Wide> = State::new(site, at, false)?;
    let mut temp = Vec::new();
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(at[0])?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let pack = |spatial: &Spatial, s: &Sizes, layout: &Layout, w: &Weights<'_>, packs: &mut Vec<PackedInt>| {
            pack_ints(spatial, s, layout, w, None, packs)
        };
        let s = state.update(call, &spatial, x.shape, &shape, pack, |w, bias, s, finish| {
            let bias = bias_ints(bias, s.filters)?.map(|b| b.repeat(s.copies));
            let multipliers = scales.multipliers(w, s.filters)?.repeat(s.copies);
            let per = s.filters * s.copies / finish.len();
            for (g, f) in finish.iter_mut().enumerate() {
                (f.low, f.high) = (low, high);
                f.set(per_group(bias.as_deref(), g, per), &multipliers[g * per..][..per])?;
            }
            Ok(())
        })?;
        let plain = plain(&spatial, &s, &state.layout.phases);
        let convert = |from: &[i16], to: &mut [i16], _: usize| to.copy_from_slice(from);
        let (packs, finish, lines, sum) = (&state.packs, &state.finish, state.layout.lines, PhantomData);
        let x = x.as_slice()?;
        let product = IntProduct::<i16, i16, Wide, i64, _> { x, packs, finish, plain, lines, pads: &[0], convert, sum };
        let (pool, then) = (call.pool, call.take_then(spatial.once(&s)));
        run::<i16>(pool, &spatial, &s, &state.layout, &mut temp, call.output(0)?.as_mut_slice()?, then, &product)
    }))
}

/// How each batch of the input is quantized. The reference does so symmetrically only where a 2-D convolution's weights
/// have one scale.
fn batch_steps(x: &[f32], batch: usize, symmetric: bool, steps: &mut Vec<Steps>, pieces: &mut Pieces) -> Result<()> {
    pieces.resize(batch)?;
    steps.clear();
    let per = x.len() / batch.max(1);
    for (b, x) in x.chunks_exact(per.max(1)).enumerate().take(batch) {
        let s = Steps::of(x, !symmetric);
        pieces.set(b, &s);
        steps.push(s);
    }
    Ok(())
}

fn dense_hybrid(site: &Site<'_>, spatial: Spatial, at: [usize; 3]) -> Result<Kernel> {
    let range = float_range(spatial.activation)?;
    let mut state: State<PackedInt, Hybrid> = State::new(site, at, false)?;
    let (mut temp, mut steps, mut pieces) = (Vec::new(), Vec::new(), Pieces::default());
    let mut one_scale = false;
    let bytes = quads_here();
    Ok(Box::new(move |call| {
        let (x, spatial) = (call.input(at[0])?, Spatial { pads: call.pads, ..spatial });
        let shape = call.output(0)?.shape.clone();
        let pack = |spatial: &Spatial, s: &Sizes, layout: &Layout, w: &Weights<'_>, packs: &mut Vec<PackedInt>| {
            let w = w.signed();
            // Pieces have zero points of their own.
            pack_ints(spatial, s, layout, &w, bytes.then_some(0), packs)
        };
        let s = state.update(call, &spatial, x.shape, &shape, pack, |w, bias, s, finish| {
            let bias = bias_floats(bias, s.filters)?.map(|b| b.repeat(s.copies));
            let scales = w.scales(s.filters)?.repeat(s.copies);
            one_scale = scales.iter().all(|s| *s == scales[0]);
            let per = s.filters * s.copies / finish.len();
            for (g, f) in finish.iter_mut().enumerate() {
                f.range = range;
                f.set(per_group(bias.as_deref(), g, per), &scales[g * per..][..per])?;
            }
            Ok(())
        })?;
        let symmetric = spatial.form == Form::Conv2d && one_scale && s.channels == s.group;
        let x = x.as_slice::<f32>()?;
        batch_steps(x, s.batch, symmetric, &mut steps, &mut pieces)?;
        let steps = &steps;
        let plain = s.batch == 1 && plain(&spatial, &s, &state.layout.phases);
        let (packs, finish, lines, pieces) = (&state.packs, &state.finish, state.layout.lines, &pieces);
        let (pool, then) = (call.pool, call.take_then(spatial.once(&s)));
        let out = call.output(0)?.as_mut_slice()?;
        if QUADS && bytes {
            let pads: SmallVec<[u8; 8]> = steps.iter().map(|s| (s.zero + 128) as u8).collect();
            let pads = pads.as_slice();
            let convert = |from: &[f32], to: &mut [u8], batch: usize| match steps.get(batch) {
                Some(s) => s.unsigned(from, to),
                None => to.fill(0),
            };
            let product = HybridProduct { x, packs, finish, pieces, plain, lines, pads, convert };
            return run(pool, &spatial, &s, &state.layout, &mut temp, out, then, &product);
        }
        let convert = |from: &[f32], to: &mut [i16], batch: usize| match steps.get(batch) {
            Some(s) => s.words(from, to),
            None => to.fill(0),
        };
        let product = HybridProduct { x, packs, finish, pieces, plain, lines, pads: &[0i16], convert };
        run(pool, &spatial, &s, &state.layout, &mut temp, out, then, &product)
    }))
}

/// Floats that are quantized batch by batch to elements of type `T`.
struct HybridProduct<'a, T, C> {
    x: &'a [f32],
    packs: &'a [PackedInt],
    finish: &'a [Hybrid],
    /// Scale of each batch.
    pieces: &'a Pieces,
    /// One batch, and nothing to gather.
    plain: bool,
    lines: Option<Lines>,
    /// What lies beyond the edges of each batch, or of all.
    pads: &'a [T],
    convert: C,
}

impl<T: Left, C: Fn(&[f32], &mut [T], usize) + Sync + Copy> Product<f32> for HybridProduct<'_, T, C> {
    fn product(
        &self,
        pool: &Pool,
        rows: usize,
        phase: &Phase,
        s: &Sizes,
        group: usize,
        pack: usize,
        out: &mut [f32],
        place: Place<'_>,
    ) -> Result<()> {
        let (constants, rows_each) = (&self.finish[group], phase.rows(1));
        let finish = HybridRows { constants, pieces: self.pieces, first: 0, rows: rows_each };
        let (pack, pads, convert) = (&self.packs[pack], self.pads, self.convert);
        if let Some(lines) = self.lines {
            let images = Images { lines, x: self.x, batch: s.batch, same: None, pads, convert };
            return lines_int::<T, i32, f32, f32, _>(pool, &images, pack, &finish, out, place.then);
        }
        if self.plain && phase.taps() > 0 {
            let a = Flat(self.x, s.channels, convert);
            return product_int::<T, i32, f32>(pool, rows, &a, pack, &finish, out, place);
        }
        let a = Gather::new(phase, self.x, s, group, pads, convert);
        product_int::<T, i32, f32>(pool, rows, &a, pack, &finish, out, place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, f, i, one, q};
    use super::*;
    use litegpu_graph::schema::{Conv2DOptionsT, DepthwiseConv2DOptionsT, TransposeConvOptionsT};

    /// A batch of none, with weights in every arithmetic: nothing comes out, and there is no row to quantize.
    #[test]
    fn nothing_to_convolve() {
        let (floats, bytes) = ([0.5f32; 24], [3i8; 24]);
        let bias = f(&[3], &[1.0; 3]);
        for x in [f(&[0, 4, 4, 2], &[]), f(&[1, 4, 4, 2], &[1.0; 32])] {
            for of_bytes in [false, true] {
                let filter = |shape: &[usize]| {
                    let n = shape.iter().product();
                    if of_bytes { q(testing::x(DType::I8, shape, &bytes[..n]), 0.5, 0) } else { f(shape, &floats[..n]) }
                };
                let strides = (2, 2);
                let conv = Conv2DOptionsT { stride_w: strides.0, stride_h: strides.1, ..Conv2DOptionsT::default() };
                let y = one::<f32>(Op::Conv2d(conv), &[x.clone(), filter(&[3, 2, 2, 2]), bias.clone()], DType::F32);
                assert_eq!((y.0, y.1.len()), (vec![x.shape[0], 2, 2, 3], x.shape[0] * 12));
                let depthwise = DepthwiseConv2DOptionsT {
                    stride_w: strides.0,
                    stride_h: strides.1,
                    depth_multiplier: 1,
                    ..DepthwiseConv2DOptionsT::default()
                };
                let two = f(&[2], &[1.0; 2]);
                let y =
                    one::<f32>(Op::DepthwiseConv2d(depthwise), &[x.clone(), filter(&[1, 2, 2, 2]), two], DType::F32);
                assert_eq!((y.0, y.1.len()), (vec![x.shape[0], 2, 2, 2], x.shape[0] * 8));
                let transposed = TransposeConvOptionsT {
                    stride_w: strides.0,
                    stride_h: strides.1,
                    ..TransposeConvOptionsT::default()
                };
                let size = i(&[4], &[x.shape[0] as i32, 8, 8, 3]);
                let operands = [size, filter(&[3, 2, 2, 2]), x.clone(), bias.clone()];
                let y = one::<f32>(Op::TransposeConv(transposed), &operands, DType::F32);
                assert_eq!((y.0, y.1.len()), (vec![x.shape[0], 8, 8, 3], x.shape[0] * 192));
            }
        }
    }
}
