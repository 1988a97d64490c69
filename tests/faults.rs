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
