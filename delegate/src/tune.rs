//! Measured tuning: of the ways in which a dispatch can be done, the one that is fastest on the device at hand.
//!
//! Lowering names the ways ([`Form`](crate::Form)); they differ in the size of workgroups and in how work is divided, not in what is
//! computed, so that results do not hang on the choice. Each distinct problem is timed once. What was chosen is kept in
//! [`Tuned`], as bytes that belong to one adapter, driver and version of this crate, and on disk between runs.

use crate::caps::{AdapterClass, Caps};
use crate::engine::{Engine, GpuError, GpuErrorKind};
use crate::program::{Binding, Dispatch, LEAST_BINDING, Place, Program, Slot, plan_memory};
use litegpu_shaders::KernelKey;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use web_time::Instant;

/// Whether the fastest kernels are found by measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tune {
    /// On GPUs, but not on adapters that run shaders on the CPU. In a browser on any adapter, but only once earlier
    /// choices, or none, were given ([`Engine::set_tuned`]): there nothing else keeps them between pages.
    #[default]
    Auto,
    /// On every adapter.
    Always,
    /// Never: kernels are chosen by what the adapter says of itself.
    Never,
}

/// A form must take at most this share of the usual one's time to be preferred, so that noise decides nothing.
const GAIN: f64 = 0.95;
/// Timed runs of the forms of a problem.
const RUNS: usize = 4;
/// Memory over which a problem is not measured.
const MAX_BYTES: u64 = 256 << 20;
/// Choices that are kept at most, and the bytes they may take.
const MAX_CHOICES: usize = 1 << 16;
const MAX_FILE: usize = MAX_CHOICES * 32 + 4096;

/// FNV-1a: the same number everywhere and always, which is all that is asked of it.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// What was chosen for which problem, on one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuned {
    /// Adapter, driver and version: one line.
    about: String,
    choices: BTreeMap<u64, u8>,
    /// Whether earlier choices were given, if only to say that there are none.
    given: bool,
}

impl Tuned {
    /// Nothing chosen yet.
    pub fn new(caps: &Caps) -> Tuned {
        let about =
            format!("litegpu {} | {} | {} | {}", env!("CARGO_PKG_VERSION"), caps.name, caps.backend, caps.driver);
        Tuned { about: about.replace(['\n', '\r'], " "), choices: BTreeMap::new(), given: false }
    }

    /// What [`Tuned::to_bytes`] gave; nothing chosen where the bytes are damaged, or another adapter's, driver's or
    /// version's.
    pub fn from_bytes(caps: &Caps, bytes: &[u8]) -> Tuned {
        let empty = Tuned::new(caps);
        empty.read(bytes).map_or(empty.clone(), |choices| Tuned { choices, ..empty })
    }

    fn read(&self, bytes: &[u8]) -> Option<BTreeMap<u64, u8>> {
        if bytes.len() > MAX_FILE {
            return None;
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, sum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        if u64::from_str_radix(sum, 16).ok()? != fnv(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next() != Some(self.about.as_str()) {
            return None;
        }
        let choice = |line: &str| {
            let (problem, form) = line.split_once(' ')?;
            Some((u64::from_str_radix(problem, 16).ok()?, form.parse().ok()?))
        };
        // One after the other: a map made of a list comes with a sort of its own.
        let mut choices = BTreeMap::new();
        for line in lines {
            let (problem, form) = choice(line)?;
            choices.insert(problem, form);
        }
        Some(choices).filter(|c| c.len() <= MAX_CHOICES)
    }

    /// As bytes: text, with a checksum in its last line.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = self.about.clone();
        for (problem, form) in self.choices.iter().take(MAX_CHOICES) {
            text.push_str(&format!("\n{problem:016x} {form}"));
        }
        let sum = fnv(text.as_bytes());
        text.push_str(&format!("\n{sum:016x}\n"));
        text.into_bytes()
    }

    /// Problems with a choice.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether there is no choice.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Chooses a form for a problem: 0 is the usual one, 1 the first of the others.
    pub fn choose(&mut self, problem: u64, form: u8) {
        self.choices.insert(problem, form);
    }

    /// Takes over the choices that it lacks.
    fn merge(&mut self, other: &Tuned) {
        for (&problem, &form) in &other.choices {
            self.choices.entry(problem).or_insert(form);
        }
    }

    /// A name for the file of this adapter.
    #[cfg(not(target_family = "wasm"))]
    fn file(&self, folder: &std::path::Path) -> std::path::PathBuf {
        folder.join(format!("tuned-{:016x}.txt", fnv(self.about.as_bytes())))
    }

    /// What the folder has for this adapter.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn load(caps: &Caps, folder: &std::path::Path) -> Tuned {
        let file = Tuned::new(caps).file(folder);
        let small = std::fs::metadata(&file).is_ok_and(|m| m.len() <= MAX_FILE as u64);
        let bytes = if small { std::fs::read(&file).unwrap_or_default() } else { Vec::new() };
        Tuned::from_bytes(caps, &bytes)
    }

    /// Writes the file anew, with what another process may have added. A folder that cannot be written keeps nothing.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn save(&self, caps: &Caps, folder: &std::path::Path) {
        let mut all = self.clone();
        all.merge(&Tuned::load(caps, folder));
        let (file, part) = (self.file(folder), folder.join(format!("tuned-{}.part", std::process::id())));
        let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&part, all.to_bytes()));
        if written.and_then(|()| std::fs::rename(&part, &file)).is_err() {
            let _ = std::fs::remove_file(&part);
        }
    }
}

/// Where choices are kept unless the options say otherwise: the user's folder for what can be made anew.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn folder() -> Option<std::path::PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(std::path::PathBuf::from);
    let base = if cfg!(windows) {
        of("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        of("HOME").map(|h| h.join("Library").join("Caches"))
    } else {
        of("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| of("HOME").map(|h| h.join(".cache")))
    };
    base.map(|b| b.join("litegpu"))
}

/// A dispatch apart from its data: what its time hangs on.
fn problem(d: &Dispatch, key: &KernelKey, bytes: &[u64]) -> u64 {
    let mut params = d.params.clone();
    // Limits of results cost the same whatever they are.
    for at in d.limits.into_iter().flat_map(|l| l..l + 3) {
        if let Some(word) = params.get_mut(at) {
            *word = 0;
        }
    }
    fnv(format!("{key:?} {params:?} {:?} {:?} {bytes:?}", d.groups, d.others).as_bytes())
}

/// A problem's dispatch in its usual form and in all others, on memory of its own.
struct Trial {
    program: Program,
    forms: usize,
}

impl Trial {
    fn new(caps: &Caps, program: &Program, d: &Dispatch, key: &KernelKey) -> Option<Trial> {
        let mut all = vec![(key.clone(), Dispatch { others: Vec::new(), ..d.clone() })];
        all.extend(d.others.iter().map(|f| f.of(d, key)));
        let mut trial = Program::default();
        let mut slots: HashMap<usize, usize> = HashMap::new();
        let mut total = 0u64;
        let bindings: Vec<Binding> = d
            .bindings
            .iter()
            .map(|b| {
                let bytes = program.slots.get(b.slot).map_or(0, |s| s.bytes).max(LEAST_BINDING);
                let slot = *slots.entry(b.slot).or_insert_with(|| {
                    total = total.saturating_add(bytes);
                    trial.slots.push(Slot { bytes, place: Place::Unused, within: None });
                    trial.slots.len() - 1
                });
                Binding { slot, ..*b }
            })
            .collect();
        if total > MAX_BYTES {
            return None;
        }
        let forms = all.len();
        for (key, d) in all {
            trial.kernels.push(key);
            let kernel = trial.kernels.len() - 1;
            trial.dispatches.push(Dispatch { node: kernel, kernel, bindings: bindings.clone(), ..d });
        }
        plan_memory(&mut trial, u64::from(caps.storage_align).max(16), caps.max_buffer);
        Some(Trial { program: trial, forms })
    }

    /// Seconds of each form; the smallest of a few runs, of at least one after the first.
    async fn times(&self, engine: &Engine, until: Instant) -> Result<Vec<f64>, GpuError> {
        let mut best = vec![f64::INFINITY; self.forms];
        if engine.caps().timestamps {
            let mut loaded = engine.load_as_is(&self.program).await?;
            for run in 0..=RUNS {
                let times = loaded.profile(&[], &mut []).await?;
                for (b, t) in best.iter_mut().zip(times).filter(|_| run > 0) {
                    *b = b.min(t.time.as_secs_f64());
                }
                if run > 0 && Instant::now() > until {
                    break;
                }
            }
            return Ok(best);
        }
        // Without timestamps: a form a few times in a row, and what that takes by the clock.
        for (dispatch, b) in self.program.dispatches.iter().zip(&mut best) {
            let mut one = self.program.clone();
            one.dispatches = vec![dispatch.clone(); 8];
            let mut loaded = engine.load_as_is(&one).await?;
            for run in 0..=RUNS {
                let start = Instant::now();
                loaded.run(&[], &mut []).await?;
                if run > 0 {
                    *b = b.min(start.elapsed().as_secs_f64());
                }
                if run > 0 && Instant::now() > until {
                    break;
                }
            }
        }
        Ok(best)
    }
}

impl Engine {
    /// What was chosen by measuring on this adapter, to be given to [`Engine::set_tuned`] the next time.
    pub fn tuned(&self) -> Vec<u8> {
        self.choices().to_bytes()
    }

    /// Takes over choices that were made before. Those of another adapter, driver or version count for nothing.
    pub fn set_tuned(&self, bytes: &[u8]) {
        let given = Tuned::from_bytes(self.caps(), bytes);
        let mut have = self.choices();
        have.merge(&given);
        have.given = true;
    }

    /// Whether dispatches are measured on this adapter.
    pub(crate) fn tunes(&self) -> bool {
        match self.options().tune {
            Tune::Never => false,
            Tune::Always => true,
            Tune::Auto => {
                let on_gpu = self.caps().class != AdapterClass::Software;
                if cfg!(target_family = "wasm") { self.choices().given } else { on_gpu }
            }
        }
    }

    /// Gives each dispatch that has several forms the fastest: as it was chosen before, or as it is measured now, for as
    /// long as the options allow.
    ///
    /// # Errors
    /// When the device is gone. What else goes wrong in measuring leaves dispatches in their usual form.
    pub(crate) async fn tune(&self, program: &mut Program) -> Result<(), GpuError> {
        let bytes_of = |program: &Program, d: &Dispatch| -> Vec<u64> {
            d.bindings.iter().map(|b| program.slots.get(b.slot).map_or(0, |s| s.bytes)).collect()
        };
        // Problems by dispatch, and those without a choice, the largest first.
        let mut problems: Vec<Option<u64>> = Vec::with_capacity(program.dispatches.len());
        let mut open: Vec<(u64, u64, usize)> = Vec::new();
        let mut seen = BTreeSet::new();
        {
            let have = self.choices();
            for (i, d) in program.dispatches.iter().enumerate() {
                let key = program.kernels.get(d.kernel).filter(|_| !d.others.is_empty());
                let id = key.map(|key| problem(d, key, &bytes_of(program, d)));
                if let Some(id) = id
                    && !have.choices.contains_key(&id)
                    && seen.insert(id)
                {
                    let size = d.groups.iter().map(|&g| u64::from(g)).product();
                    open.push((size, id, i));
                }
                problems.push(id);
            }
        }
        let open = litegpu_graph::ordered(open, &mut |a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let until = Instant::now() + self.options().tune_time;
        let mut measured = false;
        for (_, id, at) in open {
            if Instant::now() > until {
                break;
            }
            let Some(d) = program.dispatches.get(at) else { continue };
            let Some(key) = program.kernels.get(d.kernel) else { continue };
            let Some(trial) = Trial::new(self.caps(), program, d, key) else { continue };
            match trial.times(self, until).await {
                Ok(times) => {
                    let usual = times.first().copied().unwrap_or(f64::INFINITY);
                    let fastest = times.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
                    let choice = fastest.filter(|(_, t)| **t < usual * GAIN).map_or(0, |(i, _)| i);
                    self.choices().choices.insert(id, u8::try_from(choice).unwrap_or(0));
                    measured = true;
                }
                Err(e) if matches!(e.kind, GpuErrorKind::Lost | GpuErrorKind::Timeout) => return Err(e),
                Err(_) => {}
            }
        }
        self.apply(program, &problems);
        #[cfg(not(target_family = "wasm"))]
        if let (true, Some(folder)) = (measured, self.tuned_folder()) {
            let all = self.choices().clone();
            all.save(self.caps(), &folder);
        }
        #[cfg(target_family = "wasm")]
        let _ = measured;
        Ok(())
    }

    /// Puts the chosen forms in place.
    fn apply(&self, program: &mut Program, problems: &[Option<u64>]) {
        let have = self.choices();
        for (at, id) in problems.iter().enumerate() {
            let choice = id.and_then(|id| have.choices.get(&id)).map_or(0, |&c| usize::from(c));
            let form = program.dispatches.get(at).and_then(|d| d.others.get(choice.checked_sub(1)?)).cloned();
            if let Some(form) = form {
                program.choose(at, &form);
            }
        }
    }
}

/// How long a part's dispatches are measured at most, but for the one that is under way then.
pub(crate) const TIME: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Tuned {
        let mut t = Tuned::new(&Caps::baseline());
        t.choices.extend([(1, 0), (u64::MAX, 3), (77, 255)]);
        t
    }

    #[test]
    fn bytes_and_back() {
        let t = some();
        assert_eq!(Tuned::from_bytes(&Caps::baseline(), &t.to_bytes()), t);
        let none = Tuned::new(&Caps::baseline());
        assert_eq!(Tuned::from_bytes(&Caps::baseline(), &none.to_bytes()), none);
    }

    #[test]
    fn damaged_and_foreign_bytes_choose_nothing() {
        let caps = Caps::baseline();
        let bytes = some().to_bytes();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Tuned::from_bytes(&caps, &bad).is_empty(), "byte {at}");
            assert!(Tuned::from_bytes(&caps, &bytes[..at]).is_empty(), "{at} bytes");
        }
        let other = Caps { driver: "another".into(), ..Caps::baseline() };
        assert!(Tuned::from_bytes(&other, &bytes).is_empty());
        assert!(Tuned::from_bytes(&caps, &vec![b'x'; MAX_FILE + 1]).is_empty());
    }

    #[test]
    fn a_name_of_several_lines_is_one_line() {
        let caps = Caps { name: "a\nb\r\nc".into(), ..Caps::baseline() };
        let mut t = Tuned::new(&caps);
        t.choices.insert(5, 1);
        assert_eq!(Tuned::from_bytes(&caps, &t.to_bytes()), t);
    }
}
