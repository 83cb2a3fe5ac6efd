#!/usr/bin/env node
/** weft: what an operator does beside running weftd. Exit codes: 0 done, 1 failed, 2 wrong usage. */
import { writeSync } from 'node:fs';
import { parseInit } from './command-line.js';
import { UsageError, wishOf } from './config.js';
import { dockerOpts } from './docker-opts.js';
import { SetupError } from './io/setup-error.js';

const HELP = `Usage: weft <command> [options]

Commands:
  init          make the embedded registry of this machine (weft init --help)
  docker-opts   write options for Docker's daemon from what weftd found out (weft docker-opts --help)

The daemon is weftd (weftd --help).
`;

async function init(argv: readonly string[]): Promise<string> {
  const asked = parseInit(argv, process.env);
  if (asked.kind === 'help') return asked.text;
  if (asked.kind === 'version') throw new UsageError('weft init has no --version: weftd --version says it');
  const { config } = asked;
  // Loaded when it is needed: nothing else here has to carry LMDB.
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

async function main([command, ...argv]: readonly string[]): Promise<string> {
  if (command === 'init') return init(argv);
  if (command === 'docker-opts') return dockerOpts(argv, process.env);
  if (command === undefined || command === '--help' || command === '-h') return HELP;
  throw new UsageError(`unknown command ${command}: weft --help lists what there is`);
}

try {
  writeSync(1, await main(process.argv.slice(2)));
} catch (error) {
  if (!(error instanceof UsageError || error instanceof SetupError)) throw error;
  writeSync(2, `weft: ${error.message.replace(/\s+/g, ' ')}\n`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
