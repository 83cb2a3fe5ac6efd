/**
 * subnet.env as flannel writes it: what CNI plugins, mk-docker-opts.sh and people's scripts read, and where the next start
 * finds the subnet it had. It is replaced by rename, so a reader sees the old one or the new one, whole.
 */
import { randomUUID } from 'node:crypto';
import { open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import ipaddr from 'ipaddr.js';
import { SetupError } from '../io/setup-error.js';
import { ensureDirectory } from './directory.js';

/** A prefix as control has it. */
interface Cidr {
  readonly family: 4 | 6;
  /** `address/length` */
  readonly text: string;
  readonly bytes: Uint8Array;
  readonly length: number;
}

export interface SubnetFile {
  /** At most one of each family. */
  readonly networks: readonly Cidr[];
  readonly subnets: readonly Cidr[];
  readonly mtu: number;
  readonly ipMasq: boolean;
}

const FAMILIES = [
  [4, 'FLANNEL_'],
  [6, 'FLANNEL_IPV6_'],
] as const;

/** Readers are other users' programs, whatever umask weftd was started with. */
const MODE = 0o644;

/**
 * Replaces the file, and makes its directory if need be. One that says so already is left: a restart needs no room on the disk.
 * Rejects with a SetupError; the file is then as it was.
 */
export async function writeSubnetFile(path: string, content: SubnetFile): Promise<void> {
  const wanted = textFor(content);
  if ((await readFile(path, 'utf8').catch(() => undefined)) === wanted) return;
  const temporary = `${path}.${randomUUID()}`; // two daemons may be told one file
  try {
    ensureDirectory(dirname(path));
    await writeDurably(temporary, wanted);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw new SetupError(
      'SUBNET_FILE',
      `cannot write subnet file ${path} (${reasonOf(error)}): make it writable, or choose another with --subnet-file`,
    );
  }
}

/** Flushed, or a crash of the machine could leave the new name with nothing in it. */
async function writeDurably(path: string, text: string): Promise<void> {
  const file = await open(path, 'wx', MODE);
  try {
    await file.chmod(MODE);
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

function textFor({ networks, subnets, mtu, ipMasq }: SubnetFile): string {
  const lines: string[] = [];
  for (const [family, prefix] of FAMILIES) {
    const network = networks.find((item) => item.family === family);
    const subnet = subnets.find((item) => item.family === family);
    if (network) lines.push(`${prefix}NETWORK=${network.text}`);
    if (subnet) lines.push(`${prefix}SUBNET=${firstAddress(subnet)}/${subnet.length}`);
  }
  return `${[...lines, `FLANNEL_MTU=${mtu}`, `FLANNEL_IPMASQ=${ipMasq}`].join('\n')}\n`;
}

/** The first address after the base, for the host's bridge; a subnet of one address has that one only. */
function firstAddress({ bytes, length }: Cidr): string {
  const first = [...bytes];
  if (length < bytes.length * 8) first[first.length - 1] += 1;
  return ipaddr.fromByteArray(first).toString();
}

/**
 * The subnets and networks that the file names, IPv4 first, as `parse` takes them (`10.5.1.1/24`, an address in the subnet).
 * undefined when there are no subnets: that is no reason to stop, but if there is a file, `warn` hears why it is of no use.
 */
export async function readSubnetFile<T>(
  path: string,
  parse: (text: string) => T,
  warn: (reason: string) => void = () => {},
): Promise<{ readonly subnets: readonly T[]; readonly networks: readonly T[] } | undefined> {
  try {
    const text = await readFile(path, 'utf8');
    const valuesOf = (what: string): T[] =>
      FAMILIES.flatMap(([, prefix]) => {
        const value = new RegExp(`^${prefix}${what}=(.*)$`, 'm').exec(text)?.[1].trim();
        return value ? [parse(value)] : [];
      });
    const subnets = valuesOf('SUBNET');
    if (subnets.length > 0) return { subnets, networks: valuesOf('NETWORK') };
    warn(`subnet file ${path} names no subnet`);
  } catch (error) {
    if (!isAbsent(error)) warn(`subnet file ${path} is of no use: ${reasonOf(error)}`);
  }
  return undefined;
}

/** There is no file of that name, or can be none: whoever writes it will say so. */
const isAbsent = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && ['ENOENT', 'ENOTDIR', 'EISDIR'].includes(String(error.code));

/** `EACCES: permission denied` of a system error, which goes on with the call and its path. */
const reasonOf = (error: unknown): string => {
  const text = error instanceof Error ? error.message : String(error);
  return (/^E[A-Z0-9]+: [^,]*/.exec(text)?.[0] ?? text).replace(/\s+/g, ' ').trim();
};
