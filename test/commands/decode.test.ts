/**
 * `weft decode`: its own files and others', in both byte orders, against tshark; what it makes of packets; and bytes that are no
 * capture, or a damaged one: whatever comes, one clear line, and soon.
 *
 *   WEFT_FUZZ_SEED=n     the seed of the damaged files (printed)
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { BadCapture } from '../../src/commands/packets/capture-reader.js';
import { decodeStream } from '../../src/commands/packets/decode-file.js';
import { dissect } from '../../src/commands/packets/dissect.js';
import { layersText } from '../../src/commands/packets/layer-text.js';
import { interfaceBlock, packetBlock, sectionBlock, statisticsBlock } from '../../src/commands/packets/pcapng.js';
import { verdictComment, verdictIn } from '../../src/commands/packets/verdict-comment.js';
import { COLOURS, NO_COLOURS, type Output } from '../../src/commands/text/output.js';
import {
  enhanced,
  interfaceOf,
  names,
  type Order,
  oldPacket,
  pcapFile,
  section,
  simple,
  textOption,
  u32,
} from '../lib/capture-files.js';
import { Choice } from '../lib/choice.js';
import { arpFrame, frame, SERVICE_VLAN, solicitation, VLAN, vxlan } from '../lib/frames.js';
import {
  ACK,
  changed,
  concat,
  type IpSpec,
  icmp,
  packet,
  pattern,
  raw,
  SYN,
  type Transport,
  tcp,
  udp,
  unfinished,
} from '../lib/packets.js';

const CLI = fileURLToPath(new URL('../../src/cli.js', import.meta.url));
const FULL = process.env.WEFT_TEST_FULL === '1';
const SEED = Number(process.env.WEFT_FUZZ_SEED ?? Date.now() % 1e9);
const ETHERNET = 1;
const RAW = 101;
const ORDERS: readonly Order[] = ['little', 'big'];

const dir = mkdtempSync(join(tmpdir(), 'weft-decode-'));
t.teardown(() => rmSync(dir, { recursive: true }));

function file(name: string, bytes: Uint8Array): string {
  const path = join(dir, name);
  writeFileSync(path, bytes);
  return path;
}

const weft = (args: readonly string[], input?: Uint8Array): { code: number | null; out: string; err: string } => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
    ...(input ? { input } : {}),
  });
  return { code: status, out: stdout, err: stderr };
};

/** Output that is kept. */
function kept(colours = NO_COLOURS): Output & { text: string } {
  return {
    text: '',
    terminal: false,
    colours,
    signal: new AbortController().signal,
    print(text) {
      this.text += String(text);
    },
    json(value) {
      this.text += `${JSON.stringify(value)}\n`;
    },
    flushed: async () => {},
  };
}

const OPTIONS = { json: false, count: 0, vxlanPorts: [], ipPorts: [] };

async function* inChunks(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** What is printed of a file, and the error behind it. */
async function decoded(
  bytes: Uint8Array,
  options: Partial<typeof OPTIONS> = {},
  chunk = 65536,
): Promise<{ readonly lines: readonly string[]; readonly error: unknown }> {
  const out = kept();
  let error: unknown;
  try {
    await decodeStream(inChunks(bytes, chunk), { ...OPTIONS, ...options }, out);
  } catch (caught) {
    error = caught;
  }
  return { lines: out.text.split('\n').slice(0, -1), error };
}

interface Shown {
  readonly time: string | null;
  readonly interface: string | null;
  readonly direction: string | null;
  readonly length: number;
  readonly captured: number;
  readonly verdict: object | null;
  readonly comments: readonly string[];
  readonly layers: readonly { readonly layer: string }[];
}

const jsonOf = async (bytes: Uint8Array, chunk?: number): Promise<readonly Shown[]> => {
  const { lines, error } = await decoded(bytes, { json: true }, chunk);
  if (error) throw error;
  return lines.map((line) => JSON.parse(line) as Shown);
};

const IP4: IpSpec = { source: '10.5.1.2', destination: '10.5.2.2' };
const IP6: IpSpec = { source: 'fd00:5:0:1::2', destination: 'fd00:5:0:2::2' };
const ETHER = { source: '02:07:00:00:01:01', destination: '02:07:00:00:02:01' };
const UNDERLAY: IpSpec = { source: '192.168.77.1', destination: '192.168.77.2' };
/** The test's ICMP has 0x0001 in both halves of its second word, unless it is said. */
const PING = packet(IP4, changedTransport(icmp(8, pattern(60)), [5, 7]));

/** Bytes of the header put where they say, [at, value]. */
function changedTransport(transport: Transport, ...bytes: readonly (readonly [number, number])[]): Transport {
  return {
    ...transport,
    bytes: changed(transport.bytes, (copy) => {
      for (const [at, value] of bytes) copy[at] = value;
    }),
  };
}

/** Seconds since 1970, with the digits that a resolution has. */
const EPOCH = 1_700_000_000;
const stamp = (digits: string): string => `2023-11-14T22:13:20.${digits.padEnd(9, '0')}Z`;

// --- files ---

t.test('pcap of both byte orders and both resolutions', async (t) => {
  for (const order of ORDERS) {
    for (const nanoseconds of [false, true]) {
      const seen = [
        { seconds: EPOCH, fraction: 123456, bytes: PING },
        { seconds: EPOCH, fraction: 5, bytes: PING.subarray(0, 40), length: 1500 },
      ];
      const bytes = pcapFile({ order, nanoseconds, linkType: RAW }, seen);
      for (const chunk of [1, 7, 65536]) {
        const [first, second] = await jsonOf(bytes, chunk);
        const unit = nanoseconds ? ['000123456', '000000005'] : ['123456', '000005'];
        t.same([first.time, second.time], unit.map(stamp), `${order}, ns ${nanoseconds}, by ${chunk}`);
        t.same([first.length, first.captured, second.length, second.captured], [88, 88, 1500, 40]);
        t.match(first.layers, [
          { layer: 'ipv4', source: '10.5.1.2' },
          { layer: 'icmp', id: 7, sequence: 1 },
        ]);
      }
    }
  }
});

t.test('pcapng of both byte orders, with every block and resolution', async (t) => {
  for (const order of ORDERS) {
    const time = BigInt(EPOCH);
    const offset = concat(order === 'little' ? u32(order, EPOCH, 0) : u32(order, 0, EPOCH));
    const bytes = concat(
      section(order, [textOption(4, 'another program')]),
      interfaceOf(order, ETHERNET, [textOption(2, 'eth0')]),
      names(order),
      enhanced(order, {
        time: time * 1_000_000n + 250_000n,
        bytes: frame(ETHER, IP4, tcp({ flags: SYN })),
        options: [textOption(1, 'one'), [2, u32(order, 1)], textOption(1, 'two')],
      }),
      interfaceOf(order, RAW, [textOption(2, 'tun0'), [9, Uint8Array.of(9)]]),
      enhanced(order, {
        interface: 1,
        time: time * 1_000_000_000n + 7n,
        bytes: PING,
        options: [[2, u32(order, 2)]],
      }),
      interfaceOf(order, RAW, [
        [9, Uint8Array.of(0x80 | 10)],
        [14, offset],
      ]),
      oldPacket(order, { interface: 2, time: 512n, bytes: PING }),
      simple(order, frame(ETHER, IP4, udp())),
      block77(order),
    );
    const shown = await jsonOf(bytes, 11);
    t.same(
      shown.map((one) => [one.time, one.interface, one.direction, one.comments]),
      [
        [stamp('25'), 'eth0', 'in', ['one', 'two']],
        [stamp('000000007'), 'tun0', 'out', []],
        [stamp('5'), null, null, []],
        [null, 'eth0', null, []],
      ],
      order,
    );
    t.same(
      shown.map(({ layers }) => layers.map(({ layer }) => layer)),
      [
        ['ethernet', 'ipv4', 'tcp'],
        ['ipv4', 'icmp'],
        ['ipv4', 'icmp'],
        ['ethernet', 'ipv4', 'udp'],
      ],
    );
  }
  const other = concat(
    section('big'),
    interfaceOf('big', RAW),
    enhanced('big', { time: 1n, bytes: PING }),
    section('little'),
    interfaceOf('little', ETHERNET),
    enhanced('little', { time: 2n, bytes: frame(ETHER, IP4, udp()) }),
  );
  const shown = await jsonOf(other);
  t.same(
    shown.map(({ time, layers }) => [time, layers[0].layer]),
    [
      ['1970-01-01T00:00:00.000001000Z', 'ipv4'],
      ['1970-01-01T00:00:00.000002000Z', 'ethernet'],
    ],
    'sections of different byte orders follow each other',
  );
});

/** Of a type that nobody knows. */
const block77 = (order: Order): Uint8Array => concat(u32(order, 77, 12), u32(order, 12));

/** As the writer of `weft capture` makes it. */
function ownFile(): Uint8Array {
  const time = BigInt(EPOCH) * 1_000_000_000n;
  const inner = frame(ETHER, IP4, udp({ payload: pattern(11) }));
  const outer = packet(UNDERLAY, udp({ from: 50000, to: 4790, payload: vxlan(42, inner) }));
  const description = 'eth0, UDP port 4790 carries VXLAN; outer headers are made again';
  const underlay = frame({ source: '00:00:00:00:00:00', destination: '00:00:00:00:00:00' }, UNDERLAY, udp());
  const drop = verdictComment({ direction: 'inbound', kind: 'dropped', reason: 'no_vni_flag' }, 'VXLAN header (odd)');
  const packets = [
    { interface: 0, time, pieces: [inner], direction: 'out', comment: 'outbound: forwarded to b' },
    {
      interface: 1,
      time: time + 1n,
      pieces: [underlay.subarray(0, 14), outer],
      direction: 'out',
      comment: 'outbound: sent to b',
    },
    { interface: 1, time: time + 2n, pieces: [underlay.subarray(0, 14), outer], direction: 'in', comment: drop },
  ] as const;
  return concat(
    sectionBlock({ application: 'weft', os: 'Linux', comment: 'a file' }),
    interfaceBlock({ name: 'weft42', description: 'VNI 42', linkType: ETHERNET, snaplen: 65662 }),
    interfaceBlock({ name: 'underlay', description, linkType: ETHERNET, snaplen: 65662 }),
    ...packets.map((one) =>
      packetBlock({ ...one, length: one.pieces.reduce((sum: number, piece) => sum + piece.length, 0) }),
    ),
    statisticsBlock({ interface: 0, start: time, end: time + 9n, received: 1, dropped: 5 }),
    statisticsBlock({ interface: 1, start: time, end: time + 9n, received: 2, dropped: 2 ** 33 }),
  );
}

t.test('own files', async (t) => {
  const shown = await jsonOf(ownFile());
  t.same(
    shown.map((one) => [one.time, one.interface, one.direction, one.verdict]),
    [
      [stamp('0'), 'weft42', 'out', { direction: 'outbound', kind: 'forwarded', peer: 'b' }],
      [stamp('000000001'), 'underlay', 'out', { direction: 'outbound', kind: 'sent', peer: 'b' }],
      [stamp('000000002'), 'underlay', 'in', { direction: 'inbound', kind: 'dropped', reason: 'no_vni_flag' }],
    ],
  );
  t.same(
    shown[1].layers.map(({ layer }) => layer),
    ['ethernet', 'ipv4', 'udp', 'vxlan', 'ethernet', 'ipv4', 'udp'],
    'the description says behind which port VXLAN is',
  );
  const { lines } = await decoded(ownFile());
  t.equal(
    lines[1].slice(15),
    '  underlay  out  192.168.77.1:50000 > 192.168.77.2:4790 UDP | VXLAN 42 | 02:07:00:00:01:01 > 02:07:00:00:02:01 | 10.5.1.2:4000 > 10.5.2.2:5000 UDP 11 bytes  # outbound: sent to b',
  );
  t.match(lines[2], / underlay {2}in {3}192.* # inbound: dropped, no_vni_flag \(VXLAN header \(odd\)\)$/);
  const out = kept(COLOURS);
  await decodeStream(inChunks(ownFile(), 4096), OPTIONS, out);
  t.match(out.text, '\x1b[31m  # inbound: dropped', 'a drop is red on a terminal');
  const path = file('own.pcapng', ownFile());
  t.match(weft(['decode', path, '-c', '1']), { code: 0, out: /^\S+ {2}weft42 {4}out .*forwarded to b\n$/, err: '' });
  const json = weft(['decode', '-', '-j'], ownFile());
  t.equal(json.out.split('\n').length, 4, 'from a pipe, one value a line');
});

t.test('verdicts in comments', async (t) => {
  const all = [
    { direction: 'outbound', kind: 'forwarded', peer: 'b' },
    { direction: 'outbound', kind: 'forwarded' },
    { direction: 'outbound', kind: 'forwarded', reason: 'flooded' },
    { direction: 'inbound', kind: 'consumed', reason: 'merged', peer: 'a host (old) with, a name' },
    { direction: 'outbound', kind: 'dropped', reason: 'socket_refused', peer: 'b' },
    { direction: 'inbound', kind: 'dropped', reason: 'unknown_peer' },
    { direction: 'inbound', kind: 'sent' },
    { direction: 'inbound', kind: 'sent', peer: 'the host' },
    { direction: 'outbound', kind: 'sent', peer: 'the host' },
  ] as const;
  for (const verdict of all) {
    for (const [help, segment] of [
      [undefined, 0],
      ['the kernel refused it (firewall, no route)', 1400],
    ] as const) {
      const comment = verdictComment(verdict, help, segment);
      const { peer, ...said } = verdict as { peer?: string };
      t.match(verdictIn(comment), peer?.includes('(') && help ? said : verdict, comment);
    }
  }
  t.equal(verdictIn('retransmission?'), undefined);
  t.equal(verdictIn(`outbound: sent to x${' (a)'.repeat(300)}`), undefined, 'none of ours is so long');
  t.equal(verdictComment(all[0]), 'outbound: forwarded to b');
  t.equal(verdictComment({ ...all[6], peer: 'b' }), 'inbound: sent to the host, from b');
  t.equal(
    verdictComment(all[5], 'underlay sender is not a peer'),
    'inbound: dropped, unknown_peer (underlay sender is not a peer)',
  );
});

t.test('tshark reads what we write, and we read what Wireshark writes', async (t) => {
  if (spawnSync('tshark', ['--version']).status !== 0 || spawnSync('editcap', ['--version']).status === null) {
    t.comment('SKIPPED: needs tshark and editcap');
    return;
  }
  const path = file('shark.pcapng', ownFile());
  const tshark = (of: string, ...fields: readonly string[]): string[] => {
    const args = ['-r', of, '-d', 'udp.port==4790,vxlan', '-o', 'udp.check_checksum:TRUE', '-T', 'fields'];
    const { stdout, stderr, status } = spawnSync('tshark', [...args, ...fields.flatMap((field) => ['-e', field])], {
      encoding: 'utf8',
    });
    if (status !== 0) throw new Error(stderr);
    return stdout.trim().split('\n');
  };
  t.same(
    tshark(path, 'frame.interface_name', 'frame.packet_flags_direction', 'vxlan.vni', 'frame.comment', '_ws.malformed'),
    [
      'weft42\t0x00000002\t\toutbound: forwarded to b\t',
      'underlay\t0x00000002\t42\toutbound: sent to b\t',
      'underlay\t0x00000001\t42\tinbound: dropped, no_vni_flag (VXLAN header (odd))',
    ],
  );
  for (const format of ['pcap', 'nsecpcap', 'pcapng']) {
    const to = join(dir, `edited.${format}`);
    const { status, stderr } = spawnSync('editcap', ['-F', format, path, to], { encoding: 'utf8' });
    t.equal(status, 0, `editcap -F ${format} ${stderr}`);
    const theirs = tshark(to, 'frame.time_epoch', 'frame.len', 'frame.cap_len');
    const { out } = weft(['decode', '-j', to]);
    const ours = out
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Shown)
      .map(
        ({ time, length, captured }) =>
          `${Date.parse(time ?? '') / 1000}.${time?.slice(20, 29)}\t${length}\t${captured}`,
      );
    t.same(ours, theirs, format);
  }
  const plain = join(dir, 'edited.pcap');
  t.notMatch(weft(['decode', plain]).out, /VXLAN/, 'a pcap file does not say where VXLAN is');
  t.match(weft(['decode', plain, '--vxlan-port', '1', '--vxlan-port', '4790']).out, /4790 UDP \| VXLAN 42 \|/);
});

// --- packets ---

t.test('what lines say of packets', async (t) => {
  const said = (bytes: Uint8Array, link = RAW): string => layersText(dissect(link, bytes));
  const ip = (transport: Transport, spec: Partial<IpSpec> = {}, family = IP4): string =>
    said(packet({ ...family, ...spec }, transport));
  t.equal(
    ip(tcp({ from: 40000, to: 80, seq: 7, ack: 9, flags: SYN | ACK, window: 1000 })),
    '10.5.1.2:40000 > 10.5.2.2:80 TCP SYN,ACK seq 7 ack 9 win 1000, 0 bytes',
  );
  t.equal(ip(udp({ payload: pattern(3) }), {}, IP6), '[fd00:5:0:1::2]:4000 > [fd00:5:0:2::2]:5000 UDP 3 bytes');
  t.equal(said(PING), '10.5.1.2 > 10.5.2.2 ICMP echo request id 7 seq 1');
  t.equal(
    ip(changedTransport(icmp(128, pattern(8), true), [7, 2]), {}, IP6),
    'fd00:5:0:1::2 > fd00:5:0:2::2 ICMPv6 echo request id 1 seq 2',
  );
  const quoted = packet(IP4, udp({ payload: pattern(40) })).subarray(0, 28);
  t.equal(
    ip(icmp(3, quoted)).replace('network unreachable', '?'),
    '10.5.1.2 > 10.5.2.2 ICMP ? about (10.5.1.2:4000 > 10.5.2.2:5000 UDP 40 bytes)',
  );
  const tooBig = packet(IP4, changedTransport(icmp(3, quoted), [1, 4], [5, 0], [6, 5], [7, 120]));
  t.equal(
    said(tooBig),
    '10.5.1.2 > 10.5.2.2 ICMP fragmentation needed mtu 1400 about (10.5.1.2:4000 > 10.5.2.2:5000 UDP 40 bytes)',
  );
  t.match(ip(udp(), { ttl: 1, tos: 3 }), /, ttl 1, congestion marked$/);
  t.match(ip(raw(17, pattern(64)), { mf: true, offset: 185, id: 9 }), /10\.5\.2\.2 UDP, fragment of 9 at 1480, more$/);
  t.match(ip(raw(99, pattern(64))), / protocol 99, 64 bytes$/);
  const lies = (at: number, value: number): string => said(changed(PING, (copy) => copy.fill(value, at, at + 1)));
  t.equal(lies(3, 19), 'broken: IPv4 of 19 bytes with a header of 20');
  t.equal(lies(0, 0x44), 'broken: IPv4 header of 16 bytes');
  t.equal(lies(0, 0x75), 'broken: IP version 7');
  t.equal(
    said(arpFrame({ senderMac: '02:00:00:00:00:01', sender: '10.7.0.1', target: '10.7.0.2' }), ETHERNET).replace(
      /^.* \| /,
      '',
    ),
    'ARP who has 10.7.0.2, tell 10.7.0.1 at 02:00:00:00:00:01',
  );
  t.match(ip(solicitation('fd07::2'), { ttl: 255 }, IP6), /ICMPv6 neighbour solicitation target fd07::2$/);
  const tagged = frame(
    {
      ...ETHER,
      tags: [
        [SERVICE_VLAN, 7],
        [VLAN, 0x2008],
      ],
    },
    IP4,
    udp(),
  );
  t.match(said(tagged, ETHERNET), /^02:07:00:00:01:01 > 02:07:00:00:02:01 vlan 7 vlan 8 \| 10\.5\.1\.2:4000 >/);
  const flannel = packet(UNDERLAY, udp({ from: 8285, to: 8285, payload: PING }));
  t.equal(
    said(flannel),
    '192.168.77.1:8285 > 192.168.77.2:8285 UDP | 10.5.1.2 > 10.5.2.2 ICMP echo request id 7 seq 1',
  );
});

t.test('checksums', async (t) => {
  const said = (bytes: Uint8Array): string => layersText(dissect(RAW, bytes));
  for (const family of [IP4, IP6]) {
    for (const transport of [tcp({ payload: pattern(33) }), udp({ payload: pattern(33) })]) {
      const good = packet(family, transport);
      t.notMatch(said(good), /checksum/, 'a right one is not worth a word');
      const wrong = changed(good, (copy) => {
        copy[copy.length - 1] ^= 1;
      });
      t.match(said(wrong), /, checksum wrong$/);
      t.match(said(unfinished(family, transport).bytes), /, checksum left to offload$/);
      t.notMatch(said(good.subarray(0, good.length - 1)), /checksum/, 'of a packet that was cut nobody knows');
    }
  }
  const badPing = changed(PING, (copy) => {
    copy[60] ^= 1;
  });
  t.match(said(badPing), /, checksum wrong$/);
  const badHeader = changed(PING, (copy) => {
    copy[10] ^= 1;
  });
  t.match(said(badHeader), /, IP header checksum wrong$/);
});

// --- what is no capture ---

t.test('one clear line for each thing that can be wrong', async (t) => {
  const good = pcapFile({ order: 'little', linkType: RAW }, [{ seconds: 1, fraction: 0, bytes: PING }]);
  const ng = concat(section('little'), interfaceOf('little', RAW), enhanced('little', { time: 1n, bytes: PING }));
  const bad: readonly (readonly [string, Uint8Array, RegExp])[] = [
    ['empty', new Uint8Array(0), /the file is empty$/],
    ['text', Buffer.from('this is no capture'), /neither pcap nor pcapng$/],
    ['short', Buffer.from('ab'), /neither pcap nor pcapng$/],
    ['cut', good.subarray(0, good.length - 1), /cut short at byte 127, within a packet of 88 bytes$/],
    ['cutng', ng.subarray(0, ng.length - 1), /cut short at byte \d+, within a block of 120 bytes$/],
    ['version', changed(good, (copy) => copy.fill(9, 4, 5)), /pcap of version 9\.4: expected 2$/],
    ['long', changed(good, (copy) => copy.fill(255, 32, 36)), /damaged at byte 24: a packet of 4294967295 bytes$/],
    [
      'lengths',
      changed(ng, (copy) => copy.fill(1, ng.length - 4)),
      /damaged at byte \d+: a block whose two lengths differ$/,
    ],
    ['order', changed(ng, (copy) => copy.fill(1, 8, 12)), /damaged at byte 0: a section without its byte order$/],
    [
      'nobody',
      concat(section('big'), enhanced('big', { time: 1n, bytes: PING })),
      /interface 0, which is not described$/,
    ],
    // The packet's length is 20 bytes behind the head of its block, which is 28 + 20 bytes behind the file's start.
    [
      'fat',
      changed(ng, (copy) => copy.fill(255, 68, 70)),
      /damaged at byte 48: a packet of 65535 bytes in a block of 120$/,
    ],
    [
      'option',
      concat(
        section('big'),
        interfaceOf('big', RAW, [[2, Uint8Array.of(97)]]).map((byte, i) => (i === 19 ? 99 : byte)),
      ),
      /damaged at byte 28: an option of 99 bytes beyond its block$/,
    ],
    [
      'huge',
      concat(section('little'), u32('little', 6, 0x7ffffffc)),
      /damaged at byte 28: a block of 2147483644 bytes$/,
    ],
    ['first', concat(section('big'), simple('big', PING)), /a packet before any interface$/],
  ];
  for (const [name, bytes, message] of bad) {
    const { error } = await decoded(bytes);
    t.ok(error instanceof BadCapture, `${name}: a BadCapture`);
    t.match((error as Error).message, message, name);
  }
  const cut = weft(['decode', file('cut.pcap', good.subarray(0, good.length - 1))]);
  t.match(cut, { code: 1, err: /^weft: decode: \S+cut\.pcap: cut short at byte 127, [^\n]*\n$/ });
  t.match(weft(['decode', join(dir, 'none')]), {
    code: 1,
    out: '',
    err: /^weft: [^\n]*none: there is no such file\n$/,
  });
  t.match(weft(['decode', dir]), { code: 1, out: '', err: /^weft: [^\n]*: it is a folder\n$/ });
  t.match(weft(['decode']), { code: 2, out: '', err: /^weft: [^\n]*\n$/ });
  t.match(weft(['decode', '-c', '0', 'x']), { code: 2, out: '', err: /^weft: [^\n]*whole number[^\n]*\n$/ });
  t.match(weft(['decode', '-'], Buffer.from('xxxxxxx')), {
    code: 1,
    err: /standard input: neither pcap nor pcapng\n$/,
  });
});

t.test('a reader that goes away ends it', async (t) => {
  const many = pcapFile(
    { order: 'big', linkType: RAW },
    Array.from({ length: 20_000 }, (_, i) => ({ seconds: i, fraction: 0, bytes: PING })),
  );
  const path = file('many.pcap', many);
  const script = `"${process.execPath}" "${CLI}" decode "${path}" | head -n 1; echo "\${PIPESTATUS[0]}"`;
  const { stdout, stderr } = spawnSync('bash', ['-c', script], { encoding: 'utf8', timeout: 60_000 });
  t.match(stdout, /^\d\d:\d\d:\d\d\.000000 {2}-.*\n0\n$/);
  t.equal(stderr, '');
});

t.test('damaged files', async (t) => {
  t.comment(`WEFT_FUZZ_SEED=${SEED}`);
  const choice = new Choice(SEED);
  const whole = seeds();
  let read = 0;
  for (let round = 0; round < (FULL ? 200_000 : 4000); round++) {
    const bytes = damage(choice.of(whole), choice);
    const json = choice.once(2);
    const { lines, error } = await decoded(bytes, { json }, choice.of([13, 4096, 65536]));
    read += lines.length;
    const fine = error === undefined || (error instanceof BadCapture && !/[\n\p{Cc}]/u.test(error.message));
    if (!fine || !lines.every(json ? isJson : isPlain)) {
      t.same({ round, file: Buffer.from(bytes).toString('hex'), error: String(error) }, 'one clear line');
      return;
    }
  }
  t.ok(read > 1000, `${read} packets were read all the same`);
});

/** No character that a terminal obeys. */
const isPlain = (line: string): boolean => !/[\p{Cc}\p{Cf}]/u.test(line);
const isJson = (line: string): boolean => typeof JSON.parse(line) === 'object';

t.test('bytes that are no packets', async (t) => {
  const choice = new Choice(SEED);
  for (let round = 0; round < (FULL ? 1_000_000 : 20_000); round++) {
    const bytes = Uint8Array.from({ length: choice.below(120) }, () => choice.edge(8));
    const packetLike = choice.once(2) ? damage(choice.of(PACKETS), choice) : bytes;
    const link = choice.of([0, 1, 12, 101, 113, 228, 276, 999]);
    layersText(dissect(link, packetLike));
  }
  const deep = nest(PING, 400);
  t.ok(dissect(RAW, deep).length < 40, 'tunnels in tunnels are not followed for ever');
  t.ok(layersText(dissect(RAW, quote(PING, 30))).length < 400, 'nor errors about errors');
});

/** VXLAN in VXLAN. */
function nest(bytes: Uint8Array, depth: number): Uint8Array {
  if (depth === 0) return bytes;
  const ether = concat(new Uint8Array(12), [8, 0], bytes);
  return nest(packet(UNDERLAY, udp({ to: 4789, payload: vxlan(1, ether) })), depth - 1);
}

function quote(bytes: Uint8Array, depth: number): Uint8Array {
  return depth === 0 ? bytes : quote(packet(IP4, icmp(3, bytes)), depth - 1);
}

const PACKETS: readonly Uint8Array[] = [
  PING,
  frame(ETHER, IP4, tcp({ payload: pattern(20) })),
  frame({ ...ETHER, tags: [[VLAN, 5]] }, IP6, udp({ payload: pattern(20) })),
  packet(UNDERLAY, udp({ to: 4789, payload: vxlan(42, frame(ETHER, IP6, udp({ payload: pattern(9) }))) })),
  packet({ ...IP6, extensions: [[0, Uint8Array.of(0, 1, 4, 0, 0, 0, 0)]] }, tcp()),
  packet(IP4, icmp(11, PING)),
];

function seeds(): readonly Uint8Array[] {
  const files = [ownFile()];
  for (const order of ORDERS) {
    for (const linkType of [ETHERNET, RAW]) {
      files.push(
        pcapFile(
          { order, linkType },
          PACKETS.map((bytes, i) => ({ seconds: i, fraction: i, bytes })),
        ),
      );
      files.push(
        concat(
          section(order, [textOption(4, 'x')]),
          interfaceOf(order, linkType, [textOption(2, 'eth\u001b[2J'), [9, Uint8Array.of(6)]]),
          ...PACKETS.map((bytes, i) => enhanced(order, { time: BigInt(i), bytes, options: [textOption(1, 'a\nb')] })),
          simple(order, PING),
          oldPacket(order, { time: 1n, bytes: PING }),
          section(order),
        ),
      );
    }
  }
  return files;
}

/** Some bytes changed, cut off, doubled or put in. */
function damage(bytes: Uint8Array, choice: Choice): Uint8Array {
  let now: Uint8Array = Uint8Array.from(bytes);
  for (let times = choice.below(4); times >= 0; times--) {
    const at = choice.below(now.length);
    const kind = choice.below(6);
    if (kind < 3) now[at] = choice.edge(8);
    else if (kind === 3) now.set(u32(choice.of(ORDERS), choice.edge(32) >>> 0).subarray(0, now.length - at), at);
    else if (kind === 4) now = now.slice(0, at + 1);
    else now = concat(now.subarray(0, at), now.subarray(choice.below(at + 1)));
  }
  return now;
}
