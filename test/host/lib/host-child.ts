/** The code of this host's set-up, run inside a namespace for the tests: one question an IPC message (host-process.ts asks). */
import { readFileSync } from 'node:fs';
import { parseAddress, parseCidr } from '../../../src/control/cidr.js';
import { HostRules } from '../../../src/control/host-rules.js';
import { findUnderlay } from '../../../src/control/underlay.js';
import { goPattern } from '../../../src/go-regexp.js';
import type { Answer, Logged, Question } from './host-process.js';

let rules: HostRules | undefined;
let logged: Logged[] = [];

const log =
  (level: string) =>
  (event: string, fields: Readonly<Record<string, unknown>> = {}) => {
    logged.push({ level, event, ...fields });
  };

process.on('message', (question: Question) => {
  answer(question)
    .catch((error: Error) => ({ error: error.message, code: 'code' in error ? String(error.code) : error.name }))
    .then((result) => process.send?.({ ...result, logged }))
    .finally(() => {
      logged = [];
    });
});
process.on('disconnect', () => process.exit());

async function answer(question: Question): Promise<Partial<Answer>> {
  if (question.ask === 'start') {
    await rules?.stop();
    const { networks, subnets } = question.options;
    rules = new HostRules({
      ...question.options,
      networks: networks.map(parseCidr),
      subnets: subnets.map(parseCidr),
      log: { debug: log('debug'), info: log('info'), warn: log('warn'), error: log('error') },
    });
    await rules.start();
    return {};
  }
  if (question.ask === 'look') {
    const before = cpuMs();
    for (let i = 0; i < question.times; i++) await rules?.look();
    return { cpuMs: cpuMs() - before };
  }
  if (question.ask === 'stop') {
    let looked = false;
    void rules?.look().then(() => {
      looked = true;
    });
    await rules?.stop();
    return { looked };
  }
  if (question.ask === 'underlay') {
    const { publicIps, ifaceCanReach, ifaceRegexes, ...wish } = question.wish;
    const found = await findUnderlay({
      ...wish,
      ifaceRegexes: ifaceRegexes.map(goPattern),
      publicIps: publicIps.map(parseAddress),
      ifaceCanReach: ifaceCanReach === undefined ? undefined : parseAddress(ifaceCanReach),
    });
    return {
      underlay: {
        interface: found.interface,
        mtu: found.mtu,
        addresses: found.addresses.map(({ text }) => text),
        publicAddresses: found.publicAddresses.map(({ text }) => text),
      },
    };
  }
  return {};
}

/** Of this process and of those that it has run to their end: fields 14 to 17 of proc_pid_stat(5), in ticks of 10 ms. */
function cpuMs(): number {
  const fields = readFileSync('/proc/self/stat', 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0) * 10;
}
