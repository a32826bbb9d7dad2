// SPDX-License-Identifier: Apache-2.0

// What the records of a ledger mean: which of them are one request, what called
// what, and the picture of it. Nothing here touches the document or the network.

/** plain makes characters visible that would change how a line reads. */
export function plain(s) {
  return String(s ?? '').replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
}

/** micros reads an RFC 3339 time: Date has no more than milliseconds. */
export function micros(time) {
  const ms = Date.parse(time);
  if (!Number.isFinite(ms)) return 0;
  const fraction = /\.(\d+)/.exec(time);
  return Math.floor(ms / 1000) * 1e6 + (fraction ? Number(fraction[1].padEnd(6, '0').slice(0, 6)) : 0);
}

/** latency writes nanoseconds for people. */
export function latency(nanos) {
  if (!nanos) return '';
  const ms = nanos / 1e6;
  if (ms < 1) return `${Math.max(1, Math.round(ms * 1000))} µs`;
  if (ms < 100) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

/** span writes a number of milliseconds in two units. */
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = units.findIndex(([n]) => s >= n);
  if (first < 0) return '0 s';
  const [n, unit] = units[first];
  let text = `${Math.floor(s / n)} ${unit}`;
  if (first + 1 < units.length) {
    const [m, small] = units[first + 1];
    const rest = Math.floor((s % n) / m);
    if (rest) text += ` ${rest} ${small}`;
  }
  return text;
}

/** bad says whether something went wrong with what a record tells. */
export function bad(r) {
  return Boolean(r.error) || r.decision === 'reject' || r.status >= 400 || r.grpcStatus > 0;
}

/** outcome is what came of it, in a word. */
export function outcome(r) {
  if (r.grpcStatus !== undefined && r.grpcStatus !== null) return `gRPC ${r.grpcStatus}`;
  if (r.status) return String(r.status);
  if (r.decision === 'reject') return 'refused';
  if (r.error) return 'error';
  return r.request ? 'no answer' : r.protocol;
}

/** serviceName is a Service as people write it in its own namespace. */
export function serviceName(r, namespace) {
  if (!r.service) return r.dialled || 'unknown destination';
  return r.service.namespace === namespace ? r.service.name : `${r.service.name}.${r.service.namespace}`;
}

/** Letters that Kubernetes makes names' endings of: no vowels, no 0, 1 or 3. */
const ending = '[bcdfghjklmnpqrstvwxz2456789]';
const endings = [new RegExp(`-${ending}{5,10}-${ending}{5}$`), new RegExp(`-${ending}{5}$`), /-\d+$/];

/** nameOfPod is what a pod's workload is called, by how its kind names pods. */
function nameOfPod(pod) {
  for (const e of endings) if (e.test(pod)) return pod.replace(e, '');
  return pod;
}

/**
 * caller is who made a call: {id, name, kind}. Pods without a workload whose names were
 * made of the same (generateName) are one, as those of "sidetrack diff" and "run" are.
 */
export function caller(r) {
  const s = r.source ?? {};
  const [kind, name] = s.workload ? s.workload.split('/', 2) : s.pod ? ['Pod', s.pod.replace(endings[1], '')] : ['Node', r.node || 'unknown'];
  return {id: `w:${s.namespace ?? ''}/${name}`, name, kind, pod: s.workload ? undefined : s.pod, sandbox: s.sandbox};
}

const seconds = (r) => r.latencyNanos / 1000 || 0;
const samePod = (a, s) => Boolean(a?.pod) && a.pod === s?.pod && (a.namespace ?? '') === (s?.namespace ?? '');

// What the clocks of two nodes may differ by, in microseconds.
const slack = 50000;

/**
 * parentOf finds the call that a call was made for: of the same trace, answered by
 * the pod that makes it. Where it is not known which pod answered, as behind a
 * Service's own address, the innermost call that was under way: then it is a guess.
 */
function parentOf(sorted, i) {
  const r = sorted[i];
  let best;
  for (let k = 0; k < i; k++) {
    const a = sorted[k];
    const within = a.at <= r.at + slack && r.at <= a.at + seconds(a) + slack;
    const sure = samePod(a.answer, r.source);
    if (!sure && (a.answer?.pod || a.decision === 'reject' || !within || samePod(a.source, r.source))) continue;
    const found = {record: a, sure, within};
    if (!best || Number(sure) - Number(best.sure) > 0 ||
      (sure === best.sure && (Number(within) - Number(best.within) > 0 || (within === best.within && a.at >= best.record.at)))) best = found;
  }
  return best;
}

/** tree puts the calls of one trace in order: [{record, sure, calls: […]}]. */
export function tree(records) {
  const sorted = [...records].sort((a, b) => a.at - b.at || a.serial - b.serial);
  const nodes = new Map();
  const roots = [];
  sorted.forEach((record, i) => {
    const parent = parentOf(sorted, i);
    const node = {record, sure: parent?.sure ?? true, calls: []};
    nodes.set(record, node);
    (parent ? nodes.get(parent.record).calls : roots).push(node);
  });
  return roots;
}

/**
 * Ledger holds the newest records of a stream, and says what is not among them:
 * nodes that did not answer, records that were dropped, left out, never made, or let go of here.
 */
export class Ledger {
  constructor(capacity = 2000) {
    this.capacity = capacity;
    this.records = [];
    this.traces = new Map();
    this.open = new Map(); // flows under way
    this.nodes = new Map();
    this.forgotten = 0;
    this.version = 0;
    this.serial = 0;
  }

  /** add takes one RecordList of the stream. */
  add(list) {
    for (const r of list.items ?? []) {
      r.at = micros(r.time);
      r.serial = this.serial++;
      r.id = r.traceID || `${r.time} ${r.node ?? ''} ${r.source?.pod ?? ''} ${r.dialled ?? ''} ${r.request?.path ?? ''}`;
      if (r.flow) this.#replace(r);
      this.records.push(r);
      const trace = this.traces.get(r.id);
      if (trace) trace.records.push(r);
      else this.traces.set(r.id, {id: r.id, records: [r]});
    }
    const over = this.records.length - this.capacity;
    if (over > 0) {
      // Nodes answer one after the other: what came first is not what is oldest.
      this.records.sort((a, b) => a.at - b.at || a.serial - b.serial);
      for (const r of this.records.splice(0, over)) {
        const trace = this.traces.get(r.id);
        trace.records.splice(trace.records.indexOf(r), 1);
        trace.cut = true;
        if (r.open) this.open.delete(`${r.node} ${r.flow}`);
        if (!trace.records.length) this.traces.delete(r.id);
      }
      this.forgotten += over;
    }
    for (const n of list.nodes ?? []) this.nodes.set(n.node, {...this.nodes.get(n.node), ...n, message: n.message});
    this.version++;
  }

  /** #replace takes out the record of a flow under way for that of its end. */
  #replace(r) {
    const key = `${r.node} ${r.flow}`;
    const before = this.open.get(key);
    if (r.open) this.open.set(key, r);
    else this.open.delete(key);
    if (!before) return;
    this.records.splice(this.records.indexOf(before), 1);
    const trace = this.traces.get(before.id);
    trace.records.splice(trace.records.indexOf(before), 1);
    if (!trace.records.length) this.traces.delete(before.id);
  }

  /** gaps says in sentences what is missing. */
  gaps() {
    const out = [];
    for (const n of [...this.nodes.values()].sort((a, b) => (a.node < b.node ? -1 : 1))) {
      if (!n.answered) out.push({kind: 'silent', text: `node ${n.node} does not answer: its records are missing${n.message ? ` (${n.message})` : ''}`});
      if (n.dropped) out.push({kind: 'dropped', text: `node ${n.node} dropped ${count(n.dropped, 'older record')}: its memory for them is bounded`});
      if (n.missedFlows) out.push({kind: 'missed', text: `node ${n.node} has no records of ${count(n.missedFlows, 'flow')}: too many began at once`});
      if (n.missedEnds) out.push({kind: 'missed', text: `node ${n.node} does not know what ${count(n.missedEnds, 'flow')} carried: too many ended or were open at once`});
    }
    const omitted = [...this.nodes.values()].reduce((sum, n) => sum + (n.omitted ?? 0), 0) + this.forgotten;
    if (omitted) out.push({kind: 'older', text: `${count(omitted, 'older record')} not shown: sidetrack trace shows them`});
    return out;
  }
}

/** count writes a number of things. */
export const count = (n, what) => `${n.toLocaleString('en')} ${what}${n === 1 ? '' : 's'}`;

/** summary is what a list shows of a trace. */
export function summary(trace) {
  const records = trace.records;
  let first = records[0];
  for (const r of records) if (r.at < first.at) first = r;
  const lost = records.find((r) => r.lostKey && !r.healed);
  return {
    id: trace.id, trace, first, hops: records.length,
    lost: Boolean(lost),
    lostBy: lost && (lost.lostBy || caller(lost).pod || caller(lost).name),
    healed: records.some((r) => r.healed),
    bad: records.some(bad),
    forks: records.filter((r) => r.decision === 'fork').length,
  };
}

/** summaries are those of all traces, the newest first. */
export function summaries(ledger) {
  return [...ledger.traces.values()].map(summary).sort((a, b) => b.first.at - a.first.at || b.first.serial - a.first.serial);
}

/** matches says whether a trace is among those that are looked for. */
export function matches(s, {text, problems, part}) {
  if (problems && !s.bad && !s.lost && !s.healed) return false;
  if (part && !s.trace.records.some((r) => part.ids.includes(r.serial))) return false;
  if (!text) return true;
  const wanted = text.toLowerCase();
  return s.trace.records.some((r) => [
    r.request?.method, r.request?.path, r.request?.authority, r.service?.name, r.source?.workload, r.source?.pod,
    r.answer?.pod, r.traceID, r.decision, r.reason, outcome(r), r.lostBy, r.error,
  ].some((v) => v && String(v).toLowerCase().includes(wanted)));
}

function median(values) {
  if (!values.length) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

/**
 * picture is the graph of what called what: workloads, the Services that they
 * called, and what answered. Each part has the serials of its records, so that they
 * can be found again.
 */
export function picture(ledger, forks = []) {
  const namespace = ledger.records[0]?.tag?.namespace;
  const owners = new Map(); // pod -> workload's name, from those that called
  for (const r of ledger.records) if (r.source?.pod) owners.set(`${r.source.namespace ?? ''}/${r.source.pod}`, caller(r).name);
  const baselines = guessBaselines(ledger);
  const forkNames = new Map(forks.filter((f) => f.name).map((f) => [f.name, f.workload.name]));

  const nodes = new Map();
  const edges = new Map();
  const node = (id, make) => {
    let n = nodes.get(id);
    if (!n) nodes.set(id, n = {id, ids: [], lost: 0, ...make()});
    return n;
  };
  const edge = (from, to, r) => {
    const id = `${from.id} ${to.id}`;
    let e = edges.get(id);
    if (!e) edges.set(id, e = {id, from: from.id, to: to.id, ids: [], lost: 0, healed: 0, bad: 0, forks: 0, outcomes: new Map(), latencies: []});
    e.ids.push(r.serial);
    e.outcomes.set(outcome(r), (e.outcomes.get(outcome(r)) ?? 0) + 1);
    if (r.latencyNanos) e.latencies.push(r.latencyNanos);
    if (r.lostKey && !r.healed) e.lost++;
    if (r.healed) e.healed++;
    if (bad(r)) e.bad++;
    if (r.decision === 'fork') e.forks++;
    return e;
  };
  const workload = (id, ns, name, kind) => node(id, () => forkNames.has(name) ?
    {type: 'fork', label: forkNames.get(name), sub: 'fork'} :
    {type: 'workload', label: name, sub: ns && ns !== namespace ? `${kind || 'baseline'} · ${ns}` : kind || 'baseline'});

  for (const r of ledger.records) {
    const c = caller(r);
    const from = workload(c.id, r.source?.namespace, c.name, c.kind);
    if (c.pod) from.pods = (from.pods ?? new Set()).add(c.pod);
    if (r.source?.sandbox && from.type === 'workload') Object.assign(from, {type: 'own', sub: `${c.kind} of the sandbox`});
    if (!from.kindKnown) {
      from.kindKnown = true;
      if (from.type === 'workload') from.sub = r.source?.namespace && r.source.namespace !== namespace ? `${c.kind} · ${r.source.namespace}` : c.kind;
    }
    const service = node(`s:${r.service ? `${r.service.namespace}/${r.service.name}` : r.dialled ?? ''}`, () => (
      {type: 'service', label: serviceName(r, namespace), sub: r.service ? 'Service' : 'address'}));
    const to = target(r, service);
    for (const n of new Set([from, service, to])) n.ids.push(r.serial);
    if (r.lostKey) from[r.healed ? 'healed' : 'lost'] = (from[r.healed ? 'healed' : 'lost'] ?? 0) + 1;
    edge(from, service, r);
    edge(service, to, r);
  }
  for (const n of nodes.values()) {
    if (!n.pods || n.type === 'fork') continue;
    if (n.pods.size === 1) [n.label] = n.pods;
    else n.sub = n.sub.replace(/^Pod/, `${n.pods.size} pods`);
  }
  for (const e of edges.values()) {
    e.median = median(e.latencies);
    delete e.latencies;
  }
  return {nodes: [...nodes.values()], edges: [...edges.values()]};

  function target(r, service) {
    if (r.decision === 'reject') return node(`x:${service.id}`, () => ({type: 'reject', label: 'refused', sub: r.reason}));
    const a = r.answer;
    if (a?.pod) {
      const name = owners.get(`${a.namespace ?? ''}/${a.pod}`) ??
        (r.decision === 'fork' && forks.find((f) => f.name && a.pod.startsWith(f.name + '-'))?.name || nameOfPod(a.pod));
      const n = workload(`w:${a.namespace ?? ''}/${name}`, a.namespace, name);
      if (r.decision === 'fork' && n.type === 'workload') Object.assign(n, {type: 'fork', sub: 'fork'});
      return n;
    }
    if (r.decision === 'fork') return node(`f:${service.id} ${a?.address ?? ''}`, () => ({type: 'fork', label: a?.address ?? 'fork', sub: 'fork'}));
    const known = baselines.get(service.id);
    if (known) return workload(known.id, known.namespace, known.name, known.kind);
    return node(`b:${service.id}`, () => ({type: 'workload', label: service.label, sub: 'baseline'}));
  }
}

/**
 * guessBaselines finds out which workload is behind a Service whose answering pods
 * are not known: whose calls were made while one of the Service was under way.
 */
function guessBaselines(ledger) {
  const votes = new Map();
  const visit = (nodes) => {
    for (const n of nodes) {
      for (const c of n.calls) {
        if (c.sure || n.record.decision !== 'baseline' || !n.record.service) continue;
        const service = n.record.service;
        const id = `s:${service.namespace}/${service.name}`;
        const w = caller(c.record);
        if (w.kind === 'Node' || w.sandbox) continue;
        const of = votes.get(id) ?? votes.set(id, new Map()).get(id);
        const vote = of.get(w.id) ?? of.set(w.id, {...w, namespace: c.record.source.namespace, n: 0}).get(w.id);
        // A workload that is called as its Service is the likeliest by far.
        vote.n += w.name === service.name ? 1000 : 1;
      }
      visit(n.calls);
    }
  };
  for (const t of ledger.traces.values()) if (t.records[0].traceID && t.records.length > 1) visit(tree(t.records));
  return new Map([...votes].map(([id, of]) => [id, [...of.values()].sort((a, b) => b.n - a.n)[0]]));
}

/** label is what an edge says of its calls, in one line or two. */
export function label(e, toService) {
  const number = (n) => n.toLocaleString('en');
  if (toService) return [e.lost ? `${number(e.lost)} key lost` : e.healed ? `${number(e.healed)} healed` : number(e.ids.length)];
  const [[what, times], ...others] = [...e.outcomes].sort((a, b) => b[1] - a[1]);
  const rest = others.reduce((sum, [, n]) => sum + n, 0);
  return [`${number(times)} × ${what}`, [rest && `+ ${number(rest)} other`, e.median && latency(e.median)].filter(Boolean).join(' · ')];
}

/** condition finds one of an object's. */
export const condition = (object, type) => object?.status?.conditions?.find((c) => c.type === type);

/** withoutKeys is an object without its routing keys: the page holds none. */
export function withoutKeys(object) {
  const {metadata = {}, spec = {}, status = {}} = object;
  const {routingKey: a, ...restOfSpec} = spec;
  const {routingKey: b, ...restOfStatus} = status;
  const {name, namespace, uid, creationTimestamp, deletionTimestamp} = metadata;
  return {metadata: {name, namespace, uid, creationTimestamp, deletionTimestamp}, spec: restOfSpec, status: restOfStatus, hasKey: Boolean(a || b)};
}
