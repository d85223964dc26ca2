// Posted mail, written from spec/mail.md section 11: confirms the vectors.
//
//   node post.mjs confirm FILE…   one line for each vector that agrees

import { readFileSync } from "node:fs";
import { CipherSuite, HkdfSha256, Aes256Gcm } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";
import { Refused, sha, verifies } from "./mail.mjs";

const { subtle } = globalThis.crypto;
const SUITE = Buffer.from("647a00010002", "hex");
const HEADER = 1260, INSIDE = 312, SIGNATURE = 64, ZERO = Buffer.alloc(12);
const ascii = (text) => Buffer.from(text, "ascii");
const hpke = new CipherSuite({ kem: new XWing(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });

const need = (condition, code, why) => {
  if (!condition) throw new Refused(code, why);
};

async function hmac(key, data) {
  const imported = await subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return Buffer.from(await subtle.sign("HMAC", imported, data));
}

const plainBuffer = (data) => new Uint8Array(data).buffer;

async function open(seed, sealed, info) {
  const recipientKey = await hpke.kem.importKey("raw", plainBuffer(seed), false);
  try {
    const enc = plainBuffer(sealed.subarray(0, 1120));
    const context = await hpke.createRecipientContext({ recipientKey, enc, info: plainBuffer(info) });
    return Buffer.from(await context.open(plainBuffer(sealed.subarray(1120))));
  } catch {
    throw new Refused("decryption", "not sealed to this key");
  }
}

async function decrypt(key, data, associated) {
  const imported = await subtle.importKey("raw", key, "AES-GCM", false, ["decrypt"]);
  try {
    return Buffer.from(await subtle.decrypt({ name: "AES-GCM", iv: ZERO, additionalData: associated }, imported, data));
  } catch {
    throw new Refused("decryption", "the tag does not fit");
  }
}

async function read(v, replyKey) {
  const m = v.mail;
  need(m.length >= HEADER, "format", "too short");
  const envelope = m.readUInt16BE(6), size = m.readUInt32BE(1256), start = HEADER + envelope;
  need(m.subarray(0, 4).equals(ascii("CMP1")) && m.readUInt16BE(4) === 0, "format", "magic or reserved field");
  need(envelope <= 4096 && size >= INSIDE + SIGNATURE + 16 && m.length === start + size, "format", "sizes");
  const box = (await sha(256, ascii("conclave/1 outbox"), replyKey)).subarray(0, 16);
  need(m.subarray(8, 24).equals(box), "decryption", "another box");
  const digest = m.subarray(24, 88), sealed = m.subarray(88, 1256), associated = m.subarray(0, start);
  const info = Buffer.concat([ascii("mail/1 post"), SUITE, await sha(256, replyKey), digest]);
  const secret = await open(v.xwing_seed, sealed, info);
  const prk = await hmac(await sha(256, sealed, digest), secret);
  const key = await hmac(prk, Buffer.concat([ascii("mail/1 post"), Buffer.of(1)]));
  const plain = await decrypt(key, m.subarray(start), associated);
  const fields = plain.subarray(0, INSIDE), body = INSIDE + SIGNATURE, end = body + plain.readUInt32BE(4);
  const topicEnd = 56 + plain[1];
  // Kind 1, of an enclave with a log: a state context of 72 bytes stands before the body, and is signed with it.
  const text = body + (plain[0] === 1 ? 72 : 0);
  need(plain[0] <= 1 && plain.readUInt16BE(2) === 0 && text <= end && end <= plain.length, "format", "inside");
  need([...plain.subarray(end), ...plain.subarray(topicEnd, INSIDE)].every((b) => b === 0), "format", "padding");
  need(plain.subarray(24, 56).equals(v.identity), "decryption", "another recipient");
  const parts = [await sha(256, replyKey), await sha(256, associated), fields, await sha(256, plain.subarray(body, end))];
  const signed = Buffer.concat([ascii("conclave/1 mail\0"), digest, ascii("mail/1 post"), SUITE, ...parts]);
  need(await verifies(v.signing_key, signed, plain.subarray(INSIDE, body)), "signature", "not the sender's");
  return {
    box, k_post: key, signed, secret, topic: plain.subarray(56, topicEnd), envelope: m.subarray(HEADER, start),
    context: plain.subarray(body, text), body: plain.subarray(text, end), number: plain.subarray(8, 16), acknowledged: plain.subarray(16, 24),
    address: Buffer.concat([ascii("CMA1"), v.identity, replyKey, Buffer.of(plain[1]), plain.subarray(56, topicEnd)]),
  };
}

async function confirm(path) {
  const text = JSON.parse(readFileSync(path, "utf8"));
  const plain = ["id", "spec", "comment", "expect"];
  const v = Object.fromEntries(Object.entries(text).map(([k, x]) => [k, plain.includes(k) ? x : Buffer.from(x, "hex")]));
  let found = "ok", values = {};
  try {
    values = await read(v, v.reply_key);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    found = error.code;
  }
  need(found === v.expect, "vector", `expected ${v.expect}, found ${found}`);
  for (const [name, value] of Object.entries(values)) {
    if (v[name]) need(value.equals(v[name]), "vector", `${name} differs`);
  }
  console.log(`confirmed ${v.id}`);
}

const [, ...files] = process.argv.slice(2);
for (const file of files) {
  try {
    await confirm(file);
  } catch (error) {
    console.error(`${JSON.parse(readFileSync(file, "utf8")).id}: ${error.message}`);
    process.exitCode = 1;
  }
}
