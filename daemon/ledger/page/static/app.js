// SPDX-License-Identifier: Apache-2.0

// The page: what it knows, how it keeps that up to date, and how it is laid out.
// It only reads. Texts are set as texts: the policy that it is served with forbids
// to make markup of them.

import {h, render} from './preact.mjs';
import {ApiError, follow, get, paths, resources, table} from './api.js';
import {Ledger, count, matches, picture, plain, summaries, withoutKeys} from './model.js';
import {Picture} from './graph.js';
import {Hops, Requests} from './hops.js';
import {Conditions, Forks, Nodes, expiry, readiness, uncovered} from './state.js';

const every = 3000; // how often objects are read anew, in milliseconds
const limit = 1000; // how many records there are to begin with
const page = 200; // how many requests the list shows at a time

const state = {
  namespace: '', // '' is all of them
  kind: '', name: '', at: '', // what is chosen, and its namespace
  objects: null, // of all kinds, or null before the first answer
  error: null, // why there are no objects
  nodes: null, pods: null, // {value} or {error}
  ledger: new Ledger(), link: 'none', linkError: null,
  tab: 'traffic', trace: '', part: null, text: '', problems: false, most: page,
  paused: null, // what is shown while it stands still
  key: null, // a routing key that somebody has asked for
};

// ---- where we are, in the address: #/NAMESPACE/RESOURCE/NAME

function readAddress() {
  const [namespace = '', resource = '', name = ''] = location.hash.replace(/^#\/?/, '').split('/').map((s) => {
    try {
      return decodeURIComponent(s);
    } catch {
      return '';
    }
  });
  const kind = Object.keys(resources).find((k) => resources[k] === resource) ?? '';
  return {namespace: namespace === '-' ? '' : namespace, kind, name: kind ? name : ''};
}

function go(namespace, object) {
  const parts = [namespace || '-'];
  if (object) parts.push(resources[object.kind], object.metadata.name);
  // All namespaces are in sight, but what is chosen is in one.
  if (object && !namespace) parts.push(object.metadata.namespace);
  location.hash = '#/' + parts.map(encodeURIComponent).join('/');
}

function arrive() {
  const {namespace, kind, name} = readAddress();
  const at = namespace || decodeURIComponent(location.hash.split('/')[4] ?? '');
  if (namespace !== state.namespace) Object.assign(state, {namespace, objects: null, error: null});
  if (kind !== state.kind || name !== state.name || at !== state.at) {
    Object.assign(state, {kind, name, at, pods: null, trace: '', part: null, paused: null, key: null, most: page, ledger: new Ledger()});
    listen();
  }
  poll();
  show();
}

// ---- reading

const tell = (e) => (e instanceof ApiError ? e : new ApiError(0, String(e?.message ?? e)));
const attempt = (promise) => promise.then((value) => ({value}), (e) => ({error: tell(e)}));

let round = 0;
let timer;

// poll reads everything but the ledger, and does so again after a while: not while
// nobody can see it.
async function poll() {
  clearTimeout(timer);
  const mine = ++round;
  if (!document.hidden) {
    const {namespace, kind, name, at} = state;
    const kinds = Object.keys(resources);
    const [nodes, pods, ...lists] = await Promise.all([
      attempt(get(paths.nodes())),
      kind === 'Sandbox' && at ? attempt(get(paths.pods(at, name), {accept: table})) : null,
      ...kinds.map((k) => attempt(get(paths.list(k, namespace)))),
    ]);
    if (mine !== round) return; // Somebody has gone elsewhere meanwhile.
    Object.assign(state, {nodes, pods, error: lists.find((l) => l.error)?.error ?? null});
    if (lists.every((l) => l.value)) {
      state.objects = lists.flatMap((l, i) => l.value.items.map((o) => ({kind: kinds[i], ...withoutKeys(o)})));
    } else if (state.error.status) {
      state.objects = null; // What may no longer be read is no longer shown.
    }
    draw();
  }
  timer = setTimeout(poll, every);
}

let ear;

// listen follows the ledger of what is chosen, and begins again when that ends.
async function listen() {
  ear?.abort();
  Object.assign(state, {link: 'none', linkError: null});
  if (!state.name || !state.at) return;
  const abort = ear = new AbortController();
  const {kind, at, name} = state;
  for (let wait = 500; !abort.signal.aborted; wait = Math.min(wait * 2, 15000)) {
    let fresh = null, after = 0;
    state.link = state.link === 'none' ? 'connecting' : state.link;
    try {
      await follow(paths.records(kind, at, name, limit), {
        signal: abort.signal,
        begun: () => {
          Object.assign(state, {link: 'live', linkError: null});
          draw();
        },
        each: (list) => {
          // What was here before stays in sight until there is something to take its place.
          if (!fresh) state.ledger = fresh = new Ledger();
          fresh.add(list);
          wait = 500;
          draw();
        },
      });
      if (!abort.signal.aborted) state.link = 'again';
    } catch (e) {
      if (abort.signal.aborted) return;
      Object.assign(state, {link: 'broken', linkError: tell(e)});
      after = Math.min(e.after || 0, 60000);
      if (e.status === 403 || e.status === 401) state.ledger = new Ledger();
    }
    draw();
    await new Promise((done) => {
      const t = setTimeout(done, Math.max(wait, after));
      abort.signal.addEventListener('abort', () => { clearTimeout(t); done(); }, {once: true});
    });
  }
}

async function showKey() {
  if (state.key) {
    state.key = null;
  } else {
    const {kind, at, name} = state;
    const {value, error} = await attempt(get(paths.object(kind, at, name)));
    if (state.name === name && state.at === at && state.kind === kind) {
      state.key = error ? {error} : {value: value.status?.routingKey || value.spec?.routingKey || '', names: value.status?.keyNames};
    }
  }
  show();
}

// ---- doing

const choosePart = (part) => { state.part = state.part?.id === part.id ? null : part; show(); };
const chooseTrace = (id) => { state.trace = id; show(); };

function pause() {
  const {ledger} = state;
  state.paused = state.paused ? null : {list: summaries(ledger), version: ledger.version, picture: pictureNow(), gaps: ledger.gaps(), serial: ledger.serial};
  show();
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.key === 'Escape') {
    if (typing) event.target.blur();
    else Object.assign(state, {trace: '', part: null, key: null});
  } else if (typing || !state.name) {
    return;
  } else if (event.key === '/') {
    event.preventDefault();
    document.getElementById('search')?.focus();
    return;
  } else if (event.key === 'p') {
    pause();
  } else {
    return;
  }
  show();
});

// ---- showing

const chosen = () => state.objects?.find((o) => o.kind === state.kind && o.metadata.name === state.name && o.metadata.namespace === state.at);

let drawn = {};
function pictureNow() {
  const forks = chosen()?.status.forks ?? [];
  const key = JSON.stringify(forks.map((f) => [f.name, f.workload]));
  if (drawn.ledger !== state.ledger || drawn.version !== state.ledger.version || drawn.key !== key) {
    drawn = {ledger: state.ledger, version: state.ledger.version, key, picture: picture(state.ledger, forks)};
  }
  return drawn.picture;
}

const remedy = (e) => ({
  401: 'Log in to the cluster again, and start sidetrack ui anew.',
  403: 'Ask whoever runs the cluster for the ClusterRole view in the namespace, or choose another namespace above.',
  404: 'Is Sidetrack installed in this cluster? sidetrack doctor says what is missing.',
  503: 'The ledger\'s collector cannot be reached: kubectl get apiservice v1alpha1.ledger.sidetrack.dev',
})[e.status];

const Problem = ({error, what}) => h('div', {class: 'problem', role: 'alert'},
  h('b', null, error.status === 403 ? 'Forbidden' : what), h('p', null, plain(error.message)), remedy(error) && h('p', null, remedy(error)));

function Header() {
  const namespaces = [...new Set((state.objects ?? []).map((o) => o.metadata.namespace))].sort();
  const enter = (event) => {
    const wanted = event.target.value.trim();
    if (wanted !== state.namespace) go(wanted);
  };
  return h('header', null,
    h('h1', null, h('img', {src: 'icon.svg', alt: '', width: 22, height: 22}), 'Sidetrack'),
    h('label', null, 'Namespace ', h('input', {
      id: 'namespace', value: state.namespace, placeholder: 'all', list: 'namespaces', spellcheck: false, autocomplete: 'off', size: 18,
      onChange: enter, onKeyDown: (e) => e.key === 'Enter' && enter(e),
    })),
    h('datalist', {id: 'namespaces'}, namespaces.map((n) => h('option', {key: n, value: n}))),
    state.namespace && h('button', {class: 'quiet', onClick: () => go('')}, 'All namespaces'),
    h('span', {class: 'fill'}),
    state.error && state.objects && h('span', {class: 'chip bad', title: plain(state.error.message)}, 'out of date: the API server does not answer'),
    h(Link));
}

function Link() {
  const says = {live: ['ok', 'live'], connecting: ['wait', 'connecting'], again: ['wait', 'connecting again'], broken: ['bad', 'ledger not read']}[state.link];
  return says ? h('span', {class: `chip ${says[0]}`, id: 'link', role: 'status', title: plain(state.linkError?.message)}, says[1]) : null;
}

function Objects() {
  const objects = [...state.objects ?? []].sort((a, b) => (a.metadata.namespace + '/' + a.metadata.name < b.metadata.namespace + '/' + b.metadata.name ? -1 : 1));
  return h('nav', {'aria-label': 'Sandboxes'},
    state.error && !state.objects ? h(Problem, {error: state.error, what: 'Sandboxes cannot be read'}) :
      !state.objects ? h('p', {class: 'empty'}, 'Reading…') :
        !objects.length ? h('p', {class: 'empty'}, `No sandboxes${state.namespace ? ` in ${plain(state.namespace)}` : ''} yet. `, h('code', null, 'sidetrack sandbox create pr-42 --fork …'), ' makes one.') :
          h('ul', null, objects.map((o) => {
            const here = o.kind === state.kind && o.metadata.name === state.name && o.metadata.namespace === state.at;
            const forks = o.status.forks ?? [];
            const nodes = o.status.nodes;
            const facts = [
              o.kind === 'RouteGroup' ? `group of ${(o.status.sandboxes ?? []).length}` : forks.length ? `forks ${forks.filter((f) => f.ready >= f.replicas).length}/${forks.length}` : 'no forks',
              nodes && `nodes ${nodes.programmed}/${nodes.total}`, o.metadata.deletionTimestamp ? 'being deleted' : expiry(o)];
            return h('li', {key: `${o.kind} ${o.metadata.namespace}/${o.metadata.name}`},
              h('button', {'aria-current': here ? 'true' : undefined, onClick: () => go(state.namespace, o)},
                h('span', {class: `dot ${readiness(o)}`, role: 'img', 'aria-label': {ok: 'ready', bad: 'not ready', wait: 'not known yet', gone: 'being deleted'}[readiness(o)]}),
                h('span', {class: 'name'}, !state.namespace && h('small', null, `${plain(o.metadata.namespace)}/`), plain(o.metadata.name)),
                h('small', {class: 'facts'}, facts.filter(Boolean).join(' · '))));
          })));
}

/** keyText is the header that tags a request, or why there is none. */
function keyText(k) {
  if (k.error) return h('span', {class: 'bad'}, plain(k.error.message));
  if (!k.value) return 'it has none yet';
  // As cmd/sidetrack has it: what all nodes know; the usual name while no agent says.
  const [member] = k.names ? k.names.members ?? [] : ['sidetrack'];
  return member ? h('code', null, `baggage: ${plain(member)}=${k.value}`) : h('span', {class: 'bad'}, `no name tags a request for all nodes: ${plain(k.names.message ?? '')}`);
}

function Key({object}) {
  const k = state.key;
  return h('span', {class: 'key'},
    k && keyText(k),
    object.hasKey && h('button', {class: 'quiet', onClick: showKey}, k ? 'Hide key' : 'Show key'));
}

function Tabs({object}) {
  const forks = object.status.forks ?? [];
  const nodes = object.status.nodes ?? {programmed: 0, total: 0};
  const tabs = [['traffic', 'Traffic'], ['forks', state.kind === 'RouteGroup' ? 'Members' : `Forks ${forks.filter((f) => f.ready >= f.replicas).length}/${forks.length}`],
    ['nodes', `Nodes ${nodes.programmed}/${nodes.total}`]];
  const keys = (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const i = (tabs.findIndex(([id]) => id === state.tab) + step + tabs.length) % tabs.length;
    state.tab = tabs[i][0];
    event.currentTarget.children[i].focus();
    show();
  };
  return h('div', {class: 'tabs', role: 'tablist', onKeyDown: keys}, tabs.map(([id, text]) => h('button', {
    key: id, role: 'tab', id: `tab-${id}`, 'aria-selected': state.tab === id ? 'true' : 'false', tabIndex: state.tab === id ? 0 : -1,
    onClick: () => { state.tab = id; show(); },
  }, text)));
}

function Traffic({namespace, forks}) {
  const still = state.paused;
  const list = still?.list ?? summaries(state.ledger);
  const parts = still?.picture ?? pictureNow();
  const part = state.part && [...parts.nodes, ...parts.edges].find((p) => p.id === state.part.id);
  const found = list.filter((s) => matches(s, {...state, part}));
  const shown = found.slice(0, state.most);
  const trace = list.find((s) => s.id === state.trace)?.trace;
  const on = trace && new Set(trace.records.map((r) => r.serial));
  const newer = still ? state.ledger.serial - still.serial : 0;
  const empty = list.length ? 'No request is like that.' : state.link === 'live' ? 'No tagged request has been seen yet. Send one with the sandbox\'s key.' :
    state.linkError ? '' : 'Reading the ledger…';
  return h('div', {class: 'traffic'},
    h('div', {class: 'stage', tabIndex: -1}, parts.nodes.length ? h(Picture, {picture: parts, on, part, choose: choosePart}) :
      h('p', {class: 'empty'}, state.linkError ? '' : 'Where tagged requests go is drawn here.')),
    h('div', {class: 'bar'},
      h('input', {id: 'search', type: 'search', placeholder: 'Find: path, service, pod, status, trace   /', 'aria-label': 'Find requests', value: state.text,
        onInput: (e) => { state.text = e.target.value; show(); }}),
      h('label', null, h('input', {type: 'checkbox', id: 'problems', checked: state.problems, onChange: (e) => { state.problems = e.target.checked; show(); }}), ' only problems'),
      part && h('button', {class: 'quiet', onClick: () => choosePart(part)}, `only ${part.label ? plain(part.label) : 'one arrow'} ✕`),
      h('span', {class: 'fill'}),
      h('span', {class: 'count', id: 'count'}, `${found.length === list.length ? '' : `${found.length.toLocaleString('en')} of `}${count(list.length, 'request')}`),
      h('button', {id: 'pause', 'aria-pressed': still ? 'true' : 'false', title: 'p', onClick: pause}, still ? `Go on${newer ? ` (${newer} new)` : ''}` : 'Hold still')),
    h('div', {class: 'halves'},
      h(Requests, {shown, total: found.length, most: state.most, more: () => { state.most += 1000; show(); }, chosen: state.trace, choose: chooseTrace, namespace, empty}),
      h('section', {class: 'hops', 'aria-label': 'Hops of the request'}, h(Hops, {trace, namespace, forks}))));
}

function Main() {
  const object = chosen();
  if (!state.name) return h('main', null, state.objects?.length ? h('p', {class: 'empty big'}, 'Choose a sandbox.') : null);
  if (!object) {
    return h('main', null, state.objects ? h('p', {class: 'empty big'}, `${state.kind} ${plain(state.at)}/${plain(state.name)} is not there: it was deleted, or has another name.`) : null);
  }
  const gaps = (state.paused?.gaps ?? state.ledger.gaps()).map((g) => g.text);
  const rest = uncovered(object);
  return h('main', null,
    h('div', {class: 'head'},
      h('h2', null, plain(object.metadata.name), ' ', h('small', null, `${state.kind === 'RouteGroup' ? 'route group' : 'sandbox'} in ${plain(object.metadata.namespace)}`)),
      h('span', {class: 'expiry'}, expiry(object)), h('span', {class: 'fill'}), h(Key, {object})),
    h(Conditions, {object}),
    (rest || gaps.length > 0 || state.linkError) && h('div', {class: 'gaps'},
      state.linkError && h(Problem, {error: state.linkError, what: 'The ledger cannot be read'}),
      rest && h('p', {class: 'gap'}, rest), gaps.map((g) => h('p', {class: 'gap', key: g}, plain(g)))),
    h(Tabs, {object}),
    h('div', {class: 'panel', role: 'tabpanel', 'aria-labelledby': `tab-${state.tab}`},
      state.tab === 'traffic' ? h(Traffic, {namespace: object.metadata.namespace, forks: object.status.forks ?? []}) :
        state.tab === 'forks' ? h(Forks, {object, kind: state.kind, pods: state.pods}) :
          h(Nodes, {object, nodes: state.nodes, ledger: state.ledger})));
}

const App = () => h('div', {class: 'app'}, h(Header), h('div', {class: 'columns'}, h(Objects), h(Main)));

function show() {
  drewAt = performance.now();
  render(h(App), document.getElementById('app'));
  document.title = state.name ? `${state.name} · Sidetrack` : 'Sidetrack';
}

let drawing = false;
let drewAt = 0;

// draw shows what has come from outside, at most ten times a second. What somebody
// does is shown at once: the next key may depend on it.
function draw() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => requestAnimationFrame(() => {
    drawing = false;
    show();
  }), Math.max(0, 100 - (performance.now() - drewAt)));
}

addEventListener('hashchange', arrive);
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
setInterval(draw, 1000); // Times that have passed.
arrive();
