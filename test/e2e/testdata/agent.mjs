// SPDX-License-Identifier: Apache-2.0
//
// A coding agent, as a script: it knows what it wants to try, and of Sidetrack what
// tools/list says. It goes by the replies' structured content alone. Arguments: the
// program and its arguments. It writes what it has done as JSON.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [command, ...args] = process.argv.slice(2);
const story = [];
let heard = 0;

async function session() {
  const client = new Client({ name: "scripted-agent", version: "1" });
  await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" }));
  return client;
}

async function call(client, name, input) {
  const began = Date.now();
  const result = await client.callTool({ name, arguments: input }, undefined, {
    timeout: 240_000,
    onprogress: () => heard++,
  });
  const text = result.content.map((c) => c.text).join("\n");
  story.push({ tool: name, failed: result.isError === true, seconds: (Date.now() - began) / 1000, text, reply: result.structuredContent });
  if (result.isError) throw new Error(text);
  return result.structuredContent;
}

// attempt forks the workload with an image, and asks the front door for an answer.
// Further arguments are those of create_sandbox.
async function attempt(client, sandbox, workload, url, image, more) {
  const made = await call(client, "create_sandbox", { sandbox, ttl: "30m", wait_seconds: 180, forks: [{ workload, image }], ...more });
  if (!made.ready) throw new Error("the sandbox is not ready: " + made.why);
  return await call(client, "send_request", { sandbox: made.sandbox, url });
}

try {
  let client = await session();
  const tools = (await client.listTools()).tools.map((t) => t.name);
  const found = await call(client, "list_workloads", {});
  const route = found.workloads.find((w) => w.workload.endsWith("/route")).workload;
  const door = found.workloads.find((w) => w.workload.endsWith("/front")).urls[0];

  const first = await attempt(client, "agent", route, door, "sidetrack.test/shop:pr-43", {});
  const handle = first.sandbox;
  let differs, why;
  if (first.verified && first.status !== 200) {
    differs = await call(client, "compare_responses", { sandbox: handle, url: door });
    // The session ends; what it has made does not.
    await client.close();
    client = await session();
    why = await call(client, "explain_routing", { sandbox: handle, trace_id: first.trace_id });
  }
  // A service on the way that forgets the key: the answer is good, and everybody's. Which
  // service that is nobody knows who does not look at it.
  const strayed = await call(client, "send_request", { sandbox: handle, url: door, headers: { "X-Lose": "cart" } });
  const second = await attempt(client, handle, route, door, "sidetrack.test/shop:pr-43-2", { update: true, observe: ["*"] });
  const lost = await call(client, "send_request", { sandbox: handle, url: door, headers: { "X-Lose": "cart" } });
  const tested = await call(client, "run_tests", { sandbox: handle, image: "sidetrack.test/shop:v1", command: ["/shop", "check", "-want", '"Version":"pr-43-2"', door] });
  const elsewhere = await call(client, "run_tests", { sandbox: handle, image: "sidetrack.test/shop:v1", command: ["/shop", "check", "-want", "stock", "http://stock.shop"] });
  const logs = await call(client, "sandbox_logs", { sandbox: handle });
  const listed = await call(client, "list_sandboxes", {});
  const gone = await call(client, "delete_sandbox", { sandbox: handle });
  await client.close();
  console.log(JSON.stringify({ tools, first, differs, why, strayed, second, lost, tested, elsewhere, logs, listed, gone, heard, story }));
} catch (error) {
  console.log(JSON.stringify({ error: String(error), heard, story }));
  process.exitCode = 1;
}
