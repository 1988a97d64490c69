//! What the integer form of each operator demands of its operands and results.

use litegpu_graph::Op;
use litegpu_graph::schema::{ActivationFunctionType, FullyConnectedOptionsWeightsFormat};

/// The demand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Weights with a scale per channel of `axis`, a bias in the scale of the products, a result with a range of its own.
    Weighted {
        /// Operand that is the activation.
        data: usize,
        /// Operand that is the weights.
        weights: usize,
        /// Operand that is the bias.
        bias: usize,
        /// Channel axis of the weights.
        axis: usize,
    },
    /// Results and every other float operand have the first float operand's parameters.
    Same,
    /// Operands have the result's parameters.
    Join,
    /// The result's parameters are given: (scale, zero point) as int8, scale as int16.
    Fixed(f32, i32, f32),
    /// The result has a range of its own.
    Free,
    /// Float operands, a result that is not float.
    Test,
    /// LSTM over a sequence with its many operands.
    Lstm,
}

/// An operator's integer form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// The demand.
    pub kind: Kind,
    /// The least operator version that readers of the format expect for int8.
    pub version: i32,
    /// Whether there is a form with 16-bit activations.
    pub wide: bool,
}

/// The operator's integer form, if it has one.
pub fn rule(op: &Op) -> Option<Rule> {
    use Kind::*;
    let plain = |a: ActivationFunctionType| {
        matches!(
            a,
            ActivationFunctionType::NONE
                | ActivationFunctionType::RELU
                | ActivationFunctionType::RELU6
                | ActivationFunctionType::RELU_N1_TO_1
        )
    };
    let weighted = |data, weights, bias, axis| Weighted { data, weights, bias, axis };
    let (kind, version, wide) = match op {
        Op::Conv2d(o) if plain(o.fused_activation_function) => (weighted(0, 1, 2, 0), 3, true),
        Op::DepthwiseConv2d(o) if plain(o.fused_activation_function) => (weighted(0, 1, 2, 3), 3, true),
        Op::TransposeConv(o) if plain(o.fused_activation_function) => (weighted(2, 1, 3, 0), 3, true),
        Op::FullyConnected(o)
            if plain(o.fused_activation_function)
                && o.weights_format == FullyConnectedOptionsWeightsFormat::DEFAULT =>
        {
            (weighted(0, 1, 2, 0), 4, true)
        }
        Op::UnidirectionalSequenceLstm(o) if o.fused_activation_function == ActivationFunctionType::TANH => {
            (Lstm, 1, false)
        }
        Op::AveragePool2d(o) | Op::MaxPool2d(o) if plain(o.fused_activation_function) => (Same, 2, true),
        Op::Reshape(_) | Op::Squeeze(_) | Op::ExpandDims => (Same, 1, true),
        Op::BatchToSpaceNd | Op::SpaceToBatchNd | Op::Pad | Op::Padv2 | Op::MirrorPad(_) => (Same, 2, true),
        Op::SpaceToDepth(_) => (Same, 2, false),
        // Versions beyond what readers have registered are refused, whatever the types: some have but one.
        Op::DepthToSpace(_) => (Same, 1, false),
        Op::BroadcastTo | Op::Fill => (Same, 3, true),
        Op::Split(_) | Op::SplitV(_) | Op::Unpack(_) => (Same, 2, true),
        Op::Gather(_) => (Same, 2, true),
        Op::GatherNd => (Same, 3, true),
        Op::ResizeBilinear(_) | Op::ResizeNearestNeighbor(_) => (Same, 2, true),
        Op::ReverseV2 => (Same, 3, true),
        Op::Tile => (Same, 2, true),
        Op::Slice | Op::StridedSlice(_) | Op::Transpose => (Same, 2, true),
        Op::ReduceMax(_) | Op::ReduceMin(_) => (Same, 2, true),
        Op::TopkV2 => (Same, 2, false),
        Op::Concatenation(o) if plain(o.fused_activation_function) => (Join, 2, true),
        Op::Maximum | Op::Minimum | Op::Pack(_) => (Join, 2, true),
        Op::Select | Op::SelectV2 => (Join, 1, true),
        Op::DynamicUpdateSlice => (Join, 2, false),
        Op::Softmax(_) | Op::Logistic => (Fixed(1.0 / 256.0, -128, 1.0 / 32768.0), 2, true),
        Op::Tanh => (Fixed(1.0 / 128.0, 0, 1.0 / 32768.0), 2, true),
        Op::L2Normalization(_) => (Fixed(1.0 / 128.0, 0, 0.0), 2, false),
        Op::LogSoftmax => (Fixed(16.0 / 256.0, 127, 0.0), 2, false),
        Op::Add(o) if plain(o.fused_activation_function) => (Free, 2, true),
        Op::Sub(o) if plain(o.fused_activation_function) => (Free, 2, true),
        Op::Mul(o) if plain(o.fused_activation_function) => (Free, 2, true),
        Op::Mean(_) | Op::Sum(_) | Op::ReduceProd(_) => (Free, 2, true),
        Op::SquaredDifference => (Free, 2, false),
        Op::LeakyRelu(_) | Op::Relu | Op::Relu6 => (Free, 2, true),
        Op::ReluN1To1 | Op::Relu0To1 | Op::HardSwish | Op::Prelu | Op::Elu => (Free, 1, false),
        Op::Gelu(_) => (Free, 2, false),
        Op::Abs | Op::Exp | Op::Rsqrt => (Free, 2, true),
        Op::Sqrt | Op::Log => (Free, 2, false),
        Op::BatchMatmul(_) => (Free, 2, true),
        Op::ArgMax(_) | Op::ArgMin(_) => (Test, 2, false),
        Op::Equal | Op::NotEqual | Op::Greater | Op::GreaterEqual | Op::Less | Op::LessEqual => (Test, 2, false),
        Op::Shape(_) | Op::Rank => (Test, 1, true),
        _ => return None,
    };
    Some(Rule { kind, version, wide })
}
