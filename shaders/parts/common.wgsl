// What every kernel may use. Identifiers here are shared: keep them few.

// The invocation's number in a grid whose workgroup count may have been split into y and z.
fn linear_id(wg: vec3<u32>, count: vec3<u32>, local: u32, size: u32) -> u32 {
    return ((wg.z * count.y + wg.y) * count.x + wg.x) * size + local;
}

// The workgroup's number in such a grid.
fn linear_group(wg: vec3<u32>, count: vec3<u32>) -> u32 {
    return (wg.z * count.y + wg.y) * count.x + wg.x;
}
