// Sealed state, written from spec/state.md: confirms the vectors.
//
//   node state.mjs FILE…   one line for each vector that agrees

import { createCipheriv, createDecipheriv, createHash, createHmac, createPrivateKey, createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { decode } from "./canonical.mjs";
import { Refused, verifies } from "./mail.mjs";

const ascii = (text) => Buffer.from(text, "ascii");
const join = (...parts) => Buffer.concat(parts);
const need = (condition, code, why) => {
  if (!condition) throw new Refused(code, why);
};
const sha = (...parts) => createHash("sha256").update(join(...parts)).digest();
const hmac = (key, data) => createHmac("sha256", key).update(data).digest();
const expand = (key, label) => hmac(key, join(ascii(label), Buffer.of(1)));
const number = (value) => {
  const data = Buffer.alloc(8);
  data.writeBigUInt64BE(BigInt(value));
  return data;
};
const NONE = Buffer.alloc(32), HEAD = 28, CHUNK_HEAD = 48, PART = 162;

function encrypt(key, nonce, plain, associated) {
  const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(associated);
  return join(cipher.update(plain), cipher.final(), cipher.getAuthTag());
}

function decrypt(key, nonce, data, associated) {
  const cipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 });
  cipher.setAAD(associated).setAuthTag(data.subarray(-16));
  try {
    return join(cipher.update(data.subarray(0, -16)), cipher.final());
  } catch {
    throw new Refused("decryption", "the tag does not fit");
  }
}

// BLAKE2b with a key, RFC 7693, for messages of any length.

const WORD = (1n << 64n) - 1n;
const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => [...row].map((digit) => parseInt(digit, 16)));

function compress(h, block, counter, last) {
  const v = [...h, ...IV], m = Array.from({ length: 16 }, (_, i) => block.readBigUInt64LE(8 * i));
  const turn = (x, by) => ((x >> by) | (x << (64n - by))) & WORD;
  v[12] ^= counter;
  if (last) v[14] ^= WORD;
  const mix = (a, b, c, d, x, y) => {
    for (const [word, first, second] of [[x, 32n, 24n], [y, 16n, 63n]]) {
      v[a] = (v[a] + v[b] + word) & WORD;
      v[d] = turn(v[d] ^ v[a], first);
      v[c] = (v[c] + v[d]) & WORD;
      v[b] = turn(v[b] ^ v[c], second);
    }
  };
  for (let round = 0; round < 12; round++) {
    const s = SIGMA[round % 10];
    for (let i = 0; i < 4; i++) mix(i, 4 + i, 8 + i, 12 + i, m[s[2 * i]], m[s[2 * i + 1]]);
    for (let i = 0; i < 4; i++) {
      mix(i, 4 + ((i + 1) % 4), 8 + ((i + 2) % 4), 12 + ((i + 3) % 4), m[s[8 + 2 * i]], m[s[9 + 2 * i]]);
    }
  }
  return h.map((x, i) => x ^ v[i] ^ v[i + 8]);
}

function mac(key, ...parts) {
  const first = Buffer.alloc(128);
  key.copy(first);
  const data = join(first, ...parts), blocks = Math.ceil(data.length / 128);
  const padded = join(data, Buffer.alloc(128 * blocks - data.length));
  let h = [...IV];
  h[0] ^= 0x01010000n ^ (BigInt(key.length) << 8n) ^ 16n;
  for (let i = 0; i < blocks; i++) {
    const last = i === blocks - 1;
    h = compress(h, padded.subarray(128 * i, 128 * i + 128), BigInt(last ? data.length : 128 * (i + 1)), last);
  }
  const out = Buffer.alloc(16);
  out.writeBigUInt64LE(h[0], 0);
  out.writeBigUInt64LE(h[1], 8);
  return out;
}

// Plaintexts, and what is in them.

function padme(size) {
  if (size <= 256) return 256;
  const exponent = Math.floor(Math.log2(size)), step = 2 ** (exponent - Math.floor(Math.log2(exponent)) - 1);
  return Math.ceil(size / step) * step;
}

const bytes = (size) => (x) => Buffer.isBuffer(x) && (size === undefined || x.length === size);
const text = (x) => typeof x === "string";
const count = (x) => typeof x === "number";
const orNil = (check) => (x) => x === null || check(x);
const list = (check) => (x) => Array.isArray(x) && x.every(check);
const row = (...checks) => (x) => Array.isArray(x) && x.length === checks.length && checks.every((c, i) => c(x[i]));
const map = (key, value) => (x) => x instanceof Map && [...x].every(([k, v]) => key(k) && value(v));
const CHANGE = row(
  list(row(text, orNil(bytes()))), list(row(bytes(), orNil(bytes()))), list(row(bytes(16), count, bytes(32))), count,
);
const BORN = row(CHANGE, orNil(bytes()), orNil(bytes()));
const MANIFEST = row(count, bytes(32), bytes(), bytes(), bytes(), count);
const DATA = row(map(text, bytes()), map(bytes(), bytes()));
// Keys that are bytes are compared as such.
const named = (key) => (Buffer.isBuffer(key) ? key.toString("hex") : key);

function unpad(plain, form) {
  const end = 4 + plain.readUInt32BE(0);
  need(plain.length === padme(end) && plain.subarray(end).every((b) => b === 0), "format", "padding");
  const value = decode(plain.subarray(4, end));
  need(form(value), "format", "another form");
  return value;
}

// Records and chunks.

function head(data, magic, size, kinds) {
  need(data.length >= size, "format", "too short");
  need(data.subarray(0, 4).equals(ascii(magic)) && kinds.includes(data[4]), "format", "magic or kind");
  need(data.subarray(5, 8).every((b) => b === 0), "format", "reserved bytes");
  const end = size + (data[4] === 1 ? PART : 0), sealed = data.readUInt32BE(size - 4);
  need(sealed >= 16 && data.length === end + sealed, "format", "sizes");
  return end;
}

function openRecord(data, keys, log, previous, form) {
  const end = head(data, "CSR1", HEAD, [1, 2]), nonce = join(data.subarray(16, 24), Buffer.alloc(4));
  return unpad(decrypt(keys.record, nonce, data.subarray(end), join(log, previous, data.subarray(0, end))), form);
}

function openChunk(data, keys, log, form) {
  const end = head(data, "CSS1", CHUNK_HEAD, [1, 2]), nonce = join(data.subarray(36, 44), Buffer.alloc(4));
  return unpad(decrypt(keys.snapshot, nonce, data.subarray(end), join(log, data.subarray(0, end))), form);
}

const keysOf = (key) => ({ record: expand(key, "state/1 record"), snapshot: expand(key, "state/1 snapshot") });
const wrapping = (sealing, salt) => expand(hmac(salt, sealing), "state/1 wrap");
const digestOf = (record, log, version, previous) => sha(ascii("state/1"), log, number(version), previous, record);

function logIdOf(seed) {
  const secret = createPrivateKey({ key: join(Buffer.from("302e020100300506032b657004220420", "hex"), seed), format: "der", type: "pkcs8" });
  return sha(ascii("conclave/1 log"), createPublicKey(secret).export({ format: "der", type: "spki" }).subarray(-32));
}

// Whole stores.

class Store {
  constructor(v) {
    Object.assign(this, { v, version: -1, digest: NONE, history: [], map: new Map(), rows: new Map(), floor: 0, level: 0 });
  }

  boot(part) {
    const log = part.subarray(0, 32), level = part.readUInt16BE(64), id = part.subarray(66, 82);
    need(level <= this.v.level, "wrong-key", "a higher level");
    need(!this.log || this.log.equals(log), "state", "another log");
    need(level >= this.level, "state", "a lower level");
    const wrap = wrapping(this.v.sealing_key, part.subarray(82, 114));
    try {
      this.keys = keysOf(decrypt(wrap, Buffer.alloc(12), part.subarray(114), part.subarray(0, 82)));
    } catch {
      throw new Refused(this.log ? "state" : "wrong-key", "no key that opens");
    }
    Object.assign(this, { log: Buffer.from(log), level });
    return Buffer.from(id);
  }

  born(token, anchor) {
    need(token?.length === 32 && anchor?.length === 32 && logIdOf(anchor).equals(this.log), "state", "born with the log");
    Object.assign(this, { token, anchor });
  }

  record(data) {
    const end = head(data, "CSR1", HEAD, [1, 2]), version = this.version + 1, isBoot = data[4] === 1;
    need(data.readBigUInt64BE(8) === BigInt(version), "state", "another version");
    if (isBoot) this.history.push([this.boot(data.subarray(HEAD, end)), version]);
    need(this.keys, "state", "no boot record");
    const held = openRecord(data, this.keys, this.log, this.digest, isBoot ? BORN : CHANGE);
    if (isBoot && version === 0) this.born(held[1], held[2]);
    else if (isBoot) need(held[1] === null && held[2] === null, "state", "born twice");
    const [changes, rows, , floor] = isBoot ? held[0] : held;
    for (const [into, made] of [[this.map, changes], [this.rows, rows]]) {
      for (const [key, value] of made) value === null ? into.delete(named(key)) : into.set(named(key), value);
    }
    this.floor = Math.max(this.floor, floor);
    this.digest = digestOf(data, this.log, version, this.digest);
    this.version = version;
  }

  snapshot(manifest, rest) {
    const end = head(manifest, "CSS1", CHUNK_HEAD, [1]), version = manifest.readBigUInt64BE(28);
    need(manifest.readUInt32BE(24) === 0, "state", "a manifest with an index");
    const id = this.boot(manifest.subarray(CHUNK_HEAD, end));
    const [chunks, digest, boots, token, anchor, floor] = openChunk(manifest, this.keys, this.log, MANIFEST);
    this.born(token, anchor);
    need(boots.length > 0 && boots.length % 24 === 0, "state", "table of boots");
    for (let at = 0; at < boots.length; at += 24) {
      this.history.push([boots.subarray(at, at + 16), Number(boots.readBigUInt64BE(at + 16))]);
    }
    const firsts = this.history.map(([, first]) => first);
    need(firsts[0] === 0 && firsts.every((f, i) => !i || f > firsts[i - 1]), "state", "table of boots");
    const newest = this.history.filter(([, first]) => BigInt(first) <= version).at(-1);
    need(newest[0].equals(id), "state", "another boot's");
    let last = null;
    for (let index = 1; index <= chunks; index++) {
      const [what, data] = rest.shift() ?? [];
      need(what === 1, "state", "a chunk is missing");
      head(data, "CSS1", CHUNK_HEAD, [2]);
      const place = [data.readUInt32BE(24) === index, data.subarray(8, 24).equals(manifest.subarray(8, 24))];
      need(place.every(Boolean) && data.readBigUInt64BE(28) === version, "state", "another chunk");
      const [items, rows] = openChunk(data, this.keys, this.log, DATA);
      for (const [key, value] of items) {
        need(last === null || Buffer.compare(Buffer.from(last), Buffer.from(key)) < 0, "state", "order of keys");
        this.map.set((last = key), value);
      }
      for (const [key, value] of rows) {
        need(!this.rows.has(named(key)), "state", "a row twice");
        this.rows.set(named(key), value);
      }
    }
    Object.assign(this, { version: Number(version), digest, floor });
  }

  read(given) {
    const rest = [...given];
    if (rest[0]?.[0] === 0) this.snapshot(rest.shift()[1], rest);
    while (rest[0]?.[0] === 2) this.record(rest.shift()[1]);
    need(rest[0]?.[0] === 3 && rest[0][1].length === 0, "state", "no end where it was expected");
  }
}

// Vectors.

const object = (found) => Object.fromEntries([...found].map(([key, value]) => [key, value.toString("hex")]));

async function state(v, raw) {
  const name = v.id.slice("state/".length);
  if (name.startsWith("log-")) {
    const store = new Store(v);
    try {
      store.read(raw.stored.map(([what, data]) => [what, Buffer.from(data, "hex")]));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      throw new Refused(error.code === "wrong-key" ? "wrong-key" : "state", error.message);
    }
    if (store.version < 0) throw new Refused("new", "nothing stored");
    const history = join(...store.history.map(([boot, first]) => join(boot, number(first))));
    return {
      version: store.version, floor: store.floor, digest: store.digest, history, map: object(store.map),
      rows: object(store.rows), token_key: store.token, anchor_seed: store.anchor, log_id: store.log,
    };
  }
  if (name.startsWith("context")) {
    const key = expand(v.token_key, "state/1 context key"), said = v.context.subarray(0, 56);
    need(v.context.length === 72, "context", "size");
    need(v.context.some((b) => b !== 0), "none", "none yet");
    need(mac(key, ascii("state/1 context"), v.log_id, v.identity, said).equals(v.context.subarray(56)), "context", "tag");
    return { k_context: key };
  }
  if (name === "mark") {
    const key = expand(v.token_key, "state/1 mark key");
    return { k_mark: key, mark: mac(key, v.marked) };
  }
  if (name === "wrapped") {
    const level = Buffer.of(v.level >> 8, v.level & 255), key = wrapping(v.sealing_key, v.salt);
    const said = join(v.log_id, v.bundle_id, level, v.boot);
    const wrapped = join(v.salt, encrypt(key, Buffer.alloc(12), v.boot_key, said));
    return { k_wrap: key, wrapped, part: join(said, wrapped) };
  }
  if (name.startsWith("statement")) {
    const signed = join(ascii("conclave/1 state\0"), v.claims_digest, v.statement);
    need(await verifies(v.signing_key, signed, v.signature), "signature", "does not verify");
    const said = decode(v.statement), refused = [said.get("refused_version"), said.get("refused_boot"), said.get("refused_digest")];
    const keys = "version log_id state_version boot digest refused_version refused_boot refused_digest";
    need([...said.keys()].join(" ") === keys && said.get("version") === 1 && count(said.get("state_version")), "format", "keys");
    need(row(bytes(32), bytes(16), bytes(32))([said.get("log_id"), said.get("boot"), said.get("digest")]), "format", "sizes");
    need(refused.every((x) => x === null) || row(count, bytes(16), bytes(32))(refused), "format", "what it refuses");
    return {};
  }
  const keys = keysOf(v.boot_key), plain = openRecord(v.record, keys, v.log_id, v.previous, CHANGE) && v.plaintext;
  const start = v.record.subarray(0, HEAD), nonce = join(number(v.counter), Buffer.alloc(4));
  return {
    k_record: keys.record, k_snapshot: keys.snapshot,
    plaintext: join(Buffer.of(0, 0, 0, v.encoded.length), v.encoded, Buffer.alloc(252 - v.encoded.length)),
    record: join(start, encrypt(keys.record, nonce, plain, join(v.log_id, v.previous, start))),
    digest: digestOf(v.record, v.log_id, v.version, v.previous),
  };
}

async function confirm(path) {
  const raw = JSON.parse(readFileSync(path, "utf8"));
  const asIs = ["id", "spec", "comment", "expect", "stored", "map", "rows"];
  const isHex = ([name, x]) => typeof x === "string" && !asIs.includes(name);
  const v = Object.fromEntries(Object.entries(raw).map((pair) => [pair[0], isHex(pair) ? Buffer.from(pair[1], "hex") : pair[1]]));
  let found = "ok", values = {};
  try {
    values = await state(v, raw);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    found = error.code;
  }
  need(found === v.expect, "vector", `expected ${v.expect}, found ${found}`);
  for (const [name, value] of Object.entries(values)) {
    const plain = Buffer.isBuffer(value) ? value.toString("hex") : value, sorted = (x) => JSON.stringify(Object.entries(x).sort());
    const same = typeof plain === "object" ? sorted(plain) === sorted(raw[name]) : plain === raw[name];
    need(same, "vector", `${name} differs`);
  }
  console.log(`confirmed ${v.id}`);
}

for (const file of process.argv.slice(2)) {
  try {
    await confirm(file);
  } catch (error) {
    console.error(`${JSON.parse(readFileSync(file, "utf8")).id}: ${error.message}`);
    process.exitCode = 1;
  }
}
