/**
 * What the wire tests share: two hosts whose underlay carries real packets, tshark and scapy as readers of captures that are
 * no part of Weft, and ways to send what no honest host sends.
 */
import { type Host, type Lab, type Namespace, run, sleep, twoHosts } from '../../../race/hosts.js';
import { Agent, PYTHON } from './agents.js';
import { realPackets } from './capture.js';
import { Weft, type WeftOptions, writePeers } from './weft.js';

/** What these tests need besides root (`impossible` of weft.ts). */
export const WIRE_TOOLS: readonly string[] = ['tcpdump', 'tshark', 'ethtool', PYTHON];

/** The kernel's multicast reports on the new device are over after this. */
const QUIET_MS = 1500;

export interface WireRig {
  readonly lab: Lab;
  readonly a: Host;
  readonly b: Host;
  readonly hosts: readonly Host[];
  /** The clients' agents, and one on host a. */
  readonly left: Agent;
  readonly right: Agent;
  readonly hostA: Agent;
  /** Two daemons for the time of `work`, which begins when both are quiet; options for each besides the usual. */
  during(
    work: (wefts: [Weft, Weft]) => Promise<void>,
    ofA?: Partial<WeftOptions>,
    ofB?: Partial<WeftOptions>,
  ): Promise<void>;
}

export async function makeWireRig(lab: Lab): Promise<WireRig> {
  const [a, b] = twoHosts(lab);
  const hosts = [a, b];
  const peers = writePeers(lab, hosts);
  const [left, right, hostA] = await Promise.all([a.client, b.client, a.ns].map((ns) => Agent.start(ns)));
  for (const host of hosts) realPackets(host.ns, 'eth0');
  const env = { WEFT_CHECK_ADDRESSES: '1' };
  return {
    lab,
    a,
    b,
    hosts,
    left,
    right,
    hostA,
    async during(work, ofA = {}, ofB = {}) {
      const wefts = await Promise.all([Weft.start(a, { peers, env, ...ofA }), Weft.start(b, { peers, env, ...ofB })]);
      await sleep(QUIET_MS);
      for (const { client } of hosts) client.ip('route flush cache');
      try {
        await work(wefts);
      } finally {
        await Promise.all(wefts.map((weft) => weft.stop()));
      }
    },
  };
}

// --- readers ---

/** tshark's verdict on a capture: every line that it has a complaint about. Retransmissions and the like are no fault of ours. */
export async function tsharkComplaints(file: string): Promise<{ packets: number; complaints: string[] }> {
  const checks = ['ip', 'tcp', 'udp'].flatMap((name) => ['-o', `${name}.check_checksum:TRUE`]);
  const fields = ['ip.checksum.status', 'udp.checksum.status', 'tcp.checksum.status', 'icmp.checksum.status'];
  fields.push('icmpv6.checksum.status', '_ws.malformed', 'ip.version');
  const args = ['-r', file, '-d', 'udp.port==8285,ip', ...checks, '-Y', 'udp.port==8285', '-T', 'fields'];
  const { code, stdout, stderr } = await run('tshark', [...args, ...fields.flatMap((field) => ['-e', field])]);
  if (code !== 0) throw new Error(`tshark: ${stderr.trim().split('\n').at(-1)}`);
  const lines = stdout.split('\n').filter(Boolean);
  const bad = lines.filter((line) => {
    const columns = line.split('\t');
    const statuses = columns.slice(0, 5).flatMap((text) => text.split(',').filter(Boolean));
    // 1 is good, 3 not present (a fragment's, or the ICMP quote's).
    return columns[5] !== '' || statuses.some((status) => status === '0') || columns[6].split(',').length < 2;
  });
  return { packets: lines.length, complaints: bad };
}

/** Builds every inner packet anew, with lengths and checksums left to scapy, and compares: prints what differs. */
const SCAPY_REBUILD = `
import sys
from scapy.all import rdpcap, IP, IPv6, TCP, UDP, ICMP, IPv6ExtHdrFragment
count = 0
for frame in rdpcap(sys.argv[1]):
    if UDP not in frame: continue
    inner = bytes(frame[UDP].payload)
    count += 1
    p = (IP if inner[0] >> 4 == 4 else IPv6)(inner)
    fragment = (IP in p and (p.frag or p.flags.MF)) or IPv6ExtHdrFragment in p
    if IP in p: del p[IP].chksum, p[IP].len
    else: del p[IPv6].plen
    if not fragment:
        for layer in (TCP, UDP, ICMP):
            if layer in p:
                del p[layer].chksum
                if layer is UDP: del p[layer].len
    again = bytes(p)
    if again != inner: print('frame', count, inner.hex(), again.hex())
print('count', count)
`;

export async function scapyRebuild(file: string): Promise<string[] | undefined> {
  const { code, stdout, stderr } = await run(PYTHON, ['-c', SCAPY_REBUILD, file]);
  if (code !== 0 && stderr.includes("No module named 'scapy'")) return undefined;
  if (code !== 0) throw new Error(`scapy: ${stderr.trim().split('\n').at(-1)}`);
  return stdout.trim().split('\n');
}

// --- injection ---

/** Whole IPv4 packets, header and all, from a host. */
export async function inject(from: Agent, ns: Namespace, to: string, packets: readonly Uint8Array[]): Promise<void> {
  try {
    await from.raw(to, packets);
  } catch (error) {
    if (!(error instanceof Error) || !/raw-socket|raw\.node/.test(error.message)) throw error;
    const script =
      'import sys\nfrom scapy.all import send, IP\nfor a in sys.argv[1:]: send(IP(bytes.fromhex(a)), verbose=0)';
    const hex = packets.map((bytes) => Buffer.from(bytes).toString('hex'));
    const { code, stderr } = await ns.run(PYTHON, ['-c', script, ...hex]);
    if (code !== 0) throw new Error(`neither raw-socket nor scapy: ${stderr.trim().split('\n').at(-1)}`);
  }
}

/** Bytes straight into the device, past the kernel's own checks: what no honest kernel would send. */
export async function intoDevice(ns: Namespace, packets: readonly Uint8Array[]): Promise<void> {
  const script = `
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
for a in sys.argv[1:]:
    b = bytes.fromhex(a)
    s.sendto(b, ('flannel0', 0x86dd if b[0] >> 4 == 6 else 0x0800))`;
  const hex = packets.map((bytes) => Buffer.from(bytes).toString('hex'));
  const { code, stderr } = await ns.run(PYTHON, ['-c', script, ...hex]);
  if (code !== 0) throw new Error(`packet socket: ${stderr.trim().split('\n').at(-1)}`);
}

/** One ping's verdict in words, as ping prints it: `64 bytes from 10.5.2.2` or `From 10.5.1.0 icmp_seq=1 Time to live exceeded`. */
export async function ping(from: Namespace, address: string, ...args: string[]): Promise<string> {
  const { stdout, stderr } = await from.run('ping', ['-n', '-c', '1', '-W', '2', ...args, address]);
  return `${stdout}${stderr}`.split('\n').find((line) => /^From|bytes from|local error/i.test(line)) ?? 'no answer';
}

/** As decode() writes IPv6 addresses: all eight groups. */
export function expand6(address: string): string {
  const [head, tail] = address.split('::');
  const groups = (text: string): string[] => text.split(':').filter(Boolean);
  if (tail === undefined) return address;
  const zeros = 8 - groups(head).length - groups(tail).length;
  return [...groups(head), ...new Array<string>(zeros).fill('0'), ...groups(tail)].join(':');
}
