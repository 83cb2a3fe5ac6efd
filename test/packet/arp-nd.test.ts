/** packet/arp.ts and nd.ts; every check runs in a view that ends with the packet. */
import t from 'tap';
import * as arp from '../../src/packet/arp.js';
import * as nd from '../../src/packet/nd.js';
import * as frames from '../lib/frames.js';
import { linkLayer, mac } from '../lib/frames.js';
import {
  add,
  address,
  changed,
  concat,
  extension,
  hex,
  type IpSpec,
  icmp,
  packet,
  put,
  random,
  type Transport,
  udp,
} from '../lib/packets.js';

/** A view in which a read before or behind the packet throws. */
const exact = (bytes: Uint8Array): DataView => new DataView(Uint8Array.from(bytes).buffer);
const checkArp = (bytes: Uint8Array): number => arp.checkArp(exact(bytes), 0, bytes.length);
const checkNd = (bytes: Uint8Array): number => nd.checkNd(exact(bytes), 0, bytes.length);

const MAC_A = '02:00:00:00:00:0a';
const REQUEST = frames.arp({ senderMac: MAC_A, sender: '10.7.0.1', target: '10.7.0.2' });

t.test('checkArp', async (t) => {
  t.equal(checkArp(REQUEST), arp.ARP_GOOD);
  t.equal(checkArp(concat(REQUEST, new Uint8Array(18))), arp.ARP_GOOD, 'padded');
  for (let length = 0; length < 28; length++) {
    t.equal(checkArp(REQUEST.subarray(0, length)), arp.ARP_BAD, `${length} bytes of it`);
  }
  for (const [name, change] of [
    ['hardware address length 0', put(4, 0)],
    ['hardware address length 8', put(4, 8)],
    ['protocol address length 16', put(5, 16)],
    ['both lengths swapped', put(4, 4, 6)],
  ] as const) {
    t.equal(checkArp(changed(REQUEST, change)), arp.ARP_BAD, name);
  }
  const other = changed(REQUEST, put(0, 0, 6));
  t.equal(checkArp(other), arp.ARP_OTHER, 'IEEE 802 hardware');
  t.equal(checkArp(other.subarray(0, 8)), arp.ARP_OTHER, 'whatever its length');
  t.equal(checkArp(changed(REQUEST, put(2, 0x86, 0xdd))), arp.ARP_OTHER, 'another protocol');
});

t.test('isHost4', async (t) => {
  const is = (text: string): boolean => arp.isHost4(exact(address(text)), 0);
  for (const yes of ['10.7.0.1', '126.255.255.255', '128.0.0.0', '223.255.255.255', '240.0.0.1', '255.255.255.254']) {
    t.ok(is(yes), yes);
  }
  for (const no of ['0.0.0.0', '127.0.0.1', '127.255.255.255', '224.0.0.1', '239.1.1.1', '255.255.255.255']) {
    t.notOk(is(no), no);
  }
});

t.test('writeArpReply', async (t) => {
  const bytes = new Uint8Array(64).fill(0xee);
  const view = new DataView(bytes.buffer);
  bytes.set(REQUEST, 33);
  view.setInt32(0, 0x0b000002, true);
  arp.writeArpReply(view, 3, 33, 0x00000002, 0x0b00);
  const reply = frames.arp({
    operation: 2,
    senderMac: '02:00:00:00:00:0b',
    sender: '10.7.0.2',
    targetMac: MAC_A,
    target: '10.7.0.1',
  });
  t.equal(hex(bytes.subarray(3, 31)), hex(reply));
  t.equal(hex(bytes.subarray(31, 33)), 'eeee', 'nothing behind it');
});

interface Spec {
  readonly source: string;
  readonly destination: string;
  readonly target?: string;
  readonly code?: number;
  readonly hops?: number;
  readonly flags?: number;
  readonly options?: readonly Uint8Array[];
  readonly extensions?: NonNullable<IpSpec['extensions']>;
}

/** An IPv6 packet with a message. */
function message(spec: Spec, body: Transport): Uint8Array {
  body.bytes[1] = spec.code ?? 0;
  const ip = { source: spec.source, destination: spec.destination, ttl: spec.hops ?? 255 };
  return packet(spec.extensions ? { ...ip, extensions: spec.extensions } : ip, body);
}
const solicitation = (spec: Spec): Uint8Array =>
  message(spec, frames.solicitation(spec.target ?? TARGET, concat(...(spec.options ?? []))));
const advertisement = (spec: Spec): Uint8Array =>
  message(spec, frames.advertisement(spec.target ?? TARGET, spec.flags ?? 0, concat(...(spec.options ?? []))));
const routerAdvertisement = (spec: Spec): Uint8Array =>
  message(spec, frames.routerAdvertisement(concat(...(spec.options ?? []))));

const HOST = 'fd07::a';
const TARGET = 'fd07::12:3456';
const GROUP = 'ff02::1:ff12:3456';
const SLLA = linkLayer(1, MAC_A);
const TLLA = linkLayer(2, MAC_A);
const ns = { source: HOST, destination: GROUP };
const na = { source: TARGET, destination: HOST };
const ra = { source: 'fe80::1', destination: 'ff02::1' };

t.test('checkNd: messages that hosts accept', async (t) => {
  const nonce = Uint8Array.of(14, 1, 1, 2, 3, 4, 5, 6);
  const mtu = Uint8Array.of(5, 1, 0, 0, 0, 0, 5, 220);
  const prefixes = new Uint8Array(32);
  prefixes.set([3, 4]);
  const cases: readonly (readonly [string, Uint8Array, number])[] = [
    ['solicitation', solicitation({ ...ns, options: [SLLA] }), nd.ND_SOLICITATION],
    ['without option', solicitation(ns), nd.ND_SOLICITATION],
    ['to the host itself', solicitation({ ...ns, destination: TARGET }), nd.ND_SOLICITATION],
    ['with an option it does not know', solicitation({ ...ns, options: [nonce, SLLA] }), nd.ND_SOLICITATION],
    ['duplicate address detection', solicitation({ ...ns, source: '::', options: [nonce] }), nd.ND_SOLICITATION],
    ['advertisement', advertisement({ ...na, flags: 0x60, options: [TLLA] }), nd.ND_ADVERTISEMENT],
    ['without option', advertisement({ ...na, flags: 0xe0 }), nd.ND_ADVERTISEMENT],
    [
      'unsolicited',
      advertisement({ ...na, destination: 'ff02::1', flags: 0xa0, options: [TLLA] }),
      nd.ND_ADVERTISEMENT,
    ],
    ['router', routerAdvertisement({ ...ra, options: [SLLA, mtu, prefixes] }), nd.ND_ROUTER_ADVERTISEMENT],
    ['router without option', routerAdvertisement(ra), nd.ND_ROUTER_ADVERTISEMENT],
    ['router of febf::', routerAdvertisement({ ...ra, source: 'febf::1' }), nd.ND_ROUTER_ADVERTISEMENT],
  ];
  for (const [name, bytes, type] of cases) {
    t.equal(checkNd(bytes), type, name);
    t.equal(checkNd(concat(bytes, new Uint8Array(7).fill(255))), type, `${name}, padded`);
    for (let length = 41; length < bytes.length; length++) {
      t.equal(checkNd(bytes.subarray(0, length)), nd.ND_BAD, `${name}, cut to ${length}`);
    }
    for (let length = 0; length < 41; length++) {
      t.equal(checkNd(bytes.subarray(0, length)), nd.ND_OTHER, `${name}, cut to ${length}`);
    }
  }
});

t.test('checkNd: messages that hosts discard', async (t) => {
  const long = Uint8Array.of(1, 2, ...mac(MAC_A), 0, 0, 0, 0, 0, 0, 0, 0);
  /** Another payload length, so that the message ends earlier than the frame. */
  const ending = (bytes: Uint8Array, payload: number): Uint8Array =>
    changed(bytes, put(4, payload >> 8, payload & 255));
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['hop limit 254', solicitation({ ...ns, hops: 254 })],
    ['advertisement, hop limit 64', advertisement({ ...na, hops: 64 })],
    ['router, hop limit 1', routerAdvertisement({ ...ra, hops: 1 })],
    ['code 1', solicitation({ ...ns, code: 1 })],
    ['advertisement, code 1', advertisement({ ...na, code: 1 })],
    ['router, code 255', routerAdvertisement({ ...ra, code: 255 })],
    ['23 bytes', ending(solicitation(ns), 23)],
    ['one byte', ending(solicitation(ns), 1)],
    ['advertisement of 23 bytes', ending(advertisement(na), 23)],
    ['router advertisement of 15 bytes', ending(routerAdvertisement(ra), 15)],
    ['longer than the frame', changed(solicitation(ns), add(5, 1))],
    ['as long as can be', ending(solicitation(ns), 0xffff)],
    ['empty option', solicitation({ ...ns, options: [Uint8Array.of(14, 0, 0, 0, 0, 0, 0, 0)] })],
    ['empty option behind a good one', solicitation({ ...ns, options: [SLLA, Uint8Array.of(14, 0)] })],
    ['router, empty option', routerAdvertisement({ ...ra, options: [new Uint8Array(8)] })],
    ['advertisement, empty option', advertisement({ ...na, options: [TLLA, new Uint8Array(8)] })],
    ['half an option header', solicitation({ ...ns, options: [SLLA, Uint8Array.of(14)] })],
    ['option beyond the message', solicitation({ ...ns, options: [Uint8Array.of(14, 2, 0, 0, 0, 0, 0, 0)] })],
    ['option cut by the payload length', ending(solicitation({ ...ns, options: [SLLA] }), 31)],
    ['link-layer address of 14 bytes', solicitation({ ...ns, options: [long] })],
    ['target link-layer address of 14 bytes', advertisement({ ...na, options: [changed(long, put(0, 2))] })],
    ['target a group', solicitation({ ...ns, target: 'ff02::1' })],
    ['advertisement, target a group', advertisement({ ...na, target: 'ff05::2' })],
    ['no source, to a host', solicitation({ ...ns, source: '::', destination: TARGET })],
    ['no source, to all nodes', solicitation({ ...ns, source: '::', destination: 'ff02::1' })],
    ['no source, to a group like one', solicitation({ ...ns, source: '::', destination: 'ff02::1:fe12:3456' })],
    ['no source, to a wider group', solicitation({ ...ns, source: '::', destination: 'ff05::1:ff12:3456' })],
    ['no source, yet a source address option', solicitation({ ...ns, source: '::', options: [SLLA] })],
    ['solicited, to all', advertisement({ ...na, destination: 'ff02::1', flags: 0x40 })],
    ['router with a global source', routerAdvertisement({ ...ra, source: 'fd07::1' })],
    ['router with no source', routerAdvertisement({ ...ra, source: '::' })],
    ['router with a site-local source', routerAdvertisement({ ...ra, source: 'fec0::1' })],
  ];
  for (const [name, bytes] of cases) t.equal(checkNd(bytes), nd.ND_BAD, name);
});

t.test('checkNd: what it is not about', async (t) => {
  const v6 = { source: HOST, destination: TARGET };
  const fragment = Uint8Array.of(0, 0, 0, 0, 0, 0, 1);
  const cases: readonly (readonly [string, Uint8Array])[] = [
    ['echo request', packet(v6, icmp(128, undefined, true))],
    ['router solicitation', packet({ ...v6, ttl: 64 }, icmp(133, undefined, true))],
    ['redirect', packet({ ...v6, ttl: 64 }, icmp(137, undefined, true))],
    ['UDP', packet(v6, udp())],
    ['IPv4', changed(solicitation(ns), put(0, 0x45))],
    ['no payload', changed(solicitation(ns), put(4, 0, 0))],
    ['behind hop-by-hop options', solicitation({ ...ns, hops: 3, extensions: [[0, extension(1)]] })],
    ['a fragment', solicitation({ ...ns, hops: 3, extensions: [[44, fragment]] })],
  ];
  for (const [name, bytes] of cases) t.equal(checkNd(bytes), nd.ND_OTHER, name);
});

t.test('linkLayerAddress', async (t) => {
  const other = Uint8Array.of(14, 2, ...new Array<number>(14).fill(1));
  const second = linkLayer(1, '02:00:00:00:00:0c');
  const find = (bytes: Uint8Array, type: number): number => nd.linkLayerAddress(exact(bytes), 0, type);
  t.equal(find(solicitation(ns), 1), 0);
  t.equal(find(solicitation({ ...ns, options: [TLLA] }), 1), 0);
  t.equal(find(solicitation({ ...ns, options: [SLLA] }), 1), 66);
  t.equal(find(solicitation({ ...ns, options: [other, SLLA, second] }), 1), 82, 'the first of two');
  t.equal(find(advertisement({ ...na, options: [SLLA, TLLA] }), 2), 74);
  t.equal(find(routerAdvertisement({ ...ra, options: [SLLA] }), 1), 58);
  t.equal(find(concat(solicitation(ns), SLLA), 1), 0, 'padding is no option');
});

t.test('isHost6 and isUnspecified', async (t) => {
  const is = (text: string): boolean => nd.isHost6(exact(address(text)), 0);
  for (const yes of [
    'fd07::a',
    'fe80::1',
    '2001:db8::',
    '::2',
    '::1:0',
    '::a07:5',
    '1::',
    '0:1::',
    '::fffe:a07:5',
    '::1:ffff:a07:5',
  ]) {
    t.ok(is(yes), yes);
  }
  for (const no of ['::', '::1', 'ff02::1', 'ff00::', '::ffff:a07:5']) t.notOk(is(no), no);
  t.ok(nd.isUnspecified(exact(address('::')), 0));
  for (const no of ['::1', '1::', '0:0:1::', '0:0:0:0:1::']) t.notOk(nd.isUnspecified(exact(address(no)), 0), no);
});

t.test('writeAdvertisement', async (t) => {
  const write = (from: Uint8Array, router: boolean): string => {
    const bytes = new Uint8Array(300).fill(0xee);
    bytes.set(from, 100);
    nd.writeAdvertisement(new DataView(bytes.buffer), 3, 100, 0x00000002, 0x0b00, router);
    t.equal(bytes[2], 0xee);
    t.equal(bytes[3 + 72], 0xee, 'nothing behind it');
    return hex(changed(bytes.subarray(3, 3 + 72), put(1, 0, 0, 0)));
  };
  /** As the tests build it, without a flow label and with the checksum left 0. */
  const expected = (destination: string, flags: number): string => {
    const options = [linkLayer(2, '02:00:00:00:00:0b')];
    return hex(
      changed(advertisement({ source: TARGET, destination, flags, options }), (copy) => {
        copy.fill(0, 1, 4);
        copy.fill(0, 42, 44);
      }),
    );
  };
  const request = solicitation({ ...ns, options: [SLLA] });
  t.equal(write(request, false), expected(HOST, 0x40));
  t.equal(write(request, true), expected(HOST, 0xc0));
  const dad = solicitation({ ...ns, source: '::' });
  t.equal(write(dad, false), expected('ff02::1', 0));
  t.equal(write(dad, true), expected('ff02::1', 0x80));
});

t.test('no bytes make a check read outside them', async (t) => {
  const next = random(4);
  const seeds = [
    REQUEST,
    solicitation({ ...ns, options: [SLLA] }),
    advertisement({ ...na, options: [TLLA] }),
    routerAdvertisement({ ...ra, options: [SLLA, TLLA] }),
  ];
  const seen = new Map<string, number>();
  const note = (what: string): unknown => seen.set(what, (seen.get(what) ?? 0) + 1);
  for (let i = 0; i < 100_000; i++) {
    const seed = seeds[Math.floor(next() * seeds.length)];
    const bytes = seed.slice(0, next() < 0.3 ? Math.floor(next() * (seed.length + 1)) : seed.length);
    for (let n = Math.floor(next() * 4); n > 0 && bytes.length > 0; n--) {
      // Mostly where lengths are: the payload length, and the options.
      const at =
        next() < 0.5 ? 4 + Math.floor(next() * 2) : next() < 0.5 ? 56 + Math.floor(next() * 18) : next() * bytes.length;
      bytes[Math.floor(at) % bytes.length] = Math.floor(next() * (next() < 0.5 ? 5 : 256));
    }
    const view = exact(bytes);
    note(`arp ${arp.checkArp(view, 0, bytes.length)}`);
    const type = nd.checkNd(view, 0, bytes.length);
    note(`nd ${type}`);
    if (type > nd.ND_BAD) {
      for (const option of [1, 2]) {
        const found = nd.linkLayerAddress(view, 0, option);
        if (found < 0 || (found > 0 && found + 6 > bytes.length)) t.fail(`${hex(bytes)}: address at ${found}`);
      }
    }
  }
  for (const what of ['arp 0', 'arp 1', 'arp 2', 'nd 0', 'nd 1', 'nd 134', 'nd 135', 'nd 136']) {
    t.ok((seen.get(what) ?? 0) > 100, `${what} was met`);
  }
});
