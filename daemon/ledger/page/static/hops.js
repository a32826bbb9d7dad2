// SPDX-License-Identifier: Apache-2.0

// The requests that were seen, and one of them as a tree of its hops.

import {h} from './preact.mjs';
import {bad, caller as callerOf, count, latency, outcome, plain, serviceName, tree} from './model.js';

const clock = (at) => {
  const d = new Date(at / 1000);
  const two = (n) => String(n).padStart(2, '0');
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${String(d.getMilliseconds()).padStart(3, '0')}`;
};

const what = (r) => (r.request ? `${r.request.method} ${r.request.path || '/'}` : `${r.protocol} ${r.dialled ?? ''}`);

const tag = (kind, text, title) => h('span', {class: `tag ${kind}`, title}, text);

const Row = ({s, chosen, choose, namespace}) => h('li', {
  role: 'option', id: `t-${s.first.serial}`, 'aria-selected': chosen ? 'true' : 'false',
  class: `${s.lost ? 'lost' : ''} ${chosen ? 'chosen' : ''}`, onClick: choose,
},
h('time', null, clock(s.first.at)),
h('span', {class: `outcome ${s.bad ? 'bad' : ''}`}, plain(outcome(s.first))),
h('span', {class: 'what', title: plain(what(s.first))}, h('b', null, plain(serviceName(s.first, namespace))), ' ', plain(what(s.first))),
h('span', {class: 'tags'},
  s.lost && tag('lost', 'key lost', `by ${plain(s.lostBy)}`),
  s.healed && tag('healed', 'healed'),
  s.forks > 0 && tag('fork', 'fork'),
  s.hops > 1 && tag('hops', `${s.hops} hops`)),
h('span', {class: 'latency'}, latency(s.first.latencyNanos)));

/** Requests is the list of them, the newest first. */
export function Requests({shown, total, most, more, chosen, choose, namespace, empty}) {
  const keys = (event) => {
    const i = shown.findIndex((s) => s.id === chosen);
    const to = {ArrowDown: i + 1, j: i + 1, ArrowUp: i - 1, k: i - 1, Home: 0, End: shown.length - 1}[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const s = shown[Math.max(0, Math.min(shown.length - 1, to))];
    if (!s) return;
    choose(s.id);
    document.getElementById(`t-${s.first.serial}`)?.scrollIntoView({block: 'nearest'});
  };
  const active = shown.find((s) => s.id === chosen);
  return h('div', {class: 'scroll'},
    h('ol', {
      id: 'requests', class: 'requests', role: 'listbox', tabIndex: 0, 'aria-label': 'Requests, the newest first', onKeyDown: keys,
      'aria-activedescendant': active ? `t-${active.first.serial}` : undefined,
    }, shown.map((s) => h(Row, {key: s.id, s, chosen: s.id === chosen, choose: () => choose(s.id), namespace}))),
    !shown.length && h('p', {class: 'empty'}, empty),
    total > shown.length && h('p', {class: 'empty'}, `${count(total - most, 'more request')}. `, h('button', {onClick: more}, 'Show them')));
}

const fact = (name, value, cls) => value !== undefined && value !== '' && value !== null && [h('dt', null, name), h('dd', {class: cls}, plain(value))];

const podOf = (p) => p?.pod && `${p.pod}${p.namespace ? ` in ${p.namespace}` : ''}`;

function Facts({r, sure}) {
  const bytes = (n) => n && `${n.toLocaleString('en')} bytes`;
  return h('dl', null,
    fact('error', r.error, 'bad'),
    fact('request', r.request && what(r)),
    fact('decision', `${r.decision}, ${r.reason}`),
    fact('leads to', r.target),
    fact('from pod', podOf(r.source) || 'none known'),
    fact('sandbox of it', r.source?.sandbox),
    fact('dialled', r.dialled),
    fact('answered by', r.answer && (podOf(r.answer) ? `${podOf(r.answer)}, ${r.answer.address}` : `${r.answer.address} (the cluster's proxy chose the pod)`)),
    fact('host', r.request?.authority),
    fact('lasts', r.open && 'it was under way when this was recorded'),
    fact('sent', bytes(r.sentBytes)), fact('received', bytes(r.receivedBytes)),
    fact('datagrams', r.datagrams),
    fact('protocol', r.protocol), fact('seen by', `${r.hook} on ${r.node || 'an unnamed node'}`),
    fact('time', r.time), fact('trace', r.traceID), fact('span that called', r.parentID),
    !sure && fact('place in the tree', 'by time: it is not known which pod answered the call above'));
}

// A fork's own name is long, and nobody has chosen it.
const named = (name, forks) => {
  const fork = forks.find((f) => f.name && f.name === name);
  return plain(fork ? `${fork.workload.name} (fork)` : name);
};

const Hop = ({node, namespace, forks}) => {
  const r = node.record;
  const c = callerOf(r);
  const lost = r.lostKey && !r.healed;
  return h('li', null,
    h('details', {class: `hop ${lost ? 'lost' : ''}`, key: r.serial},
      h('summary', null,
        h('span', {class: `outcome ${bad(r) ? 'bad' : ''}`}, plain(outcome(r))),
        h('span', {class: 'what', title: plain(what(r))},
          h('b', null, named(c.name, forks)), h('span', {class: 'arrow'}, node.sure ? ' → ' : ' ⇢ '), h('b', null, plain(serviceName(r, namespace))), ' ', plain(what(r))),
        tag(r.decision, r.decision === 'reject' ? 'refused' : r.decision),
        h('span', {class: 'latency'}, latency(r.latencyNanos)),
        lost && h('span', {class: 'verdict lost'}, `${plain(r.lostBy || c.name)} lost the key: it was called with it, and made this call without it`),
        r.healed && h('span', {class: 'verdict healed'}, `healed: ${plain(r.lostBy || c.name)} lost the key, the trace id stood for it`),
        r.error && h('span', {class: 'verdict bad'}, plain(r.error))),
      h(Facts, {r, sure: node.sure})),
    node.calls.length > 0 && h('ul', null, node.calls.map((n) => h(Hop, {key: n.record.serial, node: n, namespace, forks}))));
};

/** Hops is one request with all calls that were made for it. */
export function Hops({trace, namespace, forks}) {
  if (!trace) return h('p', {class: 'empty'}, 'Choose a request to see its hops.');
  const id = trace.records[0].traceID;
  return h('div', {class: 'scroll'},
    h('p', {class: 'trace'}, id ? ['trace ', h('code', null, id)] : 'No traceparent: one hop is all that is known of it.'),
    trace.cut && h('p', {class: 'gap'}, 'Its oldest hops are no longer here.'),
    h('ul', {class: 'tree'}, tree(trace.records).map((n) => h(Hop, {key: n.record.serial, node: n, namespace, forks}))));
}
