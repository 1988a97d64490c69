//! Every combination of parts that lowering may ask of the convolution kernels is valid WGSL.

use litegpu_shaders::{Elem, KernelKey, source};

fn validate(key: &KernelKey) {
    let text = source(key).unwrap();
    let module =
        naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}: {}", key.label(), e.emit_to_string(&text)));
    let mut v = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    v.validate(&module).unwrap_or_else(|e| panic!("{}: {}", key.label(), e.emit_to_string(&text)));
}

fn octs(e: Elem) -> Vec<(&'static str, &'static str)> {
    match e {
        Elem::I4 => return vec![("oct_b4_u32", "")],
        Elem::I2 => return vec![("oct_b2_u32", "")],
        _ => {}
    }
    let mut all = vec![("oct_quads", "put_quads")];
    all.extend(match e {
        Elem::F32 => vec![("oct_f32_u64", "put_f32_u64"), ("oct_f32_u64_odd", "put_f32_u64")],
        Elem::F16Packed => {
            vec![("oct_f16_u64", "put_f16_u64"), ("oct_f16_u64_odd", "put_f16_u64"), ("oct_f16_u32", "put_f16_u32")]
        }
        Elem::I8 | Elem::U8 => vec![("oct_b8_u32", "put_b8_u32")],
        _ => vec![],
    });
    all
}

#[test]
fn convolutions() {
    use Elem::*;
    for (x, w, class) in [
        (F32, F32, "float"),
        (F32, F16Packed, "float"),
        (F32, F16, "float"),
        (F16, F16, "float"),
        (F16Packed, F16Packed, "float"),
        (F16Packed, F32, "float"),
        (F32, I8, "scaled"),
        (F16, I8, "scaled"),
        (F16Packed, I8, "scaled"),
        (F32, I4, "scaled"),
        (F16, I4, "scaled"),
        (F16Packed, I4, "scaled"),
        (F32, I2, "scaled"),
        (F16, I2, "scaled"),
        (F16Packed, I2, "scaled"),
        (I8, I2, "int"),
        (I8, I2, "real"),
        (I8, I4, "int"),
        (I8, I4, "real"),
        (I8, I8, "int"),
        (I8, I8, "real"),
        (U8, U8, "int"),
    ] {
        let (chan, each, quad) = match class {
            "float" => ("chan_float", "each_float", "quad_float"),
            "scaled" => ("chan_scaled", "each_scaled", "quad_scaled"),
            "real" => ("chan_real", "each_real", "quad_real"),
            _ => ("chan_int", "each_int", "quad_int"),
        };
        let muls: &[&str] = if class == "int" { &["mul_u32", "mul_u64"] } else { &["mul_none"] };
        for (xo, _) in octs(x) {
            for (wo, _) in octs(w) {
                for &mul in muls {
                    let key = |kernel| {
                        KernelKey::new(kernel, &[("x", x), ("w", w), ("out", x)])
                            .part("x", xo)
                            .part("w", wo)
                            .part("", chan)
                            .part("", mul)
                    };
                    // Packed products have rows of words as they are.
                    for dots in ["dots_values", "dots_packed"] {
                        let packed = dots == "dots_packed";
                        if packed && (x != I8 || w != I8) {
                            continue;
                        }
                        let key = |kernel| {
                            let mut key = key(kernel).part("", dots);
                            for (_, part) in key.parts.iter_mut().filter(|(r, _)| packed && !r.is_empty()) {
                                *part = if *part == "oct_quads" { "oct_quads_dots" } else { "oct_b8_dots" };
                            }
                            key
                        };
                        for (_, put) in octs(x) {
                            validate(&key("conv").part("out", put).part("", each).part("", "share_subgroup"));
                            validate(&key("conv").part("out", put).part("", each).part("", "share_none"));
                            validate(&key("conv_four").part("out", put).part("", each));
                            validate(&key("conv_tile").part("out", put).part("", each));
                            if class == "float" {
                                for (matrices, teams) in [
                                    ("coop_f16", "teams_1"),
                                    ("coop_f16", "teams_2"),
                                    ("coop_f16_8", "teams_8"),
                                    ("coop_f32", "teams_2"),
                                    ("coop_f32", "teams_4"),
                                ] {
                                    let key = key("conv_coop").part("out", put).part("", each);
                                    validate(&key.part("", matrices).part("", teams));
                                }
                            }
                        }
                        validate(&key("matvec").part("", quad).part("", "split_none"));
                        validate(&key("matvec").part("", quad).part("", "split_sum"));
                    }
                    for (_, put) in octs(x) {
                        if class == "real" {
                            continue;
                        }
                        validate(&key("depthwise").part("out", put).part("", quad));
                        validate(&key("depthwise_rows").part("out", put).part("", quad).part("", "taps_3"));
                        validate(&key("depthwise_rows").part("out", put).part("", quad).part("", "taps_5"));
                    }
                    if class == "int" {
                        // Sums of 16 bits, for an LSTM's gates.
                        for kernel in ["conv", "conv_four", "conv_tile", "matvec"] {
                            let mut key = key(kernel).part("", if kernel == "matvec" { quad } else { each });
                            key = key.part("", "dots_values");
                            key.roles = vec![("x", x), ("w", w), ("out", I32)];
                            if kernel != "matvec" {
                                key = key.part("out", "put_quads");
                            }
                            validate(&match kernel {
                                "conv" => key.part("", "share_none"),
                                "matvec" => key.part("", "split_sum"),
                                _ => key,
                            });
                        }
                    }
                    if class == "scaled" {
                        for scales in [F32, F16, F16Packed] {
                            let mut key = key("blocks").part("", quad);
                            key.roles.push(("scales", scales));
                            validate(&key);
                        }
                    }
                }
            }
        }
        for (wo, _) in octs(w).into_iter().filter(|_| class != "real") {
            if !matches!(w, I4 | I2) {
                let key = KernelKey::new("depthwise_four", &[("x", x), ("w", w), ("out", x)]);
                validate(&key.part("", chan).part("", quad).part("", muls[0]));
            }
            let key = KernelKey::new("depthwise_multi", &[("x", x), ("w", w), ("out", x)]).part("w", wo);
            validate(&key.part("", chan).part("", quad).part("", muls[0]));
        }
    }
}
