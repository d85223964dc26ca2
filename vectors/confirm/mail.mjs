// Mail, written from spec/mail.md: confirms the vectors, and talks to another implementation.
//
//   node mail.mjs confirm FILE…   one line for each vector that agrees
//   node mail.mjs answer          enclave's end: JSON {seed, claims_digest, mail, body} in, {request, reply} out
//   node mail.mjs ask             client's end: JSON {encryption_key, claims_digest, topic, body} in, {mail} out,
//                                 then {reply} in, {body} out; one line each

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { createInterface } from "node:readline";
import { Aes256Gcm, CipherSuite, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";

const { subtle } = globalThis.crypto;
const SUITE = Buffer.from("647a00010002", "hex");
const SEALED = 1120 + 48, RECORD = 1601, NONE = 0xffffffffffffffffn;
const ascii = (text) => Buffer.from(text, "ascii");
const hex = (text) => Buffer.from(text, "hex");

export class Refused extends Error {
  constructor(code, why) {
    super(why);
    this.code = code;
  }
}

const need = (condition, code, why) => {
  if (!condition) throw new Refused(code, why);
};

// Primitives: WebCrypto, and HPKE from the library.

export const sha = async (bits, ...parts) => Buffer.from(await subtle.digest(`SHA-${bits}`, Buffer.concat(parts)));

async function hmac(key, data) {
  const imported = await subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return Buffer.from(await subtle.sign("HMAC", imported, data));
}

// RFC 5869 with 32 bytes of output: one block.
const expand = (prk, info) => hmac(prk, Buffer.concat([info, Buffer.of(1)]));

async function aead(use, key, nonce, data, associated) {
  const imported = await subtle.importKey("raw", key, "AES-GCM", false, [use]);
  const parameters = { name: "AES-GCM", iv: nonce, additionalData: associated };
  try {
    return Buffer.from(await subtle[use](parameters, imported, data));
  } catch {
    throw new Refused("decryption", "the tag does not fit");
  }
}

export async function verifies(publicKey, message, signature) {
  const key = await subtle.importKey("raw", publicKey, "Ed25519", false, ["verify"]);
  return subtle.verify("Ed25519", key, signature, message);
}

const signingKey = (seed) =>
  subtle.importKey("pkcs8", Buffer.concat([hex("302e020100300506032b657004220420"), seed]), "Ed25519", true, ["sign"]);

async function publicOf(key) {
  return Buffer.from((await subtle.exportKey("jwk", key)).x, "base64url");
}

const hpke = new CipherSuite({ kem: new XWing(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });
const info = (recipient) => Buffer.concat([ascii("mail/1 opening"), SUITE, recipient]);

async function openSecret(seed, sealed, recipient) {
  const recipientKey = await hpke.kem.importKey("raw", new Uint8Array(seed).buffer, false);
  try {
    const context = await hpke.createRecipientContext({
      recipientKey, enc: new Uint8Array(sealed.subarray(0, 1120)).buffer, info: new Uint8Array(info(recipient)).buffer,
    });
    return Buffer.from(await context.open(new Uint8Array(sealed.subarray(1120)).buffer));
  } catch {
    throw new Refused("decryption", "not sealed to this key and recipient");
  }
}

async function sealSecret(publicKey, secret, recipient) {
  const recipientPublicKey = await hpke.kem.importKey("raw", new Uint8Array(publicKey).buffer, true);
  const context = await hpke.createSenderContext({ recipientPublicKey, info: new Uint8Array(info(recipient)).buffer });
  const sealed = await context.seal(new Uint8Array(secret).buffer);
  return Buffer.concat([Buffer.from(context.enc), Buffer.from(sealed)]);
}

// Section 4: keys.

async function schedule(secret, sealed, recipient) {
  const prk = await hmac(await sha(256, sealed, recipient), secret);
  return {
    session: (await sha(256, sealed)).subarray(0, 16),
    prk,
    open: await expand(prk, ascii("mail/1 record")),
    c2e: await expand(prk, ascii("mail/1 c2e")),
    e2c: (salt) => expand(prk, Buffer.concat([ascii("mail/1 e2c"), salt])),
  };
}

const topicField = (topic) => Buffer.concat([Buffer.of(topic.length), topic, Buffer.alloc(255 - topic.length)]);
const signed = (recipient, sealed, session, topic, replyKey, log) =>
  Buffer.concat([ascii("conclave/1 opening\0"), recipient, SUITE, sealed, session, topic, replyKey, log]);

const logField = (id) => (id ? Buffer.concat([Buffer.of(1), id]) : Buffer.alloc(33));

async function makeOpening(keys, sealed, recipient, identity, topic, replyKey, logId) {
  const field = topicField(topic), log = logField(logId);
  const message = signed(recipient, sealed, keys.session, field, replyKey, log);
  const signature = Buffer.from(await subtle.sign("Ed25519", identity, message));
  const record = Buffer.concat([await publicOf(identity), replyKey, field, log, signature]);
  const opening = Buffer.concat([sealed, await aead("encrypt", keys.open, Buffer.alloc(12), record, Buffer.alloc(0))]);
  return { record, opening };
}

async function acceptOpening(seed, opening, recipient) {
  const sealed = opening.subarray(0, SEALED);
  const secret = await openSecret(seed, sealed, recipient);
  const keys = await schedule(secret, sealed, recipient);
  const record = await aead("decrypt", keys.open, Buffer.alloc(12), opening.subarray(SEALED), Buffer.alloc(0));
  need(record.length === RECORD, "decryption", "size of the record");
  const identity = record.subarray(0, 32), replyKey = record.subarray(32, 1248), topic = record.subarray(1248, 1504);
  const log = record.subarray(1504, 1537), signature = record.subarray(1537);
  const message = signed(recipient, sealed, keys.session, topic, replyKey, log);
  need(await verifies(identity, message, signature), "decryption", "signature of the opening");
  const text = topic.subarray(1, 1 + topic[0]);
  need(/^[A-Za-z0-9_./-]{1,255}$/.test(text.toString("latin1")), "decryption", "topic");
  need(topic.subarray(1 + topic[0]).every((b) => b === 0), "decryption", "padding of the topic");
  need(log[0] === 1 || log.every((b) => b === 0), "decryption", "log");
  return { keys, secret, record, identity, topic: text, log };
}

// Sections 3 and 5: the public header, the private header, padding.

function parse(data) {
  need(data.length >= 68 && data.length <= 16 * 2 ** 20 + 8192, "format", "size");
  need(data.subarray(0, 4).equals(ascii("CML1")), "format", "magic");
  const direction = data[4], flags = data[5], envelope = data.readUInt16BE(6), salt = data.subarray(32, 64);
  need(direction === 1 || direction === 2, "format", "direction");
  need(direction === 1 ? flags < 2 && salt.every((b) => b === 0) : flags === 0, "format", "flags or salt");
  need(envelope <= 4096 && data.readBigUInt64BE(24) !== NONE, "format", "envelope or counter");
  const opened = 68 + (flags ? SEALED + RECORD + 16 : 0), start = opened + envelope;
  need(data.length === start + data.readUInt32BE(64) && data.length - start >= 56, "format", "sizes");
  return {
    direction, salt, session: data.subarray(8, 24), nonce: Buffer.concat([data.subarray(24, 32), Buffer.alloc(4)]),
    opening: data.subarray(68, opened), envelope: data.subarray(opened, start),
    associated: data.subarray(0, start), ciphertext: data.subarray(start),
  };
}

function padme(size) {
  if (size <= 256) return 256;
  const bits = (n) => n.toString(2).length;
  const exponent = bits(size) - 1, step = 2 ** (exponent - bits(exponent));
  return Math.ceil(size / step) * step;
}

function inside(plain, direction, logged = false) {
  const size = plain.readUInt32BE(4), start = logged ? (direction === 1 ? 112 : 120) : 40;
  need(plain.readUInt16BE(2) === 0 && start + size <= plain.length, "format", "private header");
  need(plain.subarray(start + size).every((b) => b === 0), "format", "padding");
  const aboutState = direction === 2 && logged && plain[0] >= 11 && plain[0] <= 13;
  need(plain[0] <= (direction === 1 ? 2 : 6) || aboutState, "format", "kind");
  need((plain[1] & ~(direction === 1 && logged && plain[0] !== 2 ? 5 : 1)) === 0, "format", "flag");
  const numbers = [8, 16, 24, 32].map((at) => plain.readBigUInt64BE(at));
  const state = plain.subarray(40, start);
  if (direction === 2 && logged) {
    // Section 13: halted and context tell nothing of the state, all others do.
    const bare = plain[0] === 11 || plain[0] === 13;
    need(state.subarray(0, 72).every((b) => b === 0) === bare, "format", "context of a reply");
    need(!bare || state.readBigUInt64BE(72) === 0n, "format", "echo of a reply without a context");
    if (aboutState) need(numbers[0] === NONE && (plain[1] === 1) === bare, "format", "sequence or flag of a reply about state");
  }
  if (direction === 1) {
    need(numbers[2] === 0n && numbers[3] === 0n, "format", "reserved");
    need((plain[0] === 2) === (numbers[0] === NONE), "format", "an acknowledgement alone is outside the sequence");
  }
  return { kind: plain[0], flags: plain[1], numbers, state, body: plain.subarray(start, start + size) };
}

function privateHeader(kind, flags, numbers, body, state = Buffer.alloc(0)) {
  const head = Buffer.alloc(40);
  head[0] = kind;
  head[1] = flags;
  head.writeUInt32BE(body.length, 4);
  numbers.forEach((n, i) => head.writeBigUInt64BE(BigInt(n), 8 + 8 * i));
  return Buffer.concat([head, state, body]);
}

async function encrypt(key, direction, session, counter, salt, opening, envelope, plain) {
  const padded = Buffer.concat([plain, Buffer.alloc(padme(plain.length) - plain.length)]);
  const head = Buffer.alloc(68);
  head.write("CML1", "ascii");
  head[4] = direction;
  head[5] = opening.length ? 1 : 0;
  head.writeUInt16BE(envelope.length, 6);
  session.copy(head, 8);
  head.writeBigUInt64BE(BigInt(counter), 24);
  salt.copy(head, 32);
  head.writeUInt32BE(padded.length + 16, 64);
  const associated = Buffer.concat([head, opening, envelope]);
  const nonce = Buffer.concat([head.subarray(24, 32), Buffer.alloc(4)]);
  return Buffer.concat([associated, await aead("encrypt", key, nonce, padded, associated)]);
}

// Section 8: chunks of a stream.

function unpack(content) {
  const items = [];
  let at = 0;
  while (at + 4 <= content.length) {
    const end = at + 4 + content.readUInt32BE(at);
    need(end <= content.length, "format", "size of a packed item");
    items.push(content.subarray(at + 4, end));
    at = end;
  }
  need(at === content.length && items.length > 0, "format", "packed items");
  return items;
}

async function confirmChunk(v, first, same) {
  const { keys } = await acceptOpening(v.xwing_seed, first, v.claims_digest);
  const head = v.chunk.subarray(0, 36);
  need(head.subarray(0, 4).equals(ascii("CMS1")) && head[4] === 1 && head.readUIntBE(5, 3) === 0, "format", "chunk header");
  need(head.subarray(8, 24).equals(keys.session), "session", "another session");
  const plain = await aead("decrypt", keys.c2e, head.subarray(24), v.chunk.subarray(36), head);
  const flags = plain[0], size = plain.readUInt32BE(4);
  need(flags < 16 && plain.readUIntBE(1, 3) === 0 && 8 + size <= plain.length, "format", "private header of the chunk");
  need(plain.subarray(8 + size).every((b) => b === 0), "format", "padding of the chunk");
  same(keys.c2e, v.k_c2e, "k_c2e");
  const content = plain.subarray(8, 8 + size);
  const items = flags & 8 ? unpack(content) : [content];
  need(!(flags & 8) || flags & 2, "format", "marks of the chunk");
  same(Buffer.concat(items), v.body, "body");
  const again = Buffer.alloc(padme(8 + size));
  again[0] = flags;
  again.writeUInt32BE(size, 4);
  content.copy(again, 8);
  same(Buffer.concat([head, await aead("encrypt", keys.c2e, head.subarray(24), again, head)]), v.chunk, "chunk made again");
}

// The vectors.

async function confirm(vector, openings) {
  const v = Object.fromEntries(Object.entries(vector).map(([k, x]) => [k, typeof x === "string" ? hex(x) : x]));
  const same = (a, b, what) => {
    if (!a.equals(b)) throw new Error(`${what} differs`);
  };
  const first = openings[v.log_id ? "mail/log-request" : "mail/request"];
  if (v.chunk) return confirmChunk(v, first, same);
  const mail = parse(v.mail ?? v.reply);
  const opening = mail.opening.length ? mail.opening : first;
  const { keys, secret, record, topic, log } = await acceptOpening(v.xwing_seed, opening, v.claims_digest);
  need(log.equals(logField(v.log_id)), "decryption", "opening of another log");
  need(mail.session.equals(keys.session), "session", "another session");
  const key = mail.direction === 1 ? keys.c2e : await keys.e2c(mail.salt);
  const decrypted = await aead("decrypt", key, mail.nonce, mail.ciphertext, mail.associated);
  const plain = inside(decrypted, mail.direction, v.log_id !== undefined);
  // Here it was accepted. What the vector lists must be what was derived, and the same
  // inputs must give the same bytes.
  same(secret, v.secret, "secret");
  same(topic, v.topic, "topic");
  same(mail.envelope, v.envelope, "envelope");
  same(plain.body, v.body, "body");
  if (v.log_id) same(plain.state, Buffer.concat([v.context, v.echo ?? Buffer.alloc(0)]), "context and echo");
  const derived = { session_id: keys.session, prk: keys.prk, k_open: keys.open, k_c2e: keys.c2e, record };
  for (const [name, value] of Object.entries(derived)) same(value, v[name], name);
  if (mail.direction === 2) same(key, v.k_e2c, "k_e2c");
  const replyKey = record.subarray(32, 1248);
  const made = await makeOpening(keys, v.sealed, v.claims_digest, await signingKey(v.identity_seed), v.topic, replyKey, v.log_id);
  same(made.opening, opening, "opening made again");
  const again = await encrypt(
    key, mail.direction, keys.session, mail.nonce.readBigUInt64BE(0), mail.salt, mail.opening, v.envelope,
    privateHeader(plain.kind, plain.flags, plain.numbers, v.body, plain.state),
  );
  same(again, v.mail ?? v.reply, "mail made again");
}

async function confirmAll(files) {
  const vectors = files.map((file) => JSON.parse(readFileSync(file, "utf8")));
  const opens = vectors.filter((v) => v.id === "mail/request" || v.id === "mail/log-request");
  const openings = Object.fromEntries(opens.map((v) => [v.id, parse(hex(v.mail)).opening]));
  for (const vector of vectors) {
    let found = "ok";
    try {
      await confirm(vector, openings);
    } catch (error) {
      if (!(error instanceof Refused)) throw new Error(`${vector.id}: ${error.message}`);
      found = error.code;
    }
    if (found !== vector.expect) throw new Error(`${vector.id}: expected ${vector.expect}, found ${found}`);
    console.log(`confirmed ${vector.id}`);
  }
}

// Live, against another implementation.

async function answer(lines) {
  const v = JSON.parse((await lines.next()).value);
  const mail = parse(hex(v.mail)), recipient = hex(v.claims_digest);
  const { keys, identity, topic, log } = await acceptOpening(hex(v.seed), mail.opening, recipient);
  const logged = log[0] === 1;
  const plain = await aead("decrypt", keys.c2e, mail.nonce, mail.ciphertext, mail.associated);
  const request = inside(plain, 1, logged);
  // Version 1 of some boot, and an echo of none.
  const state = logged ? Buffer.concat([Buffer.alloc(7), Buffer.alloc(65, 1), Buffer.alloc(8)]) : Buffer.alloc(0);
  const salt = Buffer.from(crypto.getRandomValues(new Uint8Array(32)));
  const body = privateHeader(0, 1, [0, 1, request.numbers[0], 1], hex(v.body), state);
  const reply = await encrypt(await keys.e2c(salt), 2, keys.session, 0, salt, Buffer.alloc(0), Buffer.alloc(0), body);
  const said = { body: request.body, identity, topic, envelope: mail.envelope, reply };
  console.log(JSON.stringify(Object.fromEntries(Object.entries(said).map(([k, b]) => [k, b.toString("hex")]))));
}

async function ask(lines) {
  const v = JSON.parse((await lines.next()).value);
  const recipient = hex(v.claims_digest), encryptionKey = hex(v.encryption_key);
  const secret = Buffer.from(crypto.getRandomValues(new Uint8Array(32)));
  const sealed = await sealSecret(encryptionKey, secret, recipient);
  const keys = await schedule(secret, sealed, recipient);
  const { privateKey } = await subtle.generateKey("Ed25519", true, ["sign", "verify"]);
  const pair = await hpke.kem.generateKeyPair();
  const replyKey = Buffer.from(await hpke.kem.serializePublicKey(pair.publicKey));
  const { opening } = await makeOpening(keys, sealed, recipient, privateKey, ascii(v.topic), replyKey);
  const plain = privateHeader(0, 0, [0, 0, 0, 0], hex(v.body));
  const mail = await encrypt(keys.c2e, 1, keys.session, 0, Buffer.alloc(32), opening, Buffer.alloc(0), plain);
  console.log(JSON.stringify({ mail: mail.toString("hex"), identity: (await publicOf(privateKey)).toString("hex") }));
  const reply = parse(hex(JSON.parse((await lines.next()).value).reply));
  need(reply.direction === 2 && reply.session.equals(keys.session), "decryption", "not this session");
  const decrypted = await aead("decrypt", await keys.e2c(reply.salt), reply.nonce, reply.ciphertext, reply.associated);
  console.log(JSON.stringify({ body: inside(decrypted, 2).body.toString("hex") }));
}

if (basename(process.argv[1]) === "mail.mjs") {
  const [command, ...files] = process.argv.slice(2);
  const lines = command === "confirm" ? null : createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  await { confirm: () => confirmAll(files), answer: () => answer(lines), ask: () => ask(lines) }[command]();
  process.exit(0);
}
