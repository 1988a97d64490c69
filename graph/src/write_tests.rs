//! Every operator of the table with every attribute away from its default, as the schema file lists them: read, write
//! and read again. A new row of the table or a new field of the schema is covered without a change here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use super::*;
use flatbuffers::{TableFinishedWIPOffset, VOffsetT};

struct Field {
    name: String,
    kind: String,
    slot: VOffsetT,
    default: String,
}

struct Schema {
    tables: HashMap<String, Vec<Field>>,
    /// Storage type and values of each enum.
    enums: HashMap<String, (String, HashMap<String, i64>)>,
}

fn schema() -> Schema {
    let text = include_str!("../schema/tflite.fbs");
    let mut s = Schema { tables: HashMap::new(), enums: HashMap::new() };
    let (mut table, mut enumeration) = (None::<String>, None::<String>);
    for line in text.lines().map(|l| l.split("//").next().unwrap_or_default().trim()) {
        if let Some(rest) = line.strip_prefix("table ") {
            let name = rest.trim_end_matches(['{', '}', ' ']).to_string();
            s.tables.insert(name.clone(), Vec::new());
            table = (!rest.ends_with('}')).then_some(name);
        } else if let Some(rest) = line.strip_prefix("enum ") {
            let (name, kind) = rest.trim_end_matches(['{', ' ']).split_once(':').unwrap();
            s.enums.insert(name.trim().into(), (kind.trim().into(), HashMap::new()));
            enumeration = Some(name.trim().into());
        } else if line == "}" {
            (table, enumeration) = (None, None);
        } else if let Some(t) = &table {
            let (name, rest) = line.split_once(':').unwrap();
            if rest.contains("deprecated") {
                continue;
            }
            let (kind, attributes) = rest.split_once('(').unwrap();
            let (kind, default) = kind.split_once('=').unwrap_or((kind, "0"));
            let id: VOffsetT = attributes
                .split(')')
                .next()
                .unwrap()
                .split(',')
                .next()
                .unwrap()
                .trim_start_matches("id:")
                .trim()
                .parse()
                .unwrap();
            s.tables.get_mut(t).unwrap().push(Field {
                name: name.trim().into(),
                kind: kind.trim().into(),
                slot: 4 + 2 * id,
                default: default.trim().into(),
            });
        } else if let Some(e) = &enumeration
            && let Some((name, value)) = line.trim_end_matches(',').split_once('=')
        {
            s.enums.get_mut(e).unwrap().1.insert(name.trim().into(), value.trim().parse().unwrap());
        }
    }
    s
}

/// A number that is not the field's default; 1 where it names a subgraph, since the test's model has two.
fn other(s: &Schema, f: &Field) -> i64 {
    let base = s.enums.get(&f.kind).and_then(|e| e.1.get(&f.default).copied());
    let default = base.unwrap_or_else(|| f.default.parse().unwrap_or(i64::from(f.default == "true")));
    if f.kind == "bool" {
        1 - default
    } else if f.name.contains("subgraph") {
        1
    } else if s.enums.contains_key(&f.kind) {
        if default == 1 { 2 } else { 1 }
    } else {
        default + 3
    }
}

fn table(b: &mut Builder, s: &Schema, name: &str) -> WIPOffset<TableFinishedWIPOffset> {
    let fields = s.tables.get(name).unwrap_or_else(|| panic!("the schema has no table {name}"));
    // Vectors and strings come before the table that points to them.
    let mut offsets = Vec::new();
    for f in fields {
        let n = if f.name.contains("subgraph") { 1i64 } else { 5 };
        let item = f.kind.trim_matches(['[', ']']);
        let item = s.enums.get(item).filter(|_| f.kind.starts_with('[')).map_or(item, |e| &e.0);
        offsets.push(match (f.kind.starts_with('['), item) {
            (false, "string") => Some(b.create_string("text").value()),
            (true, "int" | "uint") => Some(b.create_vector(&[n as i32, n as i32 + 1][..1 + (n > 1) as usize]).value()),
            (true, "long") => Some(b.create_vector(&[n, -n]).value()),
            (true, "float") => Some(b.create_vector(&[0.5f32, -2.5]).value()),
            (true, "bool") => Some(b.create_vector(&[true, false]).value()),
            (true, "ubyte") => Some(b.create_vector(&[9u8, 8, 7]).value()),
            (true, k) => panic!("{name}.{}: vectors of {k} are new to this test", f.name),
            _ => None,
        });
    }
    let start = b.start_table();
    for (f, offset) in fields.iter().zip(offsets) {
        let v = other(s, f);
        let kind = s.enums.get(&f.kind).map_or(f.kind.as_str(), |e| &e.0);
        match (offset, kind) {
            (Some(o), _) => b.push_slot_always(f.slot, WIPOffset::<u32>::new(o)),
            (None, "bool") => b.push_slot_always(f.slot, v != 0),
            (None, "byte") => b.push_slot_always(f.slot, v as i8),
            (None, "int" | "int32" | "uint") => b.push_slot_always(f.slot, v as i32),
            (None, "long") => b.push_slot_always(f.slot, v),
            (None, "float") => b.push_slot_always(f.slot, v as f32 + 0.25),
            (None, k) => panic!("{name}.{}: type {k} is new to this test", f.name),
        }
    }
    b.end_table(start)
}

#[test]
fn every_operator_keeps_its_attributes() {
    let s = schema();
    let mut b = Builder::new();
    let (mut codes, mut ops) = (Vec::new(), Vec::new());
    for (i, &code) in Op::CODES.iter().enumerate() {
        let (one, two) = Op::with_defaults(code).unwrap().split();
        let (one, two) = (one.builtin_options_type(), two.builtin_options_2_type());
        let mut args = fb::OperatorArgs {
            opcode_index: i as u32,
            builtin_options_type: one,
            builtin_options_2_type: two,
            ..fb::OperatorArgs::default()
        };
        if one != fb::BuiltinOptions::NONE {
            let t = table(&mut b, &s, one.variant_name().unwrap());
            args.builtin_options = Some(WIPOffset::new(t.value()));
        }
        if two != fb::BuiltinOptions2::NONE {
            let t = table(&mut b, &s, two.variant_name().unwrap());
            args.builtin_options_2 = Some(WIPOffset::new(t.value()));
        }
        ops.push(fb::Operator::create(&mut b, &args));
        codes.push(fb::OperatorCode::create(
            &mut b,
            &fb::OperatorCodeArgs { builtin_code: code, version: 1 + i as i32, ..Default::default() },
        ));
    }
    let operators = Some(b.create_vector(&ops));
    let operator_codes = Some(b.create_vector(&codes));
    let full = fb::SubGraph::create(&mut b, &fb::SubGraphArgs { operators, ..Default::default() });
    let empty = fb::SubGraph::create(&mut b, &fb::SubGraphArgs::default());
    let subgraphs = Some(b.create_vector(&[full, empty]));
    let root =
        fb::Model::create(&mut b, &fb::ModelArgs { version: 3, operator_codes, subgraphs, ..Default::default() });
    b.finish(root, Some("TFL3"));

    let model = Model::read(b.finished_data().to_vec()).unwrap();
    let nodes = &model.subgraphs[0].nodes;
    assert_eq!(nodes.len(), Op::CODES.len());
    for (i, (n, &code)) in nodes.iter().zip(Op::CODES).enumerate() {
        let default = Op::with_defaults(code).unwrap();
        assert_eq!((n.op.code(), n.version), (code, 1 + i as i32));
        let (one, two) = default.split();
        let plain = one.builtin_options_type() == fb::BuiltinOptions::NONE
            && two.builtin_options_2_type() == fb::BuiltinOptions2::NONE;
        assert_eq!(n.op == default, plain, "{:?}", n.op);
    }
    let again = Model::read(model.write().unwrap()).unwrap();
    for (a, b) in model.subgraphs[0].nodes.iter().zip(&again.subgraphs[0].nodes) {
        assert_eq!(a, b);
    }
    assert_eq!(model, again);
}
