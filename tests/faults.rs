//! What happens to a session when the GPU is missing, refused or lost: the same answers from the CPU, and a report that
//! says why, or an error where the caller wants the GPU or nothing.
#![cfg(feature = "gpu")]

mod common;

use litegpu::{Device, ErrorKind, Gpu, GpuOptions, Model, Precision, Session, Target, Tensor};

fn digits() -> (Model, Tensor) {
    let model = Model::open(common::repo("models/digits_int8.tflite")).unwrap();
    let session = Session::builder(&model).device(Device::Cpu).build().unwrap();
    let info = &session.inputs()[0];
    let bytes: Vec<u8> = (0..info.shape.iter().product::<usize>()).map(|i| (i * 37 % 251) as u8).collect();
    let input = Tensor::from_bytes(info.dtype, &info.shape, &bytes).unwrap();
    (model, input)
}

fn on_cpu(model: &Model, input: &Tensor) -> Vec<u8> {
    let mut session = Session::builder(model).device(Device::Cpu).build().unwrap();
    session.run(std::slice::from_ref(input)).unwrap()[0].bytes().to_vec()
}

fn no_such() -> GpuOptions {
    GpuOptions { adapter: Some("an adapter that nobody has".into()), ..GpuOptions::default() }
}

#[test]
fn without_an_adapter_the_cpu_runs_and_the_report_says_so() {
    let (model, input) = digits();
    let mut session = Session::builder(&model).device(Device::Gpu).gpu_options(no_such()).build().unwrap();
    assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), on_cpu(&model, &input));
    let report = session.report();
    assert_eq!(report.count(Target::Gpu), 0);
    assert!(report.note.as_deref().unwrap_or_default().contains("an adapter that nobody has"), "{:?}", report.note);
}

#[test]
fn without_an_adapter_who_requires_one_gets_an_error() {
    let (model, _) = digits();
    let built = Session::builder(&model).device(Device::Gpu).require_gpu(true).gpu_options(no_such()).build();
    assert_eq!(built.err().unwrap().kind, ErrorKind::Device);
}

#[test]
fn a_lost_device_leaves_the_work_to_the_cpu() {
    if !common::gpu() {
        return;
    }
    let (model, input) = digits();
    let want = on_cpu(&model, &input);
    let gpu = Gpu::open(GpuOptions::default()).unwrap();
    let b = Session::builder(&model).device(Device::Gpu).precision(Precision::F16).gpu(&gpu);
    let mut session = b.build().unwrap();
    assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), want);
    assert!(session.report().count(Target::Gpu) > 0);
    gpu.close();
    for _ in 0..2 {
        assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), want);
    }
    let report = session.report();
    assert_eq!(report.count(Target::Gpu), 0);
    assert!(report.note.as_deref().unwrap_or_default().contains("lost"), "{:?}", report.note);
}

#[test]
fn a_lost_device_is_an_error_to_who_requires_it() {
    if !common::gpu() {
        return;
    }
    let (model, input) = digits();
    let gpu = Gpu::open(GpuOptions::default()).unwrap();
    let b = Session::builder(&model).device(Device::Gpu).require_gpu(true).gpu(&gpu);
    let mut session = b.build().unwrap();
    session.run(std::slice::from_ref(&input)).unwrap();
    gpu.close();
    assert_eq!(session.run(std::slice::from_ref(&input)).err().unwrap().kind, ErrorKind::Device);
}

#[test]
fn state_is_on_the_gpu_and_survives_its_loss() {
    if !common::gpu() {
        return;
    }
    let gpu = Gpu::open(GpuOptions::default()).unwrap();
    let mut session =
        Session::builder(&common::counter()).device(Device::Gpu).everything_on_gpu(true).gpu(&gpu).build().unwrap();
    assert_eq!(session.report().count(Target::Gpu), 1);
    let x = [Tensor::new(&[1, 1], &[5f32]).unwrap()];
    let next = |s: &mut Session| s.run(&x).unwrap()[0].view::<f32>().unwrap()[0];
    assert_eq!([next(&mut session), next(&mut session)], [1.0, 2.0]);
    session.reset();
    assert_eq!([next(&mut session), next(&mut session)], [1.0, 2.0]);
    gpu.close();
    assert_eq!([next(&mut session), next(&mut session)], [3.0, 4.0]);
    assert_eq!(session.report().count(Target::Gpu), 0);
}

#[test]
fn a_shared_device_stays_the_applications() {
    if !common::gpu() {
        return;
    }
    use litegpu::{DeviceMemory, wgpu};
    let mut about = wgpu::InstanceDescriptor::new_without_display_handle();
    about.backends = wgpu::Backends::from_env().unwrap_or(about.backends);
    let instance = wgpu::Instance::new(about);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    // With no feature at all and the least limits: what the adapter has more of must not be used.
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    let gpu = Gpu::share(adapter, device.clone(), queue, GpuOptions::default());
    let caps = gpu.caps();
    assert!(!caps.f16 && !caps.int64 && !caps.timestamps && caps.subgroups.is_none(), "{caps:?}");
    let (model, input) = digits();
    let mut session = Session::builder(&model).device(Device::Gpu).everything_on_gpu(true).gpu(&gpu).build().unwrap();
    let want = on_cpu(&model, &input);
    assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), want);
    assert!(session.report().count(Target::Gpu) > 0);
    // A buffer that is too small, or may not be copied to, is refused before anything runs.
    use wgpu::BufferUsages as U;
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    for (size, usage, why) in [(4, U::COPY_DST, "4 bytes"), (4096, U::STORAGE, "COPY_DST")] {
        let memory = DeviceMemory::from_buffer(buffer(size, usage));
        let e = session.attach_output(0, Some(&memory)).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
    let out = buffer(4096, U::COPY_DST | U::MAP_READ);
    session.attach_output(0, Some(&DeviceMemory::from_buffer(out.clone()))).unwrap();
    session.set_input(0, &input).unwrap();
    session.invoke().unwrap();
    let read = || {
        out.map_async(wgpu::MapMode::Read, .., |r| r.unwrap());
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let bytes = out.get_mapped_range(..).unwrap()[..want.len()].to_vec();
        out.unmap();
        bytes
    };
    assert_eq!(read(), want);
    // Giving it back leaves it to the application.
    gpu.close();
    assert_eq!(read(), want);
    assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), want);
    assert_eq!(session.report().count(Target::Gpu), 0);
}

/// The difference of two pools of twice the operand: too much for 16 bits where the operand is above 32,752.
fn doubled() -> Model {
    use litegpu::graph::schema::{ActivationFunctionType, AddOptionsT, Padding, Pool2DOptionsT, SubOptionsT};
    use litegpu::graph::{Graph, Node, Op, Tensor};
    let none = ActivationFunctionType::NONE;
    let pool = Pool2DOptionsT {
        padding: Padding::VALID,
        stride_h: 1,
        stride_w: 1,
        filter_height: 1,
        filter_width: 1,
        fused_activation_function: none,
    };
    let tensor = |name| Tensor::new(name, litegpu::DType::F32, &[1, 2, 2, 4]);
    let graph = Graph {
        tensors: ["x", "twice", "most", "mean", "y"].map(tensor).to_vec(),
        nodes: vec![
            Node::new(Op::Add(AddOptionsT { fused_activation_function: none, ..Default::default() }), &[0, 0], &[1]),
            Node::new(Op::MaxPool2d(pool.clone()), &[1], &[2]),
            Node::new(Op::AveragePool2d(pool), &[1], &[3]),
            Node::new(Op::Sub(SubOptionsT { fused_activation_function: none, ..Default::default() }), &[2, 3], &[4]),
        ],
        inputs: vec![0],
        outputs: vec![4],
        ..Graph::default()
    };
    Model::from_graph(litegpu::graph::Model { subgraphs: vec![graph], ..Default::default() }).unwrap()
}

#[test]
fn nan_that_only_the_gpu_makes_is_not_the_answer() {
    if !common::gpu() {
        return;
    }
    let model = doubled();
    let options = GpuOptions { half: litegpu::HalfStorage::Native, ..GpuOptions::default() };
    let build = |guard: bool, require: bool| {
        let b = Session::builder(&model).device(Device::Gpu).precision(Precision::F16).everything_on_gpu(true);
        b.gpu_options(options.clone()).nan_guard(guard).require_gpu(require).build().unwrap()
    };
    let input = |v: f32| [Tensor::new(&[1, 2, 2, 4], &[v; 16]).unwrap()];
    let first = |s: &mut Session, v: f32| s.run(&input(v)).map(|o| o[0].view::<f32>().unwrap()[0]);
    let mut blind = build(false, false);
    assert!(first(&mut blind, 60000.0).unwrap().is_nan(), "the case is one");
    let mut session = build(true, false);
    assert_eq!(first(&mut session, 1.0).unwrap(), 0.0);
    assert_eq!(session.report().count(Target::Gpu), 4);
    assert_eq!(first(&mut session, 60000.0).unwrap(), 0.0);
    let report = session.report();
    assert_eq!(report.count(Target::Gpu), 0);
    assert!(report.note.as_deref().unwrap_or_default().contains("'y'"), "{:?}", report.note);
    assert_eq!(first(&mut build(true, true), 60000.0).unwrap_err().kind, ErrorKind::Device);
    // NaN goes in, and infinity less infinity is NaN on the CPU too: the GPU goes on.
    for v in [f32::NAN, f32::INFINITY] {
        let mut session = build(true, true);
        assert!(first(&mut session, v).unwrap().is_nan());
        assert!(first(&mut session, v).unwrap().is_nan());
        assert_eq!(session.report().count(Target::Gpu), 4);
    }
}

#[test]
fn a_kernel_that_does_not_compile_or_a_queue_that_hangs_leaves_the_work_to_the_cpu() {
    if !common::gpu() {
        return;
    }
    use litegpu::wgpu;
    let (model, input) = digits();
    let want = on_cpu(&model, &input);
    let mut about = wgpu::InstanceDescriptor::new_without_display_handle();
    about.backends = wgpu::Backends::from_env().unwrap_or(about.backends);
    let instance = wgpu::Instance::new(about);
    let open = |limits: wgpu::Limits, options: GpuOptions| {
        let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
        let wish = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&wish)).unwrap();
        Gpu::share(adapter, device, queue, options)
    };
    // A kernel with bindings is refused where there is no bind group; no time at all is too little for any run.
    let small = wgpu::Limits { max_bind_groups: 0, ..Default::default() };
    let hasty = GpuOptions { timeout: std::time::Duration::ZERO, ..GpuOptions::default() };
    let cases = [(small, GpuOptions::default(), "kernel"), (wgpu::Limits::default(), hasty, "in time")];
    for (limits, options, why) in cases {
        let gpu = open(limits.clone(), options.clone());
        let b = || Session::builder(&model).device(Device::Gpu).everything_on_gpu(true);
        let mut session = b().gpu(&gpu).build().unwrap();
        for _ in 0..2 {
            assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), want);
        }
        let report = session.report();
        assert_eq!(report.count(Target::Gpu), 0, "{why}");
        assert!(report.note.as_deref().unwrap_or_default().contains(why), "{:?}", report.note);
        let gpu = open(limits, options);
        let failed = b().require_gpu(true).gpu(&gpu).build().and_then(|mut s| s.run(std::slice::from_ref(&input)));
        assert!(failed.is_err());
    }
}

#[test]
fn memory_that_is_refused_leaves_the_work_to_the_cpu() {
    if !common::gpu() {
        return;
    }
    let (model, input) = digits();
    let want = on_cpu(&model, &input);
    let b = |memory| {
        let options = GpuOptions { memory: Some(memory), ..GpuOptions::default() };
        Session::builder(&model).device(Device::Gpu).everything_on_gpu(true).gpu(&Gpu::open(options).unwrap())
    };
    let mut session = b(1 << 10).build().unwrap();
    assert_eq!(session.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), want);
    let report = session.report();
    assert_eq!(report.count(Target::Gpu), 0, "{report}");
    assert!(report.note.as_deref().unwrap_or_default().contains("out of GPU memory"), "{:?}", report.note);
    assert!(report.placements.iter().any(|p| p.reason.contains("memory budget")), "{report}");
    // Nobody is to take over.
    let e = b(1 << 10).require_gpu(true).build().unwrap_err();
    assert!(e.kind == ErrorKind::Device && e.to_string().contains("out of GPU memory"), "{e}");
}

/// What several sessions hold counts together, and is given back with them.
#[test]
fn sessions_share_the_memory_of_their_device() {
    if !common::gpu() {
        return;
    }
    let (model, input) = digits();
    let on = |gpu: &Gpu| Session::builder(&model).device(Device::Gpu).everything_on_gpu(true).gpu(gpu).build().unwrap();
    let whole = on(&Gpu::open(GpuOptions::default()).unwrap()).report();
    let used = whole.memory.gpu_planned + whole.memory.gpu_weights;
    let gpu = Gpu::open(GpuOptions { memory: Some(used * 3 / 2), ..GpuOptions::default() }).unwrap();
    let first = on(&gpu);
    assert_eq!(first.report().count(Target::Gpu), whole.count(Target::Gpu));
    let mut second = on(&gpu);
    assert!(second.report().count(Target::Gpu) < whole.count(Target::Gpu), "{}", second.report());
    assert_eq!(second.run(std::slice::from_ref(&input)).unwrap()[0].bytes(), on_cpu(&model, &input));
    drop((first, second));
    assert_eq!(on(&gpu).report().count(Target::Gpu), whole.count(Target::Gpu));
}
