//! Element types with the arithmetic that StableHLO gives them: integers wrap, floats of 16 bits are computed in 32.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// A way to combine two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    Second,
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Pow,
    Max,
    Min,
    And,
    Or,
    Shl,
}

/// A truth value as tensors store it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Bool(u8);

pub(crate) trait Number: Pod + PartialOrd + Send + Sync {
    /// The function, where the type has it.
    fn fold(f: Fold) -> Option<fn(Self, Self) -> Self>;
    fn from_index(i: usize) -> Self;
    fn abs(self) -> Self;
    fn negate(self) -> Self;
}

/// Combines an element with another of the same type, both as bytes: what loops over elements is compiled once for
/// all types.
pub(crate) type Combine = dyn Fn(&mut [u8], &[u8]) + Send + Sync;

/// The function of `fold` on elements of type `T`, where the type has it. It panics where either side is no whole
/// element.
pub(crate) fn combine<T: Number>(fold: Fold) -> Option<Box<Combine>> {
    let f = T::fold(fold)?;
    Some(Box::new(move |to, x| {
        let (a, b): (T, T) = (bytemuck::pod_read_unaligned(to), bytemuck::pod_read_unaligned(x));
        to.copy_from_slice(bytemuck::bytes_of(&f(a, b)));
    }))
}

macro_rules! integers {
    ($($t:ident $wide:ident;)*) => { $(
        impl Number for $t {
            fn fold(f: Fold) -> Option<fn($t, $t) -> $t> {
                Some(match f {
                    Fold::Second => |_, b| b,
                    Fold::Add => |a, b| a.wrapping_add(b),
                    Fold::Sub => |a, b| a.wrapping_sub(b),
                    Fold::Mul => |a, b| a.wrapping_mul(b),
                    // Division by zero gives all ones, its remainder the dividend, as XLA has it.
                    Fold::Div => |a, b| if b == 0 { !0 } else { a.wrapping_div(b) },
                    Fold::Rem => |a, b| if b == 0 { a } else { a.wrapping_rem(b) },
                    Fold::Pow => return None,
                    Fold::Max => |a, b| a.max(b),
                    Fold::Min => |a, b| a.min(b),
                    Fold::And => |a, b| a & b,
                    Fold::Or => |a, b| a | b,
                    Fold::Shl => |a, b| u32::try_from(b).ok().and_then(|b| a.checked_shl(b)).unwrap_or(0),
                })
            }
            fn from_index(i: usize) -> $t {
                i as $t
            }
            fn abs(self) -> $t {
                integers!(@abs $wide self)
            }
            fn negate(self) -> $t {
                self.wrapping_neg()
            }
        }
    )* };
    (@abs signed $x:ident) => { $x.wrapping_abs() };
    (@abs unsigned $x:ident) => { $x };
}

integers! {
    i8 signed; i16 signed; i32 signed; i64 signed;
    u8 unsigned; u16 unsigned; u32 unsigned; u64 unsigned;
}

macro_rules! floats {
    ($($t:ident $wide:ident $down:expr, $up:expr;)*) => { $(
        impl Number for $t {
            fn fold(f: Fold) -> Option<fn($t, $t) -> $t> {
                Some(match f {
                    Fold::Second => |_, b| b,
                    Fold::Add => |a, b| $down($up(a) + $up(b)),
                    Fold::Sub => |a, b| $down($up(a) - $up(b)),
                    Fold::Mul => |a, b| $down($up(a) * $up(b)),
                    Fold::Div => |a, b| $down($up(a) / $up(b)),
                    Fold::Rem => |a, b| $down($up(a) % $up(b)),
                    Fold::Pow => |a, b| $down($wide::powf($up(a), $up(b))),
                    Fold::Max => |a, b| if a < b { b } else { a },
                    Fold::Min => |a, b| if b < a { b } else { a },
                    Fold::And | Fold::Or | Fold::Shl => return None,
                })
            }
            fn from_index(i: usize) -> $t {
                $down(i as $wide)
            }
            fn abs(self) -> $t {
                $down($wide::abs($up(self)))
            }
            fn negate(self) -> $t {
                -self
            }
        }
    )* };
}

floats! {
    f32 f32 std::convert::identity, std::convert::identity;
    f64 f64 std::convert::identity, std::convert::identity;
    f16 f32 f16::from_f32, f16::to_f32;
}

impl Number for Bool {
    fn fold(f: Fold) -> Option<fn(Bool, Bool) -> Bool> {
        Some(match f {
            Fold::Second => |_, b| b,
            Fold::Add | Fold::Max | Fold::Or => |a, b| Bool((a.0 != 0 || b.0 != 0) as u8),
            Fold::Mul | Fold::Min | Fold::And => |a, b| Bool((a.0 != 0 && b.0 != 0) as u8),
            Fold::Sub => |a, b| Bool((a.0 != b.0) as u8),
            Fold::Div | Fold::Rem | Fold::Pow | Fold::Shl => return None,
        })
    }
    fn from_index(i: usize) -> Bool {
        Bool((i != 0) as u8)
    }
    fn abs(self) -> Bool {
        self
    }
    fn negate(self) -> Bool {
        self
    }
}
