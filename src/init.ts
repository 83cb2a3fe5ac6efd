/** `weft init`: makes the embedded registry of this machine before the first daemon does. */
import { parseInit } from './command-line.js';
import { UsageError, wishOf } from './config.js';

/** Does what the arguments ask for; the text to print. Throws a UsageError or a SetupError. */
export async function init(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): Promise<string> {
  const asked = parseInit(argv, env);
  if (asked.kind === 'help') return asked.text;
  if (asked.kind === 'version') throw new UsageError('weft init has no --version: weftd --version says it');
  const { config } = asked;
  const { EmbeddedStore, PATIENCE } = await import('./control/embedded-store.js');
  const { systemClock } = await import('./host/clock.js');
  const store = await EmbeddedStore.open(config.registryPath, systemClock(), true, PATIENCE.first);
  try {
    const { config: found, created } = await store.configure(wishOf(config), true);
    const pools = found.pools.map(
      ({ network, subnetLength, min, max }) =>
        `${network.text}, subnets ${min.text}/${subnetLength} to ${max.text}/${subnetLength}`,
    );
    const backend = `${found.backend.type} port ${found.backend.port}`;
    return `registry ${config.registryPath}: ${created ? 'created' : 'already so'}: ${[...pools, backend].join('; ')}\n`;
  } finally {
    await store.close();
  }
}
