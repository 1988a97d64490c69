//! Custom operators: kernels.

use super::*;
use litegpu_graph::Op;

mod audio;
mod detection;
mod posenet;
mod spatial;

pub(super) fn prepare(site: &Site<'_>) -> Result<Kernel> {
    let Op::Custom(c) = &site.node.op else { return no_kernel(site) };
    match c.name.as_str() {
        "TFLite_Detection_PostProcess" => detection::prepare(site, &c.options),
        "PosenetDecoderOp" => posenet::prepare(site, &c.options),
        "MaxPoolWithArgmax" | "MaxPoolingWithArgmax2D" => spatial::pool(site, c),
        "Convolution2DTransposeBias" => conv::transpose_bias(site, &c.options),
        "MaxUnpooling2D" => spatial::unpool(site, c),
        "DenseImageWarp" => spatial::warp(site),
        "AudioSpectrogram" => audio::spectrogram(site, &c.options),
        "Mfcc" => audio::mfcc(site, &c.options),
        "aeq.hadamard_rotation" => audio::hadamard(site, &c.options),
        name if name.starts_with("Flex") => Err(Error::unsupported(format!(
            "'{name}' is a TensorFlow operator kept as it is (SELECT_TF_OPS); convert the model without it, or \
             register a kernel of that name in Options::custom"
        ))),
        name => Err(Error::unsupported(format!(
            "litegpu has no kernel for the custom operator '{name}'; register one of that name in Options::custom"
        ))),
    }
}
