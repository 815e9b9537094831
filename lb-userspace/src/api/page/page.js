"use strict";
// The daemon's answers are text, never markup: they only go into textContent and attributes.

const PERIOD = 1000;        // ms between two requests
const PATIENCE = 5000;      // ms until a request counts as unanswered
const SAMPLES = 120;        // per curve
const EVENTS = 100;         // shown
const SMOOTH = 3;           // samples a rate is averaged over

const byId = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };

// ---- numbers, formatted as on the command line ----

const count = (value) => Math.round(value).toLocaleString("en-US");
const rate = (value) => (value > 0 && value < 9.95 ? value.toFixed(1) : count(value));
const bytes = (value) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let unit = 0;
  while (value >= 999.5 && unit + 1 < units.length) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2)} ${units[unit]}`;
};
const duration = (seconds) => {
  const units = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  seconds = Math.max(0, Math.floor(seconds));
  const first = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  const [name, size] = seconds ? units[first] : units[3];
  const next = units[first + 1];
  const rest = next && seconds ? Math.floor((seconds % size) / next[1]) : 0;
  return `${Math.floor(seconds / size)}${name}${rest ? ` ${rest}${next[0]}` : ""}`;
};
const milliseconds = (value) => (value === null ? "–" : value >= 1000 ? `${(value / 1000).toFixed(2)} s` : value >= 10 ? `${Math.round(value)} ms` : value >= 1 ? `${value.toFixed(1)} ms` : `${Math.round(value * 1000)} µs`);
const clock = (time) => time.toLocaleTimeString("en-GB");
const moment = (text) => {
  const time = new Date(text);
  const today = time.toDateString() === new Date().toDateString();
  return today ? clock(time) : `${time.toLocaleDateString("en-CA")} ${clock(time)}`;
};

// ---- curves ----

const SVG = "http://www.w3.org/2000/svg";
const curve = (label) => {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 120 28");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  svg.append(document.createElementNS(SVG, "title"));
  return svg;
};
/** Draws series into a curve, the newest value at the right end, all on one scale. */
const draw = (svg, unit, ...all) => {
  const most = Math.max(0, ...all.flat());
  put(svg.firstChild, `the last two minutes; maximum ${unit(most)}`);
  const top = Math.max(1e-9, most) * 1.08;
  all.forEach((series, position) => {
    const at = (value, index) => `${(120 - (series.length - 1 - index) * 120 / (SAMPLES - 1)).toFixed(1)} ${(27 - Math.max(0, value) / top * 26).toFixed(1)}`;
    const line = series.map(at).join("L");
    ["area", "curve"].forEach((kind, second) => {
      let path = svg.children[1 + position * 2 + second];
      if (!path) {
        path = document.createElementNS(SVG, "path");
        path.setAttribute("class", position ? `${kind} second` : kind);
        svg.append(path);
      }
      const from = (120 - (series.length - 1) * 120 / (SAMPLES - 1)).toFixed(1);
      path.setAttribute("d", series.length < 2 ? "" : second ? `M${line}` : `M${from} 28L${line}L120 28Z`);
    });
  });
};

/** Totals over time, and the rates between them. */
class Past {
  constructor() { this.seen = []; this.series = {}; }
  add(now, levels, totals) {
    const before = this.seen[Math.max(0, this.seen.length - SMOOTH)];
    for (const [name, value] of Object.entries(levels)) this.push(name, value);
    for (const [name, value] of Object.entries(totals)) {
      // A total that fell has restarted: the daemon's tables were created again.
      const grown = before ? value - before.totals[name] : 0;
      this.push(name, grown > 0 ? grown / ((now - before.now) / 1000) : 0);
    }
    this.seen.push({ now, totals });
    if (this.seen.length > SMOOTH) this.seen.shift();
  }
  push(name, value) {
    const series = this.series[name] ??= [];
    series.push(value);
    if (series.length > SAMPLES) series.shift();
  }
  last(name) { return this.series[name]?.at(-1) ?? 0; }
}
const pasts = new Map();
const past = (key) => pasts.get(key) ?? pasts.set(key, new Past()).get(key);

/** Keeps a parent's children in step with a list of items: created, ordered and removed by key. */
const keyed = (parent, items, key, build) => {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, position) => {
    let child = old.get(key(item));
    if (child) old.delete(key(item));
    else { child = build(item); child.dataset.key = key(item); }
    if (parent.children[position] !== child) parent.insertBefore(child, parent.children[position] ?? null);
  });
  old.forEach((child) => child.remove());
  return [...parent.children];
};

// ---- totals ----

const perSecond = (value) => `${rate(value)}/s`;
const bytesPerSecond = (value) => `${bytes(value)}/s`;
const TILES = [
  ["active", "Open connections", count], ["opened", "New connections", perSecond], ["in", "From clients", bytesPerSecond],
  ["out", "To clients", bytesPerSecond], ["up", "Backends up", count], ["failed", "Failed connects", perSecond],
];
const tile = ([key, name]) => {
  const made = make("div", "tile");
  made.id = `tile-${key}`;
  made.append(make("div", "name", name), make("div", "value"), make("div", "note"), make("div", "most"), curve(`${name} in the last two minutes`));
  return made;
};
const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
const isUp = (backend) => backend.state === "up" || backend.state === "slow_start";

const showTiles = (status, backends, now) => {
  const all = past("all");
  const up = backends.filter(isUp).length;
  all.add(now, { active: sum(backends, (b) => b.active), up }, {
    opened: sum(backends, (b) => b.total), in: sum(backends, (b) => b.bytes_in), out: sum(backends, (b) => b.bytes_out), failed: sum(backends, (b) => b.connect_failures),
  });
  const room = sum(status.services, (s) => s.connections.capacity);
  const values = {
    active: [count(all.last("active")), `room for ${count(room)}`],
    opened: [perSecond(all.last("opened")), `${count(sum(backends, (b) => b.total))} in total`],
    in: [bytesPerSecond(all.last("in")), `${bytes(sum(backends, (b) => b.bytes_in))} in total`],
    out: [bytesPerSecond(all.last("out")), `${bytes(sum(backends, (b) => b.bytes_out))} in total`],
    up: [`${up} of ${backends.length}`, up === backends.length ? "all" : backends.filter((b) => !isUp(b)).map((b) => `${b.name} ${b.state}`).join(", ")],
    failed: [perSecond(all.last("failed")), `${count(sum(backends, (b) => b.connect_failures))} in total`],
  };
  keyed(byId("tiles"), TILES, ([key]) => key, tile).forEach((made) => {
    const [, value, note, most, plot] = made.children;
    put(value, values[made.dataset.key][0]);
    put(note, values[made.dataset.key][1]);
    note.title = note.textContent;
    const unit = TILES.find(([key]) => key === made.dataset.key)[2];
    draw(plot, unit, all.series[made.dataset.key]);
    // The curve's scale: a phone has no pointer to hover with.
    put(most, made.dataset.key === "up" ? "" : `max ${unit(Math.max(...all.series[made.dataset.key]))}`);
  });
  byId("tile-up").dataset.tone = up === backends.length ? "" : backends.some((b) => b.state === "down") ? "bad" : "mild";
  document.title = `${up === backends.length ? "" : "⚠ "}${up}/${backends.length} up – evenkeel`;
};

// ---- services and their backends ----

const COLUMNS = ["Backend", "State", "Connections", "New", "Traffic", "Connect time", "Failures", "Resets", "Total"];
const serviceCard = () => {
  const card = make("section", "card");
  const head = make("div", "service-head");
  head.append(make("h2"), make("span", "where"), make("span", "hooks"), make("span", "sum"));
  const scroll = make("div", "scroll");
  const table = make("table", "services-table");
  const row = make("tr");
  COLUMNS.forEach((name, position) => {
    const cell = make("th", position >= 6 ? "right" : "", name);
    cell.scope = "col";
    row.append(cell);
  });
  const top = make("thead");
  top.append(row);
  table.append(top, make("tbody"));
  scroll.append(table);
  card.append(head, scroll);
  return card;
};
const plotCell = (name) => {
  const cell = make("td", `wide ${name.toLowerCase()}`);
  cell.dataset.name = name;
  const plot = make("div", "plot");
  plot.append(make("div", "number"), curve(`${name} in the last two minutes`));
  cell.append(plot);
  return cell;
};
const backendRow = (backend) => {
  const row = make("tr");
  row.dataset.backend = backend.name;
  const who = make("td", "who");
  who.append(make("span"), make("span", "small"));
  const state = make("td");
  state.append(make("span", "state"), make("span", "small"));
  const [active, opened, traffic] = ["Connections", "New", "Traffic"].map(plotCell);
  const share = make("div", "share");
  share.append(make("i"));
  active.querySelector(".number").append(make("span"), share);
  row.append(who, state, active, opened, traffic);
  ["Connect time", "Failures", "Resets", "Total"].forEach((name, position) => {
    const cell = make("td", position ? "right number" : "number");
    cell.dataset.name = name;
    cell.append(make("span"));
    if (!position) cell.append(make("span", "small"));
    row.append(cell);
  });
  return row;
};
const REASONS = { admin: "by an operator", config: "in the configuration", refused: "refuses connections", timeout: "does not answer SYNs", unreachable: "cannot be reached", silent: "is silent", probe_timeout: "does not answer the probe", probe_status: "reports not ready", probe_tls: "is not trusted by the probe" };

const showBackend = (row, backend, most, now) => {
  const own = past(`${backend.service}/${backend.name}`);
  own.add(now, { active: backend.active }, { opened: backend.total, in: backend.bytes_in, out: backend.bytes_out });
  const [who, state, active, opened, traffic, connect, failures, resets, total] = row.children;
  row.dataset.state = backend.state;
  put(who.children[0], backend.name);
  put(who.children[1], `${backend.address}${backend.weight === 1 ? "" : `, weight ${backend.weight}`}${backend.backup ? ", backup" : ""}`);
  put(state.children[0], backend.state.replace("_", " "));
  const since = `for ${duration((Date.now() - new Date(backend.last_change)) / 1000)}`;
  put(state.children[1], backend.reason ? `${REASONS[backend.reason] ?? backend.reason}, ${since}` : since);
  state.children[1].title = `since ${moment(backend.last_change)}`;
  const [number, plot] = active.firstChild.children;
  put(number.children[0], backend.half_open ? `${count(backend.active)} (${count(backend.half_open)} half-open)` : count(backend.active));
  number.children[1].firstChild.style.width = `${most ? 100 * backend.active / most : 0}%`;
  draw(plot, count, own.series.active);
  put(opened.firstChild.children[0], perSecond(own.last("opened")));
  draw(opened.firstChild.children[1], perSecond, own.series.opened);
  put(traffic.firstChild.children[0], `↓ ${bytesPerSecond(own.last("out"))}\n↑ ${bytesPerSecond(own.last("in"))}`);
  draw(traffic.firstChild.children[1], bytesPerSecond, own.series.out, own.series.in);
  put(connect.children[0], milliseconds(backend.connect_time_ms.p50));
  put(connect.children[1], `99 %: ${milliseconds(backend.connect_time_ms.p99)}`);
  put(failures.firstChild, count(backend.connect_failures));
  put(resets.firstChild, count(backend.resets));
  put(total.firstChild, count(backend.total));
};

/** The imbalance of the backends that get connections; null for fewer than two. */
const spreadOf = (backends) => {
  const loads = backends.filter((backend) => isUp(backend) && !backend.backup);
  if (loads.length < 2) return null;
  const [active, weight] = [sum(loads, (load) => load.active), sum(loads, (load) => load.weight)];
  const fewest = loads.reduce((a, b) => (b.active * a.weight < a.active * b.weight ? b : a));
  const above = loads.filter((load) => load.active * weight > active * load.weight);
  return Math.max(0, ...above.map((load) => load.active - Math.floor(fewest.active * load.weight / fewest.weight)));
};

const showServices = (services, now) => {
  const cards = keyed(byId("services"), services, (service) => service.name, serviceCard);
  services.forEach((service, position) => {
    const [head, scroll] = cards[position].children;
    const [name, where, hooks, sums] = head.children;
    cards[position].dataset.service = service.name;
    put(name, service.name);
    put(where, `${service.listen.join(", ")} · ${service.balance}`);
    keyed(hooks, service.datapath, (hook) => hook.interface, () => make("span", "chip")).forEach((chip, index) => {
      const hook = service.datapath[index];
      put(chip, `${hook.mode} on ${hook.interface}`);
      chip.title = hook.reason;
    });
    const { active, half_open: halfOpen, capacity } = service.connections;
    const spread = spreadOf(service.backends);
    put(sums, `${count(active)} open, ${count(halfOpen)} of them half-open${service.syn_cookies?.on ? " (SYN cookies on)" : ""}${spread === null ? "" : `; spread ${count(spread)}`}; room for ${count(capacity)}`);
    sums.title = spread === null ? "" : "spread: the largest number of connections of a backend minus the smallest, by weight, as in evenkeel rebalance";
    const most = Math.max(...service.backends.map((backend) => backend.active), 0);
    const rows = keyed(scroll.querySelector("tbody"), service.backends, (backend) => backend.name, backendRow);
    service.backends.forEach((backend, index) => showBackend(rows[index], backend, most, now));
  });
};

// ---- VRRP ----

const VRRP = ["", "", "Addresses", "Priority", "Master", "Changes", "Since"];
const instanceRow = () => {
  const row = make("tr");
  VRRP.forEach((name, position) => {
    const cell = make("td", position === 0 ? "who" : [3, 5, 6].includes(position) ? "right number" : "");
    if (name) cell.dataset.name = name;
    row.append(cell);
  });
  row.children[1].append(make("span", "state"), make("span", "small"));
  row.children[4].append(make("span"), make("span", "small"));
  return row;
};
const signed = (value) => (value > 0 ? `+${value}` : `${value}`);
const showVrrp = (instances) => {
  byId("vrrp").hidden = instances.length === 0;
  const rows = keyed(byId("vrrp").querySelector("tbody"), instances, (instance) => instance.name, instanceRow);
  instances.forEach((instance, position) => {
    const [name, state, addresses, priority, master, changes, since] = rows[position].children;
    rows[position].dataset.state = instance.state;
    put(name, instance.name);
    put(state.firstChild, instance.state);
    put(addresses, instance.addresses.join(", "));
    put(state.lastChild, [instance.reason, ...(instance.faults ?? [])].filter(Boolean).join("; "));
    priority.title = (instance.weights ?? []).map(({ weight, what }) => `${signed(weight)} ${what}`).join(", ");
    put(priority, instance.priority === instance.base_priority ? `${instance.priority}` : `${instance.priority} (base ${instance.base_priority})`);
    put(master.firstChild, instance.state === "MASTER" ? "this host" : instance.master ?? "–");
    put(master.lastChild, (instance.peers ?? []).map((peer) => `heard ${peer.address} (${peer.priority}) at ${moment(peer.last_heard)}`).join(", "));
    put(changes, count(instance.transitions));
    put(since, moment(instance.since));
  });
};

// ---- flow sync ----

const SYNC = ["", "", "Behind", "Waiting", "Connections sent", "received", "Not applied", "Lost or refused"];
const peerRow = () => {
  const row = make("tr");
  SYNC.forEach((name, position) => {
    const cell = make("td", position === 0 ? "who" : position > 1 ? "right number" : "");
    if (name) cell.dataset.name = name;
    row.append(cell);
  });
  row.children[1].append(make("span", "state"), make("span", "small"));
  return row;
};
const showSync = (sync) => {
  const section = byId("sync");
  section.hidden = !sync;
  if (!sync) return;
  const masters = sync.master_of.length ? `this host sends the connections of ${sync.master_of.join(", ")}` : "this host receives connections and sends none";
  put(section.querySelector(".why"), sync.error ? sync.error : `on ${sync.listen}: ${masters}`);
  const rows = keyed(section.querySelector("tbody"), sync.peers, (peer) => peer.address, peerRow);
  sync.peers.forEach((peer, position) => {
    const [who, state, lag, waiting, sent, received, unknown, lost] = rows[position].children;
    rows[position].dataset.state = peer.state;
    put(who, peer.address);
    put(state.firstChild, peer.state);
    put(state.lastChild, peer.silent_ms === null ? "never heard" : `heard ${duration(peer.silent_ms / 1000)} ago`);
    put(lag, milliseconds(peer.lag_ms));
    put(waiting, count(peer.waiting));
    put(sent, count(peer.flows_sent));
    put(received, count(peer.flows_received));
    put(unknown, count(peer.unknown + peer.conflicts));
    put(lost, count(peer.lost + sum(Object.values(peer.refused), (refused) => refused)));
  });
};

// ---- counters ----

const meanings = new Map();
const moves = new Map(); // by reason: its values over the last two minutes
const counterRow = () => {
  const row = make("tr");
  const what = make("td");
  what.append(make("code"), make("span", "small"));
  what.lastChild.style.whiteSpace = "normal";
  row.append(what, make("td", "right moved"), make("td", "right number"));
  return row;
};
const showCounters = (counters) => {
  const all = Object.entries(counters).map(([reason, value]) => {
    const seen = moves.get(reason) ?? moves.set(reason, []).get(reason);
    seen.push(value);
    if (seen.length > SAMPLES) seen.shift();
    return { reason, value, moved: Math.max(0, value - seen[0]) };
  });
  const shown = all.filter(({ value }) => value > 0);
  shown.sort((a, b) => (b.moved > 0) - (a.moved > 0) || b.value - a.value || a.reason.localeCompare(b.reason));
  const section = byId("counters");
  const rows = keyed(section.querySelector("tbody"), shown, ({ reason }) => reason, counterRow);
  shown.forEach(({ reason, value, moved }, position) => {
    const [what, change, total] = rows[position].children;
    rows[position].dataset.reason = reason;
    rows[position].dataset.group = meanings.get(reason)?.group ?? "";
    rows[position].className = moved ? "" : "quiet";
    put(what.children[0], reason);
    put(what.children[1], meanings.get(reason)?.meaning ?? "");
    put(change, `+${count(moved)}`);
    put(total, count(value));
  });
  section.querySelector(".none").hidden = shown.length > 0;
};

// ---- events ----

let newest = 0;
let starts = 0;
const eventItem = (event) => {
  const item = make("li");
  item.dataset.level = event.level;
  const time = make("time", "", moment(event.time));
  time.dateTime = event.time;
  const text = make("span");
  const subject = [event.service, event.backend, event.instance].filter(Boolean).join("/");
  if (subject) text.append(make("b", "", subject), " ");
  text.append(event.text);
  item.append(time, make("span", "chip", event.kind), text);
  return item;
};
const showEvents = (events) => {
  const list = byId("events").querySelector("ol");
  events.forEach((event) => {
    const item = eventItem(event);
    if (event.number === 1 && starts++) item.className = "start";
    list.prepend(item);
    newest = event.number;
  });
  while (list.children.length > EVENTS) list.lastChild.remove();
  byId("events").querySelector(".none").hidden = list.children.length > 0;
};

// ---- requests ----

let uptime = 0;
let answered = null; // wall-clock time of the last answer
const ask = async (path) => {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
};
const show = (status, events) => {
  const now = performance.now();
  if (status.uptime_s < uptime) { newest = 0; moves.clear(); } // another daemon, whose event numbers start again
  else showEvents(events);
  uptime = status.uptime_s;
  const { file, generation, loaded_at: loaded } = status.config;
  put(byId("about"), `${status.version} on ${location.host}, up ${duration(uptime)}`);
  put(byId("config"), `${file}, generation ${generation}, read ${moment(loaded)}`);
  showTiles(status, status.services.flatMap((service) => service.backends), now);
  showServices(status.services, now);
  showVrrp(status.vrrp);
  showSync(status.sync);
  showCounters(status.counters);
};
const alive = () => {
  answered = new Date();
  document.documentElement.dataset.live = "yes";
  put(byId("live"), "live");
  byId("stale").hidden = true;
  put(byId("asof"), `as of ${clock(answered)}`);
};
const stale = (why) => {
  document.documentElement.dataset.live = "no";
  put(byId("live"), "stale");
  byId("stale").hidden = false;
  const since = answered ? `Stale since ${clock(answered)}: this data is ${duration((Date.now() - answered) / 1000)} old.` : "No data yet.";
  put(byId("stale"), `${since} The daemon does not answer (${why}). Connections continue without it: the kernel balances on its own.`);
};
const turn = async () => {
  const began = performance.now();
  try {
    if (meanings.size === 0) (await ask("/api/v1/reasons")).forEach((listed) => meanings.set(listed.reason, listed));
    const [status, events] = await Promise.all([ask("/api/v1/status"), ask(`/api/v1/events?after=${newest}&limit=${EVENTS}`)]);
    show(status, events);
    alive();
  } catch (error) {
    stale(error.name === "TimeoutError" ? "no answer in time" : error.message);
  }
  setTimeout(turn, Math.max(100, PERIOD - (performance.now() - began)));
};

// ---- light and dark ----

const dark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["auto", "light", "dark"];
const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
let theme = THEMES.includes(stored()) ? stored() : "auto";
const paint = () => {
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  put(byId("theme"), `theme: ${theme}`);
};
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try { localStorage.setItem("theme", theme); } catch { /* not stored: lasts for this visit only */ }
  paint();
});
dark.addEventListener("change", paint);
paint();
turn();
