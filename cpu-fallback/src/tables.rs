//! Look-up tables for functions of one quantized value, made as the reference makes them: in float32, rounded half
//! away from zero.

use crate::simd::{Isa, Task, dispatch};
use litegpu_graph::{DType, Error, Result, Tensor};

/// Scale and zero point of a tensor that must be quantized per tensor.
///
/// # Errors
/// `Invalid` when it is not.
pub(crate) fn quantization(t: &Tensor) -> Result<(f32, i32)> {
    match t.per_tensor() {
        Some(q) => Ok(q),
        None => Err(Error::invalid(format!("the {} tensor '{}' has no per-tensor quantization", t.dtype, t.name))),
    }
}

/// A real number as an integer, truncated. What does not fit (or is no number) becomes the smallest integer, as in the
/// reference, whose results for such values are those of its conversion instruction.
#[inline]
pub(crate) fn to_int(x: f32) -> i32 {
    if x >= i32::MIN as f32 && x < -(i32::MIN as f32) { x as i32 } else { i32::MIN }
}

/// The results of `f` for every 8-bit value of `dtype` (int8 or uint8), by the value's byte.
pub(crate) fn bytes(dtype: DType, f: impl Fn(i32) -> i32) -> Box<[u8; 256]> {
    let mut table = Box::new([0u8; 256]);
    let (low, high) = if dtype == DType::U8 { (0, 255) } else { (-128, 127) };
    for v in low..=high {
        table[(v & 255) as usize] = f(v).clamp(low, high) as u8;
    }
    table
}

struct LookUp<'a> {
    table: &'a [u8; 256],
    from: Option<&'a [u8]>,
    to: &'a mut [u8],
}

impl Task for LookUp<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Isa>(self) {
        S::look_up(self.table, self.from, self.to);
    }
}

/// What a table has for each byte of `from`, or for those that `to` holds.
pub(crate) fn look_up(table: &[u8; 256], from: Option<&[u8]>, to: &mut [u8]) {
    dispatch(LookUp { table, from, to });
}

/// The table of a real function on int8 or uint8.
pub(crate) fn real_bytes(
    dtype: DType,
    (s_in, z_in): (f32, i32),
    (s_out, z_out): (f32, i32),
    f: impl Fn(f32) -> f32,
) -> Box<[u8; 256]> {
    let inverse = 1.0 / s_out;
    bytes(dtype, |v| {
        let y = f(s_in * v.wrapping_sub(z_in) as f32);
        to_int((y * inverse).round() + z_out as f32)
    })
}

/// A function of int16 values: 513 samples, linear in between.
#[derive(Debug, Clone)]
pub(crate) struct Words(Box<[i16; 513]>);

impl Words {
    /// Samples `f`; each is shifted by half the error that interpolation would have in the middle of its step.
    pub fn new((s_in, z_in): (f32, i32), (s_out, z_out): (f32, i32), f: impl Fn(f32) -> f32) -> Words {
        let real = |s: f32, v: i32, z: i32| s * v.wrapping_sub(z) as f32;
        let (in_min, in_max) = (real(s_in, -32768, z_in), real(s_in, 32767, z_in));
        let (out_min, out_max) = (real(s_out, -32768, z_out), real(s_out, 32767, z_out));
        let step = (in_max - in_min) / 512.0;
        let half = step / 2.0;
        let inverse = 65536.0 / (out_max - out_min);
        let clamp = |x: f32| x.clamp(-32768.0, 32767.0) as i16;
        let mut table = Box::new([0i16; 513]);
        for (i, slot) in table.iter_mut().take(512).enumerate() {
            let at = in_min + i as f32 * step;
            let here = (f(at) * inverse).round();
            let middle = (f(at + half) * inverse).round();
            let next = f(in_min + (i + 1) as f32 * step) * inverse;
            let line = ((next + here) / 2.0).round();
            let bias = ((line - middle) / 2.0).round();
            *slot = clamp(here - bias);
        }
        table[512] = clamp((f(in_max) * inverse).round());
        Words(table)
    }

    /// The function at `v`.
    #[inline]
    pub fn at(&self, v: i16) -> i16 {
        let i = (256 + (v as i32 >> 7)) as usize & 511;
        let offset = (v & 127) as i32;
        let base = self.0[i];
        let slope = self.0[i + 1].wrapping_sub(base) as i32;
        (base as i32 + ((slope * offset + 64) >> 7)) as i16
    }
}

/// (input multiplier, left shift) of the int16 LOGISTIC and TANH: values become multiples of 1/(3 * 4096).
fn sigmoid_scale(scale: f32, max_pot_shift: i32) -> (i32, i32) {
    if let Some(log2) = exact_log2(scale) {
        let shift = 12 + log2;
        if (0..=max_pot_shift).contains(&shift) {
            return (3 << shift, 0);
        }
    }
    let mut m = scale as f64 * 4096.0 * 3.0;
    let mut shift = 0;
    while m <= 32767.0 / 2.0 && shift <= 30 {
        shift += 1;
        m *= 2.0;
    }
    (m as i32, shift)
}

/// The base-2 logarithm of a scale that is a power of two, within the reference's tolerance of 0.001.
pub(crate) fn exact_log2(scale: f32) -> Option<i32> {
    let log2 = scale.ln() * (1.0 / 2f32.ln());
    let rounded = log2.round();
    ((log2 - rounded).abs() < 1e-3).then_some(rounded as i32)
}

/// LOGISTIC and TANH of int16 in fixed point, interpolated between 256 samples of the sigmoid.
#[derive(Debug, Clone)]
pub(crate) struct Sigmoid {
    samples: Box<[u16; 256]>,
    multiplier: i32,
    shift: i32,
}

impl Sigmoid {
    /// For an input scale; `max_pot_shift` is the largest left shift by which a power-of-two scale is taken as it is.
    pub fn new(scale: f32, max_pot_shift: i32) -> Sigmoid {
        // 65536 * sigmoid(i / 24), moved by half of the error that a straight line to the next sample has in the
        // middle. The last one stands for everything beyond.
        let f = |x: f64| 65536.0 / (1.0 + (-x / 24.0).exp());
        let mut samples = Box::new([u16::MAX; 256]);
        for (i, s) in samples.iter_mut().take(255).enumerate() {
            let x = i as f64;
            *s = (f(x) + (f(x + 0.5) - (f(x) + f(x + 1.0)) / 2.0) / 2.0 + 0.5).floor() as u16;
        }
        let (multiplier, shift) = sigmoid_scale(scale, max_pot_shift);
        Sigmoid { samples, multiplier, shift }
    }

    /// LOGISTIC with a result scale of 1/32768.
    #[inline]
    pub fn logistic(&self, v: i16) -> i16 {
        let x = self.scaled(v);
        let a = x.unsigned_abs();
        let y = match self.pair(a >> 9) {
            None => 0x7FFF << 10,
            Some((ua, ub)) => (ua << 9) + (a & 0x1FF) * (ub - ua),
        };
        let y = if x >= 0 { y + (1 << 9) } else { (1 << 25) - y + (1 << 9) - 1 };
        (y >> 10) as i16
    }

    /// TANH with a result scale of 1/32768: 2 * sigmoid(2x) - 1.
    #[inline]
    pub fn tanh(&self, v: i16) -> i16 {
        let x = self.scaled(v);
        let a = x.unsigned_abs();
        let y = match self.pair(a >> 8) {
            None => 0xFFFF << 8,
            Some((ua, ub)) => (ua << 8) + (a & 0xFF) * (ub - ua),
        } as i32;
        let y = if x >= 0 { y - (1 << 23) + (1 << 7) } else { -y + (1 << 23) + (1 << 7) - 1 };
        (y >> 8) as i16
    }

    #[inline]
    fn scaled(&self, v: i16) -> i32 {
        let round = if self.shift > 0 { 1i32 << (self.shift - 1).min(30) } else { 0 };
        (v as i32).wrapping_mul(self.multiplier).wrapping_add(round) >> self.shift.clamp(0, 31)
    }

    /// A sample and the next one; `None` past the end.
    #[inline]
    fn pair(&self, i: u32) -> Option<(u32, u32)> {
        let i = i as usize;
        if i >= 255 { None } else { Some((self.samples[i] as u32, self.samples[i + 1] as u32)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_samples() {
        let s = Sigmoid::new(1.0, 0);
        assert_eq!(s.samples[..4], [32768, 33451, 34133, 34813]);
        assert_eq!(s.samples[250..], [65534, 65534, 65534, 65534, 65534, 65535]);
        assert_eq!(s.samples.iter().map(|&v| v as u64).sum::<u64>(), 15_670_629);
    }

    #[test]
    fn words_follow_the_function() {
        let scale = 10.0 / 32768.0;
        let exp = Words::new((scale, 0), (1.0 / 32768.0, 0), |x| (-x.abs()).exp());
        for v in [-32768i16, -20000, -1, 0, 1, 127, 128, 32767] {
            let want = (-(v as f32 * scale).abs()).exp() * 32768.0;
            assert!((exp.at(v) as f32 - want.min(32767.0)).abs() < 200.0, "{v}: {} {want}", exp.at(v));
        }
    }

    #[test]
    fn word_sigmoid_and_tanh() {
        let scale = 1.0 / 4096.0;
        let p = Sigmoid::new(scale, 0);
        assert_eq!((p.multiplier, p.shift), (3, 0));
        let q = Sigmoid::new(0.000_3, 0);
        for v in (i16::MIN..=i16::MAX).step_by(97) {
            let x = v as f64 * scale as f64;
            assert!((p.logistic(v) as f64 / 32768.0 - 1.0 / (1.0 + (-x).exp())).abs() < 3e-4);
            assert!((p.tanh(v) as f64 / 32768.0 - x.tanh()).abs() < 3e-4);
            let x = v as f64 * 0.000_3;
            assert!((q.tanh(v) as f64 / 32768.0 - x.tanh()).abs() < 3e-4);
        }
    }
}
