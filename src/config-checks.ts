/** What one option's check cannot see: which options go together. Each of these throws a UsageError. */
import { type Config, OPTIONS, type RegistryKind, type Settings, UsageError, wishOf } from './config.js';
import type { ConfigFile, Found, Given } from './config-sources.js';
import { makeNetworkConfig } from './control/allocation.js';
import { contains } from './control/cidr.js';
import { MTU_LEAST_IPV6 } from './control/underlay.js';
import { OF_ETCD } from './flannel-options.js';

/** Which registry, and what says so. */
export interface RegistryChoice {
  readonly kind: RegistryKind;
  readonly because: string;
}

/** Options that make sense in one mode only. */
export const ONLY_L3 = [
  'networks',
  'subnets',
  'subnetLengths',
  'subnetMins',
  'subnetMaxs',
  'subnetFile',
  'backend',
  'ipMasq',
  'ipMasqRandomFully',
  'forwardRules',
  'rulesResync',
  'blackholeRoute',
] as const;
const ONLY_L2 = [
  'vni',
  'bridge',
  'addresses',
  'sourcePorts',
  'macAge',
  'macTable',
  'macsPerPeer',
  'floodUnknown',
  'stormLimit',
] as const;

type CheckedByMode = Pick<Settings, 'mode' | 'registry' | 'sourceCheck' | 'macTable' | 'macsPerPeer'>;

export function checkMode({ mode, registry, sourceCheck, macTable, macsPerPeer }: CheckedByMode, found: Found): void {
  // Whether it is routed or switched with etcd is known when etcd has said it.
  if (registry !== 'etcd') {
    const [others, hint] =
      mode === 'l2'
        ? [ONLY_L3, 'is for --mode l3: layer 2 has no subnets']
        : [ONLY_L2, 'is for --mode l2: give that, or leave it out'];
    for (const key of others) refuse(found(OPTIONS[key].flag), hint);
  }
  if (mode === 'l2' && sourceCheck === 'strict') {
    throw new UsageError(
      `--${OPTIONS.sourceCheck.flag} strict: is for --mode l3: in layer 2 no sender owns addresses: expected peer or off`,
    );
  }
  if (macsPerPeer !== undefined && macsPerPeer > macTable) {
    throw new UsageError(
      `--${OPTIONS.macsPerPeer.flag} ${macsPerPeer}: expected at most --${OPTIONS.macTable.flag}, ${macTable}`,
    );
  }
}

export function checkMtu({ mtu, networks }: Config): void {
  const network = networks.find(({ family }) => family === 6);
  if (!network || mtu === undefined || mtu >= MTU_LEAST_IPV6) return;
  throw new UsageError(`--mtu ${mtu}: expected at least ${MTU_LEAST_IPV6}, which IPv6 --network ${network.text} needs`);
}

/** A mistake if it was given at all. */
export function refuse(given: Given | undefined, hint: string): void {
  if (given) throw new UsageError(`${given.where}: ${hint}`);
}

/** Options that mean nothing to the other registries. */
export const ONLY_ETCD = [...OF_ETCD, 'renewMargin'] as const;
/** What the configuration in etcd says, for all hosts alike. */
const SAID_BY_ETCD = [
  'mode',
  'networks',
  'subnets',
  'subnetLengths',
  'subnetMins',
  'subnetMaxs',
  'backend',
  'port',
  'vni',
  'bridge',
  'addresses',
] as const;
/** Belong together. */
const PAIRS = [
  ['etcdCertFile', 'etcdKeyFile'],
  ['etcdUsername', 'etcdPassword'],
] as const;

export function checkEtcd(
  settings: Settings,
  { because }: RegistryChoice,
  found: Found,
  file: ConfigFile,
  path: string | undefined,
): void {
  const hint = `the configuration in etcd says it, and etcd is the registry (${because}): leave it out`;
  for (const key of SAID_BY_ETCD) refuse(found(OPTIONS[key].flag), hint);
  if (file.networks) throw new UsageError(`config file ${path}: "networks": ${hint}`);
  for (const [key, other] of [
    ['peersFile', 'static'],
    ['registryPath', 'embedded'],
  ] as const) {
    refuse(found(OPTIONS[key].flag), `is for --registry ${other}, and etcd is the registry (${because})`);
  }
  for (const pair of PAIRS) {
    const given = pair.find((key) => settings[key] !== undefined);
    const missing = pair.find((key) => settings[key] === undefined);
    if (given && missing) refuse(found(OPTIONS[given].flag), `expected --${OPTIONS[missing].flag} with it`);
  }
}

const PEERS_OF_LAYER_2 = 'a JSON file, e.g. {"peers":[{"name":"b","address":"192.168.77.2"}]}';

export function checkStatic(config: Config): void {
  const missing = (option: { readonly flag: string; readonly expects: string }): never => {
    throw new UsageError(`--${option.flag}: missing: --registry static expects ${option.expects}`);
  };
  if (config.mode === 'l2') {
    if (config.peersFile === undefined) missing({ flag: OPTIONS.peersFile.flag, expects: PEERS_OF_LAYER_2 });
    return;
  }
  if (config.peersFile === undefined) missing(OPTIONS.peersFile);
  if (config.networks.length === 0) missing(OPTIONS.networks);
  if (config.subnets.length === 0) missing(OPTIONS.subnets);
  for (const key of ['subnetLengths', 'subnetMins', 'subnetMaxs'] as const) {
    if (config[key].length > 0) {
      throw new UsageError(
        `--${OPTIONS[key].flag}: is for --registry embedded: --subnet says it all with a peers file`,
      );
    }
  }
  for (const subnet of config.subnets) {
    const network = config.networks.find((candidate) => candidate.family === subnet.family);
    if (!network) throw new UsageError(`--subnet ${subnet.text}: there is no IPv${subnet.family} --network`);
    if (!contains(network, subnet)) {
      throw new UsageError(`--subnet ${subnet.text}: expected a part of --network ${network.text}`);
    }
  }
  for (const network of config.networks) {
    if (!config.subnets.some((subnet) => subnet.family === network.family)) {
      throw new UsageError(`--network ${network.text}: expected a --subnet of it for this host`);
    }
  }
}

export function checkEmbedded(config: Config): void {
  for (const key of ['subnets', 'peersFile'] as const) {
    if (config[key]?.length) {
      throw new UsageError(
        `--${OPTIONS[key].flag}: is for --registry static: the embedded registry finds it out by itself`,
      );
    }
  }
  if (config.mode === 'l2') return;
  if (config.networks.length === 0) {
    for (const key of ['subnetLengths', 'subnetMins', 'subnetMaxs'] as const) {
      if (config[key].length > 0) throw new UsageError(`--${OPTIONS[key].flag}: expected --network with it`);
    }
    return;
  }
  try {
    makeNetworkConfig(wishOf(config));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UsageError(error.message);
  }
}
