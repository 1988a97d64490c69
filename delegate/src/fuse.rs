//! Fusing element-wise dispatches into the dispatch that makes their operand.
//!
//! A `unary` or `binary` dispatch that alone reads what one other dispatch alone writes becomes epilogue steps of that
//! dispatch: its memory is never written, and one dispatch less is recorded. The other operand of a binary one must be
//! there already, and be laid out as the result is, or be one element, or one row.

use crate::program::{Access, Dispatch, Program, SlotId};
use litegpu_shaders::{At, EPILOGUE_BINDING, Elem, KernelKey, Lit, MAX_ROWS, Step, kernel, row_sizes};
use std::collections::HashMap;

/// Operands that an epilogue may have, over which a further one is not fused.
const MAX_OPERANDS: usize = 3;
/// Steps over which a chain is cut: every distinct chain is a pipeline of its own.
const MAX_STEPS: usize = 12;

struct Uses {
    writers: Vec<usize>,
    readers: Vec<usize>,
}

fn uses(dispatches: &[Option<Dispatch>], slots: usize) -> Vec<Uses> {
    let mut all: Vec<Uses> = (0..slots).map(|_| Uses { writers: Vec::new(), readers: Vec::new() }).collect();
    for (i, d) in dispatches.iter().enumerate() {
        for b in d.iter().flat_map(|d| &d.bindings) {
            if let Some(u) = all.get_mut(b.slot) {
                match b.access {
                    Access::Read | Access::Beside => u.readers.push(i),
                    Access::Write => u.writers.push(i),
                }
            }
        }
    }
    all
}

/// What a dispatch is to fusing: its operand slots, its result.
fn slots(d: &Dispatch, access: Access) -> impl Iterator<Item = SlotId> + '_ {
    d.bindings.iter().filter(move |b| b.access == access && b.binding < EPILOGUE_BINDING).map(|b| b.slot)
}

fn extras(d: &Dispatch) -> impl Iterator<Item = SlotId> + '_ {
    d.bindings.iter().filter(|b| b.binding >= EPILOGUE_BINDING).map(|b| b.slot)
}

fn constant(key: &KernelKey, name: &str) -> i32 {
    key.constants.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v)
}

fn role(key: &KernelKey, name: &str) -> Option<Elem> {
    key.roles.iter().find(|(r, _)| *r == name).map(|(_, e)| *e)
}

/// A dispatch and its kernel.
type Work = (Dispatch, KernelKey);

/// A merge that could be taken back: the numbers of both dispatches, and what they were.
struct Merge {
    into: usize,
    at: usize,
    producer: Work,
    merged: Work,
}

/// Fuses what can be fused. `pinned` slots are read by the host. `slow_compiler`: pipelines take the adapter so long to
/// compile that a merge is not worth one.
pub(crate) fn fuse(program: &mut Program, pinned: &[SlotId], max_storage_buffers: u32, slow_compiler: bool) {
    let mut dispatches: Vec<Option<Dispatch>> = program.dispatches.drain(..).map(Some).collect();
    let mut keys: Vec<Option<KernelKey>> =
        dispatches.iter().map(|d| d.as_ref().and_then(|d| program.kernels.get(d.kernel).cloned())).collect();
    // What nobody reads: operators whose purpose another kernel serves.
    let table = uses(&dispatches, program.slots.len());
    let mut readers: Vec<usize> = table.iter().map(|u| u.readers.len()).collect();
    // What several dispatches write, one of them may read as well.
    let alone = |slot: SlotId| table.get(slot).is_some_and(|u| u.writers.len() == 1);
    for i in (0..dispatches.len()).rev() {
        let Some(Some(d)) = dispatches.get(i) else { continue };
        let mut results = d.bindings.iter().filter(|b| b.access == Access::Write);
        if results.any(|b| pinned.contains(&b.slot) || !alone(b.slot) || readers.get(b.slot) != Some(&0)) {
            continue;
        }
        for b in d.bindings.iter().filter(|b| b.access == Access::Read) {
            if let Some(n) = readers.get_mut(b.slot) {
                *n -= 1;
            }
        }
        dispatches[i] = None;
        keys[i] = None;
    }
    let mut at = 0;
    let mut merges: Vec<Merge> = Vec::new();
    while at < dispatches.len() {
        let table = uses(&dispatches, program.slots.len());
        match merge(&dispatches, &keys, &table, pinned, at, max_storage_buffers) {
            Some((into, key, dispatch)) => {
                let merged = dispatches[at].take().zip(keys[at].take());
                let producer = dispatches[into].replace(dispatch).zip(keys[into].replace(key));
                if let (Some(merged), Some(producer)) = (merged, producer) {
                    merges.push(Merge { into, at, producer, merged });
                }
                // The merged dispatch may itself be fusable into its own producer only as it was before: go on.
            }
            None => at += 1,
        }
    }
    if slow_compiler {
        divide(program, &mut dispatches, &mut keys, &mut merges);
        share(program, &dispatches, &mut keys);
    }
    // Copies that nobody reads any more.
    let table = uses(&dispatches, program.slots.len());
    for (d, key) in dispatches.iter_mut().zip(&mut keys) {
        let unread = |d: &Dispatch| {
            let mut results = slots(d, Access::Write);
            d.appends.is_some()
                && results.all(|s| !pinned.contains(&s) && table.get(s).is_some_and(|u| u.readers.is_empty()))
        };
        if d.as_ref().is_some_and(unread) {
            *d = None;
            *key = None;
        }
    }
    // An operand with the output's rows is one with rows of its own: one kernel less, where there is one for those.
    for i in 0..keys.len() {
        let (Some(Some(key)), Some(Some(d))) = (keys.get(i), dispatches.get(i)) else { continue };
        let narrow = as_narrow(key, d);
        if let Some(narrow) = narrow.filter(|n| keys.iter().flatten().any(|k| k == n)) {
            keys[i] = Some(narrow);
        }
    }
    // Kernels again, in the order of their first use.
    let mut kernels: Vec<KernelKey> = Vec::new();
    let mut numbers: HashMap<KernelKey, usize> = HashMap::new();
    for (d, key) in dispatches.into_iter().zip(keys) {
        if let (Some(mut d), Some(key)) = (d, key) {
            d.kernel = *numbers.entry(key.clone()).or_insert_with(|| {
                kernels.push(key);
                kernels.len() - 1
            });
            program.dispatches.push(d);
        }
    }
    program.kernels = kernels;
}

/// Runs of a network that a first result may be late by, to come sooner.
pub(crate) const RUNS: f64 = 100.0;
/// What a byte of a shader's text takes to compile on an adapter that runs shaders on the CPU, a byte of a tensor to be
/// read or written, and a dispatch: microseconds, by measurement.
pub(crate) const TEXT_US: f64 = 35.0;
const BYTE_US: f64 = 0.7e-3;
const DISPATCH_US: f64 = 15.0;

/// Takes back the last merge of all dispatches of a kernel, where both kernels that they then need are there anyway and
/// the pipeline that is saved takes longer to compile than the separate dispatches take in [`RUNS`] runs.
fn divide(
    program: &Program,
    dispatches: &mut [Option<Dispatch>],
    keys: &mut [Option<KernelKey>],
    merges: &mut Vec<Merge>,
) {
    let mut tried: Vec<KernelKey> = Vec::new();
    while let Some(key) = keys.iter().flatten().find(|k| !k.epilogue.is_empty() && !tried.contains(k)).cloned() {
        tried.push(key.clone());
        let users: Vec<usize> = (0..keys.len()).filter(|&i| keys.get(i) == Some(&Some(key.clone()))).collect();
        let last: Vec<usize> = users.iter().filter_map(|&u| merges.iter().rposition(|m| m.into == u)).collect();
        let back: Vec<&Merge> = last.iter().filter_map(|&i| merges.get(i)).collect();
        let here = |k: &KernelKey| *k != key && keys.iter().flatten().any(|other| other == k);
        if back.len() != users.len() || !back.iter().all(|m| here(&m.producer.1) && here(&m.merged.1)) {
            continue;
        }
        let table = uses(dispatches, program.slots.len());
        // Whoever reads the result must still come after it.
        let later = |m: &&Merge| {
            slots(&m.merged.0, Access::Write).all(|s| table.get(s).is_some_and(|u| u.readers.iter().all(|&r| r > m.at)))
        };
        if !back.iter().all(&later) {
            continue;
        }
        let bytes = |m: &&Merge| {
            slots(&m.producer.0, Access::Write).filter_map(|s| Some(program.slots.get(s)?.bytes)).sum::<u64>()
        };
        let runs: f64 = back.iter().map(|m| DISPATCH_US + BYTE_US * 2.0 * bytes(m) as f64).sum();
        let text = litegpu_shaders::source(&key).map_or(0, |s| s.len());
        if runs * RUNS > text as f64 * TEXT_US {
            continue;
        }
        let mut last = last;
        litegpu_graph::order(&mut last, &mut |a, b| a.cmp(&b));
        while let Some(i) = last.pop() {
            let Merge { into, at, producer, merged } = merges.remove(i);
            for (n, (d, k)) in [(into, producer), (at, merged)] {
                if let (Some(dispatch), Some(slot)) = (dispatches.get_mut(n), keys.get_mut(n)) {
                    (*dispatch, *slot) = (Some(d), Some(k));
                }
            }
        }
    }
}

/// What a step of a workgroup of conv.wgsl takes longer by where it reads single quads, or knows of windows, without need,
/// and a byte of a depthwise result: microseconds.
const STEP_US: f64 = 0.03;
const QUAD_US: f64 = 0.1e-3;

/// How much longer a dispatch takes with kernel `other` than with its own; `None` where it cannot.
fn longer(program: &Program, d: &Dispatch, key: &KernelKey, other: &KernelKey) -> Option<f64> {
    let mut differences = 0.0;
    // Pairs of quads may be read and written one by one.
    for ((role, a), (_, b)) in key.parts.iter().zip(&other.parts) {
        if a == b {
            continue;
        }
        let single = matches!(
            (*a, *b),
            ("oct_f32_u64", "oct_f32_u64_odd")
                | ("oct_f16_u64", "oct_f16_u64_odd")
                | ("oct_b8_u32" | "oct_f16_u32", "oct_quads")
                | ("put_b8_u32" | "put_f16_u32", "put_quads")
        );
        if !single || *role == "w" {
            return None;
        }
        differences += 1.0;
    }
    let point = |k: &KernelKey| constant(k, "POINT");
    // A product of matrices is a convolution as well.
    match (point(key), point(other)) {
        (a, b) if a == b => {}
        (2, 1) => {}
        (_, 0) => differences += 1.0,
        _ => return None,
    }
    let rest = |k: &KernelKey| {
        let constants = k.constants.iter().filter(|(n, _)| *n != "POINT").copied().collect();
        KernelKey { parts: Vec::new(), constants, ..k.clone() }
    };
    if key.parts.len() != other.parts.len() || rest(key) != rest(other) {
        return None;
    }
    let us = match key.kernel {
        "conv" => {
            let steps = d.params.get(CONV_STEPS).copied().unwrap_or(0);
            STEP_US * d.groups.iter().map(|&g| f64::from(g)).product::<f64>() * f64::from(steps)
        }
        "depthwise_rows" => {
            let bytes = slots(d, Access::Write).filter_map(|s| Some(program.slots.get(s)?.bytes)).sum::<u64>();
            QUAD_US * bytes as f64
        }
        _ => return None,
    };
    Some(us * differences)
}

/// The place of `steps` in the uniform of conv.wgsl.
const CONV_STEPS: usize = 16;

/// Lets dispatches of a kernel run as a more general one that is there anyway, where the pipeline that is saved takes
/// longer to compile than that costs in [`RUNS`] runs.
fn share(program: &Program, dispatches: &[Option<Dispatch>], keys: &mut [Option<KernelKey>]) {
    let mut distinct: Vec<KernelKey> = Vec::new();
    for key in keys.iter().flatten() {
        if !distinct.contains(key) {
            distinct.push(key.clone());
        }
    }
    for key in distinct {
        let users: Vec<usize> = (0..keys.len()).filter(|&i| keys.get(i) == Some(&Some(key.clone()))).collect();
        let cost = |other: &KernelKey| {
            let each = users.iter().map(|&u| longer(program, dispatches.get(u)?.as_ref()?, &key, other));
            each.sum::<Option<f64>>()
        };
        let others = keys.iter().flatten().filter(|k| **k != key);
        let best = others.filter_map(|k| Some((cost(k)?, k.clone()))).min_by(|a, b| a.0.total_cmp(&b.0));
        let text = litegpu_shaders::source(&key).map_or(0, |s| s.len()) as f64;
        if let Some((_, other)) = best.filter(|(us, _)| us * RUNS <= text * TEXT_US) {
            for &u in &users {
                if let Some(slot) = keys.get_mut(u) {
                    *slot = Some(other.clone());
                }
            }
        }
    }
}

/// The key with the first operand of the epilogue that is read as the output is read by rows, if these are known.
fn as_narrow(key: &KernelKey, d: &Dispatch) -> Option<KernelKey> {
    let mut key = key.clone();
    let mut operands = key.epilogue.iter_mut().filter_map(|s| s.operand.as_mut()).zip(&d.sizes);
    let (operand, _) = operands.find(|((_, at), sizes)| *at == At::Same && sizes[0] > 0)?;
    operand.1 = At::Narrow;
    Some(key)
}

/// Tries to make dispatch `at` part of the producer of one of its operands: that producer's number, key and dispatch.
fn merge(
    dispatches: &[Option<Dispatch>],
    keys: &[Option<KernelKey>],
    table: &[Uses],
    pinned: &[SlotId],
    at: usize,
    max_storage_buffers: u32,
) -> Option<(usize, KernelKey, Dispatch)> {
    let d = dispatches.get(at)?.as_ref()?;
    let key = keys.get(at)?.as_ref()?;
    let unary = key.kernel == "unary";
    if !unary && key.kernel != "binary" {
        return None;
    }
    let operands: Vec<SlotId> = slots(d, Access::Read).collect();
    let result = slots(d, Access::Write).next()?;
    // Later producers first: the other operand is then more likely to be there.
    let mut order: Vec<usize> = (0..operands.len()).collect();
    let appended = |slot: SlotId| match table.get(slot).map(|u| u.writers.as_slice()) {
        Some(&[w]) => dispatches.get(w).and_then(Option::as_ref).filter(|d| d.appends.is_some()),
        _ => None,
    };
    // What only appends zeros comes last: the other operand's producer can do without it.
    let rank = |i: usize| {
        let slot = operands.get(i).copied();
        let last = slot.and_then(|s| table.get(s)?.writers.last().copied());
        (slot.is_some_and(|s| appended(s).is_some()), std::cmp::Reverse(last.map_or(0, |w| w + 1)))
    };
    litegpu_graph::order(&mut order, &mut |i, j| rank(i).cmp(&rank(j)));
    for i in order {
        let slot = *operands.get(i)?;
        let (Some([into]), Some(readers)) =
            (table.get(slot).map(|u| u.writers.as_slice()), table.get(slot).map(|u| u.readers.as_slice()))
        else {
            continue;
        };
        let elsewhere = dispatches.get(*into)?.as_ref().is_some_and(|p| p.stretch != d.stretch);
        if readers != [at] || pinned.contains(&slot) || *into >= at || elsewhere {
            continue;
        }
        let (Some(p), Some(pk)) = (dispatches.get(*into)?.as_ref(), keys.get(*into)?.as_ref()) else { continue };
        if !kernel(pk.kernel).is_some_and(|k| k.text().contains("finish(")) {
            continue;
        }
        // Parts that write several quads at a time know how these are stored.
        if !pk.parts.is_empty() && role(key, "out") != role(pk, "out") {
            continue;
        }
        let mut steps = Vec::new();
        let mut more: Vec<SlotId> = Vec::new();
        let mut sizes: Vec<[u32; 4]> = Vec::new();
        if !unary {
            let other = operands.iter().position(|s| *s != slot)?;
            let splat = constant(key, "SPLAT");
            let f = key.functions.iter().find(|(a, _)| *a == "OP").map(|(_, f)| *f)?;
            let Some(place) = place(d, constant(key, "SAME") == 1, splat, i, other) else { continue };
            let mut elem = role(key, if other == 0 { "in0" } else { "in1" })?;
            let mut source = *operands.get(other)?;
            // The dispatch's uniform begins with quads and row.
            let (quads, mut row) = (*d.params.first()?, *d.params.get(1)?);
            let (mut place, mut own) = (place, row);
            if let (At::Same, Some(copy)) = (place, appended(source))
                && let (Some(appended), Some(from)) = (copy.appends, slots(copy, Access::Read).next())
                && let Some(stored) =
                    table.get(source).and_then(|u| role(keys.get(*u.writers.first()?)?.as_ref()?, "in0"))
            {
                (source, elem, place) = (from, stored, At::Narrow);
                (row, own) = appended;
            }
            let few = quads / row.max(1) < MAX_ROWS as u32;
            if place.is_sized() && !few {
                continue;
            }
            sizes.push(if few { row_sizes(row, own) } else { [0; 4] });
            let ready = table.get(source).is_some_and(|u| u.writers.iter().all(|w| w < into));
            if !ready {
                continue;
            }
            steps.push(Step { f, operand: Some((elem, place)), swap: i == 1, args: Vec::new() });
            more.push(source);
        }
        // The chain's own operands must be there as well.
        let tail: Vec<SlotId> = extras(d).collect();
        if !tail.iter().all(|s| table.get(*s).is_some_and(|u| u.writers.iter().all(|w| w < into))) {
            continue;
        }
        more.extend(tail);
        sizes.extend(&d.sizes);
        steps.extend(key.epilogue.iter().cloned());
        let mut merged = p.clone();
        for b in &mut merged.bindings {
            if b.access == Access::Write && b.slot == slot {
                b.slot = result;
            }
        }
        let mut merged_key = pk.clone();
        if pk.epilogue.is_empty() && more.is_empty() && narrow(&mut merged, steps.first()) {
            steps.remove(0);
        }
        let had = extras(p).count();
        if had + more.len() > MAX_OPERANDS
            || pk.epilogue.len() + steps.len() > MAX_STEPS
            || (p.bindings.len() + more.len()) as u32 > max_storage_buffers
        {
            continue;
        }
        for (k, s) in more.into_iter().enumerate() {
            let binding = EPILOGUE_BINDING + (had + k) as u32;
            merged.bindings.push(crate::program::Binding { binding, slot: s, access: Access::Read });
        }
        merged.sizes.extend(sizes);
        merged_key.epilogue.extend(steps);
        let out = role(key, "out")?;
        for (r, e) in &mut merged_key.roles {
            if *r == "out" {
                *e = out;
            }
        }
        return Some((*into, merged_key, merged));
    }
    None
}

/// Makes a clamp part of the limits that the producer's uniform already has, or HARD_SWISH stand in for them: one pipeline
/// less, and no step.
fn narrow(d: &mut Dispatch, step: Option<&Step>) -> bool {
    let limits = match step {
        Some(Step { f: "f_relu", operand: None, .. }) => Some((0.0, f32::INFINITY)),
        Some(Step { f: "f_clamp", operand: None, args, .. }) => match args.as_slice() {
            [Lit::F(low), Lit::F(high)] => Some((f32::from_bits(*low), f32::from_bits(*high))),
            _ => return false,
        },
        Some(Step { f: "f_hard_swish", operand: None, .. }) => None,
        _ => return false,
    };
    let Some([a, b, swish]) = d.limits.and_then(|at| d.params.get_mut(at..at + 3)) else { return false };
    if *swish != 0 {
        return false;
    }
    match limits {
        Some((low, high)) => {
            for word in [a, b] {
                *word = f32::from_bits(*word).max(low).min(high).to_bits();
            }
        }
        // Limits that are already there come first.
        None if (*a, *b) == (f32::NEG_INFINITY.to_bits(), f32::INFINITY.to_bits()) => *swish = 1,
        None => return false,
    }
    true
}

/// Where the other operand of a binary dispatch is read, if the fused one is laid out as the result.
fn place(d: &Dispatch, same: bool, splat: i32, fused: usize, other: usize) -> Option<At> {
    if same {
        return Some(At::Same);
    }
    // The dispatch's uniform: quads, row, tail, dimensions, then (size, stride, stride, -) for each.
    let row = *d.params.get(1)?;
    let count = *d.params.get(3)? as usize;
    let dims = d.params.get(4..4 + count.min(6) * 4)?;
    if splat >> fused & 1 == 1 {
        return None;
    }
    let mut want = row;
    let mut still = true;
    for dim in dims.chunks_exact(4) {
        let (n, of_fused, of_other) = (*dim.first()?, *dim.get(1 + fused)?, *dim.get(1 + other)?);
        if of_fused != want {
            return None;
        }
        want = want.checked_mul(n)?;
        still &= of_other == 0;
    }
    match (still, splat >> other & 1 == 1) {
        (true, true) => Some(At::Scalar),
        (true, false) => Some(At::Row),
        _ => None,
    }
}
