// SPDX-License-Identifier: Apache-2.0

// Node's fetch with its own pool; it speaks as pool.py does.
import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => (await lines.next()).value;

async function one(line) {
  const [method, url, want, number, length, ...fields] = line.split("\t");
  const headers = { "X-Expect": want, "X-Number": number };
  for (const f of fields) {
    const colon = f.indexOf(": ");
    headers[f.slice(0, colon)] = f.slice(colon + 2);
  }
  try {
    const r = await fetch(url, { method, headers, body: length === "0" ? undefined : "x".repeat(Number(length)) });
    await r.arrayBuffer();
    const by = r.headers.get("x-served-by");
    const as = r.headers.get("x-number");
    if (r.status === 200 && by === want && as === number) return "";
    return `request ${number}: status ${r.status}, served by ${by} as number ${as}, want ${want}`;
  } catch (e) {
    return `request ${number}: ${e} ${e.cause ?? ""}`;
  }
}

for (let head; (head = await next()) !== undefined; ) {
  const [, concurrency, count] = head.split(" ");
  const batch = [];
  for (let i = 0; i < Number(count); i++) batch.push(await next());
  const wrong = [];
  let at = 0;
  await Promise.all(Array.from({ length: Number(concurrency) }, async () => {
    while (at < batch.length) {
      const w = await one(batch[at++]);
      if (w) wrong.push(w);
    }
  }));
  console.log(`${batch.length} ${wrong.length} ${(wrong[0] ?? "").replaceAll("\n", " ")}`);
}
