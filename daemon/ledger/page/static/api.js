// SPDX-License-Identifier: Apache-2.0

// How the page reads the Kubernetes API: with the rights of whoever looks, from the
// server that the page comes from, and never more than reading.

const mark = '/apis/ledger.sidetrack.dev/';
const at = location.pathname.indexOf(mark);
// What is in front of the API's paths, when a proxy puts something there.
const base = at < 0 ? '' : location.pathname.slice(0, at);

// How far this machine's clock is from the API server's, in milliseconds.
let skew = 0;

/** now is the time by the API server's clock, in milliseconds. */
export const now = () => Date.now() + skew;

/** ApiError is what the API server says is wrong. */
export class ApiError extends Error {
  constructor(status, message, after = 0) {
    super(message);
    this.status = status;
    // How long to wait before asking again, in milliseconds.
    this.after = after;
  }
}

async function request(path, {signal, accept = 'application/json'} = {}) {
  let response;
  try {
    response = await fetch(base + path, {
      signal, headers: {Accept: accept}, credentials: 'same-origin', redirect: 'error', cache: 'no-store',
    });
  } catch (e) {
    if (signal?.aborted) throw e;
    throw new ApiError(0, 'the API server cannot be reached: is sidetrack ui still running?');
  }
  const date = Date.parse(response.headers.get('Date'));
  // The header has whole seconds.
  if (Number.isFinite(date)) skew = Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
  if (!response.ok) {
    const text = (await response.text()).slice(0, 2000);
    let message = text.trim() || response.statusText;
    try {
      message = JSON.parse(text).message || message;
    } catch {
      // Whatever is in between does not speak Kubernetes: its own words will do.
    }
    throw new ApiError(response.status, message, 1000 * (Number(response.headers.get('Retry-After')) || 0));
  }
  return response;
}

/** get reads an object or a list. */
export async function get(path, options) {
  return (await request(path, options)).json();
}

/**
 * follow reads a stream of objects, each on a line, until it ends; begun is called first.
 * It fails when the server says why it has ended it.
 */
export async function follow(path, {signal, begun, each}) {
  const response = await request(path, {signal});
  begun();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.trim()) continue;
      const object = JSON.parse(line);
      const {ended} = object;
      if (ended) {
        reader.cancel().catch(() => {});
        throw new ApiError(ended.code, ended.message, 1000 * (ended.details?.retryAfterSeconds ?? 0));
      }
      each(object);
    }
  }
}

const own = '/apis/sidetrack.dev/v1alpha1';
const word = encodeURIComponent;

/** Kinds of objects that have a ledger, and what the API calls them. */
export const resources = {Sandbox: 'sandboxes', RouteGroup: 'routegroups'};

/** The paths that the page asks for. sidetrack ui lets no others through. */
export const paths = {
  list: (kind, namespace) => namespace ? `${own}/namespaces/${word(namespace)}/${resources[kind]}` : `${own}/${resources[kind]}`,
  object: (kind, namespace, name) => `${own}/namespaces/${word(namespace)}/${resources[kind]}/${word(name)}`,
  nodes: () => `${own}/nodestates`,
  pods: (namespace, sandbox) => `/api/v1/namespaces/${word(namespace)}/pods?labelSelector=${word('sidetrack.dev/sandbox=' + sandbox)}`,
  records: (kind, namespace, name, limit) =>
    `/apis/ledger.sidetrack.dev/v1alpha1/watch/namespaces/${word(namespace)}/${resources[kind]}/${word(name)}/records?follow=true&limit=${limit}`,
};

/** A table is what kubectl shows of objects, and nothing more of them. */
export const table = 'application/json;as=Table;v=v1;g=meta.k8s.io';
