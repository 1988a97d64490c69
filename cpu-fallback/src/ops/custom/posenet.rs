//! `PosenetDecoderOp`: from heat maps and offset fields to the key points of persons (PersonLab, Papandreou et al. 2018,
//! and the operator that Coral's models name).

use super::*;
use crate::value::{View, fill_to};
use litegpu_graph::DType;
use litegpu_graph::ops::{Posenet, posenet};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

const KEYPOINTS: usize = posenet::KEYPOINTS;
const EDGES: usize = posenet::EDGES;

/// Key points that lie beside one another on a body: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles,
/// left before right.
const SKELETON: [(usize, usize); EDGES] = [
    (0, 1),
    (1, 3),
    (0, 2),
    (2, 4),
    (0, 5),
    (5, 7),
    (7, 9),
    (5, 11),
    (11, 13),
    (13, 15),
    (0, 6),
    (6, 8),
    (8, 10),
    (6, 12),
    (12, 14),
    (14, 16),
];

/// Steps that refine a key point by the short offsets, and a pixel by the long ones.
const SHORT_STEPS: usize = 5;
const LONG_STEPS: usize = 3;

/// Row and column, in cells of the heat maps.
type Point = [f32; 2];

fn apart(a: Point, b: Point) -> f32 {
    (b[0] - a[0]) * (b[0] - a[0]) + (b[1] - a[1]) * (b[1] - a[1])
}

/// A field of values over the heat maps' cells, innermost the channels.
struct Field<'a> {
    values: &'a [f32],
    height: usize,
    width: usize,
    channels: usize,
}

impl Field<'_> {
    fn at(&self, y: usize, x: usize, channel: usize) -> f32 {
        self.values.get((y * self.width + x) * self.channels + channel).copied().unwrap_or(0.0)
    }

    fn inside(&self, p: Point) -> Point {
        // A NaN goes to the first cell.
        let within = |v: f32, n: usize| v.min(n as f32 - 1.0).max(0.0);
        [within(p[0], self.height), within(p[1], self.width)]
    }

    /// The value between the four cells around a point.
    fn sample(&self, p: Point, channel: usize) -> f32 {
        let p = self.inside(p);
        let (y, x) = (p[0].floor(), p[1].floor());
        let (dy, dx) = (p[0] - y, p[1] - x);
        let (top, left) = (y as usize, x as usize);
        let (bottom, right) = (p[0].ceil() as usize, p[1].ceil() as usize);
        let row = |y: usize| (1.0 - dx) * self.at(y, left, channel) + dx * self.at(y, right, channel);
        (1.0 - dy) * row(top) + dy * row(bottom)
    }

    /// Where the offsets in two channels lead from a point.
    fn follow(&self, p: Point, [y, x]: [usize; 2]) -> Point {
        self.inside([p[0] + self.sample(p, y), p[1] + self.sample(p, x)])
    }
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    keypoint: usize,
    point: Point,
    /// Of two equal ones the first comes first.
    number: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.number.cmp(&self.number))
    }
}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Candidate {}

#[derive(Debug, Clone, Copy)]
struct Pose {
    points: [Point; KEYPOINTS],
    scores: [f32; KEYPOINTS],
    score: f32,
}

struct Fields<'a> {
    heat: Field<'a>,
    short: Field<'a>,
    mid: Field<'a>,
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl Fields<'_> {
    /// Local maxima of the heat maps from a threshold (a logit) on, moved by their short offsets.
    fn roots(&self, threshold: f32) -> BinaryHeap<Candidate> {
        let mut queue = BinaryHeap::new();
        let h = &self.heat;
        for y in 0..h.height {
            for x in 0..h.width {
                for keypoint in 0..KEYPOINTS {
                    let score = h.at(y, x, keypoint);
                    let mut around = (y.saturating_sub(1)..(y + 2).min(h.height))
                        .flat_map(|v| (x.saturating_sub(1)..(x + 2).min(h.width)).map(move |u| (v, u)));
                    if score.is_nan() || score < threshold || around.any(|(v, u)| h.at(v, u, keypoint) > score) {
                        continue;
                    }
                    let offset = [self.short.at(y, x, keypoint), self.short.at(y, x, keypoint + KEYPOINTS)];
                    let point = self.short.inside([y as f32 + offset[0], x as f32 + offset[1]]);
                    queue.push(Candidate { score, keypoint, point, number: queue.len() });
                }
            }
        }
        queue
    }

    /// The key point at the other end of an edge.
    fn neighbour(&self, from: Point, edge: usize, back: bool, target: usize) -> Point {
        // Blocks of one channel an edge: forward rows, forward columns, backward rows, backward columns.
        let first = if back { 2 * EDGES } else { 0 } + edge;
        let mut p = self.mid.follow(from, [first, first + EDGES]);
        for _ in 0..SHORT_STEPS {
            p = self.short.follow(p, [target, target + KEYPOINTS]);
        }
        p
    }

    /// A whole body from one key point, the surest neighbours first.
    fn pose(&self, root: Candidate) -> Pose {
        let mut points = [None; KEYPOINTS];
        let mut scores = [0.0; KEYPOINTS];
        let mut queue = BinaryHeap::new();
        queue.push(Candidate { score: self.heat.sample(root.point, root.keypoint), number: 0, ..root });
        let mut number = 0;
        while let Some(c) = queue.pop() {
            if points[c.keypoint].is_some() {
                continue;
            }
            (points[c.keypoint], scores[c.keypoint]) = (Some(c.point), logistic(c.score));
            for (edge, &(a, b)) in SKELETON.iter().enumerate() {
                for (back, from, target) in [(false, a, b), (true, b, a)] {
                    if from != c.keypoint || points[target].is_some() {
                        continue;
                    }
                    number += 1;
                    let point = self.neighbour(c.point, edge, back, target);
                    let score = self.heat.sample(point, target);
                    queue.push(Candidate { score, keypoint: target, point, number });
                }
            }
        }
        // The skeleton is connected: every key point has been reached.
        let points = points.map(Option::unwrap_or_default);
        Pose { points, scores, score: mean(&scores) }
    }

    fn decode(&self, o: &Posenet) -> Vec<Pose> {
        let threshold = -(1.0 / (o.score_threshold as f64 + 1e-6) - 1.0).ln() as f32;
        let radius = o.nms_radius / o.stride as f32;
        let near = radius * radius;
        let mut queue = self.roots(threshold);
        let mut poses: Vec<Pose> = Vec::new();
        while poses.len() < o.max_detections {
            let Some(root) = queue.pop() else { break };
            if poses.iter().any(|p| apart(root.point, p.points[root.keypoint]) <= near) {
                continue;
            }
            let pose = self.pose(root);
            if pose.score >= o.score_threshold {
                poses.push(pose);
            }
        }
        poses = best_first(poses);
        // Key points that a better pose has as well do not count.
        for i in 0..poses.len() {
            let (better, rest) = poses.split_at_mut(i);
            let Some(pose) = rest.first_mut() else { break };
            let mut counted = pose.scores;
            for (k, c) in counted.iter_mut().enumerate() {
                if better.iter().any(|b| apart(pose.points[k], b.points[k]) <= near) {
                    *c = 0.0;
                }
            }
            pose.score = mean(&counted);
        }
        poses = best_first(poses);
        poses.retain(|p| p.score >= o.score_threshold);
        poses
    }
}

/// In decreasing order, as the reference adds them.
fn mean(scores: &[f32; KEYPOINTS]) -> f32 {
    let mut order: [usize; KEYPOINTS] = std::array::from_fn(|i| i);
    litegpu_graph::order(&mut order, &mut |i, j| scores[j].total_cmp(&scores[i]));
    order.iter().map(|&i| scores[i]).sum::<f32>() / KEYPOINTS as f32
}

fn best_first(poses: Vec<Pose>) -> Vec<Pose> {
    litegpu_graph::ordered(poses, &mut |a, b| b.score.total_cmp(&a.score))
}

/// For each cell, the pose whose key points are nearest to where the long offsets lead from there.
fn masks(long: &Field<'_>, poses: &[Pose], out: &mut [f32]) {
    for y in 0..long.height {
        for x in 0..long.width {
            let ends: [Point; KEYPOINTS] = std::array::from_fn(|k| {
                (0..LONG_STEPS).fold([y as f32, x as f32], |p, _| long.follow(p, [k, k + KEYPOINTS]))
            });
            let distance = |p: &Pose| ends.iter().zip(&p.points).map(|(a, b)| apart(*a, *b)).sum::<f32>();
            let nearest = poses.iter().enumerate().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
            if let Some((i, _)) = nearest
                && let Some(cell) = out.get_mut((i * long.height + y) * long.width + x)
            {
                *cell = 1.0;
            }
        }
    }
}

/// A field's values as floats, scaled.
fn load(v: &View<'_>, factor: f32, out: &mut Vec<f32>) -> Result<()> {
    fill_to(out, v.len(), 0.0)?;
    match v.dtype {
        DType::F32 => out.iter_mut().zip(v.as_slice::<f32>()?).for_each(|(o, x)| *o = x * factor),
        _ => {
            let (scale, zero) = v.scale_zero()?;
            out.iter_mut().zip(v.bytes).for_each(|(o, &q)| *o = (q as f32 - zero as f32) * (scale * factor));
        }
    }
    Ok(())
}

pub(super) fn prepare(site: &Site<'_>, options: &[u8]) -> Result<Kernel> {
    let o = Posenet::read(options)?;
    let fields = site.node.inputs.len();
    for i in 0..fields {
        if !matches!(site.input(i)?.dtype, DType::F32 | DType::U8) {
            return no_kernel(site);
        }
    }
    let mut values: [Vec<f32>; 4] = Default::default();
    Ok(Box::new(move |call| {
        let mut views = Vec::with_capacity(fields);
        for (i, v) in values.iter_mut().enumerate().take(fields) {
            let view = call.input(i)?;
            load(&view, if i == 0 { 1.0 } else { 1.0 / o.stride as f32 }, v)?;
            let &[1, height, width, channels] = view.shape else {
                return Err(Error::invalid(format!("operand {i} of shape {:?}", view.shape)));
            };
            views.push([height, width, channels]);
        }
        let [heat, short, mid, long] = &values;
        let field = |i: usize, values| {
            let [height, width, channels] = views.get(i).copied().unwrap_or_default();
            Field { values, height, width, channels }
        };
        let fields = Fields { heat: field(0, heat), short: field(1, short), mid: field(2, mid) };
        let poses = fields.decode(&o);
        for out in call.outputs.iter_mut() {
            out.as_mut_slice::<f32>()?.fill(0.0);
        }
        if let Some(out) = call.outputs.get_mut(4) {
            masks(&field(3, long), &poses, out.as_mut_slice()?);
        }
        let [points, scores, totals, count, ..] = &mut *call.outputs else {
            return Err(Error::internal("four outputs"));
        };
        let stride = o.stride as f32;
        let found = points.as_mut_slice::<[Point; KEYPOINTS]>()?.iter_mut();
        for (((p, s), t), pose) in
            found.zip(scores.as_mut_slice::<[f32; KEYPOINTS]>()?).zip(totals.as_mut_slice::<f32>()?).zip(&poses)
        {
            *p = pose.points.map(|[y, x]| [y * stride, x * stride]);
            (*s, *t) = (pose.scores, pose.score);
        }
        count.as_mut_slice::<f32>()?.fill(poses.len() as f32);
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One person, whose key points are at known cells: every field says so everywhere.
    fn scene(at: &[Point; KEYPOINTS], size: usize) -> [Vec<f32>; 4] {
        let mut heat = vec![-8.0; size * size * KEYPOINTS];
        let (mut short, mut mid, mut long) = (Vec::new(), Vec::new(), Vec::new());
        for y in 0..size {
            for x in 0..size {
                let to = |k: usize, axis: usize| at[k][axis] - [y as f32, x as f32][axis];
                for k in 0..KEYPOINTS {
                    if at[k][0].round() as usize == y && at[k][1].round() as usize == x {
                        heat[(y * size + x) * KEYPOINTS + k] = 4.0 + k as f32 / 8.0;
                    }
                }
                (0..2).for_each(|axis| short.extend((0..KEYPOINTS).map(|k| to(k, axis))));
                (0..2).for_each(|axis| long.extend((0..KEYPOINTS).map(|k| to(k, axis))));
                for back in [false, true] {
                    for axis in 0..2 {
                        mid.extend(SKELETON.iter().map(|&(a, b)| to(if back { a } else { b }, axis)));
                    }
                }
            }
        }
        [heat, short, mid, long]
    }

    #[test]
    fn finds_a_person() {
        let size = 9;
        let at: [Point; KEYPOINTS] = std::array::from_fn(|k| [(k % 8) as f32 + 0.25, (k / 2) as f32]);
        let [heat, short, mid, long] = scene(&at, size);
        let field = |values, channels| Field { values, height: size, width: size, channels };
        let f =
            Fields { heat: field(&heat, KEYPOINTS), short: field(&short, 2 * KEYPOINTS), mid: field(&mid, 4 * EDGES) };
        let o = Posenet { max_detections: 5, score_threshold: 0.1, stride: 16, nms_radius: 20.0 };
        let poses = f.decode(&o);
        assert_eq!(poses.len(), 1);
        for (p, want) in poses[0].points.iter().zip(&at) {
            assert!(apart(*p, *want) < 1e-6, "{p:?} {want:?}");
        }
        let mut mask = vec![0.0; 5 * size * size];
        masks(&field(&long, 2 * KEYPOINTS), &poses, &mut mask);
        assert!(mask[..size * size].iter().all(|&m| m == 1.0) && mask[size * size..].iter().all(|&m| m == 0.0));
    }

    #[test]
    fn nothing_where_nothing_is() {
        let size = 4;
        let heat = vec![f32::NAN; size * size * KEYPOINTS];
        let zeros = vec![0.0; size * size * 4 * EDGES];
        let field = |values, channels| Field { values, height: size, width: size, channels };
        let f = Fields {
            heat: field(&heat, KEYPOINTS),
            short: field(&zeros, 2 * KEYPOINTS),
            mid: field(&zeros, 4 * EDGES),
        };
        let o = Posenet { max_detections: 5, score_threshold: 0.5, stride: 16, nms_radius: 20.0 };
        assert!(f.decode(&o).is_empty());
    }
}
