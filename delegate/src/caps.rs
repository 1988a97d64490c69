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

/// How floats are kept between operators. Arithmetic is in f32 in either case, and constants are as in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// 16-bit storage of the tensors where it saves time ([`Caps::half_from`]): half the memory and the traffic.
    #[default]
    F16,
    /// 32-bit storage.
    F32,
}

/// [`Caps::half_from`] of a GPU: 256 KiB of 16-bit elements, beyond which tensors begin to miss its caches.
pub const HALF_FROM: usize = 128 << 10;

/// Which cooperative matrices an adapter multiplies, of those that kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Matrices {
    /// Of f16, summed in f32: how many rows and columns, 16 or 8.
    pub f16: Option<u32>,
    /// 8 by 8 of f32.
    pub f32: bool,
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
    /// Elements from which a float tensor is kept in 16 bits under [`Precision::F16`]. Smaller ones stay in a GPU's
    /// caches, where 32 bits cost nothing and every rounding that is spared counts; adapters that run shaders on the
    /// CPU gain nothing from 16 bits at any size.
    pub half_from: usize,
    /// Smallest and largest subgroup size, when subgroup operations are there.
    pub subgroups: Option<(u32, u32)>,
    /// Cooperative matrices, where subgroups have one size.
    pub matrices: Matrices,
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
            half_from: HALF_FROM,
            subgroups: None,
            matrices: Matrices::default(),
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

    /// How float activations of so many elements are stored.
    pub fn float(&self, precision: Precision, elements: usize) -> Elem {
        match precision {
            Precision::F16 if elements >= self.half_from => self.half(),
            _ => Elem::F32,
        }
    }
}
