//! `PosenetDecoderOp`: its options and the shapes of its results.

use super::super::*;
use crate::flexbuffer::Flex;

/// Key points of a body.
pub const KEYPOINTS: usize = 17;
/// Pairs of key points that lie beside one another.
pub const EDGES: usize = 16;

/// Options of `PosenetDecoderOp`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Posenet {
    /// Poses that the outputs have room for.
    pub max_detections: usize,
    /// Poses with a lower score are dropped.
    pub score_threshold: f32,
    /// Pixels of a cell of the heat maps, across.
    pub stride: usize,
    /// Pixels within which two key points of a kind are one.
    pub nms_radius: f32,
}

impl Posenet {
    /// Reads the options, a flexbuffer map.
    ///
    /// # Errors
    /// `Invalid` when there is room for no pose or for more than 65,536, or the stride is not positive.
    pub fn read(options: &[u8]) -> Result<Posenet> {
        let m = Flex::root(options);
        let count = |key: &str, most: i64| {
            let v = m.get(key).as_i64().unwrap_or(0);
            let fits = usize::try_from(v).ok().filter(|&n| n > 0 && v <= most);
            fits.ok_or_else(|| Error::invalid(format!("option {key} = {v}")))
        };
        let float = |key: &str| m.get(key).as_f64().unwrap_or(0.0) as f32;
        Ok(Posenet {
            max_detections: count("max_detections", 1 << 16)?,
            score_threshold: float("score_threshold"),
            stride: count("stride", 1 << 16)?,
            nms_radius: float("nms_radius"),
        })
    }
}

pub(in crate::ops) fn infer(site: &Site<'_>, options: &[u8]) -> Result<Inferred> {
    let o = Posenet::read(options)?;
    let fields = site.inputs.len();
    if (fields, site.outputs.len()) != (3, 4) && (fields, site.outputs.len()) != (4, 5) {
        return Err(Error::invalid(format!("{fields} operands and {} results", site.outputs.len())));
    }
    let heat = site.shape_of_rank(0, 4)?;
    for (i, channels) in [KEYPOINTS, 2 * KEYPOINTS, 4 * EDGES, 2 * KEYPOINTS].into_iter().enumerate().take(fields) {
        let s = site.shape_of_rank(i, 4)?;
        if s[0] != 1 || s[3] != channels || s[1] == 0 || s[2] == 0 || (i < 3 && s[1..3] != heat[1..3]) {
            return Err(Error::invalid(format!(
                "operand {i} of shape {s:?}: [1, height, width, {channels}] is needed"
            )));
        }
    }
    let n = o.max_detections;
    let mut out: Inferred = SmallVec::new();
    for s in [&[1, n, KEYPOINTS, 2][..], &[1, n, KEYPOINTS], &[1, n], &[1]] {
        out.push(Some(Shape::from_slice(s)));
    }
    if fields == 4 {
        let long = site.shape_of_rank(3, 4)?;
        out.push(Some(Shape::from_slice(&[1, n, long[1], long[2]])));
    }
    Ok(out)
}
