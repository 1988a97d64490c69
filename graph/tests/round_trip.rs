//! Reading, writing and reading again gives an equal model.

mod common;

use litegpu_graph::*;
use std::io::{Cursor, Read};

fn again(name: &str, model: &Model, options: &WriteOptions) -> Vec<u8> {
    let bytes = model.write_with(options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let back = Model::read(bytes.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (a, b) in model.subgraphs.iter().zip(&back.subgraphs) {
        for (a, b) in a.tensors.iter().zip(&b.tensors) {
            assert_eq!(a, b, "{name}");
        }
        for (a, b) in a.nodes.iter().zip(&b.nodes) {
            assert_eq!(a, b, "{name}");
        }
    }
    // Not assert_eq: a difference would print megabytes of weights.
    assert!(*model == back, "{name}: differs after writing");
    bytes
}

/// Constants lie where an mmapped file can be viewed as any element type.
fn check_alignment(bytes: Vec<u8>) {
    let mut lines = vec![[0u64; 8]; bytes.len().div_ceil(64)];
    let store = bytemuck::cast_slice_mut::<_, u8>(&mut lines);
    store[..bytes.len()].copy_from_slice(&bytes);
    let shift = store.as_ptr().align_offset(16);
    let model = Model::read(bytes.clone()).unwrap();
    let file: bytes::Bytes = bytes.into();
    let model_at = Model::read(file.clone()).unwrap();
    assert_eq!(model, model_at);
    assert_eq!(shift, 0);
    for t in model_at.subgraphs.iter().flat_map(|g| &g.tensors) {
        if let Some(d) = &t.data {
            let at = d.as_ptr() as usize - file.as_ptr() as usize;
            assert_eq!(at % 16, 0, "'{}' at {at}", t.name);
        }
    }
}

#[test]
fn by_hand() {
    let model = common::everything();
    let bytes = again("everything", &model, &WriteOptions::default());
    assert_eq!(bytes, model.write().unwrap(), "the same model gives the same bytes");
    check_alignment(bytes.clone());
    let g = &Model::read(bytes).unwrap().subgraphs[0];
    assert_eq!(
        g.tensors[1].data.as_ref().unwrap().as_ptr(),
        g.tensors[2].data.as_ref().unwrap().as_ptr(),
        "written twice"
    );
}

/// As older converters wrote biases: scales along the filter's axis.
#[test]
fn scales_of_a_vector_lie_along_it() {
    let with = |shape: &[usize]| {
        let mut t = Tensor::new("bias", DType::I32, shape);
        t.quant = Some(Quant { scale: vec![0.5, 0.25], zero_point: vec![0, 0], ..Quant::default() });
        t.data = Some(vec![0u8; 4 * shape.iter().product::<usize>()].into());
        let g = Graph { tensors: vec![t], outputs: vec![0], ..Graph::default() };
        let bytes = Model { subgraphs: vec![g], ..Model::default() }.write().unwrap();
        let mut m = schema::root_as_model(&bytes).unwrap().unpack();
        let tensors = m.subgraphs.as_mut().unwrap()[0].tensors.as_mut().unwrap();
        tensors[0].quantization.as_mut().unwrap().quantized_dimension = 3;
        let mut b = flatbuffers::FlatBufferBuilder::new();
        let root = m.pack(&mut b);
        schema::finish_model_buffer(&mut b, root);
        Model::read(b.finished_data().to_vec())
    };
    assert_eq!(with(&[2]).unwrap().subgraphs[0].tensors[0].quant.as_ref().unwrap().axis, 0);
    let e = with(&[2, 2]).unwrap_err().to_string();
    assert!(e.contains("'bias'") && e.contains("axis 3"), "{e}");
}

#[test]
fn data_after_the_flatbuffer() {
    let model = common::everything();
    let bytes = again("outside", &model, &WriteOptions { max_flatbuffer: 0 });
    check_alignment(bytes.clone());
    let root = schema::root_as_model(&bytes).unwrap();
    let buffers = root.buffers().unwrap();
    assert!(buffers.iter().all(|b| b.data().is_none()));
    assert!(buffers.iter().any(|b| b.size() == 144 && b.offset() % 16 == 0));
    assert!(root.subgraphs().unwrap().get(0).operators().unwrap().iter().any(|o| o.large_custom_options_size() == 33));
}

#[test]
fn operator_codes() {
    let model = common::everything();
    let bytes = model.write().unwrap();
    let codes = schema::root_as_model(&bytes).unwrap().operator_codes().unwrap();
    let list: Vec<_> = codes.iter().map(|c| (c.builtin_code().0, c.deprecated_builtin_code(), c.version())).collect();
    // CONV_2D once for two nodes; GELU has a code that needs more than the old byte.
    assert_eq!(list, [(3, 3, 5), (114, 114, 1), (124, 124, 1), (150, 127, 1), (32, 32, 1), (118, 118, 1)]);
    assert_eq!(codes.get(4).custom_code(), Some("Mine"));
}

#[test]
fn appended_zip() {
    let model = common::everything();
    for options in [WriteOptions::default(), WriteOptions { max_flatbuffer: 0 }] {
        let bytes = model.write_with(&options).unwrap();
        // The whole file is a zip file too, with offsets from its start: nothing for a reader to guess.
        let at = bytes.len() - model.appended.len();
        let end = bytes.len() - 22;
        let directory = u32::from_le_bytes(bytes[end + 16..end + 20].try_into().unwrap()) as usize;
        assert_eq!(&bytes[directory..directory + 4], b"PK\x01\x02");
        assert_eq!(&bytes[at..at + 4], b"PK\x03\x04");
        for source in [bytes.clone(), Model::read(bytes).unwrap().appended.to_vec()] {
            let mut zip = zip::ZipArchive::new(Cursor::new(source)).unwrap();
            let mut text = String::new();
            zip.by_name("labels.txt").unwrap().read_to_string(&mut text).unwrap();
            assert_eq!((zip.len(), text.as_str()), (2, "cat\ndog\n"));
        }
    }
    // An archive that counts from its own start, as `cat model.tflite labels.zip` gives.
    let plain = Model { appended: bytes::Bytes::new(), ..model.clone() };
    let mut bytes = plain.write().unwrap();
    bytes.extend_from_slice(&model.appended);
    assert_eq!(Model::read(bytes).unwrap().appended, model.appended);
}

#[test]
fn shared_files() {
    let (mut n, mut failed) = (0, Vec::new());
    common::each_file(|name, bytes| {
        let model = match Model::read(bytes) {
            Ok(m) => m,
            Err(e) => return failed.push(format!("{name}: {e}")),
        };
        again(name, &model, &WriteOptions::default());
        if n % 16 == 0 {
            again(name, &model, &WriteOptions { max_flatbuffer: 0 });
        }
        n += 1;
    });
    eprintln!("{n} files");
    assert!(failed.is_empty(), "{} files cannot be read:\n{}", failed.len(), failed.join("\n"));
}
