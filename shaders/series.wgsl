// A series of small operators, one after another, by one workgroup, where each would take less time than its dispatch.
// What they do is data: instructions in the uniform. Memory is words; what one instruction writes the next may read.
//
// An instruction writes the quads of a region of a tensor, each invocation some of them. A quad is made in steps, each of
// which reads four elements of an operand (or none) and gives them, with what the steps before have made, to a function
// of the library. Values are the bits of f32 or i32.

override WG: u32 = 64u;

// Of a step's how: operands are numbered as the output's memory, not as the region.
const BY_OUTPUT: u32 = 1u;
// Each of the four elements has a place of its own; or else they lie side by side; or else one stands for all.
const EACH: u32 = 2u;
const SIDE_BY_SIDE: u32 = 4u;
// The operand is the function's first argument.
const SWAP: u32 = 8u;
// What the steps before have made are indices (arguments: how many there are, their stride).
const INDIRECT: u32 = 16u;
// The step ends with a row of arguments.
const ARGUMENTS: u32 = 32u;
// There are two operands, which are multiplied: four by four, or summed up, where the second has four rows that are
// read. Arguments: the distance of those rows, and what is subtracted from either operand where they are integers.
const PRODUCT: u32 = 64u;
const INTEGERS: u32 = 128u;
// What is read is kept for functions with more arguments than two; the last two are.
const KEEP: u32 = 256u;
// With PRODUCT: what is read of the first operand is an index (arguments as of INDIRECT) by which the second one is read.
const LOOK_UP: u32 = 512u;

struct Params {
    // An instruction: (where the next begins, quads, quads of a row, elements of a row),
    // (the region's first lane in a row, 1 where elements are bytes, address in words, rows in a group or 0),
    // (quads from group to group beyond their rows, first quad, quads of an output row, -), and its steps:
    // (function, where the next begins, how and from bit 16 on how often something is read, repetitions), operands and
    // arguments. An operand: (how and where it is stored, address, what is outside, dimensions by the element's number
    // and from bit 16 on by the repetition's), and those dimensions: (size or 0 for all the rest, stride, low, high).
    code: array<vec4<u32>, 2048>,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> constants: array<u32>;
@group(0) @binding(2) var<storage, read> in0: array<u32>;
@group(0) @binding(3) var<storage, read> in1: array<u32>;
@group(0) @binding(4) var<storage, read> in2: array<u32>;
@group(0) @binding(5) var<storage, read> in3: array<u32>;
@group(0) @binding(6) var<storage, read> in4: array<u32>;
@group(0) @binding(7) var<storage, read_write> memory: array<u32>;

const OUTSIDE: i32 = -1073741824;

// Four elements from one on, or one four times. How: 1 bytes and not words, 2 signed ones, 16 and up where they lie.
fn load(how: u32, at: u32, four: bool) -> vec4<u32> {
    let narrow = (how & 1u) * 2u;
    var e = vec4<u32>();
    let start = at >> narrow;
    let end = start + select(1u, 4u, four && narrow == 0u);
    // Where most of it is, without a loop.
    if (four && (how == 0u || how == 16u)) {
        if (how == 0u) {
            return vec4<u32>(memory[start], memory[start + 1u], memory[start + 2u], memory[start + 3u]);
        }
        return vec4<u32>(constants[start], constants[start + 1u], constants[start + 2u], constants[start + 3u]);
    }
    let space = how >> 4u;
    if (space == 0u) {
        e.w = memory[start];
    } else if (space == 1u) {
        e.w = constants[start];
    } else {
        for (var i = start; i < end; i++) {
            var w = 0u;
            switch space {
                case 2u: { w = in0[i]; }
                case 3u: { w = in1[i]; }
                case 4u: { w = in2[i]; }
                case 5u: { w = in3[i]; }
                default: { w = in4[i]; }
            }
            e = vec4<u32>(e.yzw, w);
        }
    }
    if (narrow != 0u) {
        e = select(unpack4xU8(e.w), bitcast<vec4<u32>>(unpack4xI8(e.w)), (how & 2u) != 0u);
        e.w = e[select(at & 3u, 3u, four)];
    }
    return select(e.wwww, e, four);
}

// Quotient and rest, for numbers below 2^24: the float quotient is off by one at most.
fn divide(a: u32, d: u32) -> vec2<u32> {
    let q = u32(f32(a) / f32(d));
    let r = i32(a - q * d);
    let less = u32(r < 0);
    let more = u32(r >= i32(d));
    return vec2<u32>(q + more - less, u32(r) + (less - more) * d);
}

// The distance of the element of that number by the dimensions in rows `first` to `end`.
fn place(first: u32, end: u32, number: u32) -> i32 {
    var rest = number;
    var at = 0;
    var inside = true;
    for (var k = first; k < end; k++) {
        let dim = p.code[k];
        var c = i32(rest);
        if (dim.x != 0u) {
            let parts = divide(rest, dim.x);
            rest = parts.x;
            c = i32(parts.y);
        }
        inside = inside && c >= i32(dim.z) && c < i32(dim.w);
        at += c * i32(dim.y);
    }
    return select(OUTSIDE, at, inside);
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) local: u32) {
    let end = p.code[0].x;
    var pc = 1u;
    while (pc < end) {
        let head = p.code[pc];
        let to = p.code[pc + 1u];
        let rows = p.code[pc + 2u];
        for (var i = local; i < head.y; i += WG) {
            var r = 0u;
            var x = i;
            if (head.z < head.y) {
                let parts = divide(i, head.z);
                r = parts.x;
                x = parts.y;
            }
            let start = r * head.w + x * 4u - to.x;
            var o = r * rows.z + rows.y + x;
            if (to.w != 0u) {
                o += (r / to.w) * rows.x;
            }
            let keep = vec4<u32>(x * 4u - to.x) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(head.w);
            var v = vec4<u32>();
            var kept = vec4<u32>();
            var before_it = vec4<u32>();
            for (var s = pc + 3u; s < head.x;) {
                let step = p.code[s];
                let source = p.code[s + 1u];
                let how = step.z;
                var args = vec4<u32>();
                if ((how & ARGUMENTS) != 0u) {
                    args = p.code[step.y - 1u];
                }
                let reads = how >> 16u;
                let number = select(start, o * 4u, (how & BY_OUTPUT) != 0u);
                let each = (how & EACH) != 0u;
                let product = (how & PRODUCT) != 0u;
                let integers = (how & INTEGERS) != 0u;
                // Where what is read begins, before repetitions, and what follows about the operands.
                let other = select(s + 1u, s + 2u + (source.w & 65535u) + (source.w >> 16u), product);
                var second = source;
                if (product) {
                    second = p.code[other];
                }
                let looks_up = (how & LOOK_UP) != 0u;
                let starts = select(min(reads, select(1u, 2u, product)), 4u, each);
                var spots = vec4<i32>();
                for (var l = 0u; l < starts; l++) {
                    let one = product && l == 1u;
                    let k = select(s + 1u, other, one);
                    let found = select(source.yw, second.yw, one);
                    var at = i32(found.x) + place(k + 1u, k + 1u + (found.y & 65535u), number + select(0u, l, each));
                    if ((how & INDIRECT) != 0u) {
                        at = select(OUTSIDE, at + i32(v.x * args.y), v.x < args.x);
                    }
                    if (each) {
                        v = v.yzwx;
                        at = select(OUTSIDE, at, x * 4u + l - to.x < head.w);
                    }
                    spots = select(spots, vec4<i32>(at), vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(l));
                }
                let over = vec2<u32>(s + 2u + (source.w & 65535u), other + 1u + (second.w & 65535u));
                let dims = vec2<u32>(source.w >> 16u, second.w >> 16u);
                // A single dimension of repetitions needs no division.
                var pace = vec2<i32>();
                if (step.w > 1u) {
                    pace = vec2<i32>(i32(p.code[over.x].y), i32(p.code[over.y].y));
                }
                for (var t = 0u; t < step.w; t++) {
                    var b = vec4<u32>();
                    var first = vec4<u32>();
                    var at = 0;
                    var turn = spots;
                    for (var l = 0u; l < reads; l++) {
                        let one = product && l > 0u;
                        if (l < starts) {
                            at = turn.x;
                            turn = turn.yzwx;
                            let n = select(dims.x, dims.y, one);
                            if (n > 1u) {
                                let k = select(over.x, over.y, one);
                                at += place(k, k + n, t);
                            } else if (n == 1u) {
                                at += i32(t) * select(pace.x, pace.y, one);
                            }
                            if (one && looks_up) {
                                at = select(OUTSIDE, at + i32(first.x * args.y), first.x < args.x);
                            }
                        } else {
                            at += i32(args.x);
                        }
                        var e = vec4<u32>(select(source.z, second.z, one));
                        if (at >= 0) {
                            e = load(select(source.x, second.x, one), u32(at), (how & SIDE_BY_SIDE) != 0u && (one || !looks_up));
                        }
                        if (each) {
                            b = vec4<u32>(b.yzw, e.x);
                        } else if (!one || looks_up) {
                            b = e;
                            first = e;
                        } else if (integers) {
                            let f = (first - args.y) * (e - args.z);
                            b = select(vec4<u32>(b.yzw, f.x + f.y + f.z + f.w), f, reads == 2u);
                        } else {
                            let f = bitcast<vec4<f32>>(first) * bitcast<vec4<f32>>(e);
                            let sum = bitcast<u32>(f.x + f.y + f.z + f.w);
                            b = select(vec4<u32>(b.yzw, sum), bitcast<vec4<u32>>(f), reads == 2u);
                        }
                    }
                    if ((how & KEEP) != 0u) {
                        before_it = kept;
                        kept = b;
                    } else if (step.x == 0u) {
                        v = b;
                    } else {
                        let swap = (how & SWAP) != 0u;
                        v = apply(step.x, select(v, b, swap), select(b, v, swap), args, kept, before_it);
                    }
                }
                s = step.y;
            }
            v = select(vec4<u32>(), v, keep);
            let bytes = to.y != 0u;
            let count = select(4u, 1u, bytes);
            if (bytes) {
                v.x = pack4xU8(v);
            }
            // What lies before the region in its first quad was written earlier.
            let before = select(0u, to.x, x == 0u);
            if (!bytes && to.x == 0u) {
                let at = to.z + o * 4u;
                memory[at] = v.x;
                memory[at + 1u] = v.y;
                memory[at + 2u] = v.z;
                memory[at + 3u] = v.w;
                continue;
            }
            for (var l = 0u; l < count; l++) {
                let at = to.z + o * count + l;
                var e = v.x;
                if (before != 0u) {
                    let old = select(select(0u, ~0u, l < before), (1u << (before * 8u)) - 1u, bytes);
                    e = (memory[at] & old) | (e & ~old);
                }
                memory[at] = e;
                v = v.yzwx;
            }
        }
        settle();
        pc = head.x;
    }
}
