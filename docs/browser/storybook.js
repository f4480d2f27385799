/** @file storybook in plain JavaScript: a GPT-2 with a cache, its words, and what its judge says. */

const EPS = 1e-5;

/** Half-precision numbers as single-precision ones. @param {Uint16Array} halves */
function widen(halves) {
  const out = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const [h, mantissa] = [halves[i], halves[i] & 0x3ff];
    const exponent = (h >> 10) & 0x1f;
    const size = exponent ? 2 ** (exponent - 15) * (1 + mantissa / 1024) : 2 ** -14 * (mantissa / 1024);
    out[i] = h >> 15 ? -size : size;
  }
  return out;
}

/** A safetensors file of half-precision numbers, by name. @param {ArrayBuffer} buffer */
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  const read = ([start, end]) => widen(new Uint16Array(buffer.slice(8 + length + start, 8 + length + end)));
  return Object.fromEntries(Object.entries(header).map(([name, of]) => [name, read(of.data_offsets)]));
}

/** Bias + x W, with W stored input-major, as GPT-2's are. */
function linear(x, weight, bias) {
  const out = Float64Array.from(bias);
  const width = bias.length;
  for (let i = 0; i < x.length; i++) {
    const [value, row] = [x[i], i * width];
    for (let j = 0; j < width; j++) out[j] += value * weight[row + j];
  }
  return out;
}

function layerNorm(x, weight, bias) {
  let [mean, square] = [0, 0];
  for (const value of x) mean += value / x.length;
  for (const value of x) square += (value - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(square + EPS);
  return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
}

const gelu = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

/** Logarithms of a softmax. */
export function logSoftmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b));
  const total = Math.log(logits.reduce((sum, value) => sum + Math.exp(value - top), 0));
  return logits.map((value) => value - top - total);
}

/**
 * A read prefix: its last token's keys and values, and the prefix before it. Prefixes share what they
 * have in common, so that copying a particle copies nothing.
 * @typedef {{parent: any, depth: number, kv: [Float64Array, Float64Array][], hidden: Float64Array}} Prefix
 */

export class GPT2 {
  /** @param {Record<string, Float32Array>} tensors @param {{n_layer: number, n_head: number, n_embd: number}} config */
  constructor(tensors, config) {
    this.tensors = tensors;
    this.layers = config.n_layer;
    this.heads = config.n_head;
    this.width = config.n_embd;
  }

  of(name) {
    return this.tensors[`transformer.${name}`];
  }

  normed(x, name) {
    return layerNorm(x, this.of(`${name}.weight`), this.of(`${name}.bias`));
  }

  through(x, name) {
    return linear(x, this.of(`${name}.weight`), this.of(`${name}.bias`));
  }

  /** The prefix with one more token. @param {Prefix | null} parent @param {number} token @returns {Prefix} */
  read(parent, token) {
    const { width } = this;
    const depth = parent ? parent.depth + 1 : 0;
    const [wte, wpe] = [this.of("wte.weight"), this.of("wpe.weight")];
    let x = Float64Array.from({ length: width }, (_, i) => wte[token * width + i] + wpe[depth * width + i]);
    const node = { parent, depth, kv: [], hidden: x };
    for (let layer = 0; layer < this.layers; layer++) {
      const at = `h.${layer}`;
      const qkv = this.through(this.normed(x, `${at}.ln_1`), `${at}.attn.c_attn`);
      node.kv.push([qkv.subarray(width, 2 * width), qkv.subarray(2 * width)]);
      const mixed = this.through(this.attend(node, layer, qkv.subarray(0, width)), `${at}.attn.c_proj`);
      x = x.map((value, i) => value + mixed[i]);
      const inner = this.through(this.normed(x, `${at}.ln_2`), `${at}.mlp.c_fc`).map(gelu);
      const added = this.through(inner, `${at}.mlp.c_proj`);
      x = x.map((value, i) => value + added[i]);
    }
    node.hidden = this.normed(x, "ln_f");
    return node;
  }

  /** Attention of a prefix's last token to itself and all before it. */
  attend(node, layer, query) {
    const past = [];
    for (let at = node; at; at = at.parent) past.push(at.kv[layer]);
    const size = this.width / this.heads;
    const out = new Float64Array(this.width);
    for (let head = 0; head < this.heads; head++) {
      const from = head * size;
      const scores = past.map(([key]) => {
        let dot = 0;
        for (let i = from; i < from + size; i++) dot += query[i] * key[i];
        return dot / Math.sqrt(size);
      });
      logSoftmax(scores).forEach((score, k) => {
        const share = Math.exp(score);
        for (let i = from; i < from + size; i++) out[i] += share * past[k][1][i];
      });
    }
    return out;
  }

  /** Dot products of a prefix's state with the rows of a matrix. */
  rows(node, matrix) {
    const { width } = this;
    return Float64Array.from({ length: matrix.length / width }, (_, row) => {
      let dot = 0;
      for (let i = 0; i < width; i++) dot += node.hidden[i] * matrix[row * width + i];
      return dot;
    });
  }

  /** log p0 of every next token. @param {Prefix} node */
  next(node) {
    return (node.logProbs ??= logSoftmax(this.rows(node, this.of("wte.weight"))));
  }

  /** Log-probabilities of a classifier's classes. @param {Prefix} node */
  classes(node) {
    return (node.logProbs ??= logSoftmax(this.rows(node, this.tensors["score.weight"])));
  }
}

export class Words {
  /** @param {string[]} vocabulary by id */
  constructor(vocabulary) {
    this.texts = vocabulary;
    this.ids = new Map(vocabulary.map((word, id) => [word, id]));
  }

  /** Ids of a text; throws with the words that the model does not know. @param {string} text */
  encode(text) {
    const plain = text.replace(/’/g, "'").replace(/(?<!\S)"/g, "“").replace(/"/g, "”");
    const words = plain.split(/\s+/).flatMap((part) => part.split(/([.,!?“”])/)).filter(Boolean);
    const unknown = words.filter((word) => !this.ids.has(word));
    if (unknown.length) throw new Error(`storybook does not know: ${unknown.join(", ")}`);
    return words.map((word) => this.ids.get(word));
  }

  /** The text of ids; special ones are left out. @param {number[]} ids */
  decode(ids) {
    const words = ids.filter((id) => id > 2).map((id) => this.texts[id]);
    return words.join(" ").replace(/ ([.,!?”])/g, "$1").replace(/“ /g, "“");
  }
}
