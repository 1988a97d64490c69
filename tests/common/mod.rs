//! What the tests of the root crate share.
#![allow(dead_code)]

use litegpu::Model;
use litegpu::graph::schema::{ActivationFunctionType, RNNOptionsT};
use litegpu::graph::{self, DType, Graph, Node, Op};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A path inside the repository.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A path in the folder of recordings that lies beside the repository on some machines; says so when it does not.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("LITEGPU_SHARED").map_or_else(|| repo("../shared"), PathBuf::from);
    let full = root.join(path);
    if !full.exists() {
        eprintln!("SKIPPED: {} is not on this machine (LITEGPU_SHARED names its folder)", full.display());
        return None;
    }
    Some(full)
}

/// The models that come with litegpu.
pub fn shipped() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(repo("models"))
        .expect("the repository has models/")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "tflite"))
        .collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

/// Whether GPU tests are to run. `NO_GPU=1` leaves them out; otherwise a missing adapter fails them.
pub fn gpu() -> bool {
    let no = std::env::var_os("NO_GPU").is_some();
    if no {
        eprintln!("SKIPPED: NO_GPU is set");
    }
    !no
}

/// A folder for a test's files, empty at first.
pub fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a folder for the test");
    dir
}

/// Runs the tool in the repository's root.
pub fn litegpu(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_litegpu"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the tool runs")
}

/// Standard output, standard error and exit code.
pub fn told(args: &[&str]) -> (String, String, i32) {
    let o = litegpu(args);
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (text(&o.stdout), text(&o.stderr), o.status.code().unwrap_or(-1))
}

/// A recurrent layer whose state grows by one in every run.
pub fn counter() -> Model {
    let tensor = |name, shape: &[usize]| graph::Tensor::new(name, DType::F32, shape);
    let constant =
        |name, shape: &[usize], v: f32| graph::Tensor::constant(name, DType::F32, shape, v.to_le_bytes().to_vec());
    let state = graph::Tensor { is_variable: true, ..tensor("state", &[1, 1]) };
    let main = Graph {
        tensors: vec![
            tensor("x", &[1, 1]),
            constant("weight", &[1, 1], 0.0),
            constant("recurrent", &[1, 1], 1.0),
            constant("bias", &[1], 1.0),
            state,
            tensor("y", &[1, 1]),
        ],
        nodes: vec![Node::new(
            Op::Rnn(RNNOptionsT { fused_activation_function: ActivationFunctionType::NONE, ..Default::default() }),
            &[0, 1, 2, 3, 4],
            &[5],
        )],
        inputs: vec![0],
        outputs: vec![5],
        ..Graph::default()
    };
    Model::from_graph(graph::Model { version: 3, subgraphs: vec![main], ..graph::Model::default() }).unwrap()
}
