// How the invocations of a series wait for each other between instructions.

//@ settle_barrier
fn settle() {
    storageBarrier();
}

//@ settle_none
// The workgroup is one subgroup of an adapter that runs its invocations in step.
fn settle() {}
