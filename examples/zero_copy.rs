//! Shares the application's device with the delegate: a network doubles a picture's resolution on the GPU, and a render
//! pass draws what it leaves in a buffer. Pixels go up once and come back once, drawn.
//!
//!     cargo run --release --example zero_copy -- [RESULT [MODEL]]
#![allow(clippy::print_stdout)]

use litegpu::{Device, Error, Gpu, GpuOptions, Model, Precision, Result, Session, picture, wgpu};
use std::path::Path;

/// Draws a picture of `wide` pixels a row, one vec4 each, over the whole target.
const DRAW: &str = "
@group(0) @binding(0) var<storage, read> pixels: array<vec4<f32>>;
override wide: u32;
override scale: u32;
@vertex fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
    return vec4<f32>(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}
@fragment fn colour(@builtin(position) at: vec4<f32>) -> @location(0) vec4<f32> {
    let p = vec2<u32>(at.xy) / scale;
    return vec4<f32>(clamp(pixels[p.y * wide + p.x].rgb, vec3<f32>(0.0), vec3<f32>(1.0)), 1.0);
}";

/// Screen pixels of a pixel.
const SCALE: u32 = 2;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut arg = |default: &str| args.next().unwrap_or_else(|| default.to_string());
    let result = arg("drawn.png");
    let model = Model::open(arg("models/sr_x2_f32.tflite"))?;

    // The application's device, as it would make it for its window.
    let other = |e: &dyn std::fmt::Display| Error::invalid(e.to_string());
    let mut about = wgpu::InstanceDescriptor::new_without_display_handle();
    about.backends = wgpu::Backends::from_env().unwrap_or(about.backends);
    let instance = wgpu::Instance::new(about);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).map_err(|e| other(&e))?;
    let wish = wgpu::DeviceDescriptor {
        required_features: adapter.features() & (wgpu::Features::SUBGROUP | wgpu::Features::SHADER_INT64),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&wish)).map_err(|e| other(&e))?;

    let gpu = Gpu::share(adapter, device.clone(), queue.clone(), GpuOptions::default());
    let builder = Session::builder(&model).device(Device::Gpu).precision(Precision::F32).require_gpu(true);
    let mut session = builder.everything_on_gpu(true).gpu(&gpu).build()?;
    let none = || Error::invalid("the model's picture is not on the GPU");
    let (from, to) = (session.input_port(0)?.ok_or_else(none)?, session.output_port(0)?.ok_or_else(none)?);
    let (&[_, h, w, 3], &[_, high, wide, 3]) = (from.shape.as_slice(), to.shape.as_slice()) else {
        return Err(Error::invalid("the model does not make a picture of a picture"));
    };

    // The picture goes up: rows of three floats, padded to four.
    let photo = picture::open(Path::new("models/samples/sr_input.png"))?.to_rgb8();
    let mut pixels = vec![[0f32; 4]; h * w];
    for (x, y, p) in photo.enumerate_pixels().filter(|(x, y, _)| (*x as usize) < w && (*y as usize) < h) {
        pixels[y as usize * w + x as usize] = [p[0], p[1], p[2], 0].map(|v| f32::from(v) / 255.0);
    }
    use wgpu::BufferUsages as U;
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let source = buffer(from.bytes, U::COPY_SRC | U::COPY_DST);
    let bytes: Vec<u8> = pixels.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    queue.write_buffer(&source, 0, &bytes);
    let drawn = buffer(to.bytes, U::STORAGE | U::COPY_DST);
    session.attach_input(0, Some(&litegpu::DeviceMemory::from_buffer(source)))?;
    session.attach_output(0, Some(&litegpu::DeviceMemory::from_buffer(drawn.clone())))?;
    session.invoke()?;

    // The render pass reads what the network wrote: the same queue, no copy through the host.
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(DRAW.into()),
    });
    let format = wgpu::TextureFormat::Rgba8Unorm;
    let constants = [("wide", wide as f64), ("scale", f64::from(SCALE))];
    let options = wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() };
    let pipeline = device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: None,
        layout: None,
        vertex: wgpu::VertexState {
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            buffers: &[],
        },
        fragment: Some(wgpu::FragmentState {
            module: &module,
            entry_point: None,
            compilation_options: options,
            targets: &[Some(format.into())],
        }),
        primitive: Default::default(),
        depth_stencil: None,
        multisample: Default::default(),
        multiview_mask: None,
        cache: None,
    });
    let bind = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: drawn.as_entire_binding() }],
    });
    let (width, height) = (wide as u32 * SCALE, high as u32 * SCALE);
    let size = wgpu::Extent3d { width, height, depth_or_array_layers: 1 };
    let screen = device.create_texture(&wgpu::TextureDescriptor {
        label: None,
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
        view_formats: &[],
    });
    let view = screen.create_view(&Default::default());
    let row = (width * 4).next_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT);
    let seen = buffer(u64::from(row * height), U::MAP_READ | U::COPY_DST);
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let target = wgpu::RenderPassColorAttachment {
            view: &view,
            depth_slice: None,
            resolve_target: None,
            ops: wgpu::Operations::default(),
        };
        let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            color_attachments: &[Some(target)],
            ..Default::default()
        });
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bind, &[]);
        pass.draw(0..3, 0..1);
    }
    let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(row), rows_per_image: None };
    encoder.copy_texture_to_buffer(screen.as_image_copy(), wgpu::TexelCopyBufferInfo { buffer: &seen, layout }, size);
    queue.submit([encoder.finish()]);

    // What a window would show.
    seen.map_async(wgpu::MapMode::Read, .., |_| ());
    device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| other(&e))?;
    let data = seen.get_mapped_range(..).map_err(|e| other(&e))?;
    let shown = image::RgbImage::from_fn(width, height, |x, y| {
        let at = (y * row + x * 4) as usize;
        image::Rgb([0, 1, 2].map(|c| data.get(at + c).copied().unwrap_or(0)))
    });
    picture::save(&shown.into(), Path::new(&result))?;
    println!("{result}: {width}x{height}, drawn on {} from a buffer that the network wrote", gpu.name());
    Ok(())
}
