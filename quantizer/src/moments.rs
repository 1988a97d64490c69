//! What layers see of their inputs, as second moments: with them the error that rounded weights add to a layer's result
//! is known without running it.

use crate::params::Weights;
use litegpu_graph::ops::window;
use litegpu_graph::schema::Padding;
use litegpu_graph::{Graph, NodeId, Op, TensorId};

/// Rows of weights longer than this keep only the squares of what they see, not the products.
const LONGEST: usize = 2048;
/// Products of elements that are kept in all (two halves of four bytes each).
pub(crate) const BUDGET: usize = 1 << 25;

/// A constant of weights, and what it is multiplied with.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    /// Its place among the node's operands.
    pub slot: usize,
    pub weights: TensorId,
    /// The activation.
    pub seen: TensorId,
    layout: Layout,
    /// Elements of a row.
    pub len: usize,
    rows: usize,
    /// Rows that see the same.
    shared: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Rows behind one another, each multiplied with windows of the activation.
    Windows { taps: [usize; 2], strides: [i32; 2], dilations: [i32; 2], padding: Padding },
    /// A row per channel, its elements a channel count apart.
    Depthwise { taps: [usize; 2], strides: [i32; 2], dilations: [i32; 2], padding: Padding },
    /// Rows behind one another, each multiplied with the innermost dimension of the activation.
    Plain,
}

impl Operand {
    fn index(&self, row: usize, k: usize) -> usize {
        match self.layout {
            Layout::Depthwise { .. } => k * self.rows + row,
            _ => row * self.len + k,
        }
    }
}

/// The operands of a node whose errors second moments tell.
pub(crate) fn operands(g: &Graph, n: NodeId) -> Vec<Operand> {
    let Some(node) = g.nodes.get(n) else { return Vec::new() };
    let shape = |i: usize| g.operand(node, i).filter(|w| w.is_constant() && !w.is_variable).map(|w| &w.shape[..]);
    let one = |seen: Option<TensorId>, slot: usize, layout, len: usize, rows: usize, shared: usize| {
        let (seen, weights) = (seen?, node.input(slot)?);
        (len > 0 && rows > 0).then_some(Operand { slot, weights, seen, layout, len, rows, shared: shared.max(1) })
    };
    let found = match &node.op {
        Op::Conv2d(o) => shape(1).and_then(|w| {
            let &[rows, h, w, depth] = w else { return None };
            let channels = *g.operand(node, 0)?.shape.last()?;
            // Grouped: a row sees its group's channels.
            let groups = channels.checked_div(depth).filter(|n| *n > 0 && rows % n == 0)?;
            let layout = Layout::Windows {
                taps: [h, w],
                strides: [o.stride_h, o.stride_w],
                dilations: [o.dilation_h_factor, o.dilation_w_factor],
                padding: o.padding,
            };
            one(node.input(0), 1, layout, h * w * depth, rows, rows / groups)
        }),
        Op::DepthwiseConv2d(o) => shape(1).and_then(|w| {
            let &[1, h, w, rows] = w else { return None };
            let channels = *g.operand(node, 0)?.shape.last()?;
            let layout = Layout::Depthwise {
                taps: [h, w],
                strides: [o.stride_h, o.stride_w],
                dilations: [o.dilation_h_factor, o.dilation_w_factor],
                padding: o.padding,
            };
            let multiplier = rows.checked_div(channels).filter(|m| m * channels == rows)?;
            one(node.input(0), 1, layout, h * w, rows, multiplier)
        }),
        // Each tap of an output channel is a row: what several taps add to one place counts as if independent.
        Op::TransposeConv(_) => shape(1).and_then(|w| {
            let &[n, h, w, len] = w else { return None };
            one(node.input(2), 1, Layout::Plain, len, n * h * w, n * h * w)
        }),
        Op::FullyConnected(_) => shape(1).and_then(|w| {
            let &[rows, len] = w else { return None };
            one(node.input(0), 1, Layout::Plain, len, rows, rows)
        }),
        Op::UnidirectionalSequenceLstm(o) if !o.diagonal_recurrent_tensors => {
            // Gates see the input, and the result of the step before.
            let seen = |slot: usize| if slot < 5 { node.input(0) } else { node.outputs.first().copied() };
            let gate = |slot: usize| {
                let &[rows, len] = shape(slot)? else { return None };
                one(seen(slot), slot, Layout::Plain, len, rows, rows)
            };
            return (1..9).filter_map(gate).collect();
        }
        _ => None,
    };
    found.into_iter().collect()
}

/// Sums over what rows see.
#[derive(Debug, Clone, Default)]
struct Sums {
    count: f64,
    /// Of products of all pairs of elements, or (rows that are too long) of each element with itself.
    products: Vec<f32>,
}

/// What an operand's rows see, in even and odd samples apart.
#[derive(Debug)]
pub(crate) struct Moments {
    len: usize,
    full: bool,
    /// Per half and block (rows that see the same).
    halves: [Vec<Sums>; 2],
    samples: usize,
}

impl Moments {
    /// Sums for an operand; `budget` is what is left of [`BUDGET`].
    pub fn new(o: &Operand, budget: &mut usize) -> Moments {
        let blocks = o.rows.div_ceil(o.shared);
        let pairs = o.len.saturating_mul(o.len).saturating_mul(blocks);
        let full = o.len <= LONGEST && pairs <= *budget;
        if full {
            *budget -= pairs;
        }
        let each = if full { o.len * o.len } else { o.len };
        let sums = Sums { count: 0.0, products: vec![0.0; each] };
        Moments { len: o.len, full, halves: [vec![sums.clone(); blocks], vec![sums; blocks]], samples: 0 }
    }

    /// Adds what one sample shows: the activation's values and shape, and the weights' shape.
    pub fn add(&mut self, o: &Operand, values: &[f32], shape: &[usize]) {
        // Enough windows for the sums to settle, and no more work than the layer's own.
        let limit = ((1 << 16) / o.len.max(1)).clamp(16, 512);
        let half = self.samples % 2;
        let sample = self.samples;
        self.samples += 1;
        let mut row = vec![0f32; o.len];
        match o.layout {
            Layout::Plain => {
                let count = values.len() / o.len;
                for at in spread(count, limit, sample) {
                    if let Some(x) = values.get(at * o.len..(at + 1) * o.len) {
                        self.sum(half, 0, x);
                    }
                }
            }
            Layout::Windows { taps, strides, dilations, padding } => {
                let &[n, h, w, channels] = shape else { return };
                let depth = o.len / (taps[0] * taps[1]).max(1);
                let Some(windows) = Windows::new([n, h, w], taps, strides, dilations, padding) else { return };
                for at in spread(windows.count(), limit, sample) {
                    for block in 0..o.rows.div_ceil(o.shared) {
                        row.fill(0.0);
                        windows.each(at, |tap, pixel| {
                            let from = pixel * channels + block * depth;
                            if let (Some(to), Some(x)) =
                                (row.get_mut(tap * depth..(tap + 1) * depth), values.get(from..from + depth))
                            {
                                to.copy_from_slice(x);
                            }
                        });
                        self.sum(half, block, &row);
                    }
                }
            }
            Layout::Depthwise { taps, strides, dilations, padding } => {
                let &[n, h, w, channels] = shape else { return };
                let Some(windows) = Windows::new([n, h, w], taps, strides, dilations, padding) else { return };
                for at in spread(windows.count(), limit.min(128), sample) {
                    for c in 0..channels {
                        row.fill(0.0);
                        windows.each(at, |tap, pixel| {
                            if let (Some(to), Some(x)) = (row.get_mut(tap), values.get(pixel * channels + c)) {
                                *to = *x;
                            }
                        });
                        self.sum(half, c, &row);
                    }
                }
            }
        }
    }

    fn sum(&mut self, half: usize, block: usize, x: &[f32]) {
        let (len, full) = (self.len, self.full);
        let Some(s) = self.halves.get_mut(half).and_then(|h| h.get_mut(block)) else { return };
        s.count += 1.0;
        if full {
            for (line, &v) in s.products.chunks_exact_mut(len).zip(x) {
                if v != 0.0 {
                    line.iter_mut().zip(x).for_each(|(a, u)| *a += v * u);
                }
            }
        } else {
            s.products.iter_mut().zip(x).for_each(|(a, v)| *a += v * v);
        }
    }

    /// The mean of a sum of products, over the given halves.
    fn mean(&self, block: usize, halves: &[usize], at: usize) -> f64 {
        let sums = || halves.iter().filter_map(|&h| self.halves.get(h)?.get(block));
        let total: f64 = sums().filter_map(|s| s.products.get(at)).map(|v| f64::from(*v)).sum();
        total / sums().map(|s| s.count).sum::<f64>().max(1.0)
    }

    /// Mean squares of a block's elements. One that was never seen has an error all the same.
    fn squares(&self, block: usize, halves: &[usize]) -> Vec<f64> {
        let at = |i: usize| if self.full { i * self.len + i } else { i };
        let all: Vec<f64> = (0..self.len).map(|i| self.mean(block, halves, at(i)).max(0.0)).collect();
        let least = 1e-3 * all.iter().sum::<f64>() / all.len().max(1) as f64 + f64::from(f32::MIN_POSITIVE);
        all.into_iter().map(|v| v + least).collect()
    }

    /// Mean products of a block's elements, with `shrink` of what different elements have in common taken away, as too few
    /// samples show too much of that.
    fn products(&self, block: usize, halves: &[usize], shrink: f32) -> Vec<f32> {
        let n = self.len;
        let squares = self.squares(block, halves);
        let mut out = vec![0f32; n * n];
        for i in 0..n {
            for j in 0..n {
                out[i * n + j] = match (i == j, self.full) {
                    (true, _) => squares[i] as f32,
                    (false, true) => self.mean(block, halves, i * n + j) as f32 * (1.0 - shrink),
                    (false, false) => 0.0,
                };
            }
        }
        out
    }

    /// Chooses weights of `bits` bits for which the layer's result, as the samples show it, is nearest to the float
    /// one: scales between the whole range and less of it, and each weight rounded up or down as the others' errors
    /// want it. How far products of elements are trusted is decided by fitting to each half of the samples and looking at
    /// the other. Returns none when nothing is better than rounding to the nearest.
    pub fn fit(&self, o: &Operand, values: &[f32], whole: &Weights, bits: u32) -> Option<Weights> {
        /// Shares of the products between elements that are taken away.
        const SHRINK: [f32; 4] = [0.02, 0.1, 0.3, 0.7];
        /// Rows that the choice is made on.
        const TRIED: usize = 48;
        if self.samples < 2 || values.len() != o.rows * o.len {
            return None;
        }
        let plain = clipped(o, self, values, whole, bits);
        if !self.full {
            return (plain.scale != whole.scale).then_some(plain);
        }
        let mut costs = [0f64; SHRINK.len() + 1];
        let step = o.rows.div_ceil(TRIED).max(1);
        for [seen, unseen] in [[0, 1], [1, 0]] {
            let mut block = usize::MAX;
            let (mut truth, mut fits) = (Vec::new(), Vec::new());
            for row in (0..o.rows).step_by(step) {
                if block != row / o.shared {
                    block = row / o.shared;
                    truth = self.products(block, &[unseen], 0.0);
                    fits = SHRINK.map(|s| self.products(block, &[seen], s)).to_vec();
                }
                let (w, scale, near) = row_of(o, row, values, &plain);
                costs[SHRINK.len()] += cost(&truth, &w, &near, scale);
                for (c, fit) in costs.iter_mut().zip(&fits) {
                    *c += cost(&truth, &w, &descend(fit, &w, near.clone(), scale, bits), scale);
                }
            }
        }
        let best = costs.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i)?;
        let Some(&shrink) = SHRINK.get(best) else { return (plain.scale != whole.scale).then_some(plain) };
        let mut out = plain;
        let (mut block, mut products) = (usize::MAX, Vec::new());
        for row in 0..o.rows {
            if block != row / o.shared {
                block = row / o.shared;
                products = self.products(block, &[0, 1], shrink);
            }
            let (w, scale, near) = row_of(o, row, values, &out);
            for (k, q) in descend(&products, &w, near, scale, bits).into_iter().enumerate() {
                if let Some(to) = out.q.get_mut(o.index(row, k)) {
                    *to = q;
                }
            }
        }
        Some(out)
    }
}

/// Scales at which the squared errors of rounding and clipping, weighed by the squares of what the weights meet, are
/// least.
fn clipped(o: &Operand, m: &Moments, values: &[f32], whole: &Weights, bits: u32) -> Weights {
    let mut weights = vec![1f64; values.len()];
    let (mut block, mut squares) = (usize::MAX, Vec::new());
    for row in 0..o.rows {
        if block != row / o.shared {
            block = row / o.shared;
            squares = m.squares(block, &[0, 1]);
        }
        for k in 0..o.len {
            if let (Some(w), Some(s)) = (weights.get_mut(o.index(row, k)), squares.get(k)) {
                *w = *s;
            }
        }
    }
    let mut out = whole.clone();
    out.fit_weighted(values, bits, &weights);
    out
}

/// A row's weights, its scale, and the integers it has.
fn row_of(o: &Operand, row: usize, values: &[f32], from: &Weights) -> (Vec<f32>, f32, Vec<i32>) {
    let at = |k: usize| o.index(row, k);
    let w = (0..o.len).map(|k| values.get(at(k)).copied().unwrap_or(0.0)).collect();
    let q = (0..o.len).map(|k| from.q.get(at(k)).copied().unwrap_or(0)).collect();
    (w, from.scale_of(at(0)), q)
}

/// The mean square that a row's errors add to the result.
fn cost(products: &[f32], w: &[f32], q: &[i32], scale: f32) -> f64 {
    let d: Vec<f32> = q.iter().zip(w).map(|(q, w)| *q as f32 * scale - w).collect();
    let line = |(line, v): (&[f32], &f32)| f64::from(*v) * f64::from(dot(line, &d));
    products.chunks_exact(d.len().max(1)).zip(&d).map(line).sum()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0f32; LANES];
    let (x, x_rest) = a.as_chunks::<LANES>();
    let (y, y_rest) = b.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(s, (x, y))| *s += x * y);
    }
    sums.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

/// Moves integers one after the other to where the cost is least while the others stay, until none wants to move.
fn descend(products: &[f32], w: &[f32], mut q: Vec<i32>, scale: f32, bits: u32) -> Vec<i32> {
    /// Rounds over the row; most rows rest after three.
    const ROUNDS: usize = 12;
    let top = (1i32 << (bits - 1)) - 1;
    let n = w.len();
    let d: Vec<f32> = q.iter().zip(w).map(|(q, w)| *q as f32 * scale - w).collect();
    let mut slope: Vec<f32> = products.chunks_exact(n.max(1)).map(|line| dot(line, &d)).collect();
    for _ in 0..ROUNDS {
        let mut moved = false;
        for i in 0..n {
            let Some(line) = products.get(i * n..(i + 1) * n) else { break };
            let (Some(own), Some(g), Some(q)) = (line.get(i), slope.get(i), q.get_mut(i)) else { break };
            let step = -(g / (scale * own)).round();
            let to = (*q as f32 + step.clamp(-2.0, 2.0)).clamp(-(top as f32), top as f32) as i32;
            if to != *q && step.is_finite() {
                let by = (to - *q) as f32 * scale;
                *q = to;
                moved = true;
                slope.iter_mut().zip(line).for_each(|(s, p)| *s += by * p);
            }
        }
        if !moved {
            break;
        }
    }
    q
}

/// Up to `limit` of `count` places, others for other samples.
fn spread(count: usize, limit: usize, sample: usize) -> impl Iterator<Item = usize> {
    // An odd step does not stay in one column of a picture.
    let step = if count > limit { count.div_ceil(limit) | 1 } else { 1 };
    (sample % step..count).step_by(step)
}

/// The windows of a picture.
struct Windows {
    picture: [usize; 3],
    out: [usize; 2],
    before: [usize; 2],
    taps: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
}

impl Windows {
    fn new(
        picture: [usize; 3],
        taps: [usize; 2],
        strides: [i32; 2],
        dilations: [i32; 2],
        padding: Padding,
    ) -> Option<Windows> {
        let [_, h, w] = picture;
        let y = window(padding, h, taps[0], strides[0], dilations[0]).ok()?;
        let x = window(padding, w, taps[1], strides[1], dilations[1]).ok()?;
        Some(Windows {
            picture,
            out: [y.out, x.out],
            before: [y.before, x.before],
            taps,
            strides: strides.map(|s| s as usize),
            dilations: dilations.map(|d| d as usize),
        })
    }

    fn count(&self) -> usize {
        self.picture[0] * self.out[0] * self.out[1]
    }

    /// Calls `f` with each tap of a window that lies on the picture, and the pixel under it.
    fn each(&self, at: usize, mut f: impl FnMut(usize, usize)) {
        let [_, h, w] = self.picture;
        let (x, rest) = (at % self.out[1].max(1), at / self.out[1].max(1));
        let (y, n) = (rest % self.out[0].max(1), rest / self.out[0].max(1));
        for ty in 0..self.taps[0] {
            let Some(py) = (y * self.strides[0] + ty * self.dilations[0]).checked_sub(self.before[0]) else { continue };
            for tx in 0..self.taps[1] {
                let px = (x * self.strides[1] + tx * self.dilations[1]).checked_sub(self.before[1]);
                if let Some(px) = px.filter(|px| *px < w && py < h) {
                    f(ty * self.taps[1] + tx, (n * h + py) * w + px);
                }
            }
        }
    }
}
