//! Broken files: an error or a consistent model, whatever the bytes; never a panic, a hang or a huge allocation.

mod common;

use common::Random;
use litegpu_graph::*;

/// Reads, and when it is read, does with the model what every user of a model does first.
fn try_read(bytes: Vec<u8>) -> bool {
    match Model::read(bytes) {
        Err(e) => {
            assert!(e.kind != ErrorKind::Internal, "{e}");
            assert!(!e.message.is_empty());
            false
        }
        Ok(m) => {
            validate::model(&m).unwrap();
            for g in &m.subgraphs {
                assert_eq!(g.producers().len(), g.tensors.len());
                assert_eq!(g.consumers().len(), g.tensors.len());
            }
            let back = m.write().and_then(Model::read);
            // A scale of NaN is refused, but attributes may hold one, which equals nothing.
            if let Err(e) = back {
                panic!("what was read cannot be written: {e}");
            }
            true
        }
    }
}

fn torture(name: &str, bytes: &[u8], flips: usize) {
    let mut at = 0;
    while at < bytes.len() {
        try_read(bytes[..at].to_vec());
        // Past the first pages one in sixteen is enough: these bytes are weights.
        at += if at < 1 << 16 { 64 } else { 1024 };
    }
    let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ bytes.len() as u64);
    let mut read = 0;
    for i in 0..flips {
        let mut broken = bytes.to_vec();
        for _ in 0..1 + r.below(4) {
            let at = r.below(broken.len());
            broken[at] = match i % 4 {
                0 => r.next() as u8,
                1 => 0xff,
                2 => 0x7f,
                _ => broken[at] ^ (1 << r.below(8)),
            };
        }
        // Also whole words, which hit offsets and lengths.
        if i % 3 == 0 {
            let at = r.below(broken.len() / 4) * 4;
            let word = [0u32, 1, u32::MAX, 0x7fff_ffff, 0x8000_0000, 1 << 20][r.below(6)];
            if let Some(w) = broken.get_mut(at..at + 4) {
                w.copy_from_slice(&word.to_le_bytes());
            }
        }
        read += usize::from(try_read(broken));
    }
    eprintln!("{name}: {read} of {flips} broken files could be read");
}

#[test]
fn by_hand() {
    let m = common::everything();
    torture("inside", &m.write().unwrap(), 4000);
    torture("outside", &m.write_with(&WriteOptions { max_flatbuffer: 0 }).unwrap(), 4000);
}

#[test]
fn shared_files() {
    let mut n = 0;
    common::each_file(|name, bytes| {
        n += 1;
        if bytes.len() < 1 << 15 && n % 40 == 0 {
            torture(name, &bytes, 100);
        }
    });
}

#[test]
fn small_inputs() {
    for bytes in [
        &b""[..],
        b"TFL3",
        b"\0\0\0\0TFL3",
        b"\x08\0\0\0TFL3",
        b"\xff\xff\xff\xffTFL3\0\0\0\0",
        b"\x04\0\0\0TFL3\0\0\0\0",
    ] {
        assert!(!try_read(bytes.to_vec()));
    }
}

/// Many tables that share one long name: the file is small, what it unfolds to is not.
#[test]
fn shared_strings_do_not_multiply() {
    use schema::{ModelArgs, SubGraph, SubGraphArgs, Tensor, TensorArgs};
    let mut b = flatbuffers::FlatBufferBuilder::new();
    let name = b.create_string(&"x".repeat(1 << 20));
    let tensors: Vec<_> =
        (0..100_000).map(|_| Tensor::create(&mut b, &TensorArgs { name: Some(name), ..Default::default() })).collect();
    let tensors = Some(b.create_vector(&tensors));
    let g = SubGraph::create(&mut b, &SubGraphArgs { tensors, ..Default::default() });
    let subgraphs = Some(b.create_vector(&[g]));
    let root = schema::Model::create(&mut b, &ModelArgs { version: 3, subgraphs, ..Default::default() });
    b.finish(root, Some("TFL3"));
    let e = Model::read(b.finished_data().to_vec()).unwrap_err();
    assert_eq!(e.kind, ErrorKind::Invalid);
}
