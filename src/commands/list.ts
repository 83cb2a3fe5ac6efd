/** The commands of `weft`, in the order of its help. Each is loaded when it is needed: `weft status` carries no LMDB. */
import type { WeftCommand } from './command.js';

type Environment = Readonly<Record<string, string | undefined>>;

/** One that reads its arguments by itself, because weftd's table of options, or flannel's script, says how. */
export interface Standalone {
  /** Resolves to the text to print. Rejects as WeftCommand.run. */
  readonly standalone: (argv: readonly string[], env: Environment) => Promise<string>;
  /** Its options, for the shell. */
  readonly flags: () => Promise<readonly string[]>;
}

export type Listed = { readonly name: string; readonly summary: string; readonly group: string } & (
  | { readonly load: () => Promise<WeftCommand<object>> }
  | Standalone
);

const LOOK = 'Look inside';
const WHY = 'Find out why';
const CHANGE = 'Change and set up';

export const COMMANDS: readonly Listed[] = [
  {
    name: 'status',
    summary: 'how the daemon is, on one screen',
    group: LOOK,
    load: async () => (await import('./status.js')).status,
  },
  {
    name: 'peers',
    summary: 'the other hosts: address, path MTU, traffic',
    group: LOOK,
    load: async () => (await import('./peers.js')).peers,
  },
  {
    name: 'routes',
    summary: 'which peer has which prefix',
    group: LOOK,
    load: async () => (await import('./routes.js')).routes,
  },
  {
    name: 'macs',
    summary: 'layer 2: which MAC is behind which peer',
    group: LOOK,
    load: async () => (await import('./macs.js')).macs,
  },
  {
    name: 'neighbours',
    summary: 'layer 2: addresses whose MAC is known',
    group: LOOK,
    load: async () => (await import('./neighbours.js')).neighbours,
  },
  {
    name: 'leases',
    summary: 'what the registry says: who has which subnet',
    group: LOOK,
    load: async () => (await import('./leases.js')).leases,
  },
  {
    name: 'offloads',
    summary: 'which offloads are in use',
    group: LOOK,
    load: async () => (await import('./offloads.js')).offloads,
  },
  {
    name: 'top',
    summary: 'live: traffic by peer, drops by reason',
    group: LOOK,
    load: async () => (await import('./top.js')).top,
  },
  {
    name: 'drops',
    summary: 'what was dropped, by reason',
    group: WHY,
    load: async () => (await import('./drops.js')).drops,
  },
  {
    name: 'explain',
    summary: 'what becomes of a packet, and which table entry decides',
    group: WHY,
    load: async () => (await import('./explain.js')).explain,
  },
  {
    name: 'ping',
    summary: 'whether a peer is reached, and how large packets may be',
    group: WHY,
    load: async () => (await import('./ping.js')).ping,
  },
  {
    name: 'capture',
    summary: 'packets on both sides of the engine, with what became of them',
    group: WHY,
    load: async () => (await import('./capture.js')).capture,
  },
  {
    name: 'decode',
    summary: 'a capture file as readable lines',
    group: WHY,
    load: async () => (await import('./decode.js')).decode,
  },
  {
    name: 'log',
    summary: 'the level of the log, changed while it runs',
    group: CHANGE,
    load: async () => (await import('./log.js')).log,
  },
  {
    name: 'init',
    summary: 'make the embedded registry of this machine',
    group: CHANGE,
    standalone: async (argv, env) => (await import('../init.js')).init(argv, env),
    flags: async () => {
      const [{ INIT }, { OPTIONS }] = await Promise.all([import('../help.js'), import('../config.js')]);
      return INIT.keys.map((key) => `--${OPTIONS[key].flag}`);
    },
  },
  {
    name: 'docker-opts',
    summary: "write options for Docker's daemon from what weftd found out",
    group: CHANGE,
    standalone: async (argv, env) => (await import('../docker-opts.js')).dockerOpts(argv, env),
    flags: async () => ['-f', '-d', '-i', '-c', '-m', '-k'],
  },
  {
    name: 'completion',
    summary: 'completion for bash, zsh and fish',
    group: CHANGE,
    load: async () => (await import('./completion.js')).completion,
  },
];

export const commandNamed = (name: string): Listed | undefined => COMMANDS.find((one) => one.name === name);
