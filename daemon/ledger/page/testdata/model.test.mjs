// SPDX-License-Identifier: Apache-2.0

import {test} from 'node:test';
import assert from 'node:assert/strict';
import {Ledger, label, latency, matches, micros, picture, plain, span, summaries, tree, withoutKeys} from '../static/model.js';

const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
let clock = Date.parse('2030-01-02T03:04:05Z');

// call makes a record: from is "Deployment/cart cart-1", answer the pod that answered.
function call(from, service, {answer, after = 1, ms = 10, ...more} = {}) {
  clock += after;
  const [workload, pod] = from.split(' ');
  return {
    time: new Date(clock).toISOString().replace('Z', '000Z'), node: 'n1', hook: 'Router', protocol: 'http/1.1',
    tag: {kind: 'Sandbox', namespace: 'shop', name: 'pr-42'}, source: {namespace: 'shop', workload, pod},
    service: {namespace: 'shop', name: service, port: 80}, decision: 'baseline', reason: 'no_redirect', status: 200,
    answer: answer ? {address: '10.0.0.1:80', namespace: 'shop', pod: answer} : {address: '10.96.0.1:80'},
    request: {method: 'GET', path: '/'}, latencyNanos: ms * 1e6, traceID: trace, ...more,
  };
}

const fill = (...records) => {
  const ledger = new Ledger();
  ledger.add({items: records});
  return ledger;
};
const shape = (nodes) => nodes.map((n) => [n.record.service.name, ...(n.calls.length ? [shape(n.calls)] : [])]);

test('a call hangs below the one that its pod was answering', () => {
  const ledger = fill(
    call('Job/tests t-1', 'frontend', {answer: 'frontend-1', ms: 50}),
    call('Deployment/frontend frontend-1', 'cart', {answer: 'cart-1'}),
    call('Deployment/cart cart-1', 'stock', {answer: 'stock-1', ms: 2}),
    call('Deployment/frontend frontend-1', 'ads', {answer: 'ads-1', after: 20}));
  assert.deepEqual(shape(tree(ledger.records)), [['frontend', [['cart', [['stock']]], ['ads']]]]);
});

test('where the answering pod is not known the innermost call under way stands for it, and it is said to be a guess', () => {
  const ledger = fill(
    call('Job/tests t-1', 'frontend', {ms: 50}),
    call('Deployment/frontend frontend-1', 'cart', {ms: 20}),
    call('Deployment/cart cart-1', 'stock', {ms: 2}));
  const [root] = tree(ledger.records);
  assert.deepEqual(shape([root]), [['frontend', [['cart', [['stock']]]]]]);
  assert.equal(root.calls[0].sure, false);
});

test('two calls of one pod at the same time are beside each other', () => {
  const ledger = fill(
    call('Job/tests t-1', 'frontend', {ms: 50}),
    call('Job/tests t-1', 'cart', {ms: 5}));
  assert.deepEqual(shape(tree(ledger.records)), [['frontend'], ['cart']]);
});

test('a call that no other explains is a root, not left out', () => {
  const ledger = fill(
    call('Job/tests t-1', 'frontend', {answer: 'frontend-1', ms: 5}),
    call('Deployment/other other-1', 'stock', {answer: 'stock-1', after: 500}));
  assert.deepEqual(shape(tree(ledger.records)), [['frontend'], ['stock']]);
});

test('the clocks of two nodes may differ by a little', () => {
  const outer = call('Job/tests t-1', 'frontend', {answer: 'frontend-1', ms: 50});
  const inner = call('Deployment/frontend frontend-1', 'cart', {answer: 'cart-1', after: 2});
  assert.deepEqual(shape(tree(fill(inner, outer).records)), [['frontend', [['cart']]]]);
});

test('the picture has a workload once, whether it calls or answers', () => {
  const {nodes, edges} = picture(fill(
    call('Job/tests t-1', 'frontend', {ms: 50}),
    call('Deployment/frontend frontend-5d4f8c7b9-bcdfg', 'cart', {answer: 'cart-7c9d8f6b5-hjklm', ms: 20}),
    call('Deployment/cart cart-7c9d8f6b5-hjklm', 'stock', {answer: 'stock-7c9d8f6b5-hjklm', ms: 2})));
  assert.deepEqual(nodes.map((n) => `${n.type} ${n.label}`).sort(), [
    'service cart', 'service frontend', 'service stock', 'workload cart', 'workload frontend', 'workload stock', 'workload tests']);
  assert.equal(edges.length, 6);
});

test('pods that were made of one name are one, others by themselves', () => {
  const bare = (pod, own) => {
    const r = call(` ${pod}`, 'frontend', {answer: 'frontend-1'});
    delete r.source.workload;
    if (own) r.source.sandbox = 'pr-42';
    return r;
  };
  const {nodes, edges} = picture(fill(
    bare('proxy-pr-42-htz4c'), bare('proxy-pr-42-9l62b'), bare('proxy-pr-42-9l62b'), bare('proxy-pr-43-448lg'),
    bare('runner-1'), bare('runner-2'), bare('run-pr-42-bcdfg', true), bare('run-pr-42-bcdfh', true)));
  assert.deepEqual(nodes.filter((n) => n.type !== 'service').map((n) => `${n.label}, ${n.sub}`).sort(), [
    'frontend, baseline', 'proxy-pr-42, 2 pods', 'proxy-pr-43-448lg, Pod', 'run-pr-42, 2 pods of the sandbox', 'runner-1, Pod', 'runner-2, Pod']);
  assert.deepEqual(edges.filter((e) => e.from.includes('proxy-pr-42')).map((e) => e.ids.length), [3]);
});

test('what lost the key is marked on the way of its call and nowhere else', () => {
  const {nodes, edges} = picture(fill(
    call('Job/tests t-1', 'frontend', {answer: 'frontend-1', ms: 50}),
    call('Deployment/frontend frontend-1', 'cart', {answer: 'cart-1', lostKey: true, lostBy: 'Deployment/frontend'}),
    call('Deployment/frontend frontend-1', 'ads', {answer: 'ads-1', lostKey: true, healed: true})));
  assert.deepEqual(nodes.filter((n) => n.lost).map((n) => n.label), ['frontend']);
  assert.deepEqual(edges.filter((e) => e.lost).map((e) => e.id), ['w:shop/frontend s:shop/cart', 's:shop/cart w:shop/cart']);
  assert.deepEqual(edges.filter((e) => e.healed).map((e) => e.id), ['w:shop/frontend s:shop/ads', 's:shop/ads w:shop/ads']);
  assert.deepEqual(label(edges.find((e) => e.lost), true), ['1 key lost']);
  assert.deepEqual(label(edges.find((e) => e.lost), false), ['1 × 200', '10.0 ms']);
});

test('a fork has its workload\'s name, and what is refused its own end', () => {
  const {nodes} = picture(fill(
    call('Job/tests t-1', 'route', {decision: 'fork', answer: 'route-pr-42-abc-7d9f8-x2x4z'}),
    call('Job/tests t-1', 'stock', {decision: 'reject', reason: 'unavailable', status: 503, answer: undefined})),
  [{name: 'route-pr-42-abc', workload: {kind: 'Deployment', name: 'route'}}]);
  assert.ok(nodes.some((n) => n.type === 'fork' && n.label === 'route'));
  assert.ok(nodes.some((n) => n.type === 'reject' && n.sub === 'unavailable'));
});

test('nothing is missing in silence', () => {
  const ledger = new Ledger(2);
  ledger.add({items: [1, 2, 3].map((i) => call('Job/tests t-1', 'cart', {traceID: `${i}`.repeat(32)}))});
  ledger.add({nodes: [{node: 'n1', answered: true, dropped: 7, omitted: 4, missedFlows: 1, missedEnds: 3}, {node: 'n2', answered: false, message: 'no route to host'}]});
  assert.equal(ledger.records.length, 2);
  assert.equal(summaries(ledger).length, 2);
  assert.deepEqual(ledger.gaps().map((g) => g.text), [
    'node n1 dropped 7 older records: its memory for them is bounded',
    'node n1 has no records of 1 flow: too many began at once',
    'node n1 does not know what 3 flows carried: too many ended or were open at once',
    'node n2 does not answer: its records are missing (no route to host)',
    '5 older records not shown: sidetrack trace shows them']);
  ledger.add({nodes: [{node: 'n2', answered: true}]});
  assert.ok(!ledger.gaps().some((g) => g.kind === 'silent'), 'a node that answers again is no gap');
});

test('of the records of several nodes the oldest are let go of, whichever node came first', () => {
  const ledger = new Ledger(3);
  const [a, b, c, d] = [1, 2, 3, 4].map((i) => call('Job/tests t-1', 'cart', {traceID: `${i}`.repeat(32)}));
  ledger.add({items: [c, d]});
  ledger.add({items: [a, b]});
  assert.deepEqual(ledger.records.map((r) => r.traceID[0]), ['2', '3', '4']);
  assert.deepEqual(summaries(ledger).map((s) => s.id[0]), ['4', '3', '2']);
});

test('a flow without a trace is a request of its own', () => {
  const flow = () => call('Deployment/cart cart-1', 'postgres', {traceID: undefined, request: undefined, protocol: 'tcp', hook: 'Connect', status: 0, latencyNanos: 0});
  const [a] = summaries(fill(flow(), flow()));
  assert.equal(summaries(fill(flow(), flow())).length, 2);
  assert.equal(a.bad, false);
});

test('a flow is shown once, by its end when that has come', () => {
  const flow = (id, more) => call('Deployment/cart cart-1', 'postgres', {traceID: undefined, request: undefined, protocol: 'tcp', hook: 'Connect', status: 0, node: 'n1', flow: id, ...more});
  const ledger = new Ledger(3);
  const began = flow('a', {open: true, latencyNanos: 0});
  ledger.add({items: [began, flow('b', {open: true, latencyNanos: 0})]});
  assert.equal(summaries(ledger).length, 2);
  ledger.add({items: [{...began, open: undefined, latencyNanos: 5e6, sentBytes: 7}]});
  assert.equal(summaries(ledger).length, 2);
  assert.deepEqual(ledger.records.map((r) => [r.flow, Boolean(r.open), r.sentBytes]), [['b', true, undefined], ['a', false, 7]]);
  // One that was let go of is no more replaced.
  ledger.add({items: [flow('c', {}), flow('d', {}), flow('e', {})]});
  ledger.add({items: [flow('b', {latencyNanos: 1e6})]});
  assert.equal(ledger.records.length, 3);
  assert.equal(ledger.open.size, 0);
});

test('what is looked for is found by any of its words, and problems alone', () => {
  const [s] = summaries(fill(call('Deployment/cart cart-1', 'stock', {status: 502})));
  for (const text of ['STOCK', '502', 'cart-1', trace, 'baseline']) assert.ok(matches(s, {text}), text);
  assert.ok(!matches(s, {text: 'fork'}));
  assert.ok(matches(s, {problems: true}));
  assert.ok(!matches(summaries(fill(call('Deployment/cart cart-1', 'stock')))[0], {problems: true}));
});

test('characters that change how a line reads are made visible', () => {
  assert.equal(plain('/a\u202egnp.exe\u0000\n'), '/a\\u202egnp.exe\\u0000\\u000a');
  assert.equal(plain('/größe/数'), '/größe/数');
});

test('times and lengths are written for people', () => {
  assert.equal(micros('2030-01-02T03:04:05.678901Z'), Date.parse('2030-01-02T03:04:05Z') * 1000 + 678901);
  assert.equal(micros('2030-01-02T03:04:05Z') % 1e6, 0);
  assert.deepEqual([0, 900, 1.5e6, 250e6, 2.5e9].map(latency), ['', '1 µs', '1.5 ms', '250 ms', '2.50 s']);
  assert.deepEqual([400, 59e3, 3.7e6, 9e7].map(span), ['0 s', '59 s', '1 h 1 min', '1 d 1 h']);
});

test('an object is kept without its routing keys', () => {
  const kept = withoutKeys({metadata: {name: 'a', annotations: {last: 'secret'}}, spec: {routingKey: 'secret', ttl: '2h'}, status: {routingKey: 'secret', nodes: {total: 1}}});
  assert.ok(!JSON.stringify(kept).includes('secret'));
  assert.deepEqual([kept.hasKey, kept.spec.ttl, kept.status.nodes.total], [true, '2h', 1]);
});
