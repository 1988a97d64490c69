//! What an adapter can do, as plain data: everything that lowering may decide on.

use litegpu_shaders::Elem;

/// The kind of adapter, which decides between kernel families and prices operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdapterClass {
    /// Shaders run on the CPU (lavapipe, SwiftShader, WARP).
    Software,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU with memory of its own.
    Discrete,
}

/// How floats are kept between operators. Arithmetic is in f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// 16-bit storage: half the memory and the traffic.
    #[default]
    F16,
    /// 32-bit storage.
    F32,
}

/// An adapter's capabilities, after the options that hide some of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Caps {
    /// The adapter's name.
    pub name: String,
    /// The graphics interface it is reached by, e.g. `vulkan`.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// The kind of adapter.
    pub class: AdapterClass,
    /// `shader-f16`: 16-bit types in shaders.
    pub f16: bool,
    /// Keep f16 two to a word even though `f16` is there, because that is faster.
    pub packed_f16: bool,
    /// Smallest and largest subgroup size, when subgroup operations are there.
    pub subgroups: Option<(u32, u32)>,
    /// Dispatches can be timed.
    pub timestamps: bool,
    /// Storage buffers can be mapped.
    pub mappable: bool,
    /// 64-bit integers in shaders.
    pub int64: bool,
    /// Largest buffer, in bytes.
    pub max_buffer: u64,
    /// Largest storage binding, in bytes.
    pub max_binding: u64,
    /// Workgroup memory, in bytes.
    pub max_workgroup_memory: u32,
    /// Invocations in a workgroup.
    pub max_invocations: u32,
    /// Workgroups in each direction of a dispatch.
    pub max_groups: u32,
    /// Storage buffers that a kernel may bind.
    pub max_storage_buffers: u32,
    /// Alignment of offsets into storage buffers.
    pub storage_align: u32,
    /// Alignment of offsets into uniform buffers.
    pub uniform_align: u32,
}

impl Caps {
    /// Capabilities that every WebGPU implementation has: for planning without an adapter, and for tests.
    pub fn baseline() -> Caps {
        Caps {
            name: "baseline".into(),
            backend: "none".into(),
            driver: String::new(),
            class: AdapterClass::Discrete,
            f16: false,
            packed_f16: true,
            subgroups: None,
            timestamps: false,
            mappable: false,
            int64: false,
            max_buffer: 256 << 20,
            max_binding: 128 << 20,
            max_workgroup_memory: 16 << 10,
            max_invocations: 256,
            max_groups: 65_535,
            max_storage_buffers: 8,
            storage_align: 256,
            uniform_align: 256,
        }
    }

    /// How f16 elements are stored on this adapter.
    pub fn half(&self) -> Elem {
        if self.f16 && !self.packed_f16 { Elem::F16 } else { Elem::F16Packed }
    }

    /// How float activations are stored.
    pub fn float(&self, precision: Precision) -> Elem {
        match precision {
            Precision::F16 => self.half(),
            Precision::F32 => Elem::F32,
        }
    }
}
