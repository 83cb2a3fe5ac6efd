/** weft-udp while `weft capture` runs on every host, to show what looking inside costs. Nothing of it is kept: /dev/null is its file. */
import { fileURLToPath } from 'node:url';
import type { Daemon, Host } from '../hosts.js';
import type { Subject } from './subject.js';

const WEFT = fileURLToPath(new URL('../../src/cli.js', import.meta.url));

/** What is captured, by the subject's name. */
const WATCHES = {
  /** All packets on both sides of the engine, whole. */
  'capture-all': [],
  /** Only their headers, as one looks at what goes where. */
  'capture-headers': ['--snaplen', '128'],
  /** As one looks for the cause of a loss: of the packets that go well, nothing is kept. */
  'capture-drops': ['--verdict', 'drop'],
} as const satisfies Record<string, readonly string[]>;

export type WatchedName = keyof typeof WATCHES;
export const WATCHED = Object.keys(WATCHES) as readonly WatchedName[];

/** The daemons of `subject`, which must have been started, watched while it is that one's turn. */
export function watched(name: WatchedName, subject: Subject, hosts: readonly Host[]): Subject {
  let captures: Daemon[] = [];
  const args = [WEFT, 'capture', '-w', '/dev/null', ...WATCHES[name]];
  return {
    ...subject,
    name,
    start: async () => {},
    async begin() {
      captures = hosts.map(({ ns, letter }) => ns.start(`${name}-${letter}`, process.execPath, args));
      for (const capture of captures) await capture.ready('weft: capturing');
    },
    async end() {
      for (const capture of captures) await capture.stop('SIGINT');
      captures = [];
    },
  };
}
