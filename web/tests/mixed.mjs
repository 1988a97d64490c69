// A graph with an operator in the middle that has no GPU kernel: four element-wise operators, FAKE_QUANT, four more.
import { Builder } from 'flatbuffers';

const codes = { LOGISTIC: 14, TANH: 28, EXP: 47, NEG: 59, SIN: 66, FAKE_QUANT: 80, ABS: 101, HARD_SWISH: 117 };
const usual = ['HARD_SWISH', 'TANH', 'NEG', 'ABS', 'FAKE_QUANT', 'LOGISTIC', 'EXP', 'TANH', 'NEG'];
const FAKE_QUANT_OPTIONS = 58;

/** The model's bytes; its input and output have the shape `shape`. */
export function mixed(shape, chain = usual) {
  const b = new Builder(4096);
  // A table from [slot, kind, value]; offsets have been made before.
  const table = (size, fields) => {
    b.startObject(size);
    for (const [slot, kind, value] of fields) {
      if (kind === 'offset') b.addFieldOffset(slot, value, 0);
      else if (kind === 'int') b.addFieldInt32(slot, value, 0);
      else if (kind === 'float') b.addFieldFloat32(slot, value, 0);
      else b.addFieldInt8(slot, value, 0);
    }
    return b.endObject();
  };
  const vector = (values, add) => {
    b.startVector(4, values.length, 4);
    for (const v of values.toReversed()) add(v);
    return b.endVector();
  };
  const ints = (values) => vector(values, (v) => b.addInt32(v));
  const offsets = (values) => vector(values, (v) => b.addOffset(v));
  const kinds = [...new Set(chain)];
  const operatorCodes = offsets(
    kinds.map((k) => table(4, [[0, 'byte', codes[k]], [2, 'int', 1], [3, 'int', codes[k]]])),
  );
  const tensors = [];
  for (let i = 0; i <= chain.length; i++) {
    const [name, dims] = [b.createString(`t${i}`), ints(shape)];
    tensors.push(table(4, [[0, 'offset', dims], [3, 'offset', name]]));
  }
  const operators = [];
  for (const [i, kind] of chain.entries()) {
    const [inputs, outputs] = [ints([i]), ints([i + 1])];
    const fields = [[0, 'int', kinds.indexOf(kind)], [1, 'offset', inputs], [2, 'offset', outputs]];
    if (kind === 'FAKE_QUANT') {
      const options = table(4, [[0, 'float', -1], [1, 'float', 1], [2, 'int', 8]]);
      fields.push([3, 'byte', FAKE_QUANT_OPTIONS], [4, 'offset', options]);
    }
    operators.push(table(5, fields));
  }
  const graph = [
    [0, 'offset', offsets(tensors)],
    [1, 'offset', ints([0])],
    [2, 'offset', ints([chain.length])],
    [3, 'offset', offsets(operators)],
  ];
  const subgraphs = offsets([table(5, graph)]);
  const buffers = offsets([table(1, [])]);
  const model = [[0, 'int', 3], [1, 'offset', operatorCodes], [2, 'offset', subgraphs], [4, 'offset', buffers]];
  b.finish(table(5, model), 'TFL3');
  return b.asUint8Array();
}
