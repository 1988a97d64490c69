// What was measured about kernels, in the Cache API between visits. The runtime itself says whether it fits the adapter.

/** Entries of the store are requests: this one names no file of the site. */
const entry = () => new Request(`${globalThis.origin}/litegpu-tuned`);

/** What the store of that name has; nothing where there is none. */
export async function kept(cache) {
  try {
    const found = cache && (await (await caches.open(cache)).match(entry()));
    return new Uint8Array(found ? await found.arrayBuffer() : 0);
  } catch {
    // No permission, or no store at all as in Node: it is a convenience.
    return new Uint8Array(0);
  }
}

/** Keeps what has been measured by now. */
export async function keep(cache, bytes) {
  try {
    if (cache) await (await caches.open(cache)).put(entry(), new Response(bytes));
  } catch {
    // No room.
  }
}
