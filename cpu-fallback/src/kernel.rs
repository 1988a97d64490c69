//! What an operator's implementation sees.

use crate::chain::Then;
use crate::moves::Piece;
use crate::pool::Pool;
use crate::resources::Resources;
use crate::value::{Value, View};
use litegpu_graph::{Error, Graph, Model, Node, Result, Tensor};

/// A prepared operator instance: attributes, packed constants and tables, ready to run any number of times. It must
/// not keep shapes of computed tensors: those may change from run to run.
pub type Kernel = Box<dyn FnMut(&mut Call<'_>) -> Result<()> + Send>;

/// Where a kernel is prepared for.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The model.
    pub model: &'a Model,
    /// The node's subgraph.
    pub graph: &'a Graph,
    /// The node.
    pub node: &'a Node,
}

impl<'a> Site<'a> {
    /// The declared tensor of the i-th operand.
    ///
    /// # Errors
    /// `Invalid` when it is absent.
    pub fn input(&self, i: usize) -> Result<&'a Tensor> {
        self.graph.operand(self.node, i).ok_or_else(|| Error::invalid(format!("operand {i} is missing")))
    }
    /// The declared tensor of the i-th operand, when there is one.
    pub fn optional(&self, i: usize) -> Option<&'a Tensor> {
        self.graph.operand(self.node, i)
    }
    /// The declared tensor of the i-th output.
    ///
    /// # Errors
    /// `Invalid` when there is none.
    pub fn output(&self, i: usize) -> Result<&'a Tensor> {
        self.node
            .outputs
            .get(i)
            .and_then(|&t| self.graph.tensors.get(t))
            .ok_or_else(|| Error::invalid(format!("output {i} is missing")))
    }
    /// The error for an operator, type or attribute that the executor does not have.
    pub fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::unsupported(format!("{} with {what}", self.node.op.name()))
    }
}

/// One invocation.
#[derive(Debug)]
pub struct Call<'a> {
    /// Operands; `None` where an optional one is absent.
    pub inputs: &'a [Option<View<'a>>],
    /// Outputs, already shaped by `graph::infer`; where the shape hangs on the values, the kernel calls `reshape`.
    pub outputs: &'a mut [Value],
    /// The values of operands that the operator mutates (variable tensors), in the order of the node's inputs: where
    /// `inputs[i]` is a variable tensor, it is here and `inputs[i]` is `None`.
    pub variables: &'a mut [(usize, Value)],
    /// Threads.
    pub pool: &'a Pool,
    /// Variables and hash tables of the session.
    pub resources: &'a mut Resources,
    /// Where a kernel that only moves elements says which, when it is asked to.
    pub(crate) record: Option<&'a mut Option<Vec<Piece>>>,
    /// What follows on the first output's elements. A kernel that writes them all once may take it and apply it to each
    /// piece; what no kernel takes is applied when it has returned.
    pub(crate) then: Then<'a>,
    /// Rows and columns of zeros before and behind the image that a convolution reads, which its operand does not hold.
    pub(crate) pads: [[usize; 2]; 2],
}

impl<'a> Call<'a> {
    /// The i-th operand.
    ///
    /// # Errors
    /// `Invalid` when it is absent.
    pub fn input(&self, i: usize) -> Result<View<'a>> {
        self.inputs.get(i).copied().flatten().ok_or_else(|| Error::invalid(format!("operand {i} is missing")))
    }
    /// The i-th operand, when there is one.
    pub fn optional(&self, i: usize) -> Option<View<'a>> {
        self.inputs.get(i).copied().flatten()
    }
    /// The i-th output.
    ///
    /// # Errors
    /// `Invalid` when there is none.
    pub fn output(&mut self, i: usize) -> Result<&mut Value> {
        self.outputs.get_mut(i).ok_or_else(|| Error::invalid(format!("output {i} is missing")))
    }
    /// Takes what follows, which the kernel then applies itself, unless it does not write each element once.
    pub(crate) fn take_then(&mut self, once: bool) -> Then<'a> {
        if once { std::mem::take(&mut self.then) } else { Then::default() }
    }
    /// The variable tensor given as the i-th operand.
    ///
    /// # Errors
    /// `Invalid` when that operand is no variable tensor.
    pub fn variable(&mut self, i: usize) -> Result<&mut Value> {
        self.variables
            .iter_mut()
            .find(|(at, _)| *at == i)
            .map(|(_, v)| v)
            .ok_or_else(|| Error::invalid(format!("operand {i} must be a variable tensor")))
    }
}
