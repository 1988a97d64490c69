//! Running programs: the one file that names wgpu.

use crate::caps::{AdapterClass, Caps, Matrices};
use crate::convert;
use crate::program::{Access, Dispatch, Flow, LEAST_BINDING, Member, Move, Passes, Place, Port, Program, SlotId};
use crate::tune::{self, Tune, Tuned};
use litegpu_graph::NodeId;
use litegpu_shaders::KernelKey;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What went wrong on the device's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuErrorKind {
    /// No adapter, or none that fits the options.
    NoAdapter,
    /// The adapter refused a device, or lacks what litegpu needs.
    Refused,
    /// The device was lost: reset, removed or destroyed. Open a new engine.
    Lost,
    /// The device has no memory left.
    OutOfMemory,
    /// The device did not finish in time.
    Timeout,
    /// The caller's bytes do not fit the program.
    Invalid,
    /// A bug of ours, or of the driver: a shader or a command was rejected.
    Internal,
}

/// An error of the device's side. None of them aborts the process; the CPU executor can always take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuError {
    /// What kind.
    pub kind: GpuErrorKind,
    /// In words.
    pub message: String,
}

impl GpuError {
    pub(crate) fn new(kind: GpuErrorKind, message: impl Into<String>) -> GpuError {
        GpuError { kind, message: message.into() }
    }
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            GpuErrorKind::NoAdapter => "no GPU adapter",
            GpuErrorKind::Refused => "the adapter refused",
            GpuErrorKind::Lost => "the device was lost",
            GpuErrorKind::OutOfMemory => "out of GPU memory",
            GpuErrorKind::Timeout => "the GPU did not finish in time",
            GpuErrorKind::Invalid => "invalid",
            GpuErrorKind::Internal => "internal error (please report)",
        };
        write!(f, "{what}: {}", self.message)
    }
}

impl std::error::Error for GpuError {}

type Result<T, E = GpuError> = std::result::Result<T, E>;

/// Which adapter, where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Power {
    /// Leave it to the system.
    #[default]
    Any,
    /// Prefer the one that saves power.
    Low,
    /// Prefer the fastest.
    High,
}

/// How f16 tensors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HalfStorage {
    /// What is faster on the kind of adapter, and only where it is faster than 32 bits.
    #[default]
    Auto,
    /// 16-bit types, where the adapter has them, for tensors of any size.
    Native,
    /// Two to a word, for tensors of any size.
    Packed,
}

/// How an engine is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Take the adapter whose name (or driver) contains this, whatever its case.
    pub adapter: Option<String>,
    /// Which adapter otherwise.
    pub power: Power,
    /// Whether an adapter that runs shaders on the CPU will do.
    pub allow_software: bool,
    /// Do as if the adapter had no `shader-f16`.
    pub hide_f16: bool,
    /// Do as if the adapter had no subgroup operations.
    pub hide_subgroups: bool,
    /// Do as if the adapter had no cooperative matrices.
    pub hide_matrices: bool,
    /// The device has subgroup operations, which wgpu cannot tell of a device in a browser: who opened it says so.
    pub known_subgroups: bool,
    /// Do as if storage buffers could not be mapped.
    pub hide_mappable: bool,
    /// Choose kernels as for a GPU on an adapter that runs shaders on the CPU: to test those of GPUs without one.
    pub hide_software: bool,
    /// How f16 tensors are stored.
    pub half: HalfStorage,
    /// How long a run may take before the queue counts as hung.
    pub timeout: Duration,
    /// Threads that compile pipelines; 0 means one per core.
    pub compile_threads: usize,
    /// Whether the fastest kernels are found by measuring.
    pub tune: Tune,
    /// How long a part is measured at most when it is loaded, but for the measurement that is under way then.
    pub tune_time: Duration,
    /// The folder in which choices are kept, in a file for each adapter, driver and version; empty for none. `None` is
    /// `litegpu` in the user's folder for caches.
    pub tuned: Option<std::path::PathBuf>,
    /// Bytes that all that is loaded may take together; what would take more is refused as if the device had none left.
    pub memory: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            adapter: None,
            power: Power::Any,
            allow_software: true,
            hide_f16: false,
            hide_subgroups: false,
            hide_matrices: false,
            known_subgroups: false,
            hide_mappable: false,
            hide_software: false,
            half: HalfStorage::Auto,
            timeout: Duration::from_secs(120),
            compile_threads: 0,
            tune: Tune::Auto,
            tune_time: tune::TIME,
            tuned: None,
            memory: None,
        }
    }
}

/// An adapter in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// The graphics interface.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// The kind of adapter.
    pub class: AdapterClass,
}

/// Faults that arrive outside the call that caused them.
#[derive(Debug, Default)]
struct Faults {
    lost: Option<String>,
    error: Option<GpuError>,
}

/// A device, with the pipelines that have been compiled on it.
pub struct Engine {
    #[cfg(not(target_family = "wasm"))]
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    caps: Caps,
    options: EngineOptions,
    faults: Arc<Mutex<Faults>>,
    pipelines: Mutex<HashMap<KernelKey, Compiled>>,
    tuned: Mutex<Tuned>,
    /// Bytes of what is loaded.
    taken: Arc<AtomicU64>,
    /// The device is the application's as well.
    shared: bool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({}, {})", self.caps.name, self.caps.backend)
    }
}

#[derive(Clone)]
struct Compiled {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn instance() -> wgpu::Instance {
    let mut d = wgpu::InstanceDescriptor::new_without_display_handle();
    if let Some(backends) = wgpu::Backends::from_env() {
        d.backends = backends;
    }
    wgpu::Instance::new(d)
}

fn class_of(info: &wgpu::AdapterInfo) -> AdapterClass {
    match info.device_type {
        wgpu::DeviceType::Cpu => AdapterClass::Software,
        wgpu::DeviceType::IntegratedGpu => AdapterClass::Integrated,
        wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => AdapterClass::Discrete,
        // The browser does not say; software adapters name themselves.
        wgpu::DeviceType::Other => {
            let name = format!("{} {}", info.name, info.driver).to_lowercase();
            let soft = ["swiftshader", "llvmpipe", "lavapipe", "software", "warp"].iter().any(|s| name.contains(s));
            if soft { AdapterClass::Software } else { AdapterClass::Integrated }
        }
    }
}

fn describe(info: &wgpu::AdapterInfo) -> AdapterInfo {
    AdapterInfo {
        name: info.name.clone(),
        backend: info.backend.to_str().to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        class: class_of(info),
    }
}

/// `has`, `limits`: the device's, or what it may ask for.
fn caps_of(adapter: &wgpu::Adapter, has: wgpu::Features, limits: &wgpu::Limits, options: &EngineOptions) -> Caps {
    let info = adapter.get_info();
    let mut about = describe(&info);
    if options.hide_software && about.class == AdapterClass::Software {
        about.class = AdapterClass::Discrete;
    }
    let f16 = has.contains(wgpu::Features::SHADER_F16) && !options.hide_f16 && options.half != HalfStorage::Packed;
    let subgroups = has.contains(wgpu::Features::SUBGROUP) || options.known_subgroups;
    let subgroups = subgroups && !options.hide_subgroups && info.subgroup_max_size > 0;
    let subgroups = subgroups.then_some((info.subgroup_min_size, info.subgroup_max_size));
    // Which is faster on an adapter that runs shaders on the CPU is known: not these.
    let matrices = has.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
        && about.class != AdapterClass::Software
        && subgroups.is_some_and(|(least, most)| least == most && matches!(least, 8 | 16 | 32 | 64))
        && !options.hide_matrices;
    Caps {
        name: about.name,
        backend: about.backend,
        driver: about.driver,
        class: about.class,
        f16,
        packed_f16: !f16 || (about.class == AdapterClass::Software && options.half != HalfStorage::Native),
        half_from: match (options.half, about.class) {
            (HalfStorage::Native | HalfStorage::Packed, _) => 0,
            (HalfStorage::Auto, AdapterClass::Software) => usize::MAX,
            (HalfStorage::Auto, _) => crate::caps::HALF_FROM,
        },
        subgroups,
        matrices: if matrices { matrices_of(adapter, f16) } else { Matrices::default() },
        timestamps: has.contains(wgpu::Features::TIMESTAMP_QUERY),
        mappable: has.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
            && about.class == AdapterClass::Software
            && !options.hide_mappable,
        int64: has.contains(wgpu::Features::SHADER_INT64),
        max_buffer: limits.max_buffer_size,
        max_binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        max_workgroup_memory: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_groups: limits.max_compute_workgroups_per_dimension,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        storage_align: limits.min_storage_buffer_offset_alignment,
        uniform_align: limits.min_uniform_buffer_offset_alignment,
    }
}

/// The cooperative matrices that kernels use, of those that the adapter has.
fn matrices_of(adapter: &wgpu::Adapter, f16: bool) -> Matrices {
    use wgpu::CooperativeScalarType as Scalar;
    let all = adapter.cooperative_matrix_properties();
    let has = |side: u32, factors: Scalar| {
        all.iter()
            .any(|m| [m.m_size, m.n_size, m.k_size] == [side; 3] && m.ab_type == factors && m.cr_type == Scalar::F32)
    };
    Matrices { f16: [16, 8].into_iter().find(|side| f16 && has(*side, Scalar::F16)), f32: has(8, Scalar::F32) }
}

#[cfg(not(target_family = "wasm"))]
fn tuned_folder(options: &EngineOptions) -> Option<std::path::PathBuf> {
    options.tuned.clone().or_else(tune::folder).filter(|f| !f.as_os_str().is_empty())
}

/// What is known from before about which kernels are fastest.
fn tuned(caps: &Caps, options: &EngineOptions) -> Tuned {
    #[cfg(not(target_family = "wasm"))]
    if let Some(folder) = tuned_folder(options).filter(|_| options.tune != Tune::Never) {
        return Tuned::load(caps, &folder);
    }
    let _ = options;
    Tuned::new(caps)
}

impl Engine {
    /// The adapters of this machine.
    pub async fn adapters() -> Vec<AdapterInfo> {
        let list = instance().enumerate_adapters(wgpu::Backends::all()).await;
        list.iter().map(|a| describe(&a.get_info())).collect()
    }

    /// Opens a device. The graphics interface (in a browser: `navigator.gpu`) is looked up before this returns, not
    /// when the future is first polled.
    ///
    /// # Errors
    /// `NoAdapter` when none fits the options, `Refused` when the adapter gives no device.
    pub fn open(options: EngineOptions) -> impl Future<Output = Result<Engine>> {
        let instance = instance();
        Engine::open_on(instance, options)
    }

    async fn open_on(instance: wgpu::Instance, options: EngineOptions) -> Result<Engine> {
        let adapter = pick(&instance, &options).await?;
        let caps = caps_of(&adapter, adapter.features(), &adapter.limits(), &options);
        let (device, queue) = request(&adapter, &caps, options.known_subgroups).await?;
        let faults = Arc::new(Mutex::new(Faults::default()));
        let f = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            lock(&f).error.get_or_insert(gpu_error(e));
        }));
        let f = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&f).lost = Some(format!("{reason:?} {message}"));
        });
        let tuned = Mutex::new(tuned(&caps, &options));
        #[cfg_attr(target_family = "wasm", allow(unused_mut))]
        let mut engine = Engine {
            #[cfg(not(target_family = "wasm"))]
            adapter,
            device,
            queue,
            caps,
            options,
            faults,
            pipelines: Mutex::default(),
            tuned,
            taken: Arc::default(),
            shared: false,
        };
        #[cfg(not(target_family = "wasm"))]
        if engine.caps.matrices != Matrices::default() {
            engine.caps.matrices = engine.proven().await;
        }
        Ok(engine)
    }

    /// An engine on a device that the application made and goes on to use, with what features and limits it was made
    /// with. Handlers of errors and of loss stay the application's: when the device is lost, [`Engine::destroy`] says so.
    #[cfg(not(target_family = "wasm"))]
    pub fn share(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue, options: EngineOptions) -> Engine {
        // Nothing runs here yet that could prove matrices.
        let has = device.features() - wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let caps = caps_of(&adapter, has, &device.limits(), &options);
        let tuned = Mutex::new(tuned(&caps, &options));
        Engine {
            adapter,
            device,
            queue,
            caps,
            options,
            faults: Arc::default(),
            pipelines: Mutex::default(),
            tuned,
            taken: Arc::default(),
            shared: true,
        }
    }

    /// [`Engine::open`], blocking.
    ///
    /// # Errors
    /// As [`Engine::open`].
    #[cfg(not(target_family = "wasm"))]
    pub fn open_blocking(options: EngineOptions) -> Result<Engine> {
        pollster::block_on(Engine::open(options))
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    pub(crate) fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What was chosen by measuring.
    pub(crate) fn choices(&self) -> MutexGuard<'_, Tuned> {
        lock(&self.tuned)
    }

    /// Where that is kept, if anywhere.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn tuned_folder(&self) -> Option<std::path::PathBuf> {
        tuned_folder(&self.options)
    }

    /// Gives the device and all its memory back; a [shared](Engine::share) one is only no longer used. What is loaded on
    /// it fails with `Lost` from now on.
    pub fn destroy(&self) {
        lock(&self.faults).lost.get_or_insert_with(|| "it was given back".into());
        if !self.shared {
            self.device.destroy();
        }
    }

    /// Memory on this device for [`Loaded::attach_input`] and [`Loaded::attach_output`].
    pub fn memory(&self, bytes: u64) -> DeviceMemory {
        use wgpu::BufferUsages as U;
        DeviceMemory(self.buffer("attached", bytes, U::STORAGE | U::COPY_SRC | U::COPY_DST))
    }

    /// Makes a program ready to run: measures which forms of its dispatches are fastest where the options ask for it
    /// ([`Tune`]) and that is not known yet, compiles what is not compiled yet, uploads its constants, makes its buffers and
    /// bind groups.
    ///
    /// # Errors
    /// `OutOfMemory`, `Lost`, or `Internal` when the driver rejects a shader.
    pub async fn load(&self, program: &Program) -> Result<Loaded> {
        if !self.tunes() || program.dispatches.iter().all(|d| d.others.is_empty()) {
            return self.load_as_is(program).await;
        }
        let mut tuned = program.clone();
        self.tune(&mut tuned).await?;
        self.load_as_is(&tuned).await
    }

    /// [`Engine::load`] with every dispatch in the form that it has.
    pub(crate) async fn load_as_is(&self, program: &Program) -> Result<Loaded> {
        check_faults(&self.faults)?;
        let share = self.reserve(program)?;
        self.compile(program).await?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = self.make(program, share);
        let (validation, memory) = (validation.pop(), memory.pop());
        let (validation, memory) = (validation.await, memory.await);
        if let Some(e) = memory {
            return Err(GpuError::new(GpuErrorKind::OutOfMemory, e.to_string()));
        }
        if let Some(e) = validation {
            return Err(gpu_error(e));
        }
        check_faults(&self.faults)?;
        made
    }

    /// Takes a program's share of the memory that may be taken.
    fn reserve(&self, program: &Program) -> Result<Share> {
        let bytes = program.weight_bytes().saturating_add(program.planned_bytes);
        let held = self.taken.fetch_add(bytes, Ordering::Relaxed);
        let share = Share { bytes, taken: self.taken.clone() };
        match self.options.memory {
            Some(limit) if held.saturating_add(bytes) > limit => {
                let message = format!("{bytes} bytes beside {held}, of {limit} that may be taken");
                Err(GpuError::new(GpuErrorKind::OutOfMemory, message))
            }
            _ => Ok(share),
        }
    }

    /// [`Engine::load`], blocking.
    ///
    /// # Errors
    /// As [`Engine::load`].
    #[cfg(not(target_family = "wasm"))]
    pub fn load_blocking(&self, program: &Program) -> Result<Loaded> {
        pollster::block_on(self.load(program))
    }

    /// The bindings of each kernel, from its first dispatch.
    fn patterns(program: &Program) -> Vec<Option<Vec<(u32, Access)>>> {
        let mut out = vec![None; program.kernels.len()];
        for d in &program.dispatches {
            if let Some(slot @ None) = out.get_mut(d.kernel) {
                *slot = Some(d.bindings.iter().map(|b| (b.binding, b.access)).collect());
            }
        }
        out
    }

    async fn compile(&self, program: &Program) -> Result<()> {
        let patterns = Engine::patterns(program);
        let missing: Vec<(&KernelKey, &[(u32, Access)])> = {
            let have = lock(&self.pipelines);
            let all = program.kernels.iter().zip(&patterns);
            all.filter_map(|(k, p)| Some((k, p.as_deref()?))).filter(|(k, _)| !have.contains_key(*k)).collect()
        };
        #[cfg(not(target_family = "wasm"))]
        {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let threads = if self.options.compile_threads == 0 { cores } else { self.options.compile_threads };
            if self.caps.class == AdapterClass::Software && threads > 1 {
                let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
                let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
                let warmed = self.warm(&missing, threads);
                let (validation, memory) = (validation.pop(), memory.pop());
                if let Some(e) = pollster::block_on(memory) {
                    return Err(GpuError::new(GpuErrorKind::OutOfMemory, e.to_string()));
                }
                warmed?;
                if let Some(e) = pollster::block_on(validation) {
                    return Err(gpu_error(e));
                }
            }
            let missing: Vec<_> = {
                let have = lock(&self.pipelines);
                missing.into_iter().filter(|(k, _)| !have.contains_key(*k)).collect()
            };
            let next = std::sync::atomic::AtomicUsize::new(0);
            let results: Mutex<Vec<(KernelKey, Result<Compiled>)>> = Mutex::default();
            std::thread::scope(|scope| {
                for _ in 0..threads.min(missing.len()) {
                    scope.spawn(|| {
                        while let Some((key, pattern)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let done = pollster::block_on(compile_one(&self.device, key, pattern));
                            lock(&results).push(((*key).clone(), done));
                        }
                    });
                }
            });
            let mut have = lock(&self.pipelines);
            for (key, done) in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
                have.insert(key, done?);
            }
        }
        // All are asked for before the first answer is awaited: the browser compiles in a process of its own.
        #[cfg(target_family = "wasm")]
        {
            let asked: Vec<_> =
                missing.iter().map(|(key, pattern)| (*key, compile_one(&self.device, key, pattern))).collect();
            for (key, done) in asked {
                let done = done.await?;
                lock(&self.pipelines).insert(key.clone(), done);
            }
        }
        Ok(())
    }

    /// Has an adapter that runs shaders on the CPU make its machine code on all cores.
    ///
    /// Such a driver makes it at a kernel's first dispatch, in the one thread that a device has, which is most of the
    /// time to a first result. So further devices dispatch (nothing, of) some of the kernels: what the driver made for
    /// them it finds in its cache on disk, and what this device dispatched itself it has. Without that cache nothing
    /// is gained and nothing lost. Results do not hang on any of this, and an error here shows again where it counts.
    #[cfg(not(target_family = "wasm"))]
    fn warm(&self, missing: &[(&KernelKey, &[(u32, Access)])], threads: usize) -> Result<()> {
        /// Longer than any driver needs for a kernel that it has in its cache.
        const CACHED: Duration = Duration::from_millis(25);
        // The shortest kernel tells whether the cache has them; then the longest come first, so that the cores finish
        // together.
        let mut order: Vec<(usize, (&KernelKey, &[(u32, Access)]))> =
            missing.iter().map(|m| (litegpu_shaders::source(m.0).map_or(0, |s| s.len()), *m)).collect();
        order.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let Some((_, (key, pattern))) = order.pop() else { return Ok(()) };
        let rest: Vec<(&KernelKey, &[(u32, Access)])> = order.into_iter().map(|(_, m)| m).collect();
        let here = Bench::new(&self.device, &self.queue, self.options.timeout);
        let start = std::time::Instant::now();
        let first = here.dispatch(key, pattern)?;
        lock(&self.pipelines).insert(key.clone(), first);
        if start.elapsed() < CACHED || rest.is_empty() {
            return Ok(());
        }
        let next = std::sync::atomic::AtomicUsize::new(0);
        let take = || rest.get(next.fetch_add(1, Ordering::Relaxed));
        let mut own = Vec::new();
        std::thread::scope(|scope| {
            for _ in 1..threads.min(rest.len()) {
                scope.spawn(|| {
                    let Ok((device, queue)) =
                        pollster::block_on(request(&self.adapter, &self.caps, self.options.known_subgroups))
                    else {
                        return;
                    };
                    // What goes wrong there is of no consequence.
                    device.on_uncaptured_error(Arc::new(|_| {}));
                    let there = Bench::new(&device, &queue, self.options.timeout);
                    while let Some(&(key, pattern)) = take() {
                        if there.dispatch(key, pattern).is_err() {
                            return;
                        }
                    }
                });
            }
            while let Some(&(key, pattern)) = take() {
                own.push((key, here.dispatch(key, pattern)));
            }
        });
        let mut have = lock(&self.pipelines);
        for (key, done) in own {
            have.insert(key.clone(), done?);
        }
        Ok(())
    }

    fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size.max(LEAST_BINDING),
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer that holds `parts`, each at its offset.
    fn filled<'p>(
        &self,
        label: &str,
        size: u64,
        usage: wgpu::BufferUsages,
        parts: impl Iterator<Item = (u64, &'p [u8])>,
    ) -> Result<wgpu::Buffer> {
        // A mapping in a browser is a copy of its own: there the queue takes the bytes as they lie.
        let mapped = cfg!(not(target_family = "wasm"));
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size.next_multiple_of(16) + 16,
            usage: if mapped { usage } else { usage | wgpu::BufferUsages::COPY_DST },
            mapped_at_creation: mapped,
        });
        if !mapped {
            for (at, bytes) in parts {
                self.queue.write_buffer(&buffer, at, bytes);
            }
            return Ok(buffer);
        }
        {
            let failed = |e: wgpu::MapRangeError| GpuError::new(GpuErrorKind::OutOfMemory, e.to_string());
            let mut view = buffer.slice(..).get_mapped_range_mut().map_err(failed)?;
            for (at, bytes) in parts {
                view.slice(at as usize..at as usize + bytes.len()).copy_from_slice(bytes);
            }
        }
        buffer.unmap();
        Ok(buffer)
    }

    fn make(&self, program: &Program, share: Share) -> Result<Loaded> {
        use wgpu::BufferUsages as U;
        let bug = |what: &str| GpuError::new(GpuErrorKind::Internal, what);
        // Constants lie side by side in few buffers.
        let align = u64::from(self.caps.storage_align).max(16);
        let limit = self.caps.max_buffer.min(1 << 30);
        let mut arenas: Vec<(u64, Vec<(u64, usize)>)> = Vec::new();
        let mut weights: Vec<(usize, u64)> = Vec::with_capacity(program.weights.len());
        for (i, w) in program.weights.iter().enumerate() {
            let len = w.len() as u64;
            let fits = arenas.last().is_some_and(|(size, _)| size.next_multiple_of(align) + len <= limit);
            if !fits {
                arenas.push((0, Vec::new()));
            }
            let n = arenas.len() - 1;
            if let Some((size, list)) = arenas.last_mut() {
                let at = size.next_multiple_of(align);
                *size = at + len;
                list.push((at, i));
                weights.push((n, at));
            }
        }
        let mut weight_buffers = Vec::with_capacity(arenas.len());
        for (size, list) in &arenas {
            let parts = list.iter().filter_map(|&(at, i)| Some((at, program.weights.get(i)?.as_ref())));
            weight_buffers.push(self.filled("weights", *size, U::STORAGE | U::COPY_SRC, parts)?);
        }
        // Where the host and the device have the same memory, inputs and outputs are mapped where they lie.
        let mut usages = vec![U::STORAGE | U::COPY_SRC | U::COPY_DST; program.buffers.len()];
        let ports = program.inputs.iter().map(|p| (p, U::MAP_WRITE));
        for (p, map) in ports.chain(program.outputs.iter().map(|p| (p, U::MAP_READ))) {
            if let Some(Place::Buffer(b, _)) = program.slots.get(p.slot).map(|s| s.place)
                && let Some(usage) = usages.get_mut(b).filter(|_| self.caps.mappable)
            {
                *usage |= map;
            }
        }
        let sizes = program.buffers.iter().zip(&usages);
        let buffers: Vec<wgpu::Buffer> = sizes.map(|(&size, &usage)| self.buffer("activations", size, usage)).collect();
        // Uniforms: equal ones are shared.
        let step = u64::from(self.caps.uniform_align).max(16);
        let words = |d: &Dispatch| program.kernels.get(d.kernel).map(|key| d.uniform(key)).unwrap_or_default();
        let words: Vec<Vec<u32>> = program.dispatches.iter().map(words).collect();
        let mut offsets: HashMap<&[u32], u64> = HashMap::new();
        let mut uniforms: Vec<(u64, &[u8])> = Vec::new();
        let mut size = 0u64;
        for w in &words {
            offsets.entry(w).or_insert_with(|| {
                let at = size.next_multiple_of(step);
                uniforms.push((at, bytemuck::cast_slice(w)));
                size = at + w.len() as u64 * 4;
                at
            });
        }
        let uniform = self.filled("uniforms", size, U::UNIFORM, uniforms.into_iter())?;
        let memory = |slot: SlotId| -> Result<(&wgpu::Buffer, u64)> {
            let slot = program.slots.get(slot).ok_or_else(|| bug("a binding without slot"))?;
            let (buffer, offset) = match slot.place {
                Place::Buffer(i, at) => (buffers.get(i), at),
                Place::Weight(i) => match weights.get(i) {
                    Some(&(arena, at)) => (weight_buffers.get(arena), at),
                    None => (None, 0),
                },
                Place::Unused => (None, 0),
            };
            Ok((buffer.ok_or_else(|| bug("a binding without memory"))?, offset))
        };
        let have = lock(&self.pipelines);
        let mut dispatches = Vec::with_capacity(program.dispatches.len());
        for (d, words) in program.dispatches.iter().zip(&words) {
            let key = program.kernels.get(d.kernel).ok_or_else(|| bug("a dispatch without kernel"))?;
            let compiled = have.get(key).ok_or_else(|| bug("a kernel that was not compiled"))?;
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &uniform,
                    offset: offsets.get(words.as_slice()).copied().unwrap_or(0),
                    size: std::num::NonZero::new(words.len() as u64 * 4),
                }),
            }];
            for b in &d.bindings {
                let slot = program.slots.get(b.slot).ok_or_else(|| bug("a binding without slot"))?;
                let (buffer, offset) = memory(b.slot)?;
                entries.push(wgpu::BindGroupEntry {
                    binding: b.binding,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset,
                        size: std::num::NonZero::new(slot.bytes.max(LEAST_BINDING)),
                    }),
                });
            }
            let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &compiled.layout,
                entries: &entries,
            });
            dispatches.push(Ready {
                node: d.node,
                members: d.members.clone(),
                kernel: d.kernel,
                pipeline: compiled.pipeline.clone(),
                group,
                groups: d.groups,
            });
        }
        drop(have);
        let copies = |moves: &[Move]| -> Result<Vec<Copy>> {
            let one = |m: &Move| {
                let ((from, from_at), (to, to_at)) = (memory(m.from)?, memory(m.to)?);
                Ok(Copy { from: from.clone(), from_at, to: to.clone(), to_at, bytes: m.bytes })
            };
            moves.iter().map(one).collect()
        };
        let flag = |slot: SlotId| memory(slot).map(|(buffer, at)| (buffer.clone(), at));
        let mut pieces = Vec::new();
        let mut stretch = 0;
        for f in &program.flows {
            let (start, end) = f.stretches();
            pieces.push(Piece::Straight(program.stretch(stretch).start..program.stretch(start).start));
            stretch = end + 1;
            pieces.push(match f {
                Flow::Loop { first, cond, passes, body, next } => Piece::Loop {
                    first: copies(first)?,
                    cond: program.stretch(*cond),
                    until: match passes {
                        Passes::Count(n) => Until::Count(*n),
                        Passes::While(slot) => Until::Flag(flag(*slot)?),
                    },
                    body: program.stretch(*body),
                    next: copies(next)?,
                },
                Flow::Choice { flag: slot, number, arms } => Piece::Choice {
                    flag: flag(*slot)?,
                    number: *number,
                    arms: arms.iter().map(|(s, m)| Ok((program.stretch(*s), copies(m)?))).collect::<Result<_>>()?,
                },
            });
        }
        pieces.push(Piece::Straight(program.stretch(stretch).start..dispatches.len()));
        let renewed = program.renewed().map(|moves| copies(&moves)).transpose()?;
        let asks = program.flows.iter().any(|f| f.flag().is_some());
        let answer = asks.then(|| self.buffer("read-back", ANSWER, U::MAP_READ | U::COPY_DST));
        let places: Vec<Option<Where>> = program
            .slots
            .iter()
            .map(|s| match s.place {
                Place::Buffer(buffer, at) => Some(Where { buffer, at, bytes: s.bytes }),
                _ => None,
            })
            .collect();
        let mut staging_bytes = 0u64;
        let mut outputs = Vec::with_capacity(program.outputs.len());
        for p in &program.outputs {
            let place = places.get(p.slot).copied().flatten().ok_or_else(|| bug("an output without memory"))?;
            let direct = usages.get(place.buffer).is_some_and(|u| u.contains(U::MAP_READ));
            outputs.push(Out { port: p.clone(), place, direct, at: staging_bytes });
            if !direct {
                staging_bytes += p.gpu_bytes().next_multiple_of(256);
            }
        }
        let mut inputs = Vec::with_capacity(program.inputs.len());
        for p in &program.inputs {
            // An input that no operator reads has no memory.
            inputs.push((p.clone(), places.get(p.slot).copied().flatten()));
        }
        let staging = (staging_bytes > 0).then(|| self.buffer("read-back", staging_bytes, U::MAP_READ | U::COPY_DST));
        Ok(Loaded {
            device: self.device.clone(),
            queue: self.queue.clone(),
            faults: self.faults.clone(),
            timeout: self.options.timeout,
            timestamps: self.caps.timestamps,
            labels: program.kernels.iter().map(KernelKey::label).collect(),
            buffers,
            places,
            dispatches,
            pieces,
            renewed,
            keep: false,
            held: false,
            answer,
            inputs,
            outputs,
            attached: Default::default(),
            _share: share,
            staging,
            scratch: Vec::new(),
        })
    }
}

/// A device with the features that `caps` counts on.
/// `known`: the subgroup operations are there whether or not they are asked for.
async fn request(adapter: &wgpu::Adapter, caps: &Caps, known: bool) -> Result<(wgpu::Device, wgpu::Queue)> {
    let mut features = wgpu::Features::empty();
    for (want, feature) in [
        (caps.f16, wgpu::Features::SHADER_F16),
        (caps.subgroups.is_some() && !known, wgpu::Features::SUBGROUP),
        (caps.timestamps, wgpu::Features::TIMESTAMP_QUERY),
        (caps.mappable, wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
        (caps.int64, wgpu::Features::SHADER_INT64),
        (caps.matrices != Matrices::default(), wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
    ] {
        if want {
            features |= feature;
        }
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("litegpu"),
        required_features: features,
        required_limits: adapter.limits(),
        experimental_features: experimental(caps),
        ..Default::default()
    };
    let refused = |e: wgpu::RequestDeviceError| GpuError::new(GpuErrorKind::Refused, e.to_string());
    adapter.request_device(&descriptor).await.map_err(refused)
}

/// Leave to use what wgpu calls experimental: cooperative matrices.
#[allow(unsafe_code)]
fn experimental(caps: &Caps) -> wgpu::ExperimentalFeatures {
    if caps.matrices == Matrices::default() {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the call says that its caller knows of possible bugs in such features. One is used, by one kernel, whose
    // loads and stores of matrices lie within its workgroup memory by constants of its own text.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// Asks for a pipeline now; the future waits for the verdict.
fn compile_one(
    device: &wgpu::Device,
    key: &KernelKey,
    pattern: &[(u32, Access)],
) -> impl Future<Output = Result<Compiled>> + use<> {
    let label = key.label();
    let asked = litegpu_shaders::source(key).map(|text| ask(device, key, &label, text, pattern));
    async move {
        let (compiled, verdict) = asked.map_err(|e| GpuError::new(GpuErrorKind::Internal, e))?;
        match verdict.await {
            Some(e) => Err(GpuError::new(GpuErrorKind::Internal, format!("kernel {label}: {e}"))),
            None => Ok(compiled),
        }
    }
}

fn ask(
    device: &wgpu::Device,
    key: &KernelKey,
    label: &str,
    text: String,
    pattern: &[(u32, Access)],
) -> (Compiled, impl Future<Output = Option<wgpu::Error>> + use<>) {
    // Browsers want the directive; naga knows the functions but not the directive.
    let text = match cfg!(target_family = "wasm") && text.contains("subgroup") {
        true => format!("enable subgroups;\n{text}"),
        false => text,
    };
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    let buffer = |binding: u32, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![buffer(0, wgpu::BufferBindingType::Uniform)];
    entries.extend(pattern.iter().map(|&(binding, access)| {
        buffer(binding, wgpu::BufferBindingType::Storage { read_only: access == Access::Read })
    }));
    let layout =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(label),
        bind_group_layouts: &[Some(&layout)],
        ..Default::default()
    });
    let constants: Vec<(&str, f64)> = key.constants.iter().map(|&(name, v)| (name, f64::from(v))).collect();
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &constants,
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    (Compiled { pipeline, layout }, scope.pop())
}

/// What kernels are dispatched with when only their compilation counts: memory that is not read, results that nobody
/// wants.
#[cfg(not(target_family = "wasm"))]
struct Bench<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    timeout: Duration,
    uniform: wgpu::Buffer,
    read: wgpu::Buffer,
    write: wgpu::Buffer,
}

#[cfg(not(target_family = "wasm"))]
impl<'a> Bench<'a> {
    fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue, timeout: Duration) -> Bench<'a> {
        // More than the fixed part of any binding.
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("compile"),
                size: 64 << 10,
                usage,
                mapped_at_creation: false,
            })
        };
        let [read, write] = [(); 2].map(|()| buffer(wgpu::BufferUsages::STORAGE));
        Bench { device, queue, timeout, uniform: buffer(wgpu::BufferUsages::UNIFORM), read, write }
    }

    /// Compiles a kernel and dispatches no workgroup of it.
    fn dispatch(&self, key: &KernelKey, pattern: &[(u32, Access)]) -> Result<Compiled> {
        let compiled = pollster::block_on(compile_one(self.device, key, pattern))?;
        fn entry(binding: u32, buffer: &wgpu::Buffer) -> wgpu::BindGroupEntry<'_> {
            wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
        }
        let mut entries = vec![entry(0, &self.uniform)];
        entries.extend(pattern.iter().map(|&(binding, access)| match access {
            Access::Read => entry(binding, &self.read),
            Access::Write | Access::Beside => entry(binding, &self.write),
        }));
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &compiled.layout,
            entries: &entries,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&compiled.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(0, 1, 1);
        }
        let index = self.queue.submit([encoder.finish()]);
        let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(self.timeout) };
        match self.device.poll(wait) {
            Ok(_) => Ok(compiled),
            Err(e) => Err(GpuError::new(GpuErrorKind::Timeout, e.to_string())),
        }
    }
}

async fn pick(instance: &wgpu::Instance, options: &EngineOptions) -> Result<wgpu::Adapter> {
    let usable = |a: &wgpu::Adapter| options.allow_software || class_of(&a.get_info()) != AdapterClass::Software;
    if let Some(name) = &options.adapter {
        let want = name.to_lowercase();
        let list = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let names: Vec<String> = list.iter().map(|a| a.get_info().name).collect();
        let hit = list.into_iter().find(|a| {
            let i = a.get_info();
            format!("{} {} {}", i.name, i.driver, i.driver_info).to_lowercase().contains(&want)
        });
        return match hit {
            Some(a) => Ok(a),
            None => {
                Err(GpuError::new(GpuErrorKind::NoAdapter, format!("none is called '{name}'; there are {names:?}")))
            }
        };
    }
    let power_preference = match options.power {
        Power::Any => wgpu::PowerPreference::None,
        Power::Low => wgpu::PowerPreference::LowPower,
        Power::High => wgpu::PowerPreference::HighPerformance,
    };
    let mut why = String::new();
    for force_fallback_adapter in [false, true] {
        let request = wgpu::RequestAdapterOptions {
            power_preference,
            force_fallback_adapter,
            compatible_surface: None,
            ..Default::default()
        };
        match instance.request_adapter(&request).await {
            Ok(a) if usable(&a) => return Ok(a),
            Ok(a) => why = format!("{} runs shaders on the CPU, which the options exclude", a.get_info().name),
            Err(e) if why.is_empty() => why = e.to_string(),
            Err(_) => {}
        }
        if !options.allow_software {
            break;
        }
    }
    Err(GpuError::new(GpuErrorKind::NoAdapter, why))
}

fn gpu_error(e: wgpu::Error) -> GpuError {
    match e {
        wgpu::Error::OutOfMemory { .. } => GpuError::new(GpuErrorKind::OutOfMemory, e.to_string()),
        wgpu::Error::Validation { .. } | wgpu::Error::Internal { .. } => {
            GpuError::new(GpuErrorKind::Internal, e.to_string())
        }
    }
}

fn check_faults(faults: &Mutex<Faults>) -> Result<()> {
    let mut f = lock(faults);
    if let Some(why) = &f.lost {
        return Err(GpuError::new(GpuErrorKind::Lost, why.clone()));
    }
    f.error.take().map_or(Ok(()), Err)
}

/// Bytes in a device's memory.
#[derive(Debug, Clone)]
pub struct DeviceMemory(wgpu::Buffer);

impl DeviceMemory {
    /// A buffer of the device that an engine [shares](Engine::share), with the usage `COPY_SRC` for operands and `COPY_DST`
    /// for results, and as long as the port says.
    pub fn from_buffer(buffer: wgpu::Buffer) -> DeviceMemory {
        DeviceMemory(buffer)
    }

    /// Whether it can hold an operand, or with `result` a result, of so many bytes; or why not.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, result: bool, bytes: u64) -> std::result::Result<(), String> {
        let usage = if result { wgpu::BufferUsages::COPY_DST } else { wgpu::BufferUsages::COPY_SRC };
        if self.0.size() < bytes {
            return Err(format!("a buffer of {} bytes for {bytes}", self.0.size()));
        }
        match self.0.usage().contains(usage) {
            true => Ok(()),
            false => Err(format!("a buffer without the usage {usage:?}")),
        }
    }

    /// The buffer.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.0
    }
}

struct Ready {
    node: NodeId,
    members: Vec<Member>,
    kernel: usize,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    groups: [u32; 3],
}

/// Bytes that a decision is read back as: one word is wanted.
const ANSWER: u64 = 16;
/// Dispatches and copies after which what is recorded is handed to the device.
const BATCH: usize = 1024;
/// Passes of a loop after which it counts as endless.
const MAX_PASSES: usize = 1 << 20;

/// A copy within the device's memory.
struct Copy {
    from: wgpu::Buffer,
    from_at: u64,
    to: wgpu::Buffer,
    to_at: u64,
    bytes: u64,
}

/// How long a loop goes on.
enum Until {
    Count(u32),
    Flag((wgpu::Buffer, u64)),
}

/// A program's share of the device's memory, given back with it.
struct Share {
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What runs in order: dispatches, and what decides about dispatches.
enum Piece {
    Straight(Range<usize>),
    Loop { first: Vec<Copy>, cond: Range<usize>, until: Until, body: Range<usize>, next: Vec<Copy> },
    Choice { flag: (wgpu::Buffer, u64), number: bool, arms: Vec<(Range<usize>, Vec<Copy>)> },
}

/// A range of an activation buffer.
#[derive(Debug, Clone, Copy)]
struct Where {
    buffer: usize,
    at: u64,
    bytes: u64,
}

struct Out {
    port: Port,
    place: Where,
    /// Mapped where it is, instead of copied to the staging buffer.
    direct: bool,
    at: u64,
}

fn copy(encoder: &mut wgpu::CommandEncoder, copies: &[Copy]) {
    for c in copies {
        encoder.copy_buffer_to_buffer(&c.from, c.from_at, &c.to, c.to_at, c.bytes);
    }
}

/// The end of a run's time. A browser has no clock here; its own limit ends what takes too long.
struct Deadline {
    #[cfg(not(target_family = "wasm"))]
    end: std::time::Instant,
}

impl Deadline {
    fn new(after: Duration) -> Deadline {
        #[cfg(target_family = "wasm")]
        let _ = after;
        Deadline {
            #[cfg(not(target_family = "wasm"))]
            end: std::time::Instant::now() + after,
        }
    }
    fn is_over(&self) -> bool {
        #[cfg(not(target_family = "wasm"))]
        return std::time::Instant::now() >= self.end;
        #[cfg(target_family = "wasm")]
        return false;
    }
}

fn attach(list: &mut HashMap<usize, DeviceMemory>, port: usize, memory: Option<DeviceMemory>) {
    match memory {
        Some(m) => list.insert(port, m),
        None => list.remove(&port),
    };
}

/// The time of one dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The operator.
    pub node: NodeId,
    /// The kernel's label.
    pub kernel: String,
    /// GPU time.
    pub time: Duration,
}

/// A program on a device, ready to run any number of times.
pub struct Loaded {
    device: wgpu::Device,
    queue: wgpu::Queue,
    faults: Arc<Mutex<Faults>>,
    timeout: Duration,
    timestamps: bool,
    labels: Vec<String>,
    buffers: Vec<wgpu::Buffer>,
    places: Vec<Option<Where>>,
    dispatches: Vec<Ready>,
    pieces: Vec<Piece>,
    /// Brings states to where the next run finds them, if that can be done.
    renewed: Option<Vec<Copy>>,
    /// They are as it left them, says the caller.
    keep: bool,
    /// The last run left them.
    held: bool,
    /// Where decisions are read back to, if there are any.
    answer: Option<wgpu::Buffer>,
    inputs: Vec<(Port, Option<Where>)>,
    outputs: Vec<Out>,
    /// What stands in for the host's bytes, for inputs and for outputs.
    attached: [HashMap<usize, DeviceMemory>; 2],
    _share: Share,
    staging: Option<wgpu::Buffer>,
    scratch: Vec<u8>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loaded({} dispatches)", self.dispatches.len())
    }
}

impl Loaded {
    /// The ports that [`Loaded::run`] reads, in order.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = &Port> {
        self.inputs.iter().map(|(p, _)| p)
    }

    /// The ports that [`Loaded::run`] writes, in order.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = &Port> {
        self.outputs.iter().map(|o| &o.port)
    }

    /// Reads an input from device memory, in the port's own layout ([`Port::gpu_bytes`] of it), instead of the host's
    /// bytes; `None` ends that. The host's bytes for such a port may be empty.
    pub fn attach_input(&mut self, input: usize, memory: Option<DeviceMemory>) {
        attach(&mut self.attached[0], input, memory);
    }

    /// Writes an output to device memory, in the port's own layout, instead of the host's bytes.
    pub fn attach_output(&mut self, output: usize, memory: Option<DeviceMemory>) {
        attach(&mut self.attached[1], output, memory);
    }

    /// Says of the runs to come whether nobody but this program changes its states between them: they are then not brought
    /// in again. Their bytes are read back in any case, so that the host has them when the device is lost.
    pub fn keep_states(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Dispatches in a run.
    pub fn dispatches(&self) -> usize {
        self.dispatches.len()
    }

    /// Runs the program: bytes in the order of its ports, dense and little endian, as the graph declares the tensors.
    ///
    /// # Errors
    /// `Invalid` when the bytes do not fit, `Lost`, `Timeout`, or what the driver reported.
    pub async fn run(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<()> {
        self.upload(inputs)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        self.fetch(&mut encoder);
        for piece in &self.pieces {
            encoder = self.follow(encoder, piece).await?;
        }
        self.stage(&mut encoder);
        let index = self.queue.submit([encoder.finish()]);
        self.download(index, outputs).await
    }

    /// Records some of the dispatches.
    fn record(&self, encoder: &mut wgpu::CommandEncoder, range: &Range<usize>) {
        let dispatches = self.dispatches.get(range.clone()).unwrap_or_default();
        if dispatches.is_empty() {
            return;
        }
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let mut last = usize::MAX;
        for d in dispatches {
            if d.kernel != last {
                pass.set_pipeline(&d.pipeline);
                last = d.kernel;
            }
            pass.set_bind_group(0, &d.group, &[]);
            pass.dispatch_workgroups(d.groups[0], d.groups[1], d.groups[2]);
        }
    }

    /// Records a piece, and hands over what must have run before the rest of it is known. What is not handed over yet
    /// comes back.
    async fn follow(&self, mut encoder: wgpu::CommandEncoder, piece: &Piece) -> Result<wgpu::CommandEncoder> {
        match piece {
            Piece::Straight(range) => self.record(&mut encoder, range),
            Piece::Loop { first, cond, until, body, next } => {
                copy(&mut encoder, first);
                let Until::Flag(flag) = until else {
                    let Until::Count(passes) = until else { return Ok(encoder) };
                    let mut pending = 0;
                    for _ in 0..*passes {
                        self.record(&mut encoder, body);
                        copy(&mut encoder, next);
                        pending += body.len() + next.len() + 1;
                        if pending > BATCH {
                            self.queue.submit([encoder.finish()]);
                            encoder = self.device.create_command_encoder(&Default::default());
                            pending = 0;
                        }
                    }
                    return Ok(encoder);
                };
                let clock = Deadline::new(self.timeout);
                for _ in 0..MAX_PASSES {
                    self.record(&mut encoder, cond);
                    if self.ask(encoder, flag).await?[0] == 0 {
                        return Ok(self.device.create_command_encoder(&Default::default()));
                    }
                    if clock.is_over() {
                        break;
                    }
                    encoder = self.device.create_command_encoder(&Default::default());
                    self.record(&mut encoder, body);
                    copy(&mut encoder, next);
                }
                let message = format!("a loop has not ended after {:?}", self.timeout);
                return Err(GpuError::new(GpuErrorKind::Timeout, message));
            }
            Piece::Choice { flag, number, arms } => {
                let word = self.ask(encoder, flag).await?;
                let chosen = match number {
                    true => usize::try_from(i32::from_le_bytes(word)).unwrap_or(usize::MAX),
                    false => usize::from(word[0] == 0),
                };
                encoder = self.device.create_command_encoder(&Default::default());
                if let Some((range, results)) = arms.get(chosen).or(arms.last()) {
                    self.record(&mut encoder, range);
                    copy(&mut encoder, results);
                }
            }
        }
        Ok(encoder)
    }

    /// Runs what is recorded, and reads back the word that decides how to go on.
    async fn ask(&self, mut encoder: wgpu::CommandEncoder, (flag, at): &(wgpu::Buffer, u64)) -> Result<[u8; 4]> {
        let bug = |what: &str| GpuError::new(GpuErrorKind::Internal, what);
        let Some(answer) = &self.answer else { return Err(bug("a decision without memory")) };
        encoder.copy_buffer_to_buffer(flag, *at, answer, 0, ANSWER);
        let index = self.queue.submit([encoder.finish()]);
        let done = Signal::default();
        let signal = done.clone();
        answer.map_async(wgpu::MapMode::Read, .., move |r| signal.set(r.is_ok()));
        self.wait(Some(index))?;
        if !done.await {
            check_faults(&self.faults)?;
            return Err(GpuError::new(GpuErrorKind::Lost, "a decision could not be read"));
        }
        let word = {
            let view = answer.get_mapped_range(..).map_err(|e| bug(&e.to_string()))?;
            view.first_chunk::<4>().copied().unwrap_or_default()
        };
        answer.unmap();
        Ok(word)
    }

    /// [`Loaded::run`], blocking.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    #[cfg(not(target_family = "wasm"))]
    pub fn run_blocking(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<()> {
        pollster::block_on(self.run(inputs, outputs))
    }

    /// Runs the program with each dispatch timed: slower than [`Loaded::run`], since every dispatch is a pass of its
    /// own. Times are empty where the adapter has no timestamps, and for a program with loops or choices.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    pub async fn profile(&mut self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<Vec<Timing>> {
        const MAX_QUERIES: usize = 4096;
        if !self.timestamps || self.dispatches.is_empty() || self.pieces.len() > 1 {
            self.run(inputs, outputs).await?;
            return Ok(Vec::new());
        }
        self.upload(inputs)?;
        let timed = self.dispatches.len().min(MAX_QUERIES / 2);
        let bytes = timed as u64 * 16;
        let set = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("profile"),
            ty: wgpu::QueryType::Timestamp,
            count: timed as u32 * 2,
        });
        let buffer = |usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("profile"),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let readable = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        self.fetch(&mut encoder);
        for (i, d) in self.dispatches.iter().enumerate() {
            let writes = (i < timed).then(|| wgpu::ComputePassTimestampWrites {
                query_set: &set,
                beginning_of_pass_write_index: Some(i as u32 * 2),
                end_of_pass_write_index: Some(i as u32 * 2 + 1),
            });
            let mut pass =
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes });
            pass.set_pipeline(&d.pipeline);
            pass.set_bind_group(0, &d.group, &[]);
            pass.dispatch_workgroups(d.groups[0], d.groups[1], d.groups[2]);
        }
        encoder.resolve_query_set(&set, 0..timed as u32 * 2, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &readable, 0, bytes);
        self.stage(&mut encoder);
        let index = self.queue.submit([encoder.finish()]);
        self.download(index, outputs).await?;
        let done = Signal::default();
        let signal = done.clone();
        readable.map_async(wgpu::MapMode::Read, .., move |r| signal.set(r.is_ok()));
        self.wait(None)?;
        if !done.await {
            return Err(GpuError::new(GpuErrorKind::Internal, "the times could not be read"));
        }
        let view = readable.get_mapped_range(..).map_err(|e| GpuError::new(GpuErrorKind::Internal, e.to_string()))?;
        let tick = f64::from(self.queue.get_timestamp_period());
        let mut times = Vec::new();
        for (t, d) in view.as_chunks::<16>().0.iter().zip(&self.dispatches) {
            let (a, b) = t.split_at(8);
            let read = |s: &[u8]| s.first_chunk::<8>().map_or(0, |c| u64::from_le_bytes(*c));
            let time = Duration::from_nanos((read(b).saturating_sub(read(a)) as f64 * tick) as u64);
            let part = |m: &Member| Timing { node: m.node, kernel: m.label.clone(), time: time.mul_f32(m.share) };
            times.extend(d.members.iter().map(part));
            if d.members.is_empty() {
                let kernel = self.labels.get(d.kernel).cloned().unwrap_or_default();
                times.push(Timing { node: d.node, kernel, time });
            }
        }
        Ok(times)
    }

    /// The bytes of a slot after a run, padding included; `None` for a constant. For tests.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    pub async fn peek(&mut self, slot: SlotId) -> Result<Option<Vec<u8>>> {
        let Some(Where { buffer, at, bytes }) = self.places.get(slot).copied().flatten() else { return Ok(None) };
        let Some(buffer) = self.buffers.get(buffer) else { return Ok(None) };
        let readable = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("peek"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, at, &readable, 0, bytes);
        let index = self.queue.submit([encoder.finish()]);
        let done = Signal::default();
        let signal = done.clone();
        readable.map_async(wgpu::MapMode::Read, .., move |r| signal.set(r.is_ok()));
        self.wait(Some(index))?;
        if !done.await {
            return Err(GpuError::new(GpuErrorKind::Internal, "a slot could not be read"));
        }
        let view = readable.get_mapped_range(..).map_err(|e| GpuError::new(GpuErrorKind::Internal, e.to_string()))?;
        Ok(Some(view.to_vec()))
    }

    /// [`Loaded::peek`], blocking.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    #[cfg(not(target_family = "wasm"))]
    pub fn peek_blocking(&mut self, slot: SlotId) -> Result<Option<Vec<u8>>> {
        pollster::block_on(self.peek(slot))
    }

    /// Fills a slot with a byte before a run. For tests.
    pub fn poke(&mut self, slot: SlotId, byte: u8) {
        if let Some(Where { buffer, at, bytes }) = self.places.get(slot).copied().flatten()
            && let Some(buffer) = self.buffers.get(buffer)
        {
            self.queue.write_buffer(buffer, at, &vec![byte; bytes as usize]);
        }
    }

    fn upload(&mut self, inputs: &[&[u8]]) -> Result<()> {
        check_faults(&self.faults)?;
        if inputs.len() != self.inputs.len() {
            let message = format!("{} inputs given, {} expected", inputs.len(), self.inputs.len());
            return Err(GpuError::new(GpuErrorKind::Invalid, message));
        }
        let kept = std::mem::take(&mut self.held) && self.keep && self.renewed.is_some();
        for (i, ((port, place), bytes)) in self.inputs.iter().zip(inputs).enumerate() {
            if self.attached[0].contains_key(&i) || (kept && port.state) {
                continue;
            }
            if bytes.len() != port.host_bytes() {
                let message = format!(
                    "tensor {}: {} bytes given, {} of shape {:?} needs {}",
                    port.tensor,
                    bytes.len(),
                    port.dtype,
                    port.shape.as_slice(),
                    port.host_bytes()
                );
                return Err(GpuError::new(GpuErrorKind::Invalid, message));
            }
            let Some(Where { buffer, at, .. }) = *place else { continue };
            let Some(buffer) = self.buffers.get(buffer) else { continue };
            let (dtype, shape) = port.stored();
            let same = dtype.bits() == port.elem.quad_bytes() * 2;
            if same && shape.last().is_some_and(|d| d % 4 == 0) {
                self.put(buffer, at, bytes);
                continue;
            }
            let size = crate::program::quads(&shape) * port.elem.quad_bytes();
            self.scratch.resize(size, 0);
            if !convert::upload(dtype, &shape, port.elem, bytes, &mut self.scratch) {
                let message = format!("tensor {} holds values that do not fit into 32 bits", port.tensor);
                return Err(GpuError::new(GpuErrorKind::Invalid, message));
            }
            self.put(buffer, at, &self.scratch);
        }
        Ok(())
    }

    /// Writes to a buffer that no run uses: where it lies if it can be mapped, or else by way of the queue.
    fn put(&self, buffer: &wgpu::Buffer, at: u64, bytes: &[u8]) {
        let mappable = cfg!(not(target_family = "wasm")) && buffer.usage().contains(wgpu::BufferUsages::MAP_WRITE);
        if mappable && !bytes.is_empty() {
            let (done, range) = (Signal::default(), at..at + bytes.len() as u64);
            let signal = done.clone();
            buffer.map_async(wgpu::MapMode::Write, range.clone(), move |r| signal.set(r.is_ok()));
            // Another session that polls the device may be the one that maps the buffer, and not have done so yet: what
            // gave up then would find it mapped later.
            let since = std::time::Instant::now();
            while done.now().is_none() && since.elapsed() < self.timeout {
                let _ = self.device.poll(wgpu::PollType::Poll);
                std::thread::yield_now();
            }
            let there = done.now();
            let view = if there == Some(true) { buffer.get_mapped_range_mut(range).ok() } else { None };
            let written = view.map(|mut view| view.slice(..).copy_from_slice(bytes)).is_some();
            if there != Some(false) {
                buffer.unmap();
            }
            if written {
                return;
            }
        }
        self.queue.write_buffer(buffer, at, bytes);
    }

    /// Copies attached inputs into place.
    fn fetch(&self, encoder: &mut wgpu::CommandEncoder) {
        for (i, from) in &self.attached[0] {
            if let Some((port, Some(place))) = self.inputs.get(*i)
                && let Some(to) = self.buffers.get(place.buffer)
            {
                encoder.copy_buffer_to_buffer(&from.0, 0, to, place.at, port.gpu_bytes());
            }
        }
    }

    fn stage(&self, encoder: &mut wgpu::CommandEncoder) {
        copy(encoder, self.renewed.as_deref().unwrap_or_default());
        for (i, o) in self.outputs.iter().enumerate() {
            if let (Some(to), Some(from)) = (self.attached[1].get(&i), self.buffers.get(o.place.buffer)) {
                encoder.copy_buffer_to_buffer(from, o.place.at, &to.0, 0, o.port.gpu_bytes());
                continue;
            }
            if let (false, Some(from), Some(staging)) = (o.direct, self.buffers.get(o.place.buffer), &self.staging) {
                encoder.copy_buffer_to_buffer(from, o.place.at, staging, o.at, o.port.gpu_bytes());
            }
        }
    }

    async fn download(&mut self, index: wgpu::SubmissionIndex, outputs: &mut [&mut [u8]]) -> Result<()> {
        if outputs.len() != self.outputs.len() {
            let message = format!("{} outputs given, {} expected", outputs.len(), self.outputs.len());
            return Err(GpuError::new(GpuErrorKind::Invalid, message));
        }
        let mut mapped: Vec<&wgpu::Buffer> = Vec::new();
        let mut signals = Vec::new();
        let attached = &self.attached[1];
        let here = self.outputs.iter().enumerate().filter(|(i, _)| !attached.contains_key(i)).map(|(_, o)| o);
        let wanted = here.clone().filter(|o| o.direct).filter_map(|o| self.buffers.get(o.place.buffer));
        let staging = self.staging.iter().filter(|_| here.clone().any(|o| !o.direct));
        for buffer in wanted.chain(staging) {
            if mapped.contains(&buffer) {
                continue;
            }
            mapped.push(buffer);
            let done = Signal::default();
            let signal = done.clone();
            buffer.map_async(wgpu::MapMode::Read, .., move |r| signal.set(r.is_ok()));
            signals.push(done);
        }
        let waited = self.wait(Some(index));
        let mut ok = waited.is_ok();
        if ok {
            for s in signals {
                ok &= s.await;
            }
        }
        let mut result = waited.and_then(|()| check_faults(&self.faults));
        if result.is_ok() && !ok {
            // Nothing else keeps a buffer of ours from being mapped.
            result = Err(GpuError::new(GpuErrorKind::Lost, "an output could not be mapped"));
        }
        if result.is_ok() {
            for (i, (o, to)) in self.outputs.iter().zip(outputs).enumerate() {
                if self.attached[1].contains_key(&i) {
                    continue;
                }
                if to.len() != o.port.host_bytes() {
                    let message = format!("tensor {}: room for {} bytes", o.port.tensor, to.len());
                    result = Err(GpuError::new(GpuErrorKind::Invalid, message));
                    break;
                }
                let (buffer, at) = match (o.direct, &self.staging) {
                    (false, Some(s)) => (Some(s), o.at),
                    _ => (self.buffers.get(o.place.buffer), o.place.at),
                };
                let Some(buffer) = buffer else { continue };
                match buffer.get_mapped_range(at..at + o.port.gpu_bytes()) {
                    Ok(view) => convert::download(&o.port, &view, to),
                    Err(e) => {
                        result = Err(GpuError::new(GpuErrorKind::Internal, e.to_string()));
                        break;
                    }
                }
            }
        }
        for buffer in mapped {
            buffer.unmap();
        }
        self.held = result.is_ok();
        result
    }

    /// Drives the device until the submission is done. In a browser the event loop does that.
    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        match self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(self.timeout) }) {
            Ok(_) => check_faults(&self.faults),
            Err(wgpu::PollError::Timeout) => {
                let message = format!("the GPU has not answered for {:?}", self.timeout);
                lock(&self.faults).lost.get_or_insert(message.clone());
                Err(GpuError::new(GpuErrorKind::Timeout, message))
            }
            Err(e) => Err(GpuError::new(GpuErrorKind::Internal, e.to_string())),
        }
    }
}

/// A flag that a callback sets and a task awaits.
#[derive(Debug, Clone, Default)]
struct Signal(Arc<Mutex<(Option<bool>, Option<Waker>)>>);

impl Signal {
    /// What it was set to, if it was.
    fn now(&self) -> Option<bool> {
        lock(&self.0).0
    }

    fn set(&self, ok: bool) {
        let waker = {
            let mut s = lock(&self.0);
            s.0 = Some(ok);
            s.1.take()
        };
        if let Some(w) = waker {
            w.wake();
        }
    }
}

impl Future for Signal {
    type Output = bool;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut s = lock(&self.0);
        match s.0 {
            Some(ok) => Poll::Ready(ok),
            None => {
                s.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
