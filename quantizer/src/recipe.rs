//! Recipes: which operators get which scheme, rule by rule.
//!
//! ```json
//! {"rules": [
//!     {"operator": "FULLY_CONNECTED", "scheme": "dynamic"},
//!     {"match": "^head/", "scheme": "int16x8", "weights": "mse"},
//!     {"match": "logits", "method": "percentile:0.999"}
//! ]}
//! ```
//!
//! A rule applies to operators of that name whose tensors (a result or a constant) have a name in which the regular
//! expression is found; what it leaves out applies to all. Of several rules that give an operator the same property,
//! the last wins.

use crate::calibrate::Method;
use crate::{Mode, WeightRange};
use litegpu_graph::{Error, Graph, Model, NodeId, Result, TensorId};
use regex::Regex;
use serde::Deserialize;

/// What is to become of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// It stays float.
    Float,
    /// Its constants become float16.
    Float16,
    /// Its weights become integers, its activations stay float.
    Dynamic {
        /// 8 or 4.
        bits: u32,
        /// Weights are widened before use.
        weight_only: bool,
    },
    /// Everything int8.
    Int8,
    /// Activations int16, weights int8.
    Int16x8,
}

impl Scheme {
    /// Whether the scheme needs ranges.
    pub fn needs_calibration(self) -> bool {
        matches!(self, Scheme::Int8 | Scheme::Int16x8)
    }

    fn named(name: &str) -> Result<Scheme> {
        Ok(match name {
            "float" => Scheme::Float,
            "f16" => Scheme::Float16,
            "dynamic" => Scheme::Dynamic { bits: 8, weight_only: false },
            "dynamic4" => Scheme::Dynamic { bits: 4, weight_only: false },
            "weights" => Scheme::Dynamic { bits: 8, weight_only: true },
            "weights4" => Scheme::Dynamic { bits: 4, weight_only: true },
            "int8" => Scheme::Int8,
            "int16x8" => Scheme::Int16x8,
            _ => {
                let all = "float, f16, dynamic, dynamic4, weights, weights4, int8, int16x8";
                return Err(Error::invalid(format!("scheme '{name}' is none of {all}")));
            }
        })
    }

    /// What the mode does to every operator.
    pub(crate) fn of(mode: Mode) -> Scheme {
        match mode {
            Mode::Dynamic { bits, weight_only, .. } => Scheme::Dynamic { bits, weight_only },
            Mode::Int8 { .. } => Scheme::Int8,
            Mode::Float16 => Scheme::Float16,
            Mode::Int16x8 { .. } => Scheme::Int16x8,
        }
    }
}

/// One rule.
#[derive(Debug, Clone)]
pub struct RecipeRule {
    /// Found in the name of one of the operator's results or constants.
    pub names: Option<Regex>,
    /// The operator's name, `CONV_2D`.
    pub operator: Option<String>,
    /// What becomes of it.
    pub scheme: Option<Scheme>,
    /// How the ranges of its results are found.
    pub method: Option<Method>,
    /// How the range of its weights is chosen.
    pub weights: Option<WeightRange>,
}

impl RecipeRule {
    fn applies(&self, g: &Graph, n: NodeId) -> bool {
        let Some(node) = g.nodes.get(n) else { return false };
        if self.operator.as_ref().is_some_and(|o| o != node.op.name()) {
            return false;
        }
        let Some(names) = &self.names else { return true };
        let tensor = |t: &TensorId| g.tensors.get(*t);
        let constants = node.inputs.iter().flatten().filter_map(tensor).filter(|t| t.is_constant());
        node.outputs.iter().filter_map(tensor).chain(constants).any(|t| names.is_match(&t.name))
    }
}

/// Rules in order.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    /// The rules; the last that applies wins.
    pub rules: Vec<RecipeRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<Line>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(rename = "match")]
    names: Option<String>,
    operator: Option<String>,
    scheme: Option<String>,
    method: Option<String>,
    weights: Option<String>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// `Invalid`, with the line or the rule, for text that is none.
    pub fn from_json(text: &str) -> Result<Recipe> {
        let file: File = serde_json::from_str(text).map_err(|e| Error::invalid(format!("no recipe: {e}")))?;
        let rule = |(i, l): (usize, Line)| {
            let rule = || -> Result<RecipeRule> {
                if l.scheme.is_none() && l.method.is_none() && l.weights.is_none() {
                    return Err(Error::invalid("gives neither scheme, method nor weights"));
                }
                // The size limit bounds the memory of hostile patterns; matching takes linear time.
                let regex = |s: &String| {
                    let built = regex::RegexBuilder::new(s).size_limit(1 << 20).build();
                    built.map_err(|e| Error::invalid(e.to_string()))
                };
                Ok(RecipeRule {
                    names: l.names.as_ref().map(regex).transpose()?,
                    operator: l.operator.clone(),
                    scheme: l.scheme.as_deref().map(Scheme::named).transpose()?,
                    method: l.method.as_deref().map(str::parse).transpose()?,
                    weights: l.weights.as_deref().map(str::parse).transpose()?,
                })
            };
            rule().map_err(|e| e.at(format!("rule {i} of the recipe")))
        };
        Ok(Recipe { rules: file.rules.into_iter().enumerate().map(rule).collect::<Result<_>>()? })
    }

    fn last<T>(&self, g: &Graph, n: NodeId, of: impl Fn(&RecipeRule) -> Option<T>) -> Option<T> {
        self.rules.iter().rev().find_map(|r| of(r).filter(|_| r.applies(g, n)))
    }

    /// The scheme of an operator, where a rule gives one.
    pub fn scheme(&self, g: &Graph, n: NodeId) -> Option<Scheme> {
        self.last(g, n, |r| r.scheme)
    }

    /// How the range of an operator's weights is chosen, where a rule says so.
    pub fn weights(&self, g: &Graph, n: NodeId) -> Option<WeightRange> {
        self.last(g, n, |r| r.weights)
    }

    /// How a tensor's range is found, where a rule says so: the rule is one for the operator that makes it.
    pub fn method(&self, model: &Model, subgraph: usize, tensor: TensorId) -> Option<Method> {
        if self.rules.iter().all(|r| r.method.is_none()) {
            return None;
        }
        let g = model.subgraphs.get(subgraph)?;
        let maker = g.nodes.iter().position(|n| n.outputs.contains(&tensor))?;
        self.last(g, maker, |r| r.method)
    }

    /// Rules, by number, that apply to no operator of the model.
    pub fn idle(&self, model: &Model) -> Vec<usize> {
        let applies = |r: &RecipeRule| model.subgraphs.iter().any(|g| (0..g.nodes.len()).any(|n| r.applies(g, n)));
        self.rules.iter().enumerate().filter(|(_, r)| !applies(r)).map(|(i, _)| i).collect()
    }
}
