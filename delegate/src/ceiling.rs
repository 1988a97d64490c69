//! What an adapter can do at most, measured: what a profile's figures are a share of.

use crate::caps::AdapterClass;
use crate::engine::{Engine, GpuError};
use crate::lower::line;
use crate::program::{Access, Binding, Dispatch, Place, Program, Slot, plan_memory};
use litegpu_shaders::{Elem, KernelKey};

/// The most that an adapter was seen to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling {
    /// 1e9 float32 operations a second, a multiply-add as two.
    pub gflops: f64,
    /// 1e9 bytes a second, read and written.
    pub gb_per_s: f64,
}

/// Multiply-adds of an invocation's loop body, as operations.
const FLOPS: u64 = 8 * 4 * 2;

impl Engine {
    /// Times a kernel of nothing but multiply-adds and one of nothing but copies; `None` on an adapter without timestamps.
    ///
    /// # Errors
    /// As [`Loaded::run`](crate::Loaded::run).
    pub async fn ceiling(&self) -> Result<Option<Ceiling>, GpuError> {
        let caps = self.caps();
        if !caps.timestamps {
            return Ok(None);
        }
        // A few milliseconds of each on any adapter of the class. The copies are larger than a GPU's caches; what a
        // software adapter works on lies in the CPU's.
        let (quads, steps, copies) = match caps.class {
            AdapterClass::Software => (1 << 16, 256, 1 << 16),
            AdapterClass::Integrated => (1 << 20, 512, 1 << 23),
            AdapterClass::Discrete => (1 << 22, 1024, 1 << 23),
        };
        let most = (caps.max_binding.min(caps.max_buffer) / 16) as usize;
        let (work, copied) = (usize::min(quads, most), usize::min(copies, most));
        let mut program = Program::default();
        let bytes = work.max(copied) as u64 * 16;
        program.slots = vec![Slot { bytes, place: Place::Unused, within: None }; 2];
        let wg = if caps.class == AdapterClass::Software { 8 } else { 64 };
        for (steps, quads) in [(steps, work), (0, copied)] {
            let key = KernelKey::new("ceiling", &[("in0", Elem::F32), ("out", Elem::F32)]);
            program.kernels.push(key.set("WG", wg as i32).set("STEPS", steps));
            program.dispatches.push(Dispatch {
                stretch: 0,
                node: 0,
                members: Vec::new(),
                kernel: program.kernels.len() - 1,
                bindings: vec![
                    Binding { binding: 1, slot: 0, access: Access::Read },
                    Binding { binding: 2, slot: 1, access: Access::Write },
                ],
                params: vec![quads as u32, 0, 0, 0],
                sizes: Vec::new(),
                limits: None,
                appends: None,
                groups: line(quads.div_ceil(wg)),
                others: Vec::new(),
            });
        }
        plan_memory(&mut program, u64::from(caps.storage_align).max(16), caps.max_buffer);
        let mut loaded = self.load(&program).await?;
        let mut best = [f64::INFINITY; 2];
        for _ in 0..4 {
            let times = loaded.profile(&[], &mut []).await?;
            for (b, t) in best.iter_mut().zip(&times) {
                *b = b.min(t.time.as_secs_f64());
            }
        }
        let rate = |amount: u64, seconds: f64| amount as f64 / seconds / 1e9;
        let ceiling = Ceiling {
            gflops: rate(work as u64 * steps as u64 * FLOPS, best[0]),
            gb_per_s: rate(copied as u64 * 32, best[1]),
        };
        Ok(Some(ceiling).filter(|c| c.gflops.is_finite() && c.gb_per_s.is_finite()))
    }
}
