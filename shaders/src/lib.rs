//! The WGSL text of litegpu and how it is put together.
//!
//! A kernel is one file of this folder. It names its operands by *role* (`in0`, `out`, ...); [`source`] joins it with
//! `parts/common.wgsl`, with one element part per role (how four elements are stored and unpacked: the storage type,
//! apart from the arithmetic type), with the functions of `parts/functions.wgsl` that are called, and with one
//! generated function, `finish`, that calls those in order: the epilogue that activations and element-wise operators
//! are fused into. Everything else that varies is an `override` constant. Shapes are data, in a uniform. One kernel,
//! [`SERIES`], is an interpreter: what it does is data as well, and a function `apply` is generated that lists what it calls.
//!
//! Conventions that every kernel keeps:
//! - binding 0 is the uniform `p: Params`; storage bindings follow in the order of the dispatch; operands of the
//!   epilogue are at [`EPILOGUE_BINDING`] and up.
//! - tensors are dense, row-major, with the innermost dimension padded to a multiple of four elements (a *quad*);
//!   whoever writes a quad writes zeros into its padding.
//! - `finish(v, at)` is applied to the four values `v` of output quad `at` before they are packed; padding is masked
//!   after it.

mod manifest;

pub use manifest::{KERNELS, Kernel, kernel};

use std::sync::OnceLock;

/// Where the text of each file lies in [`texts`], by name: `conv`, `parts/common`.
const INDEX: &[(&str, usize, usize)] = include!(concat!(env!("OUT_DIR"), "/index.rs"));

/// All files, one after another, without comments and indentation. They are a third of what the browser package would
/// hold beside code, were they not packed.
fn texts() -> &'static str {
    static TEXTS: OnceLock<String> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let packed = include_bytes!(concat!(env!("OUT_DIR"), "/texts.deflate"));
        let text = miniz_oxide::inflate::decompress_to_vec(packed).unwrap_or_default();
        String::from_utf8(text).unwrap_or_default()
    })
}

/// The text of a file; empty where there is none.
fn file(name: &str) -> &'static str {
    let place = INDEX.iter().find(|(n, ..)| *n == name);
    place.and_then(|&(_, start, end)| texts().get(start..end)).unwrap_or_default()
}

/// The first binding of the epilogue's operands.
pub const EPILOGUE_BINDING: u32 = 10;

/// How the elements of a role are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Elem {
    /// `vec4<f32>`.
    F32,
    /// `vec4<f16>`; needs the `shader-f16` feature.
    F16,
    /// f16 as `vec2<u32>`, for adapters without `shader-f16` and wherever it is faster.
    F16Packed,
    /// Four int8 in a `u32`.
    I8,
    /// Four uint8 in a `u32`.
    U8,
    /// Four booleans in a `u32`, 0 or 1 each.
    Bool,
    /// `vec4<i32>`.
    I32,
    /// int4, for weights alone: eight in a `u32`.
    I4,
    /// int2, for weights alone: sixteen in a `u32`.
    I2,
}

impl Elem {
    /// Every way to store the elements of activations.
    pub const ALL: [Elem; 7] = [Elem::F32, Elem::F16, Elem::F16Packed, Elem::I8, Elem::U8, Elem::Bool, Elem::I32];

    /// The part's name.
    pub fn name(self) -> &'static str {
        match self {
            Elem::F32 => "f32",
            Elem::F16 => "f16",
            Elem::F16Packed => "f16p",
            Elem::I8 => "i8",
            Elem::U8 => "u8",
            Elem::Bool => "bool",
            Elem::I32 => "i32",
            Elem::I4 => "i4",
            Elem::I2 => "i2",
        }
    }

    /// Bytes of a quad.
    pub fn quad_bytes(self) -> usize {
        match self {
            Elem::F32 | Elem::I32 => 16,
            Elem::F16 | Elem::F16Packed => 8,
            Elem::I8 | Elem::U8 | Elem::Bool => 4,
            Elem::I4 => 2,
            Elem::I2 => 1,
        }
    }

    /// Whether arithmetic on it is in f32 (else in i32).
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F16 | Elem::F16Packed)
    }

    fn part(self) -> &'static str {
        match self {
            Elem::F32 => file("parts/elem_f32"),
            Elem::F16 => file("parts/elem_f16"),
            Elem::F16Packed => file("parts/elem_f16p"),
            Elem::I8 => file("parts/elem_i8"),
            Elem::U8 => file("parts/elem_u8"),
            Elem::Bool => file("parts/elem_bool"),
            Elem::I32 => file("parts/elem_i32"),
            Elem::I4 => file("parts/elem_i4"),
            Elem::I2 => file("parts/elem_i2"),
        }
    }
}

/// A literal argument of an epilogue step; floats by their bits, so that keys compare and hash exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lit {
    /// f32 bits.
    F(u32),
    /// i32.
    I(i32),
}

impl Lit {
    /// A float.
    pub fn f(v: f32) -> Lit {
        Lit::F(v.to_bits())
    }
}

/// Where a step's tensor operand is read for output quad `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// The same quad: an operand of the output's own shape.
    Same,
    /// An operand of one row, for each of the output's.
    Row,
    /// Lane 0 of quad 0: a scalar.
    Scalar,
    /// An operand with rows of fewer quads than the output's. Zeros stand for the rest.
    Narrow,
}

impl At {
    /// Whether [`row_sizes`] say where the operand is read. Sizes are in the uniform, not in the text: a
    /// shader for each layer would take longer to compile than many runs.
    pub fn is_sized(self) -> bool {
        matches!(self, At::Row | At::Narrow)
    }
}

/// Rows of the output over which their number is not found by a float quotient.
pub const MAX_ROWS: usize = 1 << 22;

/// What the uniform begins with for each epilogue operand, where any is [sized](At::is_sized): quads of the output's rows,
/// of the operand's own, and a reciprocal. There may be at most [`MAX_ROWS`] rows.
pub fn row_sizes(row: u32, own: u32) -> [u32; 4] {
    [row, own, (1.0 / row.max(1) as f32).to_bits(), 0]
}

/// One step of an epilogue: a function of `parts/functions.wgsl` applied to the running value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// The function's name.
    pub f: &'static str,
    /// A tensor operand: how it is stored and where it is read. It is the function's second argument.
    pub operand: Option<(Elem, At)>,
    /// The tensor operand comes first, the running value second.
    pub swap: bool,
    /// Literal arguments, after the others.
    pub args: Vec<Lit>,
}

impl Step {
    /// `f(x, args...)`.
    pub fn call(f: &'static str, args: &[Lit]) -> Step {
        Step { f, operand: None, swap: false, args: args.to_vec() }
    }
}

/// Everything that decides a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelKey {
    /// The kernel's file stem.
    pub kernel: &'static str,
    /// How each role is stored; the roles that the kernel's manifest row names.
    pub roles: Vec<(&'static str, Elem)>,
    /// Functions that the kernel calls by an alias: (alias in the kernel, function in the library).
    pub functions: Vec<(&'static str, &'static str)>,
    /// Sections of parts/octs.wgsl, parts/channels.wgsl and parts/coop.wgsl, each for a role (or for none: "").
    pub parts: Vec<(&'static str, &'static str)>,
    /// The generated epilogue.
    pub epilogue: Vec<Step>,
    /// Override constants.
    pub constants: Vec<(&'static str, i32)>,
    /// Bindings that are only read, but declared as those that are written to.
    pub beside: Vec<u32>,
}

impl KernelKey {
    /// A key without functions, epilogue and constants.
    pub fn new(kernel: &'static str, roles: &[(&'static str, Elem)]) -> KernelKey {
        KernelKey {
            kernel,
            roles: roles.to_vec(),
            functions: Vec::new(),
            parts: Vec::new(),
            epilogue: Vec::new(),
            constants: Vec::new(),
            beside: Vec::new(),
        }
    }
    /// With an override constant.
    pub fn set(mut self, name: &'static str, value: i32) -> KernelKey {
        self.constants.push((name, value));
        self
    }
    /// With a part for a role.
    pub fn part(mut self, role: &'static str, section: &'static str) -> KernelKey {
        self.parts.push((role, section));
        self
    }
    /// With a library function under the kernel's own name for it.
    pub fn with(mut self, alias: &'static str, function: &'static str) -> KernelKey {
        self.functions.push((alias, function));
        self
    }
    /// With a further epilogue step.
    pub fn then(mut self, step: Step) -> KernelKey {
        self.epilogue.push(step);
        self
    }
    /// `<kernel>_<elements of its roles>`, with the functions that it calls: for reports and profiles.
    pub fn label(&self) -> String {
        let mut s = self.kernel.to_string();
        for (_, e) in &self.roles {
            s.push('_');
            s.push_str(e.name());
        }
        for (_, f) in &self.functions {
            s.push(':');
            s.push_str(f);
        }
        for step in &self.epilogue {
            s.push('+');
            s.push_str(step.f);
        }
        s
    }
    /// Whether the uniform begins with [`row_sizes`] of each epilogue operand.
    pub fn is_sized(&self) -> bool {
        self.epilogue.iter().any(|s| s.operand.is_some_and(|(_, at)| at.is_sized()))
    }
    /// Whether the text needs `shader-f16`.
    pub fn needs_f16(&self) -> bool {
        self.roles.iter().any(|(_, e)| *e == Elem::F16)
            || self.epilogue.iter().any(|s| matches!(s.operand, Some((Elem::F16, _))))
            || self.parts.iter().any(|(_, p)| p.starts_with("coop_f16"))
    }
    /// Whether the text needs cooperative matrices.
    pub fn needs_matrices(&self) -> bool {
        self.parts.iter().any(|(_, p)| p.starts_with("coop_"))
    }
}

/// The WGSL text of a kernel, or what the key gets wrong.
///
/// # Errors
/// When the key names a kernel or a function that does not exist.
pub fn source(key: &KernelKey) -> Result<String, String> {
    let kernel = kernel(key.kernel).ok_or_else(|| format!("no kernel {}", key.kernel))?;
    let mut text = String::with_capacity(8192);
    if key.needs_f16() {
        text.push_str("enable f16;\n");
    }
    if key.needs_matrices() {
        text.push_str("enable wgpu_cooperative_matrix;\n");
    }
    text.push_str(file("parts/common"));
    for (role, elem) in &key.roles {
        text.push_str(&elem.part().replace("ROLE_", &format!("{role}_")));
    }
    for &(role, name) in &key.parts {
        let section = section(name).ok_or_else(|| format!("no part {name}"))?;
        text.push_str(&section.replace("ROLE_", &format!("{role}_")).replace("ROLE[", &format!("{role}[")));
    }
    let mut wanted: Vec<&str> = kernel.functions.to_vec();
    // The one function that a section calls.
    wanted.extend(text.contains("i_real(").then_some("i_real"));
    let mut body = kernel.text();
    let own = |f: &str| body.contains(&format!("fn {f}("));
    wanted.extend(key.functions.iter().map(|(_, f)| *f).filter(|f| !own(f)));
    wanted.extend(key.epilogue.iter().map(|s| s.f));
    library(&wanted, &mut text)?;
    let finishes = body.contains("finish(");
    if kernel.name == SERIES {
        choose(&key.functions, &mut text)?;
    }
    for (alias, f) in &key.functions {
        // A kernel may also define the alternatives itself.
        body = body.replace(&format!("{alias}("), &format!("{f}("));
    }
    if key.is_sized() {
        let count = key.epilogue.iter().filter(|s| s.operand.is_some()).count();
        let sizes = format!("struct Params {{\n    epilogue: array<vec4<u32>, {count}>,");
        body = body.replacen("struct Params {", &sizes, 1);
        text.push_str(ROW_OF);
    }
    text.push_str(&body);
    if finishes {
        finish(&key.epilogue, &mut text);
    }
    for binding in &key.beside {
        let head = format!("@binding({binding}) var<storage, read");
        text = text.replacen(&format!("{head}>"), &format!("{head}_write>"), 1);
    }
    Ok(text)
}

/// A section of the part files whose text depends on a role.
fn section(name: &str) -> Option<&'static str> {
    let files = [file("parts/octs"), file("parts/channels"), file("parts/series"), file("parts/coop")];
    files.iter().flat_map(|f| f.split("//@ ").skip(1)).find_map(|s| match s.split_once('\n') {
        Some((head, body)) if head == name => Some(body),
        _ => None,
    })
}

/// The row of output quad `at`, and its place in the row. The float quotient is off by one at most.
const ROW_OF: &str = "\
fn row_of(at: u32, sizes: vec4<u32>) -> vec2<u32> {
    let row = u32(f32(at) * bitcast<f32>(sizes.z));
    let rest = i32(at - row * sizes.x);
    let less = u32(rest < 0);
    let more = u32(rest >= i32(sizes.x));
    return vec2<u32>(row - less + more, u32(rest) + (less - more) * sizes.x);
}
";

/// The epilogue: each step's function called in order on the running value.
fn finish(steps: &[Step], text: &mut String) {
    let mut body = String::new();
    let mut operands = 0;
    for (i, s) in steps.iter().enumerate() {
        let mut args = vec![format!("v{i}")];
        if let Some((elem, at)) = s.operand {
            let role = format!("ep{operands}");
            text.push_str(&elem.part().replace("ROLE_", &format!("{role}_")));
            let binding = EPILOGUE_BINDING + operands;
            text.push_str(&format!("@group(0) @binding({binding}) var<storage, read> {role}: array<{role}_Elem4>;\n"));
            let load = match at {
                At::Same => format!("{role}_unpack({role}[at])"),
                At::Row => format!("{role}_unpack({role}[row_of(at, p.epilogue[{operands}]).y])"),
                At::Scalar => format!("{role}_Val4({role}_unpack({role}[0]).x)"),
                At::Narrow => {
                    body.push_str(&format!(
                        "    let r{operands} = row_of(at, p.epilogue[{operands}]);\n    let n{operands} = p.epilogue[{operands}].y;\n"
                    ));
                    format!(
                        "select({role}_Val4(), {role}_unpack({role}[r{operands}.x * n{operands} + \
                         min(r{operands}.y, n{operands} - 1u)]), r{operands}.y < n{operands})"
                    )
                }
            };
            args.insert(if s.swap { 0 } else { 1 }, load);
            operands += 1;
        }
        args.extend(s.args.iter().map(|a| match a {
            Lit::F(bits) => format!("bitcast<f32>({bits}u)"),
            Lit::I(i32::MIN) => "(-2147483647 - 1)".to_string(),
            Lit::I(v) => format!("{v}"),
        }));
        body.push_str(&format!("    let v{} = {}({});\n", i + 1, s.f, args.join(", ")));
    }
    text.push_str("fn finish(v0: acc_Val4, at: u32) -> out_Val4 {\n");
    text.push_str(&body);
    text.push_str(&format!("    return v{};\n}}\n", steps.len()));
}

/// The kernel that does what its uniform says.
pub const SERIES: &str = "series";

/// The function `apply` of a series: calls the functions of the key by their numbers in it, from 1; 0 gives the operand.
fn choose(functions: &[(&str, &str)], text: &mut String) -> Result<(), String> {
    text.push_str("fn apply(f: u32, a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, d: vec4<u32>, e: vec4<u32>) -> vec4<u32> {\nvar r = b;\nswitch f {\n");
    for (i, (_, f)) in functions.iter().enumerate() {
        let start = format!("fn {f}(");
        let head = file("parts/functions").split(&start).nth(1).and_then(|s| s.split(')').next());
        let head = head.ok_or_else(|| format!("no function {f}"))?;
        let (mut operands, mut words) = (["a", "b", "d", "e"].into_iter(), 0..4);
        let args: Option<Vec<String>> = head
            .split(", ")
            .map(|arg| {
                let ty = arg.split(": ").nth(1)?;
                match ty.starts_with("vec4") {
                    true => Some(format!("bitcast<{ty}>({})", operands.next()?)),
                    false => Some(format!("bitcast<{ty}>(c[{}])", words.next()?)),
                }
            })
            .collect();
        let args = args.ok_or_else(|| format!("{f} takes too much"))?.join(", ");
        text.push_str(&format!("case {}u: {{ r = bitcast<vec4<u32>>({f}({args})); }}\n", i + 1));
    }
    text.push_str("default: {}\n}\nreturn r;\n}\n");
    Ok(())
}

/// Appends the library sections of `wanted` and of what they need, each once. A section starts with
/// `//@ name: needed needed`.
fn library(wanted: &[&str], text: &mut String) -> Result<(), String> {
    let library = file("parts/functions");
    let mut open: Vec<String> = wanted.iter().map(|s| s.to_string()).collect();
    let mut done: Vec<String> = Vec::new();
    while let Some(name) = open.pop() {
        if done.contains(&name) {
            continue;
        }
        let section = library
            .split("//@ ")
            .skip(1)
            .find(|s| s.split(':').next() == Some(name.as_str()))
            .ok_or_else(|| format!("no function {name}"))?;
        let (head, body) = section.split_once('\n').unwrap_or((section, ""));
        open.extend(head.split(':').nth(1).unwrap_or("").split_whitespace().map(str::to_string));
        text.push_str(body);
        done.push(name);
    }
    Ok(())
}

/// The names of every function in the library, for tests and documentation.
pub fn functions() -> Vec<&'static str> {
    file("parts/functions").split("//@ ").skip(1).filter_map(|s| s.split(':').next()).collect()
}
