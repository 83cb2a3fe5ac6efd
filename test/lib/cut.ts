/** A wire to a TCP server that a test cuts: connections end, or nothing passes any more, while the server itself goes on. */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

export class Wire {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #to: { readonly host: string; readonly port: number };
  #cut = false;
  /** Connections that were made through it, and refused by it. */
  made = 0;
  refused = 0;

  private constructor(server: Server, to: { readonly host: string; readonly port: number }) {
    this.#server = server;
    this.#to = to;
    server.on('connection', (socket) => this.#join(socket));
  }

  /** To a server given as `http://host:port`. */
  static async to(endpoint: string): Promise<Wire> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new Wire(server, placeOf(endpoint));
  }

  /** What clients connect to instead. */
  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Ends all connections, and each new one at once. */
  cut(): void {
    this.#cut = true;
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** New connections pass again. */
  mend(): void {
    this.#cut = false;
  }

  /** New connections lead to another server. */
  lead(endpoint: string): void {
    this.#to = placeOf(endpoint);
  }

  /** Nothing passes on the connections that there are, in neither direction, and nobody is told; new ones pass. */
  freeze(): void {
    for (const socket of this.#sockets) socket.unpipe().pause();
  }

  close(): void {
    this.#server.close();
    this.cut();
  }

  #join(near: Socket): void {
    if (this.#cut) {
      this.refused++;
      near.resetAndDestroy();
      return;
    }
    this.made++;
    const far = connect(this.#to);
    for (const [one, other] of [
      [near, far],
      [far, near],
    ]) {
      this.#sockets.add(one);
      one.on('error', () => other.destroy());
      one.on('close', () => {
        this.#sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  }
}

function placeOf(endpoint: string): { readonly host: string; readonly port: number } {
  const { hostname: host, port } = new URL(endpoint);
  return { host, port: Number(port) };
}
