//! The kernels: one row a file.

use crate::Elem::{self, *};

/// One kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The file stem.
    pub name: &'static str,
    /// The files that its text is made of.
    files: &'static [&'static str],
    /// The library functions that the text itself calls.
    pub functions: &'static [&'static str],
    /// The roles, each with the ways its elements may be stored. `acc` stores nothing: it names the type that the
    /// epilogue starts from.
    pub roles: &'static [(&'static str, &'static [Elem])],
    /// The functions that the text calls under names of its own: one list an alternative, with what the epilogue then
    /// starts from where that is not the operands' type.
    pub variants: &'static [&'static [(&'static str, &'static str)]],
    /// It is completed by sections of octs.wgsl and channels.wgsl, in combinations that lowering makes and
    /// `tests/conv.rs` validates.
    pub parted: bool,
}

impl Kernel {
    /// Its text, which [`crate::source`] completes.
    pub fn text(&self) -> String {
        self.files.iter().map(|f| crate::file(f)).collect()
    }
}

const ANY: &[Elem] = &[F32, F16, F16Packed, I8, U8, Bool, I32];
const FLOAT: &[Elem] = &[F32, F16, F16Packed];
const WEIGHTS: &[Elem] = &[F32, F16, F16Packed, I8];
const BYTE: &[Elem] = &[I8, U8];
const ACC: &[Elem] = &[F32, I32];

macro_rules! kernels {
    ($( $name:literal { $($field:ident: $value:expr),* $(,)? } )*) => {
        /// Every kernel.
        pub const KERNELS: &[Kernel] = &[$(
            Kernel {
                $($field: $value,)*
                ..Kernel {
                    name: $name,
                    files: &[$name],
                    functions: &[], roles: &[], variants: &[], parted: false,
                }
            },
        )*];
    };
}

kernels! {
    "unary" { roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)] }
    "lut" {}
    "pairs" {}
    "ladder" { roles: &[("out", BYTE)] }
    "ceiling" { roles: &[("in0", &[F32]), ("out", &[F32])] }
    "binary" {
        roles: &[("in0", ANY), ("in1", ANY), ("acc", ACC), ("out", ANY)],
        variants: &[&[("OP", "f_add")], &[("OP", "i_add")], &[("OP", "bf_less")], &[("OP", "bi_less")]],
    }
    "qbinary" { functions: &["i_requant"], roles: &[("in0", BYTE), ("in1", BYTE), ("out", &[I8, U8, Bool])] }
    "pick" { roles: &[("in0", ANY), ("in1", ANY), ("out", ANY)] }
    "copy" { roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)] }
    "reduce" {
        roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)],
        variants: &[
            &[("COMBINE", "f_add"), ("CLOSE", "close_f")],
            &[("COMBINE", "f_max"), ("CLOSE", "close_f")],
            &[("COMBINE", "i_add"), ("CLOSE", "close_i")],
            &[("COMBINE", "i_max"), ("CLOSE", "close_i")],
        ],
        functions: &["i_requant"],
    }
    "attention" {
        roles: &[("q", FLOAT), ("k", FLOAT), ("v", FLOAT), ("mask", &[F32, F16, F16Packed, Bool]), ("acc", &[F32]), ("out", FLOAT)],
    }
    "argext" { roles: &[("in0", ANY), ("out", &[I32])] }
    "complex" { roles: &[("in0", &[F32]), ("acc", &[F32]), ("out", FLOAT)] }
    "cumsum" { roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)] }
    "diagonal" { roles: &[("in0", ANY), ("in1", ANY), ("acc", ACC), ("out", ANY)] }
    "dynamic" { functions: &["f_snap"], roles: &[("in0", FLOAT), ("out", FLOAT)] }
    "embedding" { roles: &[("acc", &[F32]), ("out", FLOAT)] }
    "fft" { roles: &[("in0", &[F32]), ("out", &[F32])] }
    "fill" { roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)] }
    "lrn" { functions: &["f_pow"], roles: &[("in0", FLOAT), ("acc", &[F32]), ("out", FLOAT)] }
    "lstm" {
        functions: &["f_logistic", "f_tanh", "f_snap"],
        roles: &[("w", WEIGHTS), ("acc", &[F32]), ("out", FLOAT)],
    }
    "lstm_fixed" {
        files: &["lstm_fixed", "parts/lstm_plain"],
        functions: &["i_requant4", "i_rounding_shift"],
        roles: &[("w", &[I8]), ("state", &[I8]), ("acc", &[I32]), ("out", &[I8, F32])],
    }
    "lstm_fixed_norm" {
        files: &["lstm_fixed", "parts/root", "parts/lstm_norm"],
        functions: &["i_requant4", "i_rounding_shift", "i_real"],
        roles: &[("w", &[I8]), ("state", &[I8]), ("acc", &[I32]), ("out", &[I8, F32])],
    }
    "rfft" { roles: &[("in0", FLOAT), ("out", &[F32])] }
    "reverse" { roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)] }
    "rms" { roles: &[("in0", FLOAT), ("in1", FLOAT), ("acc", &[F32]), ("out", FLOAT)] }
    "standardize" { roles: &[("in0", FLOAT), ("acc", &[F32]), ("out", FLOAT)] }
    "rnn" { functions: &["f_tanh", "f_snap"], roles: &[("w", WEIGHTS), ("acc", &[F32]), ("out", FLOAT)] }
    "svdf" {
        functions: &["i_requant4"],
        roles: &[("w", &[F32, F16, F16Packed, I8, I32]), ("acc", ACC), ("out", &[F32, F16, F16Packed, I8])],
    }
    "normalize" { functions: &["f_log"], roles: &[("in0", FLOAT), ("acc", &[F32]), ("out", FLOAT)] }
    "onehot" { roles: &[("in0", ANY), ("in1", ANY), ("acc", ACC), ("out", ANY)] }
    "qnormalize" {
        files: &["qnormalize", "parts/root"],
        functions: &["i_requant"],
        roles: &[("in0", BYTE), ("acc", &[I32]), ("out", BYTE)],
    }
    "scatter" {
        roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)],
        variants: &[
            &[("COMBINE", "f_add")],
            &[("COMBINE", "i_add")],
            &[("COMBINE", "later_f")],
            &[("COMBINE", "later_i")],
        ],
    }
    "topk" { roles: &[("in0", ANY)] }
    "update" { roles: &[("in0", ANY), ("in1", ANY), ("acc", ACC), ("out", ANY)] }
    "pool" {
        functions: &["i_mean"],
        roles: &[("in0", &[F32, F16, F16Packed, I8, U8]), ("acc", ACC), ("out", &[F32, F16, F16Packed, I8, U8])],
        variants: &[&[("CLOSE", "close_f")], &[("CLOSE", "close_i")]],
    }
    "resize" {
        roles: &[("in0", &[F32, F16, F16Packed, I8, U8]), ("acc", ACC), ("out", &[F32, F16, F16Packed, I8, U8])],
    }
    "gather" { roles: &[("in0", ANY), ("acc", ACC), ("out", ANY)] }
    "conv" { parted: true, files: &["parts/conv", "conv"] }
    "conv_four" { parted: true, files: &["parts/conv", "parts/sums", "conv_four"] }
    "conv_coop" { parted: true, files: &["parts/conv", "conv_coop"] }
    "conv_tile" { parted: true, files: &["parts/conv", "parts/sums", "conv_tile"] }
    "depthwise" { parted: true }
    "depthwise_four" { parted: true }
    "depthwise_rows" { parted: true }
    "depthwise_multi" { parted: true }
    "matvec" { parted: true }
    "blocks" { parted: true }
    "series" { parted: true }
    "matrix" { roles: &[("in0", &[F32, F16, F16Packed, I8, U8]), ("out", &[F32, F16, F16Packed, I8, U8])] }
}

/// The kernel of that name.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name)
}
