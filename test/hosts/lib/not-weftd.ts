/** Servers on a unix socket that are no weftd, or another's, for a command to run into. Each lives until it is closed. */
import { createServer as createHttpServer, type ServerResponse } from 'node:http';
import { createServer, type Server, type Socket } from 'node:net';

export interface NotWeftd {
  readonly path: string;
  close(): void;
}

/** As `server` answers it: a line that the command's error must match. */
export interface Impostor {
  readonly what: string;
  readonly line: RegExp;
  readonly serve: (socketPath: string) => Promise<NotWeftd>;
}

const OURS = { 'content-type': 'application/json', 'weft-protocol': '1', 'weft-version': '9.9.9' };

function listen(server: Server, path: string): Promise<NotWeftd> {
  const sockets = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => {}).once('close', () => sockets.delete(socket));
  });
  const close = (): void => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  return new Promise((resolve, reject) => {
    server.once('error', reject).listen(path, () => resolve({ path, close }));
  });
}

const http =
  (answer: (response: ServerResponse) => void): Impostor['serve'] =>
  (path) =>
    listen(
      createHttpServer((_, response) => answer(response)),
      path,
    );

const raw =
  (use: (socket: Socket) => void): Impostor['serve'] =>
  (path) =>
    listen(createServer(use), path);

/** `own`: this package's version. */
export const impostors = (own: string): readonly Impostor[] => {
  const both = new RegExp(`9\\.9\\.9.*${own.replaceAll('.', '\\.')}|${own.replaceAll('.', '\\.')}.*9\\.9\\.9`);
  return [
    {
      what: 'a daemon of another protocol',
      line: both,
      serve: http((response) => response.writeHead(200, { ...OURS, 'weft-protocol': '2' }).end('{"pid":1}')),
    },
    {
      what: 'a daemon of another protocol that refuses ours',
      line: both,
      serve: http((response) => response.writeHead(400, { ...OURS, 'weft-protocol': '2' }).end('{"error":"old"}')),
    },
    {
      what: 'a protocol that is no number',
      line: /\S/,
      serve: http((response) => response.writeHead(200, { ...OURS, 'weft-protocol': 'weft\u00e9' }).end('{}')),
    },
    {
      what: 'a web server',
      line: /weftd|daemon/,
      serve: http((response) => response.writeHead(200, { 'content-type': 'text/html' }).end('<html>hello</html>')),
    },
    {
      what: 'an answer that is no JSON',
      line: /\S/,
      serve: http((response) => response.writeHead(200, OURS).end('<html>\nhello\n</html>')),
    },
    {
      what: 'an error of several lines, with escapes for a terminal',
      // biome-ignore lint/suspicious/noControlCharactersInRegex: it is the point
      line: /^[^\x00-\x08\x0b-\x1f\x7f]*\n?$/,
      serve: http((response) => response.writeHead(500, OURS).end(JSON.stringify({ error: 'one\ntwo\u001b[31m red' }))),
    },
    {
      what: 'an error without a word',
      line: /\S{3}/,
      serve: http((response) => response.writeHead(500, OURS).end()),
    },
    {
      what: 'half an answer',
      line: /\S/,
      serve: http((response) => {
        response.writeHead(200, { ...OURS, 'content-length': '1000' });
        response.write('{"pid":');
        setTimeout(() => response.destroy(), 50);
      }),
    },
    { what: 'one that speaks no HTTP', line: /\S/, serve: raw((socket) => socket.end('220 mail.example ESMTP\r\n')) },
    { what: 'one that hangs up at once', line: /\S/, serve: raw((socket) => socket.destroy()) },
    { what: 'one that hangs up when asked', line: /\S/, serve: raw((s) => s.once('data', () => s.destroy())) },
  ];
};

/** A command gives up on it after a while. */
export const NEVER_ANSWERS: Impostor = {
  what: 'one that never answers',
  line: /answer/,
  serve: raw((socket) => socket.resume()),
};
