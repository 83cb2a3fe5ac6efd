/**
 * flannel's flags, by its names and with its defaults, so that weftd starts with the flags and the environment of a flanneld.
 * Rows of the table in config.ts; sources: flannel's main.go and its documentation.
 */
import { posix } from 'node:path';
import { type Address, parseAddress, parseHostAddress } from './control/cidr.js';
import { goPattern } from './go-regexp.js';
import {
  listOf,
  needed,
  nonEmpty,
  type Option,
  onePerFamily,
  optional,
  Refusal,
  truth,
  wholeNumber,
  wrong,
} from './option.js';

/** What flannel's flags say. */
export interface FlannelSettings {
  /** Interfaces of the underlay, by name or address: the first that exists. None of these three: that of --public-ip, or else the default route's. */
  readonly ifaces: readonly string[];
  /** An interface is ours if its address or its name matches, in the order of flannel. */
  readonly ifaceRegexes: readonly RegExp[];
  /** The interface that packets to this address leave by. */
  readonly ifaceCanReach: Address | undefined;
  /** Underlay addresses; empty: the interface's. */
  readonly publicIps: readonly Address[];
  readonly publicIpv6: Address | undefined;
  /** undefined: in the state directory; none with a static registry. */
  readonly subnetFile: string | undefined;
  /** `http://host:port` or `https://host:port`; at least one. */
  readonly etcdEndpoints: readonly string[];
  /** Cleaned as Go's path.Join does: without a slash at the end. Keys are this, a slash and a name. */
  readonly etcdPrefix: string;
  /** Certificate and key: both or none. */
  readonly etcdKeyFile: string | undefined;
  readonly etcdCertFile: string | undefined;
  readonly etcdCaFile: string | undefined;
  /** User and password: both or none. */
  readonly etcdUsername: string | undefined;
  readonly etcdPassword: string | undefined;
  /** Minutes before its end that a lease is renewed. */
  readonly renewMargin: number;
  readonly ipMasq: boolean;
  readonly ipMasqRandomFully: boolean;
  /** Seconds between looks at the host rules. */
  readonly rulesResync: number;
  /** undefined: with etcd only. */
  readonly forwardRules: boolean | undefined;
  readonly blackholeRoute: boolean;
  readonly healthzIp: string;
  /** 0: none. */
  readonly healthzPort: number;
  /** klog's. */
  readonly verbosity: number;
  readonly kubeSubnetMgr: undefined;
  readonly kubeApiUrl: undefined;
  readonly kubeConfigFile: undefined;
  readonly kubeAnnotationPrefix: undefined;
  readonly netConfigPath: undefined;
  readonly setNodeNetworkUnavailable: undefined;
  readonly vmodule: undefined;
  readonly logBacktraceAt: undefined;
}

/** Settings that have no value: they are there to be refused, or to be taken and ignored. */
export const NOTHING_SAID = [
  'kubeSubnetMgr',
  'kubeApiUrl',
  'kubeConfigFile',
  'kubeAnnotationPrefix',
  'netConfigPath',
  'setNodeNetworkUnavailable',
  'vmodule',
  'logBacktraceAt',
] as const;

/** Settings that make etcd the registry when none is named. */
export const OF_ETCD = [
  'etcdEndpoints',
  'etcdPrefix',
  'etcdKeyFile',
  'etcdCertFile',
  'etcdCaFile',
  'etcdUsername',
  'etcdPassword',
] as const;

type Underlay = 'ifaces' | 'ifaceRegexes' | 'ifaceCanReach' | 'publicIps' | 'publicIpv6' | 'subnetFile';
type Rows<K extends keyof FlannelSettings> = { readonly [key in K]: Option<FlannelSettings[key]> };

const TRUTH = 'true or false';
const FILE = 'a file';
const ETCD = "etcd, in flannel's keys:";
const HOST = 'Host rules and health, as flannel has them:';
const IGNORED = 'Flags of flannel that are refused (Kubernetes is not supported yet), or do little or nothing:';

/** A name that the kernel takes for an interface. */
export const interfaceName = (text: string): string => (/^[^\s/:-][^\s/:]{0,14}$/.test(text) ? text : wrong());

const interfaceNameOrAddress = (text: string): string =>
  /^[\d.]+$|:/.test(text) ? parseHostAddress(text).text : interfaceName(text);

const list = (text: string): string[] => text.split(',').map((item) => item.trim());

function addressOfFamily6(text: string): Address {
  const address = parseHostAddress(text);
  return address.family === 6 ? address : wrong(`"${text}" is an IPv4 address`);
}

function endpoints(text: string): string[] {
  if (text.includes('@')) wrong('"…@…": user and password are --etcd-username and --etcd-password'); // and are not for the log
  return list(text).map(endpoint);
}

/** `host:port` too, which etcd's own clients take. */
function endpoint(text: string): string {
  const [, scheme = '', host = '', port = ''] =
    /^(https?:\/\/)?(\[[^\]]+\]|[\w.-]+):(\d{1,5})\/?$/i.exec(text) ?? wrong(`"${text}" is not an endpoint`);
  if (host.startsWith('[') && parseAddress(host.slice(1, -1)).family !== 6) wrong(`"${host}" is not an IPv6 address`);
  if (/^[\d.]+$/.test(host)) parseAddress(host);
  if (Number(port) < 1 || Number(port) > 65_535) wrong(`"${text}" has no port from 1 to 65535`);
  return `${scheme.toLowerCase()}${host}:${Number(port)}`;
}

/** As Go's path.Join cleans it; `/` becomes nothing. */
const keyPrefix = (text: string): string => posix.normalize(nonEmpty(text)).replace(/\/$/, '');

const healthHost = (text: string): string => (text === 'localhost' ? '127.0.0.1' : parseAddress(text).text);

const MARGIN = { least: 1, most: 1439 };

function margin(text: string): number {
  const minutes = /^[+-]?\d{1,15}$/.test(text) ? Number(text) : wrong();
  if (minutes >= MARGIN.least && minutes <= MARGIN.most) return minutes;
  throw new Refusal('RENEW_MARGIN', `expected minutes, ${MARGIN.least} to ${MARGIN.most}`);
}

/** For what Weft does not do: only flannel's own default is taken. */
const onlyDefault =
  (isDefault: (text: string) => boolean) =>
  (text: string | undefined): undefined => {
    if (text === undefined || isDefault(text)) return undefined;
    throw new Refusal('NOT_SUPPORTED', 'Weft does not do Kubernetes yet: leave it out, or run flanneld here');
  };

const ignored = (text: string | undefined): undefined => {
  if (text !== undefined) nonEmpty(text);
};

/** The underlay, and where to write what others read. */
export const UNDERLAY_OPTIONS: Rows<Underlay> = {
  ifaces: {
    flag: 'iface',
    flannel: true,
    value: 'name,…',
    list: true,
    mayBeEmpty: true,
    default: undefined,
    expects: 'names or addresses of interfaces, e.g. eth0 or 192.168.77.1',
    check: listOf((text) => list(text).map(interfaceNameOrAddress)),
    help: "interface to the other hosts, by name or address; of several the first that exists (default: the one with --public-ip, or the default route's)",
    example: '--iface eth1',
  },
  ifaceRegexes: {
    flag: 'iface-regex',
    flannel: true,
    value: 'pattern',
    list: true,
    separator: '\n',
    mayBeEmpty: true,
    default: undefined,
    expects: 'a regular expression, e.g. ^(eth|ens) or 192\\.168\\.77\\.',
    check: listOf((text) => text.split('\n').map(goPattern)),
    help: 'where no --iface exists: the interface whose address matches, or else whose name does; may be given several times',
    example: '--iface-regex ^ens',
  },
  ifaceCanReach: {
    flag: 'iface-can-reach',
    flannel: true,
    value: 'address',
    mayBeEmpty: true,
    default: undefined,
    expects: 'an address, e.g. 192.168.77.2',
    check: optional(parseHostAddress),
    help: 'where neither of these says it: the interface that the route to this address leaves by',
    example: '--iface-can-reach 192.168.77.2',
  },
  publicIps: {
    flag: 'public-ip',
    flannel: true,
    value: 'address,…',
    list: true,
    mayBeEmpty: true,
    default: undefined,
    expects: 'at most one IPv4 and one IPv6 address of this host, e.g. 192.168.77.1,2001:db8::1',
    check: listOf(onePerFamily(parseHostAddress)),
    help: "address that peers send to (default: the interface's, IPv4 if it has one); one of each family to have both underlays",
    example: '--public-ip 192.168.77.1',
  },
  publicIpv6: {
    flag: 'public-ipv6',
    flannel: true,
    value: 'address',
    mayBeEmpty: true,
    default: undefined,
    expects: 'an IPv6 address of this host, e.g. 2001:db8::1',
    check: optional(addressOfFamily6),
    help: 'the same as an IPv6 address in --public-ip',
    example: '--public-ipv6 2001:db8::1',
  },
  subnetFile: {
    flag: 'subnet-file',
    flannel: true,
    value: 'file',
    default: undefined,
    expects: FILE,
    check: optional(nonEmpty),
    help: 'l3: where to write our subnet and MTU for others to read, as flannel does (default: subnet.env in --state-dir; etcd: /run/flannel/subnet.env; none with a peers file)',
    example: '--subnet-file /run/flannel/subnet.env',
  },
};

export const FLANNEL_OPTIONS: Rows<Exclude<keyof FlannelSettings, Underlay>> = {
  etcdEndpoints: {
    flag: 'etcd-endpoints',
    flannel: true,
    group: ETCD,
    value: 'url,…',
    list: true,
    lastCounts: true,
    default: 'http://127.0.0.1:4001,http://127.0.0.1:2379',
    expects: 'http:// or https:// URLs with a port, e.g. https://10.0.0.1:2379,https://10.0.0.2:2379',
    check: needed(endpoints),
    help: "the cluster's members; certificates are used with https only, as in flannel",
    example: '--etcd-endpoints https://10.0.0.1:2379,https://10.0.0.2:2379',
  },
  etcdPrefix: {
    flag: 'etcd-prefix',
    flannel: true,
    group: ETCD,
    value: 'key',
    default: '/coreos.com/network',
    expects: 'a key, e.g. /coreos.com/network',
    check: needed(keyPrefix),
    help: 'where the keys are: config, and subnets/ with the leases',
    example: '--etcd-prefix /kube-centos/network',
  },
  etcdCertFile: {
    flag: 'etcd-certfile',
    flannel: true,
    group: ETCD,
    value: 'file',
    mayBeEmpty: true,
    default: undefined,
    expects: FILE,
    check: optional(nonEmpty),
    help: 'our certificate, PEM; goes with --etcd-keyfile',
    example: '--etcd-certfile /etc/etcd/client.pem',
  },
  etcdKeyFile: {
    flag: 'etcd-keyfile',
    flannel: true,
    group: ETCD,
    value: 'file',
    mayBeEmpty: true,
    default: undefined,
    expects: FILE,
    check: optional(nonEmpty),
    help: 'its private key, PEM',
    example: '--etcd-keyfile /etc/etcd/client-key.pem',
  },
  etcdCaFile: {
    flag: 'etcd-cafile',
    flannel: true,
    group: ETCD,
    value: 'file',
    mayBeEmpty: true,
    default: undefined,
    expects: FILE,
    check: optional(nonEmpty),
    help: "the authority that etcd's certificates are from, PEM (default: those of the system)",
    example: '--etcd-cafile /etc/etcd/ca.pem',
  },
  etcdUsername: {
    flag: 'etcd-username',
    flannel: true,
    group: ETCD,
    value: 'name',
    mayBeEmpty: true,
    default: undefined,
    expects: 'a name',
    check: optional(nonEmpty),
    help: 'who we are to etcd; goes with --etcd-password',
    example: '--etcd-username flannel',
  },
  etcdPassword: {
    flag: 'etcd-password',
    flannel: true,
    group: ETCD,
    value: 'text',
    mayBeEmpty: true,
    default: undefined,
    expects: 'a password',
    check: optional(nonEmpty),
    help: 'its password; everybody on this host can read the arguments of a process, so rather FLANNELD_ETCD_PASSWORD',
    example: '--etcd-password secret',
  },
  renewMargin: {
    flag: 'subnet-lease-renew-margin',
    flannel: true,
    group: ETCD,
    value: 'minutes',
    default: '60',
    expects: `minutes, ${MARGIN.least} to ${MARGIN.most}`,
    check: needed(margin),
    help: 'how long before its end our lease is renewed',
    example: '--subnet-lease-renew-margin 120',
  },
  ipMasq: {
    flag: 'ip-masq',
    flannel: true,
    group: HOST,
    default: 'false',
    expects: TRUTH,
    check: needed(truth),
    help: 'masquerade what goes from the overlay to elsewhere (l3)',
    example: '--ip-masq',
  },
  ipMasqRandomFully: {
    flag: 'ip-masq-fully-random-disable',
    flannel: true,
    group: HOST,
    default: 'false',
    expects: TRUTH,
    check: needed((text) => !truth(text)),
    help: 'without --random-fully in the rules of --ip-masq',
    example: '--ip-masq-fully-random-disable',
  },
  forwardRules: {
    flag: 'iptables-forward-rules',
    flannel: true,
    group: HOST,
    default: undefined,
    expects: TRUTH,
    check: optional(truth),
    help: 'accept what is forwarded to and from the overlay (l3; default: true with etcd, else false)',
    example: '--iptables-forward-rules=false',
  },
  rulesResync: {
    flag: 'iptables-resync',
    flannel: true,
    group: HOST,
    value: 'seconds',
    default: '5',
    expects: 'seconds, 1 to 1000000',
    check: needed(wholeNumber(1, 1_000_000)),
    help: 'how often these rules are looked at, and put back when they are gone (l3)',
    example: '--iptables-resync 60',
  },
  blackholeRoute: {
    flag: 'ip-blackhole-route',
    flannel: true,
    group: HOST,
    default: 'false',
    expects: TRUTH,
    check: needed(truth),
    help: 'drop what goes to addresses of our subnet that nobody has, instead of sending it back (l3)',
    example: '--ip-blackhole-route',
  },
  healthzIp: {
    flag: 'healthz-ip',
    flannel: true,
    group: HOST,
    value: 'address',
    mayBeEmpty: true,
    default: '0.0.0.0',
    expects: 'an address of this host, e.g. 127.0.0.1',
    check: needed(healthHost),
    help: 'where to serve /healthz and /readyz',
    example: '--healthz-ip 127.0.0.1',
  },
  healthzPort: {
    flag: 'healthz-port',
    flannel: true,
    group: HOST,
    value: 'number',
    default: '0',
    expects: 'a port, 1 to 65535, or 0 for none',
    check: needed(wholeNumber(0, 65_535)),
    help: 'and at which port; 0: nowhere',
    example: '--healthz-port 8471',
  },
  verbosity: {
    flag: 'v',
    flannel: true,
    group: IGNORED,
    value: 'number',
    default: '0',
    expects: 'a number, e.g. 0',
    check: needed((text) => (/^-?\d{1,10}$/.test(text) ? Number(text) : wrong())),
    help: '1 and more: --log-level debug, unless that says otherwise',
    example: '--v 1',
  },
  vmodule: {
    flag: 'vmodule',
    flannel: true,
    group: IGNORED,
    value: 'text',
    mayBeEmpty: true,
    default: undefined,
    expects: 'any text',
    check: ignored,
    help: 'no effect',
    example: '--vmodule main=2',
  },
  logBacktraceAt: {
    flag: 'log_backtrace_at',
    flannel: true,
    group: IGNORED,
    value: 'text',
    mayBeEmpty: true,
    default: undefined,
    expects: 'any text',
    check: ignored,
    help: 'no effect',
    example: '--log_backtrace_at main.go:1',
  },
  kubeSubnetMgr: {
    flag: 'kube-subnet-mgr',
    flannel: true,
    group: IGNORED,
    default: 'false',
    expects: TRUTH,
    check: onlyDefault((text) => !truth(text)),
    help: 'refused: leases from Kubernetes instead of etcd',
    example: '--kube-subnet-mgr=false',
  },
  kubeApiUrl: {
    flag: 'kube-api-url',
    flannel: true,
    group: IGNORED,
    value: 'url',
    mayBeEmpty: true,
    default: undefined,
    expects: 'nothing',
    check: onlyDefault((text) => text === ''),
    help: 'refused',
    example: '--kube-api-url=',
  },
  kubeConfigFile: {
    flag: 'kubeconfig-file',
    flannel: true,
    group: IGNORED,
    value: 'file',
    mayBeEmpty: true,
    default: undefined,
    expects: 'nothing',
    check: onlyDefault((text) => text === ''),
    help: 'refused',
    example: '--kubeconfig-file=',
  },
  kubeAnnotationPrefix: {
    flag: 'kube-annotation-prefix',
    flannel: true,
    group: IGNORED,
    value: 'text',
    default: 'flannel.alpha.coreos.com',
    expects: 'flannel.alpha.coreos.com',
    check: onlyDefault((text) => text === 'flannel.alpha.coreos.com'),
    help: 'refused, but for the default',
    example: '--kube-annotation-prefix flannel.alpha.coreos.com',
  },
  netConfigPath: {
    flag: 'net-config-path',
    flannel: true,
    group: IGNORED,
    value: 'file',
    default: '/etc/kube-flannel/net-conf.json',
    expects: '/etc/kube-flannel/net-conf.json',
    check: onlyDefault((text) => text === '/etc/kube-flannel/net-conf.json'),
    help: 'refused, but for the default',
    example: '--net-config-path /etc/kube-flannel/net-conf.json',
  },
  setNodeNetworkUnavailable: {
    flag: 'set-node-network-unavailable',
    flannel: true,
    group: IGNORED,
    default: 'true',
    expects: TRUTH,
    check: onlyDefault(truth),
    help: 'refused, but for the default',
    example: '--set-node-network-unavailable=true',
  },
};
