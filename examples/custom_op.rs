//! A custom operator that the application brings: its shape rule, its kernel, and a model that names it.
//!
//!     cargo run --example custom_op
#![allow(clippy::print_stdout)]

use litegpu::cpu::{Call, Kernel, Site};
use litegpu::graph::{self, CustomOp, DType, Graph, Node, Op, ops};
use litegpu::{CustomOperator, CustomOperators, Model, Session, Tensor};

/// `Mix(a, b)`: a * (1 - t) + b * t, with t in the operator's options as four bytes.
struct Mix;

impl CustomOperator for Mix {
    fn infer(&self, site: &ops::Site<'_>) -> graph::Result<ops::Inferred> {
        let (a, b) = (site.shape(0)?, site.shape(1)?);
        if a != b {
            return Err(graph::Error::invalid(format!("Mix of shapes {a:?} and {b:?}")));
        }
        Ok([Some(a.into())].into_iter().collect())
    }

    fn prepare(&self, site: &Site<'_>) -> graph::Result<Kernel> {
        let Op::Custom(op) = &site.node.op else { return Err(graph::Error::internal("Mix is a custom operator")) };
        let t = op.options[..].try_into().map(f32::from_le_bytes);
        let t = t.map_err(|_| graph::Error::invalid("the options of Mix must be one float"))?;
        Ok(Box::new(move |call: &mut Call<'_>| {
            let (a, b) = (call.input(0)?.as_slice::<f32>()?, call.input(1)?.as_slice::<f32>()?);
            let out = call.output(0)?.as_mut_slice::<f32>()?;
            for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
                *o = a * (1.0 - t) + b * t;
            }
            Ok(())
        }))
    }
}

fn main() -> litegpu::Result<()> {
    // A model with one operator, built in memory; a file would name it in the same way.
    let tensor = |name: &str| graph::Tensor::new(name, DType::F32, &[3]);
    let op = Op::Custom(CustomOp { name: "Mix".into(), options: 0.25f32.to_le_bytes().to_vec().into() });
    let main = Graph {
        tensors: vec![tensor("a"), tensor("b"), tensor("mixed")],
        nodes: vec![Node::new(op, &[0, 1], &[2])],
        inputs: vec![0, 1],
        outputs: vec![2],
        ..Graph::default()
    };
    let model = Model::from_graph(graph::Model { version: 3, subgraphs: vec![main], ..graph::Model::default() })?;

    let operators = CustomOperators::new().with("Mix", Mix);
    let mut session = Session::builder(&model).custom(operators).build()?;
    let (a, b) = (Tensor::new(&[3], &[0.0f32, 1.0, 2.0])?, Tensor::new(&[3], &[4.0f32, 5.0, 6.0])?);
    println!("{:?}", session.run(&[a, b])?[0].view::<f32>()?);
    Ok(())
}
