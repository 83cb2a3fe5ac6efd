/** The two programs that read the table of options, and their help. */
import { Command, Option as CommanderOption } from 'commander';
import { OPTION_KEYS, OPTIONS, type Option, type Settings } from './config.js';

/** A program by its options; both of them read the same table. */
export interface Program {
  readonly name: string;
  readonly description: string;
  readonly keys: readonly (keyof Settings)[];
  readonly examples: string;
}

export const DAEMON: Program = {
  name: 'weftd',
  description: 'Carries IP packets between hosts in UDP, or Ethernet frames in VXLAN, at the speed of the kernel.',
  keys: OPTION_KEYS,
  get examples() {
    return EXAMPLES;
  },
};

export const INIT: Program = {
  name: 'weft init',
  description:
    'Makes the embedded registry of this machine and writes its configuration, before the first daemon does.',
  keys: ['mode', 'registryPath', 'networks', 'subnetLengths', 'subnetMins', 'subnetMaxs', 'backend', 'port'],
  examples: `
  # weft init --network 10.5.0.0/16 --subnet-len 26
  # weft init --network 10.5.0.0/16,fd00:5::/48 --registry-path /srv/weft/registry
  # weft init --mode l2

Said again, it changes nothing; a registry that says otherwise is left as it is.
Exit codes: 0 it is so now, 1 it could not be made so, 2 wrong usage.
`,
};

export function helpOf(program: Program): string {
  const command = new Command(program.name)
    .description(program.description)
    .configureHelp({ helpWidth: 100 })
    .helpOption('-h, --help', 'print this and exit')
    .addOption(new CommanderOption('-V, --version', 'print the version and exit'));
  for (const key of program.keys) {
    const { flag, value, group, default: initial, help, example }: Option<unknown> = OPTIONS[key];
    const notes = [
      initial === undefined || value === undefined ? '' : `default: ${initial}`,
      example === `--${flag}` ? '' : `e.g. ${example}`,
    ].filter(Boolean);
    const name = value === undefined ? `--${flag}` : `--${flag} <${value}>`;
    const option = new CommanderOption(name, notes.length > 0 ? `${help} (${notes.join('; ')})` : help);
    command.addOption(group === undefined ? option : option.helpGroup(group));
  }
  return command.helpInformation() + program.examples;
}

const EXAMPLES = `
Flags are written as for flanneld: -iface eth0, -iface=eth0, --iface eth0 or --iface=eth0; a switch is --ip-masq or
--ip-masq=false. Each can also be given as WEFT_<FLAG> in the environment (WEFT_SOURCE_CHECK=strict), flannel's own as
FLANNELD_<FLAG> too (FLANNELD_IFACE=eth0), or in a JSON file; a flag goes before WEFT_…, that before FLANNELD_…, that before
the file.

In the place of flanneld on an etcd cluster, with its flags; the networks and the backend are what etcd says:
  # etcdctl get --print-value-only /coreos.com/network/config
  {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}
  # systemctl stop flanneld
  # weftd -etcd-endpoints=http://10.0.0.1:2379,http://10.0.0.2:2379 -iface=eth0 -ip-masq
  # cat /run/flannel/subnet.env
  # weft docker-opts
or with its environment, FLANNELD_ETCD_ENDPOINTS and so on:
  # weftd
or, where flanneld is told nothing of etcd, because that is on the same host:
  # weftd --registry etcd -ip-masq

The hosts of one machine (network namespaces) find each other and their subnets by themselves; the first says the network:
  a# weftd --network 10.5.0.0/16 --iface eth0
  b# weftd --iface eth0
  b# cat /var/lib/weft/192.168.77.2/subnet.env
  FLANNEL_NETWORK=10.5.0.0/16
  FLANNEL_SUBNET=10.5.42.1/24
  FLANNEL_MTU=1472
  FLANNEL_IPMASQ=false

Several machines, 192.168.77.1 and 192.168.77.2, with one peers file on both:
  {"peers":[{"name":"a","address":"192.168.77.1","subnets":["10.5.1.0/24"]},
            {"name":"b","address":"192.168.77.2","subnets":["10.5.2.0/24"]}]}
  a# weftd --network 10.5.0.0/16 --subnet 10.5.1.0/24 --iface eth0 --peers /etc/weft/peers.json
  b# weftd --network 10.5.0.0/16 --subnet 10.5.2.0/24 --iface eth0 --peers /etc/weft/peers.json
  a# ping 10.5.2.0

Layer 2, an Ethernet segment over the hosts of one machine; the device weft42 has an address, or is in a bridge:
  a# weftd --mode l2 --vni 42 --iface eth0 --address 10.7.0.1/24
  b# weftd --mode l2 --vni 42 --iface eth0 --bridge br0

Several machines, one of them with the kernel's own vxlan device (what is behind it may be named, or is learned):
  {"peers":[{"name":"a","address":"192.168.77.1"},{"name":"b","address":"192.168.77.2","vnis":[42]},
            {"name":"k","address":"192.168.77.3","vnis":[42],"macs":["02:00:00:00:00:05"],
             "neighbours":[{"address":"10.7.0.6","mac":"02:00:00:00:00:06","router":true}]}]}
  a# weftd --mode l2 --vni 42 --iface eth0 --peers /etc/weft/peers.json
  k# ip link add vxlan42 type vxlan id 42 dstport 4789 local 192.168.77.3 dev eth0
  k# bridge fdb append 00:00:00:00:00:00 dev vxlan42 dst 192.168.77.1

Two networks in one daemon:
  # cat /etc/weft/weftd.json
  {"mode":"l2","networks":[{"vni":42,"bridge":"br0"},
                           {"vni":43,"device":"lab","address":["10.8.0.1/24","fd08::1/64"],"mtu":1400}]}
  # weftd --config /etc/weft/weftd.json

From a file, with metrics for others than this host:
  # cat /etc/weft/weftd.json
  {"network":["10.5.0.0/16","fd00:5::/48"],"subnet-len":["24","64"],
   "source-check":"strict","metrics-address":"192.168.77.1:9469"}
  # weftd --config /etc/weft/weftd.json
  # curl -s http://192.168.77.1:9469/metrics

A peer may also have "port", "mtu" (what the underlay carries to it, in bytes) and, in layer 3, "ecn": true (it is weft
as well). In layer 2 it is in all our networks unless "vnis" says which.
Exit codes: 0 stopped by a signal, or our lease was revoked, 1 could not set up or failed, 2 wrong usage.
`;
