//! Where the reference is wrong and litegpu is right: the recordings are what the reference makes of the model, and
//! each such recording is explained by doing to the model what the reference does to it.
#![cfg(feature = "cli")]

mod common;

use litegpu::cpu::{Executor, Options};
use litegpu::graph::{Graph, Model, Node, Op, Quant, Tensor};
use litegpu::{DType, npz};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

type Arrays = BTreeMap<String, litegpu::Tensor>;

/// The 16x8 cases of a zip: name, model and arrays.
fn cases(zip: &Path, part: &str) -> Vec<(String, Model, Arrays)> {
    let mut zip = zip::ZipArchive::new(Cursor::new(std::fs::read(zip).unwrap())).unwrap();
    let names: Vec<String> = zip.file_names().filter(|n| n.contains(part)).map(str::to_string).collect();
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let models = names.iter().filter_map(|n| n.strip_suffix(".tflite"));
    models
        .map(|n| {
            let model = Model::read(read(&format!("{n}.tflite"))).unwrap();
            (n.to_string(), model, npz::read(&read(&format!("{n}.npz"))).unwrap())
        })
        .collect()
}

/// Runs a model's first invocation and keeps every value.
fn run(model: &Model, arrays: &Arrays) -> Executor {
    let mut exec = Executor::new(Arc::new(model.clone()), Options { keep_all: true, ..Options::default() }).unwrap();
    for (i, &t) in model.subgraphs[0].inputs.iter().enumerate() {
        let x = &arrays[&format!("in{i}")];
        exec.write(0, t, x.shape()).unwrap().bytes_mut().copy_from_slice(x.bytes());
    }
    exec.run(0).unwrap();
    exec
}

fn words(bytes: &[u8]) -> Vec<i16> {
    bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect()
}

#[test]
fn bytes_of_16_bit_filters_are_taken_for_8_bit_filters() {
    let Some(folder) = common::shared("conformance") else { return };
    let mut explained = 0;
    for zip in ["identify_dilated_conv.zip", "identify_dilated_conv1d.zip"] {
        for (name, mut model, arrays) in cases(&folder.join(zip), "-i16x8-") {
            let filter = |n: &Node, g: &Graph| {
                let w = n.input(1).filter(|_| matches!(n.op, Op::Conv2d(_)))?;
                (g.tensors[w].dtype == DType::I16).then_some(w)
            };
            let wide: Vec<_> = model.subgraphs[0].nodes.iter().filter_map(|n| filter(n, &model.subgraphs[0])).collect();
            if wide.is_empty() {
                continue;
            }
            let exec = run(&model, &arrays);
            let g = &mut model.subgraphs[0];
            for w in wide {
                // The first half of the filter's bytes, one for each of its elements.
                let view = exec.get(0, w).unwrap();
                let mut narrow = Tensor::constant("filter", DType::I8, view.shape, view.bytes[..view.len()].to_vec());
                narrow.quant = view.quant.cloned();
                let new = g.tensors.len();
                g.tensors.push(narrow);
                let conv = g.nodes.iter_mut().filter(|n| matches!(n.op, Op::Conv2d(_)) && n.input(1) == Some(w));
                conv.for_each(|n| n.inputs[1] = Some(new));
            }
            let broken = run(&model, &arrays);
            for (i, &t) in model.subgraphs[0].outputs.iter().enumerate() {
                let (recorded, right) = (&arrays[&format!("out{i}")], exec.get(0, t).unwrap().bytes);
                assert_eq!(broken.get(0, t).unwrap().bytes, recorded.bytes(), "{name}");
                assert_ne!(right, recorded.bytes(), "{name} is right: no exception is needed");
            }
            explained += 1;
        }
    }
    assert_eq!(explained, 10);
}

#[test]
fn a_batch_matmul_operand_with_a_scale_per_channel_is_taken_for_zero() {
    let Some(folder) = common::shared("conformance") else { return };
    let found = cases(&folder.join("quantizer.zip"), "quantizer-bmm_constant_input-static_wi8_ai16");
    let [(_, model, arrays)] = found.as_slice() else { panic!("{} cases", found.len()) };
    assert!(arrays["out0"].bytes().iter().all(|&b| b == 0), "a scale of zero makes zeros");
    let ours = run(model, arrays);
    let out = model.subgraphs[0].outputs[0];
    let ours = words(ours.get(0, out).unwrap().bytes);
    assert!(ours.iter().any(|&v| v.unsigned_abs() > 1000));

    // The same products in float arithmetic.
    let mut float = model.clone();
    let g = &mut float.subgraphs[0];
    let mut nodes = Vec::new();
    for n in std::mem::take(&mut g.nodes) {
        let mut inner = n.clone();
        for t in inner.inputs.iter_mut().flatten() {
            let real = Tensor { quant: None, data: None, dtype: DType::F32, ..g.tensors[*t].clone() };
            nodes.push(Node::new(Op::Dequantize, &[*t], &[g.tensors.len()]));
            *t = g.tensors.len();
            g.tensors.push(real);
        }
        let t = n.outputs[0];
        let real = Tensor { quant: None, dtype: DType::F32, ..g.tensors[t].clone() };
        inner.outputs[0] = g.tensors.len();
        nodes.push(inner);
        nodes.push(Node::new(Op::Quantize, &[g.tensors.len()], &[t]));
        g.tensors.push(real);
    }
    g.nodes = nodes;
    let float = run(&float, arrays);
    let float = words(float.get(0, out).unwrap().bytes);
    // One rounding of a sum between the two products and one at the end, each in either arithmetic.
    let far = ours.iter().zip(&float).map(|(a, b)| (*a as i32 - *b as i32).abs()).max();
    assert!(far <= Some(2), "{far:?} steps from the float result");
}

/// A QUANTIZE from or to a scale for each channel keeps the numbers; the reference multiplies them by zero.
#[test]
fn requantization_keeps_scales_per_channel() {
    let scales = Quant { scale: vec![0.5, 0.25], zero_point: vec![0, 0], axis: 1, ..Quant::scalar(1.0, 0) };
    let mut g = Graph::default();
    let x = [[4i16, 4], [-8, 100]].concat().iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    g.tensors = vec![Tensor::constant("x", DType::I16, &[2, 2], x), Tensor::new("y", DType::I16, &[2, 2])];
    g.tensors[0].quant = Some(scales);
    g.tensors[1].quant = Some(Quant::scalar(0.5, 0));
    g.outputs = vec![1];
    g.nodes = vec![Node::new(Op::Quantize, &[0], &[1])];
    let model = Model { subgraphs: vec![g], ..Model::default() };
    let exec = run(&model, &Arrays::new());
    assert_eq!(words(exec.get(0, 1).unwrap().bytes), [4, 2, -8, 50]);
}
