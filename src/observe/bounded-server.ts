/**
 * An HTTP server for which whoever can reach it may be hostile, so all is bounded: connections, header bytes, time to send a
 * request, time to take an answer, and answers under way on a connection.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

export interface Bounds {
  /** One more, and the oldest is closed: those who hold connections keep nobody out. */
  readonly connections: number;
  /** Of them, those that have asked for something and not taken it yet. */
  readonly asked: number;
  readonly headerBytes: number;
  /** Milliseconds to send a request, and to ask for something on an open connection. */
  readonly timeout: number;
}

/** How many timeouts a client has to take its answer: large tables take a while over a slow line. */
const ANSWER_TIMEOUTS = 4;

/** Takes a response out of the bounds on time and number; who does so sees to both. */
export type Release = () => void;

/** Not listening yet. If `answer` rejects, the connection ends. */
export function boundedServer(
  bounds: Bounds,
  answer: (request: IncomingMessage, response: ServerResponse, release: Release) => Promise<void>,
): Server {
  const { headerBytes, timeout } = bounds;
  const connections = new Connections(bounds);
  const server = createServer(
    {
      maxHeaderSize: headerBytes,
      headersTimeout: timeout,
      requestTimeout: timeout,
      keepAliveTimeout: timeout,
      connectionsCheckingInterval: Math.min(1000, timeout),
    },
    (request, response) => {
      const { socket } = request;
      if (!connections.asks(socket, response)) {
        socket.destroy();
        return;
      }
      const patience = setTimeout(() => socket.destroy(), timeout * ANSWER_TIMEOUTS);
      response.once('close', () => {
        clearTimeout(patience);
        connections.answered(socket);
      });
      const release = (): void => {
        clearTimeout(patience);
        connections.released(socket);
      };
      answer(request, response, release).catch(() => response.destroy());
    },
  );
  server.on('connection', (socket: Socket) => {
    connections.connected(socket);
    socket.once('close', () => connections.closed(socket));
  });
  return server;
}

/** Ends it with all that is open. */
export function closeServer(server: Server): void {
  server.close();
  server.closeAllConnections();
}

/**
 * The open connections, oldest first: those that have asked and have no answer yet, and those that wait. A crowd that connects only
 * pushes out those that wait, and one that asks without taking the answers only those that have asked.
 */
class Connections {
  readonly #most: Bounds;
  readonly #waiting = new Set<Socket>();
  /** And the answer to what was asked last. */
  readonly #asked = new Map<Socket, ServerResponse>();
  /** Of them, those that have asked again. */
  readonly #again = new Set<Socket>();
  readonly #released = new Set<Socket>();

  constructor(most: Bounds) {
    this.#most = most;
  }

  connected(socket: Socket): void {
    this.#waiting.add(socket);
    if (this.#waiting.size + this.#asked.size > this.#most.connections) drop(this.#waiting);
  }

  /**
   * False: what it asked before is not answered yet, so that what comes would pile up in memory. One question may come behind an
   * answer that is made and not all gone: a client may have taken it all before we are told so.
   */
  asks(socket: Socket, answer: ServerResponse): boolean {
    const last = this.#asked.get(socket);
    if (this.#released.has(socket)) return false;
    if (last) {
      if (!last.writableEnded || this.#again.has(socket)) return false;
      this.#again.add(socket);
    }
    this.#waiting.delete(socket);
    this.#asked.set(socket, answer);
    if (this.#asked.size > this.#most.asked) drop(this.#asked);
    return true;
  }

  answered(socket: Socket): void {
    if (this.#again.delete(socket)) return;
    const known = this.#asked.delete(socket) || this.#released.delete(socket);
    if (known && !socket.destroyed) this.#waiting.add(socket);
  }

  released(socket: Socket): void {
    if (this.#asked.delete(socket)) this.#released.add(socket);
  }

  closed(socket: Socket): void {
    this.#waiting.delete(socket);
    this.#asked.delete(socket);
    this.#again.delete(socket);
    this.#released.delete(socket);
  }
}

function drop(sockets: { keys(): Iterator<Socket>; delete(socket: Socket): boolean }): void {
  const { value: oldest } = sockets.keys().next();
  if (!oldest) return;
  sockets.delete(oldest);
  oldest.destroy();
}
