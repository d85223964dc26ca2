// Canonical encodings, written from spec/claims.md, spec/bundle.md and spec/constraint.md.
//
//   node canonical.mjs RELEASE FILE…   one line for each vector that agrees

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { crc32, inflateRawSync } from "node:zlib";
import { Refused, sha, verifies } from "./mail.mjs";

const hex = (text) => Buffer.from(text, "hex");
const need = (condition, why, code = "format") => {
  if (!condition) throw new Refused(code, why);
};

// MessagePack, in the one shortest form of each value: unsigned integers, nil, text, bytes, arrays, maps.

export function decode(data) {
  let at = 0;
  const take = (size) => {
    need(at + size <= data.length, "truncated");
    at += size;
    return data.subarray(at - size, at);
  };
  const sized = (bytes, least, readers) => {
    const value = Number(take(bytes)[readers](0));
    need(value >= least, "a number that has a shorter form");
    return value;
  };
  const u8 = (least) => sized(1, least, "readUInt8");
  const u16 = (least) => sized(2, least, "readUInt16BE");
  const u32 = (least) => sized(4, least, "readUInt32BE");
  const u64 = () => {
    const value = take(8).readBigUInt64BE(0);
    need(value >= 2n ** 32n, "a number that has a shorter form");
    return value;
  };
  const text = (size) => {
    const raw = take(size), value = raw.toString("utf8");
    need(Buffer.from(value, "utf8").equals(raw), "not UTF-8");
    return value;
  };
  const array = (size) => Array.from({ length: size }, value);
  const map = (size) => {
    const found = new Map(Array.from({ length: size }, () => [value(), value()]));
    need(found.size === size, "a key twice");
    return found;
  };
  function value() {
    const tag = take(1)[0];
    if (tag < 0x80) return tag;
    if (tag < 0x90) return map(tag & 15);
    if (tag < 0xa0) return array(tag & 15);
    if (tag < 0xc0) return text(tag & 31);
    switch (tag) {
      case 0xc0: return null;
      case 0xc4: return Buffer.from(take(u8(0)));
      case 0xc5: return Buffer.from(take(u16(2 ** 8)));
      case 0xc6: return Buffer.from(take(u32(2 ** 16)));
      case 0xcc: return u8(128);
      case 0xcd: return u16(2 ** 8);
      case 0xce: return u32(2 ** 16);
      case 0xcf: return u64();
      case 0xd9: return text(u8(32));
      case 0xda: return text(u16(2 ** 8));
      case 0xdc: return array(u16(16));
      case 0xdd: return array(u32(2 ** 16));
      case 0xde: return map(u16(16));
      default: throw new Refused("format", `a value of kind ${tag}`);
    }
  }
  const whole = value();
  need(at === data.length, "trailing bytes");
  return whole;
}

const isText = (x) => typeof x === "string";
const isNumber = (most) => (x) => typeof x === "number" && x <= most;
const isBytes = (size) => (x) => Buffer.isBuffer(x) && (size === undefined || x.length === size);
const orNil = (check) => (x) => x === null || check(x);
const isList = (check) => (x) => Array.isArray(x) && x.every(check);
const oneOf = (...words) => (x) => words.includes(x);

function record(value, fields) {
  need(value instanceof Map, "not a map");
  const names = Object.keys(fields);
  need(value.size === names.length && [...value.keys()].every((k, i) => k === names[i]), "other keys, or another order");
  for (const [name, check] of Object.entries(fields)) need(check(value.get(name)), `field ${name}`);
  return Object.fromEntries(value);
}

// Claims and instance info (claims.md).

const CLAIMS = {
  version: oneOf(1),
  bundle_id: isBytes(32),
  code: isBytes(32),
  signer: isBytes(32),
  product_id: isNumber(65535),
  revocation_level: isNumber(65535),
  runtime: (x) => isText(x) && x.length >= 1 && x.length <= 64,
  sandbox: oneOf("namespaces", "landlock", "none"),
  mode: oneOf("release", "debug"),
  suite: (x) => isBytes(6)(x) && x.equals(hex("647a00010002")),
  encryption_key: isBytes(1216),
  signing_key: isBytes(32),
  boot_nonce: isBytes(32),
  log_id: orNil(isBytes(32)),
  kds_constraint: orNil(isBytes(32)),
  interface: isBytes(32),
};

const claimsDigest = (data) => sha(512, Buffer.from("conclave/1 instance-claims\0"), data);

function bundleId({ code, signer, product_id, revocation_level }) {
  const numbers = Buffer.alloc(4);
  numbers.writeUInt16BE(product_id, 0);
  numbers.writeUInt16BE(revocation_level, 2);
  return sha(256, Buffer.from("conclave/1 bundle"), code, signer, numbers);
}

function parseClaims(data) {
  need(data.length <= 8192, "too large");
  return record(decode(data), CLAIMS);
}

function same(found, expected, what) {
  const plain = Buffer.isBuffer(found) ? found.toString("hex") : found;
  if (plain !== expected) throw new Error(`${what} differs`);
}

async function claims(vector) {
  const data = hex(vector.encoding), found = parseClaims(data);
  for (const [name, value] of Object.entries(vector.fields)) same(found[name], value, name);
  same(await bundleId(found), vector.bundle_id, "bundle id");
  same(await claimsDigest(data), vector.claims_digest, "claims digest");
}

// Evidence is read at its offsets alone: whether a processor signed it is out of this reader's reach.
async function info(vector) {
  const data = hex(vector.info);
  need(data.length <= 2 ** 20, "too large");
  const found = record(decode(data), {
    version: oneOf(1), format: oneOf("sgx"), evidence: isBytes(), endorsements: isBytes(), claims: isBytes(),
  });
  const configId = found.evidence.subarray(48 + 192, 48 + 256), reportData = found.evidence.subarray(48 + 320, 48 + 384);
  need(found.evidence.readUInt32LE(432) === found.evidence.length - 436, "size of the quote", "quote-format");
  const parsed = parseClaims(found.claims);
  const named = Buffer.concat([parsed.bundle_id, Buffer.alloc(32)]);
  need(configId.equals(named), "CLM-3", "binding");
  need((await bundleId(parsed)).equals(parsed.bundle_id), "CLM-4", "binding");
  need(reportData.equals(await claimsDigest(found.claims)), "CLM-5", "binding");
}

// Bundles (bundle.md).

const isEntry = (x) => {
  const { path, size, sha256 } = record(x, { path: isText, size: isNumber(2 ** 31), sha256: isBytes(32) });
  return path !== "" && size >= 0 && sha256.length === 32;
};
const MANIFEST = {
  version: oneOf(1),
  name: isText,
  release: isText,
  product_id: isNumber(65535),
  revocation_level: isNumber(65534),
  mode: oneOf("release", "debug"),
  python: isText,
  platform: isText,
  compiler: isText,
  entry: isText,
  interface: isBytes(),
  environment: isList((x) => Array.isArray(x) && x.length === 2 && x.every(isText)),
  roster: isList(isBytes(32)),
  quorum: isNumber(65535),
  limits: (x) => record(x, { memory_mib: isNumber(2 ** 31), temporary_mib: isNumber(2 ** 31) }) !== null,
  key_specs: isList(isBytes()),
  metrics: isList(isText),
  wheels: isList(isEntry),
  files: isList(isEntry),
};
const clean = (path) => !path.split("/").some((part) => ["", ".", ".."].includes(part)) && /^[\x20-\x7e]+$/.test(path);

// The only archive these entries can be: stored, 1980-01-01, mode 0644, nothing between or behind.
function archiveOf(entries) {
  const bodies = [], central = [];
  let at = 0;
  for (const [name, data] of entries) {
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(0x21, 8);
    common.writeUInt32LE(crc32(data), 10);
    common.writeUInt32LE(data.length, 14);
    common.writeUInt32LE(data.length, 18);
    common.writeUInt16LE(name.length, 22);
    bodies.push(Buffer.from("PK\x03\x04"), common, Buffer.from(name), data);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE((0o100644 << 16) >>> 0, 6);
    tail.writeUInt32LE(at, 10);
    central.push(Buffer.from("PK\x01\x02"), Buffer.of(20, 3), common, tail, Buffer.from(name));
    at += 30 + name.length + data.length;
  }
  const directory = Buffer.concat(central), end = Buffer.alloc(18);
  end.writeUInt16LE(entries.length, 4);
  end.writeUInt16LE(entries.length, 6);
  end.writeUInt32LE(directory.length, 8);
  end.writeUInt32LE(at, 12);
  return Buffer.concat([...bodies, directory, Buffer.from("PK\x05\x06"), end]);
}

function entriesOf(data) {
  const entries = [];
  for (let at = 0; data.readUInt32LE(at) === 0x04034b50; ) {
    const size = data.readUInt32LE(at + 18), start = at + 30 + data.readUInt16LE(at + 26);
    entries.push([data.toString("latin1", at + 30, start), data.subarray(start, start + size)]);
    at = start + size;
  }
  return entries;
}

async function bundle(vector) {
  const data = hex(vector.archive), entries = entriesOf(data);
  need(archiveOf(entries).equals(data), "not the canonical archive", "bundle");
  const [[first, manifest], ...others] = entries;
  need(first === "manifest", "no manifest", "bundle");
  const found = record(decode(manifest), MANIFEST);
  const paths = found.files.map((f) => f.get("path"));
  need(paths.every(clean) && paths.every((p) => /^(app|site)\//.test(p)), "paths", "bundle");
  need(paths.every((p, i) => i === 0 || paths[i - 1] < p), "order of files", "bundle");
  const signature = others[0]?.[0] === "signature" ? others.shift()[1] : null;
  let signer = Buffer.alloc(32);
  if (signature) {
    const message = Buffer.concat([Buffer.from("conclave/1 bundle\0"), Buffer.alloc(64), manifest]);
    need(signature.length === 96, "size of the signature", "bundle");
    need(await verifies(signature.subarray(0, 32), message, signature.subarray(32)), "signature", "bundle");
    signer = await sha(256, signature.subarray(0, 32));
  }
  const compiled = (path) => path.includes("/__pycache__/");
  const stored = new Map(found.wheels.map((w) => [`wheels/${w.get("path")}`, w]));
  for (const file of found.files) {
    const path = file.get("path");
    if (compiled(path)) stored.set(`bytecode/${path}`, file);
    else if (path.startsWith("app/")) stored.set(path, file);
  }
  const names = others.map(([name]) => name);
  need(names.join("\n") === [...stored.keys()].sort().join("\n"), "other entries, or another order", "bundle");
  for (const [name, content] of others) {
    const entry = stored.get(name);
    need(content.length === entry.get("size") && (await sha(256, content)).equals(entry.get("sha256")), name, "bundle");
  }
  const code = await sha(256, manifest);
  same(manifest, vector.manifest, "manifest");
  same(code, vector.code, "code");
  same(signer, vector.signer, "signer");
  same(await bundleId({ ...found, code, signer }), vector.bundle_id, "bundle id");
}

// Constraints (constraint.md): the text and its expanded form.

const HARDWARE = ["sgx", "tdx", "snp", "nitro"];
const matches = (pattern, what) => (value) => {
  need(pattern.test(value), what);
  return value;
};
const hash = (value) => matches(/^[0-9A-Fa-f]{64}$/, "64 hexadecimal digits")(value).toLowerCase();
const number = (value) => {
  need(/^[0-9]{1,5}$/.test(value) && Number(value) <= 65535, "a number to 65535");
  return Number(value);
};

function period(value) {
  const found = /^P(?=\d)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?$/.exec(value);
  need(found, "a period");
  const [years, months, weeks, days] = found.slice(1).map((x) => Number(x ?? 0));
  const all = [years + Math.floor(months / 12), months % 12, weeks * 7 + days];
  need(all[0] <= 9999 && all[2] <= 99999, "period too long");
  return `P${all[0]}Y${all[1]}M${all[2]}D`;
}

function tees(value, insecure) {
  if (value === undefined) return insecure ? [...HARDWARE, "simulated"] : HARDWARE;
  const names = value.split(",").map((item) => {
    const [name, ...pin] = item.split("@");
    need(HARDWARE.includes(name) || name === "simulated", "a TEE");
    need(pin.length === 0 || (name === "simulated" && pin.length === 1), "a pin");
    need(name !== "simulated" || insecure, "simulated needs SEC:INSECURE");
    return pin.length ? `simulated@${hash(pin[0])}` : name;
  });
  need(new Set(names.map((n) => n.split("@")[0])).size === names.length, "a TEE twice");
  return names;
}

export function expanded(text, release) {
  need(text.length <= 16384 && /^[\x00-\x7f]*$/.test(text), "length or characters");
  const given = { C: [], S: [], RUNTIME: [] };
  for (const token of text.split(" ").filter((t) => t !== "")) {
    const colon = token.indexOf(":"), key = token.slice(0, colon), value = token.slice(colon + 1);
    need(colon > 0 && ["C", "S", "PROD", "REVOKE", "SEC", "EXPIRE", "TEE", "RUNTIME", "ADVISORIES"].includes(key), "clause");
    need(value !== "", "no value");
    if (Array.isArray(given[key])) given[key].push(value);
    else {
      need(given[key] === undefined, "twice");
      given[key] = value;
    }
  }
  const sorted = (values) => [...new Set(values)].sort();
  const codes = sorted(given.C.map(hash)), signers = sorted(given.S.map(hash));
  need(codes.length + signers.length > 0, "names nothing");
  need(!signers.includes("0".repeat(64)), "the zero hash");
  need(signers.length > 0 === (given.PROD !== undefined), "S and PROD need each other");
  const security = given.SEC ?? "SECURE";
  need(["SECURE", "STALE", "INSECURE"].includes(security), "a level");
  const runtimes = given.RUNTIME.map((r) => (/^[0-9A-Fa-f]{64}$/.test(r) ? r.toLowerCase() : r));
  runtimes.forEach(matches(/^([A-Za-z0-9._-]{1,63}|[0-9a-f]{64})$/, "a runtime"));
  const advisories = given.ADVISORIES?.split(",") ?? [];
  advisories.forEach(matches(/^[A-Z0-9-]{1,32}$/, "an advisory"));
  const parts = [...codes.map((c) => `C:${c}`), ...signers.map((s) => `S:${s}`)];
  if (given.PROD !== undefined) parts.push(`PROD:${number(given.PROD)}`);
  parts.push(`REVOKE:${number(given.REVOKE ?? "0")}`, `SEC:${security}`);
  if (given.EXPIRE !== undefined) parts.push(`EXPIRE:${period(given.EXPIRE)}`);
  parts.push(`TEE:${sorted(tees(given.TEE, security === "INSECURE")).join(",")}`);
  parts.push(...sorted(runtimes.length ? runtimes : [release]).map((r) => `RUNTIME:${r}`));
  if (advisories.length) parts.push(`ADVISORIES:${sorted(advisories).join(",")}`);
  return parts.join(" ");
}

async function constraint(vector, release) {
  same(expanded(vector.text, release), vector.written, "expanded form");
  // Whether it accepts the facts is appraisal's question; see README.md.
  if (vector.expect === "appraisal") throw new Refused("appraisal", "");
}

// What once ended in a traceback: bytes that another reader cannot read either.

async function found(vector) {
  try {
    if (vector.lock) new TextDecoder("utf-8", { fatal: true }).decode(hex(vector.lock));
    else for (const [, content] of entriesOf(hex(vector.wheel))) inflateRawSync(content);
  } catch (error) {
    throw new Refused("bundle", error.message);
  }
}

async function confirmAll([release, ...files]) {
  for (const file of files) {
    const vector = JSON.parse(readFileSync(file, "utf8"));
    const area = vector.id.split("/")[0];
    const work = vector.info ? info : { claims, bundle, constraint, found }[area];
    let outcome = "ok";
    try {
      await work(vector, release);
    } catch (error) {
      if (!(error instanceof Refused)) throw new Error(`${vector.id}: ${error.message}`);
      outcome = area === "bundle" ? "bundle" : error.code;
    }
    if (outcome !== vector.expect) throw new Error(`${vector.id}: expected ${vector.expect}, found ${outcome}`);
    console.log(`confirmed ${vector.id}`);
  }
}

if (basename(process.argv[1]) === "canonical.mjs") await confirmAll(process.argv.slice(2));
