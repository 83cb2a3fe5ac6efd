/**
 * Blackhole routes for our own subnets: what is sent to an address there that nobody has ends here. Without one, and without a
 * bridge that has the subnet, it would follow the route of the whole network, out into the overlay or to the default router,
 * and might come back.
 *
 * Its metric is worse than that of any route that an interface brings with it, so a bridge with the subnet wins, whichever was
 * first. (flanneld gives none: in IPv4 its route wins over that of a bridge that comes later. So one of its is replaced.)
 */
import * as v from 'valibot';
import { ipBatch, ipRead } from './ip.js';
import { PROTOCOL } from './routes.js';
import type { Keeper, RulePrefix } from './rules.js';

const METRIC = 1_000_000;

/** Metric of a route that was made without one; IPv4 says nothing then. */
const NO_METRIC: Readonly<Record<4 | 6, number>> = { 4: 0, 6: 1024 };

const schema = v.array(
  v.object({ dst: v.string(), protocol: v.optional(v.string(), 'boot'), metric: v.optional(v.number(), 0) }),
);

export interface BlackholeOptions {
  readonly families: readonly (4 | 6)[];
  readonly subnets: readonly RulePrefix[];
  /** Whether a prefix (`address/length`) is in our networks: others there that an earlier run left go. */
  readonly isOurs: (prefix: string) => boolean;
}

export class BlackholeRoutes implements Keeper {
  readonly what = 'blackhole routes';
  readonly #options: BlackholeOptions;

  constructor(options: BlackholeOptions) {
    this.#options = options;
  }

  async ensure(): Promise<boolean> {
    const { families, subnets, isOurs } = this.#options;
    const commands: string[] = [];
    for (const family of families) {
      const wanted = subnets.filter((subnet) => subnet.family === family).map(({ text }) => text);
      const have = (await ipRead(schema, [`-${family}`, 'route', 'show', 'type', 'blackhole'])) ?? [];
      const routes = have.map(({ dst, ...rest }) => ({ ...rest, dst: withLength(dst, family) }));
      const ours = routes.filter(({ dst, protocol }) => protocol === String(PROTOCOL) && isOurs(dst));
      const right = ours.filter(({ dst, metric }) => metric === METRIC && wanted.includes(dst));
      const flannels = routes.filter(
        ({ dst, protocol, metric }) => wanted.includes(dst) && protocol === 'boot' && metric === NO_METRIC[family],
      );
      const missing = wanted.filter((text) => !right.some(({ dst }) => dst === text));
      const stale = [...ours.filter((route) => !right.includes(route)), ...flannels];
      commands.push(
        ...missing.map((text) => `route replace blackhole ${text} metric ${METRIC} proto ${PROTOCOL}`),
        ...stale.map(({ dst, metric, protocol }) => `route del blackhole ${dst} metric ${metric} proto ${protocol}`),
      );
    }
    if (commands.length > 0) await ipBatch(commands);
    return commands.length > 0;
  }
}

/** ip leaves the length out where it is that of an address, and has a word for the shortest. */
function withLength(dst: string, family: 4 | 6): string {
  if (dst === 'default') return family === 4 ? '0.0.0.0/0' : '::/0';
  return dst.includes('/') ? dst : `${dst}/${family === 4 ? 32 : 128}`;
}
