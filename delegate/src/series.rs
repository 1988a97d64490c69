//! Series: neighbouring dispatches that are each less work than a dispatch costs become one, whose single workgroup does
//! them one after another as `series.wgsl` reads from its uniform.
//!
//! What is translated are dispatches, after fusing: their kernels' uniforms say where each element is. What they write
//! lies in one slot, with a place in it for each tensor that others read (`Slot::within`); what they read of others is
//! bound beside it, and their constants are packed together.

use crate::caps::{AdapterClass, Caps};
use crate::fuse::{RUNS, TEXT_US};
use crate::program::{Access, Binding, Dispatch, LEAST_BINDING, Member, Place, Program, Slot, SlotId, arranged};
use litegpu_shaders::{At, Elem, KernelKey, Lit, Step};
use std::collections::{HashMap, HashSet};

/// Operands of a series that others have written, over which it is divided: bindings of `series.wgsl`.
const OTHERS: usize = 5;
/// Rows of the uniform.
const ROWS: usize = 2048;
/// Bytes of constants that are packed for one series: what is larger stays where it is.
const MAX_CONSTANTS: u64 = 2 << 20;
/// As in series.wgsl.
const BY_OUTPUT: u32 = 1;
const EACH: u32 = 2;
const SIDE_BY_SIDE: u32 = 4;
const SWAP: u32 = 8;
const INDIRECT: u32 = 16;
const ARGUMENTS: u32 = 32;
const PRODUCT: u32 = 64;
const INTEGERS: u32 = 128;
const KEEP: u32 = 256;
const LOOK_UP: u32 = 512;
/// Repetitions from which they are divided among idle invocations.
const MANY: u32 = 16;
/// The address of an operand that is nowhere: what is outside stands for it.
const NOWHERE: u32 = 1 << 31;

/// What a dispatch costs an adapter that wakes threads for it, and a byte of the text of a series to compile.
const WAKE_US: f64 = 35.0;
const SERIES_TEXT_US: f64 = 65.0;

/// What a workgroup takes for an instruction and to read four words side by side in each invocation, and what a dispatch
/// may take to be part of a series: microseconds. Of GPUs these are guesses.
struct Prices {
    width: u32,
    instruction: f64,
    read: f64,
    limit: f64,
}

impl Prices {
    /// A software adapter wakes threads for a dispatch; a GPU keeps an instruction waiting for what the last one wrote.
    fn of(caps: &Caps) -> Prices {
        match caps.class {
            AdapterClass::Software => Prices { width: lanes(caps), instruction: 0.4, read: 0.065, limit: 70.0 },
            _ => Prices { width: 64, instruction: 1.0, read: 0.1, limit: 5.0 },
        }
    }
}

/// Invocations that a software adapter runs in step.
fn lanes(caps: &Caps) -> u32 {
    caps.subgroups.filter(|(least, most)| least == most).map_or(8, |(n, _)| n.clamp(1, 64))
}

/// A dimension: size, stride, and the part that is inside.
type Dim = [u32; 4];

fn whole(size: u32, stride: u32) -> Dim {
    [size, stride, 0, i32::MAX as u32]
}

/// What a step reads.
struct Operand {
    /// `None` where what is outside is all there is.
    slot: Option<SlotId>,
    elem: Elem,
    /// Address of the first element.
    base: u32,
    outside: u32,
    dims: Vec<Dim>,
    /// Dimensions of repetitions.
    over: Vec<Dim>,
}

impl Operand {
    fn new(slot: SlotId, elem: Elem, dims: Vec<Dim>) -> Operand {
        Operand { slot: Some(slot), elem, base: 0, outside: 0, dims, over: Vec::new() }
    }
    /// A word.
    fn word(bits: u32) -> Operand {
        Operand { slot: None, elem: Elem::I32, base: NOWHERE, outside: bits, dims: Vec::new(), over: Vec::new() }
    }
}

/// One step of an instruction.
struct Part {
    /// The function; `None` takes the operand.
    f: Option<&'static str>,
    how: u32,
    operands: Vec<Operand>,
    args: Vec<u32>,
    times: u32,
}

impl Part {
    fn of(f: Option<&'static str>, how: u32, operand: Operand) -> Part {
        Part { f, how, operands: vec![operand], args: Vec::new(), times: 1 }
    }
    fn call(f: &'static str, args: &[u32]) -> Part {
        Part { f: Some(f), how: 0, operands: Vec::new(), args: args.to_vec(), times: 1 }
    }
    /// How often something is read.
    fn reads(&self) -> u32 {
        match (self.operands.len(), self.how & EACH, self.how & PRODUCT) {
            (0, ..) => 0,
            (1, EACH, _) => 4,
            (2, _, _) if self.how & SUMMED != 0 => 5,
            (n, ..) => n as u32,
        }
    }
}

/// Not of the shader: the product is summed up.
const SUMMED: u32 = 1 << 15;

/// One instruction.
struct Instruction {
    quads: u32,
    row: u32,
    width: u32,
    lane: u32,
    group: u32,
    /// Quads from group to group beyond their rows, the first quad, quads of an output row.
    to: [u32; 3],
    slot: SlotId,
    elem: Elem,
    steps: Vec<Part>,
}

impl Instruction {
    /// All of the output, in the order of its memory.
    fn all(quads: u32, row: u32, width: u32, slot: SlotId, elem: Elem) -> Instruction {
        Instruction { quads, row, width, lane: 0, group: 0, to: [0, 0, row], slot, elem, steps: Vec::new() }
    }

    fn us(&self, prices: &Prices) -> f64 {
        // Words side by side are read fastest.
        let step = |p: &Part| {
            let words = p.how & SIDE_BY_SIDE != 0 && p.operands.iter().all(|o| stored(o.elem) == Some(0));
            f64::from(p.times) * (1.5 + f64::from(p.reads()) * if words { 1.0 } else { 1.6 })
        };
        let each: f64 = self.steps.iter().map(step).sum();
        prices.instruction + f64::from(self.quads.div_ceil(prices.width)) * (each + 2.0) * prices.read
    }

    /// With repetitions divided among invocations that would have nothing to do: sums of parts first, then theirs.
    fn divided(mut self, lanes: u32, more: &mut dyn FnMut(u32) -> SlotId) -> Vec<Instruction> {
        let plain = self.lane == 0 && self.group == 0 && self.row > 0;
        let Some(sum) = self.steps.get_mut(1).filter(|s| plain && s.times >= MANY && s.how & BY_OUTPUT == 0) else {
            return vec![self];
        };
        let most = lanes / self.quads.max(1);
        let Some(parts) = (2..=most).rev().find(|k| sum.times % k == 0) else { return vec![self] };
        let linear = sum.operands.iter().all(|o| o.over.len() == 1 && o.over.iter().all(|d| d[3] == i32::MAX as u32));
        if !linear || !sum.f.is_some_and(|f| matches!(f, "f_add" | "i_add" | "f_max" | "i_max" | "f_min" | "i_min")) {
            return vec![self];
        }
        let (times, f, numbers) = (sum.times / parts, sum.f, self.quads / self.row * self.width);
        for o in &mut sum.operands {
            // The dimensions have a size each, and behind them come the parts.
            let mut size = 1;
            for d in &mut o.dims {
                d[0] = if d[0] == 0 { numbers / size } else { d[0] };
                size *= d[0];
            }
            let stride = o.over.first().map_or(0, |d| d[1].wrapping_mul(times));
            o.dims.extend([whole((numbers / size).max(1), 0), whole(0, stride)]);
            o.dims.retain(|d| d[0] != 1);
        }
        sum.times = times;
        let between = more(self.quads * parts);
        let rest = self.steps.split_off(2);
        let dims = vec![whole(self.width, 1), whole(0, self.row * 4)];
        let over = vec![whole(0, self.quads * 4)];
        let sums = Operand { over, ..Operand::new(between, Elem::F32, dims) };
        let mut whole_sum = Instruction { steps: Vec::new(), ..self };
        let neutral = self.steps.first().and_then(|s| s.operands.first()).map_or(0, |o| o.outside);
        whole_sum.steps.push(Part::of(None, 0, Operand::word(neutral)));
        whole_sum.steps.push(Part { times: parts, ..Part::of(f, SIDE_BY_SIDE, sums) });
        whole_sum.steps.extend(rest);
        let first = Instruction {
            quads: self.quads * parts,
            to: [0, 0, self.row],
            slot: between,
            elem: Elem::F32,
            steps: self.steps,
            ..whole_sum
        };
        vec![first, whole_sum]
    }

    /// Without dimensions that no number reaches, and without a division by the last one.
    fn trimmed(mut self) -> Instruction {
        let numbers = u64::from(self.quads / self.row.max(1)) * u64::from(self.width);
        for o in self.steps.iter_mut().filter(|s| s.how & BY_OUTPUT == 0).flat_map(|s| &mut s.operands) {
            let mut size = 1u64;
            let reached = o.dims.iter().position(|d| {
                size = size.saturating_mul(u64::from(d[0]));
                d[0] == 0 || size >= numbers
            });
            let Some(kept) = reached.map(|n| n + 1) else { continue };
            if o.dims.iter().skip(kept).all(|d| d[2] == 0 && d[3] > 0) {
                o.dims.truncate(kept);
                last(&mut o.dims);
            }
        }
        self
    }

    fn operands(&self) -> impl Iterator<Item = &Operand> {
        self.steps.iter().flat_map(|s| &s.operands)
    }
}

/// What a dispatch is as instructions, and how long they take.
struct Small {
    instructions: Vec<Instruction>,
    us: f64,
}

/// How elements are stored, where a series reads and writes them: 1 bytes, 2 signed.
fn stored(elem: Elem) -> Option<u32> {
    match elem {
        Elem::F32 | Elem::I32 => Some(0),
        Elem::U8 | Elem::Bool => Some(1),
        Elem::I8 => Some(3),
        _ => None,
    }
}

/// A dispatch and its kernel, while they are translated.
struct Source<'a> {
    d: &'a Dispatch,
    key: &'a KernelKey,
}

impl Source<'_> {
    /// A word of the uniform.
    fn p(&self, i: usize) -> Option<u32> {
        self.d.params.get(i).copied()
    }
    /// Rows of the uniform.
    fn rows(&self, first: usize, count: u32) -> Option<Vec<[u32; 4]>> {
        let words = self.d.params.get(first..first + 4 * count as usize)?;
        Some(words.as_chunks::<4>().0.to_vec())
    }
    fn constant(&self, name: &str) -> i32 {
        self.key.constants.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v)
    }
    fn role(&self, name: &str) -> Option<Elem> {
        let elem = self.key.roles.iter().find(|(r, _)| *r == name).map(|(_, e)| *e);
        elem.filter(|e| stored(*e).is_some())
    }
    fn bound(&self, number: u32) -> Option<SlotId> {
        self.d.bindings.iter().find(|b| b.binding == number).map(|b| b.slot)
    }
    fn operand(&self, binding: u32, name: &str, dims: Vec<Dim>) -> Option<Operand> {
        Some(Operand::new(self.bound(binding)?, self.role(name)?, dims))
    }
    fn function(&self, alias: &str) -> Option<&'static str> {
        self.key.functions.iter().find(|(a, _)| *a == alias).map(|(_, f)| *f)
    }
    fn part(&self, name: &str) -> bool {
        self.key.parts.iter().any(|(_, p)| *p == name)
    }

    /// The dispatch as instructions for so many invocations. `more` makes a slot of so many quads of words.
    fn translate(&self, lanes: u32, more: &mut dyn FnMut(u32) -> SlotId) -> Option<Vec<Instruction>> {
        let mut made = match self.key.kernel {
            "unary" => vec![self.unary()?],
            "binary" => vec![self.binary()?],
            "copy" => vec![self.copy()?],
            "gather" => vec![self.gather()?],
            "lut" => vec![self.lut()?],
            "reduce" => vec![self.reduce()?],
            "normalize" => self.normalize(more)?,
            "matvec" => vec![self.matvec()?],
            "conv" | "conv_four" => vec![self.conv()?],
            "depthwise" | "depthwise_four" => vec![self.depthwise()?],
            "pool" => vec![self.pool()?],
            _ => return None,
        };
        let mut operands = (0..).zip(&self.d.sizes);
        for s in &self.key.epilogue {
            let step = follow(self.d, s, &mut operands)?;
            made.last_mut()?.steps.push(step);
        }
        Some(made.into_iter().flat_map(|i| i.divided(lanes, more)).map(Instruction::trimmed).collect())
    }

    fn unary(&self) -> Option<Instruction> {
        let (quads, row) = (self.p(0)?, self.p(1)?);
        let out = self.role("out")?;
        let mut i = Instruction::all(quads, row, row.saturating_sub(1) * 4 + self.p(2)?, self.bound(2)?, out);
        i.steps.push(Part::of(None, BY_OUTPUT | SIDE_BY_SIDE, self.operand(1, "in0", vec![whole(0, 1)])?));
        Some(i)
    }

    fn binary(&self) -> Option<Instruction> {
        let (quads, row) = (self.p(0)?, self.p(1)?);
        let out = self.role("out")?;
        let mut i = Instruction::all(quads, row, row.saturating_sub(1) * 4 + self.p(2)?, self.bound(3)?, out);
        let (same, splat) = (self.constant("SAME") == 1, self.constant("SPLAT"));
        let rows = self.rows(4, self.p(3)?)?;
        for (n, name, f) in [(0, "in0", None), (1, "in1", Some(self.function("OP")?))] {
            // One element stands for all of its row.
            let spread = splat >> n & 1 == 1;
            let mut dims = vec![whole(row * 4, u32::from(!spread))];
            dims.extend(rows.iter().map(|d| whole(d[0], d[1 + n] * 4)));
            if same {
                dims = vec![whole(0, 1)];
            } else if dims.len() > 1 {
                last(&mut dims);
            }
            let how = BY_OUTPUT | if spread { 0 } else { SIDE_BY_SIDE };
            i.steps.push(Part::of(f, how, self.operand(1 + n as u32, name, dims)?));
        }
        Some(i)
    }

    fn copy(&self) -> Option<Instruction> {
        let pad = self.constant("PAD");
        if pad > 1 {
            return None;
        }
        let (quads, row, width) = (self.p(0)?, self.p(1)?, self.p(2)?);
        let (group, pitch, first, out_row) = (self.p(4)?, self.p(5)?, self.p(6)?, self.p(7)?);
        let mut dims = self.rows(12, self.p(3)?)?;
        if pad == 0 {
            dims.iter_mut().for_each(|d| *d = whole(d[0], d[1]));
        }
        last(&mut dims);
        let operand = self.operand(1, "in0", dims)?;
        let how = if self.constant("VEC") == 1 { SIDE_BY_SIDE } else { EACH };
        Some(Instruction {
            quads,
            row,
            width,
            lane: self.p(9)?,
            group: if quads.div_ceil(row.max(1)) > group { group } else { 0 },
            to: [pitch.wrapping_sub(group).wrapping_mul(out_row), first * out_row + self.p(8)?, out_row],
            slot: self.bound(2)?,
            elem: self.role("out")?,
            steps: vec![Part::of(None, how, Operand { base: self.p(10)?, outside: self.p(11)?, ..operand })],
        })
    }

    fn gather(&self) -> Option<Instruction> {
        let (inner, tuples, outer, in_width, in_pitch) = (self.p(4)?, self.p(5)?, self.p(6)?, self.p(7)?, self.p(8)?);
        let (idx_width, idx_pitch) = (self.p(10)?, self.p(11)?);
        if self.p(3)? != 1 || tuples % idx_width.max(1) != 0 || inner % in_width.max(1) != 0 {
            return None;
        }
        let mut i = Instruction::all(self.p(0)?, self.p(1)?, self.p(2)?, self.bound(3)?, self.role("out")?);
        let how = if self.constant("VEC") == 1 { SIDE_BY_SIDE } else { EACH };
        let mut dims = vec![
            whole(inner, 0),
            whole(idx_width, 1),
            whole(tuples / idx_width, idx_pitch),
            whole(outer, 0),
            whole(0, tuples / idx_width * idx_pitch),
        ];
        dims.retain(|d| d[0] != 1);
        i.steps.push(Part::of(None, how & EACH, Operand::new(self.bound(2)?, Elem::I32, dims)));
        let mut dims =
            vec![whole(in_width, 1), whole(inner / in_width, in_pitch), whole(tuples, 0), whole(0, self.p(9)?)];
        dims.retain(|d| d[0] != 1);
        let rows = Part::of(None, how | INDIRECT, self.operand(1, "in0", dims)?);
        i.steps.push(Part { args: vec![self.p(12)?, self.p(13)?], ..rows });
        Some(i)
    }

    fn lut(&self) -> Option<Instruction> {
        let (quads, row) = (self.p(0)?, self.p(1)?);
        let mut i = Instruction::all(quads, row, row.saturating_sub(1) * 4 + self.p(2)?, self.bound(3)?, Elem::U8);
        let bytes = Operand::new(self.bound(1)?, Elem::U8, vec![whole(0, 1)]);
        i.steps.push(Part::of(None, BY_OUTPUT | SIDE_BY_SIDE, bytes));
        let table = Part::of(None, EACH | INDIRECT, Operand::new(self.bound(2)?, Elem::U8, Vec::new()));
        i.steps.push(Part { args: vec![256, 1], ..table });
        Some(i)
    }

    fn reduce(&self) -> Option<Instruction> {
        let (steps, inner) = (self.p(4)?, self.p(5)?);
        let mut i = Instruction::all(self.p(0)?, self.p(1)?, self.p(2)?, self.bound(2)?, self.role("out")?);
        let (mut dims, mut over) = (self.rows(16, self.p(3)?)?, self.rows(40, self.p(6)?)?);
        let lanes = self.constant("LANES") == 1;
        if !lanes {
            over.insert(0, [inner, 1, 0, 0]);
        }
        for list in [&mut dims, &mut over] {
            list.iter_mut().for_each(|d| *d = whole(d[0], d[1]));
            last(list);
        }
        let operand = Operand { over, ..self.operand(1, "in0", dims)? };
        i.steps.push(Part::of(None, 0, Operand::word(self.p(8)?)));
        let combine = Part::of(Some(self.function("COMBINE")?), if lanes { SIDE_BY_SIDE } else { EACH }, operand);
        i.steps.push(Part { times: if lanes { steps } else { steps.checked_mul(inner)? }, ..combine });
        if self.function("CLOSE") == Some("close_f") {
            if f32::from_bits(self.p(7)?) != 1.0 {
                i.steps.push(Part::of(Some("f_div"), 0, Operand::word(self.p(7)?)));
            }
        } else if self.p(9)? != 0 {
            i.steps.push(Part::of(Some("i_sub"), 0, Operand::word(self.p(14)?)));
            i.steps.push(Part::call("i_requant", &[self.p(9)?, self.p(10)?]));
            i.steps.push(Part::of(Some("i_add"), 0, Operand::word(self.p(11)?)));
            i.steps.push(Part::call("i_clamp", &[self.p(12)?, self.p(13)?]));
        }
        Some(i)
    }

    /// Rows are read as often as they have quads, and more.
    fn normalize(&self, more: &mut dyn FnMut(u32) -> SlotId) -> Option<Vec<Instruction>> {
        let (rows, row, width, beta) = (self.p(0)?, self.p(1)?, self.p(2)?, f32::from_bits(self.p(3)?));
        let quads = rows.checked_mul(row)?;
        let x = || self.operand(1, "in0", vec![whole(0, 1)]);
        let float = |slot, dims| Operand::new(slot, Elem::F32, dims);
        let all = |slot, elem, first: Operand| {
            let mut i = Instruction::all(quads, row, width, slot, elem);
            i.steps.push(Part::of(None, BY_OUTPUT | SIDE_BY_SIDE, first));
            i
        };
        // One value a row, and where the others find it.
        let each = |slot, f, neutral: f32, of: Operand| {
            let mut i = Instruction::all(rows, 1, 1, slot, Elem::F32);
            i.steps.push(Part::of(None, 0, Operand::word(neutral.to_bits())));
            let of = Operand { dims: vec![whole(0, row * 4)], over: vec![whole(0, 1)], ..of };
            i.steps.push(Part { times: width, ..Part::of(Some(f), EACH, of) });
            i
        };
        let by_row = |f, slot| Part::of(Some(f), BY_OUTPUT, float(slot, vec![whole(row * 4, 0), whole(0, 4)]));
        let (out, elem) = (self.bound(2)?, self.role("out")?);
        let (top, between, sum) = (more(rows), more(quads), more(rows));
        let kind = self.constant("KIND");
        let mut list = Vec::new();
        let mut middle = all(between, Elem::F32, x()?);
        if kind == 2 {
            middle.steps.push(Part::call("f_square", &[]));
        } else {
            list.push(each(top, "f_max", -3.402_823_4e38, x()?));
            middle.steps.push(by_row("f_sub", top));
            if beta != 1.0 && kind == 0 {
                middle.steps.push(Part::call("f_scale", &[beta.to_bits()]));
            }
            middle.steps.push(Part::call("f_exp", &[]));
        }
        list.push(middle);
        let mut total = each(sum, "f_add", 0.0, float(between, Vec::new()));
        let mut end = match kind {
            0 => all(out, elem, float(between, vec![whole(0, 1)])),
            _ => all(out, elem, x()?),
        };
        match kind {
            0 => end.steps.push(by_row("f_div", sum)),
            1 => {
                total.steps.push(Part::call("f_log", &[]));
                end.steps.push(by_row("f_sub", top));
                end.steps.push(by_row("f_sub", sum));
            }
            _ => {
                total.steps.push(Part::call("f_sqrt", &[]));
                total.steps.push(Part::of(Some("f_max"), 0, Operand::word(1e-6f32.to_bits())));
                end.steps.push(by_row("f_div", sum));
            }
        }
        list.extend([total, end]);
        Some(list)
    }

    /// The sum over products with constant weights. `at` is where the uniform has the zero points and limits.
    fn products(
        &self,
        mut i: Instruction,
        x: Operand,
        w: Operand,
        pitch: Option<u32>,
        times: u32,
        at: usize,
    ) -> Option<Instruction> {
        let each = self.key.parts.iter().any(|(_, p)| p.starts_with("each_"));
        let integers = !x.elem.is_float();
        let channels = i.width;
        let (kind, rows) = match () {
            _ if self.part("chan_float") => (0, 1),
            _ if self.part("chan_scaled") => (1, 2),
            _ if self.part("chan_int") => (2, 3),
            _ if self.part("chan_real") => (3, 4),
            _ => return None,
        };
        // Weights of integers beside floats are no factors as they are.
        if integers != (kind >= 2) || kind == 1 || stored(w.elem).is_none() || integers == w.elem.is_float() {
            return None;
        }
        i.steps.push(Part::of(None, 0, Operand::word(0)));
        let how =
            PRODUCT | SIDE_BY_SIDE | if integers { INTEGERS } else { 0 } | if pitch.is_some() { SUMMED } else { 0 };
        let (x_zero, w_zero) = if integers { (self.p(at)?, self.p(at + 1)?) } else { (0, 0) };
        i.steps.push(Part {
            f: Some(if integers { "i_add" } else { "f_add" }),
            how,
            operands: vec![Operand { outside: x_zero, ..x }, w],
            // Where packed numbers are multiplied as they are, the bias has what their zero point adds.
            args: vec![pitch.unwrap_or(0), if self.part("dots_packed") { 0 } else { x_zero }, w_zero],
            times,
        });
        let chan = |f, n: u32| {
            let (how, stride, base) = match each {
                true => (EACH, if rows == 3 { 4 } else { rows }, n),
                false => (SIDE_BY_SIDE, rows, n * 4),
            };
            let elem = if integers { Elem::I32 } else { Elem::F32 };
            let operand = Operand { base, ..Operand::new(self.bound(3)?, elem, vec![whole(channels, stride)]) };
            Some(Part::of(Some(f), how, operand))
        };
        let (low, high) = (self.p(at + 3)?, self.p(at + 4)?);
        if integers {
            i.steps.push(chan("i_add", 0)?);
            if kind == 3 {
                for n in [3, 2] {
                    let kept = chan("i_real", n)?;
                    i.steps.push(Part { f: None, how: kept.how | KEEP, ..kept });
                }
                i.steps.push(chan("i_real", 1)?);
            } else {
                i.steps.push(chan("i_shift_up", 2)?);
                i.steps.push(chan("i_high_mul", 1)?);
                i.steps.push(chan("i_shift_down", 2)?);
            }
            i.steps.push(Part::of(Some("i_add"), 0, Operand::word(self.p(at + 2)?)));
            i.steps.push(Part::call("i_clamp", &[low, high]));
        } else {
            i.steps.push(chan("f_add", 0)?);
            if self.p(at + 5)? != 0 {
                i.steps.push(Part::call("f_hard_swish", &[]));
            } else if f32::from_bits(low) > f32::NEG_INFINITY || f32::from_bits(high) < f32::INFINITY {
                i.steps.push(Part::call("f_clamp", &[low, high]));
            }
        }
        Some(i)
    }

    fn matvec(&self) -> Option<Instruction> {
        let (rows, cq, steps, nq) = (self.p(0)?, self.p(1)?, self.p(2)?, self.p(3)?);
        let i = Instruction::all(
            rows.checked_mul(nq)?,
            nq,
            nq.checked_sub(1)? * 4 + self.p(4)?,
            self.bound(4)?,
            self.role("out")?,
        );
        let quads = vec![whole(0, 4)];
        let x = self.operand(1, "x", vec![whole(i.width, 0), whole(0, cq * 4)])?;
        let w = self.operand(2, "w", vec![whole(i.width, steps * 8)])?;
        let (x, w) = (Operand { over: quads.clone(), ..x }, Operand { over: quads, ..w });
        self.products(i, x, w, Some(steps * 8), cq, 5)
    }

    /// Strides, paddings and dilations.
    fn six(&self, at: usize) -> Option<[u32; 6]> {
        self.d.params.get(at..at + 6)?.try_into().ok()
    }

    /// Where a convolution's output pixels begin in the input, if no window reaches outside: dimensions beyond the channels'.
    fn windows(
        channels: u32,
        quads: u32,
        [image, width]: [u32; 2],
        [h, w]: [u32; 2],
        [stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x]: [u32; 6],
        kernel: [u32; 2],
    ) -> Option<Vec<Dim>> {
        let tall = image / width.max(1);
        let reach = |n: u32, stride: u32, k: u32, dilation: u32| {
            n.checked_sub(1)?.checked_mul(stride)?.checked_add(k.checked_sub(1)?.checked_mul(dilation)?)
        };
        let inside =
            reach(tall, stride_y, kernel[0], dilation_y)? < h && reach(width, stride_x, kernel[1], dilation_x)? < w;
        if pad_y != 0 || pad_x != 0 || !inside {
            return None;
        }
        let line = w * quads * 4;
        let mut dims = vec![whole(channels, 0), whole(width, stride_x * quads * 4), whole(tall, stride_y * line)];
        dims.push(whole(0, h * line));
        dims.retain(|d| d[0] != 1);
        Some(dims)
    }

    fn conv(&self) -> Option<Instruction> {
        let (pixels, image, width, h, w, cq) = (self.p(0)?, self.p(1)?, self.p(2)?, self.p(5)?, self.p(6)?, self.p(7)?);
        let (kw, tap, steps, nq) = (self.p(14)?, self.p(15)?, self.p(16)?, self.p(17)?);
        let plain = [self.p(19)?, self.p(20)?, self.p(21)?, self.p(22)?] == [0, image, width, 1]
            && self.p(23)? == self.d.groups[0]
            && self.d.groups[2] == 1;
        let across = (tap * kw).div_ceil(2);
        if !plain || (tap % 2 == 1 && kw > 1) || across == 0 || steps % across != 0 {
            return None;
        }
        let (tall, elements) = (steps / across, nq.checked_sub(1)? * 4 + self.p(18)?);
        let i = Instruction::all(pixels.checked_mul(nq)?, nq, elements, self.bound(4)?, self.role("out")?);
        let (dilation_y, dilation_x) = (self.p(12)?, self.p(13)?);
        let dims = Self::windows(elements, cq, [image, width], [h, w], self.six(8)?, [tall, kw])?;
        let mut over = [vec![whole(cq, 4)], vec![whole(cq, 4)]];
        over[0].extend([whole(kw, dilation_x.wrapping_mul(cq * 4)), whole(0, dilation_y.wrapping_mul(w * cq * 4))]);
        over[1].extend([whole(kw, tap * 4), whole(0, across * 8)]);
        over.iter_mut().for_each(|o| o.retain(|d| d[0] != 1));
        let [of_x, of_w] = over;
        let x = Operand { over: of_x, ..self.operand(1, "x", dims)? };
        let w = Operand { over: of_w, ..self.operand(2, "w", vec![whole(elements, steps * 8)])? };
        self.products(i, x, w, Some(steps * 8), tall * kw * cq, 27)
    }

    fn depthwise(&self) -> Option<Instruction> {
        let (pixels, image, width, h, w, nq, tail, octs) =
            (self.p(0)?, self.p(1)?, self.p(2)?, self.p(5)?, self.p(6)?, self.p(7)?, self.p(8)?, self.p(9)?);
        let (kh, kw) = (self.p(16)?, self.p(17)?);
        let elements = nq.checked_sub(1)? * 4 + tail;
        let i = Instruction::all(pixels.checked_mul(nq)?, nq, elements, self.bound(4)?, self.role("out")?);
        let mut dims = Self::windows(elements, nq, [image, width], [h, w], self.six(10)?, [kh, kw])?;
        let (dilation_y, dilation_x) = (self.p(14)?, self.p(15)?);
        // Channels are side by side here.
        match dims.first_mut().filter(|_| elements != 1) {
            Some(d) => d[1] = 1,
            None => return None,
        }
        let mut over = vec![whole(kw, dilation_x.wrapping_mul(nq * 4)), whole(0, dilation_y.wrapping_mul(w * nq * 4))];
        over.retain(|d| d[0] != 1);
        let x = Operand { over, ..self.operand(1, "x", dims)? };
        let w = Operand { over: vec![whole(0, octs * 8)], ..self.operand(2, "w", vec![whole(elements, 1)])? };
        self.products(i, x, w, None, kh * kw, 18)
    }

    /// Windows that reach nowhere outside, so that all have the same number of elements.
    fn pool(&self) -> Option<Instruction> {
        let (quads, row, h, w, tall, width) = (self.p(0)?, self.p(1)?, self.p(3)?, self.p(4)?, self.p(5)?, self.p(6)?);
        let kernel = [self.p(7)?, self.p(8)?];
        let elements = row.checked_sub(1)? * 4 + self.p(2)?;
        let strides = [self.p(9)?, self.p(10)?, self.p(11)?, self.p(12)?, 1, 1];
        let mut dims = Self::windows(elements, row, [tall * width, width], [h, w], strides, kernel)?;
        match dims.first_mut().filter(|_| elements != 1) {
            Some(d) => d[1] = 1,
            None => return None,
        }
        let x = self.operand(1, "in0", dims)?;
        let (float, greatest, n) = (x.elem.is_float(), self.constant("KIND") == 1, kernel[0].checked_mul(kernel[1])?);
        let (neutral, combine) = match (float, greatest) {
            (true, true) => (f32::NEG_INFINITY.to_bits(), "f_max"),
            (true, false) => (0, "f_add"),
            (false, true) => (i32::MIN as u32, "i_max"),
            (false, false) => (0, "i_add"),
        };
        if self.constant("KIND") > 1 {
            return None;
        }
        let mut over = vec![whole(kernel[1], row * 4), whole(0, w * row * 4)];
        over.retain(|d| d[0] != 1);
        let mut i = Instruction::all(quads, row, elements, self.bound(2)?, self.role("out")?);
        i.steps.push(Part::of(None, 0, Operand::word(neutral)));
        let sum = Part::of(Some(combine), SIDE_BY_SIDE, Operand { over, ..x });
        i.steps.push(Part { times: n, ..sum });
        match (float, greatest) {
            (_, true) => {}
            (true, _) => i.steps.push(Part::of(Some("f_div"), 0, Operand::word((n as f32).to_bits()))),
            (false, _) => i.steps.push(Part::call("i_mean", &[n])),
        }
        if !float {
            i.steps.push(Part::call("i_clamp", &[self.p(13)?, self.p(14)?]));
        }
        Some(i)
    }
}

/// The last dimension takes what the others leave of a number: no division.
fn last(dims: &mut [Dim]) {
    if let Some(d) = dims.last_mut() {
        d[0] = 0;
    }
}

/// A step of an epilogue.
fn follow<'d>(d: &Dispatch, s: &Step, operands: &mut impl Iterator<Item = (u32, &'d [u32; 4])>) -> Option<Part> {
    let args = s.args.iter().map(|a| match a {
        Lit::F(bits) => *bits,
        Lit::I(v) => *v as u32,
    });
    let mut part = Part::call(s.f, &args.collect::<Vec<u32>>());
    if let Some((elem, at)) = s.operand {
        let (number, &[row, own, ..]) = operands.next()?;
        let binding = litegpu_shaders::EPILOGUE_BINDING + number;
        let slot = d.bindings.iter().find(|b| b.binding == binding)?.slot;
        let dims = match at {
            At::Same => vec![whole(0, 1)],
            At::Scalar => Vec::new(),
            At::Row => vec![whole(row * 4, 1)],
            At::Narrow => vec![[row * 4, 1, 0, own * 4], whole(0, own * 4)],
        };
        if at.is_sized() && row == 0 {
            return None;
        }
        stored(elem)?;
        part.how = BY_OUTPUT | if at == At::Scalar { 0 } else { SIDE_BY_SIDE } | if s.swap { SWAP } else { 0 };
        part.operands.push(Operand::new(slot, elem, dims));
    }
    Some(part)
}

/// Functions of the library that a series can call.
fn callable(f: &str) -> bool {
    !matches!(f, "f_snap" | "f_grid")
}

/// Makes series of a program's dispatches. `pinned` slots are read by the host, or copied.
pub(crate) fn gather(program: &mut Program, pinned: &[SlotId], caps: &Caps, force: bool) {
    if caps.max_storage_buffers < 2 + OTHERS as u32 {
        return;
    }
    let prices = Prices::of(caps);
    let known = program.slots.len();
    let mut made: Vec<Slot> = Vec::new();
    let mut more = |quads: u32| {
        made.push(Slot { bytes: u64::from(quads) * 16, place: Place::Unused, within: None });
        known + made.len() - 1
    };
    let mut small: Vec<Option<Small>> = program
        .dispatches
        .iter()
        .map(|d| {
            let instructions = Source { d, key: program.kernels.get(d.kernel)? }.translate(prices.width, &mut more)?;
            let us = instructions.iter().map(|i| i.us(&prices)).sum();
            let fits = instructions.iter().flat_map(|i| &i.steps).all(|s| s.f.is_none_or(callable));
            (fits && us <= prices.limit).then_some(Small { instructions, us })
        })
        .collect();
    program.slots.extend(made);
    let groups = divide(program, &small);
    if groups.is_empty() {
        return;
    }
    // Functions are numbered by their first use, in all series alike: one kernel.
    let mut functions: Vec<&'static str> = Vec::new();
    for s in groups.iter().flatten().filter_map(|&i| small.get(i)?.as_ref()) {
        for f in s.instructions.iter().flat_map(|i| &i.steps).filter_map(|s| s.f) {
            if !functions.contains(&f) {
                functions.push(f);
            }
        }
    }
    let settle = match caps.class {
        AdapterClass::Software if caps.subgroups.is_some_and(|(a, b)| a == b) => "settle_none",
        _ => "settle_barrier",
    };
    let mut key = KernelKey::new(litegpu_shaders::SERIES, &[]).part("", settle).set("WG", prices.width as i32);
    key.functions = functions.iter().map(|f| ("-", *f)).collect();
    if !force && caps.class == AdapterClass::Software && !pays(program, &groups, &small, &key) {
        return;
    }
    let mut binds: HashMap<SlotId, usize> = HashMap::new();
    for b in program.dispatches.iter().flat_map(|d| &d.bindings) {
        *binds.entry(b.slot).or_default() += 1;
    }
    for &slot in pinned {
        binds.remove(&slot);
    }
    for group in &groups {
        look_up(group, &mut small, &|slot| binds.get(&slot) == Some(&2));
    }
    let kernel = program.kernels.len();
    program.kernels.push(key);
    let mut dispatches: Vec<Option<Dispatch>> = program.dispatches.drain(..).map(Some).collect();
    for group in &groups {
        let inside: HashSet<usize> = group.iter().copied().collect();
        let mut shared: HashSet<SlotId> = pinned.iter().copied().collect();
        for d in dispatches.iter().enumerate().filter(|(i, _)| !inside.contains(i)).filter_map(|(_, d)| d.as_ref()) {
            shared.extend(d.bindings.iter().map(|b| b.slot));
        }
        let parts: Vec<(Dispatch, &Small)> =
            group.iter().filter_map(|&i| Some((dispatches.get_mut(i)?.take()?, small.get(i)?.as_ref()?))).collect();
        let one = assemble(program, &parts, &functions, &shared, kernel, caps);
        if let Some(place) = group.first().and_then(|&i| dispatches.get_mut(i)) {
            *place = Some(one);
        }
    }
    program.dispatches = dispatches.into_iter().flatten().collect();
    tidy(program);
}

/// Sums up rows where they lie, instead of gathering them first. `once`: one dispatch writes the slot and one reads it.
fn look_up(group: &[usize], small: &mut [Option<Small>], once: &dyn Fn(SlotId) -> bool) {
    for &a in group {
        let Some([g]) = small.get(a).and_then(Option::as_ref).map(|s| s.instructions.as_slice()) else { continue };
        let [index, rows] = g.steps.as_slice() else { continue };
        let ([i], [r]) = (index.operands.as_slice(), rows.operands.as_slice()) else { continue };
        let gathers = rows.how == SIDE_BY_SIDE | INDIRECT && rows.f.is_none() && index.how == 0 && index.f.is_none();
        // One index to a row of elements side by side, and no padding.
        let inner = i.dims.first().map_or(0, |d| d[0]);
        let plain = inner > 0
            && g.row * 4 == g.width
            && i.dims.as_slice() == [whole(inner, 0), whole(0, 1)]
            && r.dims.first() == Some(&whole(inner, 1))
            && r.dims.iter().skip(1).all(|d| d[1] == 0);
        if !gathers || !plain || !once(g.slot) {
            continue;
        }
        let copy = |o: &Operand| Operand {
            slot: o.slot,
            elem: o.elem,
            base: o.base,
            outside: o.outside,
            dims: vec![],
            over: vec![],
        };
        let (slot, i, r, args) = (g.slot, copy(i), copy(r), rows.args.clone());
        let others = small.iter_mut().enumerate().filter(|(b, _)| group.contains(b)).filter_map(|(_, s)| s.as_mut());
        let numbers = |b: &Instruction| b.quads / b.row.max(1) * b.width;
        let instructions = others.flat_map(|s| &mut s.instructions);
        let steps = instructions.flat_map(|b| std::iter::repeat(numbers(b)).zip(&mut b.steps));
        let mut steps = steps.filter(|(_, s)| s.operands.iter().any(|o| o.slot == Some(slot)));
        let (Some((numbers, sum)), None) = (steps.next(), steps.next()) else { continue };
        let [of] = sum.operands.as_slice() else { continue };
        let (Some(&first), [over]) = (of.dims.first(), of.over.as_slice()) else { continue };
        // Whole rows apart, whether in repetitions or in parts of the sum.
        let apart = of.dims.iter().skip(1).chain([over]).all(|d| d[1] % inner == 0);
        let within = first[1] == 1 && if first[0] > 0 { first[0] } else { numbers } <= inner;
        if sum.how != SIDE_BY_SIDE || !sum.args.is_empty() || !apart || !within || of.base != 0 {
            continue;
        }
        let strides = |dims: &[Dim], by: &dyn Fn(usize, u32) -> u32| -> Vec<Dim> {
            dims.iter().enumerate().map(|(n, d)| [d[0], by(n, d[1]), d[2], d[3]]).collect()
        };
        let to_index = |n: usize, stride: u32| if n == 0 { 0 } else { stride / inner };
        let to_row = |n: usize, stride: u32| if n == 0 { stride } else { 0 };
        let (i_dims, r_dims) = (strides(&of.dims, &to_index), strides(&of.dims, &to_row));
        let indices = Operand { dims: i_dims, over: strides(&of.over, &|_, s| s / inner), ..i };
        let rows = Operand { dims: r_dims, over: strides(&of.over, &|_, _| 0), ..r };
        (sum.operands, sum.args, sum.how) = (vec![indices, rows], args, SIDE_BY_SIDE | PRODUCT | LOOK_UP);
        if let Some(s) = small.get_mut(a).and_then(Option::as_mut) {
            *s = Small { instructions: Vec::new(), us: 0.0 };
        }
    }
}

/// Whether a series' pipeline, less those that nobody needs any more, takes less time to compile than many runs save.
fn pays(program: &Program, groups: &[Vec<usize>], small: &[Option<Small>], key: &KernelKey) -> bool {
    let gone: HashSet<usize> = groups.iter().flatten().copied().collect();
    let stay = program.dispatches.iter().enumerate().filter(|(i, _)| !gone.contains(i));
    let needed: HashSet<usize> = stay.map(|(_, d)| d.kernel).collect();
    let text = |key: &KernelKey| litegpu_shaders::source(key).map_or(0.0, |s| s.len() as f64);
    let spared: f64 =
        program.kernels.iter().enumerate().filter(|(k, _)| !needed.contains(k)).map(|(_, key)| text(key)).sum();
    // What is alone in its dispatch has more than one thread.
    let slower: f64 = gone.iter().filter_map(|&i| Some(small.get(i)?.as_ref()?.us / 2.0)).sum();
    let saved = (gone.len() - groups.len()) as f64 * WAKE_US - slower;
    text(key) * SERIES_TEXT_US <= spared * TEXT_US + saved * RUNS
}

/// The dispatches of each series. A series lies in one stretch, and all that writes a tensor in it.
fn divide(program: &Program, small: &[Option<Small>]) -> Vec<Vec<usize>> {
    let mut writers: HashMap<SlotId, Vec<usize>> = HashMap::new();
    for (i, d) in program.dispatches.iter().enumerate() {
        for b in d.bindings.iter().filter(|b| b.access == Access::Write) {
            writers.entry(b.slot).or_default().push(i);
        }
    }
    let given: HashSet<SlotId> = program.inputs.iter().map(|p| p.slot).collect();
    let is_constant = |s: SlotId| program.slots.get(s).is_some_and(|s| matches!(s.place, Place::Weight(_)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let (mut others, mut rows, mut constants): (HashSet<SlotId>, usize, u64) = Default::default();
    let mut made: HashSet<SlotId> = HashSet::new();
    let mut stretch = 0;
    for (i, d) in program.dispatches.iter().enumerate() {
        let fits = small.get(i).and_then(Option::as_ref).filter(|_| {
            // What a run is given, or another writes to as well, has a place of its own.
            d.bindings.iter().filter(|b| b.access == Access::Write).all(|b| {
                let alone =
                    writers.get(&b.slot).is_some_and(|w| w.iter().all(|&w| small.get(w).is_some_and(Option::is_some)));
                alone && !given.contains(&b.slot) && !is_constant(b.slot)
            })
        });
        let mut close = |open: &mut Vec<usize>| {
            let group = std::mem::take(open);
            if group.len() > 1 {
                groups.push(group);
            }
        };
        let Some(s) = fits else {
            close(&mut open);
            continue;
        };
        let cost = |others: &HashSet<SlotId>, made: &HashSet<SlotId>| {
            let mut more: HashSet<SlotId> = HashSet::new();
            let mut bytes = 0;
            let own: Vec<SlotId> = s.instructions.iter().map(|i| i.slot).collect();
            for slot in s.instructions.iter().flat_map(Instruction::operands).filter_map(|o| o.slot) {
                if is_constant(slot) {
                    bytes += program.slots.get(slot).map_or(0, |s| s.bytes);
                } else if !made.contains(&slot) && !others.contains(&slot) && !own.contains(&slot) {
                    more.insert(slot);
                }
            }
            (more, bytes)
        };
        let more_rows: usize = s.instructions.iter().map(length).sum();
        let (mut more, bytes) = cost(&others, &made);
        let full = rows + more_rows >= ROWS || constants + bytes > MAX_CONSTANTS || others.len() + more.len() > OTHERS;
        if full || d.stretch != stretch || open.is_empty() {
            close(&mut open);
            (others, rows, constants, made, stretch) = (HashSet::new(), 1, 0, HashSet::new(), d.stretch);
            more = cost(&others, &made).0;
            if more.len() > OTHERS || rows + more_rows > ROWS || bytes > MAX_CONSTANTS {
                continue;
            }
        }
        others.extend(more);
        rows += more_rows;
        constants += bytes;
        made.extend(s.instructions.iter().map(|i| i.slot));
        open.push(i);
    }
    if open.len() > 1 {
        groups.push(open);
    }
    // A tensor that dispatches of two series write, or one of none, lies in neither.
    loop {
        let of = |i: usize| groups.iter().position(|g| g.contains(&i));
        let torn = writers.values().filter(|w| w.len() > 1).find_map(|w| {
            let homes: Vec<Option<usize>> = w.iter().map(|&i| of(i)).collect();
            let first = homes.first().copied().flatten();
            match homes.iter().all(|h| *h == homes[0]) {
                true => None,
                false => first.or_else(|| homes.iter().copied().flatten().next()).map(|g| (g, w.clone())),
            }
        });
        let Some((g, w)) = torn else { return groups };
        // The series ends before the first of them.
        let group = groups.remove(g);
        let mut pieces: Vec<Vec<usize>> = vec![Vec::new()];
        for i in group {
            if w.contains(&i) {
                pieces.push(Vec::new());
            } else if let Some(p) = pieces.last_mut() {
                p.push(i);
            }
        }
        let pieces = pieces.into_iter().filter(|p| p.len() > 1);
        groups.splice(g..g, pieces);
    }
}

/// Rows of the uniform that an instruction takes.
fn length(i: &Instruction) -> usize {
    let step = |s: &Part| {
        let operands: usize = s.operands.iter().map(|o| 1 + o.dims.len() + o.over.len()).sum();
        1 + operands + usize::from(!s.args.is_empty())
    };
    3 + i.steps.iter().map(step).sum::<usize>()
}

/// One dispatch of these, whose results are within a new slot; those in `shared` can be found there.
fn assemble(
    program: &mut Program,
    parts: &[(Dispatch, &Small)],
    functions: &[&'static str],
    shared: &HashSet<SlotId>,
    kernel: usize,
    caps: &Caps,
) -> Dispatch {
    let align = u64::from(caps.storage_align).max(16);
    let all = || parts.iter().enumerate().flat_map(|(n, (_, s))| s.instructions.iter().map(move |i| (n, i)));
    // Where each result lies, from the first dispatch that writes it to the last that reads it.
    let mut lives: Vec<(SlotId, u64, usize, usize)> = Vec::new();
    for (n, i) in all() {
        if !lives.iter().any(|l| l.0 == i.slot) {
            lives.push((i.slot, program.slots.get(i.slot).map_or(0, |s| s.bytes), n, n));
        }
        for l in lives.iter_mut().filter(|l| l.0 == i.slot || i.operands().any(|o| o.slot == Some(l.0))) {
            l.3 = if shared.contains(&l.0) { usize::MAX } else { n };
        }
    }
    let (bytes, places) = arranged(program.slots.len(), &lives, align);
    let arena = program.slots.len();
    program.slots.push(Slot { bytes: bytes.max(LEAST_BINDING), place: Place::Unused, within: None });
    let at = |slot: SlotId| places.get(slot).copied().flatten();
    for &(slot, ..) in lives.iter().filter(|l| shared.contains(&l.0)) {
        if let (Some(s), Some(at)) = (program.slots.get_mut(slot), at(slot)) {
            s.within = Some((arena, at));
        }
    }
    // Constants, side by side, and what others have written.
    let mut packed: Vec<u8> = Vec::new();
    let mut constants: HashMap<SlotId, u64> = HashMap::new();
    let mut others: Vec<SlotId> = Vec::new();
    for slot in all().flat_map(|(_, i)| i.operands()).filter_map(|o| o.slot).filter(|&s| at(s).is_none()) {
        match program.slots.get(slot).map(|s| s.place) {
            Some(Place::Weight(w)) => {
                constants.entry(slot).or_insert_with(|| {
                    let at = packed.len() as u64;
                    packed.extend_from_slice(program.weights.get(w).map_or(&[][..], |w| w.as_ref()));
                    packed.resize(packed.len().next_multiple_of(16), 0);
                    at
                });
            }
            _ if !others.contains(&slot) => others.push(slot),
            _ => {}
        }
    }
    packed.resize(packed.len().max(LEAST_BINDING as usize), 0);
    let blob = program.slots.len();
    program.slots.push(Slot { bytes: packed.len() as u64, place: Place::Weight(program.weights.len()), within: None });
    program.weights.push(packed.into());
    // (how and where it is stored, the address of its first element)
    let source = |o: &Operand| {
        let narrow = stored(o.elem).unwrap_or(0);
        let size = if narrow == 0 { 4 } else { 1 };
        let (space, start) = match o.slot.map(|slot| (slot, at(slot), constants.get(&slot))) {
            None => (0, 0),
            Some((_, Some(at), _)) => (0, at),
            Some((_, None, Some(&at))) => (1, at),
            Some((slot, None, None)) => (2 + others.iter().position(|s| *s == slot).unwrap_or(0), 0),
        };
        [narrow | (space as u32) << 4, ((start / size) as u32).wrapping_add(o.base)]
    };
    let mut code: Vec<[u32; 4]> = vec![[0; 4]];
    for (_, i) in all() {
        let start = code.len();
        let narrow = u32::from(stored(i.elem).is_some_and(|n| n & 1 == 1));
        code.push([(start + length(i)) as u32, i.quads, i.row, i.width]);
        code.push([i.lane, narrow, (at(i.slot).unwrap_or(0) / 4) as u32, i.group]);
        code.push([i.to[0], i.to[1], i.to[2], 0]);
        for s in &i.steps {
            let number = s.f.and_then(|f| functions.iter().position(|o| *o == f)).map_or(0, |n| n as u32 + 1);
            let args = !s.args.is_empty();
            let operands: usize = s.operands.iter().map(|o| 1 + o.dims.len() + o.over.len()).sum();
            let end = code.len() + 1 + operands + usize::from(args);
            let how = s.how & (SUMMED - 1) | s.reads() << 16 | if args { ARGUMENTS } else { 0 };
            code.push([number, end as u32, how, s.times]);
            for o in &s.operands {
                let [how, at] = source(o);
                code.push([how, at, o.outside, (o.dims.len() | o.over.len() << 16) as u32]);
                code.extend(o.dims.iter().chain(&o.over));
            }
            if args {
                let word = |n: usize| s.args.get(n).copied().unwrap_or(0);
                code.push([word(0), word(1), word(2), word(3)]);
            }
        }
    }
    code[0][0] = code.len() as u32;
    code.resize(ROWS, [0; 4]);
    let reads = std::iter::once(blob).chain((0..OTHERS).map(|n| others.get(n).copied().unwrap_or(blob)));
    let mut bindings: Vec<Binding> =
        (1..).zip(reads).map(|(binding, slot)| Binding { binding, slot, access: Access::Read }).collect();
    bindings.push(Binding { binding: 2 + OTHERS as u32, slot: arena, access: Access::Write });
    let total: f64 = parts.iter().map(|(_, s)| s.us).sum();
    let member = |(d, s): &(Dispatch, &Small)| Member {
        node: d.node,
        label: program.kernels.get(d.kernel).map(|k| format!("{} in a series", k.label())).unwrap_or_default(),
        share: (s.us / total) as f32,
    };
    let (node, stretch) = parts.first().map_or((0, 0), |(d, _)| (d.node, d.stretch));
    Dispatch {
        node,
        members: parts.iter().map(member).collect(),
        stretch,
        kernel,
        bindings,
        params: code.into_iter().flatten().collect(),
        sizes: Vec::new(),
        limits: None,
        appends: None,
        groups: [1; 3],
        others: Vec::new(),
    }
}

/// Leaves out kernels and constants that no dispatch has any more.
fn tidy(program: &mut Program) {
    let mut kernels: Vec<KernelKey> = Vec::new();
    let mut bound: HashSet<SlotId> = HashSet::new();
    for d in &mut program.dispatches {
        if let Some(key) = program.kernels.get(d.kernel) {
            d.kernel = kernels.iter().position(|k| k == key).unwrap_or_else(|| {
                kernels.push(key.clone());
                kernels.len() - 1
            });
        }
        bound.extend(d.bindings.iter().map(|b| b.slot));
    }
    for f in &program.flows {
        bound.extend(f.moves().flat_map(|m| [m.from, m.to]).chain(f.flag()));
    }
    program.kernels = kernels;
    let mut used = vec![false; program.weights.len()];
    for (id, slot) in program.slots.iter_mut().enumerate() {
        if let Place::Weight(w) = slot.place {
            match bound.contains(&id) {
                true => used.iter_mut().skip(w).take(1).for_each(|u| *u = true),
                false => slot.place = Place::Unused,
            }
        }
    }
    for (w, _) in program.weights.iter_mut().zip(used).filter(|(_, used)| !used) {
        *w = bytes::Bytes::new();
    }
}
