use litegpu_delegate::*;
use litegpu_graph::*;
use std::collections::HashMap;
use std::sync::Arc;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let mode = args.get(1).map(String::as_str).unwrap_or("f32");
    let opts = EngineOptions {
        half: if mode == "f16n" { HalfStorage::Native } else { HalfStorage::Packed },
        hide_f16: mode == "f16p",
        ..Default::default()
    };
    let engine = Engine::open_blocking(opts).unwrap();
    let mut caps = engine.caps().clone();
    if std::env::var("TEAM").is_ok() {
        caps.class = AdapterClass::Discrete;
    }
    let precision = if mode == "f32" { Precision::F32 } else { Precision::F16 };
    for name in &args[2..] {
        let list = std::fs::read_to_string(format!("/tmp/conf/{name}/cases.tsv")).unwrap();
        let (mut ok, mut bad, mut skip) = (0, 0, 0);
        let mut reasons: HashMap<String, usize> = HashMap::new();
        for line in list.lines() {
            let f: Vec<&str> = line.split('\t').collect();
            let dir = f[0];
            let class = f[1];
            if let Ok(c) = std::env::var("CASE")
                && !dir.contains(&c)
            {
                continue;
            }
            let bytes = std::fs::read(format!("{dir}/model.tflite")).unwrap();
            let model = match Model::read(bytes) {
                Ok(m) => Arc::new(m),
                Err(e) => {
                    println!("READ {dir}: {e}");
                    continue;
                }
            };
            let g = &model.subgraphs[0];
            let mut ins: Vec<(TensorId, Shape)> = Vec::new();
            if let Some(sh) = f.get(4) {
                for (i, s) in sh.split(';').enumerate() {
                    if i >= g.inputs.len() {
                        continue;
                    }
                    let v: Shape = s
                        .trim_matches(|c| c == '[' || c == ']')
                        .split(',')
                        .filter(|x| !x.trim().is_empty())
                        .map(|x| x.trim().parse().unwrap())
                        .collect();
                    ins.push((g.inputs[i], v));
                }
            }
            let m2 = model.clone();
            let mut ev = move |node: &Node, facts: &[Option<ops::Fact<'_>>], outs: &[Shape]| {
                litegpu_cpu::evaluate(&m2, &m2.subgraphs[0], node, facts, outs)
            };
            let mut shapes = match shapes::propagate(g, &ins, Some(&mut ev)) {
                Ok(s) => s,
                Err(e) => {
                    println!("SHAPES {dir}: {e}");
                    skip += 1;
                    continue;
                }
            };
            for (s, t) in shapes.shapes.iter_mut().zip(&g.tensors) {
                if s.is_none() && t.has_rank && t.signature.is_none() {
                    *s = Some(t.shape.clone());
                }
            }
            let po = PlanOptions { precision, force_gpu: true, ..Default::default() };
            let p = plan(&model, 0, &shapes, &caps, &po, Some(&mut ev)).unwrap();
            let mut ex = litegpu_cpu::Executor::new(
                model.clone(),
                litegpu_cpu::Options { threads: 1, keep_all: true, ..Default::default() },
            )
            .unwrap();
            let mut why = None;
            for pl in &p.placements {
                if pl.device == Device::Cpu {
                    why = Some(format!("{}: {}", g.nodes[pl.node].op.name(), pl.reason));
                }
            }
            if p.counts().0 == 0 {
                skip += 1;
                *reasons.entry(why.unwrap_or_else(|| "all folded".into())).or_default() += 1;
                continue;
            }
            let mut go = || -> Result<Vec<Vec<u8>>, String> {
                for (i, &t) in g.inputs.iter().enumerate() {
                    let b = std::fs::read(format!("{dir}/in{i}.bin")).map_err(|e| e.to_string())?;
                    let sh = shapes.shapes[t].clone().ok_or("shape")?;
                    let v = ex.write(0, t, &sh).map_err(|e| e.to_string())?;
                    if v.bytes().len() != b.len() {
                        return Err(format!("input {i} size {} {}", v.bytes().len(), b.len()));
                    }
                    v.bytes_mut().copy_from_slice(&b);
                }
                for s in &p.steps {
                    match s {
                        Step::Cpu(n) => ex.run_nodes(0, n.iter().copied()).map_err(|e| format!("cpu {e}"))?,
                        Step::Gpu(pr) => {
                            let mut l = engine.load_blocking(pr).map_err(|e| format!("LOAD {e}"))?;
                            let ins: Vec<Vec<u8>> = l
                                .inputs()
                                .map(|p| ex.get(0, p.tensor).map(|v| v.bytes.to_vec()).map_err(|e| e.to_string()))
                                .collect::<Result<_, _>>()?;
                            let mut outs: Vec<Vec<u8>> = l.outputs().map(|p| vec![0xEEu8; p.host_bytes()]).collect();
                            for sl in 0..pr.slots.len() {
                                l.poke(sl, 0xff);
                            }
                            let r: Vec<&[u8]> = ins.iter().map(|v| v.as_slice()).collect();
                            let mut o: Vec<&mut [u8]> = outs.iter_mut().map(|v| v.as_mut_slice()).collect();
                            l.run_blocking(&r, &mut o).map_err(|e| format!("RUN {e}"))?;
                            for (p, b) in pr.outputs.iter().zip(outs) {
                                let v = ex.write(0, p.tensor, &p.shape).map_err(|e| e.to_string())?;
                                v.bytes_mut().copy_from_slice(&b);
                            }
                        }
                    }
                }
                g.outputs.iter().map(|&t| ex.get(0, t).map(|v| v.bytes.to_vec()).map_err(|e| e.to_string())).collect()
            };
            match go() {
                Err(e) if e.starts_with("cpu") => {
                    skip += 1;
                    *reasons.entry(format!("{} / {}", why.unwrap_or_default(), e)).or_default() += 1;
                }
                Err(e) => {
                    bad += 1;
                    println!("ERR {dir} {class}: {e}");
                }
                Ok(outs) => {
                    let mut worst = String::new();
                    for (i, (&t, got)) in g.outputs.iter().zip(&outs).enumerate() {
                        let want = std::fs::read(format!("{dir}/out{i}.bin")).unwrap();
                        let tol: Vec<f64> =
                            f[2].split(';').nth(i).unwrap().split(':').map(|x| x.parse().unwrap()).collect();
                        let dt = g.tensors[t].dtype;
                        if want.len() != got.len() {
                            worst = format!("out{i} size {} want {}", got.len(), want.len());
                            break;
                        }
                        if dt == DType::F32 {
                            let a: Vec<f64> =
                                got.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect();
                            let b: Vec<f64> =
                                want.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect();
                            let (mut n, mut d, mut m) = (0.0, 0.0, 0.0f64);
                            let mut fails = 0;
                            for (x, y) in a.iter().zip(&b) {
                                if x == y || (x.is_nan() && y.is_nan()) {
                                    n += if y.is_finite() { y * y } else { 0.0 };
                                    continue;
                                }
                                if !x.is_finite() || !y.is_finite() {
                                    fails += 1;
                                    d = f64::NAN;
                                    continue;
                                }
                                n += y * y;
                                d += (x - y) * (x - y);
                                m = m.max((x - y).abs());
                                if (x - y).abs() > tol[0] + tol[1] * y.abs() {
                                    fails += 1;
                                }
                            }
                            let rel = (d / n.max(1e-30)).sqrt();
                            if (mode == "f32" && fails > 0 && !(rel < 1e-5)) || (mode != "f32" && !(rel < 4e-3)) {
                                worst = format!(
                                    "out{i} {fails}/{} rel {rel:.2e} max {m:.2e} got {:?} want {:?}",
                                    a.len(),
                                    &a[..a.len().min(6)],
                                    &b[..b.len().min(6)]
                                );
                            }
                        } else if want != *got {
                            let n = want.iter().zip(got).filter(|(a, b)| a != b).count();
                            worst = format!(
                                "out{i} {dt} {n}/{} bytes differ got {:?} want {:?}",
                                want.len(),
                                &got[..got.len().min(16)],
                                &want[..want.len().min(16)]
                            );
                        }
                    }
                    if worst.is_empty() {
                        ok += 1;
                    } else {
                        bad += 1;
                        println!("BAD {dir} {class} [{}]: {worst}", why.unwrap_or_default());
                    }
                }
            }
        }
        let mut r: Vec<_> = reasons.into_iter().collect();
        r.sort_by_key(|x| std::cmp::Reverse(x.1));
        for (k, n) in r {
            println!("  skip {n}: {k}");
        }
        println!("{name}: ok {ok} bad {bad} skip {skip}");
    }
}
