// Witnesses, anchors and rosters, written from spec/witness.md and spec/barrier.md: confirms the vectors.
//
//   node witness.mjs FILE…   one line for each vector that agrees

import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { decode } from "./canonical.mjs";
import { Refused } from "./mail.mjs";

const ascii = (text) => Buffer.from(text, "ascii");
const hex = (text) => Buffer.from(text, "hex");
const join = (...parts) => Buffer.concat(parts);
const need = (condition, code, why) => {
  if (!condition) throw new Refused(code, why);
};
const sha = (...parts) => createHash("sha256").update(join(...parts)).digest();
const logIdOf = (key) => sha(ascii("conclave/1 log"), key);

// Records (section 3): what a field may be, in the order of the keys. Versions have 63 bits.

const bin = (size) => (x) => Buffer.isBuffer(x) && x.length === size;
const text = (x) => typeof x === "string";
const one = (x) => x === 1;
const count = (x) => typeof x === "number" || (typeof x === "bigint" && x < 2n ** 63n);
const orNil = (check) => (x) => x === null || check(x);
const list = (check) => (x) => Array.isArray(x) && x.every(check);
const record = (fields) => (x) => {
  const names = Object.keys(fields);
  if (!(x instanceof Map) || [...x.keys()].join(" ") !== names.join(" ")) return false;
  return names.every((name) => fields[name](x.get(name)));
};

const HEAD = { version: count, boot: bin(16), digest: bin(32) };
const STEP = record({ log_key: bin(32), previous: orNil(record(HEAD)), new: record(HEAD) });
const STANDING = record({ step: STEP, signature: bin(64), countersignature: bin(64) });
const HEAD_REQUEST = record({ version: one, log_key: bin(32), nonce: bin(32) });
const ADVANCE_REQUEST = record({ version: one, step: STEP, signature: bin(64), nonce: bin(32) });
const ANSWER = record({ version: one, standing: orNil(STANDING), signature: bin(64) });
const SIGNED = record({ witness: text, signature: bin(64) });
const ANCHOR = record({ log_id: bin(32), ...HEAD, countersignatures: list(SIGNED) });

// The same form written, for what is signed.

function sized(small, most, tags, size) {
  if (size <= most) return Buffer.of(small | size);
  need(size < 256, "format", "too large for these records");
  return Buffer.of(tags, size);
}

function number(value) {
  if (value < 128) return Buffer.of(value);
  const [tag, size] = value < 2 ** 8 ? [0xcc, 1] : value < 2 ** 16 ? [0xcd, 2] : value < 2 ** 32 ? [0xce, 4] : [0xcf, 8];
  const data = Buffer.alloc(9);
  data.writeBigUInt64BE(BigInt(value), 1);
  return join(Buffer.of(tag), data.subarray(9 - size));
}

function encode(value) {
  if (value === null) return Buffer.of(0xc0);
  if (Buffer.isBuffer(value)) return join(Buffer.of(0xc4, value.length), value);
  if (typeof value === "string") return join(sized(0xa0, 31, 0xd9, Buffer.byteLength(value)), Buffer.from(value));
  if (typeof value !== "object") return number(value);
  const entries = [...value].flatMap((item) => (value instanceof Map ? item : [item]));
  const start = value instanceof Map ? sized(0x80, 15, 0xde, value.size) : sized(0x90, 15, 0xdc, value.length);
  return join(start, ...entries.map(encode));
}

function read(data, form, most) {
  need(data.length <= most, "format", "too large");
  const value = decode(data);
  need(form(value), "format", "another form");
  need(encode(value).equals(data), "format", "encoded otherwise");
  return value;
}

// Signatures (claims.md section 5), with zeros for the claims digest.

function signs(key, purpose, body, signature) {
  const spki = join(hex("302a300506032b6570032100"), key);
  const publicKey = createPublicKey({ key: spki, format: "der", type: "spki" });
  return verify(null, join(ascii(`conclave/1 ${purpose}\0`), Buffer.alloc(64), body), publicKey, signature);
}

const countersigns = (key, logId, head, signature) =>
  signs(key, "countersign", encode(new Map([["log_id", logId], ["head", head]])), signature);

const stepIsSigned = (step, signature) => signs(step.get("log_key"), "anchor", encode(step), signature);

// What each end accepts.

function head(v) {
  read(v.data, HEAD_REQUEST, 1024);
}

function advance(v) {
  const request = read(v.data, ADVANCE_REQUEST, 1024), step = request.get("step"), from = step.get("previous");
  need(from === null || step.get("new").get("version") > from.get("version"), "format", "back, or nowhere");
  need(stepIsSigned(step, request.get("signature")), "signature", "the log's key did not sign this step");
}

function answer(v) {
  const found = read(v.data, ANSWER, 1024), standing = found.get("standing");
  const said = join(v.log_key, v.nonce, encode(standing));
  need(signs(v.witness, "head", said, found.get("signature")), "signature", "not this witness's answer to this request");
  if (standing === null) return;
  const step = standing.get("step"), end = step.get("new");
  need(step.get("log_key").equals(v.log_key), "signature", "another log's step");
  need(stepIsSigned(step, standing.get("signature")), "signature", "the log never signed it");
  const good = countersigns(v.witness, logIdOf(v.log_key), end, standing.get("countersignature"));
  need(good, "signature", "the witness never took it");
}

function anchor(v) {
  const found = read(v.data, ANCHOR, 4096), keys = Object.entries(v.keys);
  const distinct = new Set(Object.values(v.keys)).size === keys.length;
  need(distinct && keys.length < 2 * v.quorum && v.quorum <= keys.length, "quorum", "two quorums share no witness");
  need(found.get("log_id").equals(v.log_id), "binding", "another log");
  need(found.get("version") >= v.version, "binding", "an older state");
  const state = new Map(["version", "boot", "digest"].map((name) => [name, found.get(name)]));
  const given = found.get("countersignatures").map((entry) => [entry.get("witness"), entry.get("signature")]);
  const signed = ([name, key]) =>
    given.some(([of, signature]) => of === name && countersigns(hex(key), found.get("log_id"), state, signature));
  need(keys.filter(signed).length >= v.quorum, "signature", "too few of these witnesses");
}

function roster(v) {
  const members = v.members.map(hex).sort(Buffer.compare);
  const digest = sha(ascii("conclave/1 roster\0"), encode([v.quorum, members]));
  if (!digest.equals(v.digest)) throw new Error("digest differs");
}

const READERS = { head, advance, answer, anchor, roster };

for (const file of process.argv.slice(2)) {
  const raw = JSON.parse(readFileSync(file, "utf8"));
  const v = { ...raw };
  for (const name of ["data", "witness", "log_key", "nonce", "log_id", "digest"]) if (raw[name]) v[name] = hex(raw[name]);
  let found = "ok";
  try {
    READERS[raw.kind](v);
  } catch (error) {
    found = error instanceof Refused ? error.code : error.message;
  }
  if (found === raw.expect) console.log(`confirmed ${raw.id}`);
  else {
    console.error(`${raw.id}: expected ${raw.expect}, found ${found}`);
    process.exitCode = 1;
  }
}
