//! Element types.

use crate::schema::TensorType;
use std::fmt;

macro_rules! dtypes {
    ($( $(#[$doc:meta])* $var:ident = $code:ident, $name:literal, $bits:literal; )*) => {
        /// The type of a tensor's elements, as the format has them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DType { $( $(#[$doc])* $var, )* }
        impl DType {
            /// From the file's code.
            pub fn from_code(code: TensorType) -> Option<DType> {
                match code { $( TensorType::$code => Some(DType::$var), )* _ => None }
            }
            /// The file's code.
            pub fn code(self) -> TensorType {
                match self { $( DType::$var => TensorType::$code, )* }
            }
            /// The field's usual name, e.g. `float32`.
            pub fn name(self) -> &'static str {
                match self { $( DType::$var => $name, )* }
            }
            /// Bits per element; 0 for types without a fixed size (string, resource, variant).
            pub fn bits(self) -> usize {
                match self { $( DType::$var => $bits, )* }
            }
        }
    };
}

dtypes! {
    /// 32-bit IEEE float.
    F32 = FLOAT32, "float32", 32;
    /// 16-bit IEEE float.
    F16 = FLOAT16, "float16", 16;
    /// bfloat16.
    BF16 = BFLOAT16, "bfloat16", 16;
    /// 64-bit IEEE float.
    F64 = FLOAT64, "float64", 64;
    /// Signed 8-bit.
    I8 = INT8, "int8", 8;
    /// Unsigned 8-bit.
    U8 = UINT8, "uint8", 8;
    /// Signed 16-bit.
    I16 = INT16, "int16", 16;
    /// Unsigned 16-bit.
    U16 = UINT16, "uint16", 16;
    /// Signed 32-bit.
    I32 = INT32, "int32", 32;
    /// Unsigned 32-bit.
    U32 = UINT32, "uint32", 32;
    /// Signed 64-bit.
    I64 = INT64, "int64", 64;
    /// Unsigned 64-bit.
    U64 = UINT64, "uint64", 64;
    /// Two to a byte, low nibble first.
    I4 = INT4, "int4", 4;
    /// Two to a byte, low nibble first.
    U4 = UINT4, "uint4", 4;
    /// Four to a byte, low bits first.
    I2 = INT2, "int2", 2;
    /// One byte, 0 or 1.
    Bool = BOOL, "bool", 8;
    /// Two float32: real, imaginary.
    C64 = COMPLEX64, "complex64", 64;
    /// Two float64: real, imaginary.
    C128 = COMPLEX128, "complex128", 128;
    /// 8-bit float, 4 exponent bits.
    F8E4M3 = FLOAT8_E4M3FN, "float8_e4m3fn", 8;
    /// 8-bit float, 5 exponent bits.
    F8E5M2 = FLOAT8_E5M2, "float8_e5m2", 8;
    /// Count, offsets and bytes in one buffer.
    String = STRING, "string", 0;
    /// A handle to a variable or a table.
    Resource = RESOURCE, "resource", 32;
    /// An opaque value (tensor lists).
    Variant = VARIANT, "variant", 0;
}

impl DType {
    /// Bytes of `elements` elements, packed types rounded up; `None` on overflow or for a type without a size.
    pub fn byte_len(self, elements: usize) -> Option<usize> {
        match self.bits() {
            0 => None,
            bits => elements.checked_mul(bits)?.checked_add(7).map(|b| b / 8),
        }
    }
    /// float16, bfloat16, float32, float64.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
