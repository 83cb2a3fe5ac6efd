/**
 * The HTTP endpoints: /metrics, /healthz, /readyz, /v1/macs, /v1/neighbours, nothing else; where flannel has its own, /healthz and
 * /readyz alone. Whoever can reach them may be hostile, so all is bounded: connections, header bytes, time to send a request, time
 * to keep a connection; and only GET is answered (of /healthz and /readyz HEAD too, which some probes send).
 */
import type { Server, ServerResponse } from 'node:http';
import { SetupError } from '../io/setup-error.js';
import { boundedServer, closeServer } from './bounded-server.js';

const BOUNDS = { connections: 64, asked: 48, headerBytes: 8192 };
const TIMEOUT = 5000;
const JSON_TYPE = 'application/json';

/** What both kinds of endpoint need. */
interface Listener {
  readonly host: string;
  /** 0: any that is free. */
  readonly port: number;
  readonly ready: () => Readiness;
  /** Milliseconds; tests shorten it. */
  readonly timeout?: number;
}

/** /healthz and /readyz alone, so that they can be open to all. */
export interface HealthOptions extends Listener {
  readonly only: 'health';
}

export interface AllOptions extends Listener {
  readonly only?: undefined;
  /** Text of /metrics and its content type. */
  readonly metrics: { readonly contentType: string; metrics(): Promise<string> };
  /** Texts of /v1/macs and /v1/neighbours, JSON. */
  readonly tables: { macs(): Promise<string>; neighbours(): Promise<string> };
}

export type HttpOptions = HealthOptions | AllOptions;

/** What /healthz says, byte for byte as flannel: probes compare it. */
export const HEALTHY = 'flanneld is running';
/** What /readyz begins with; what more there is to say may follow where we are ready. */
export const READY = 'flanneld is ready';
export const NOT_READY = 'flanneld is not ready yet';

/** What /readyz says: 200 or 503, and the text: READY, perhaps with more, NOT_READY, or why nothing is forwarded. */
export interface Readiness {
  readonly ready: boolean;
  readonly text: string;
}

export interface HttpEndpoint {
  readonly port: number;
  close(): void;
}

/** Starts to listen. Rejects with a SetupError when it cannot. */
export function serveHttp(options: HttpOptions): Promise<HttpEndpoint> {
  const { host, port, timeout = TIMEOUT } = options;
  const server = boundedServer({ ...BOUNDS, timeout }, (request, response) =>
    answer(request.method ?? '', (request.url ?? '').split('?')[0], response, options),
  );
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(refusal(error, options)));
    server.listen({ host, port, exclusive: true }, () => {
      server.removeAllListeners('error').on('error', () => {});
      resolve({ port: portOf(server), close: () => closeServer(server) });
    });
  });
}

async function answer(method: string, path: string, response: ServerResponse, options: HttpOptions): Promise<void> {
  const say = (code: number, text: string, type = 'text/plain; charset=utf-8'): void => {
    const body = Buffer.from(text);
    response.writeHead(code, { 'content-type': type, 'content-length': body.length }).end(body);
  };
  const health = path === '/healthz' || path === '/readyz';
  if (method !== 'GET' && !(health && method === 'HEAD')) {
    // What was sent along is not read: the connection ends with the answer.
    response.setHeader('allow', health ? 'GET, HEAD' : 'GET').setHeader('connection', 'close');
    say(405, 'only GET\n');
  } else if (path === '/healthz') {
    say(200, HEALTHY);
  } else if (path === '/readyz') {
    const { ready, text } = options.ready();
    say(ready ? 200 : 503, text);
  } else if (options.only === 'health') {
    say(404, 'there are /healthz and /readyz\n');
  } else if (path === '/metrics') {
    say(200, await options.metrics.metrics(), options.metrics.contentType);
  } else if (path === '/v1/macs') {
    say(200, `${await options.tables.macs()}\n`, JSON_TYPE);
  } else if (path === '/v1/neighbours') {
    say(200, `${await options.tables.neighbours()}\n`, JSON_TYPE);
  } else {
    say(404, 'there are /metrics, /healthz, /readyz, /v1/macs and /v1/neighbours\n');
  }
}

function refusal(error: NodeJS.ErrnoException, { host, port, only }: HttpOptions): SetupError {
  const where = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
  if (error.code === 'EADDRINUSE') {
    const flag = only === 'health' ? '--healthz-port' : '--metrics-address';
    const code = only === 'health' ? 'HEALTHZ_PORT_IN_USE' : 'METRICS_PORT_IN_USE';
    return new SetupError(code, `${where} is in use: choose another ${flag}`);
  }
  if (error.code === 'EADDRNOTAVAIL') {
    const flag = only === 'health' ? '--healthz-ip' : '--metrics-address';
    return new SetupError('NO_ADDRESS', `${host} is not an address of this host: choose another ${flag}`);
  }
  return new SetupError('NO_HTTP', `cannot listen on ${where}: ${error.message}`);
}

function portOf(server: Server): number {
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}
