// test/contract/hook.js -- asks the extension hook as Envoy Gateway would, with configurations encoded by the complete
// contract of Envoy (npm package @grpc/grpc-js-xds), and looks at whether everything that is not the hook's to change comes
// back, field for field and byte for byte. Shares no code with the hook.
//
//   node hook.js ADDRESS MODULES SCHEMA VECTORS     (tunnels p/on, ns-0000/tunnel-<even> are online; p/off, odd ones are not)
'use strict';
const assert = require('assert');
const fs = require('fs');
const path = require('path');
const [address, modules, schema, vectors] = process.argv.slice(2);
const need = (name) => require(path.join(modules, name));
const grpc = need('@grpc/grpc-js'), protobuf = need('protobufjs');

// ---- the contract ----

const deps = path.join(modules, '@grpc/grpc-js-xds/deps');
const roots = [...['envoy-api', 'googleapis', 'protoc-gen-validate', 'xds'].map((d) => path.join(deps, d)),
               path.join(modules, 'protobufjs')];
const root = new protobuf.Root();
root.resolvePath = (origin, target) => {
  if (path.isAbsolute(target) && fs.existsSync(target)) return target;
  if (protobuf.common.get(target)) return target;
  for (const r of roots) if (fs.existsSync(path.join(r, target))) return path.join(r, target);
  throw new Error('the contract lacks ' + target);
};
root.loadSync([path.join(schema, 'envoygateway/extension/extension.proto'),
               ...['filters/network/http_connection_manager/v3/http_connection_manager', 'transport_sockets/internal_upstream/v3/internal_upstream']
                   .map((f) => `envoy/extensions/${f}.proto`)],
              {keepCase: true});
root.resolveAll();
const Request = root.lookupType('envoygateway.extension.PostTranslateModifyRequest');
const Response = root.lookupType('envoygateway.extension.PostTranslateModifyResponse');
const Manager = root.lookupType('envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager');
const manager_url = 'type.googleapis.com/' + Manager.fullName.slice(1);
const plain = (type, bytes) => type.toObject(type.decode(bytes), {bytes: String, longs: String, enums: String});

/// An Any of plain(): its bytes are text there, and left out when there are none.
const any_of = (type, value) => ({type_url: 'type.googleapis.com/' + type, ...(value === undefined ? {} : {value})});
const bytes_of = (any) => Buffer.from(any.value, 'base64');

/// Fields of a message as they stand: [{number, bytes}] (only those that are messages or texts).
function split(bytes) {
  const r = protobuf.Reader.create(bytes), out = [];
  while (r.pos < r.len) {
    const tag = r.uint32();
    if ((tag & 7) === 2) out.push({number: tag >>> 3, bytes: Buffer.from(r.bytes())});
    else r.skipType(tag & 7);
  }
  return out;
}
const parts = (bytes, number) => split(bytes).filter((f) => f.number === number).map((f) => f.bytes);

// ---- configurations made up from the contract itself ----

let state = 20260711n;
const dice = (below) => {
  state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
  return Number((state >> 33n) % BigInt(below));
};
const scalars = {
  string: () => 'text-' + dice(1000), bytes: () => Buffer.from([dice(256), dice(256)]), bool: () => true,
  double: () => dice(100) / 4, float: () => dice(100) / 4, int32: () => dice(1000), sint32: () => dice(1000), uint32: () => dice(1000),
  fixed32: () => dice(1000), sfixed32: () => dice(1000), int64: () => dice(1000), uint64: () => dice(1000), sint64: () => dice(1000),
  fixed64: () => dice(1000), sfixed64: () => dice(1000),
};
let fields_used = new Set();
function made_up(type, depth) {
  const out = {}, chosen = new Set();
  for (const o of type.oneofsArray) chosen.add(o.fieldsArray[dice(o.fieldsArray.length)]);
  for (const f of type.fieldsArray) {
    if (f.partOf && !chosen.has(f)) continue;
    if (dice(10) < 3) continue;
    const value = () => {
      if (f.resolvedType instanceof protobuf.Enum) { const all = Object.values(f.resolvedType.values); return all[dice(all.length)]; }
      return f.resolvedType ? (depth > 0 ? made_up(f.resolvedType, depth - 1) : {}) : scalars[f.type]();
    };
    fields_used.add(f.fullName);
    if (f instanceof protobuf.MapField) out[f.name] = {['key-' + dice(9)]: value()};
    else if (f.repeated) out[f.name] = Array.from({length: 1 + dice(2)}, value);
    else out[f.name] = value();
  }
  return out;
}
const type_of = (name) => root.lookupType(name);
const names = ['httproute/p/on/rule/0', 'httproute/p/off/rule/0', 'httproute/p/on/rule/0/backend/1', 'httproute/p/nobody/rule/0', 'elsewhere'];

function made_up_request(n) {
  const clusters = names.map((name) => ({...made_up(type_of('envoy.config.cluster.v3.Cluster'), 3), name}));
  const config = made_up(type_of('envoy.config.route.v3.RouteConfiguration'), 1);
  config.name = 'eg/gw/http';
  config.virtual_hosts = [0, 1, 2, 3].map((v) => {
    const host = made_up(type_of('envoy.config.route.v3.VirtualHost'), 2);
    host.name = `eg/gw/http/host ${v}`;
    host.domains = [`host-${v}.example.test`, `*.host-${v}.example.test`];
    host.routes = [0, 1, 2, 3].map(() => {
      const r = made_up(type_of('envoy.config.route.v3.Route'), 3);
      for (const action of ['route', 'redirect', 'direct_response', 'filter_action', 'non_forwarding_action']) delete r[action];
      r.name = 'r' + dice(100);
      r.route = made_up(type_of('envoy.config.route.v3.RouteAction'), 2);
      for (const s of ['cluster', 'cluster_header', 'weighted_clusters', 'cluster_specifier_plugin', 'inline_cluster_specifier_plugin']) delete r.route[s];
      if (dice(3) === 0)
        r.route.weighted_clusters = {clusters: [0, 1].map(() => ({...made_up(type_of('envoy.config.route.v3.WeightedCluster.ClusterWeight'), 1),
          name: names[dice(names.length)], weight: {value: 1 + dice(5)}}))};
      else r.route.cluster = names[dice(names.length)];
      return r;
    });
    return host;
  });
  const m = made_up(Manager, 2);
  for (const s of ['route_config', 'scoped_routes']) delete m[s];
  m.rds = {route_config_name: config.name};
  m.upgrade_configs = dice(2) ? [{upgrade_type: 'CONNECT'}] : [{upgrade_type: 'websocket'}];
  const listener = {...made_up(type_of('envoy.config.listener.v3.Listener'), 2), name: 'l',
    default_filter_chain: {filters: [{name: 'hcm', typed_config: {type_url: manager_url, value: Manager.encode(Manager.fromObject(m)).finish()}}]}};
  const secrets = [made_up(type_of('envoy.extensions.transport_sockets.tls.v3.Secret'), 3)];
  return Request.encode(Request.fromObject({clusters, secrets, listeners: [listener], routes: [config]})).finish();
}

// ---- what must hold ----

const offline = (name) => /^httproute\/p\/off\/rule\/0(\/backend\/\d+)?$/.test(name) || /^httproute\/ns-0000\/tunnel-\d*[13579]\/rule\/0$/.test(name);
const online = (name) => /^httproute\/p\/on\/rule\/0(\/backend\/\d+)?$/.test(name) || /^httproute\/ns-0000\/tunnel-\d*[02468]\/rule\/0$/.test(name);
const own = (r) => /^connector-(connect|offline)-/.test(r.name || '') && r.match && r.match.connect_matcher !== undefined;
let checks = 0;
const same = (a, b, what) => { ++checks; assert.deepStrictEqual(a, b, what); };

// What the hook may add to a connection manager: each of these once, without regard to case.
const type_of_upgrade = (u) => (u.upgrade_type || '').toLowerCase();
const upgrades_of = (any, type) => (plain(Manager, any.value).upgrade_configs || []).filter((u) => type_of_upgrade(u) === type);
function without_upgrades(any) {
  const m = plain(Manager, any.value);
  m.upgrade_configs = (m.upgrade_configs || []).filter((u) => !['connect', 'websocket'].includes(type_of_upgrade(u)));
  return m;
}

const clusters_of = (r) => r.route ? [r.route.cluster, ...((r.route.weighted_clusters || {}).clusters || []).map((w) => w.name)].filter(Boolean) : [];

// Somebody else's route that leaves it to its connection manager whether it takes WebSockets.
const leaves_websockets_to_others = (r) => {
  if (own(r) || !r.route) return false;
  return !clusters_of(r).some((n) => online(n) || offline(n)) && !(r.route.upgrade_configs || []).some((u) => type_of_upgrade(u) === 'websocket');
};

function compare(request, response) {
  const before = plain(Request, request), after = plain(Response, response);
  const Cluster = type_of('envoy.config.cluster.v3.Cluster');
  const old_clusters = parts(request, 2), new_clusters = parts(response, 1);
  same(new_clusters.length, old_clusters.length, 'clusters');
  old_clusters.forEach((bytes, i) => {
    const name = plain(Cluster, bytes).name;
    if (!online(name)) return same(new_clusters[i], bytes, name);
    const c = plain(Cluster, new_clusters[i]);
    const transport = plain(type_of('envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport'), bytes_of(c.transport_socket.typed_config));
    same(transport, {
      passthrough_metadata: [{name: 'tunnel', kind: {host: {}}}],
      transport_socket: {name: 'envoy.transport_sockets.raw_buffer',
                         typed_config: any_of('envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer')},
    }, name);
    same(c, {
      name, type: 'STATIC', connect_timeout: {seconds: '5'},
      transport_socket: {name: 'envoy.transport_sockets.internal_upstream',
                         typed_config: any_of('envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport', c.transport_socket.typed_config.value)},
      load_assignment: {cluster_name: name, endpoints: [{lb_endpoints: [{
        endpoint: {address: {envoy_internal_address: {server_listener_name: 'connector-tunnel'}}},
        metadata: {filter_metadata: {tunnel: {fields: {address: {stringValue: 'localhost:8080'}, endpoint_id: {stringValue: 'a'.repeat(64)}}}}},
      }]}]},
    }, name);
  });
  same(parts(response, 2), parts(request, 3), 'secrets');

  same((after.listeners || []).length, (before.listeners || []).length, 'listeners');
  parts(response, 3).forEach((bytes, i) => {
    const Listener = type_of('envoy.config.listener.v3.Listener');
    const is = Listener.decode(bytes), was = Listener.decode(parts(request, 4)[i]);
    const filter_of = (l) => l.default_filter_chain && l.default_filter_chain.filters.find((f) => f.typed_config.type_url === manager_url);
    const a = filter_of(is), b = filter_of(was);
    if (b) {
      const routes_of = (config) => (config || []).filter((c) => c.name === Manager.decode(b.typed_config.value).rds?.route_config_name);
      const has_tunnels = /"connector-(connect|offline)-/.test(JSON.stringify(routes_of(after.routes)));
      const harmless = !routes_of(before.routes).some((c) => (c.virtual_hosts || []).some((h) => (h.routes || []).some(leaves_websockets_to_others)));
      for (const [type, wanted] of [['connect', has_tunnels], ['websocket', has_tunnels && harmless]]) {
        const [is, was] = [a, b].map((x) => upgrades_of(x.typed_config, type));
        same(is, was.length || !wanted ? was : [{upgrade_type: {connect: 'CONNECT', websocket: 'websocket'}[type]}], type + ' in a connection manager');
      }
      same(without_upgrades(a.typed_config), without_upgrades(b.typed_config), 'a connection manager beside its upgrades');
      a.typed_config.value = b.typed_config.value = Buffer.alloc(0);
    }
    same(Listener.toObject(is, {bytes: String, longs: String}), Listener.toObject(was, {bytes: String, longs: String}), 'a listener');
  });

  const Host = type_of('envoy.config.route.v3.VirtualHost'), Route = type_of('envoy.config.route.v3.Route');
  const old_configs = parts(request, 5), new_configs = parts(response, 4);
  same(new_configs.length, old_configs.length, 'route configurations');
  old_configs.forEach((config, c) => {
    const rest = (bytes) => { const o = plain(type_of('envoy.config.route.v3.RouteConfiguration'), bytes); delete o.virtual_hosts; return o; };
    same(rest(new_configs[c]), rest(config), 'a route configuration');
    const domains = [];
    const old_hosts = parts(config, 2), new_hosts = parts(new_configs[c], 2);
    same(new_hosts.length, old_hosts.length, 'virtual hosts');
    old_hosts.forEach((host, h) => {
      const was = plain(Host, host), is = plain(Host, new_hosts[h]);
      domains.push(...is.domains);
      const id = was.name.replace(/[/ :]/g, '-');
      same(is.domains.filter((d) => d !== id + '.connector.internal'), was.domains, 'domains');
      const old_routes = parts(host, 3), new_routes = parts(new_hosts[h], 3).filter((r) => !own(plain(Route, r)));
      same(new_routes.length, old_routes.length, 'routes');
      const ours = old_routes.map((r) => clusters_of(plain(Route, r))).flat().filter((n) => online(n) || offline(n));
      const front = is.routes.filter(own);
      same(front.length, ours.length ? 1 : 0, 'the route in front');
      const first_online = ours.find((n) => online(n));
      if (ours.length) {
        same(is.routes[0], front[0], 'in front');
        if (first_online) {
          same(front[0].route, {cluster: first_online, upgrade_configs: [{upgrade_type: 'CONNECT', connect_config: {}}]}, 'CONNECT');
          same(front[0].name, 'connector-connect-' + id, 'its name');
        } else {
          same(front[0].direct_response, {status: 503, body: {inline_string: 'Tunnel not online'}}, 'CONNECT refused');
          same(front[0].name, 'connector-offline-' + id, 'its name');
        }
        same(is.domains.includes(id + '.connector.internal'), Boolean(first_online), 'its domain');
      }
      old_routes.forEach((bytes, r) => {
        const old_route = plain(Route, bytes), new_route = plain(Route, new_routes[r]);
        for (const field of [1, 4, 13, 14]) same(parts(new_routes[r], field), parts(bytes, field), 'field ' + field + ' of a route, as bytes');
        const [action_before, action_after] = [old_route, new_route].map((x) => ({route: x.route, direct_response: x.direct_response}));
        delete old_route.route; delete old_route.direct_response; delete new_route.route; delete new_route.direct_response;
        same(new_route, old_route, 'a route beside its action');
        const all = clusters_of({route: action_before.route}), gone = all.filter(offline);
        if (all.length && gone.length === all.length) {
          same(action_after, {route: undefined, direct_response: {status: 503, body: {inline_string: 'Tunnel not online'}}}, 'an offline route');
        } else if (gone.length) {
          action_before.route.weighted_clusters.clusters = action_before.route.weighted_clusters.clusters.filter((w) => !offline(w.name));
          same(action_after, action_before, 'a partly offline route');
        } else {
          same(new_routes[r], bytes, 'a route that is online or not ours, as bytes');
        }
      });
      for (const o of [was, is]) { delete o.routes; delete o.domains; }
      same(is, was, 'a virtual host');
    });
    same(new Set(domains.map((d) => d.toLowerCase())).size, domains.length, 'domains are unique');
  });
}

// ---- asking ----

const client = new grpc.Client(address, grpc.credentials.createInsecure(),
                               {'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1});
const ask = (request) => new Promise((done, failed) => client.makeUnaryRequest(
    '/envoygateway.extension.EnvoyGatewayExtension/PostTranslateModify', (x) => x, (x) => x, Buffer.from(request),
    {deadline: Date.now() + 20000}, (error, answer) => error ? failed(error) : done(answer)));
const as_request = (response) => {
  const w = protobuf.Writer.create();
  for (const f of split(response)) w.uint32(((f.number + 1) << 3) | 2).bytes(f.bytes);
  return w.finish();
};

(async () => {
  const requests = fs.readdirSync(vectors).filter((f) => f.endsWith('.pb')).map((f) => fs.readFileSync(path.join(vectors, f)));
  same(requests.length, 3, 'captured requests');
  for (let i = 0; i < 60; ++i) requests.push(made_up_request(i));
  for (const request of requests) {
    const answer = await ask(request);
    compare(request, answer);
    same(await ask(as_request(answer)), answer, 'the answer to the answer');
  }
  console.log(`${requests.length} requests, ${fields_used.size} fields of the contract, ${checks} checks: all held`);
  client.close();
})().catch((e) => { console.error(e); process.exit(1); });
