// SPDX-License-Identifier: Apache-2.0

// A sandbox's own state: conditions, forks, redirects and nodes.

import {h} from './preact.mjs';
import {now} from './api.js';
import {condition, count, micros, plain, span} from './model.js';

const order = ['Accepted', 'ForksReady', 'Programmed', 'Ready'];
const words = {True: 'ok', False: 'bad', Unknown: 'wait'};

/** readiness is a class for how ready an object is. */
export const readiness = (object) => (object.metadata.deletionTimestamp ? 'gone' : words[condition(object, 'Ready')?.status] ?? 'wait');

/** expiry says how long an object still lives. */
export function expiry(object) {
  const at = Date.parse(object.status.expiresAt);
  if (!Number.isFinite(at)) return '';
  return at > now() ? `expires in ${span(at - now())}` : 'expired';
}

/** Conditions shows all of them, and says of those that are not met why. */
export function Conditions({object}) {
  const all = [...object.status.conditions ?? []].sort((a, b) => order.indexOf(a.type) - order.indexOf(b.type));
  if (!all.length) return h('p', {class: 'conditions'}, h('span', {class: 'chip wait'}, 'The controller has not looked at it yet'));
  const unmet = all.filter((c) => c.status !== 'True' && c.message);
  // Ready says again what another says.
  const told = unmet.filter((c) => c.type !== 'Ready' || unmet.length === 1);
  return h('div', {class: 'conditions'},
    h('p', null, all.map((c) => h('span', {key: c.type, class: `chip ${words[c.status] ?? 'wait'}`, title: plain(c.message)},
      plain(c.type), c.status !== 'True' && h('small', null, ` ${plain(c.reason)}`)))),
    told.map((c) => h('p', {key: c.type, class: 'message'}, h('b', null, plain(c.type)), `: ${plain(c.message)}`)));
}

const table = (caption, heads, rows, empty) => h('section', null, h('h3', null, caption),
  rows.length ? h('table', null,
    h('thead', null, h('tr', null, heads.map((t) => h('th', {key: t, scope: 'col'}, t)))),
    h('tbody', null, rows)) : h('p', {class: 'empty'}, empty));

const row = (key, cells, cls) => h('tr', {key, class: cls}, cells.map((c, i) => h('td', {key: i}, typeof c === 'object' && c ? c : plain(c))));

const state = (ok, text) => h('span', {class: `chip ${ok ? 'ok' : 'bad'}`}, text);

const problem = (e, what) => h('p', {class: 'gap'}, `${what}: ${plain(e.message)}`);

const columns = ['Name', 'Ready', 'Status', 'Restarts', 'Age', 'Node'];

function pods(table_) {
  const wanted = columns.map((name) => table_.columnDefinitions.findIndex((c) => c.name === name));
  return (table_.rows ?? []).map((r) => wanted.map((i) => (i < 0 ? '' : r.cells[i])));
}

const port = (p) => (p === undefined || p === null || p === '' ? '' : `:${p}`);
const destination = (to) => (to.address ? `${to.address}${port(to.port)}` : `${to.service}${to.namespace ? `.${to.namespace}` : ''}${port(to.port)}`);

/** Forks shows what runs for a sandbox and where its traffic is sent. */
export function Forks({object, kind, pods: found}) {
  const {forks = [], redirects = [], sandboxes = []} = object.status;
  const rows = found?.value ? pods(found.value) : [];
  return h('div', {class: 'scroll sheet'},
    kind === 'RouteGroup' ? table('Sandboxes', ['Name'], sandboxes.map((s) => row(s, [s])), 'No sandbox is in it.') : [
      table('Forks', ['Workload', 'Fork', 'Pods ready', 'What is wrong'], forks.map((f) => row(`${f.workload.kind}/${f.workload.name}`, [
        `${f.workload.kind ?? 'Deployment'}/${f.workload.name}`, f.name, state(f.ready >= f.replicas && !f.message, `${f.ready} of ${f.replicas}`), f.message])),
      'It forks nothing: its redirects lead to what was there already.'),
      found?.error ? problem(found.error, 'Its pods cannot be shown') :
        table('Pods', columns, rows.map((cells) => row(cells[0], cells, cells[2] === 'Running' || cells[2] === 'Completed' ? '' : 'bad')), 'It has no pods.'),
    ],
    table('Redirects', ['Service', 'Leads to', 'Ready endpoints', 'From', 'What is wrong'], redirects.map((r, i) => row(i, [
      `${r.from.service}${port(r.from.port)}`, destination(r.to), state(r.endpoints > 0 && !r.refused, r.refused ? 'refused' : String(r.endpoints)),
      r.fork ? `fork of ${r.fork}` : r.sandbox ? `sandbox ${r.sandbox}` : 'spec.redirects', r.message])), 'Nothing is redirected.'));
}

// An agent says something every 10 seconds; after 40 it is taken to be gone.
const silent = 40e3;

/** Nodes shows whether the cluster's nodes have a sandbox in force. */
export function Nodes({object, nodes, ledger}) {
  const {programmed = 0, total = 0} = object.status.nodes ?? {};
  const services = new Set((object.status.redirects ?? []).map((r) => r.from.service));
  const namespace = object.metadata.namespace;
  const behind = condition(object, 'Programmed');
  const answers = [...ledger.nodes.values()].sort((a, b) => (a.node < b.node ? -1 : 1));
  const items = nodes?.value?.items ?? [];
  return h('div', {class: 'scroll sheet'},
    h('p', null, state(total > 0 && programmed >= total, `${programmed} of ${total}`), ' nodes have it in force.',
      behind && behind.status !== 'True' && ` ${plain(behind.message)}`),
    nodes?.error ? problem(nodes.error, 'The nodes\' own states cannot be shown') :
      table('Agents', ['Node', 'Last heard of', 'Version', 'Pods covered', 'Pods not covered', 'Connections from before', 'Problems'],
        items.map((n) => {
          const s = n.status ?? {};
          const ago = now() - micros(s.heartbeatTime) / 1000;
          const connections = (s.connections ?? []).filter((c) => c.namespace === namespace && services.has(c.service));
          const problems = (s.problems ?? []).filter((p) => !p.namespace || p.namespace === namespace);
          return row(n.metadata.name, [n.metadata.name, state(ago < silent, s.heartbeatTime ? `${span(ago)} ago` : 'never'), s.agentVersion,
            s.pods?.covered ?? 0, s.pods?.uncovered ? state(false, String(s.pods.uncovered)) : 0,
            connections.map((c) => `${c.service} ${c.uncovered}`).join(', '),
            problems.map((p) => [p.kind, p.name, p.field, p.message].filter(Boolean).join(' ')).join('; ')]);
        }), 'No node has said anything.'),
    table('Ledgers', ['Node', 'Asked', 'Goes back to', 'Dropped', 'Older ones left out', 'Flows without a record', 'Flows without an end'], answers.map((n) => row(n.node, [
      n.node, state(n.answered, n.answered ? 'answered' : 'no answer'), n.answered ? n.since : n.message, n.dropped ?? 0, n.omitted ?? 0, n.missedFlows ?? 0, n.missedEnds ?? 0])),
    'No node has been asked yet.'));
}

/** uncovered says which connections are from before, where there are some. */
export function uncovered(object) {
  const n = object.status.uncoveredConnections;
  return n ? `${count(n, 'connection')} from before the redirect: tagged requests on them reach the baseline until they are closed` : '';
}
