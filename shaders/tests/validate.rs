//! Every combination of kernel, element types and functions is valid WGSL, and so is every library function.

use litegpu_shaders::{At, Elem, KERNELS, Kernel, KernelKey, Step, functions, source};

fn validate(text: &str) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let mut v = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    v.validate(&module).map(drop).map_err(|e| e.emit_to_string(text))
}

/// Every way to store the kernel's roles in which operands agree in class.
fn combinations(kernel: &Kernel) -> Vec<Vec<(&'static str, Elem)>> {
    let mut all = vec![Vec::new()];
    for &(role, elems) in kernel.roles {
        all = all
            .into_iter()
            .flat_map(|c: Vec<(&'static str, Elem)>| {
                elems.iter().map(move |&e| {
                    let mut c = c.clone();
                    c.push((role, e));
                    c
                })
            })
            .collect();
    }
    all.retain(|c| {
        let mut classes = c.iter().filter(|(r, _)| r.starts_with("in")).map(|(_, e)| e.is_float());
        let first = classes.next();
        classes.all(|f| Some(f) == first)
    });
    all
}

fn of<'k>(key: &'k [(&'static str, Elem)], role: &str) -> Option<&'k Elem> {
    key.iter().find(|(r, _)| *r == role).map(|(_, e)| e)
}

#[test]
fn every_combination() {
    let mut count = 0;
    for kernel in KERNELS.iter().filter(|k| !k.parted) {
        let none: &[&[(&str, &str)]] = &[&[]];
        let variants = if kernel.variants.is_empty() { none } else { kernel.variants };
        for roles in combinations(kernel) {
            for variant in variants {
                let float_in = of(&roles, "in0").is_some_and(|e| e.is_float());
                let takes = |f: &str| f.starts_with("f_") || f.starts_with("bf_") || f.ends_with("_f");
                if variant.iter().any(|(_, f)| takes(f) != float_in) {
                    continue;
                }
                let compares = variant.iter().any(|(_, f)| f.starts_with("b"));
                let acc_float = float_in && !compares;
                if of(&roles, "acc").is_some_and(|e| e.is_float() != acc_float) {
                    continue;
                }
                let has_acc = of(&roles, "acc").is_some();
                let out_float = of(&roles, "out").is_some_and(|e| e.is_float());
                if !has_acc
                    && of(&roles, "in0").is_some()
                    && matches!(kernel.name, "pick" | "matrix" | "dynamic")
                    && out_float != float_in
                {
                    continue;
                }
                let mut key = KernelKey::new(kernel.name, &roles);
                for &(alias, f) in *variant {
                    key = key.with(alias, f);
                }
                if has_acc && acc_float != out_float {
                    key = key.then(Step::call(if acc_float { "to_int" } else { "to_float" }, &[]));
                }
                let text = source(&key).unwrap();
                if let Err(e) = validate(&text) {
                    panic!("{}: {e}\n{text}", key.label());
                }
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn every_function() {
    for f in functions() {
        let float = f.starts_with("f_");
        let elem = if float { Elem::F32 } else { Elem::I32 };
        // The library's text alone: what a module would take of it.
        let key = KernelKey::new("unary", &[("in0", elem), ("acc", elem), ("out", elem)]).with("UNUSED", f);
        validate(&source(&key).unwrap()).unwrap_or_else(|e| panic!("{f}: {e}"));
    }
}

#[test]
fn epilogue_operands() {
    for elem in [Elem::F32, Elem::F16, Elem::F16Packed] {
        for at in [At::Same, At::Row, At::Scalar, At::Narrow] {
            let step = Step { f: "f_sub", operand: Some((elem, at)), swap: true, args: Vec::new() };
            let key = KernelKey::new("unary", &[("in0", elem), ("acc", Elem::F32), ("out", elem)])
                .then(Step::call("f_relu", &[]))
                .then(step.clone())
                .then(step);
            validate(&source(&key).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// A series of whatever functions take vectors of numbers, and single words.
#[test]
fn series() {
    for settle in ["settle_barrier", "settle_none"] {
        let mut key = KernelKey::new("series", &[]).part("", settle);
        for f in functions().into_iter().filter(|f| !matches!(*f, "b_flag" | "f_grid" | "f_snap")) {
            key = key.with("-", f);
        }
        let text = source(&key).unwrap();
        assert!(text.contains("{ r = bitcast<vec4<u32>>(i_add(bitcast<vec4<i32>>(a), bitcast<vec4<i32>>(b))); }"));
        assert!(text.contains("f_clamp(bitcast<vec4<f32>>(a), bitcast<f32>(c[0]), bitcast<f32>(c[1]))"), "{text}");
        if let Err(e) = validate(&text) {
            panic!("{e}\n{text}");
        }
    }
    assert!(source(&KernelKey::new("series", &[]).with("-", "f_none")).is_err());
}
