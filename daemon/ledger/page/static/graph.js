// SPDX-License-Identifier: Apache-2.0

// The picture of the services: where things are is dagre's, what they look like is
// here. Things move only when there are new ones, not when they count more.

import {h} from './preact.mjs';
import {Graph, layout} from './dagre.mjs';
import {label, plain} from './model.js';

const letter = 7.3; // the width of a letter of a node's name, about
const longest = 26;

const cut = (s, n = longest) => (s.length > n ? s.slice(0, n - 1) + '…' : s);

const size = (n) => {
  const text = Math.max(cut(plain(n.label)).length * letter, cut(plain(n.sub)).length * 6.2);
  return {width: Math.max(84, Math.ceil(text) + 28), height: 42};
};

// The room that an edge's label has, whatever it says: on the way to a Service one
// line, from there two.
const room = (toService) => (toService ? {width: 62, height: 16} : {width: 74, height: 30});

let last = {key: '', placed: null};

/** place gives parts their places, the old ones while the parts are the same. */
export function place(picture) {
  const key = JSON.stringify([picture.nodes.map((n) => [n.id, n.label, n.sub]), picture.edges.map((e) => e.id)]);
  if (key === last.key) return last.placed;
  const g = new Graph({multigraph: false});
  g.setGraph({rankdir: 'LR', nodesep: 16, edgesep: 12, ranksep: 18, marginx: 14, marginy: 14});
  g.setDefaultEdgeLabel(() => ({}));
  for (const n of picture.nodes) g.setNode(n.id, size(n));
  const services = new Set(picture.nodes.filter((n) => n.type === 'service').map((n) => n.id));
  for (const e of picture.edges) g.setEdge(e.from, e.to, {...room(services.has(e.to)), labelpos: 'c'});
  layout(g);
  const {width, height} = g.graph();
  const placed = {
    width: Number.isFinite(width) ? width : 0, height: Number.isFinite(height) ? height : 0,
    nodes: new Map(picture.nodes.map((n) => [n.id, g.node(n.id)])),
    edges: new Map(picture.edges.map((e) => [e.id, g.edge(e.from, e.to)])),
  };
  last = {key, placed};
  return placed;
}

// A smooth line through points.
function line(points) {
  const [first, ...rest] = points;
  let d = `M${first.x},${first.y}`;
  for (let i = 0; i < rest.length - 1; i++) {
    const p = rest[i];
    const q = i === rest.length - 2 ? rest[i + 1] : {x: (p.x + rest[i + 1].x) / 2, y: (p.y + rest[i + 1].y) / 2};
    d += `Q${p.x},${p.y} ${q.x},${q.y}`;
  }
  if (rest.length === 1) d += `L${rest[0].x},${rest[0].y}`;
  return d;
}

const classOf = (e) => (e.lost ? 'lost' : e.bad ? 'bad' : e.healed ? 'healed' : e.forks ? 'fork' : 'baseline');

/**
 * beside is the part to which an arrow key leads: along the arrows to the left and to
 * the right, to the nearest one of its kind up and down. It is undefined where there is none.
 */
export function beside(picture, placed, part, key) {
  const center = (p) => placed.nodes.get(p.id) ?? placed.edges.get(p.id);
  const here = center(part);
  const nearest = (parts, far) => parts.map((p) => [far(center(p)), p]).filter(([d]) => d < Infinity)
    .sort(([d, p], [e, q]) => d - e || (p.id < q.id ? -1 : 1))[0]?.[1];
  const isEdge = part.from !== undefined;
  const ends = {ArrowRight: ['from', 'to'], ArrowLeft: ['to', 'from']}[key];
  if (ends) {
    if (isEdge) return picture.nodes.find((n) => n.id === part[ends[1]]);
    return nearest(picture.edges.filter((e) => e[ends[0]] === part.id), (c) => Math.abs(c.y - here.y));
  }
  const way = {ArrowDown: 1, ArrowUp: -1}[key];
  if (!way) return undefined;
  return nearest(isEdge ? picture.edges : picture.nodes, (c) => {
    const along = way * (c.y - here.y);
    return along > 0.5 ? along + 2 * Math.abs(c.x - here.x) : Infinity;
  });
}

function describe(n) {
  const words = [plain(n.label), plain(n.sub), `${n.ids.length} records`];
  if (n.lost) words.push(`lost the key ${n.lost} times`);
  if (n.healed) words.push(`lost the key ${n.healed} times, healed`);
  return words.join(', ');
}

const outcomes = (e) => [...e.outcomes].map(([what, times]) => `${times} × ${plain(what)}`).join(', ');

/** describeEdge says what an arrow shows, for those who do not see between what it is. */
function describeEdge(e, from, to) {
  // A workload and the Service before it often have one name.
  const end = (n) => `${plain(n.label)} (${plain(n.sub)})`;
  const words = [`from ${end(from)} to ${end(to)}`, outcomes(e)];
  if (e.lost) words.push(`without the key ${e.lost} times`);
  if (e.healed) words.push(`healed ${e.healed} times`);
  return words.join(', ');
}

/** Picture draws it. on has the serials of the records to bring out, if any. */
export function Picture({picture, on, part, choose}) {
  const placed = place(picture);
  const lit = (ids) => !on || ids.some((id) => on.has(id));
  const nodes = new Map(picture.nodes.map((n) => [n.id, n]));
  const keys = (p) => (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      choose(p);
      return;
    }
    const next = beside(picture, placed, p, event.key);
    if (next || event.key.startsWith('Arrow')) event.preventDefault(); // Nothing scrolls.
    if (next) [...event.currentTarget.ownerSVGElement.querySelectorAll('[role=button]')].find((el) => el.dataset.part === next.id)?.focus();
  };
  // What both kinds of parts have: they are buttons, reached and pressed by keys.
  const button = (p, name, cls) => ({
    key: p.id, 'data-part': p.id, class: `${cls} ${lit(p.ids) ? '' : 'dim'} ${part?.id === p.id ? 'chosen' : ''}`,
    tabindex: 0, role: 'button', 'aria-pressed': part?.id === p.id ? 'true' : 'false', 'aria-label': name,
    onClick: () => choose(p), onKeyDown: keys(p),
  });
  const tip = (id, color) => h('marker', {id, viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto-start-reverse'},
    h('path', {d: 'M0,0.5L8,4L0,7.5z', class: `tip ${color}`}));
  return h('svg', {
    class: 'picture', viewBox: `0 0 ${placed.width} ${placed.height}`, role: 'group', 'aria-label': 'Services, and where tagged requests went',
    style: {maxWidth: `${placed.width * 1.15}px`, maxHeight: `${placed.height * 1.15}px`, minWidth: `${placed.width * 0.62}px`, minHeight: `${placed.height * 0.62}px`},
  },
  h('defs', null, ['lost', 'bad', 'healed', 'fork', 'baseline'].map((c) => tip(`tip-${c}`, c))),
  picture.edges.map((e) => {
    const at = placed.edges.get(e.id);
    const [from, to] = [nodes.get(e.from), nodes.get(e.to)];
    const [text, below] = label(e, to.type === 'service');
    return h('g', button(e, describeEdge(e, from, to), `edge ${classOf(e)}`),
      h('title', null, outcomes(e)),
      h('path', {class: 'touch', d: line(at.points)}),
      h('path', {class: 'line', d: line(at.points), 'marker-end': `url(#tip-${classOf(e)})`}),
      h('text', {x: at.x, y: at.y - 5, 'text-anchor': 'middle'}, cut(plain(text), 18)),
      below && h('text', {x: at.x, y: at.y + 13, 'text-anchor': 'middle'}, below));
  }),
  picture.nodes.map((n) => {
    const at = placed.nodes.get(n.id);
    return h('g', {
      ...button(n, describe(n), `node ${n.type} ${n.lost ? 'lost' : ''}`),
      style: {transform: `translate(${at.x - at.width / 2}px, ${at.y - at.height / 2}px)`},
    },
    h('title', null, describe(n)),
    h('rect', {width: at.width, height: at.height, rx: n.type === 'service' ? at.height / 2 : 7}),
    h('text', {class: 'name', x: at.width / 2, y: 18, 'text-anchor': 'middle'}, cut(plain(n.label))),
    h('text', {class: 'sub', x: at.width / 2, y: 32, 'text-anchor': 'middle'}, n.lost ? 'lost the key' : cut(plain(n.sub))));
  }));
}
