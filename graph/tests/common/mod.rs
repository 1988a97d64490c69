//! Models that tests use: those in the shared folder, and one made by hand that has every part of the format.
#![allow(dead_code)]

use litegpu_graph::schema::{
    Conv2DOptionsT, DimensionMetadataT, DimensionType, GeluOptionsT, IfOptionsT, SparseIndexVectorT,
    SparsityParametersT, TensorType, Uint8VectorT, Uint16VectorT, VariantSubTypeT,
};
use litegpu_graph::*;
use std::io::{Cursor, Read, Write};
use std::path::PathBuf;

/// The folder of shared models and cases, or `None` (with a word) where this checkout has none.
pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("LITEGPU_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    // A worktree beside the main one finds the same folder.
    let found = dir.join("models").is_dir();
    if !found {
        eprintln!("SKIPPED: no shared folder at {} (set LITEGPU_SHARED)", dir.display());
    }
    found.then_some(dir)
}

/// Every `.tflite` file of the shared folder, loose or in a zip, by name.
pub fn each_file(mut f: impl FnMut(&str, Vec<u8>)) {
    let Some(dir) = shared() else { return };
    for sub in ["models", "ptq", "conformance"] {
        let mut files: Vec<_> = std::fs::read_dir(dir.join(sub)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for path in files {
            let name = format!("{sub}/{}", path.file_name().unwrap().to_string_lossy());
            match path.extension().and_then(|e| e.to_str()) {
                Some("tflite") => f(&name, std::fs::read(&path).unwrap()),
                Some("zip") => {
                    let mut zip = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
                    for i in 0..zip.len() {
                        let mut entry = zip.by_index(i).unwrap();
                        if entry.name().ends_with(".tflite") {
                            let name = format!("{name}/{}", entry.name());
                            let mut data = Vec::new();
                            entry.read_to_end(&mut data).unwrap();
                            f(&name, data);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A zip file with two entries.
pub fn zip() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (name, text) in
        [("labels.txt", "cat\ndog\n"), ("more/notes.txt", "a longer text, a longer text, a longer text")]
    {
        zip.start_file(name, options).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A model with a bit of everything that a file can say.
pub fn everything() -> Model {
    let mut g = Graph { name: "main".into(), ..Graph::default() };
    let mut add = |t: Tensor| {
        g.tensors.push(t);
        g.tensors.len() - 1
    };
    let f32s = |n: usize| (0..n).flat_map(|i| (i as f32 - 1.5).to_le_bytes()).collect::<Vec<u8>>();
    let x = add(Tensor { signature: Some(vec![-1, 4, 4, 2]), ..Tensor::new("x", DType::F32, &[1, 4, 4, 2]) });
    let shared: bytes::Bytes = f32s(2 * 9 * 2).into();
    let w = add(Tensor::constant("w", DType::F32, &[2, 3, 3, 2], shared.clone()));
    let twin = add(Tensor::constant("w twin", DType::F32, &[2, 3, 3, 2], shared));
    let bias = add(Tensor::constant("bias", DType::F32, &[2], f32s(2)));
    let y = add(Tensor::new("y", DType::F32, &[1, 4, 4, 2]));
    let z = add(Tensor::new("z", DType::F32, &[1, 4, 4, 2]));
    let q = add(Tensor {
        quant: Some(Quant { min: vec![-1.0], max: vec![1.0], ..Quant::scalar(0.5, -3) }),
        ..Tensor::new("q", DType::I8, &[1, 4, 4, 2])
    });
    let wq = add(Tensor {
        quant: Some(Quant { scale: vec![0.25, 0.5], zero_point: vec![0, 0], axis: 0, ..Quant::default() }),
        ..Tensor::constant("per channel", DType::I8, &[2, 1, 1, 2], vec![1u8, 2, 3, 255])
    });
    let scales = add(Tensor::constant("scales", DType::F16, &[2, 2], vec![0, 60, 0, 61, 0, 62, 0, 63]));
    let w4 = add(Tensor {
        quant: Some(Quant {
            blockwise: Some(Blockwise { scales, zero_points: None, block_size: 2 }),
            ..Quant::default()
        }),
        ..Tensor::constant("blockwise int4", DType::I4, &[2, 4], vec![0x21, 0x43, 0x65, 0x87])
    });
    let sparse = add(Tensor {
        sparsity: Some(Box::new(SparsityParametersT {
            traversal_order: Some(vec![0, 1]),
            block_map: None,
            dim_metadata: Some(vec![
                DimensionMetadataT { dense_size: 2, ..DimensionMetadataT::default() },
                DimensionMetadataT {
                    format: DimensionType::SPARSE_CSR,
                    array_segments: SparseIndexVectorT::Uint8Vector(Box::new(Uint8VectorT {
                        values: Some(vec![0, 1, 2]),
                    })),
                    array_indices: SparseIndexVectorT::Uint16Vector(Box::new(Uint16VectorT {
                        values: Some(vec![2, 0]),
                    })),
                    ..DimensionMetadataT::default()
                },
            ]),
        })),
        ..Tensor::constant("sparse", DType::F32, &[2, 3], f32s(2))
    });
    let dense = add(Tensor::new("dense", DType::F32, &[2, 3]));
    let state = add(Tensor { is_variable: true, ..Tensor::new("state", DType::F32, &[3]) });
    let odd = add(Tensor {
        quant: Some(Quant { custom: Some(vec![1u8, 2, 3].into()), ..Quant::default() }),
        has_rank: false,
        ..Tensor::new("custom quantization", DType::F32, &[])
    });
    let list = add(Tensor {
        variant: vec![VariantSubTypeT { shape: Some(vec![2, -1]), type_: TensorType::FLOAT32, has_rank: true }],
        ..Tensor::new("list", DType::Variant, &[])
    });
    let conv = Conv2DOptionsT { stride_w: 1, stride_h: 1, dilation_w_factor: 2, ..Conv2DOptionsT::default() };
    g.nodes.push(Node { version: 5, ..Node::new(Op::Conv2d(conv.clone()), &[x, w, bias], &[y]) });
    let mut second = Node::new(Op::Conv2d(conv), &[y, twin], &[z]);
    second.inputs.push(None);
    second.version = 5;
    g.nodes.push(second);
    g.nodes.push(Node::new(Op::Quantize, &[z], &[q]));
    g.nodes.push(Node::new(Op::Densify, &[sparse], &[dense]));
    g.nodes.push(Node::new(Op::Gelu(GeluOptionsT { approximate: true }), &[x], &[odd]));
    let custom = Op::Custom(CustomOp { name: "Mine".into(), options: vec![7u8; 33].into() });
    let mut node = Node::new(custom, &[q, wq, w4, state], &[list]);
    node.intermediates = vec![Some(odd), None];
    node.mutating_inputs = vec![false, false, false, true];
    g.nodes.push(node);
    g.inputs = vec![x];
    g.outputs = vec![dense, list];
    let mut other = Graph { name: "other".into(), ..Graph::default() };
    other.tensors.push(Tensor::new("in", DType::I32, &[2]));
    other.tensors.push(Tensor::new("out", DType::I32, &[2]));
    other.nodes.push(Node::new(Op::If(IfOptionsT { then_subgraph_index: 1, else_subgraph_index: 1 }), &[0], &[1]));
    (other.inputs, other.outputs) = (vec![0], vec![1]);
    Model {
        version: 3,
        description: "made by hand".into(),
        subgraphs: vec![g, other],
        signatures: vec![
            Signature {
                key: "serving_default".into(),
                subgraph: 0,
                inputs: vec![("image".into(), x)],
                outputs: vec![("d".into(), dense), ("l".into(), list)],
            },
            Signature {
                key: "other".into(),
                subgraph: 1,
                inputs: vec![("a".into(), 0)],
                outputs: vec![("b".into(), 1)],
            },
        ],
        metadata: vec![
            ("min_runtime_version".into(), b"1.5.0".as_slice().into()),
            ("empty".into(), bytes::Bytes::new()),
        ],
        appended: zip().into(),
    }
}

/// A small generator of numbers (xorshift), the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
