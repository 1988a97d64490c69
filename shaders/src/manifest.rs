//! The kernels: one row a file.

use crate::Elem;

/// One kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The file stem.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
    /// The library functions that the text itself calls.
    pub functions: &'static [&'static str],
    /// The roles whose element part it needs.
    pub roles: &'static [&'static str],
    /// The element types that each combination of roles may have: what lowering uses and tests validate.
    pub elems: &'static [&'static [Elem]],
    /// Combinations of functions under the names that the text calls them by: one list an alternative.
    pub variants: &'static [&'static [(&'static str, &'static str)]],
}

const F: [Elem; 3] = [Elem::F32, Elem::F16, Elem::F16Packed];

macro_rules! kernels {
    ($( $name:literal { $($field:ident: $value:expr),* $(,)? } )*) => {
        /// Every kernel.
        pub const KERNELS: &[Kernel] = &[$(
            Kernel {
                $($field: $value,)*
                ..Kernel {
                    name: $name,
                    text: include_str!(concat!("../", $name, ".wgsl")),
                    functions: &[], roles: &[], elems: &[], variants: &[],
                }
            },
        )*];
    };
}

kernels! {
    "unary" { roles: &["in0", "out"], elems: &[&[F[0], F[0]], &[F[1], F[1]], &[F[2], F[2]]] }
}

/// The kernel of that name.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name)
}
