//! Attention: softmax(q k^T * scale + mask) v by one kernel that keeps no scores. It is recognised at the product with the
//! values, in a graph and in the subgraph of a composite.

use super::layout::strides;
use crate::caps::AdapterClass;
use crate::convert;
use crate::lower::{Lower, Lowered, Operand, Params, Scene, line, no};
use litegpu_graph::schema::ActivationFunctionType;
use litegpu_graph::{DType, Node, Op, TensorId, elements};
use litegpu_shaders::{Elem, KernelKey};

/// Queries that a workgroup of the kernel takes.
const TILE: usize = 4;
/// Dimensions before those of the matrices that the kernel walks.
const OUTER: usize = 3;

/// An operand or the result, with its distances in memory, in elements: of the outer dimensions, and of positions.
struct Side<'a> {
    of: Operand<'a>,
    strides: [i64; OUTER + 1],
}

/// What hides scores.
struct Mask<'a> {
    side: Side<'a>,
    /// What scores become where it is false; `None` where it is a number that is added to them.
    instead: Option<f32>,
}

/// What a kernel computes.
struct Attention<'a> {
    q: Side<'a>,
    k: Side<'a>,
    v: Side<'a>,
    mask: Option<Mask<'a>>,
    y: Side<'a>,
    /// Outer dimensions, queries, keys.
    outer: [usize; OUTER],
    queries: usize,
    keys: usize,
    /// Elements of a query and of a value.
    width: [usize; 2],
    scale: f32,
}

impl Attention<'_> {
    fn emit(&self, cx: &mut Lower<'_, '_>) -> Lowered {
        let mask = self.mask.as_ref().map_or(&self.k, |m| &m.side);
        let sides = [&self.q, &self.k, &self.v, &self.y];
        if sides.iter().any(|x| !x.of.elem.is_float()) {
            return no("attention on numbers that are no floats");
        }
        let (hq, vq) = (self.width[0].div_ceil(4), self.width[1].div_ceil(4));
        // Invocations of a workgroup; more than one subgroup wait for each other, which a CPU does slowly.
        let lanes = if cx.scene.caps.class == AdapterClass::Software { 8 } else { 32 };
        if vq > 4 * lanes || (TILE * hq + lanes) * 16 > cx.scene.caps.max_workgroup_memory as usize {
            return no("elements of a head that are too many");
        }
        let tiles = self.queries.div_ceil(TILE);
        let groups = self.outer.iter().product::<usize>() * tiles;
        let kind = match &self.mask {
            None => 0,
            Some(Mask { instead: None, .. }) => 1,
            Some(_) => 2,
        };
        if mask.of.elem.is_float() != (kind < 2) {
            return no("a mask of another type");
        }
        let [q, k, v, y] = sides.map(|x| x.of.elem);
        let roles = [("q", q), ("k", k), ("v", v), ("mask", mask.of.elem), ("acc", Elem::F32), ("out", y)];
        let key = KernelKey::new("attention", &roles)
            .set("WG", lanes as i32)
            .set("MASK", kind)
            .set("QUERIES", (TILE * hq) as i32)
            .set("QUADS", vq.div_ceil(lanes) as i32);
        let instead = self.mask.as_ref().and_then(|m| m.instead).unwrap_or(0.0);
        let params = Params::new().u(groups).u(self.queries).u(tiles).u(self.keys).u(self.outer[1]).u(self.outer[2]);
        let params = params.u(hq).u(vq).u(self.width[1]).f(self.scale).f(instead).row();
        let quads = |p: Params, x: &Side<'_>| x.strides.iter().fold(p, |p, &d| p.u((d / 4) as usize));
        let params = sides.into_iter().fold(params, quads);
        let distances = if kind == 0 { [0; OUTER + 1] } else { mask.strides };
        let params = distances.iter().fold(params, |p, &d| p.u(d as usize));
        let reads = [&self.q, &self.k, &self.v, mask].map(|x| x.of.slot);
        cx.dispatch(key, &reads, &[self.y.of.slot], &[], params, line(groups))
    }
}

/// A part of a dimension: so many elements, each `times` steps along dimension `dim` of the tensor; or the same one again.
#[derive(Clone, Copy)]
struct Piece {
    n: usize,
    dim: Option<usize>,
    times: usize,
}

/// How a product's operand lies in memory: the tensor that holds it and, for each dimension but those of one element, from the
/// outside in, sizes and distances in elements.
struct View {
    tensor: TensorId,
    dims: Vec<Vec<(usize, i64)>>,
    /// What its elements are multiplied by.
    scale: f64,
}

impl View {
    /// Before the last two: for all places of `outer`, whose dimensions these broadcast to.
    fn outer(&self, outer: &[usize]) -> Option<Vec<(usize, i64)>> {
        let have = self.dims.get(..self.dims.len().checked_sub(2)?)?;
        spread(have, outer)
    }

    /// The distance of its rows, and how many there are.
    fn rows(&self) -> Option<(usize, i64)> {
        match self.dims.get(self.dims.len().checked_sub(2)?)?.as_slice() {
            [] => Some((1, 0)),
            &[row] => Some(row),
            _ => None,
        }
    }

    /// Elements of a row.
    fn width(&self) -> usize {
        self.dims.last().map_or(1, |d| d.iter().map(|p| p.0).product())
    }
}

/// Dimensions broadcast to `outer`, in a row.
fn spread(mut have: &[Vec<(usize, i64)>], outer: &[usize]) -> Option<Vec<(usize, i64)>> {
    while let ([first, rest @ ..], true) = (have, have.len() > outer.len()) {
        if !first.is_empty() {
            return None;
        }
        have = rest;
    }
    let more = outer.len().checked_sub(have.len())?;
    let mut all = Vec::new();
    for (i, &n) in outer.iter().enumerate() {
        let pieces = i.checked_sub(more).and_then(|i| have.get(i)).map_or(&[][..], Vec::as_slice);
        match pieces {
            [] => all.push((n, 0)),
            p if p.iter().map(|p| p.0).product::<usize>() == n => all.extend(p),
            _ => return None,
        }
    }
    Some(all)
}

/// An operator and its first two operands, if it does nothing else beside.
fn made<'a>(scene: &Scene<'a>, t: TensorId) -> Option<(&'a Node, TensorId, Option<TensorId>)> {
    let node = scene.producer(t)?;
    let none = ActivationFunctionType::NONE;
    let plain = match &node.op {
        Op::Add(o) => o.fused_activation_function == none,
        Op::Mul(o) => o.fused_activation_function == none,
        Op::Div(o) => o.fused_activation_function == none,
        Op::FullyConnected(o) => o.fused_activation_function == none && node.input(2).is_none(),
        _ => true,
    };
    (plain && !scene.shapes.is_known(node)).then_some((node, node.input(0)?, node.input(1)))
}

/// Whether one operator alone reads the tensor.
fn is_between(scene: &Scene<'_>, t: TensorId) -> bool {
    let graph = scene.graph;
    let readers = graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).filter(|i| **i == t);
    readers.count() == 1 && !graph.outputs.contains(&t)
}

/// `n` elements `step` apart in the order of memory, as parts of dimensions of a shape.
fn along(shape: &[usize], mut n: usize, mut step: usize) -> Option<Vec<Piece>> {
    let mut out = Vec::new();
    let mut inner = 1usize;
    for (dim, &size) in shape.iter().enumerate().rev() {
        let next = inner.checked_mul(size)?;
        if n > 1 && step < next {
            if step % inner != 0 {
                return None;
            }
            let times = step / inner;
            let room = if n.checked_mul(times)? <= size { n } else { size / times };
            if room < n && (size % times != 0 || n % room != 0) {
                return None;
            }
            out.push(Piece { n: room, dim: Some(dim), times });
            (n, step) = (n / room, next);
        }
        inner = next;
    }
    out.reverse();
    (n == 1).then_some(out)
}

/// The tensor, seen through what only turns, repeats or regroups its dimensions, as long as its last dimension (with `turned`
/// the last but one, and the last two are exchanged) lies innermost.
fn view(scene: &Scene<'_>, t: TensorId, turned: bool) -> Option<View> {
    let shape = scene.shape(t).ok()?;
    let last = shape.len().checked_sub(1)?;
    if elements(&shape) == 0 {
        return None;
    }
    let whole = |(dim, &n): (usize, &usize)| match n {
        1 => Vec::new(),
        n => vec![Piece { n, dim: Some(dim), times: 1 }],
    };
    let mut dims: Vec<Vec<Piece>> = shape.iter().enumerate().map(whole).collect();
    if turned {
        dims.swap(last, last.checked_sub(1)?);
    }
    let (mut at, mut best, mut scale) = (t, None, 1.0);
    for _ in 0..8 {
        let here = scene.shape(at).ok()?;
        let steps = strides(&here);
        let inner = here.len().checked_sub(1)?;
        let end = here.get(inner).copied()?;
        // Rows of whole quads.
        let lies = |p: &[Piece]| matches!(p, [Piece { n, dim: Some(d), times: 1 }] if *d == inner && (n % 4 == 0 || *n == end));
        if dims.last().is_some_and(|p| lies(p)) {
            let distance = |p: &Piece| p.dim.and_then(|d| steps.get(d)).map_or(0, |s| s * p.times as i64);
            let place = |pieces: &Vec<Piece>| pieces.iter().map(|p| (p.n, distance(p))).collect();
            best = Some(View { tensor: at, dims: dims.iter().map(place).collect(), scale });
        }
        let Some((node, x, order)) = made(scene, at) else { break };
        if let Some((x, factor)) = scaled(scene, node).filter(|s| scene.shape(s.0).is_ok_and(|s| s == here)) {
            (at, scale) = (x, scale * factor);
            continue;
        }
        let before = scene.shape(x).ok()?;
        let renamed = |name: &dyn Fn(usize) -> Option<usize>| {
            let piece = |p: &Piece| Piece { dim: p.dim.and_then(name), ..*p };
            dims.iter().map(|d| d.iter().map(piece).collect()).collect()
        };
        let next: Option<Vec<Vec<Piece>>> = match node.op {
            Op::Transpose => {
                let order = convert::ints(&scene.constant(order?).ok()??)?;
                let place = |d: usize| order.get(d).and_then(|o| usize::try_from(*o).ok());
                (order.len() == here.len()).then(|| renamed(&place))
            }
            Op::BroadcastTo if before.len() <= here.len() => {
                let more = here.len() - before.len();
                let place = |d: usize| d.checked_sub(more).filter(|&b| before.get(b) == here.get(d));
                Some(renamed(&place))
            }
            Op::Reshape(_) | Op::ExpandDims | Op::Squeeze(_) => {
                let behind = |d: usize| here.get(d + 1..).map_or(1, elements);
                let piece = |p: &Piece| match p.dim {
                    Some(d) => along(&before, p.n, behind(d).checked_mul(p.times)?),
                    None => Some(vec![*p]),
                };
                let dim = |d: &Vec<Piece>| Some(d.iter().map(piece).collect::<Option<Vec<_>>>()?.concat());
                dims.iter().map(dim).collect()
            }
            _ => None,
        };
        let Some(next) = next else { break };
        (dims, at) = (next, x);
    }
    best
}

/// A product of matrices of floats: its left operand, and the right one as rows that meet the left one's.
fn product(scene: &Scene<'_>, node: &Node) -> Option<(View, View)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let turned = match &node.op {
        Op::BatchMatmul(o) if !o.adj_x => !o.adj_y,
        Op::FullyConnected(_) if connected(scene, node)? => false,
        _ => return None,
    };
    Some((view(scene, a, false)?, view(scene, b, turned)?))
}

/// Whether it is a product with computed weights and nothing else, whose result has the dimensions of its operand.
fn connected(scene: &Scene<'_>, node: &Node) -> Option<bool> {
    let Op::FullyConnected(o) = &node.op else { return None };
    let plain = o.fused_activation_function == ActivationFunctionType::NONE && node.input(2).is_none();
    let computed = matches!(scene.constant(node.input(1)?), Ok(None));
    let (x, y) = (scene.shape(node.input(0)?).ok()?, scene.shape(*node.outputs.first()?).ok()?);
    // Dimensions of one element before all others come and go.
    let rows = |s: &[usize]| Some(s.split_last()?.1.iter().copied().skip_while(|&n| n == 1).collect::<Vec<_>>());
    Some(plain && computed && rows(&x)? == rows(&y)?)
}

/// A mask as a file has it: the tensor, what stands in for scores that it hides, and the shape of the scores.
type Hides = (TensorId, Option<f32>, litegpu_graph::Shape);

/// What scores have become on their way to the softmax.
struct Scores {
    scale: f64,
    mask: Option<Hides>,
    /// Which product they are, of which shape.
    of: Option<(View, View, litegpu_graph::Shape)>,
}

fn scalar(scene: &Scene<'_>, t: TensorId) -> Option<f64> {
    match convert::floats(&scene.constant(t).ok()??)?.as_slice() {
        [v] => Some(f64::from(*v)),
        _ => None,
    }
}

/// What is multiplied or divided by one number, and by what it is multiplied.
fn scaled(scene: &Scene<'_>, node: &Node) -> Option<(TensorId, f64)> {
    let divides = match node.op {
        Op::Mul(_) => false,
        Op::Div(_) => true,
        _ => return None,
    };
    let (a, b) = (node.input(0)?, node.input(1)?);
    match (scalar(scene, a), scalar(scene, b)) {
        (None, Some(v)) if divides => Some((a, 1.0 / v)),
        (None, Some(v)) => Some((a, v)),
        (Some(v), None) if !divides => Some((b, v)),
        _ => None,
    }
}

/// Walks back from the softmax's operand to the product.
fn scores(scene: &Scene<'_>, t: TensorId, mut found: Scores, depth: usize) -> Option<Scores> {
    if depth > 8 || !is_between(scene, t) {
        return None;
    }
    let (node, a, b) = made(scene, t)?;
    let shape = scene.shape(t).ok()?;
    // A mask that a later factor scales is not what the kernel applies.
    let unmasked = found.mask.is_none() && found.scale == 1.0;
    let with = |mask, instead| Scores { scale: 1.0, mask: Some((mask, instead, shape.clone())), of: None };
    match &node.op {
        Op::BatchMatmul(_) | Op::FullyConnected(_) => {
            let (q, k) = product(scene, node)?;
            found.scale *= q.scale * k.scale;
            found.of = Some((q, k, shape));
            Some(found)
        }
        Op::Mul(_) | Op::Div(_) => {
            let (x, factor) = scaled(scene, node)?;
            found.scale *= factor;
            scores(scene, x, found, depth + 1)
        }
        Op::Add(_) if unmasked => {
            let b = b?;
            let of = |x: TensorId, mask| {
                let same = scene.shape(x).is_ok_and(|s| s == shape);
                same.then(|| scores(scene, x, with(mask, None), depth + 1)).flatten()
            };
            of(a, b).or_else(|| of(b, a))
        }
        Op::Select | Op::SelectV2
            if unmasked && !(matches!(node.op, Op::Select) && scene.shape(a).ok()?.len() == 1) =>
        {
            let instead = scalar(scene, node.input(2)?)?;
            let x = b.filter(|x| scene.shape(*x).is_ok_and(|s| s == shape))?;
            scores(scene, x, with(a, Some(instead as f32)), depth + 1)
        }
        // Scores of another rank: matrices stay matrices.
        Op::Reshape(_) => {
            let before = scene.shape(a).ok()?;
            let same = before.last_chunk::<2>()? == shape.last_chunk::<2>()?;
            same.then(|| scores(scene, a, found, depth + 1)).flatten()
        }
        _ => None,
    }
}

/// What a tensor's own distances are, and what is read again and again.
type Sides = Vec<Vec<(usize, i64)>>;

/// The outer dimensions of all sides as few common ones, from the outside in, with the distance of each side in each.
fn common(mut sides: Sides) -> Option<Vec<(usize, Vec<i64>)>> {
    let mut out: Vec<(usize, Vec<i64>)> = Vec::new();
    loop {
        for s in &mut sides {
            while s.last().is_some_and(|d| d.0 == 1) {
                s.pop();
            }
        }
        let Some(n) = sides.iter().map(|s| s.last().map_or(1, |d| d.0)).min() else { return Some(out) };
        if sides.iter().all(|s| s.is_empty()) {
            out.reverse();
            return Some(out);
        }
        let mut distances = Vec::new();
        for s in &mut sides {
            let (have, d) = s.last_mut()?;
            if *have % n != 0 {
                return None;
            }
            distances.push(*d);
            (*have, *d) = (*have / n, *d * n as i64);
        }
        match out.last_mut() {
            // The next dimension out goes on where this one ends.
            Some((m, inner)) if inner.iter().zip(&distances).all(|(i, o)| i * *m as i64 == *o) => *m *= n,
            _ => out.push((n, distances)),
        }
    }
}

/// Attention that ends in this product, if it is that: whether it was.
pub(super) fn spelled_out(cx: &mut Lower<'_, '_>) -> Lowered<bool> {
    let Some(found) = recognise(cx.scene, cx.node) else { return Ok(false) };
    let before = cx.dispatches();
    let y = Side { of: cx.result(0)?, strides: found.places[3].1 };
    let mut side = |(t, strides): Place| -> Lowered<Side<'_>> { Ok(Side { of: cx.operand_of(t)?, strides }) };
    let [q, k, v, _] = found.places;
    let (q, k, v) = (side(q)?, side(k)?, side(v)?);
    let mask = match found.mask {
        Some((place, instead)) => Some(Mask { side: side(place)?, instead }),
        None => None,
    };
    let Found { outer, queries, keys, width, scale, .. } = found;
    let all = Attention { q, k, v, mask, y, outer, queries, keys, width, scale };
    if all.emit(cx).is_err() {
        cx.take_back(before);
        return Ok(false);
    }
    Ok(true)
}

type Place = (TensorId, [i64; OUTER + 1]);

struct Found {
    /// Queries, keys, values, result.
    places: [Place; 4],
    mask: Option<(Place, Option<f32>)>,
    outer: [usize; OUTER],
    queries: usize,
    keys: usize,
    width: [usize; 2],
    scale: f32,
}

/// Whether one kernel is better than two products and a softmax. An adapter that runs shaders on the CPU takes five times as
/// long by it, at any size: it keeps scores as long as they can be bound. Of one query a GPU has no matrix of scores to
/// save, and products divide its keys among more workgroups.
fn pays(scene: &Scene<'_>, outer: usize, queries: usize, keys: usize) -> bool {
    let scores = [outer, queries, keys.next_multiple_of(4), 4].iter().fold(1u64, |a, &n| a.saturating_mul(n as u64));
    match scene.caps.class {
        AdapterClass::Software => scores > scene.caps.max_binding,
        _ => queries > 1,
    }
}

fn recognise(scene: &Scene<'_>, node: &Node) -> Option<Found> {
    // The values are read along a key, whose elements lie innermost: as the product has them, or turned.
    let (a, b) = (node.input(0)?, node.input(1)?);
    let turned = match &node.op {
        Op::BatchMatmul(o) if !o.adj_x => o.adj_y,
        Op::FullyConnected(_) if connected(scene, node)? => true,
        _ => return None,
    };
    let (mut soft, mut x, _) = made(scene, a)?;
    if matches!(soft.op, Op::Reshape(_)) && is_between(scene, a) {
        (soft, x, _) = made(scene, x)?;
    }
    let Op::Softmax(o) = &soft.op else { return None };
    let probabilities = *soft.outputs.first()?;
    if o.beta != 1.0 || !is_between(scene, probabilities) {
        return None;
    }
    let values = view(scene, b, turned)?;
    if values.scale != 1.0 {
        return None;
    }
    let found = scores(scene, x, Scores { scale: 1.0, mask: None, of: None }, 0)?;
    let (q, k, of) = found.of?;
    let (weights, result) = (scene.shape(a).ok()?, scene.shape(*node.outputs.first()?).ok()?);
    let (&[ref outer @ .., queries, keys], &[ref of @ .., t, s]) = (weights.as_slice(), of.as_slice()) else {
        return None;
    };
    let (&[ref out @ .., rows, width], soft) = (result.as_slice(), scene.shape(probabilities).ok()?) else {
        return None;
    };
    let same = [t, s] == [queries, keys] && rows == queries && soft.last_chunk::<2>()? == &[t, s];
    let fits = q.rows()?.0 == queries && k.rows()?.0 == keys && values.rows()?.0 == keys;
    let depth = q.width();
    if !same || !fits || k.width() != depth || values.width() != width || depth < 2 || width < 2 || keys < 2 {
        return None;
    }
    // The weights have an outer place for each of the result's, and the scores the same ones.
    if elements(outer) != elements(out)
        || elements(outer) != elements(of)
        || !pays(scene, elements(outer), queries, keys)
    {
        return None;
    }
    let own: Vec<Vec<(usize, i64)>> = out.iter().zip(strides(&result)).map(|(&n, d)| vec![(n, d)]).collect();
    let mut sides: Sides = vec![q.outer(of)?, k.outer(of)?, values.outer(out)?, spread(&own, out)?];
    let mut row = 0;
    let mask = match &found.mask {
        None => None,
        Some((m, instead, at)) => {
            let &[ref at @ .., _, _] = at.as_slice() else { return None };
            let mask = masks(scene, *m)?;
            let step = mask.rows()?;
            if mask.width() != keys || (step.0 != 1 && step.0 != queries) || elements(at) != elements(outer) {
                return None;
            }
            sides.push(mask.outer(at)?);
            row = step.1;
            let dtype = scene.tensor(mask.tensor).ok()?.dtype;
            ((dtype == DType::Bool) == instead.is_some()).then_some(())?;
            Some((mask.tensor, *instead))
        }
    };
    let mut all = common(sides)?;
    while all.len() < OUTER {
        all.insert(0, (1, vec![0; 5]));
    }
    let [d0, d1, d2] = <[_; OUTER]>::try_from(all).ok()?;
    let outer = [d0.0, d1.0, d2.0];
    let at = |side: usize, row: i64| -> [i64; OUTER + 1] {
        let of = |d: &(usize, Vec<i64>)| d.1.get(side).copied().unwrap_or(0);
        [of(&d0), of(&d1), of(&d2), row]
    };
    let to = strides(&result).iter().rev().nth(1).copied().unwrap_or(0);
    let places = [
        (q.tensor, at(0, q.rows()?.1)),
        (k.tensor, at(1, k.rows()?.1)),
        (values.tensor, at(2, values.rows()?.1)),
        (*node.outputs.first()?, at(3, to)),
    ];
    // Distances of rows are whole quads.
    let scale = found.scale as f32;
    if !scale.is_finite() || places.iter().any(|(_, d)| d.iter().any(|d| d % 4 != 0)) {
        return None;
    }
    let mask = mask.map(|(m, instead)| ((m, at(4, row)), instead));
    let float = |t: TensorId| scene.tensor(t).is_ok_and(|t| t.dtype == DType::F32 && !t.is_variable);
    let floats = places.iter().map(|p| p.0).chain(mask.iter().filter(|m| m.1.is_none()).map(|m| m.0.0));
    if !floats.into_iter().all(float) || mask.is_some_and(|m| scene.tensor(m.0.0).map_or(true, |t| t.is_variable)) {
        return None;
    }
    Some(Found { places, mask, outer, queries, keys, width: [depth, width], scale })
}

/// A mask as it lies: of fewer than two dimensions too, and of one query for all.
fn masks(scene: &Scene<'_>, t: TensorId) -> Option<View> {
    let shape = scene.shape(t).ok()?;
    let mut dims: Vec<Vec<(usize, i64)>> =
        shape.iter().zip(strides(&shape)).map(|(&n, d)| if n == 1 { Vec::new() } else { vec![(n, d)] }).collect();
    while dims.len() < 2 {
        dims.insert(0, Vec::new());
    }
    Some(View { tensor: t, dims, scale: 1.0 })
}
