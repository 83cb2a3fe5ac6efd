/**
 * Which stage of the walk (docs/walk.md) a function belongs to: the only place that says so.
 *
 * A function that is not here counts as "other". Functions of one line that several stages share are where they cost most:
 * `#add` counts, `probe` and `hashMac` find a MAC for `learn` too.
 */
export interface Stage {
  readonly name: string;
  readonly color: string;
  readonly about: string;
}

/** In the order of the walk, outbound and inbound in one: each goes through some of them. */
export const STAGES = [
  {
    name: 'in-memory device',
    color: '#d0d7de',
    about: "the benchmark's own device, sockets and loop in memory: not Weft's cost",
  },
  { name: 'pull', color: '#8c959f', about: 'the turn, the loops over packets, messages and datagrams, counting' },
  { name: 'find peer', color: '#b2df8a', about: 'who sent it: the underlay address of the message' },
  { name: 'decapsulate', color: '#33a02c', about: 'the VXLAN header that came' },
  { name: 'check', color: '#a6cee3', about: 'lengths, versions, header checksum; Ethernet and IP header of a frame' },
  { name: 'learn', color: '#fdbf6f', about: 'source MAC, ARP and ND; ageing' },
  { name: 'look up', color: '#1f78b4', about: 'route or MAC, and the peer behind it' },
  { name: 'flood', color: '#ffd92f', about: 'which peers get a copy' },
  { name: 'TTL', color: '#cab2d6', about: 'decrement and its checksum' },
  { name: 'split', color: '#6a3d9a', about: 'a super-packet into segments, checksums included' },
  { name: 'encapsulate', color: '#fb9a99', about: 'VXLAN header, source port' },
  { name: 'join', color: '#e31a1c', about: "to the peer's message" },
  { name: 'ECN', color: '#666666', about: 'congestion marks outside and inside' },
  { name: 'merge', color: '#b15928', about: 'datagrams of a flow into a super-packet, checksums verified' },
  { name: 'push', color: '#ff7f00', about: 'headers for sendmmsg, or virtio headers and writes to the device' },
  { name: 'other', color: '#f2c6de', about: "functions of no stage, and the engine's own work" },
] as const satisfies readonly Stage[];

export type StageName = (typeof STAGES)[number]['name'];

type Functions = Readonly<Partial<Record<Exclude<StageName, 'other'>, readonly string[]>>>;

/** By module; those of src/kernels/ are what the WASM module exports. */
export const FUNCTIONS: Readonly<Record<string, Functions>> = {
  'native-free-bench/random-device': { 'in-memory device': ['load', 'pull', 'push'] },
  'native-free-bench/rig': { 'in-memory device': ['drain', 'turn'] },
  'native-free-bench/varying-device': { 'in-memory device': ['load', 'pull', 'push'] },
  'native-free-bench/switch': { 'in-memory device': ['prepare'] },
  'native-free-bench/walk': { 'in-memory device': ['prepare'] },
  'src/dataplane/addresses': { 'find peer': ['hashAddress', 'lookupAddress'] },
  'src/dataplane/engine': { pull: ['turn'] },
  'src/dataplane/floods': { flood: ['floodList'] },
  'src/dataplane/flow-hash': { encapsulate: ['flowHash', 'hasPorts'] },
  'src/dataplane/histograms': { pull: ['countSize'] },
  'src/dataplane/icmp-errors': { pull: ['tick', 'useDevice'] },
  'src/dataplane/inbound': {
    pull: ['run', 'useTables', '#add', '#message', '#readControl', '#spans', '#datagrams'],
    'find peer': ['#findPeer', '#countPeer'],
    decapsulate: ['#decapsulate', '#networkOf'],
    check: ['#accept', '#note4'],
    ECN: ['#decapsulateEcn'],
    merge: ['#merge'],
    push: ['#closeAll', '#close', '#pushMerged', '#pushFrame', '#pushSuper', '#push', '#pushed'],
  },
  'src/dataplane/macs': {
    learn: ['learn', 'sweep', '#gone', '#insert', '#put', '#replace', '#move', '#mayMove', '#announce', 'sweepStep'],
    'look up': ['alive', 'hashMac', 'lookup', 'lookupStaticMac', 'prefetch', 'probe'],
  },
  'src/dataplane/neighbours': { learn: ['sweep'] },
  'src/dataplane/outbound': {
    pull: ['run', 'useTables', '#hasRoom', '#leastRoom'],
    'look up': ['#forward'],
    flood: ['#aimAtAll', '#extremeMtu', '#flood', '#copyToPeers'],
    split: ['#finishChecksum', '#forwardSuper', '#superHeaders', 'transportStart', '#split'],
    encapsulate: ['#senderFor'],
    join: ['#append'],
    push: ['flush', '#send'],
  },
  'src/dataplane/outbox': {
    join: ['append', 'empty', 'room', '#joins', '#start', '#extend'],
    push: ['flush', '#seal', '#copyName', '#writeMessage', '#sent', '#peerStands'],
  },
  'src/dataplane/proxy': { pull: ['useTables'], learn: ['outbound', 'inbound'] },
  'src/dataplane/rings': { learn: ['receive'] },
  'src/dataplane/routes': { 'look up': ['lookup4', 'lookup6'] },
  'src/dataplane/routing': {
    pull: ['useTables'],
    check: ['outbound', 'inbound', '#note4'],
    'look up': ['#owner'],
    TTL: ['depart'],
  },
  'src/dataplane/shared': { pull: ['beginTurn', 'hasStatics'] },
  'src/dataplane/switching': {
    pull: ['useTables', 'tick'],
    check: ['outbound', 'inbound', '#isOurs', '#parse', '#mayTeach'],
    'look up': ['#find', 'depart'],
    flood: ['#flood'],
  },
  'src/dataplane/unfinished': { push: ['findUnfinished'] },
  'src/io/memory': { 'in-memory device': ['readPointer'], join: ['writeIovec'], push: ['writePointer'] },
  'src/io/memory-device': { 'in-memory device': ['load', 'more', 'pull', 'push'] },
  'src/io/memory-socket': { 'in-memory device': ['load', 'pull', 'push', '#receive', '#putControl', '#send'] },
  'src/io/messages': { 'in-memory device': ['armReceive'] },
  'src/kernels/checksum': { split: ['copy', 'finish', 'sum'] },
  'src/kernels/merge': { merge: ['merge'], push: ['mergeClose'] },
  'src/kernels/split': { split: ['split'] },
  'src/packet/ethernet': { check: ['headerLength'], flood: ['isGroupMac'] },
  'src/packet/ip': {
    check: ['checkIp', 'checkIpv4', 'headerSum'],
    TTL: ['decrementTtl'],
    encapsulate: ['tosOf'],
    ECN: ['ecnOf', 'writeEcn'],
  },
  'src/packet/vxlan': { decapsulate: ['hasVni', 'vniOf'], encapsulate: ['writeVxlan'] },
};

const BY_FUNCTION = new Map(
  Object.entries(FUNCTIONS).flatMap(([module, stages]) =>
    Object.entries(stages).flatMap(([stage, names]) =>
      names.map((name) => [`${module} ${name}`, stage as StageName] as const),
    ),
  ),
);

export const stageOf = (module: string, name: string): StageName => BY_FUNCTION.get(`${module} ${name}`) ?? 'other';

const KERNELS = new Map(
  [...BY_FUNCTION].flatMap(([key, stage]) => {
    const [module, name] = key.split(' ');
    return module.startsWith('src/kernels/') ? [[name, stage] as const] : [];
  }),
);

/** Of a function that the WASM module exports. */
export const stageOfKernel = (name: string): StageName => KERNELS.get(name) ?? 'other';
