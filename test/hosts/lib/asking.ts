/** Questions to a running daemon's control socket, over one connection that stays. */

import { readFileSync, readlinkSync } from 'node:fs';
import { Agent, request } from 'node:http';
import type { CountersAnswer, ExplainAnswer, StatusAnswer } from '../../../src/inspect/protocol.js';
import { PATHS, PROTOCOL, PROTOCOL_HEADER, RUN_FOLDER, SOCKET_SUFFIX } from '../../../src/inspect/protocol.js';
import type { Weft } from './weft.js';

export class Asking {
  readonly socketPath: string;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 1 });
  readonly #pid: number;

  constructor({ daemon }: Weft) {
    this.#pid = daemon.child.pid ?? 0;
    const namespace = /\d+/.exec(readlinkSync(`/proc/${this.#pid}/ns/net`))?.[0] ?? '';
    this.socketPath = `${RUN_FOLDER}/${namespace}/${this.#pid}${SOCKET_SUFFIX}`;
  }

  close(): void {
    this.#agent.destroy();
  }

  explain(question: Readonly<Record<string, string | number>>): Promise<ExplainAnswer> {
    const query = new URLSearchParams(
      Object.entries(question).map(([name, value]): [string, string] => [name, String(value)]),
    );
    return this.#get(`${PATHS.explain}?${query}`);
  }

  counters(): Promise<CountersAnswer> {
    return this.#get(PATHS.counters);
  }

  status(): Promise<StatusAnswer> {
    return this.#get(PATHS.status);
  }

  /** Of the daemon's memory in RAM, in bytes; not counting what it shares with its threads twice. */
  resident(): number {
    const [, pages] = readFileSync(`/proc/${this.#pid}/statm`, 'utf8').split(' ').map(Number);
    return pages * 4096;
  }

  #get<T>(path: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const headers = { [PROTOCOL_HEADER]: String(PROTOCOL) };
      const asked = request({ socketPath: this.socketPath, path, headers, agent: this.#agent }, (answer) => {
        let text = '';
        answer.setEncoding('utf8').on('data', (part: string) => {
          text += part;
        });
        answer.on('end', () => {
          if (answer.statusCode === 200) resolve(JSON.parse(text) as T);
          else reject(new Error(`${path.slice(0, 200)}: ${answer.statusCode} ${text}`));
        });
      });
      asked.on('error', reject);
      asked.end();
    });
  }
}
