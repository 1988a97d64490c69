//! The closed operator table.
//!
//! One row declares an operator: its Rust variant, its builtin code in the file, the family (file stem) that
//! implements it, and the options table it carries. The row yields the names, the code both ways, and the reading
//! and the writing of the options together, so that a writer cannot disagree with its reader. Options tables that
//! have no field are not kept: they say nothing.

use crate::error::Error;
use crate::schema::*;
use bytes::Bytes;

/// A custom operator: its name and its options, as opaque bytes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CustomOp {
    /// `custom_code` of the operator's entry in the file, e.g. `TFLite_Detection_PostProcess`.
    pub name: String,
    /// The options; nearly always a flexbuffer map.
    pub options: Bytes,
}

macro_rules! op_table {
    ($( $var:ident = $code:ident : $fam:ident $(, $union:ident :: $tag:ident as $opt:ident)? ;)*) => {
        /// An operator with its attributes. Variants bear TFLite's own operator names; attributes are the format's
        /// options tables.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Op {
            $( #[allow(missing_docs)] $var $(($opt))?, )*
            /// An operator outside the builtin set, named by a string.
            Custom(CustomOp),
        }

        impl Op {
            /// Every builtin code in the table, in the table's order.
            pub const CODES: &'static [BuiltinOperator] = &[$(BuiltinOperator::$code),*];

            /// The operator's builtin code in the file.
            pub fn code(&self) -> BuiltinOperator {
                match self {
                    $( op_table!(@pat $var $(, $opt)?) => BuiltinOperator::$code, )*
                    Op::Custom(_) => BuiltinOperator::CUSTOM,
                }
            }

            /// The family, i.e. the file stem under `ops/`, that implements the operator.
            pub fn family(&self) -> Family {
                match self {
                    $( op_table!(@pat $var $(, $opt)?) => Family::$fam, )*
                    Op::Custom(_) => Family::Custom,
                }
            }

            /// TFLite's name: `CONV_2D`, or the custom operator's own name.
            pub fn name(&self) -> &str {
                match self {
                    $( op_table!(@pat $var $(, $opt)?) => stringify!($code), )*
                    Op::Custom(c) => &c.name,
                }
            }

            /// The operator that `code` names, with default options; `None` for CUSTOM and for codes that the
            /// table does not have.
            pub fn with_defaults(code: BuiltinOperator) -> Option<Op> {
                match code {
                    $( BuiltinOperator::$code => Some(op_table!(@new $var $(, $opt)?)), )*
                    _ => None,
                }
            }

            /// Joins a builtin code with the options read beside it. Absent options mean their defaults, as in
            /// LiteRT's parser; options of another operator's kind are an error.
            pub(crate) fn join(
                code: BuiltinOperator, one: BuiltinOptionsT, two: BuiltinOptions2T,
            ) -> Result<Op, Error> {
                // The messages once, and not in each of the arms.
                let (first, second) = (one.builtin_options_type(), two.builtin_options_2_type());
                let op = match code {
                    $( BuiltinOperator::$code => op_table!(@join one, two, $var $(, $union::$tag, $opt)?), )*
                    c => return Err(Error::unsupported(format!("builtin operator code {}", c.0))),
                };
                op.ok_or_else(|| match first == BuiltinOptions::NONE {
                    true => Error::invalid(format!("{code:?} carries options of another kind: {second:?}")),
                    false => Error::invalid(format!("{code:?} carries options of another kind: {first:?}")),
                })
            }

            /// Splits the operator into what the file stores.
            pub(crate) fn split(&self) -> (BuiltinOptionsT, BuiltinOptions2T) {
                #[allow(unused_mut)]
                let (mut one, mut two) = (BuiltinOptionsT::NONE, BuiltinOptions2T::NONE);
                match self {
                    $( op_table!(@bind o, $var $(, $opt)?) => {
                        op_table!(@split one, two, o $(, $union::$tag)?)
                    } )*
                    Op::Custom(_) => {}
                }
                (one, two)
            }
        }
    };
    (@pat $var:ident, $opt:ident) => { Op::$var(_) };
    (@pat $var:ident) => { Op::$var };
    (@bind $o:ident, $var:ident, $opt:ident) => { Op::$var($o) };
    (@bind $o:ident, $var:ident) => { Op::$var };
    (@new $var:ident, $opt:ident) => { Op::$var($opt::default()) };
    (@new $var:ident) => { Op::$var };
    (@join $one:ident, $two:ident, $var:ident, BuiltinOptionsT::$tag:ident, $opt:ident) => {
        match $one {
            BuiltinOptionsT::$tag(o) => Some(Op::$var(*o)),
            BuiltinOptionsT::NONE => Some(Op::$var($opt::default())),
            _ => None,
        }
    };
    (@join $one:ident, $two:ident, $var:ident, BuiltinOptions2T::$tag:ident, $opt:ident) => {
        match $two {
            BuiltinOptions2T::$tag(o) => Some(Op::$var(*o)),
            BuiltinOptions2T::NONE => Some(Op::$var($opt::default())),
            _ => None,
        }
    };
    (@join $one:ident, $two:ident, $var:ident) => {{ let _ = (&$one, &$two); Some(Op::$var) }};
    (@split $one:ident, $two:ident, $o:ident, BuiltinOptionsT::$tag:ident) => {
        $one = BuiltinOptionsT::$tag(Box::new($o.clone()))
    };
    (@split $one:ident, $two:ident, $o:ident, BuiltinOptions2T::$tag:ident) => {
        $two = BuiltinOptions2T::$tag(Box::new($o.clone()))
    };
    (@split $one:ident, $two:ident, $o:ident) => {{}};
}

/// An operator family: one file stem under `graph/src/ops`, `cpu-fallback/src/ops`, `delegate/src/ops`, `shaders`
/// and `tests/ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Family {
    Conv,
    Matmul,
    Pool,
    Unary,
    Binary,
    Select,
    Quantize,
    Normalize,
    Reduce,
    Reshape,
    Layout,
    Fill,
    Gather,
    Resize,
    Sort,
    Recurrent,
    Control,
    Signal,
    Text,
    Stablehlo,
    Custom,
}

op_table! {
    // Conv
    Conv2d = CONV_2D: Conv, BuiltinOptionsT::Conv2DOptions as Conv2DOptionsT;
    DepthwiseConv2d = DEPTHWISE_CONV_2D: Conv, BuiltinOptionsT::DepthwiseConv2DOptions as DepthwiseConv2DOptionsT;
    TransposeConv = TRANSPOSE_CONV: Conv, BuiltinOptionsT::TransposeConvOptions as TransposeConvOptionsT;
    Conv3d = CONV_3D: Conv, BuiltinOptionsT::Conv3DOptions as Conv3DOptionsT;
    Conv3dTranspose = CONV_3D_TRANSPOSE: Conv, BuiltinOptionsT::Conv3DOptions as Conv3DOptionsT;
    // Matmul
    FullyConnected = FULLY_CONNECTED: Matmul, BuiltinOptionsT::FullyConnectedOptions as FullyConnectedOptionsT;
    BatchMatmul = BATCH_MATMUL: Matmul, BuiltinOptionsT::BatchMatMulOptions as BatchMatMulOptionsT;
    // Pool
    AveragePool2d = AVERAGE_POOL_2D: Pool, BuiltinOptionsT::Pool2DOptions as Pool2DOptionsT;
    L2Pool2d = L2_POOL_2D: Pool, BuiltinOptionsT::Pool2DOptions as Pool2DOptionsT;
    MaxPool2d = MAX_POOL_2D: Pool, BuiltinOptionsT::Pool2DOptions as Pool2DOptionsT;
    // Unary
    Floor = FLOOR: Unary;
    Logistic = LOGISTIC: Unary;
    Relu = RELU: Unary;
    ReluN1To1 = RELU_N1_TO_1: Unary;
    Relu6 = RELU6: Unary;
    Tanh = TANH: Unary;
    Exp = EXP: Unary;
    Neg = NEG: Unary;
    Sin = SIN: Unary;
    Log = LOG: Unary;
    Sqrt = SQRT: Unary;
    Rsqrt = RSQRT: Unary;
    LogicalNot = LOGICAL_NOT: Unary;
    Square = SQUARE: Unary;
    ZerosLike = ZEROS_LIKE: Unary;
    LeakyRelu = LEAKY_RELU: Unary, BuiltinOptionsT::LeakyReluOptions as LeakyReluOptionsT;
    Abs = ABS: Unary;
    Ceil = CEIL: Unary;
    Cos = COS: Unary;
    Elu = ELU: Unary;
    Round = ROUND: Unary;
    HardSwish = HARD_SWISH: Unary;
    Gelu = GELU: Unary, BuiltinOptionsT::GeluOptions as GeluOptionsT;
    Relu0To1 = RELU_0_TO_1: Unary;
    Sign = SIGN: Unary;
    // Binary
    Add = ADD: Binary, BuiltinOptionsT::AddOptions as AddOptionsT;
    Mul = MUL: Binary, BuiltinOptionsT::MulOptions as MulOptionsT;
    Sub = SUB: Binary, BuiltinOptionsT::SubOptions as SubOptionsT;
    Div = DIV: Binary, BuiltinOptionsT::DivOptions as DivOptionsT;
    Prelu = PRELU: Binary;
    Maximum = MAXIMUM: Binary;
    Minimum = MINIMUM: Binary;
    Less = LESS: Binary;
    Greater = GREATER: Binary;
    GreaterEqual = GREATER_EQUAL: Binary;
    LessEqual = LESS_EQUAL: Binary;
    Equal = EQUAL: Binary;
    NotEqual = NOT_EQUAL: Binary;
    Pow = POW: Binary;
    LogicalOr = LOGICAL_OR: Binary;
    LogicalAnd = LOGICAL_AND: Binary;
    FloorDiv = FLOOR_DIV: Binary;
    FloorMod = FLOOR_MOD: Binary;
    SquaredDifference = SQUARED_DIFFERENCE: Binary;
    AddN = ADD_N: Binary;
    Atan2 = ATAN2: Binary;
    BitwiseXor = BITWISE_XOR: Binary;
    RightShift = RIGHT_SHIFT: Binary;
    // Select
    Select = SELECT: Select;
    Where = WHERE: Select;
    SelectV2 = SELECT_V2: Select;
    // Quantize
    Dequantize = DEQUANTIZE: Quantize;
    Cast = CAST: Quantize, BuiltinOptionsT::CastOptions as CastOptionsT;
    FakeQuant = FAKE_QUANT: Quantize, BuiltinOptionsT::FakeQuantOptions as FakeQuantOptionsT;
    Quantize = QUANTIZE: Quantize;
    Densify = DENSIFY: Quantize;
    Bitcast = BITCAST: Quantize;
    // Normalize
    L2Normalization = L2_NORMALIZATION: Normalize, BuiltinOptionsT::L2NormOptions as L2NormOptionsT;
    LocalResponseNormalization = LOCAL_RESPONSE_NORMALIZATION: Normalize, BuiltinOptionsT::LocalResponseNormalizationOptions as LocalResponseNormalizationOptionsT;
    Softmax = SOFTMAX: Normalize, BuiltinOptionsT::SoftmaxOptions as SoftmaxOptionsT;
    LogSoftmax = LOG_SOFTMAX: Normalize;
    // Reduce
    Mean = MEAN: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    ArgMax = ARG_MAX: Reduce, BuiltinOptionsT::ArgMaxOptions as ArgMaxOptionsT;
    Sum = SUM: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    ArgMin = ARG_MIN: Reduce, BuiltinOptionsT::ArgMinOptions as ArgMinOptionsT;
    ReduceProd = REDUCE_PROD: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    ReduceMax = REDUCE_MAX: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    ReduceMin = REDUCE_MIN: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    ReduceAny = REDUCE_ANY: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    SegmentSum = SEGMENT_SUM: Reduce;
    Cumsum = CUMSUM: Reduce, BuiltinOptionsT::CumsumOptions as CumsumOptionsT;
    ReduceAll = REDUCE_ALL: Reduce, BuiltinOptionsT::ReducerOptions as ReducerOptionsT;
    UnsortedSegmentProd = UNSORTED_SEGMENT_PROD: Reduce;
    UnsortedSegmentMax = UNSORTED_SEGMENT_MAX: Reduce;
    UnsortedSegmentSum = UNSORTED_SEGMENT_SUM: Reduce;
    UnsortedSegmentMin = UNSORTED_SEGMENT_MIN: Reduce;
    ReduceWindow = REDUCE_WINDOW: Reduce, BuiltinOptions2T::ReduceWindowOptions as ReduceWindowOptionsT;
    // Reshape
    Reshape = RESHAPE: Reshape, BuiltinOptionsT::ReshapeOptions as ReshapeOptionsT;
    Squeeze = SQUEEZE: Reshape, BuiltinOptionsT::SqueezeOptions as SqueezeOptionsT;
    ExpandDims = EXPAND_DIMS: Reshape;
    Shape = SHAPE: Reshape, BuiltinOptionsT::ShapeOptions as ShapeOptionsT;
    Rank = RANK: Reshape;
    // Layout
    Concatenation = CONCATENATION: Layout, BuiltinOptionsT::ConcatenationOptions as ConcatenationOptionsT;
    DepthToSpace = DEPTH_TO_SPACE: Layout, BuiltinOptionsT::DepthToSpaceOptions as DepthToSpaceOptionsT;
    SpaceToDepth = SPACE_TO_DEPTH: Layout, BuiltinOptionsT::SpaceToDepthOptions as SpaceToDepthOptionsT;
    Pad = PAD: Layout;
    BatchToSpaceNd = BATCH_TO_SPACE_ND: Layout;
    SpaceToBatchNd = SPACE_TO_BATCH_ND: Layout;
    Transpose = TRANSPOSE: Layout;
    StridedSlice = STRIDED_SLICE: Layout, BuiltinOptionsT::StridedSliceOptions as StridedSliceOptionsT;
    Split = SPLIT: Layout, BuiltinOptionsT::SplitOptions as SplitOptionsT;
    Padv2 = PADV2: Layout;
    Slice = SLICE: Layout;
    Tile = TILE: Layout;
    Pack = PACK: Layout, BuiltinOptionsT::PackOptions as PackOptionsT;
    Unpack = UNPACK: Layout, BuiltinOptionsT::UnpackOptions as UnpackOptionsT;
    MirrorPad = MIRROR_PAD: Layout, BuiltinOptionsT::MirrorPadOptions as MirrorPadOptionsT;
    SplitV = SPLIT_V: Layout, BuiltinOptionsT::SplitVOptions as SplitVOptionsT;
    ReverseV2 = REVERSE_V2: Layout;
    ReverseSequence = REVERSE_SEQUENCE: Layout, BuiltinOptionsT::ReverseSequenceOptions as ReverseSequenceOptionsT;
    BroadcastTo = BROADCAST_TO: Layout;
    DynamicUpdateSlice = DYNAMIC_UPDATE_SLICE: Layout;
    Dilate = DILATE: Layout;
    // Fill
    SparseToDense = SPARSE_TO_DENSE: Fill, BuiltinOptionsT::SparseToDenseOptions as SparseToDenseOptionsT;
    OneHot = ONE_HOT: Fill, BuiltinOptionsT::OneHotOptions as OneHotOptionsT;
    Fill = FILL: Fill;
    Range = RANGE: Fill;
    MatrixDiag = MATRIX_DIAG: Fill;
    MatrixSetDiag = MATRIX_SET_DIAG: Fill;
    BroadcastArgs = BROADCAST_ARGS: Fill;
    RandomStandardNormal = RANDOM_STANDARD_NORMAL: Fill, BuiltinOptionsT::RandomOptions as RandomOptionsT;
    RandomUniform = RANDOM_UNIFORM: Fill, BuiltinOptionsT::RandomOptions as RandomOptionsT;
    Multinomial = MULTINOMIAL: Fill, BuiltinOptionsT::RandomOptions as RandomOptionsT;
    // Gather
    EmbeddingLookup = EMBEDDING_LOOKUP: Gather;
    HashtableLookup = HASHTABLE_LOOKUP: Gather;
    EmbeddingLookupSparse = EMBEDDING_LOOKUP_SPARSE: Gather, BuiltinOptionsT::EmbeddingLookupSparseOptions as EmbeddingLookupSparseOptionsT;
    Gather = GATHER: Gather, BuiltinOptionsT::GatherOptions as GatherOptionsT;
    GatherNd = GATHER_ND: Gather;
    ScatterNd = SCATTER_ND: Gather;
    // Resize
    ResizeBilinear = RESIZE_BILINEAR: Resize, BuiltinOptionsT::ResizeBilinearOptions as ResizeBilinearOptionsT;
    ResizeNearestNeighbor = RESIZE_NEAREST_NEIGHBOR: Resize, BuiltinOptionsT::ResizeNearestNeighborOptions as ResizeNearestNeighborOptionsT;
    // Sort
    TopkV2 = TOPK_V2: Sort;
    Unique = UNIQUE: Sort, BuiltinOptionsT::UniqueOptions as UniqueOptionsT;
    NonMaxSuppressionV4 = NON_MAX_SUPPRESSION_V4: Sort;
    NonMaxSuppressionV5 = NON_MAX_SUPPRESSION_V5: Sort;
    Bucketize = BUCKETIZE: Sort, BuiltinOptionsT::BucketizeOptions as BucketizeOptionsT;
    // Recurrent
    Lstm = LSTM: Recurrent, BuiltinOptionsT::LSTMOptions as LSTMOptionsT;
    Rnn = RNN: Recurrent, BuiltinOptionsT::RNNOptions as RNNOptionsT;
    Svdf = SVDF: Recurrent, BuiltinOptionsT::SVDFOptions as SVDFOptionsT;
    UnidirectionalSequenceRnn = UNIDIRECTIONAL_SEQUENCE_RNN: Recurrent, BuiltinOptionsT::SequenceRNNOptions as SequenceRNNOptionsT;
    UnidirectionalSequenceLstm = UNIDIRECTIONAL_SEQUENCE_LSTM: Recurrent, BuiltinOptionsT::UnidirectionalSequenceLSTMOptions as UnidirectionalSequenceLSTMOptionsT;
    BidirectionalSequenceRnn = BIDIRECTIONAL_SEQUENCE_RNN: Recurrent, BuiltinOptionsT::BidirectionalSequenceRNNOptions as BidirectionalSequenceRNNOptionsT;
    BidirectionalSequenceLstm = BIDIRECTIONAL_SEQUENCE_LSTM: Recurrent, BuiltinOptionsT::BidirectionalSequenceLSTMOptions as BidirectionalSequenceLSTMOptionsT;
    // Control
    Call = CALL: Control, BuiltinOptionsT::CallOptions as CallOptionsT;
    If = IF: Control, BuiltinOptionsT::IfOptions as IfOptionsT;
    While = WHILE: Control, BuiltinOptionsT::WhileOptions as WhileOptionsT;
    CallOnce = CALL_ONCE: Control, BuiltinOptionsT::CallOnceOptions as CallOnceOptionsT;
    Hashtable = HASHTABLE: Control, BuiltinOptionsT::HashtableOptions as HashtableOptionsT;
    HashtableFind = HASHTABLE_FIND: Control;
    HashtableImport = HASHTABLE_IMPORT: Control;
    HashtableSize = HASHTABLE_SIZE: Control;
    VarHandle = VAR_HANDLE: Control, BuiltinOptionsT::VarHandleOptions as VarHandleOptionsT;
    ReadVariable = READ_VARIABLE: Control;
    AssignVariable = ASSIGN_VARIABLE: Control;
    StablehloWhile = STABLEHLO_WHILE: Control, BuiltinOptions2T::StablehloWhileOptions as StablehloWhileOptionsT;
    StablehloComposite = STABLEHLO_COMPOSITE: Control, BuiltinOptions2T::StableHLOCompositeOptions as StableHLOCompositeOptionsT;
    StablehloCase = STABLEHLO_CASE: Control, BuiltinOptions2T::StablehloCaseOptions as StablehloCaseOptionsT;
    // Signal
    Rfft2d = RFFT2D: Signal;
    Imag = IMAG: Signal;
    Real = REAL: Signal;
    ComplexAbs = COMPLEX_ABS: Signal;
    // Text
    LshProjection = LSH_PROJECTION: Text, BuiltinOptionsT::LSHProjectionOptions as LSHProjectionOptionsT;
    ConcatEmbeddings = CONCAT_EMBEDDINGS: Text, BuiltinOptionsT::ConcatEmbeddingsOptions as ConcatEmbeddingsOptionsT;
    SkipGram = SKIP_GRAM: Text, BuiltinOptionsT::SkipGramOptions as SkipGramOptionsT;
    Delegate = DELEGATE: Text;
    PlaceholderForGreaterOpCodes = PLACEHOLDER_FOR_GREATER_OP_CODES: Text;
    // Stablehlo
    StablehloLogistic = STABLEHLO_LOGISTIC: Stablehlo;
    StablehloAdd = STABLEHLO_ADD: Stablehlo;
    StablehloDivide = STABLEHLO_DIVIDE: Stablehlo;
    StablehloMultiply = STABLEHLO_MULTIPLY: Stablehlo;
    StablehloMaximum = STABLEHLO_MAXIMUM: Stablehlo;
    StablehloReshape = STABLEHLO_RESHAPE: Stablehlo;
    StablehloClamp = STABLEHLO_CLAMP: Stablehlo;
    StablehloConcatenate = STABLEHLO_CONCATENATE: Stablehlo, BuiltinOptions2T::StablehloConcatenateOptions as StablehloConcatenateOptionsT;
    StablehloBroadcastInDim = STABLEHLO_BROADCAST_IN_DIM: Stablehlo, BuiltinOptions2T::StablehloBroadcastInDimOptions as StablehloBroadcastInDimOptionsT;
    StablehloConvolution = STABLEHLO_CONVOLUTION: Stablehlo, BuiltinOptions2T::StablehloConvolutionOptions as StablehloConvolutionOptionsT;
    StablehloSlice = STABLEHLO_SLICE: Stablehlo, BuiltinOptions2T::StablehloSliceOptions as StablehloSliceOptionsT;
    StablehloCustomCall = STABLEHLO_CUSTOM_CALL: Stablehlo, BuiltinOptions2T::StablehloCustomCallOptions as StablehloCustomCallOptionsT;
    StablehloReduce = STABLEHLO_REDUCE: Stablehlo, BuiltinOptions2T::StablehloReduceOptions as StablehloReduceOptionsT;
    StablehloAbs = STABLEHLO_ABS: Stablehlo;
    StablehloAnd = STABLEHLO_AND: Stablehlo;
    StablehloCosine = STABLEHLO_COSINE: Stablehlo;
    StablehloExponential = STABLEHLO_EXPONENTIAL: Stablehlo;
    StablehloFloor = STABLEHLO_FLOOR: Stablehlo;
    StablehloLog = STABLEHLO_LOG: Stablehlo;
    StablehloMinimum = STABLEHLO_MINIMUM: Stablehlo;
    StablehloNegate = STABLEHLO_NEGATE: Stablehlo;
    StablehloOr = STABLEHLO_OR: Stablehlo;
    StablehloPower = STABLEHLO_POWER: Stablehlo;
    StablehloRemainder = STABLEHLO_REMAINDER: Stablehlo;
    StablehloRsqrt = STABLEHLO_RSQRT: Stablehlo;
    StablehloSelect = STABLEHLO_SELECT: Stablehlo;
    StablehloSubtract = STABLEHLO_SUBTRACT: Stablehlo;
    StablehloTanh = STABLEHLO_TANH: Stablehlo;
    StablehloScatter = STABLEHLO_SCATTER: Stablehlo, BuiltinOptions2T::StablehloScatterOptions as StablehloScatterOptionsT;
    StablehloCompare = STABLEHLO_COMPARE: Stablehlo, BuiltinOptions2T::StablehloCompareOptions as StablehloCompareOptionsT;
    StablehloConvert = STABLEHLO_CONVERT: Stablehlo;
    StablehloDynamicSlice = STABLEHLO_DYNAMIC_SLICE: Stablehlo, BuiltinOptions2T::StablehloDynamicSliceOptions as StablehloDynamicSliceOptionsT;
    StablehloDynamicUpdateSlice = STABLEHLO_DYNAMIC_UPDATE_SLICE: Stablehlo;
    StablehloPad = STABLEHLO_PAD: Stablehlo, BuiltinOptions2T::StablehloPadOptions as StablehloPadOptionsT;
    StablehloIota = STABLEHLO_IOTA: Stablehlo, BuiltinOptions2T::StablehloIotaOptions as StablehloIotaOptionsT;
    StablehloDotGeneral = STABLEHLO_DOT_GENERAL: Stablehlo, BuiltinOptions2T::StablehloDotGeneralOptions as StablehloDotGeneralOptionsT;
    StablehloReduceWindow = STABLEHLO_REDUCE_WINDOW: Stablehlo, BuiltinOptions2T::StablehloReduceWindowOptions as StablehloReduceWindowOptionsT;
    StablehloSort = STABLEHLO_SORT: Stablehlo, BuiltinOptions2T::StablehloSortOptions as StablehloSortOptionsT;
    StablehloGather = STABLEHLO_GATHER: Stablehlo, BuiltinOptions2T::StablehloGatherOptions as StablehloGatherOptionsT;
    StablehloTranspose = STABLEHLO_TRANSPOSE: Stablehlo, BuiltinOptions2T::StablehloTransposeOptions as StablehloTransposeOptionsT;
    StablehloRngBitGenerator = STABLEHLO_RNG_BIT_GENERATOR: Stablehlo, BuiltinOptions2T::StablehloRngBitGeneratorOptions as StablehloRngBitGeneratorOptionsT;
    StablehloShiftLeft = STABLEHLO_SHIFT_LEFT: Stablehlo;
    StablehloCbrt = STABLEHLO_CBRT: Stablehlo;
}
