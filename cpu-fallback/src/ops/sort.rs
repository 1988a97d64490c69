//! Operators that order or pick by value: kernels.

use super::*;
use crate::kernel::Call;
use crate::moves::int;
use crate::value::{Value, View};
use bytemuck::Pod;
use litegpu_graph::{DType, Op};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::Hash;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let d = site.input(0)?.dtype;
    match &site.node.op {
        Op::TopkV2 => match d {
            DType::F32 => topk(|a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
                // A NaN is smaller than any number.
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                _ => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            }),
            DType::I8 => topk(|a: i8, b| a.cmp(&b)),
            DType::U8 => topk(|a: u8, b| a.cmp(&b)),
            DType::I16 => topk(|a: i16, b| a.cmp(&b)),
            DType::I32 => topk(|a: i32, b| a.cmp(&b)),
            DType::I64 => topk(|a: i64, b| a.cmp(&b)),
            _ => no_kernel(site),
        },
        Op::Unique(_) => match d {
            // Equal as numbers: -0 is 0; a NaN is equal to nothing, not even itself.
            DType::F32 => unique(|v: f32, i| if v.is_nan() { (0, i + 1) } else { ((v + 0.0).to_bits(), 0) }),
            DType::I8 | DType::U8 | DType::Bool => unique(|v: u8, _| v),
            DType::I16 => unique(|v: i16, _| v),
            DType::I32 => unique(|v: i32, _| v),
            DType::I64 => unique(|v: i64, _| v),
            _ => no_kernel(site),
        },
        Op::NonMaxSuppressionV4 => Ok(Box::new(|call: &mut Call<'_>| suppress(call, false))),
        Op::NonMaxSuppressionV5 => Ok(Box::new(|call: &mut Call<'_>| suppress(call, true))),
        Op::Bucketize(o) => {
            let edges = o.boundaries.clone().unwrap_or_default();
            if edges.windows(2).any(|w| w[0] > w[1]) {
                return Err(Error::invalid("boundaries are not sorted"));
            }
            if site.output(0)?.dtype != DType::I32 {
                return no_kernel(site);
            }
            match d {
                DType::F32 => buckets(edges, |v: f32| v as f64),
                DType::F64 => buckets(edges, |v: f64| v),
                DType::I32 => buckets(edges, |v: i32| v as f64),
                DType::I64 => buckets(edges, |v: i64| v as f64),
                _ => no_kernel(site),
            }
        }
        _ => no_kernel(site),
    }
}

/// Writes indices as int16, int32 or int64.
fn put(out: &mut Value, at: usize, i: usize) -> Result<()> {
    let range = || Error::internal("an index past the output");
    match out.dtype {
        DType::I16 => *out.as_mut_slice::<i16>()?.get_mut(at).ok_or_else(range)? = i as i16,
        DType::I32 => *out.as_mut_slice::<i32>()?.get_mut(at).ok_or_else(range)? = i as i32,
        DType::I64 => *out.as_mut_slice::<i64>()?.get_mut(at).ok_or_else(range)? = i as i64,
        d => return Err(Error::unsupported(format!("indices of {d}"))),
    }
    Ok(())
}

/// The k largest of each row, in order; of equal ones the first comes first.
fn topk<T: Pod + Send + Sync>(cmp: impl Fn(T, T) -> Ordering + Send + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let v = call.input(0)?;
        let n = v.shape.last().copied().unwrap_or(0);
        let x = v.as_slice::<T>()?;
        let [values, indices] = call.outputs else { return Err(Error::invalid("two outputs are needed")) };
        if values.dtype != v.dtype {
            return Err(Error::invalid(format!("{} in, {} out", v.dtype, values.dtype)));
        }
        let k = values.shape.last().copied().unwrap_or(0);
        if k == 0 || n == 0 {
            return Ok(());
        }
        let mut order: Vec<usize> = Vec::with_capacity(n);
        for (r, row) in x.chunks(n).enumerate() {
            order.clear();
            order.extend(0..n);
            first(&mut order, k, &|&a, &b| cmp(row[b], row[a]).then(a.cmp(&b)));
            for (j, &i) in order.iter().enumerate() {
                values.as_mut_slice::<T>()?[r * k + j] = row[i];
                put(indices, r * k + j, i)?;
            }
        }
        Ok(())
    }))
}

/// Leaves the first k, in order. Compiled once for all types.
fn first(order: &mut Vec<usize>, k: usize, by: &dyn Fn(&usize, &usize) -> Ordering) {
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, by);
        order.truncate(k);
    }
    litegpu_graph::order(order, &mut |a, b| by(&a, &b));
}

/// Distinct elements in order of first appearance, and for each element the number of its value.
fn unique<T: Pod + Send + Sync, K: Hash + Eq>(key: impl Fn(T, usize) -> K + Send + 'static) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let v = call.input(0)?;
        let x = v.as_slice::<T>()?;
        let [values, indices] = call.outputs else { return Err(Error::invalid("two outputs are needed")) };
        if values.dtype != v.dtype {
            return Err(Error::invalid(format!("{} in, {} out", v.dtype, values.dtype)));
        }
        let mut seen: HashMap<K, usize> = HashMap::new();
        let mut distinct: Vec<T> = Vec::new();
        for (i, &v) in x.iter().enumerate() {
            let number = *seen.entry(key(v, i)).or_insert(distinct.len());
            if number == distinct.len() {
                distinct.push(v);
            }
            put(indices, i, number)?;
        }
        values.reshape(&[distinct.len()])?;
        values.as_mut_slice::<T>()?.copy_from_slice(&distinct);
        Ok(())
    }))
}

fn buckets<T: Pod + Send + Sync>(edges: Vec<f32>, wide: fn(T) -> f64) -> Result<Kernel> {
    Ok(Box::new(move |call: &mut Call<'_>| {
        let x = call.input(0)?.as_slice::<T>()?;
        let out = call.output(0)?.as_mut_slice::<i32>()?;
        for (o, &v) in out.iter_mut().zip(x) {
            *o = edges.partition_point(|&e| e as f64 <= wide(v)) as i32;
        }
        Ok(())
    }))
}

/// A real scalar operand.
fn real(v: View<'_>) -> Result<f32> {
    match v.as_slice::<f32>()? {
        [x] if v.dtype == DType::F32 => Ok(*x),
        _ => Err(Error::invalid("a threshold is no real scalar")),
    }
}

/// NON_MAX_SUPPRESSION_V4 (hard) and V5 (soft when sigma > 0).
fn suppress(call: &mut Call<'_>, soft: bool) -> Result<()> {
    let (boxes, scores) = (call.input(0)?, call.input(1)?);
    let [n, 4] = *boxes.shape else { return Err(Error::invalid(format!("boxes of shape {:?}", boxes.shape))) };
    if scores.shape != [n] || boxes.dtype != DType::F32 || scores.dtype != DType::F32 {
        return Err(Error::invalid(format!("{n} boxes with scores of shape {:?}", scores.shape)));
    }
    let (boxes, scores) = (boxes.as_slice::<[f32; 4]>()?, scores.as_slice::<f32>()?);
    let limit = usize::try_from(int(&call.input(2)?)?).map_err(|_| Error::invalid("a negative number of boxes"))?;
    let (overlap, least) = (real(call.input(3)?)?, real(call.input(4)?)?);
    let sigma = if soft { real(call.input(5)?)? } else { 0.0 };
    if !(0.0..=1.0).contains(&overlap) || sigma.is_nan() || sigma < 0.0 {
        return Err(Error::invalid(format!("overlap threshold {overlap}, sigma {sigma}")));
    }
    let mut queue: std::collections::BinaryHeap<Candidate> =
        (0..n).filter(|&i| scores[i] > least).map(|index| Candidate { index, score: scores[index], seen: 0 }).collect();
    let mut chosen: Vec<(usize, f32)> = Vec::new();
    while let Some(mut c) = queue.pop() {
        if chosen.len() >= limit {
            break;
        }
        let before = c.score;
        let mut dead = false;
        // Boxes chosen since this candidate was last weighed, latest first.
        for &(other, _) in chosen.get(c.seen..).unwrap_or_default().iter().rev() {
            let iou = intersection_over_union(&boxes[c.index], &boxes[other]);
            if iou >= overlap {
                dead = true;
                break;
            }
            if sigma > 0.0 {
                c.score *= (-0.5 / sigma * iou * iou).exp();
            }
            if c.score <= least {
                break;
            }
        }
        c.seen = chosen.len();
        if dead {
            continue;
        }
        if c.score == before {
            chosen.push((c.index, c.score));
        } else if c.score > least {
            queue.push(c);
        }
    }
    let mut outputs = call.outputs.iter_mut();
    let mut next = || outputs.next().ok_or_else(|| Error::invalid("an output is missing"));
    // What is not chosen stays zero.
    let indices = next()?;
    indices.reshape(&[limit])?;
    indices.bytes_mut().fill(0);
    for (i, &(index, _)) in chosen.iter().enumerate() {
        put(indices, i, index)?;
    }
    if soft {
        let out = next()?;
        out.reshape(&[limit])?;
        let out = out.as_mut_slice::<f32>()?;
        out.fill(0.0);
        out.iter_mut().zip(&chosen).for_each(|(o, &(_, s))| *o = s);
    }
    put(next()?, 0, chosen.len())
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    index: usize,
    score: f32,
    seen: usize,
}

impl PartialEq for Candidate {
    fn eq(&self, o: &Candidate) -> bool {
        self.cmp(o).is_eq()
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, o: &Candidate) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Candidate {
    /// The best score first, then the first box.
    fn cmp(&self, o: &Candidate) -> Ordering {
        self.score.total_cmp(&o.score).then(o.index.cmp(&self.index))
    }
}

/// Of boxes given by two opposite corners, in any order.
fn intersection_over_union(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let corners = |c: &[f32; 4]| (c[0].min(c[2]), c[1].min(c[3]), c[0].max(c[2]), c[1].max(c[3]));
    let (ay, ax, by, bx) = corners(a);
    let (cy, cx, dy, dx) = corners(b);
    let (area_a, area_b) = ((by - ay) * (bx - ax), (dy - cy) * (dx - cx));
    if area_a <= 0.0 || area_b <= 0.0 {
        return 0.0;
    }
    let shared = (by.min(dy) - ay.max(cy)).max(0.0) * (bx.min(dx) - ax.max(cx)).max(0.0);
    shared / (area_a + area_b - shared)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use litegpu_graph::schema::*;

    #[test]
    fn largest_with_ties_and_nan() {
        let outs = [out(DType::F32), out(DType::I32)];
        let v = run(Op::TopkV2, &[f(&[5], &[2.0, f32::NAN, 3.0, 3.0, -1.0]), i(&[], &[4])], &outs).unwrap();
        assert_eq!(v[0].as_slice::<f32>().unwrap(), [3.0, 3.0, 2.0, -1.0]);
        assert_eq!(v[1].as_slice::<i32>().unwrap(), [2, 3, 0, 4]);
        assert!(run(Op::TopkV2, &[f(&[2], &[1.0, 2.0]), i(&[], &[3])], &outs).is_err());
        assert_eq!(run(Op::TopkV2, &[f(&[2], &[1.0, 2.0]), i(&[], &[0])], &outs).unwrap()[0].shape.as_slice(), [0]);
    }

    #[test]
    fn distinct() {
        let outs = [out(DType::F32), out(DType::I64)];
        let v = run(Op::Unique(UniqueOptionsT::default()), &[f(&[4], &[2.0, 0.0, -0.0, 2.0])], &outs).unwrap();
        assert_eq!(v[0].as_slice::<f32>().unwrap(), [2.0, 0.0]);
        assert_eq!(v[1].as_slice::<i64>().unwrap(), [0, 1, 1, 0]);
    }

    #[test]
    fn suppression() {
        let boxes = f(&[3, 4], &[0., 0., 1., 1., 0., 0.1, 1., 1.1, 0., 5., 1., 6.]);
        let args = |limit| [boxes.clone(), f(&[3], &[0.5, 0.9, 0.1]), i(&[], &[limit]), f(&[], &[0.5]), f(&[], &[0.0])];
        let outs = [out(DType::I32), out(DType::I32)];
        let v = run(Op::NonMaxSuppressionV4, &args(3), &outs).unwrap();
        assert_eq!(v[0].as_slice::<i32>().unwrap(), [1, 2, 0]);
        assert_eq!(v[1].as_slice::<i32>().unwrap(), [2]);
        assert!(run(Op::NonMaxSuppressionV4, &args(-1), &outs).is_err());
    }

    #[test]
    fn positions_and_buckets() {
        let c = x(DType::Bool, &[2, 2], &[0u8, 1, 1, 0]);
        assert_eq!(one::<i64>(Op::Where, &[c], DType::I64), (vec![2, 2], vec![0, 1, 1, 0]));
        assert_eq!(one::<i64>(Op::Where, &[x(DType::Bool, &[], &[1u8])], DType::I64).0, [1, 0]);
        let o = |b: &[f32]| Op::Bucketize(BucketizeOptionsT { boundaries: Some(b.to_vec()) });
        assert_eq!(one::<i32>(o(&[0.0, 10.0]), &[i(&[4], &[-1, 0, 9, 10])], DType::I32).1, [0, 1, 1, 2]);
        assert!(run(o(&[1.0, 0.0]), &[i(&[1], &[0])], &[out(DType::I32)]).is_err());
    }

    #[test]
    fn choices() {
        let c = x(DType::Bool, &[2], &[1u8, 0]);
        let (a, b) = (i(&[2, 2], &[1, 2, 3, 4]), i(&[2, 2], &[5, 6, 7, 8]));
        assert_eq!(one::<i32>(Op::Select, &[c.clone(), a.clone(), b.clone()], DType::I32).1, [1, 2, 7, 8]);
        assert_eq!(one::<i32>(Op::SelectV2, &[c, a.clone(), b.clone()], DType::I32).1, [1, 6, 3, 8]);
        let yes = x(DType::Bool, &[], &[1u8]);
        assert_eq!(one::<i32>(Op::Select, &[yes, a, b], DType::I32).1, [1, 2, 3, 4]);
    }
}
