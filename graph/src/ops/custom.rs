//! Custom operators that are so common that litegpu has them: shape rules and the meaning of their options, which are
//! opaque bytes in the file (flexbuffers, or a C struct).

use super::*;
use crate::flexbuffer::Flex;

pub mod posenet;

pub(super) fn infer(site: &Site<'_>) -> Result<Inferred> {
    let Op::Custom(c) = site.op else { return no_rule(site) };
    match c.name.as_str() {
        "TFLite_Detection_PostProcess" => {
            let o = Detection::read(&c.options)?;
            site.shape_of_rank(0, 3)?;
            site.shape_of_rank(1, 3)?;
            site.shape_of_rank(2, 2)?;
            let n = o.max_detections.saturating_mul(o.classes_per_detection);
            let shapes: [&[usize]; 4] = [&[1, n, 4], &[1, n], &[1, n], &[1]];
            Ok(shapes.map(|s| Some(Shape::from_slice(s))).into_iter().collect())
        }
        "MaxPoolWithArgmax" | "MaxPoolingWithArgmax2D" => {
            let x = site.shape_of_rank(0, 4)?;
            let p = PoolOptions::read(c)?;
            let out = [x[0], p.pooled(x[1], 0)?.0, p.pooled(x[2], 1)?.0, x[3]];
            Ok(SmallVec::from_elem(Some(Shape::from_slice(&out)), 2))
        }
        "MaxUnpooling2D" => {
            let x = site.shape_of_rank(0, 4)?;
            let indices = site.input(1)?;
            if indices.shape != x {
                return Err(Error::invalid(format!("values of shape {x:?} with indices of shape {:?}", indices.shape)));
            }
            let p = PoolOptions::read(c)?;
            let size = |n: usize, axis: usize| match (indices.dtype, p.same) {
                (DType::F32, _) => n.saturating_mul(p.filter[axis]),
                (_, true) => n.saturating_mul(p.stride[axis]),
                (_, false) => n.saturating_sub(1).saturating_mul(p.stride[axis]).saturating_add(p.filter[axis]),
            };
            one(Shape::from_slice(&[x[0], size(x[1], 0), size(x[2], 1), x[3]]))
        }
        "DenseImageWarp" => {
            let x = site.shape_of_rank(0, 4)?;
            let flow = site.shape_of_rank(1, 4)?;
            if flow[..3] != x[..3] || flow[3] != 2 || x[1] < 2 || x[2] < 2 {
                return Err(Error::invalid(format!("an image of shape {x:?} with a flow of shape {flow:?}")));
            }
            one(x)
        }
        "AudioSpectrogram" => {
            let x = site.shape_of_rank(0, 2)?;
            let o = Spectrogram::read(&c.options)?;
            let frames = if x[0] < o.window { 0 } else { 1 + (x[0] - o.window) / o.stride };
            one(Shape::from_slice(&[x[1], frames, o.fft_length() / 2 + 1]))
        }
        "Mfcc" => {
            let x = site.shape_of_rank(0, 3)?;
            one(Shape::from_slice(&[x[0], x[1], Mfcc::read(&c.options)?.coefficients]))
        }
        "PosenetDecoderOp" => posenet::infer(site, &c.options),
        "Convolution2DTransposeBias" => conv::transpose_bias(site, &c.options),
        "aeq.hadamard_rotation" => one(site.shape(0)?),
        _ => no_rule(site),
    }
}

fn size(map: &Flex<'_>, key: &str) -> Result<usize> {
    let v = map.get(key).as_i64().unwrap_or(0);
    usize::try_from(v)
        .ok()
        .filter(|&v| v <= i32::MAX as usize)
        .ok_or_else(|| Error::invalid(format!("option {key} = {v}")))
}

/// Options of `TFLite_Detection_PostProcess`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Detections that the outputs have room for.
    pub max_detections: usize,
    /// Classes reported for each detection (fast suppression).
    pub classes_per_detection: usize,
    /// Detections kept of each class (regular suppression).
    pub detections_per_class: usize,
    /// Suppress class by class instead of by the best class of each box.
    pub regular: bool,
    /// Boxes with a lower score are dropped.
    pub score_threshold: f32,
    /// Boxes that overlap a better one by more are dropped.
    pub iou_threshold: f32,
    /// Classes without the background.
    pub classes: usize,
    /// Divisors of y, x, height and width.
    pub scale: [f32; 4],
}

impl Detection {
    /// Reads the options.
    ///
    /// # Errors
    /// `Invalid` when a count is negative.
    pub fn read(options: &[u8]) -> Result<Detection> {
        let m = Flex::root(options);
        let float = |key: &str| m.get(key).as_f64().unwrap_or(0.0) as f32;
        Ok(Detection {
            max_detections: size(&m, "max_detections")?,
            classes_per_detection: size(&m, "max_classes_per_detection")?,
            detections_per_class: match m.get("detections_per_class").is_null() {
                true => 100,
                false => size(&m, "detections_per_class")?,
            },
            regular: m.get("use_regular_nms").as_bool().unwrap_or(false),
            score_threshold: float("nms_score_threshold"),
            iou_threshold: float("nms_iou_threshold"),
            classes: size(&m, "num_classes")?,
            scale: ["y_scale", "x_scale", "h_scale", "w_scale"].map(float),
        })
    }
}

/// Options of max pooling with positions, and of its inverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Padding SAME rather than VALID.
    pub same: bool,
    /// Height, width.
    pub stride: [usize; 2],
    /// Height, width.
    pub filter: [usize; 2],
    /// TFLite's number of the fused activation: 0 none, 1 RELU, 2 RELU_N1_TO_1, 3 RELU6.
    pub activation: i32,
}

impl PoolOptions {
    /// Reads the options: a flexbuffer map for `MaxPoolWithArgmax`, TFLite's C struct of pooling parameters for the
    /// others.
    ///
    /// # Errors
    /// `Invalid` when they are neither, or when a size is not positive.
    pub fn read(c: &crate::op::CustomOp) -> Result<PoolOptions> {
        let positive = |v: i64| {
            let v = usize::try_from(v).ok().filter(|&v| v > 0 && v <= i32::MAX as usize);
            v.ok_or_else(|| Error::invalid("a window or a stride is not positive"))
        };
        if c.name == "MaxPoolWithArgmax" {
            let m = Flex::root(&c.options);
            let pair = |key: &str| -> Result<[usize; 2]> {
                let at = |i: usize| m.get(key).index(i).as_i64().unwrap_or(0);
                if (at(0), at(3)) != (1, 1) {
                    return Err(Error::unsupported(format!("{key} over batch or channels")));
                }
                Ok([positive(at(1))?, positive(at(2))?])
            };
            if m.get("include_batch_in_index").as_bool() == Some(true) {
                return Err(Error::unsupported("include_batch_in_index"));
            }
            let same = match m.get("padding").as_str() {
                Some("SAME") => true,
                Some("VALID") => false,
                p => return Err(Error::invalid(format!("padding {p:?}"))),
            };
            return Ok(PoolOptions { same, stride: pair("strides")?, filter: pair("ksize")?, activation: 0 });
        }
        let word = |i: usize| {
            let b = c.options.get(4 * i..).and_then(|b| b.first_chunk::<4>());
            b.map(|b| i32::from_le_bytes(*b)).ok_or_else(|| Error::invalid("the pooling options are too short"))
        };
        let same = match word(0)? {
            1 => true,
            2 => false,
            p => return Err(Error::invalid(format!("padding {p}"))),
        };
        let at = |i: usize| positive(word(i)? as i64);
        Ok(PoolOptions { same, stride: [at(2)?, at(1)?], filter: [at(4)?, at(3)?], activation: word(5)? })
    }

    /// Output size along an axis (0 height, 1 width) and the padding before the first element.
    ///
    /// # Errors
    /// `Invalid` when the window is larger than the input without padding.
    pub fn pooled(&self, input: usize, axis: usize) -> Result<(usize, usize)> {
        let (stride, filter) = (self.stride[axis & 1], self.filter[axis & 1]);
        if self.same {
            let out = input.div_ceil(stride);
            let covered = out.saturating_sub(1).saturating_mul(stride).saturating_add(filter);
            return Ok((out, covered.saturating_sub(input) / 2));
        }
        match (input + stride).checked_sub(filter) {
            Some(n) => Ok((n / stride, 0)),
            None => Err(Error::invalid(format!("a window of {filter} on an input of {input}"))),
        }
    }
}

/// Options of `AudioSpectrogram`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spectrogram {
    /// Samples of a window.
    pub window: usize,
    /// Samples from one window to the next.
    pub stride: usize,
    /// Squared magnitudes instead of magnitudes.
    pub squared: bool,
}

impl Spectrogram {
    /// Reads the options.
    ///
    /// # Errors
    /// `Invalid` for a window below 2 samples or a stride below 1.
    pub fn read(options: &[u8]) -> Result<Spectrogram> {
        let m = Flex::root(options);
        let o = Spectrogram {
            window: size(&m, "window_size")?,
            stride: size(&m, "stride")?,
            squared: m.get("magnitude_squared").as_bool().unwrap_or(false),
        };
        if o.window < 2 || o.window > 1 << 28 || o.stride < 1 {
            return Err(Error::invalid(format!("a window of {} samples, a stride of {}", o.window, o.stride)));
        }
        Ok(o)
    }

    /// Points of the Fourier transform.
    pub fn fft_length(&self) -> usize {
        self.window.next_power_of_two()
    }
}

/// Options of `Mfcc`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mfcc {
    /// Hertz.
    pub upper: f64,
    /// Hertz.
    pub lower: f64,
    /// Mel bands.
    pub channels: usize,
    /// Coefficients of the cosine transform.
    pub coefficients: usize,
}

impl Mfcc {
    /// Reads the options.
    ///
    /// # Errors
    /// `Invalid` when bands, coefficients or limits make no filter bank.
    pub fn read(options: &[u8]) -> Result<Mfcc> {
        let m = Flex::root(options);
        // The reference reads the limits as integers.
        let hertz = |key: &str| m.get(key).as_i64().unwrap_or(0) as f32 as f64;
        let o = Mfcc {
            upper: hertz("upper_frequency_limit"),
            lower: hertz("lower_frequency_limit"),
            channels: size(&m, "filterbank_channel_count")?,
            coefficients: size(&m, "dct_coefficient_count")?,
        };
        if o.lower < 0.0
            || o.upper <= o.lower
            || o.coefficients < 1
            || o.coefficients > o.channels
            || o.channels > 1 << 16
        {
            return Err(Error::invalid(format!("{o:?}")));
        }
        Ok(o)
    }
}
