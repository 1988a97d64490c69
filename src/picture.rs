//! Pictures in and out of models: scaling to an input, and what an image-shaped output shows.

use crate::error::{Error, Result};
use crate::session::TensorInfo;
use crate::tensor::Tensor;
use image::imageops::FilterType;
use image::{DynamicImage, GrayImage, Rgb, RgbImage, RgbaImage};
use litegpu_graph::{DType, Quant};
use std::path::Path;

/// How a tensor holds a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Height; `None` where the model leaves it open.
    pub height: Option<usize>,
    /// Width; `None` where the model leaves it open.
    pub width: Option<usize>,
    /// Channels.
    pub channels: usize,
    /// Whether channels come before height and width.
    pub channels_first: bool,
    rank: usize,
}

impl Layout {
    /// The layout of a tensor that can hold a picture of 1, 3 or 4 channels: `[1, H, W, C]`, `[H, W, C]`,
    /// `[1, C, H, W]`, or a grey `[1, H, W]`.
    pub fn of(info: &TensorInfo) -> Option<Layout> {
        let dims: Vec<Option<usize>> = match &info.signature {
            Some(s) => info.shape.iter().zip(s).map(|(&d, &s)| (s >= 0).then_some(d)).collect(),
            None => info.shape.iter().map(|&d| Some(d)).collect(),
        };
        Layout::of_dims(&dims)
    }

    /// The layout of a shape without open dimensions.
    pub fn of_shape(shape: &[usize]) -> Option<Layout> {
        Layout::of_dims(&shape.iter().map(|&d| Some(d)).collect::<Vec<_>>())
    }

    fn of_dims(dims: &[Option<usize>]) -> Option<Layout> {
        let rank = dims.len();
        let one = |d: &Option<usize>| d.is_none_or(|d| d == 1);
        let colours = |d: Option<usize>| d.filter(|d| [1, 3, 4].contains(d));
        let made =
            |height, width, channels, channels_first| Some(Layout { height, width, channels, channels_first, rank });
        match *dims {
            [ref n, h, w, c] if one(n) && colours(c).is_some() => made(h, w, c?, false),
            [ref n, c, h, w] if one(n) && colours(c).is_some() => made(h, w, c?, true),
            [h, w, c] if colours(c).is_some() && h.is_none_or(|h| h > 1) => made(h, w, c?, false),
            [ref n, h, w] if one(n) => made(h, w, 1, false),
            _ => None,
        }
    }

    /// The shape with these sides.
    pub fn shape(&self, height: usize, width: usize) -> Vec<usize> {
        let c = self.channels;
        match (self.rank, self.channels_first) {
            (3, false) if c > 1 => vec![height, width, c],
            (3, _) => vec![1, height, width],
            (_, true) => vec![1, c, height, width],
            _ => vec![1, height, width, c],
        }
    }
}

/// Opens a PNG or JPEG file.
///
/// # Errors
/// `Io` or `Invalid` when it cannot be read.
pub fn open(path: &Path) -> Result<DynamicImage> {
    let place = |e: Error| e.at(path.display());
    let bytes = std::fs::read(path).map_err(|e| place(e.into()))?;
    image::load_from_memory(&bytes).map_err(|e| place(Error::invalid(e.to_string())))
}

/// Writes a PNG or JPEG file, by the name's ending.
///
/// # Errors
/// `Io` when it cannot be written.
pub fn save(picture: &DynamicImage, path: &Path) -> Result<()> {
    let jpeg = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jpg") || e.eq_ignore_ascii_case("jpeg"));
    let flat;
    let picture = if jpeg && picture.color().has_alpha() {
        flat = DynamicImage::ImageRgb8(picture.to_rgb8());
        &flat
    } else {
        picture
    };
    picture.save(path).map_err(|e| Error::new(crate::ErrorKind::Io, e.to_string()).at(path.display()))
}

/// Scales a picture to an input's size and converts it to the input's type. A pixel's 0 to 255 becomes `range`: by
/// default 0 to 1, or all that an 8-bit input can hold. Real values are quantized by the input's parameters.
///
/// # Errors
/// `Invalid` when the input cannot hold a picture.
pub fn to_tensor(picture: &DynamicImage, info: &TensorInfo, range: Option<(f32, f32)>) -> Result<Tensor> {
    let Some(layout) = Layout::of(info) else {
        return Err(Error::invalid(format!("input '{}' of shape {:?} cannot hold a picture", info.name, info.shape)));
    };
    let (h, w) = (layout.height.unwrap_or(picture.height() as usize), layout.width.unwrap_or(picture.width() as usize));
    let side = |n: usize| u32::try_from(n).map_err(|_| Error::invalid(format!("a picture of {n} pixels a side")));
    let (h32, w32) = (side(h)?, side(w)?);
    let scaled;
    let picture = if (picture.width(), picture.height()) == (w32, h32) {
        picture
    } else {
        scaled = picture.resize_exact(w32, h32, FilterType::Triangle);
        &scaled
    };
    let pixels = match layout.channels {
        1 => picture.to_luma8().into_raw(),
        4 => picture.to_rgba8().into_raw(),
        _ => picture.to_rgb8().into_raw(),
    };
    from_pixels(&pixels, layout, h, w, info, range)
}

/// Bytes, row by row with the channels innermost, as a tensor.
fn from_pixels(
    pixels: &[u8],
    layout: Layout,
    h: usize,
    w: usize,
    info: &TensorInfo,
    range: Option<(f32, f32)>,
) -> Result<Tensor> {
    let c = layout.channels;
    let mut order: Vec<u8>;
    let pixels = if layout.channels_first && c > 1 {
        order = Vec::with_capacity(pixels.len());
        for k in 0..c {
            order.extend(pixels.iter().skip(k).step_by(c));
        }
        &order
    } else {
        pixels
    };
    let quant = info.quant.as_ref().and_then(Quant::per_tensor).filter(|(s, _)| *s > 0.0);
    let (lo, hi) = range.unwrap_or((0.0, 1.0));
    let real = |p: u8| lo + (hi - lo) * f32::from(p) / 255.0;
    let quantized = |p: u8, min: f32, max: f32| match quant {
        Some((s, z)) => (real(p) / s + z as f32).round().clamp(min, max),
        None => f32::from(p),
    };
    let mut bytes = Vec::new();
    for &p in pixels.iter() {
        match info.dtype {
            DType::F32 => bytes.extend(real(p).to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f32(real(p)).to_le_bytes()),
            DType::U8 if range.is_none() => bytes.push(p),
            DType::I8 if range.is_none() => bytes.push(p ^ 0x80),
            DType::U8 => bytes.push(quantized(p, 0.0, 255.0) as u8),
            DType::I8 => bytes.push(quantized(p, -128.0, 127.0) as i8 as u8),
            DType::I16 => bytes.extend((quantized(p, -32768.0, 32767.0) as i16).to_le_bytes()),
            DType::I32 => bytes.extend(i32::from(p).to_le_bytes()),
            d => return Err(Error::invalid(format!("input '{}' is {d}, which holds no picture", info.name))),
        }
    }
    Tensor::from_bytes(info.dtype, &layout.shape(h, w), &bytes)
}

/// What an image-shaped tensor shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// A picture in colours or greys.
    Picture,
    /// A mask: one channel.
    Mask,
    /// Scores of classes per pixel: the best one's colour is drawn.
    Classes(usize),
}

/// What a tensor of this shape would show as a picture; `None` when it is no image.
pub fn shows(shape: &[usize]) -> Option<(usize, usize, Shows)> {
    let (h, w, c) = match *shape {
        [1, h, w, c] => (h, w, c),
        [h, w, c] if h > 1 => (h, w, c),
        [1, h, w] => (h, w, 1),
        _ => return None,
    };
    let what = match c {
        1 => Shows::Mask,
        3 | 4 => Shows::Picture,
        2 | 5..=256 => Shows::Classes(c),
        _ => return None,
    };
    (h >= 4 && w >= 4).then_some((h, w, what))
}

/// Draws an image-shaped tensor. Values in `range` (by default 0 to 1, or all that an 8-bit output can hold) become
/// 0 to 255; a mask that leaves the range by far is scaled to its own extremes.
///
/// # Errors
/// `Invalid` when the tensor is no image.
pub fn to_picture(t: &Tensor, range: Option<(f32, f32)>) -> Result<DynamicImage> {
    let no = || Error::invalid(format!("an output of shape {:?} is no picture", t.shape()));
    let (h, w, what) = shows(t.shape()).ok_or_else(no)?;
    let values = t.to_f32()?;
    let (w32, h32) = (w as u32, h as u32);
    let (mut lo, mut hi) = range.unwrap_or_else(|| natural_range(t));
    if what == Shows::Mask && range.is_none() {
        let (min, max) = extremes(&values);
        let slack = (hi - lo) / 2.0;
        if min < lo - slack || max > hi + slack {
            (lo, hi) = (min, max);
        }
    }
    let span = if hi > lo { hi - lo } else { 1.0 };
    let byte = |v: f32| ((v - lo) / span * 255.0).round().clamp(0.0, 255.0) as u8;
    Ok(match what {
        Shows::Mask => GrayImage::from_raw(w32, h32, values.iter().map(|&v| byte(v)).collect()).ok_or_else(no)?.into(),
        Shows::Picture if values.len() == h * w * 4 => {
            RgbaImage::from_raw(w32, h32, values.iter().map(|&v| byte(v)).collect()).ok_or_else(no)?.into()
        }
        Shows::Picture => {
            RgbImage::from_raw(w32, h32, values.iter().map(|&v| byte(v)).collect()).ok_or_else(no)?.into()
        }
        Shows::Classes(n) => {
            let best = |scores: &[f32]| {
                let top = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                colour(top.map_or(0, |(i, _)| i))
            };
            let mut out = RgbImage::new(w32, h32);
            for (pixel, scores) in out.pixels_mut().zip(values.chunks_exact(n)) {
                *pixel = Rgb(best(scores));
            }
            out.into()
        }
    })
}

fn natural_range(t: &Tensor) -> (f32, f32) {
    let (min, max) = match t.dtype() {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::I32 | DType::Bool => return if t.dtype() == DType::Bool { (0.0, 1.0) } else { (0.0, 255.0) },
        _ => return (0.0, 1.0),
    };
    match t.quant().and_then(Quant::per_tensor) {
        Some((s, z)) => ((min - z as f32) * s, (max - z as f32) * s),
        None => (min, max),
    }
}

fn extremes(values: &[f32]) -> (f32, f32) {
    let finite = values.iter().copied().filter(|v| v.is_finite());
    finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
}

/// The colour of a class: black for the first (the background), then colours far apart.
fn colour(class: usize) -> [u8; 3] {
    if class == 0 {
        return [0; 3];
    }
    // The bits of the number, dealt to the three channels from the top: neighbours differ most.
    let mut rgb = [0u8; 3];
    let mut n = class;
    for shift in (0..8).rev() {
        for channel in &mut rgb {
            *channel |= ((n & 1) as u8) << shift;
            n >>= 1;
        }
    }
    rgb
}

/// The best entries of a classification: (class, score), best first. `None` when the tensor is no vector of scores.
pub fn top(t: &Tensor, n: usize) -> Option<Vec<(usize, f32)>> {
    let classes = *t.shape().last()?;
    if classes < 2 || t.len() != classes {
        return None;
    }
    let mut scores: Vec<(usize, f32)> = t.to_f32().ok()?.into_iter().enumerate().collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scores.truncate(n);
    Some(scores)
}

/// One tile of a picture: where it is cut out, and which part of the result is kept, in pixels of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: usize,
    keep: (usize, usize),
}

/// Cuts `len` pixels into tiles of `tile` that overlap by at least `overlap`; each keeps its middle, the outermost
/// keep their edge too.
fn spans(len: usize, tile: usize, overlap: usize) -> Vec<Span> {
    if len <= tile {
        return vec![Span { from: 0, keep: (0, len) }];
    }
    let step = tile.saturating_sub(overlap).max(1);
    let count = (len - tile).div_ceil(step) + 1;
    let from = |i: usize| (i * step).min(len - tile);
    (0..count)
        .map(|i| {
            let middle = |a: usize| (from(a) + tile + from(a + 1)) / 2;
            let start = if i == 0 { 0 } else { middle(i - 1) };
            let end = if i + 1 == count { len } else { middle(i) };
            Span { from: from(i), keep: (start, end) }
        })
        .collect()
}

/// Runs a model from picture to picture over a picture of any size, tile by tile. `run` gets each tile's tensor and
/// returns the model's picture of it, which may be larger by a whole factor (super-resolution).
///
/// # Errors
/// `Invalid` when the input cannot hold a picture, and those of `run`.
pub fn tiled(
    picture: &DynamicImage,
    info: &TensorInfo,
    overlap: usize,
    range: Option<(f32, f32)>,
    mut run: impl FnMut(&Tensor) -> Result<DynamicImage>,
) -> Result<DynamicImage> {
    let layout = Layout::of(info).ok_or_else(|| Error::invalid(format!("input '{}' holds no picture", info.name)))?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (th, tw) = (layout.height.unwrap_or(height), layout.width.unwrap_or(width));
    let mut out: Option<(RgbaImage, usize)> = None;
    for y in spans(height, th, overlap) {
        for x in spans(width, tw, overlap) {
            // A picture smaller than a tile is continued by its edge.
            let cut = RgbaImage::from_fn(tw as u32, th as u32, |px, py| {
                let at = |from: usize, p: u32, len: usize| (from + p as usize).min(len - 1) as u32;
                image::GenericImageView::get_pixel(picture, at(x.from, px, width), at(y.from, py, height))
            });
            let tensor = to_tensor(&DynamicImage::ImageRgba8(cut), info, range)?;
            let result = run(&tensor)?.to_rgba8();
            let factor = result.width() as usize / tw.max(1);
            if factor == 0 || (result.width() as usize, result.height() as usize) != (tw * factor, th * factor) {
                return Err(Error::invalid(format!(
                    "a tile of {tw}x{th} became {}x{}, which is no whole multiple",
                    result.width(),
                    result.height()
                )));
            }
            let (whole, f) =
                out.get_or_insert_with(|| (RgbaImage::new((width * factor) as u32, (height * factor) as u32), factor));
            let f = *f;
            let (left, top) = ((x.keep.0 - x.from) * f, (y.keep.0 - y.from) * f);
            let (w, h) = ((x.keep.1 - x.keep.0) * f, (y.keep.1 - y.keep.0) * f);
            let part = image::imageops::crop_imm(&result, left as u32, top as u32, w as u32, h as u32).to_image();
            image::imageops::replace(whole, &part, (x.keep.0 * f) as i64, (y.keep.0 * f) as i64);
        }
    }
    let (whole, _) = out.ok_or_else(|| Error::invalid("an empty picture"))?;
    Ok(match picture.color().has_alpha() {
        true => whole.into(),
        false => DynamicImage::ImageRgba8(whole).to_rgb8().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(dtype: DType, shape: &[usize], quant: Option<Quant>) -> TensorInfo {
        TensorInfo {
            name: "x".into(),
            tensor_name: "x".into(),
            tensor: 0,
            dtype,
            shape: shape.to_vec(),
            signature: None,
            quant,
        }
    }

    fn gradient() -> DynamicImage {
        RgbImage::from_fn(8, 8, |x, y| Rgb([x as u8 * 30, y as u8 * 30, 200])).into()
    }

    #[test]
    fn pictures_survive_every_type() {
        for (dtype, quant) in [
            (DType::F32, None),
            (DType::U8, Some(Quant::scalar(1.0 / 255.0, 0))),
            (DType::I8, Some(Quant::scalar(1.0 / 255.0, -128))),
            (DType::I8, Some(Quant::scalar(2.0 / 255.0, -1))),
            (DType::I16, Some(Quant::scalar(1.0 / 32767.0, 0))),
        ] {
            let i = info(dtype, &[1, 8, 8, 3], quant.clone());
            let t = to_tensor(&gradient(), &i, None).unwrap().with_quant(quant);
            assert_eq!(to_picture(&t, None).unwrap(), gradient(), "{dtype}");
            let wide = Some((-1.0, 1.0));
            if dtype == DType::F32 {
                let t = to_tensor(&gradient(), &i, wide).unwrap();
                assert_eq!(t.view::<f32>().unwrap()[0], -1.0);
                assert_eq!(to_picture(&t, wide).unwrap(), gradient());
            }
        }
    }

    #[test]
    fn layouts_are_told_apart() {
        let of = |s: &[usize]| Layout::of_shape(s).map(|l| (l.height, l.width, l.channels, l.channels_first));
        assert_eq!(of(&[1, 64, 32, 3]), Some((Some(64), Some(32), 3, false)));
        assert_eq!(of(&[1, 3, 64, 32]), Some((Some(64), Some(32), 3, true)));
        assert_eq!(of(&[64, 32, 1]), Some((Some(64), Some(32), 1, false)));
        assert_eq!(of(&[1, 10]), None);
        assert_eq!(of(&[2, 64, 64, 3]), None);
    }

    #[test]
    fn tiles_cover_a_picture_once() {
        for (len, tile, overlap) in
            [(512, 64, 16), (65, 64, 16), (64, 64, 16), (10, 64, 16), (200, 64, 0), (129, 64, 63)]
        {
            let all = spans(len, tile, overlap);
            assert_eq!(all.first().unwrap().keep.0, 0);
            assert_eq!(all.last().unwrap().keep.1, len);
            for s in &all {
                assert!(s.keep.0 >= s.from && s.keep.1 <= s.from + tile, "{len} {s:?}");
            }
            assert!(all.windows(2).all(|w| w[0].keep.1 == w[1].keep.0), "{all:?}");
        }
    }

    #[test]
    fn tiles_make_the_picture_again() {
        let big: DynamicImage = RgbImage::from_fn(50, 31, |x, y| Rgb([x as u8, y as u8, (x * y) as u8])).into();
        let i = info(DType::U8, &[1, 16, 16, 3], None);
        let out = tiled(&big, &i, 4, None, |t| to_picture(t, None)).unwrap();
        assert_eq!(out, big);
    }
}
