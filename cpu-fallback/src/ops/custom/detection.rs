//! `TFLite_Detection_PostProcess`: from box encodings, scores and anchors to the boxes that survive non-maximum
//! suppression.

use super::*;
use crate::value::{View, fill_to};
use litegpu_graph::DType;
use litegpu_graph::ops::Detection;

/// ymin, xmin, ymax, xmax.
type Corners = [f32; 4];

pub(super) fn prepare(site: &Site<'_>, options: &[u8]) -> Result<Kernel> {
    let o = Detection::read(options)?;
    let types = [0, 1, 2].map(|i| site.optional(i).map(|t| t.dtype));
    if !types.iter().all(|t| matches!(t, Some(DType::F32 | DType::U8))) || types[0] != types[2] {
        return no_kernel(site);
    }
    if site.node.outputs.len() != 4 {
        return Err(Error::invalid(format!("{} outputs, 4 are needed", site.node.outputs.len())));
    }
    if !(o.iou_threshold > 0.0 && o.iou_threshold <= 1.0) {
        return Err(Error::invalid(format!("nms_iou_threshold {}", o.iou_threshold)));
    }
    if (if o.regular { o.detections_per_class.min(o.max_detections) } else { o.classes_per_detection }) == 0 {
        return Err(Error::invalid("no class or no detection is asked for"));
    }
    let (mut boxes, mut scores) = (Vec::new(), Vec::new());
    Ok(Box::new(move |call| {
        let (encodings, predictions, anchors) = (call.input(0)?, call.input(1)?, call.input(2)?);
        let (&[1, count, width], &[1, rows, columns]) = (encodings.shape, predictions.shape) else {
            return Err(Error::invalid(format!(
                "box encodings of shape {:?}, scores of shape {:?}; the batch must be 1",
                encodings.shape, predictions.shape
            )));
        };
        let background = columns.checked_sub(o.classes).filter(|&b| b <= 1 && o.classes > 0);
        let Some(background) = background.filter(|_| rows == count && width >= 4) else {
            return Err(Error::invalid(format!(
                "scores of shape {:?} do not fit {count} boxes of {width} values and {} classes",
                predictions.shape, o.classes
            )));
        };
        if anchors.shape.first().is_none_or(|&n| n < count) || anchors.shape.last().is_none_or(|&n| n < 4) {
            return Err(Error::invalid(format!("{count} boxes with anchors of shape {:?}", anchors.shape)));
        }
        decode(&encodings, &anchors, &o, &mut boxes)?;
        dequantize(&predictions, &mut scores)?;
        let found = if o.regular {
            by_class(&boxes, &scores, columns, background, &o)
        } else {
            by_box(&boxes, &scores, columns, background, &o)
        };
        let [out_boxes, out_classes, out_scores, out_count] = &mut *call.outputs else {
            return Err(Error::internal("four outputs"));
        };
        out_count.as_mut_slice::<f32>()?.fill(found.count as f32);
        let out_boxes = out_boxes.as_mut_slice::<Corners>()?;
        let (out_classes, out_scores) = (out_classes.as_mut_slice::<f32>()?, out_scores.as_mut_slice::<f32>()?);
        out_boxes.fill([0.0; 4]);
        out_classes.fill(0.0);
        out_scores.fill(0.0);
        let slots = out_boxes.iter_mut().zip(out_classes).zip(out_scores);
        for (((b, c), s), d) in slots.zip(&found.list) {
            if let Some(d) = d {
                *b = boxes.get(d.index).copied().unwrap_or_default();
                *c = d.class as f32;
                *s = d.score;
            }
        }
        Ok(())
    }))
}

/// Values of a float tensor, or of a uint8 one as real numbers.
fn dequantize(v: &View<'_>, out: &mut Vec<f32>) -> Result<()> {
    fill_to(out, v.len(), 0.0)?;
    if v.dtype == DType::F32 {
        out.copy_from_slice(v.as_slice()?);
        return Ok(());
    }
    let (scale, zero) = v.scale_zero()?;
    for (o, &q) in out.iter_mut().zip(v.bytes) {
        *o = (q as f32 - zero as f32) * scale;
    }
    Ok(())
}

/// Centre, height and width relative to the anchors become corners.
fn decode(encodings: &View<'_>, anchors: &View<'_>, o: &Detection, boxes: &mut Vec<Corners>) -> Result<()> {
    let (mut e, mut a) = (Vec::new(), Vec::new());
    dequantize(encodings, &mut e)?;
    dequantize(anchors, &mut a)?;
    let width = encodings.shape.last().copied().unwrap_or(4).max(4);
    let anchor_width = anchors.shape.last().copied().unwrap_or(4).max(4);
    fill_to(boxes, e.len() / width, [0.0; 4])?;
    let scale = o.scale.map(|s| s as f64);
    for ((b, e), a) in boxes.iter_mut().zip(e.chunks_exact(width)).zip(a.chunks_exact(anchor_width)) {
        let at = |v: &[f32], i: usize| v.get(i).copied().unwrap_or(0.0) as f64;
        // Anchors and encodings: y, x, height, width.
        let centre = |i: usize| (at(e, i) / scale[i] * at(a, i + 2) + at(a, i)) as f32;
        let half = |i: usize| (0.5 * (at(e, i) / scale[i]).exp() * at(a, i)) as f32;
        let (y, x, h, w) = (centre(0), centre(1), half(2), half(3));
        *b = [y - h, x - w, y + h, x + w];
        if b[0] > b[2] || b[1] > b[3] {
            return Err(Error::invalid(format!("a box decodes to the corners {b:?}")));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Found {
    index: usize,
    class: usize,
    score: f32,
}

struct Detections {
    /// What goes to each slot of the outputs.
    list: Vec<Option<Found>>,
    count: usize,
}

fn overlap(a: &Corners, b: &Corners) -> f32 {
    let area = |c: &Corners| (c[2] - c[0]) * (c[3] - c[1]);
    if area(a) <= 0.0 || area(b) <= 0.0 {
        return 0.0;
    }
    let height = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let width = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let both = height * width;
    both / (area(a) + area(b) - both)
}

/// Sorts by falling score; equals stay in their order.
fn best_first(order: &mut [usize], score: &dyn Fn(usize) -> f32) {
    litegpu_graph::order(order, &mut |i, j| score(j).partial_cmp(&score(i)).unwrap_or(std::cmp::Ordering::Equal));
}

/// The boxes that survive, best first.
fn suppress(boxes: &[Corners], scores: impl Fn(usize) -> f32, limit: usize, o: &Detection) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).filter(|&i| scores(i) >= o.score_threshold).collect();
    best_first(&mut order, &scores);
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.len() >= limit {
            break;
        }
        if kept.iter().all(|&k| overlap(&boxes[k], &boxes[i]) <= o.iou_threshold) {
            kept.push(i);
        }
    }
    kept
}

/// Suppression by the best class of each box; each survivor reports its best classes.
fn by_box(boxes: &[Corners], scores: &[f32], columns: usize, background: usize, o: &Detection) -> Detections {
    let row = |i: usize| &scores[i * columns + background..][..o.classes];
    let best = |i: usize| {
        let r = row(i);
        (1..r.len()).fold(0, |b, c| if r[c] > r[b] { c } else { b })
    };
    let top: Vec<f32> = (0..boxes.len()).map(|i| row(i)[best(i)]).collect();
    let kept = suppress(boxes, |i| top[i], o.max_detections, o);
    let mut list = Vec::new();
    for &i in &kept {
        let r = row(i);
        let mut classes: Vec<usize> = (0..r.len()).collect();
        best_first(&mut classes, &|c| r[c]);
        list.extend((0..o.classes_per_detection).map(|k| {
            let class = *classes.get(k)?;
            Some(Found { index: i, class, score: r[class] })
        }));
    }
    Detections { list, count: kept.len() }
}

/// Suppression class by class; the best of all classes are reported.
fn by_class(boxes: &[Corners], scores: &[f32], columns: usize, background: usize, o: &Detection) -> Detections {
    let mut all: Vec<Found> = Vec::new();
    let limit = o.detections_per_class.min(o.max_detections);
    for class in 0..o.classes {
        let score = |i: usize| scores[i * columns + class + background];
        let kept = suppress(boxes, score, limit, o);
        all.extend(kept.into_iter().map(|index| Found { index, class, score: score(index) }));
        // Stable: among equals the earlier class comes first.
        let mut order: Vec<usize> = (0..all.len()).collect();
        best_first(&mut order, &|i| all[i].score);
        order.truncate(o.max_detections);
        all = order.iter().map(|&i| all[i]).collect();
    }
    let count = all.len();
    Detections { list: all.into_iter().map(Some).collect(), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_boxes_are_suppressed() {
        let o = Detection {
            max_detections: 3,
            classes_per_detection: 1,
            detections_per_class: 2,
            regular: false,
            score_threshold: 0.1,
            iou_threshold: 0.5,
            classes: 2,
            scale: [1.0; 4],
        };
        let boxes = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.1, 1.0, 1.1], [2.0, 2.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]];
        let scores = [0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.05, 0.0];
        let found = by_box(&boxes, &scores, 2, 0, &o);
        let got: Vec<_> = found.list.iter().flatten().map(|f| (f.index, f.class)).collect();
        assert_eq!((found.count, got), (2, vec![(0, 0), (2, 1)]));
        let found = by_class(&boxes, &scores, 2, 0, &o);
        let got: Vec<_> = found.list.iter().flatten().map(|f| (f.index, f.class)).collect();
        assert_eq!(got, vec![(0, 0), (2, 1), (2, 0)]);
    }
}
